//! MTRRs of real machines, as their published boot logs print them: RAM is write-back and devices are not.

use super::*;
use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteThrough};

/// A pair of MTRRs as Linux prints it: base, mask, type.
type Pair = (u64, u64, MemoryType);

fn machine(bits: u8, default: MemoryType, pairs: &[Pair]) -> Mtrrs {
    Mtrrs {
        def_type: ENABLED | default as u64,
        fixed: [0; 11],
        variable: pairs
            .iter()
            .map(|&(base, mask, kind)| (base | kind as u64, mask | VALID))
            .collect(),
        max_phys_bits: bits,
    }
}

/// The type of every byte of `start..end`.
fn is(mtrrs: &Mtrrs, start: u64, end: u64, kind: MemoryType) {
    let mut at = start;
    while at < end {
        let (here, next) = mtrrs.lookup(at);
        assert_eq!(here, kind, "{at:#x} in {start:#x}-{end:#x}");
        assert!(next > at);
        at = next;
    }
}

/// Supermicro X10DRT-LIBF, 2 sockets, 64 GiB; a range within another one.
#[test]
fn x10drt() {
    let m = machine(
        46,
        WriteBack,
        &[
            (0x8000_0000, 0x3fff_8000_0000, Uncacheable),
            (0x3800_0000_0000, 0x3f80_0000_0000, Uncacheable),
            (0xc580_0000, 0x3fff_ff80_0000, WriteThrough),
        ],
    );
    is(&m, 0x10_0000, 0x8000_0000, WriteBack);
    is(&m, 0x8000_0000, 0x1_0000_0000, Uncacheable);
    is(&m, 0x1_0000_0000, 0x10_8000_0000, WriteBack);
    is(&m, 0x3800_0000_0000, 0x3880_0000_0000, Uncacheable);
}

/// QCI QSSC-S4R, 4 sockets, 128 GiB.
#[test]
fn qssc_s4r() {
    let m = machine(
        44,
        WriteBack,
        &[
            (0x8000_0000, 0xfff_8000_0000, Uncacheable),
            (0xfc0_0000_0000, 0xfff_0000_0000, Uncacheable),
        ],
    );
    is(&m, 0x10_0000, 0x8000_0000, WriteBack);
    is(&m, 0x8000_0000, 0x1_0000_0000, Uncacheable);
    is(&m, 0x1_0000_0000, 0x20_8000_0000, WriteBack);
    is(&m, 0xfc0_0000_0000, 0xfc1_0000_0000, Uncacheable);
}

/// HP Superdome2 16s, 12 TiB; ranges of one type that overlap.
#[test]
fn superdome2() {
    let m = machine(
        46,
        WriteBack,
        &[
            (0x8000_0000, 0x3fff_8000_0000, Uncacheable),
            (0xf00_0000_0000, 0x3f80_0000_0000, Uncacheable),
            (0xf80_0000_0000, 0x3fc0_0000_0000, Uncacheable),
            (0xfc0_0000_0000, 0x3fe0_0000_0000, Uncacheable),
            (0xfe0_0000_0000, 0x3ff0_0000_0000, Uncacheable),
            (0xff00_0000, 0x3fff_ffe0_0000, Uncacheable),
            (0xfdf_8000_0000, 0x3fff_8000_0000, Uncacheable),
            (0xfe0_0000_0000, 0x3ff8_0000_0000, Uncacheable),
        ],
    );
    is(&m, 0x10_0000, 0x8000_0000, WriteBack);
    is(&m, 0x8000_0000, 0x1_0000_0000, Uncacheable);
    is(&m, 0x1_0000_0000, 0xf00_0000_0000, WriteBack);
    is(&m, 0xf00_0000_0000, 0xff0_0000_0000, Uncacheable);
}

/// A small board with 18 GiB (fedora-coreos-tracker, issue 549): uncacheable unless said otherwise.
#[test]
fn a_board_with_write_back_ranges() {
    let m = machine(
        39,
        Uncacheable,
        &[
            (0, 0x7c_0000_0000, WriteBack),
            (0x4_0000_0000, 0x7f_8000_0000, WriteBack),
            (0x7f80_0000, 0x7f_ff80_0000, Uncacheable),
            (0x8000_0000, 0x7f_8000_0000, Uncacheable),
        ],
    );
    is(&m, 0x10_0000, 0x7f80_0000, WriteBack);
    is(&m, 0x7f80_0000, 0x1_0000_0000, Uncacheable);
    is(&m, 0x1_0000_0000, 0x4_8000_0000, WriteBack);
    is(&m, 0x4_8000_0000, 0x5_0000_0000, Uncacheable);
}

/// A NAS with Insyde firmware (bb-qq/aqc111, issue 57): the firmware makes flash and framebuffer write-combining.
#[test]
fn a_board_with_write_combining() {
    let m = machine(
        39,
        Uncacheable,
        &[
            (0xff80_0000, 0x7f_ff80_0000, WriteCombining),
            (0, 0x7f_8000_0000, WriteBack),
            (0x7a00_0000, 0x7f_fe00_0000, Uncacheable),
            (0x7c00_0000, 0x7f_fc00_0000, Uncacheable),
            (0x1_0000_0000, 0x7f_0000_0000, WriteBack),
            (0x2_0000_0000, 0x7f_8000_0000, WriteBack),
            (0x9000_0000, 0x7f_f000_0000, WriteCombining),
        ],
    );
    is(&m, 0x10_0000, 0x7a00_0000, WriteBack);
    is(&m, 0x7a00_0000, 0x9000_0000, Uncacheable);
    is(&m, 0x9000_0000, 0xa000_0000, WriteCombining);
    is(&m, 0xa000_0000, 0xff80_0000, Uncacheable);
    is(&m, 0xff80_0000, 0x1_0000_0000, WriteCombining);
    is(&m, 0x1_0000_0000, 0x2_8000_0000, WriteBack);
    is(&m, 0x2_8000_0000, 0x10_0000_0000, Uncacheable);
}
