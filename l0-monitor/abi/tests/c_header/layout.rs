//! Sizes and offsets as Rust computes them: as assertions for the C compiler, and as numbers for the module's assembly.

use core::mem::offset_of;
use std::fmt::Write;

use locum_abi::channel::ChannelRing;
use locum_abi::frame::{self, Frame, TableRegister};
use locum_abi::header::{Header, SlotInfo};
use locum_abi::mailbox::Mailbox;
use locum_abi::status::{CpuStatus, HostStatus, Status};
use locum_abi::trace::{LogRing, TraceRecord, TraceRing};

macro_rules! check {
    ($text:ident, $rust:ident, $c:literal, $($field:ident),+) => {
        writeln!($text, "_Static_assert(sizeof(struct {}) == {}, \"{0}\");", $c, size_of::<$rust>()).expect("write");
        $(
            writeln!(
                $text,
                "_Static_assert(__builtin_offsetof(struct {}, {}) == {}, \"{0}.{1}\");",
                $c, stringify!($field), offset_of!($rust, $field)
            ).expect("write");
        )+
    };
}

/// One `_Static_assert` per size and per field that C or assembly relies on.
pub fn asserts() -> String {
    let mut text = String::new();
    check!(
        text,
        SlotInfo,
        "locum_slot_info",
        mailbox,
        l0_entry,
        stub_pt_pages,
        low_slice,
        tables,
        tables_size
    );
    check!(
        text,
        Header,
        "locum_header",
        revision,
        size,
        shared,
        status,
        trace,
        channels,
        slots,
        machine_rsdp,
        pm1b_cnt
    );
    check!(text, HostStatus, "locum_host_status", reason, detail, generation, cpu);
    check!(
        text,
        CpuStatus,
        "locum_cpu_status",
        mode,
        owner,
        enters,
        exits,
        nmis,
        exits_by_reason
    );
    check!(text, Status, "locum_status", cpu_count, hosts, refusals, cpus);
    check!(text, TableRegister, "locum_table_register", limit, base);
    check!(
        text,
        Frame,
        "locum_frame",
        nmi,
        result,
        stub_gdtr,
        rip,
        cr3,
        gdtr,
        selectors,
        fs_base,
        dr7,
        module
    );
    check!(text, Mailbox, "locum_mailbox", apic_id, wakeup_vector, os, firmware);
    check!(text, ChannelRing, "locum_channel_ring", head, flags, tail, closed, data);
    check!(text, TraceRecord, "locum_trace_record", kind, cpu, a, b, c);
    check!(text, TraceRing, "locum_trace_ring", capacity, records);
    check!(text, LogRing, "locum_log_ring", capacity, text);
    text
}

macro_rules! offset {
    ($text:ident, $($name:literal = $field:ident),+) => {
        $(writeln!($text, "#define LOCUM_FRAME_{} {}", $name, offset_of!(Frame, $field)).expect("write");)+
    };
}

/// Offsets in a frame, for the stub (assembly includes this header too).
pub fn offsets() -> String {
    let mut text = String::from("/* Offsets in struct locum_frame, for assembly. */\n");
    offset!(
        text,
        "NMI" = nmi,
        "RESULT" = result,
        "L0_CR3" = l0_cr3,
        "L0_ENTRY" = l0_entry,
        "STUB_GDTR" = stub_gdtr,
        "STUB_IDTR" = stub_idtr,
        "RIP" = rip,
        "RSP" = rsp,
        "RFLAGS" = rflags,
        "CR0" = cr0,
        "CR3" = cr3,
        "CR4" = cr4,
        "GDTR" = gdtr,
        "IDTR" = idtr,
        "SELECTORS" = selectors,
        "FS_BASE" = fs_base,
        "GS_BASE" = gs_base,
        "MODULE" = module
    );
    for (name, index) in [
        ("ES", frame::ES),
        ("CS", frame::CS),
        ("SS", frame::SS),
        ("DS", frame::DS),
        ("FS", frame::FS),
        ("GS", frame::GS),
        ("LDTR", frame::LDTR),
        ("TR", frame::TR),
    ] {
        let offset = offset_of!(Frame, selectors) + index * size_of::<u16>();
        writeln!(text, "#define LOCUM_FRAME_{name} {offset}").expect("write");
    }
    let operand = offset_of!(TableRegister, limit);
    writeln!(
        text,
        "/* Offset of the operand of LGDT and LIDT in struct locum_table_register. */"
    )
    .expect("write");
    writeln!(text, "#define LOCUM_TABLE_OPERAND {operand}").expect("write");
    writeln!(text, "#define LOCUM_FRAME_SIZE {}", size_of::<Frame>()).expect("write");
    text
}
