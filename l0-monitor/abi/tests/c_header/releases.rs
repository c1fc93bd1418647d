//! Today's structures against those of every release so far, as kept in `tests/releases`.
//!
//! L0 stays while module and agent are upgraded, and a module and an agent may be of two releases, so what a release wrote
//! must mean the same for ever: values and offsets stay, and what is new lies where there was nothing.
#![expect(unsafe_code, reason = "looks at the bytes of the ABI's structures")]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use locum_abi::channel::RING_DATA;
use locum_abi::frame::{FRAME_MAGIC, Frame, TableRegister};
use locum_abi::header::{BLANK_RANGES, BlankRange, Header, POOL_PIECES, PoolPiece, SlotInfo};
use locum_abi::layout::{self, Layout};
use locum_abi::status::{CpuStatus, HostStatus, NO_OWNER};
use locum_abi::uapi::{self, Call, Cycle, Info, Range, Switch, Text, TextKind};
use locum_abi::{
    CHANNEL_COUNT, ChannelRing, Errno, Event, Grant, HostState, LogRing, MAGIC, PerSlot, SLOTS, Slot, Status,
    StopReason, TraceKind, TraceRecord, TraceRing,
};

use super::compiler;
use super::generate::Header as CHeader;
use super::layout as today;

/// Fields that have another name since.
const RENAMED: &[(&str, &str)] = &[
    ("locum_header.revision", "family"),
    ("locum_info.uapi_revision", "family"),
    ("locum_info.abi_revision", "l0_family"),
];

/// Fields that were always zero, and free for later releases.
const FREE: &[&str] = &[
    "locum_frame.detail",
    "locum_info.rsdp",
    "locum_switch.detail",
    "locum_cycle.detail",
    "locum_range.state",
];

/// Values that have another name since; none if the value went, and is not used again.
const RENAMED_VALUES: &[(&str, Option<&str>)] = &[
    ("LOCUM_ERRNO_NESTED", None),
    (
        "LOCUM_TRACE_KIND_HYPERCALL_REFUSED",
        Some("LOCUM_TRACE_KIND_CALL_REFUSED"),
    ),
    ("LOCUM_TRACE_KIND_MEM_DENIED", Some("LOCUM_TRACE_KIND_MEMORY_DENIED")),
    ("LOCUM_REVISION", Some("LOCUM_FAMILY")),
    ("LOCUM_UAPI_REVISION", Some("LOCUM_UAPI_FAMILY")),
    ("LOCUM_POWER_EXIT", Some("LOCUM_POWER_POLICY_EXIT")),
    ("LOCUM_POWER_RETIRE", Some("LOCUM_POWER_POLICY_RETIRE")),
    ("LOCUM_TEXT_STATE", Some("LOCUM_TEXT_KIND_STATE")),
    ("LOCUM_TEXT_PROGRESS", Some("LOCUM_TEXT_KIND_PROGRESS")),
    ("LOCUM_TEXT_LAST_ERROR", Some("LOCUM_TEXT_KIND_LAST_ERROR")),
];

/// Structures that can't grow: others lie behind them without a stride that the header tells.
const FIXED: &[&str] = &[
    "locum_slot_info",
    "locum_table_register",
    "locum_frame",
    "locum_mailbox",
];

fn file(release: u32, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases");
    folder.join(release.to_string()).join(name)
}

fn text(release: u32, name: &str) -> String {
    fs::read_to_string(file(release, name)).expect("what the release wrote")
}

/// A field of a release.
struct Field {
    structure: String,
    /// Its name today.
    name: String,
    offset: usize,
    size: usize,
}

impl Field {
    fn is_free(&self) -> bool {
        let full = format!("{}.{}", self.structure, self.name);
        self.name.starts_with("reserved") || self.name.starts_with("pad") || FREE.contains(&full.as_str())
    }
}

