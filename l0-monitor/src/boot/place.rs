//! Where the first host's kernel and ramdisk go.

use core::ops::Range;

use crate::arch::paging::page_of;

/// A kernel is never loaded below this: below are old devices' memory and, as a rule, L0.
const KERNEL_FLOOR: u64 = 16 << 20;
/// The kernel's image stays below this, also with KASLR on, and ramdisks if they can: memory above it is the first to be
/// given to a successor. Linux cannot remove a block that has its image, nor one below it in the same stretch of RAM.
pub(super) const FIRST_TO_GIVE: u64 = 1 << 30;
/// Both go below this: the firmware's page tables map no more, and any kernel can read it.
const LIMIT: u64 = 4 << 30;

/// What has to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Bytes that the kernel needs from its load address.
    pub(crate) kernel_room: u64,
    /// Alignment of that address, a power of two.
    pub(crate) kernel_align: u64,
    /// Lowest such address that it takes.
    pub(crate) kernel_lowest: u64,
    /// Bytes of the ramdisk, 0 if there is none.
    pub(crate) ramdisk: u64,
}

/// Where it goes. The ramdisk is moved first, then the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Load address of the kernel.
    pub(crate) kernel: u64,
    /// Where the ramdisk goes, `None` if there is none.
    pub(crate) ramdisk: Option<Range<u64>>,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// For what.
    pub(crate) what: &'static str,
    /// Bytes that it needs.
    pub(crate) bytes: u64,
}

/// Chooses the places: the kernel as low, the ramdisk as high as can be. `usable` are the host's ranges of RAM, of which
/// `spared` are taken only if nothing else will do; `kernel_file` is where the boot loader left the kernel, which must
/// survive moving the ramdisk. Ranges may overlap their sources otherwise: L0 moves, it does not copy.
///
/// # Errors
/// [`NoRoom`].
pub(crate) fn choose<I, S>(usable: I, spared: S, kernel_file: &Range<u64>, wanted: &Wanted) -> Result<Places, NoRoom>
where
    I: Iterator<Item = Range<u64>> + Clone,
    S: Iterator<Item = Range<u64>> + Clone,
{
    let spare = |yes: bool| spared.clone().filter(move |_| yes);
    let kernel = [true, false]
        .into_iter()
        .find_map(|yes| {
            let places = usable.clone().filter_map(|range| lowest(&range, wanted, spare(yes)));
            places.min()
        })
        .ok_or(NoRoom {
            what: "the kernel",
            bytes: wanted.kernel_room,
        })?;
    if wanted.ramdisk == 0 {
        return Ok(Places { kernel, ramdisk: None });
    }
    let taken = [kernel..kernel + wanted.kernel_room, kernel_file.clone()];
    let limits = [FIRST_TO_GIVE, LIMIT];
    let ramdisk = [true, false]
        .into_iter()
        .flat_map(|yes| limits.map(|limit| (yes, limit)))
        .find_map(|(yes, limit)| {
            let taken = taken.iter().cloned().chain(spare(yes));
            usable
                .clone()
                .filter_map(|range| highest(&range, limit, wanted.ramdisk, taken.clone()))
                .max()
        })
        .ok_or(NoRoom {
            what: "the ramdisk",
            bytes: wanted.ramdisk,
        })?;
    Ok(Places {
        kernel,
        ramdisk: Some(ramdisk..ramdisk + wanted.ramdisk),
    })
}

/// Lowest place for the kernel inside `range`, clear of `taken`.
fn lowest<T>(range: &Range<u64>, wanted: &Wanted, taken: T) -> Option<u64>
where
    T: Iterator<Item = Range<u64>> + Clone,
{
    let floor = wanted.kernel_lowest.max(KERNEL_FLOOR);
    let mut start = align_up(range.start.max(floor), wanted.kernel_align)?;
    // Each step goes beyond one of the ranges in the way, so this ends.
    loop {
        let end = start.checked_add(wanted.kernel_room)?;
        if end > range.end.min(LIMIT) {
            return None;
        }
        let Some(hit) = taken.clone().find(|t| start < t.end && t.start < end) else {
            return Some(start);
        };
        start = align_up(hit.end, wanted.kernel_align)?;
    }
}

fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align.max(1))
}

