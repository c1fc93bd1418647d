//! The pages that the CPU reads: EPT tables, I/O bitmaps, MSR bitmaps. Fixed stores, reached through atomics.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use locum_abi::{BLANK_RANGES, PAGE_SIZE, PerSlot, Slot};

use super::ept::Table;
use crate::arch::msr::{self, TRACING};
use crate::shared;

/// EPT tables per slot: enough for 4 GiB in 2 MiB pages, two dozen regions split to 4 KiB, blank ranges split likewise
/// (none is longer than a table maps), and 100 GiB on top.
const EPT_TABLES: usize = 160 + 2 * BLANK_RANGES;

static EPT: PerSlot<[Table; EPT_TABLES]> = PerSlot::new(
    [const { Table::new() }; EPT_TABLES],
    [const { Table::new() }; EPT_TABLES],
);

#[repr(C, align(4096))]
struct Words<const N: usize>([AtomicU64; N]);

/// The I/O bitmaps of a slot, twice: no CPU may be in non-root with bitmaps that change (SDM vol. 3C, 26.11.4). So those
/// that are not in use are written, and each CPU takes them over at its next exit.
///
/// They change when a second host starts and when one of two is gone, and every CPU exits between two such changes: Start
/// makes all of them exit, and who is gone is parked. So those that are written are in no CPU's use any more.
struct IoBitmaps {
    copies: [Words<1024>; 2],
    current: AtomicUsize,
}

static IO: PerSlot<IoBitmaps> = PerSlot::new(IoBitmaps::new(), IoBitmaps::new());

impl IoBitmaps {
    const fn new() -> Self {
        Self {
            copies: [Words::new(), Words::new()],
            current: AtomicUsize::new(0),
        }
    }

    fn copy(&self, number: usize) -> &Words<1024> {
        let [first, second] = &self.copies;
        if number == 0 { first } else { second }
    }

    fn current(&self) -> &Words<1024> {
        self.copy(self.current.load(Ordering::Acquire))
    }

    /// Called under the partition's lock.
    fn set(&self, byte: impl Fn(u16) -> u8) {
        let next = 1 - self.current.load(Ordering::Relaxed).min(1);
        for (port, word) in (0..=u16::MAX).step_by(64).zip(&self.copy(next).0) {
            let bytes = core::array::from_fn(|i| byte(port + 8 * i as u16));
            word.store(u64::from_le_bytes(bytes), Ordering::Release);
        }
        self.current.store(next, Ordering::Release);
    }

    fn addresses(&self) -> [u64; 2] {
        let a = core::ptr::from_ref(self.current()) as u64;
        [a, a + PAGE_SIZE]
    }
}

impl<const N: usize> Words<N> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

/// What exits from a host: accesses to [`TRACING`], and writes of IA32_BIOS_UPDT_TRIG.
static MSR_USUAL: Words<512> = msr_words(false);
/// Reads of IA32_APIC_BASE exit, too.
static MSR_BSP: Words<512> = msr_words(true);

/// An MSR bitmap (SDM vol. 3C, 26.6.9): a bit for each of the low MSRs' reads, as many of the high ones, then the same
/// for writes.
const fn msr_words(bsp: bool) -> Words<512> {
    const WRITES: usize = 2048 / 8;
    let mut bits = [0; 512];
    let mut i = 0;
    while i < TRACING.len() {
        let (msr, _) = TRACING[i];
        set_low(&mut bits, 0, msr);
        set_low(&mut bits, WRITES, msr);
        i += 1;
    }
    set_low(&mut bits, WRITES, msr::BIOS_UPDT_TRIG);
    if bsp {
        set_low(&mut bits, 0, msr::APIC_BASE);
    }
    let mut words = [const { AtomicU64::new(0) }; 512];
    let mut i = 0;
    while i < bits.len() {
        words[i] = AtomicU64::new(bits[i]);
        i += 1;
    }
    Words(words)
}

const fn set_low(bits: &mut [u64; 512], from: usize, msr: u32) {
    assert!(msr < 0x2000, "in the low range");
    bits[from + msr as usize / 64] |= 1 << (msr % 64);
}

static ZEROES: Words<512> = Words::new();

/// What was at address 0 at boot.
static PAGE_ZERO: Words<512> = Words::new();

/// Notes what is in the page that a slot's host sees at address 0.
pub(crate) fn keep_page_zero(slot: Slot) {
    for (index, word) in PAGE_ZERO.0.iter().enumerate() {
        word.store(shared::page_zero_word(slot, index), Ordering::Relaxed);
    }
}

/// A word of what was noted.
pub(crate) fn kept_page_zero(index: usize) -> u64 {
    PAGE_ZERO.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// Address of a page that is zero for good.
pub(crate) fn zeroes() -> u64 {
    core::ptr::from_ref(&ZEROES) as u64
}

/// The tables of a slot.
pub(crate) fn ept_tables(slot: Slot) -> &'static [Table] {
    &EPT[slot]
}

/// Writes a slot's I/O bitmaps; `byte` gives the byte that begins with a port. CPUs use them from their next exit on.
pub(crate) fn set_io_bitmap(slot: Slot, byte: impl Fn(u16) -> u8) {
    IO[slot].set(byte);
}

/// Addresses of a slot's I/O bitmaps A and B.
pub(crate) fn io_bitmap_addresses(slot: Slot) -> [u64; 2] {
    IO[slot].addresses()
}

/// Address of an MSR bitmap.
pub(crate) fn msr_bitmap(bsp: bool) -> u64 {
    core::ptr::from_ref(if bsp { &MSR_BSP } else { &MSR_USUAL }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    static BITMAPS: IoBitmaps = IoBitmaps::new();

    #[test]
    fn bitmaps_that_a_cpu_may_be_using_stay_as_they_are() {
        let before = BITMAPS.addresses();
        let words = BITMAPS.current();
        BITMAPS.set(|port| (port >> 8) as u8);
        assert!(words.0.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        assert_ne!(BITMAPS.addresses(), before);
        // Ports 0x4040 to 0x407f.
        assert_eq!(
            BITMAPS.current().0[0x4040 / 64].load(Ordering::Relaxed),
            0x4040_4040_4040_4040
        );
        BITMAPS.set(|_| 0xff);
        assert_eq!(BITMAPS.addresses(), before);
        assert!(words.0.iter().all(|word| word.load(Ordering::Relaxed) == !0));
    }

    #[test]
    fn msrs_that_exit() {
        let exits = |words: &Words<512>, half: usize| {
            let words = &words.0[half * 256..][..256];
            (0..0x4000_u32)
                .filter(|msr| words[*msr as usize / 64].load(Ordering::Relaxed) >> (msr % 64) & 1 != 0)
                .collect::<std::vec::Vec<_>>()
        };
        assert_eq!(exits(&MSR_USUAL, 0), [0x3f1, 0x570, 0x14ce]);
        assert_eq!(exits(&MSR_USUAL, 1), [0x79, 0x3f1, 0x570, 0x14ce]);
        assert_eq!(exits(&MSR_BSP, 0), [0x1b, 0x3f1, 0x570, 0x14ce]);
        assert_eq!(exits(&MSR_BSP, 1), exits(&MSR_USUAL, 1));
    }
}
