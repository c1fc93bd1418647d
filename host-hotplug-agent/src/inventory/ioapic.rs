//! How many pins each IOAPIC has. A register tells, which user space cannot read; the kernel told its log at boot
//! (`arch/x86/kernel/apic/io_apic.c`, `mp_register_ioapic`): "IOAPIC[0]: apic_id 2, version 32, address 0xfec00000, GSI
//! 0-119".

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::sysroot::SysRoot;

/// Longest record of `/dev/kmsg` (Linux `CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;

/// Last pin of each IOAPIC, by its first one, as far as the kernel's log still has it.
pub fn last_pins(sys: &SysRoot) -> BTreeMap<u32, u32> {
    log(sys).lines().filter_map(pins).collect()
}

fn pins(line: &str) -> Option<(u32, u32)> {
    let text = line.split_once("IOAPIC[")?.1;
    let (first, last) = text.split_once("GSI ")?.1.split_once('-')?;
    let last = last.split(|c: char| !c.is_ascii_digit()).next()?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// The kernel's log as far as it can be read.
fn log(sys: &SysRoot) -> String {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let Ok(mut file) = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(sys.path("dev/kmsg"))
    else {
        return String::new();
    };
    let mut text = Vec::new();
    let mut record = [0; RECORD];
    loop {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(record.get(..count).unwrap_or_default()),
            // Records were overwritten meanwhile: what comes is the oldest that is left.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}
