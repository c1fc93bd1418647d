//! L0's trace ring and log ring as text.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::offset_of;
use std::ops::Range;

use anyhow::{Context, Result};
use firmware_shim::PhysMem;
use locum_abi::layout::Array;
use locum_abi::trace::BEING_WRITTEN;
use locum_abi::{Event, Header, KeptRecord, Layout, LogRing, TraceKind, TraceRecord};
use serde::Serialize;
use serde_json::{Value, json};

use super::{event, memory};

/// One trace record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Number of the record since L0 booted.
    pub number: u64,
    /// TSC when it was written, in ticks.
    pub tsc: u64,
    /// APIC id of the CPU that wrote it.
    pub apic_id: u16,
    /// Its kind in one word, `unknown` for one of a later release.
    pub kind: &'static str,
    /// What it tells: for each kind its own fields.
    #[serde(flatten)]
    pub fields: Value,
    /// What it tells, in words.
    #[serde(skip)]
    pub words: String,
}

impl Record {
    fn new(number: u64, raw: &TraceRecord) -> Self {
        let kind = TraceKind::from_raw(raw.kind).map_or("unknown", event::kind);
        let (fields, words) = match Event::decode(raw) {
            Some(event) => (event::fields(event), event::words(event, raw.cpu)),
            None => {
                let TraceRecord { kind, a, b, c, .. } = *raw;
                (
                    json!({ "raw": { "kind": kind, "a": a, "b": b, "c": c } }),
                    format!("kind {kind} of a later release (a={a:#x}, b={b:#x}, c={c:#x})"),
                )
            }
        };
        Self {
            number,
            tsc: raw.tsc,
            apic_id: raw.cpu,
            kind,
            fields,
            words,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            tsc,
            apic_id,
            kind,
            words,
            ..
        } = self;
        write!(f, "{number:>7} {tsc:>16} APIC {apic_id:<3} {kind:<17} {words}")
    }
}

/// The kinds of records that there are, each in one word.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    (TraceKind::None as u16 + 1..)
        .map_while(TraceKind::from_raw)
        .map(event::kind)
}

/// The newest `limit` records of these `kinds` (of any kind, if none is named), oldest first: those in the ring, and those
/// that L0 has kept although the ring has lost them. Records that were overwritten while they were read are left out.
///
/// # Errors
/// If the ring cannot be read.
pub fn records(memory: &dyn PhysMem, header: &Header, limit: usize, kinds: &[String]) -> Result<Vec<Record>> {
    let layout = memory::layout(header)?;
    let mut found = ring(memory, header, &layout.trace)?;
    // A record that both have is told as it was kept: there its number stands with it.
    found.extend(kept(memory, &layout)?);
    let newest = found.iter().rev().map(|(number, raw)| Record::new(*number, raw));
    let of_kinds = |record: &Record| kinds.is_empty() || kinds.iter().any(|kind| kind == record.kind);
    let mut records: Vec<_> = newest.filter(of_kinds).take(limit).collect();
    records.reverse();
    Ok(records)
}

/// What is in the ring, by number.
fn ring(memory: &dyn PhysMem, header: &Header, ring: &Array) -> Result<BTreeMap<u64, TraceRecord>> {
    let context = || format!("L0's trace ring at {:#x}", header.trace);
    let written = || memory::copy::<u64>(memory, header.trace).with_context(context);
    let before = written()?;
    let elements = elements(memory, ring, before).with_context(context)?;
    let numbers = whole(ring, before, written()?);
    Ok(numbers
        .filter_map(|number| Some((number, *elements.get((number % u64::from(ring.count)) as usize)?)))
        .collect())
}

