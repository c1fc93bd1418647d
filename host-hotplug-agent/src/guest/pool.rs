//! Is a file that holds a guest's RAM the pool?
//!
//! The name of a device says nothing: a server may have other device-DAX devices (persistent memory, CXL), and their
//! numbers depend on the order in which Linux finds them. What counts is the physical memory of the device, which sysfs
//! tells (Linux `drivers/dax/bus.c`): all of it must lie in one piece of the pool of L0's header. Linux makes a device of
//! each piece, so guests can have their RAM on the node where their CPUs are.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use locum_abi::Header;
use partitioner::{MemRange, NodeId};

use super::process::Process;
use crate::sysroot::SysRoot;

const DEVICES: &str = "sys/bus/dax/devices";
/// The pool's device if no other memory is soft reserved.
const USUAL: &str = "/dev/dax0.0";

/// A stretch of the pool as one file of this host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file that QEMU maps.
    pub file: PathBuf,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its physical memory; of a plain file, its bytes.
    pub range: MemRange,
    /// NUMA node, if Linux tells.
    pub node: Option<u32>,
}

/// Where the RAM of guests must lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Nowhere: L0 has none.
    None,
    /// In one of these pieces of physical memory.
    Memory(Vec<MemRange>),
    /// In this plain file, which stands for the pool where two QEMUs run on one host.
    File(PathBuf),
}

impl Pool {
    /// L0's.
    pub fn of(header: &Header) -> Self {
        let pieces = pieces(header);
        if pieces.is_empty() {
            Self::None
        } else {
            Self::Memory(pieces)
        }
    }

    /// Says what `file`, which a QEMU names, is instead of the pool; the sentence begins "it lies in FILE, ".
    pub fn outside(&self, sys: &SysRoot, process: Process<'_>, file: &Path) -> Option<String> {
        let pool = match self {
            Self::None => return Some("and there is no pool".to_owned()),
            Self::File(pool) => return (file != pool).then(|| "another file".to_owned()),
            Self::Memory(pieces) => pieces,
        };
        let name = match device(sys, process, file) {
            Ok(name) => name,
            Err(what) => return Some(format!("{what} and no device-DAX device")),
        };
        let Some(ranges) = ranges(sys, &name) else {
            return Some(format!("and /{DEVICES}/{name} does not tell where its memory is"));
        };
        let stray = ranges.into_iter().find(|range| !holds(pool, *range))?;
        let pool: Vec<String> = pool.iter().map(MemRange::to_string).collect();
        Some(format!("which is at {stray}, and the pool is at {}", pool.join(", ")))
    }

    /// Where the device behind `file`, which a QEMU names, begins in physical memory.
    pub fn address(&self, sys: &SysRoot, process: Process<'_>, file: &Path) -> Option<u64> {
        let Self::Memory(_) = self else { return None };
        let name = device(sys, process, file).ok()?;
        Some(ranges(sys, &name)?.first()?.start())
    }

    /// Whether the device behind `file` is one piece of physical memory.
    pub fn is_one_piece(&self, sys: &SysRoot, process: Process<'_>, file: &Path) -> bool {
        let name = device(sys, process, file).ok();
        name.and_then(|name| ranges(sys, &name))
            .is_some_and(|ranges| ranges.len() == 1)
    }

    /// The device of this host that begins at a physical address. Another host may give it another number.
    pub fn device_at(&self, sys: &SysRoot, at: u64) -> Option<PathBuf> {
        let Self::Memory(_) = self else { return None };
        let begins =
            |name: &&String| ranges(sys, name).is_some_and(|ranges| ranges.first().map(|r| r.start()) == Some(at));
        let names = sys.list(DEVICES).ok()?;
        Some(Path::new("/dev").join(names.iter().find(begins)?))
    }