/// Structures (`-`) and fields of a release.
fn fields(release: u32) -> Vec<Field> {
    let field = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [structure, name, offset, size] = *words.as_slice() else {
            panic!("{line}");
        };
        let full = format!("{structure}.{name}");
        let renamed = RENAMED.iter().find(|(old, _)| *old == full);
        Field {
            structure: structure.to_owned(),
            name: renamed.map_or(name, |(_, new)| new).to_owned(),
            offset: offset.parse().expect("a number"),
            size: size.parse().expect("a number"),
        }
    };
    text(release, "layout.txt").lines().map(field).collect()
}

#[test]
fn no_field_has_moved_and_new_ones_lie_where_there_was_nothing() {
    let structures: Vec<_> = today::abi().into_iter().chain(today::uapi()).collect();
    let then = fields(1);
    for structure in &structures {
        let of_it = || then.iter().filter(|field| field.structure == structure.name);
        let Some(whole) = of_it().find(|field| field.name == "-") else {
            continue;
        };
        let size = whole.offset;
        let may_grow = !FIXED.contains(&structure.name);
        assert!(
            structure.size == size || may_grow && structure.size > size,
            "{} had {size} bytes",
            structure.name
        );
        for field in of_it().filter(|field| field.name != "-" && !field.is_free()) {
            let now = structure.fields.iter().find(|(name, _)| *name == field.name);
            assert_eq!(
                now.map(|(_, offset)| *offset),
                Some(field.offset),
                "{}.{} has moved",
                structure.name,
                field.name
            );
        }
        for (name, offset) in &structure.fields {
            let was =
                of_it().find(|field| field.name != "-" && (field.offset..field.offset + field.size).contains(offset));
            assert!(
                was.is_none_or(|was| was.is_free() || was.name == *name),
                "{}.{name} lies where another field was",
                structure.name
            );
        }
    }
    for field in &then {
        let known = structures.iter().any(|structure| structure.name == field.structure);
        assert!(known, "{} is gone", field.structure);
    }
}

#[test]
fn c_sees_the_same() {
    let mut c = CHeader::Abi.text() + &CHeader::Uapi.text();
    let mut assert_that = |condition: String, what: &str| {
        writeln!(c, "_Static_assert({condition}, \"{what}\");").expect("write to a string");
    };
    for field in fields(1) {
        let Field {
            structure,
            name,
            offset,
            size,
        } = &field;
        if name == "-" {
            let relation = if FIXED.contains(&structure.as_str()) {
                "=="
            } else {
                ">="
            };
            assert_that(format!("sizeof(struct {structure}) {relation} {offset}"), structure);
        } else if !field.is_free() {
            let name = today::in_c(name);
            assert_that(
                format!("__builtin_offsetof(struct {structure}, {name}) == {offset}"),
                &format!("{structure}.{name} has moved"),
            );
            // An array that is last may have more elements.
            assert_that(
                format!("sizeof(((struct {structure} *)0)->{name}) >= {size}"),
                &format!("{structure}.{name} is shorter"),
            );
        }
    }
    for line in text(1, "values.txt").lines() {
        let (name, value) = line.split_once(' ').expect("a name and a value");
        match RENAMED_VALUES.iter().find(|(old, _)| *old == name) {
            Some((_, None)) => {}
            Some((_, Some(new))) => assert_that(format!("{new} == {value}"), name),
            None => assert_that(format!("{name} == {value}"), name),
        }
    }
    for line in text(1, "ioctls.txt").lines() {
        let (name, number) = line.split_once(' ').expect("a name and a number");
        assert_that(
            format!(
                "({name} & ~IOCSIZE_MASK) == ({number} & ~IOCSIZE_MASK) && _IOC_SIZE({name}) >= _IOC_SIZE({number})"
            ),
            name,
        );
    }
    compiler::check("c", &c);
    assert_eq!(Errno::from_raw(7), None, "never used again");
}

