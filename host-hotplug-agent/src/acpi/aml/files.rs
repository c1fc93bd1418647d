//! The files of the tables that hold AML.

use crate::sysroot::SysRoot;

/// Where Linux shows the tables.
pub const DIR: &str = "sys/firmware/acpi/tables";
/// The table in which all others stand.
pub const DSDT: &str = "DSDT";

/// Names of the tables that hold AML, in the order in which Linux loads them.
pub fn tables(sys: &SysRoot) -> Vec<String> {
    let names = |dir: &str| sys.list(dir).unwrap_or_default();
    let mut ssdts: Vec<(u32, String)> = Vec::new();
    let dynamic = names(&format!("{DIR}/dynamic")).into_iter();
    for name in names(DIR)
        .into_iter()
        .chain(dynamic.map(|name| format!("dynamic/{name}")))
    {
        let file = name.rsplit('/').next().unwrap_or_default();
        if let Some(digits) = file.strip_prefix("SSDT") {
            ssdts.push((digits.parse().unwrap_or(0), name));
        }
    }
    ssdts.sort();
    let dsdt = sys.exists(format!("{DIR}/{DSDT}")).then(|| DSDT.to_owned());
    dsdt.into_iter()
        .chain(ssdts.into_iter().map(|(_, name)| name))
        .collect()
}
