//! Memory of real machines, as their published boot logs print it: figures only, ends inclusive.
//!
//! Where a log does not show a part of the map, that part is left out here; `whole` says whether nothing is. Found in
//! mailing lists' and bug trackers' archives by the strings in `source`.

mod servers;
mod small;
mod superdome2_efi;

use firmware_shim::e820::{E820Map, MemoryType};
use std::ops::Range;

pub use servers::*;
pub use small::*;
pub use superdome2_efi::SUPERDOME2_EFI;

/// A machine.
pub struct Published {
    /// Maker and model.
    pub name: &'static str,
    /// Where the figures are from.
    pub source: &'static str,
    /// Whether the log shows all of the map.
    pub whole: bool,
    /// The firmware's memory map.
    pub e820: &'static [(u64, u64, MemoryType)],
    /// Memory affinity: domain and range. Non-volatile memory and what is not enabled is left out.
    pub nodes: &'static [(u32, u64, u64)],
}

impl Published {
    pub fn map(&self) -> E820Map {
        let ranges = self
            .e820
            .iter()
            .map(|&(start, last, kind)| (start, last - start + 1, kind.raw()));
        E820Map::from_firmware(ranges).unwrap()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (u32, Range<u64>)> + Clone {
        self.nodes
            .iter()
            .map(|&(domain, start, last)| (domain, start..last + 1))
    }
}

/// All of them.
pub const ALL: [&Published; 18] = [
    &X11DAI,
    &X10DRT,
    &QSSC_S4R,
    &R7625,
    &DL325,
    &SUPERDOME2,
    &S2600WFT,
    &S2600WTT,
    &DESKTOP_57,
    &LAPTOP_85,
    &SMALL_1G,
    &LAPTOP_PAGE_ZERO,
    &DESKTOP_3F,
    &X11DAI_HOLE,
    &NVMEVIRT,
    &BUMBLEBEE,
    &BOCHS,
    &OVMF_SMM,
];