#[test]
fn what_a_header_of_the_first_release_does_not_say_is_known() {
    let size = |structure: &str, field: &str| {
        let found = fields(1)
            .into_iter()
            .find(|at| at.structure == structure && at.name == field);
        found.map_or_else(|| panic!("{structure}.{field}"), |found| found.offset as u32)
    };
    assert_eq!(layout::FIRST_CPU_STATUS_SIZE, size("locum_cpu_status", "-"));
    assert_eq!(layout::FIRST_HOST_STATUS_SIZE, size("locum_host_status", "-"));
    assert_eq!(layout::FIRST_TRACE_RECORD_SIZE, size("locum_trace_record", "-"));
    assert_eq!(layout::FIRST_CHANNEL_RING_SIZE, size("locum_channel_ring", "-"));
    assert_eq!(layout::FIRST_STATUS_HOSTS, size("locum_status", "hosts"));
    assert_eq!(layout::FIRST_STATUS_CPUS, size("locum_status", "cpus"));
    assert_eq!(layout::CHANNEL_DATA, size("locum_channel_ring", "data"));
    assert_eq!(locum_abi::HEADER_MIN, size("locum_header", "reserved"));
    let all = size("locum_status", "-");
    assert_eq!(
        all,
        layout::FIRST_STATUS_CPUS + layout::FIRST_CPU_CAPACITY * layout::FIRST_CPU_STATUS_SIZE
    );
}