    /// All of the pool that this host can map.
    pub fn parts(&self, sys: &SysRoot) -> Vec<Part> {
        let pool = match self {
            Self::None => return Vec::new(),
            Self::File(file) => {
                let len = fs::metadata(file).map_or(0, |kind| kind.len());
                let part = MemRange::new(0, len).map(|range| Part {
                    file: file.clone(),
                    offset: 0,
                    range,
                    node: None,
                });
                return part.into_iter().collect();
            }
            Self::Memory(pool) => pool,
        };
        let mut parts = Vec::new();
        for name in sys.list(DEVICES).unwrap_or_default() {
            let Some(ranges) = ranges(sys, &name).filter(|ranges| ranges.iter().all(|range| holds(pool, *range)))
            else {
                continue;
            };
            let node = sys.read_number(format!("{DEVICES}/{name}/target_node")).ok();
            let mut offset = 0;
            for range in ranges {
                parts.push(Part {
                    file: Path::new("/dev").join(&name),
                    offset,
                    range,
                    node: node.and_then(|node| u32::try_from(node).ok()),
                });
                offset += range.len();
            }
        }
        parts
    }

    /// NUMA nodes of the pool, as far as its devices tell (`target_node`, Linux `drivers/dax/bus.c`).
    pub fn nodes(&self, sys: &SysRoot) -> Vec<NodeId> {
        let Self::Memory(pool) = self else {
            return Vec::new();
        };
        let mut nodes = BTreeSet::new();
        for name in sys.list(DEVICES).unwrap_or_default() {
            let inside = ranges(sys, &name).is_some_and(|ranges| ranges.iter().all(|range| holds(pool, *range)));
            let node = sys.read_number(format!("{DEVICES}/{name}/target_node")).ok();
            nodes.extend(
                node.filter(|_| inside)
                    .and_then(|node| u32::try_from(node).ok())
                    .map(NodeId),
            );
        }
        nodes.into_iter().collect()
    }

    /// A device through which this host has the pool.
    pub fn device(&self, sys: &SysRoot) -> String {
        let Self::Memory(pool) = self else {
            return USUAL.to_owned();
        };
        let inside =
            |name: &String| ranges(sys, name).is_some_and(|ranges| ranges.iter().all(|range| holds(pool, *range)));
        let names = sys.list(DEVICES).unwrap_or_default();
        let inside = names.iter().find(|name| inside(name));
        inside.map_or_else(|| USUAL.to_owned(), |name| format!("/dev/{name}"))
    }
}

/// The pieces of L0's pool.
pub fn pieces(header: &Header) -> Vec<MemRange> {
    header
        .pool()
        .filter_map(|piece| MemRange::with_len(piece.start, piece.size))
        .collect()
}

fn holds(pool: &[MemRange], range: MemRange) -> bool {
    pool.iter().any(|piece| piece.contains(range))
}

