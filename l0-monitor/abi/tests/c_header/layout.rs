//! Sizes and offsets as Rust computes them: as assertions for the C compiler, and as numbers for the module's assembly.

use core::mem::offset_of;
use std::fmt::Write;

use locum_abi::channel::ChannelRing;
use locum_abi::frame::{self, Frame, TableRegister};
use locum_abi::header::{BlankRange, Header, PoolPiece, SlotInfo};
use locum_abi::mailbox::Mailbox;
use locum_abi::pool::PoolExtent;
use locum_abi::status::{CpuStatus, HostStatus, Status};
use locum_abi::trace::{KeptRecord, KeptRing, LogRing, TraceRecord, TraceRing};
use locum_abi::uapi;

/// One structure as Rust lays it out.
pub struct Layout {
    /// Its name in C.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Its fields with their offsets, by their names in Rust.
    pub fields: Vec<(&'static str, usize)>,
}

macro_rules! layouts {
    ($($rust:path, $c:literal: $($field:ident),+;)+) => {
        vec![$(Layout {
            name: $c,
            size: size_of::<$rust>(),
            fields: {
                // A field that is missing here makes this pattern incomplete.
                let _ = |all: &$rust| { let $rust { $($field: _),+ } = all; };
                vec![$((stringify!($field), offset_of!($rust, $field))),+]
            },
        }),+]
    };
}

/// Structures of `locum_abi.h`, with all their fields.
pub fn abi() -> Vec<Layout> {
    layouts! {
        SlotInfo, "locum_slot_info": mailbox, reset_vector, l0_cr3, l0_entry, stub_pd, stub_pt, stub_pt_pages,
            console_port, low_slice, low_slice_size, page_zero, tables, tables_size;
        PoolPiece, "locum_pool_piece": start, size;
        BlankRange, "locum_blank_range": start, size;
        Header, "locum_header": magic, family, size, shared, shared_size, private, private_size, pool, pool_size, status,
            status_size, trace, trace_size, log, log_size, channels, channels_size, slots, machine_rsdp, image_bytes,
            cpu_count, pm1a_cnt, pm1b_cnt, features, cpu_status_size, cpu_capacity, host_status_size, trace_record_size,
            channel_count, channel_ring_size, status_hosts, status_cpus, entry_end, reserved, pool_pieces,
            blank, kept, kept_ring_size, kept_record_size, kept_kinds, reserved3, pool_table, pool_extent_size,
            pool_extent_count;
        HostStatus, "locum_host_status": state, reason, detail, generation, cpu;
        CpuStatus, "locum_cpu_status": apic_id, mode, owner, reserved, enters, leaves, exits, guest_exits, nmis, reserved2,
            exits_by_reason;
        Status, "locum_status": generation, cpu_count, hosts, refusals, memory_stretches, reserved2, ept_tables,
            reserved, cpus;
        TableRegister, "locum_table_register": pad, limit, base;
        Frame, "locum_frame": magic, apic_id, nmi, result, machine_check, phys, return_native, l0_cr3, l0_entry, stub_gdtr,
            stub_idtr, rip, rsp, rflags, cr0, cr3, cr4, gdtr, idtr, selectors, fs_base, gs_base, tr_base, tr_limit,
            ldtr_limit, ldtr_base, dr7, reserved2, module;
        Mailbox, "locum_mailbox": command, reserved, apic_id, wakeup_vector, os, firmware;
        ChannelRing, "locum_channel_ring": head, flags, pad0, tail, closed, pad1, pad2, data;
        PoolExtent, "locum_pool_extent": state, start, size, uuid, node, flags, name, reserved2;
        TraceRecord, "locum_trace_record": tsc, kind, cpu, a, b, c;
        TraceRing, "locum_trace_ring": written, capacity, reserved, records;
        KeptRecord, "locum_kept_record": number, record;
        KeptRing, "locum_kept_ring": written, reserved, records;
        LogRing, "locum_log_ring": written, capacity, reserved, text;
    }
}

/// Structures of `locum_uapi.h`, with all their fields.
pub fn uapi() -> Vec<Layout> {
    layouts! {
        uapi::Info, "locum_info": family, l0_family, slot, cpu_count, header, shared, shared_size, memory_block, tsc_khz,
            features, reserved;
        uapi::Switch, "locum_switch": cpu, flags, done, l0_errno, failed_apic_id, reserved, unknown_cr4, ticks;
        uapi::Cycle, "locum_cycle": cpu, count, pause_us, done, l0_errno, failed_apic_id, reserved, enter_ticks,
            leave_ticks, enter_max, leave_max;
        uapi::Call, "locum_call": a, b, c, l0_errno, reserved, ticks;
        uapi::Range, "locum_range": start, size, nid, reserved, reserved2;
        uapi::Text, "locum_text": kind, len, reserved, text;
        uapi::Request, "locum_request": name;
    }
}

/// A field's name in C, where some of Rust's words are spoken for.
pub fn in_c(field: &str) -> &str {
    match field {
        "private" => "private_",
        field => field,
    }
}

/// One `_Static_assert` per size and per field.
pub fn asserts(layouts: &[Layout]) -> String {
    let mut text = String::new();
    for Layout { name, size, fields } in layouts {
        writeln!(text, "_Static_assert(sizeof(struct {name}) == {size}, \"{name}\");").expect("write");
        for (field, offset) in fields {
            let field = in_c(field);
            writeln!(
                text,
                "_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset}, \"{name}.{field}\");"
            )
            .expect("write");
        }
    }
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
        "MACHINE_CHECK" = machine_check,
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
