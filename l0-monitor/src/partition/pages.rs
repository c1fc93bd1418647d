//! The pages that the CPU reads: EPT tables, I/O bitmaps, MSR bitmaps. Fixed stores, reached through atomics.

use core::sync::atomic::{AtomicU64, Ordering};

use locum_abi::{BLANK_RANGES, PAGE_SIZE, PerSlot, Slot};

use super::ept::Table;
use crate::arch::msr;

/// EPT tables per slot: enough for 4 GiB in 2 MiB pages, two dozen regions split to 4 KiB, blank ranges split likewise
/// (none is longer than a table maps), and 100 GiB on top.
const EPT_TABLES: usize = 160 + 2 * BLANK_RANGES;

static EPT: PerSlot<[Table; EPT_TABLES]> = PerSlot::new(
    [const { Table::new() }; EPT_TABLES],
    [const { Table::new() }; EPT_TABLES],
);

#[repr(C, align(4096))]
struct Words<const N: usize>([AtomicU64; N]);

static IO: PerSlot<Words<1024>> = PerSlot::new(Words::new(), Words::new());

impl<const N: usize> Words<N> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

static MSR_NONE: Words<512> = Words::new();
/// Reads of IA32_APIC_BASE exit. The bitmap begins with a bit for each low MSR's reads (SDM vol. 3C, 26.6.9).
static MSR_BSP: Words<512> = Words({
    let mut words = [const { AtomicU64::new(0) }; 512];
    words[msr::APIC_BASE as usize / 64] = AtomicU64::new(1 << (msr::APIC_BASE % 64));
    words
});

static ZEROES: Words<512> = Words::new();

/// Address of a page that is zero for good.
pub(crate) fn zeroes() -> u64 {
    core::ptr::from_ref(&ZEROES) as u64
}

/// The tables of a slot.
pub(crate) fn ept_tables(slot: Slot) -> &'static [Table] {
    &EPT[slot]
}

/// Writes a slot's I/O bitmaps; `byte` gives the byte that begins with a port.
pub(crate) fn set_io_bitmap(slot: Slot, byte: impl Fn(u16) -> u8) {
    for (port, word) in (0..=u16::MAX).step_by(64).zip(&IO[slot].0) {
        let bytes = core::array::from_fn(|i| byte(port + 8 * i as u16));
        word.store(u64::from_le_bytes(bytes), Ordering::Release);
    }
}

/// Addresses of a slot's I/O bitmaps A and B.
pub(crate) fn io_bitmap_addresses(slot: Slot) -> [u64; 2] {
    let a = core::ptr::from_ref(&IO[slot]) as u64;
    [a, a + PAGE_SIZE]
}

/// Address of an MSR bitmap.
pub(crate) fn msr_bitmap(bsp: bool) -> u64 {
    core::ptr::from_ref(if bsp { &MSR_BSP } else { &MSR_NONE }) as u64
}
