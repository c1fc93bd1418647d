//! `/sys/devices/system/memory`: blocks, and how much memory could be spared.

use anyhow::{Context, Result};
use partitioner::{BlockState, MemRange, MemoryBlock, NodeId};

use super::node_of;
use crate::sysroot::SysRoot;

const DIR: &str = "sys/devices/system/memory";
/// What the incumbent keeps free for itself while it gives memory up, in bytes.
const HEADROOM: u64 = 64 << 20;

/// Bytes of a memory block.
///
/// # Errors
/// If the kernel has no memory hotplug.
pub fn block_size(sys: &SysRoot) -> Result<u64> {
    let text = sys.read(format!("{DIR}/block_size_bytes"))?;
    u64::from_str_radix(&text, 16).with_context(|| format!("block_size_bytes is `{text}`"))
}

/// Every memory block of this host. What it is for the firmware is not told.
///
/// # Errors
/// If a block's files cannot be read.
pub fn blocks(sys: &SysRoot) -> Result<Vec<MemoryBlock>> {
    let size = block_size(sys)?;
    let mut blocks = Vec::new();
    for name in sys.list(DIR)? {
        let Some(number) = name
            .strip_prefix("memory")
            .and_then(|digits| digits.parse::<u64>().ok())
        else {
            continue;
        };
        let dir = format!("{DIR}/{name}");
        let range = number
            .checked_mul(size)
            .and_then(|start| MemRange::with_len(start, size))
            .with_context(|| format!("{name}: beyond the address space"))?;
        let state = match sys.read(format!("{dir}/state"))?.as_str() {
            "online" => BlockState::Online,
            _ => BlockState::Offline,
        };
        let zones = sys.read_optional(format!("{dir}/valid_zones")).unwrap_or_default();
        let movable = zones.split_whitespace().next() == Some("Movable");
        blocks.push(MemoryBlock {
            range,
            state,
            removable: state == BlockState::Offline || movable,
            free: 0,
            node: NodeId(node_of(sys, &dir)),
            kept: None,
            foreign: None,
        });
    }
    blocks.sort_by_key(|block| block.range);
    Ok(blocks)
}

/// Where the block that starts at `start` is in sysfs.
pub fn block_dir(start: u64, size: u64) -> String {
    format!("{DIR}/memory{}", start / size.max(1))
}

/// Bytes that Linux maps for itself in pages of 1 GiB (`arch_report_meminfo()` in `arch/x86/mm/pat/set_memory.c`); 0 if
/// it does not tell.
pub fn in_gib_pages(sys: &SysRoot) -> u64 {
    let text = sys.read_optional("proc/meminfo").unwrap_or_default();
    kib(&text, "DirectMap1G:").unwrap_or(0).saturating_mul(1024)
}

/// A line of `/proc/meminfo`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix(" kB")?.parse().ok()
}

/// Bytes that this host can do without.
///
/// # Errors
/// If `/proc/meminfo` cannot be read.
pub fn spare(sys: &SysRoot) -> Result<u64> {
    let text = sys.read("proc/meminfo")?;
    let kib = kib(&text, "MemAvailable:").context("/proc/meminfo has no MemAvailable")?;
    Ok((kib * 1024).saturating_sub(HEADROOM))
}