/// The bytes of a plain value.
fn bytes<T>(value: &T) -> &[u8] {
    // SAFETY: all bytes of a value that outlives the slice; the ABI's structures have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// Today's encoding starts with the release's bytes, so each reads the other's; what is new is 0.
fn same<T>(name: &str, value: &T) {
    let then = fs::read(file(1, name)).expect("what the release wrote");
    let now = bytes(value);
    let known = then.len().min(now.len());
    assert!(now[..known] == then[..known], "{name}");
    assert!(now[known..].iter().all(|byte| *byte == 0), "{name}");
    assert!(size_of::<T>() >= then.len(), "{name}");
}

/// As [`same`], for a structure of which the file holds the beginning.
fn begins<T>(name: &str, value: &T) {
    let then = fs::read(file(1, name)).expect("what the release wrote");
    assert!(bytes(value).starts_with(&then), "{name}");
}

fn header() -> Header {
    let slot = |slot: Slot| {
        let k = u64::from(slot.raw());
        SlotInfo {
            mailbox: 0x90_0000 + k * 0x10_0000,
            reset_vector: 0x90_1000 + k * 0x10_0000,
            l0_cr3: 0x10_2000 + k * 0x4000,
            l0_entry: 0x11_0040 + k,
            stub_pd: 0x90_2000 + k * 0x10_0000,
            stub_pt: 0x90_3000 + k * 0x10_0000,
            stub_pt_pages: 16 + slot.raw(),
            console_port: PerSlot::new(0x3f8, 0x2f8)[slot],
            low_slice: 0x1_0000 + k * 0x4_0000,
            low_slice_size: 0x4_0000 - k,
            page_zero: k * 0xa0_4000,
            tables: 0x94_0000 + k * 0x10_0000,
            tables_size: 0x4_0000 + k,
        }
    };
    Header {
        magic: MAGIC,
        family: 1,
        size: 408,
        shared: 0x80_0000,
        shared_size: 0x40_0000,
        private: 0x10_0000,
        private_size: 0x70_0000,
        pool: 0x6800_0000,
        pool_size: 0x17e0_0000,
        status: 0x80_1000,
        status_size: 45184,
        trace: 0x81_0000,
        trace_size: 65536,
        log: 0x82_0000,
        log_size: 32768,
        channels: 0x84_0000,
        channels_size: 557_056,
        slots: PerSlot::from_fn(slot),
        machine_rsdp: 0xf_5270,
        image_bytes: 123_456,
        cpu_count: 4,
        pm1a_cnt: 0xb004,
        pm1b_cnt: 0xb104,
        features: 0,
        cpu_status_size: 0,
        cpu_capacity: 0,
        host_status_size: 0,
        trace_record_size: 0,
        channel_count: 0,
        channel_ring_size: 0,
        status_hosts: 0,
        status_cpus: 0,
        entry_end: 0,
        reserved: [0; 2],
        pool_pieces: [PoolPiece::default(); POOL_PIECES],
        blank: [BlankRange::default(); BLANK_RANGES],
        kept: 0,
        kept_ring_size: 0,
        kept_record_size: 0,
        kept_kinds: 0,
        reserved3: 0,
        pool_table: 0,
        pool_extent_size: 0,
        pool_extent_count: 0,
    }
}

#[test]
fn the_header_of_release_1_is_read() {
    same("header.bin", &header());
    let layout = Layout::of(&header()).expect("a header that is accepted");
    assert_eq!(layout.cpus.address(1), Some(0x80_1000 + 128 + 704));
    assert_eq!(layout.hosts.address(1), Some(0x80_1000 + 8 + 40));
    assert_eq!(layout.ring(1, Slot::Odd), Some(0x84_0000 + 3 * 69632));
    assert_eq!(
        (layout.cpus.count, layout.trace.count, layout.log_bytes),
        (64, 2044, 32704)
    );
    assert_eq!(size_of::<LogRing>(), 32768);
    assert_eq!((size_of::<ChannelRing>(), RING_DATA), (69632, 65536));
    assert_eq!((CHANNEL_COUNT, SLOTS), (4, 2));
}

#[test]
fn the_pool_of_release_1_is_its_only_piece() {
    let mut header = header();
    let piece = |start, size| PoolPiece { start, size };
    assert_eq!(header.pool().collect::<Vec<_>>(), [piece(0x6800_0000, 0x17e0_0000)]);
    header.pool_pieces[0] = piece(0x6800_0000, 0x17e0_0000);
    header.pool_pieces[1] = piece(0x1_0000_0000, 0x4000_0000);
    let both = [header.pool_pieces[0], header.pool_pieces[1]];
    assert_eq!(header.pool().collect::<Vec<_>>(), both, "the first one once");
    assert_eq!(Header::of_this_release().pool().count(), 0);
}

#[test]
fn the_status_of_release_1_is_read() {
    // SAFETY: integers only.
    let mut status: Box<Status> = unsafe { Box::new_zeroed().assume_init() };
    status.generation = 7;
    status.cpu_count = 2;
    status.refusals = 3;
    status.hosts[Slot::Even] = HostStatus {
        state: HostState::Dead as u32,
        reason: StopReason::WildAccess as u32,
        detail: [0xffff_8000, 0x10_0000, 2],
        generation: 8,
        cpu: 1,
    };
    status.hosts[Slot::Odd] = HostStatus {
        state: HostState::Running as u32,
        reason: StopReason::None as u32,
        detail: [4, 5, 6],
        generation: 7,
        cpu: 9,
    };
    for (i, cpu) in (0_u32..).zip(status.cpus.iter_mut().take(2)) {
        let n = u64::from(i);
        *cpu = CpuStatus {
            apic_id: 2 * i,
            mode: 2 + i,
            owner: if i == 0 { Slot::Odd.raw() } else { NO_OWNER },
            reserved: 0,
            enters: 0x100 + n,
            leaves: 0x200 + n,
            exits: 0x300 + n,
            guest_exits: 0x400 + n,
            nmis: 0x500 + n,
            reserved2: 0,
            exits_by_reason: std::array::from_fn(|reason| 1000 * (n + 1) + reason as u64),
        };
    }
    begins("status.bin", &*status);
}

#[test]
fn the_frame_of_release_1_is_read() {
    let register = |limit, base| TableRegister {
        pad: [0; 3],
        limit,
        base,
    };
    let frame = Frame {
        magic: FRAME_MAGIC,
        apic_id: 3,
        nmi: 1,
        result: -6,
        machine_check: 0,
        phys: 0x1234_5000,
        return_native: 0xffff_ffff_c012_3456,
        l0_cr3: 0x10_2000,
        l0_entry: 0x11_0040,
        stub_gdtr: register(31, 0xffff_ffff_c020_0200),
        stub_idtr: register(47, 0xffff_ffff_c020_0220),
        rip: 0xffff_ffff_c030_0001,
        rsp: 0xffff_c900_0000_0002,
        rflags: 0x46,
        cr0: 0x8005_0033,
        cr3: 0x1_0000_3000,
        cr4: 0x37_26f0,
        gdtr: register(127, 0xffff_fe00_0000_1000),
        idtr: register(4095, 0xffff_fe00_0000_0000),
        selectors: [1, 0x10, 0x18, 4, 5, 6, 7, 0x40],
        fs_base: 0x7f00_0000_0001,
        gs_base: 0xffff_8880_0000_0002,
        tr_base: 0xffff_fe00_0000_3000,
        tr_limit: 0x206f,
        ldtr_limit: 0xfff,
        ldtr_base: 0xffff_fe00_0000_4000,
        dr7: 0x400,
        reserved2: [0; 34],
        module: [0; 3584],
    };
    begins("frame.bin", &frame);
}

#[test]
fn the_trace_of_release_1_is_read() {
    let then = fs::read(file(1, "trace.bin")).expect("what the release wrote");
    let (head, records) = then.split_at(std::mem::offset_of!(TraceRing, records));
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("a word"));
    assert_eq!((word(head, 0), word(head, 8)), (26, 2044));
    let mut kinds = Vec::new();
    for (n, raw) in (0_u64..).zip(records.chunks_exact(layout::FIRST_TRACE_RECORD_SIZE as usize)) {
        let mut record = TraceRecord::default();
        // SAFETY: the bytes of a value of integers only.
        let all = unsafe { std::slice::from_raw_parts_mut((&raw mut record).cast::<u8>(), size_of::<TraceRecord>()) };
        all[..raw.len()].copy_from_slice(raw);
        assert_eq!((record.tsc, u64::from(record.cpu)), (1_000_000 + n, n % 4));
        let event = Event::decode(&record).expect("an event");
        let (kind, a, b, c) = event.encode();
        assert_eq!(
            (kind as u16, a, b, c),
            (record.kind, record.a, record.b, record.c),
            "{event:?}"
        );
        kinds.push(kind);
    }
    assert_eq!(kinds.len(), 26);
    let first = TraceKind::ALL.iter().filter(|kind| (1..=22).contains(&(**kind as u16)));
    for kind in first {
        assert!(kinds.contains(kind), "{kind:?}");
    }
}