/// The name in sysfs of the device-DAX device behind `file`; else what the file is instead.
fn device(sys: &SysRoot, process: Process<'_>, file: &Path) -> Result<String, &'static str> {
    let names = sys.list(DEVICES).unwrap_or_default();
    let by_name = || {
        let name = file.file_name().and_then(|name| name.to_str());
        names.iter().find(|known| Some(known.as_str()) == name)
    };
    let Some(node) = process.file(file).and_then(|path| fs::metadata(path).ok()) else {
        // Its `/dev` is not to be seen from here.
        return by_name().cloned().ok_or("which is nowhere to be seen");
    };
    let kind = node.file_type();
    if let Some(name) = named(sys, &names, &node) {
        return Ok(name);
    }
    if !kind.is_char_device() {
        return Err(if kind.is_dir() {
            "a directory"
        } else if kind.is_block_device() {
            "a block device"
        } else {
            "a plain file"
        });
    }
    Err("a character device")
}

/// How this host names the device-DAX device that a file turned out to be.
pub(super) fn file_of(sys: &SysRoot, file: &Metadata) -> Option<PathBuf> {
    if !file.file_type().is_char_device() {
        return None;
    }
    let names = sys.list(DEVICES).ok()?;
    Some(Path::new("/dev").join(named(sys, &names, file)?))
}

fn named(sys: &SysRoot, names: &[String], file: &Metadata) -> Option<String> {
    let number = format!("{}:{}", rustix::fs::major(file.rdev()), rustix::fs::minor(file.rdev()));
    let has_number = |name: &&String| sys.read_optional(format!("{DEVICES}/{name}/dev")).as_ref() == Some(&number);
    let is_device = file.file_type().is_char_device();
    names.iter().find(|name| is_device && has_number(name)).cloned()
}

/// The device's physical memory, which may be in pieces. `None` if it has none or Linux does not tell.
fn ranges(sys: &SysRoot, name: &str) -> Option<Vec<MemRange>> {
    let dir = format!("{DEVICES}/{name}");
    let number = |file: &str| sys.read_number(format!("{dir}/{file}")).ok();
    let pieces = sys.list(&dir).unwrap_or_default();
    // Beside them lies the file `mapping`, to write to.
    let is_piece = |name: &&String| {
        let number = name.strip_prefix("mapping");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let pieces: Vec<&String> = pieces.iter().filter(is_piece).collect();
    if pieces.is_empty() {
        return Some(vec![MemRange::with_len(number("resource")?, number("size")?)?]);
    }
    let piece = |name: &&String| {
        let last = number(&format!("{name}/end"))?;
        MemRange::new(number(&format!("{name}/start"))?, last.checked_add(1)?)
    };
    pieces.iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;
    use std::os::unix::fs::symlink;

    const GIB: u64 = 1 << 30;

    /// A pool from 4 to 20 GiB.
    fn pool() -> Pool {
        Pool::of(&Header {
            pool: 4 * GIB,
            pool_size: 16 * GIB,
            ..Header::of_this_release()
        })
    }

    fn dax(tree: &Tree, name: &str, start: u64, size: u64) {
        let dir = format!("{DEVICES}/{name}");
        tree.put(format!("{dir}/resource"), format!("{start:#x}\n"));
        tree.put(format!("{dir}/size"), format!("{size}\n"));
    }

    /// What is wrong with a file that a QEMU names.
    fn problem(tree: &Tree, file: &str) -> Option<String> {
        let sys = tree.sys();
        let process = Process::new(&sys, rustix::process::getpid());
        pool().outside(&sys, process, Path::new(file))
    }

    #[test]
    fn a_device_is_the_pool_if_its_memory_is() {
        let tree = Tree::lab();
        // CXL memory was found first.
        dax(&tree, "dax0.0", 0x18_4000_0000, 0xbd_0000_0000);
        dax(&tree, "dax1.0", 4 * GIB, 16 * GIB);
        let stray = problem(&tree, "/dev/dax0.0").unwrap();
        assert_eq!(
            stray,
            "which is at 0x1840000000-0xd540000000, and the pool is at 0x100000000-0x500000000"
        );
        assert_eq!(problem(&tree, "/dev/dax1.0"), None);
        assert_eq!(pool().device(&tree.sys()), "/dev/dax1.0");
        assert_eq!(pool().nodes(&tree.sys()), []);
        tree.put(format!("{DEVICES}/dax0.0/target_node"), "2\n");
        tree.put(format!("{DEVICES}/dax1.0/target_node"), "1\n");
        assert_eq!(pool().nodes(&tree.sys()), [NodeId(1)]);
        let sys = tree.sys();
        let process = Process::new(&sys, rustix::process::getpid());
        let at = pool().address(&sys, process, Path::new("/dev/dax1.0")).unwrap();
        assert_eq!(at, 4 * GIB);
        // The other host has no CXL memory.
        let other = Tree::lab();
        dax(&other, "dax0.0", 4 * GIB, 16 * GIB);
        assert_eq!(pool().device_at(&other.sys(), at), Some(PathBuf::from("/dev/dax0.0")));
        assert_eq!(pool().device_at(&other.sys(), at + 1), None);
        // One device for each guest.
        dax(&tree, "dax1.1", 8 * GIB, 4 * GIB);
        assert_eq!(problem(&tree, "/dev/dax1.1"), None);
        for (start, size) in [(2 * GIB, 4 * GIB), (18 * GIB, 4 * GIB), (0, 64 * GIB), (4 * GIB, 0)] {
            dax(&tree, "dax1.1", start, size);
            assert!(problem(&tree, "/dev/dax1.1").is_some(), "{start:#x}, {size:#x} bytes");
        }
    }

    #[test]
    fn a_device_may_be_in_any_piece_of_the_pool() {
        let mut header = Header::of_this_release();
        for (piece, start) in header.pool_pieces.iter_mut().zip([4 * GIB, 32 * GIB]) {
            *piece = locum_abi::PoolPiece { start, size: 8 * GIB };
        }
        let pool = Pool::of(&header);
        let tree = Tree::lab();
        let sys = tree.sys();
        let problem = || {
            let process = Process::new(&sys, rustix::process::getpid());
            pool.outside(&sys, process, Path::new("/dev/dax0.0"))
        };
        for start in [4 * GIB, 11 * GIB, 32 * GIB, 39 * GIB] {
            dax(&tree, "dax0.0", start, GIB);
            assert_eq!(problem(), None, "{start:#x}");
            assert_eq!(pool.device(&sys), "/dev/dax0.0");
            assert_eq!(pool.device_at(&sys, start), Some(PathBuf::from("/dev/dax0.0")));
        }
        dax(&tree, "dax0.0", 12 * GIB, GIB);
        assert_eq!(
            problem().unwrap(),
            "which is at 0x300000000-0x340000000, and the pool is at 0x100000000-0x300000000, 0x800000000-0xa00000000"
        );
        dax(&tree, "dax0.0", 4 * GIB, 36 * GIB);
        assert!(problem().is_some(), "from one piece to the other");
    }

    #[test]
    fn every_piece_of_a_device_must_be_in_the_pool() {
        let tree = Tree::lab();
        dax(&tree, "dax0.0", 4 * GIB, 2 * GIB);
        let piece = |number: u32, start: u64| {
            let dir = format!("{DEVICES}/dax0.0/mapping{number}");
            tree.put(format!("{dir}/start"), format!("{start:#x}\n"));
            tree.put(format!("{dir}/end"), format!("{:#x}\n", start + GIB - 1));
        };
        tree.put(format!("{DEVICES}/dax0.0/mapping"), "");
        piece(0, 4 * GIB);
        piece(1, 19 * GIB);
        assert_eq!(problem(&tree, "/dev/dax0.0"), None);
        piece(1, 20 * GIB);
        assert!(
            problem(&tree, "/dev/dax0.0")
                .unwrap()
                .contains("0x500000000-0x540000000")
        );
    }

    #[test]
    fn a_device_is_known_by_its_number_whatever_it_is_called() {
        let tree = Tree::lab();
        dax(&tree, "dax0.0", 4 * GIB, 16 * GIB);
        // A character device that every host has stands for it.
        tree.put(format!("{DEVICES}/dax0.0/dev"), "1:3\n");
        tree.put("dev/x", "");
        symlink("/dev/null", tree.path().join("dev/guests")).unwrap();
        symlink("/dev/zero", tree.path().join("dev/dax0.0")).unwrap();
        assert_eq!(problem(&tree, "/dev/guests"), None);
        assert!(problem(&tree, "/dev/dax0.0").unwrap().contains("character device"));
    }

    #[test]
    fn files_that_are_called_like_a_device_are_not_the_pool() {
        let tree = Tree::lab();
        dax(&tree, "dax0.0", 4 * GIB, 16 * GIB);
        assert_eq!(
            problem(&tree, "/dev/dax0.0"),
            None,
            "its node is in a namespace of its own"
        );
        assert!(problem(&tree, "/dev/dax0.7").unwrap().contains("nowhere"));
        // QEMU makes the file if it is not there.
        tree.put("dev/dax0.0", "");
        assert!(problem(&tree, "/dev/dax0.0").unwrap().contains("plain file"));
        tree.put("dev/dax/x", "");
        assert!(problem(&tree, "/dev/dax").unwrap().contains("directory"));
    }
}
