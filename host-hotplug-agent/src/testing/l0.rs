//! L0's shared region as plain memory that a test writes.
#![expect(unsafe_code, reason = "writes the ABI's structures into a byte buffer")]

use std::mem::offset_of;
use std::sync::Mutex;

use firmware_shim::{OutOfRange, PhysMem};
use locum_abi::header::SlotInfo;
use locum_abi::trace::{LOG_BYTES, TRACE_RECORDS};
use locum_abi::{
    CpuMode, Event, Header, HostState, KeptRecord, Layout, LogRing, PerSlot, Slot, Status, TraceRecord, TraceRing,
};

const BASE: u64 = 0x80_0000;
const STATUS: u64 = BASE + 0x1000;
const TRACE: u64 = BASE + 0x10_0000;
const KEPT: u64 = BASE + 0x4_0000;
const LOG: u64 = BASE + 0x12_0000;
const TABLES: u64 = BASE + 0x14_0000;
/// Bytes of each slot's table area.
pub const TABLES_SIZE: u64 = 0x4_0000;
const SIZE: u64 = 0x20_0000;

/// What an L0 of the first release had at 0x800000, 0x801000 and 0x810000: header, status with two CPUs, trace ring.
pub const FIRST_HEADER: &[u8] = include_bytes!("../../../l0-monitor/abi/tests/releases/1/header.bin");
/// See [`FIRST_HEADER`].
pub const FIRST_STATUS: &[u8] = include_bytes!("../../../l0-monitor/abi/tests/releases/1/status.bin");
/// See [`FIRST_HEADER`].
pub const FIRST_TRACE: &[u8] = include_bytes!("../../../l0-monitor/abi/tests/releases/1/trace.bin");

/// The region from 8 MiB on, as in the lab.
pub struct FakeRegion {
    header: Header,
    bytes: Mutex<Vec<u8>>,
    /// Memory elsewhere.
    other: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Held while the status is read, changed and written: two hosts' threads do that.
    updating: Mutex<()>,
}

impl FakeRegion {
    /// `cpus` CPUs with APIC ids from 0, all native and owned by the host of generation 0.
    pub fn new(cpus: u32) -> Self {
        let slots = PerSlot::from_fn(|slot| {
            let number = u64::from(slot.raw());
            SlotInfo {
                mailbox: BASE + 0x2_0000 + number * 0x1000,
                reset_vector: BASE + 0x3_0000 + number * 0x1000,
                console_port: PerSlot::new(0x3f8, 0x2f8)[slot],
                low_slice: 0x1_0000 + number * 0x4_0000,
                low_slice_size: 0x4_0000,
                tables: TABLES + number * TABLES_SIZE,
                tables_size: TABLES_SIZE,
                ..SlotInfo::default()
            }
        });
        let header = Header {
            shared: BASE,
            shared_size: SIZE,
            private: 0x10_0000,
            private_size: 0x70_0000,
            pool: 0x6800_0000,
            pool_size: 0x17e0_0000,
            status: STATUS,
            trace: TRACE,
            kept: KEPT,
            log: LOG,
            image_bytes: 123_456,
            cpu_count: cpus,
            slots,
            ..Header::of_this_release()
        };
        let region = Self {
            header,
            bytes: Mutex::new(vec![0; SIZE as usize]),
            other: Mutex::new(vec![]),
            updating: Mutex::new(()),
        };
        region.store(BASE, header);
        region.update(|status| {
            status.cpu_count = cpus;
            status.hosts[Slot::Even].state = HostState::Running as u32;
            for (apic_id, cpu) in (0u32..).zip(status.cpus.iter_mut().take(cpus as usize)) {
                cpu.apic_id = apic_id;
                cpu.mode = CpuMode::Native as u32;
                cpu.owner = Slot::Even.raw();
            }
        });
        region
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Changes the status region.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let _one_at_a_time = self.updating.lock().unwrap();
        let mut status = crate::l0::memory::copy::<Status>(self, STATUS).unwrap();
        change(&mut status);
        self.store(STATUS, status);
    }

    /// Appends a trace record.
    pub fn trace(&self, event: Event, cpu: u16) {
        let (kind, a, b, c) = event.encode();
        let written: u64 = crate::l0::memory::copy(self, TRACE).unwrap();
        let at = TRACE
            + offset_of!(TraceRing, records) as u64
            + (written % TRACE_RECORDS as u64) * size_of::<TraceRecord>() as u64;
        let record = TraceRecord {
            tsc: written * 100,
            kind: kind as u16,
            cpu,
            a,
            b,
            c,
        };
        self.store(at, record);
        self.store(TRACE, written + 1);
        let (ring, records) = Layout::of(&self.header).unwrap().kept(kind as u32).unwrap();
        let of_kind: u64 = crate::l0::memory::copy(self, ring).unwrap();
        let place = records.address((of_kind % u64::from(records.count)) as u32).unwrap();
        let number = written;
        self.store(place, KeptRecord { number, record });
        self.store(ring, of_kind + 1);
    }

    /// Appends to the log.
    pub fn log(&self, text: &str) {
        let mut written: u64 = crate::l0::memory::copy(self, LOG).unwrap();
        for byte in text.bytes() {
            let at = LOG + offset_of!(LogRing, text) as u64 + written % LOG_BYTES as u64;
            self.bytes.lock().unwrap()[(at - BASE) as usize] = byte;
            written += 1;
        }
        self.store(LOG, written);
    }

    /// Puts memory anywhere outside the region.
    pub fn put(&self, at: u64, bytes: Vec<u8>) {
        self.other.lock().unwrap().push((at, bytes));
    }

    /// Writes bytes anywhere in the region.
    pub fn write(&self, at: u64, data: &[u8]) {
        let start = (at - BASE) as usize;
        self.bytes.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
    }

    fn store<T: Copy>(&self, at: u64, value: T) {
        // SAFETY: the bytes of a plain value, which outlives the slice.
        let raw = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
        self.write(at, raw);
    }
}

impl PhysMem for FakeRegion {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let refuse = OutOfRange { addr, len: buf.len() };
        for (start, bytes) in &*self.other.lock().unwrap() {
            let at = addr.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
            if let Some(there) = at.and_then(|at| bytes.get(at..at.checked_add(buf.len())?)) {
                buf.copy_from_slice(there);
                return Ok(());
            }
        }
        let bytes = self.bytes.lock().unwrap();
        let start = addr.checked_sub(BASE).ok_or(refuse)? as usize;
        buf.copy_from_slice(bytes.get(start..start + buf.len()).ok_or(refuse)?);
        Ok(())
    }
}
