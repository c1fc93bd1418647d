//! `/sys/firmware/memmap`: the memory map that L0 gave this host.

use anyhow::{Result, ensure};

use crate::sysroot::SysRoot;

/// e820 type of memory with ACPI tables.
pub const ACPI_TABLES: u32 = 3;
/// e820 type of memory that AML works in.
pub const ACPI_NVS: u32 = 4;

/// Its ranges as (start, length, e820 type).
///
/// # Errors
/// If it cannot be read, or the kernel does not show it.
pub fn ranges(sys: &SysRoot) -> Result<Vec<(u64, u64, u32)>> {
    const DIR: &str = "sys/firmware/memmap";
    let mut map = Vec::new();
    for name in sys.list(DIR)? {
        let number = |file: &str| sys.read_number(format!("{DIR}/{name}/{file}"));
        let (start, last) = (number("start")?, number("end")?);
        // The words of Linux `e820_type_to_string`.
        let kind = match sys.read(format!("{DIR}/{name}/type"))?.as_str() {
            "System RAM" => 1,
            "ACPI Tables" => ACPI_TABLES,
            "ACPI Non-volatile Storage" => ACPI_NVS,
            "Unusable memory" => 5,
            "Persistent Memory" => 7,
            "Soft Reserved" => 0xefff_ffff,
            _ => 2,
        };
        map.push((start, last.saturating_sub(start).saturating_add(1), kind));
    }
    ensure!(
        !map.is_empty(),
        "/sys/firmware/memmap is empty: use a kernel with CONFIG_FIRMWARE_MEMMAP"
    );
    Ok(map)
}
