//! What Linux uses as RAM, held against the firmware's memory map.
//!
//! Linux also uses memory as RAM that is none for the firmware: persistent and CXL memory by way of device-DAX
//! (`drivers/dax/kmem.c`), memory that was plugged in later. A successor's memory map is made from the firmware's, so
//! such memory cannot be RAM of a successor at its boot.

use anyhow::Result;
use firmware_shim::e820::{E820Map, Entry, MemoryType};
use partitioner::MemRange;

use super::{iomem, memmap};
use crate::sysroot::SysRoot;

/// The driver whose memory came by way of a refresh: Reserved in the map of this host, and RAM for the firmware.
const OWN: &str = "locum";

/// What there is of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    /// What can be given to another host, then or at last.
    pub own: Vec<MemRange>,
    /// What no host can boot in, with what it is. May be in `own`: the successor can add it later.
    pub foreign: Vec<(MemRange, String)>,
}

impl Ram {
    /// Reads `/proc/iomem` and `/sys/firmware/memmap`.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read(sys: &SysRoot) -> Result<Self> {
        let map = E820Map::from_firmware(memmap::ranges(sys)?.iter().copied())?;
        let mut ram = Self::default();
        for (range, driver) in iomem::ram(sys)? {
            let mut at = range.start();
            while at < range.end() {
                let (kind, end) = kind_at(&map, at);
                let Some(piece) = MemRange::new(at, end.min(range.end())) else {
                    break;
                };
                ram.add(piece, driver.as_deref(), kind);
                at = piece.end();
            }
        }
        Ok(ram)
    }

    fn add(&mut self, piece: MemRange, driver: Option<&str>, kind: Option<MemoryType>) {
        use MemoryType::{Reserved, SoftReserved, Usable};
        let for_firmware = match driver {
            None => kind == Some(Usable),
            Some(driver) => driver == OWN && matches!(kind, Some(Usable | Reserved)),
        };
        if matches!(kind, Some(Usable | Reserved | SoftReserved)) {
            self.own.push(piece);
        }
        if !for_firmware {
            let user = driver.map(|driver| format!(" ({driver})")).unwrap_or_default();
            self.foreign.push((
                piece,
                format!("System RAM{user} that is {} for the firmware", word(kind)),
            ));
        }
    }

    /// What a block is that no host can boot in.
    pub fn foreign(&self, block: MemRange) -> Option<&str> {
        let found = self.foreign.iter().find(|(range, _)| range.overlaps(block));
        found.map(|(_, what)| what.as_str())
    }
}

/// The type of the byte at `at`, and where another type may begin.
fn kind_at(map: &E820Map, at: u64) -> (Option<MemoryType>, u64) {
    let after = map.entries().iter().find(|entry| entry.end > at);
    match after {
        Some(&Entry { start, end, kind }) if start <= at => (Some(kind), end),
        Some(entry) => (None, entry.start),
        None => (None, u64::MAX),
    }
}

fn word(kind: Option<MemoryType>) -> &'static str {
    match kind {
        None => "nothing, since it is not in its memory map (CXL memory, plugged in later)",
        Some(MemoryType::Persistent) => "persistent memory",
        Some(MemoryType::SoftReserved) => "soft reserved (CXL or high-bandwidth memory)",
        // That of a device driver, such as virtio_mem.
        Some(MemoryType::Usable) => "RAM that a driver manages",
        Some(_) => "reserved",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    fn mem(start: u64, end: u64) -> MemRange {
        MemRange::new(start, end).unwrap()
    }

    #[test]
    fn every_piece_is_judged_by_map_and_driver() {
        let tree = Tree::lab();
        tree.memmap(&[
            (0x10_0000, 0x1fff_ffff, "System RAM"),
            (0x2000_0000, 0x2fff_ffff, "Reserved"),
            (0x3000_0000, 0x3fff_ffff, "Soft Reserved"),
            (0x4000_0000, 0x4fff_ffff, "Persistent Memory"),
        ]);
        let read = |iomem: &str| {
            tree.put("proc/iomem", iomem);
            Ram::read(&tree.sys()).unwrap()
        };
        let plain = read("00100000-1fffffff : System RAM\n20000000-2fffffff : System RAM (locum)\n");
        assert_eq!(plain.foreign, []);
        assert_eq!(plain.own, [mem(0x10_0000, 0x2000_0000), mem(0x2000_0000, 0x3000_0000)]);
        for (line, own, word) in [
            ("20000000-2fffffff : System RAM", true, "reserved"),
            ("30000000-37ffffff : System RAM (kmem)", true, "soft reserved"),
            ("40000000-47ffffff : System RAM (kmem)", false, "persistent"),
            (
                "100000000-10fffffff : System RAM (kmem)",
                false,
                "not in its memory map",
            ),
            ("18000000-1fffffff : System RAM (virtio_mem)", true, "a driver"),
        ] {
            let ram = read(&format!("00100000-17ffffff : System RAM\n{line}\n"));
            let range = iomem::range(line.split(' ').next().unwrap()).unwrap();
            assert_eq!(ram.own.contains(&range), own, "{line}");
            assert!(ram.foreign(range).unwrap().contains(word), "{line}: {ram:?}");
            assert_eq!(ram.foreign(mem(0x10_0000, 0x1000_0000)), None);
        }
        // In part this, in part that.
        let both = read("00100000-4fffffff : System RAM\n");
        assert_eq!(both.own.len(), 3);
        assert_eq!(both.foreign.len(), 3, "{both:?}");
        assert!(
            both.foreign(mem(0x1fff_f000, 0x2000_1000))
                .unwrap()
                .contains("reserved")
        );
    }
}