#[test]
fn ioctls_of_release_1_are_answered() {
    let info = Info {
        family: 1,
        l0_family: 1,
        slot: 1,
        cpu_count: 4,
        header: 0x80_0000,
        shared: 0x80_0000,
        shared_size: 0x40_0000,
        memory_block: 0x800_0000,
        tsc_khz: 2_999_999,
        ..Info::default()
    };
    same("info.bin", &info);
    assert_eq!(info.slot(), Some(Slot::Odd));
    let switch = Switch {
        done: 3,
        l0_errno: Errno::NoVmx as u32,
        failed_apic_id: 2,
        ticks: 77_777,
        ..Switch::new(uapi::ALL_CPUS)
    };
    same("switch.bin", &switch);
    let cycle = Cycle {
        done: 99,
        l0_errno: Errno::EntryFailed as u32,
        failed_apic_id: 1,
        enter_ticks: 1001,
        leave_ticks: 1002,
        enter_max: 1003,
        leave_max: 1004,
        ..Cycle::new(1, 100, 250)
    };
    same("cycle.bin", &cycle);
    let memory = Grant::Memory {
        start: 0x4800_0000,
        end: 0x5000_0000,
    };
    same("call-grant.bin", &Call::grant(memory));
    same("call-start.bin", &Call::start(0x4a00_0200, 0x9_4000, 3));
    let refused = Call {
        l0_errno: Errno::State as u32,
        ticks: 4242,
        ..Call::abort()
    };
    same("call-refused.bin", &refused);
    same("range.bin", &Range::on_node(0x4800_0000, 0x1000_0000, u32::MAX));
    same("text.bin", &Text::new(TextKind::Progress, "42 offload"));
    let mut request = uapi::Request::default();
    request.name[..4].copy_from_slice(b"next");
    same("request.bin", &request);
}
