//! The header page: tells hosts where everything is.
#![expect(unsafe_code, reason = "names a symbol of the linker script")]

use core::mem::offset_of;

use locum_abi::{BLANK_RANGES, BlankRange, Header, POOL_PIECES, PerSlot, PoolPiece, SlotInfo};

use crate::arch::paging;
use crate::doors::{native_call, reset};
use crate::id;
use crate::machine::{Machine, Span};
use crate::shared;
use crate::shared::layout::{self, SlotArea};

/// Consoles of the two slots: COM1 and COM2.
const CONSOLES: PerSlot<u32> = PerSlot::new(0x3f8, 0x2f8);

/// Writes the header.
pub(crate) fn publish(machine: &Machine, entry_end: u64) {
    let at = shared::addresses();
    let slots = PerSlot::from_fn(|slot| {
        let Span { start, end } = machine.low_slices[slot];
        let field = |offset| shared::slot_field(slot, offset);
        SlotInfo {
            mailbox: field(offset_of!(SlotArea, mailbox)),
            reset_vector: reset::address(slot),
            l0_cr3: paging::l0_cr3(slot),
            l0_entry: native_call::entry(),
            stub_pd: field(offset_of!(SlotArea, stub_pd)),
            stub_pt: field(offset_of!(SlotArea, stub_pt)),
            stub_pt_pages: layout::STUB_PT_PAGES as u32,
            console_port: CONSOLES[slot],
            low_slice: start,
            low_slice_size: end - start,
            page_zero: shared::page_zero(slot),
            tables: field(offset_of!(SlotArea, tables)),
            tables_size: layout::TABLES_SIZE as u64,
        }
    });
    let [pm1a_cnt, pm1b_cnt] = machine.pm1_control;
    let mut pieces = [PoolPiece::default(); POOL_PIECES];
    for (piece, span) in pieces.iter_mut().zip(&machine.pool) {
        piece.start = span.start;
        piece.size = span.end - span.start;
    }
    let mut blank = [BlankRange::default(); BLANK_RANGES];
    for (range, span) in blank.iter_mut().zip(&machine.blank) {
        range.start = span.start;
        range.size = span.end - span.start;
    }
    shared::set_header(Header {
        shared: machine.l0.shared().start,
        shared_size: layout::SIZE,
        private: machine.l0.private().start,
        private_size: layout::PRIVATE_SIZE,
        pool: pieces[0].start,
        pool_size: pieces[0].size,
        pool_pieces: pieces,
        blank,
        status: at.status,
        trace: at.trace,
        kept: at.kept,
        log: at.log,
        channels: at.channels,
        pool_table: at.pool_table,
        slots,
        machine_rsdp: machine.rsdp,
        image_bytes: image_bytes(machine),
        cpu_count: id::count() as u32,
        entry_end,
        pm1a_cnt,
        pm1b_cnt,
        ..Header::of_this_release()
    });
}

fn image_bytes(machine: &Machine) -> u64 {
    unsafe extern "C" {
        safe static l0_image_end: u8;
    }
    (&raw const l0_image_end).addr() as u64 - machine.l0.private().start
}