/// Highest page-aligned start of `len` bytes inside `range`, below `limit`, clear of `taken`.
fn highest<T>(range: &Range<u64>, limit: u64, len: u64, taken: T) -> Option<u64>
where
    T: Iterator<Item = Range<u64>> + Clone,
{
    let floor = range.start.max(KERNEL_FLOOR);
    let mut start = page_of(range.end.min(limit).checked_sub(len)?);
    // Each step goes below one of the ranges in the way, so this ends.
    while start >= floor {
        let Some(hit) = taken.clone().find(|t| start < t.end && t.start < start + len) else {
            return Some(start);
        };
        start = page_of(hit.start.checked_sub(len)?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// [`choose`] where nothing is spared.
    fn choose(
        usable: impl Iterator<Item = Range<u64>> + Clone,
        kernel_file: &Range<u64>,
        wanted: &Wanted,
    ) -> Result<Places, NoRoom> {
        super::choose(usable, core::iter::empty(), kernel_file, wanted)
    }

    fn wanted() -> Wanted {
        Wanted {
            kernel_room: 60 * MIB,
            kernel_align: 2 * MIB,
            kernel_lowest: 16 * MIB,
            ramdisk: 100 * MIB,
        }
    }

    #[test]
    fn kernel_low_ramdisk_high_but_below_one_gib() {
        let usable = [0..MIB, 10 * MIB..1500 * MIB];
        let p = choose(usable.into_iter(), &(20 * MIB..32 * MIB), &wanted()).unwrap();
        assert_eq!(p.kernel, 16 * MIB);
        assert_eq!(p.ramdisk, Some(924 * MIB..1024 * MIB));
    }

    #[test]
    fn the_ramdisk_avoids_the_kernel_file_and_the_kernel() {
        let usable = core::iter::once(10 * MIB..300 * MIB);
        let file = 190 * MIB..202 * MIB;
        let p = choose(usable, &file, &wanted()).unwrap();
        assert_eq!(p.ramdisk, Some(90 * MIB..190 * MIB));
        let usable = core::iter::once(10 * MIB..180 * MIB);
        let p = choose(usable, &(100 * MIB..101 * MIB), &wanted());
        assert_eq!(
            p,
            Err(NoRoom {
                what: "the ramdisk",
                bytes: 100 * MIB
            })
        );
    }

    #[test]
    fn above_one_gib_only_if_there_is_no_room_below() {
        let usable = [10 * MIB..100 * MIB, 2048 * MIB..2200 * MIB];
        let p = choose(usable.into_iter(), &(0..0), &wanted()).unwrap();
        assert_eq!(p.ramdisk, Some(2100 * MIB..2200 * MIB));
    }

    #[test]
    fn a_kernel_takes_the_first_range_that_holds_it() {
        let usable = [10 * MIB..70 * MIB, 99 * MIB..400 * MIB, 5 << 30..9 << 30];
        let p = choose(usable.clone().into_iter(), &(0..0), &wanted()).unwrap();
        assert_eq!(p.kernel, 100 * MIB);
        let huge = Wanted {
            kernel_room: 1 << 30,
            ..wanted()
        };
        assert!(choose(usable.into_iter(), &(0..0), &huge).is_err());
    }

    #[test]
    fn what_boot_services_had_is_taken_last() {
        let usable = [10 * MIB..900 * MIB, 2048 * MIB..2500 * MIB];
        let place = |spared: &[Range<u64>]| {
            super::choose(usable.iter().cloned(), spared.iter().cloned(), &(0..0), &wanted()).unwrap()
        };
        // As on most boards: some of it where a kernel goes, most of it at the end of low RAM.
        let p = place(&[70 * MIB..70 * MIB + 0x1000, 17 * MIB..18 * MIB, 850 * MIB..880 * MIB]);
        assert_eq!(p.kernel, 72 * MIB);
        assert_eq!(p.ramdisk, Some(750 * MIB..850 * MIB));
        // Rather above 1 GiB than there.
        let p = place(&[100 * MIB..500 * MIB, 500 * MIB..890 * MIB]);
        assert_eq!((p.kernel, p.ramdisk), (16 * MIB, Some(2400 * MIB..2500 * MIB)));
        // If nothing else fits, there.
        let halves = [0..500 * MIB, 500 * MIB..1 << 40];
        let p = place(&halves);
        assert_eq!((p.kernel, p.ramdisk), (16 * MIB, Some(800 * MIB..900 * MIB)));
    }
}
