//! `/proc/cpuinfo`.

use std::collections::BTreeSet;

use crate::sysroot::SysRoot;

/// A CPU that is online.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuEntry {
    /// Linux's number.
    pub number: u32,
    /// "GenuineIntel"; empty if it is not told.
    pub vendor: String,
    flags: BTreeSet<String>,
}

impl CpuEntry {
    /// Whether `flags` or `vmx flags` lists that feature.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }
}

/// Every CPU.
///
/// # Errors
/// If the file cannot be read, or lists none.
pub fn read(sys: &SysRoot) -> Result<Vec<CpuEntry>, String> {
    let text = sys.read("proc/cpuinfo").map_err(|error| error.to_string())?;
    let cpus = parse(&text);
    if cpus.is_empty() {
        return Err("/proc/cpuinfo lists no CPU".to_owned());
    }
    Ok(cpus)
}

/// A paragraph each.
pub fn parse(text: &str) -> Vec<CpuEntry> {
    let mut cpus = Vec::new();
    for paragraph in text.split("\n\n") {
        let mut cpu = CpuEntry::default();
        for (key, value) in paragraph.lines().filter_map(|line| line.split_once(':')) {
            match key.trim() {
                "processor" => cpu.number = value.trim().parse().unwrap_or(0),
                "vendor_id" => value.trim().clone_into(&mut cpu.vendor),
                "flags" | "vmx flags" => cpu.flags.extend(value.split_whitespace().map(str::to_owned)),
                _ => {}
            }
        }
        if !cpu.flags.is_empty() {
            cpus.push(cpu);
        }
    }
    cpus
}