/// What is kept of each kind, by number. Nothing, if L0 keeps none; or if the module is of a release that did not know of
/// them, which does not let them be read: then the ring is all there is.
fn kept(memory: &dyn PhysMem, layout: &Layout) -> Result<BTreeMap<u64, TraceRecord>> {
    let mut records = BTreeMap::new();
    for (at, ring) in (0..layout.kept_kinds()).filter_map(|kind| layout.kept(kind)) {
        let Ok(before) = memory::copy::<u64>(memory, at) else {
            return Ok(BTreeMap::new());
        };
        let elements: Vec<KeptRecord> = elements(memory, &ring, before)?;
        let now = memory::copy::<u64>(memory, at).with_context(|| format!("L0's kept records at {at:#x}"))?;
        let whole = whole(&ring, before, now)
            .filter_map(|n| elements.get((n % u64::from(ring.count)) as usize))
            .filter(|kept| kept.number != BEING_WRITTEN);
        records.extend(whole.map(|kept| (kept.number, kept.record)));
    }
    Ok(records)
}

/// The elements of a ring in which `written` were written so far.
fn elements<T: memory::Plain>(memory: &dyn PhysMem, ring: &Array, written: u64) -> Result<Vec<T>> {
    let count = u32::try_from(written).map_or(ring.count, |written| written.min(ring.count));
    memory::elements(memory, ring, count)
}

/// Which of them are whole, if so many were written before they were read and so many afterwards.
fn whole(ring: &Array, before: u64, after: u64) -> Range<u64> {
    after.saturating_sub(ring.count.into())..before
}

