//! L0's trace ring and log ring as text.

use std::mem::offset_of;

use anyhow::{Context, Result};
use firmware_shim::PhysMem;
use locum_abi::trace::{LOG_BYTES, TRACE_RECORDS};
use locum_abi::{Header, LogRing, TraceRecord, TraceRing};
use serde::Serialize;

use super::{memory, names};

/// One trace record in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Number of the record since L0 booted.
    pub number: u64,
    /// TSC when it was written, in ticks.
    pub tsc: u64,
    /// APIC id of the CPU that wrote it.
    pub apic_id: u16,
    /// Its kind, see [`names::trace_kind`].
    pub kind: &'static str,
    /// See the kind in `locum_abi::trace`.
    pub a: u32,
    /// See the kind.
    pub b: u64,
    /// See the kind.
    pub c: u64,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            number,
            tsc,
            apic_id,
            kind,
            a,
            b,
            c,
        } = self;
        write!(
            f,
            "{number:>7} {tsc:>16} apic {apic_id:<3} {kind:<18} a={a:#x} b={b:#x} c={c:#x}"
        )
    }
}

/// The newest `limit` records, oldest first. Records that were overwritten while they were read are left out.
///
/// # Errors
/// If the ring cannot be read.
pub fn records(memory: &dyn PhysMem, header: &Header, limit: usize) -> Result<Vec<Record>> {
    let context = || format!("L0's trace ring at {:#x}", header.trace);
    let written = memory::copy::<u64>(memory, header.trace).with_context(context)?;
    let capacity = TRACE_RECORDS as u64;
    let wanted = capacity.min(limit as u64).min(written);
    let mut records = Vec::new();
    for number in written - wanted..written {
        let at = header.trace
            + offset_of!(TraceRing, records) as u64
            + (number % capacity) * size_of::<TraceRecord>() as u64;
        let raw: TraceRecord = memory::copy(memory, at).with_context(context)?;
        records.push(Record {
            number,
            tsc: raw.tsc,
            apic_id: raw.cpu,
            kind: names::trace_kind(raw.kind),
            a: raw.a,
            b: raw.b,
            c: raw.c,
        });
    }
    let now = memory::copy::<u64>(memory, header.trace).with_context(context)?;
    let oldest = now.saturating_sub(capacity);
    records.retain(|record| record.number >= oldest);
    Ok(records)
}

/// The text in the log ring, oldest first, from its first whole line on.
///
/// # Errors
/// If the ring cannot be read.
pub fn log(memory: &dyn PhysMem, header: &Header) -> Result<String> {
    let context = || format!("L0's log ring at {:#x}", header.log);
    let written = memory::copy::<u64>(memory, header.log).with_context(context)?;
    let mut ring = vec![0; LOG_BYTES];
    memory
        .read(header.log + offset_of!(LogRing, text) as u64, &mut ring)
        .with_context(context)?;
    let position = usize::try_from(written % LOG_BYTES as u64)?;
    let bytes = if written > LOG_BYTES as u64 {
        ring.rotate_left(position);
        let first_line = ring
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(0, |newline| newline + 1);
        ring.split_off(first_line)
    } else {
        ring.truncate(usize::try_from(written)?);
        ring
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::l0::FakeRegion;
    use locum_abi::TraceKind;

    #[test]
    fn the_newest_records_come_last_after_a_wrap() {
        let region = FakeRegion::new(2);
        let total = TRACE_RECORDS as u32 + 5;
        for n in 0..total {
            region.trace(TraceKind::Park, 1, n);
        }
        let records = records(&region, &region.header(), 3).unwrap();
        assert_eq!(
            records.iter().map(|r| r.a).collect::<Vec<_>>(),
            [total - 3, total - 2, total - 1]
        );
        assert_eq!(records[0].kind, "park");
        assert_eq!(
            super::records(&region, &region.header(), usize::MAX).unwrap().len(),
            TRACE_RECORDS
        );
    }

    #[test]
    fn the_log_starts_with_a_whole_line() {
        let region = FakeRegion::new(1);
        region.log("first line\n");
        assert_eq!(log(&region, &region.header()).unwrap(), "first line\n");
        for n in 0..5000 {
            region.log(&format!("line number {n}\n"));
        }
        let text = log(&region, &region.header()).unwrap();
        assert!(text.starts_with("line number "));
        assert!(text.ends_with("line number 4999\n"));
        assert!(text.len() <= LOG_BYTES);
    }
}