/// The text in the log ring, oldest first, from its first whole line on.
///
/// # Errors
/// If the ring cannot be read.
pub fn log(memory: &dyn PhysMem, header: &Header) -> Result<String> {
    let context = || format!("L0's log ring at {:#x}", header.log);
    let written = memory::copy::<u64>(memory, header.log).with_context(context)?;
    let capacity = memory::layout(header)?.log_bytes;
    let mut ring = vec![0; capacity as usize];
    memory
        .read(header.log + offset_of!(LogRing, text) as u64, &mut ring)
        .with_context(context)?;
    let position = usize::try_from(written % u64::from(capacity))?;
    let bytes = if written > u64::from(capacity) {
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
    use crate::testing::l0::{FIRST_HEADER, FIRST_TRACE, FakeRegion};
    use firmware_shim::{OutOfRange, Pieces};
    use locum_abi::Slot;
    use locum_abi::trace::{KEPT_RECORDS, LOG_BYTES, TRACE_RECORDS};

    #[test]
    fn the_newest_records_come_last_after_a_wrap() {
        let region = FakeRegion::new(2);
        let total = TRACE_RECORDS as u32 + 5;
        for n in 0..total {
            region.trace(Event::Boot { cpus: n }, 1);
        }
        let records = super::records(&region, &region.header(), 3, &[]).unwrap();
        assert_eq!(
            records.iter().map(|r| r.fields["cpus"].clone()).collect::<Vec<_>>(),
            [total - 3, total - 2, total - 1]
        );
        assert_eq!(records[0].kind, "boot");
        assert_eq!(
            super::records(&region, &region.header(), usize::MAX, &[])
                .unwrap()
                .len(),
            TRACE_RECORDS
        );
    }

    /// A region where a host was entered and started, after which its user space has had `many` exceptions injected.
    fn flooded(many: u32) -> FakeRegion {
        let region = FakeRegion::new(2);
        region.trace(Event::Boot { cpus: 2 }, 0);
        let enter = Event::Enter {
            in_vmx: true,
            vmcs: None,
        };
        region.trace(enter, 1);
        for n in 0..many {
            let inject = Event::Inject {
                vector: 6,
                error: 0,
                rip: n.into(),
            };
            region.trace(inject, 1);
        }
        region.trace(Event::HostRetired { slot: Slot::Even }, 1);
        region
    }

    fn told(region: &FakeRegion, limit: usize, kinds: &[&str]) -> Vec<(u64, &'static str)> {
        let kinds: Vec<_> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let records = records(region, &region.header(), limit, &kinds).unwrap();
        records.iter().map(|record| (record.number, record.kind)).collect()
    }

    #[test]
    fn what_a_flood_took_from_the_ring_is_told_in_its_place() {
        let many = 3 * TRACE_RECORDS as u32;
        let last = u64::from(many) + 2;
        let region = flooded(many);
        let all = told(&region, usize::MAX, &[]);
        assert_eq!(all[..2], [(0, "boot"), (1, "enter")]);
        assert_eq!(all.len(), 2 + TRACE_RECORDS, "and all that is in the ring, each once");
        assert!(
            all[2..]
                .iter()
                .map(|(number, _)| *number)
                .eq(last + 1 - TRACE_RECORDS as u64..=last)
        );
        assert_eq!(told(&region, 2, &[]), [(last - 1, "inject"), (last, "host-retired")]);
        let rare = told(&region, 2, &["enter", "host-retired", "leave"]);
        assert_eq!(rare, [(1, "enter"), (last, "host-retired")]);
        let some = flooded(3);
        assert_eq!(told(&some, usize::MAX, &[]).len(), 6, "nothing twice");
    }

    #[test]
    fn what_is_being_written_is_left_out() {
        let region = flooded(TRACE_RECORDS as u32);
        let (at, records) = Layout::of(&region.header())
            .unwrap()
            .kept(TraceKind::Enter as u32)
            .unwrap();
        region.write(records.address(0).unwrap(), &BEING_WRITTEN.to_le_bytes());
        assert_eq!(told(&region, usize::MAX, &["enter"]), []);
        // And what has been overwritten by now.
        region.write(records.address(0).unwrap(), &1_u64.to_le_bytes());
        assert_eq!(told(&region, usize::MAX, &["enter"]), [(1, "enter")]);
        region.write(at, &(KEPT_RECORDS as u64 + 1).to_le_bytes());
        assert_eq!(
            told(&region, usize::MAX, &["enter"]),
            [(1, "enter")],
            "the newest of many"
        );
    }

    /// All of a region but what is kept: as an older module lets it be read.
    struct WithoutKept(FakeRegion);

    impl PhysMem for WithoutKept {
        fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
            let kept = self.0.header().kept;
            if (kept..kept + 0x1000).contains(&addr) {
                return Err(OutOfRange { addr, len: buf.len() });
            }
            self.0.read(addr, buf)
        }
    }

    #[test]
    fn an_older_module_shows_the_ring() {
        let memory = WithoutKept(flooded(3));
        let records = records(&memory, &memory.0.header(), usize::MAX, &[]).unwrap();
        assert_eq!(records.len(), 6);
    }

    #[test]
    fn a_record_is_told_in_words_and_in_json() {
        let region = FakeRegion::new(2);
        region.trace(Event::HostRetired { slot: Slot::Odd }, 1);
        let records = records(&region, &region.header(), 1, &[]).unwrap();
        assert_eq!(
            records[0].to_string(),
            "      0                0 APIC 1   host-retired      the odd host retired"
        );
        assert_eq!(
            serde_json::to_string(&records[0]).unwrap(),
            r#"{"number":0,"tsc":0,"apic_id":1,"kind":"host-retired","slot":1}"#
        );
    }

    #[test]
    fn records_of_a_later_release_are_told_too() {
        let raw = TraceRecord {
            kind: 31,
            a: 1,
            b: 0x20,
            c: 0x30,
            ..TraceRecord::default()
        };
        let unknown = Record::new(7, &raw);
        assert!(
            unknown
                .to_string()
                .ends_with("unknown           kind 31 of a later release (a=0x1, b=0x20, c=0x30)"),
            "{unknown}"
        );
        let json = serde_json::to_value(&unknown).unwrap();
        assert_eq!(json["raw"], json!({ "kind": 31, "a": 1, "b": 32, "c": 48 }));
        // A kind that is known, with a resource that is not.
        let owner = Record::new(8, &TraceRecord { kind: 8, a: 9, ..raw });
        assert_eq!(owner.kind, "owner");
        assert!(owner.words.contains("a later release"), "{owner}");
    }

    #[test]
    fn the_trace_of_the_first_release_is_told() {
        let memory = Pieces(&[(0x80_0000, FIRST_HEADER), (0x81_0000, FIRST_TRACE)]);
        let header = super::super::header::read(&memory, 0x80_0000).unwrap();
        let records = records(&memory, &header, usize::MAX, &[]).unwrap();
        assert_eq!(records.len(), 26);
        assert!(records.iter().all(|record| record.kind != "unknown"));
        assert_eq!((records[25].tsc, records[25].apic_id), (1_000_025, 1));
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
