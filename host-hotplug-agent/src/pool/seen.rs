//! Processes of this host that map some of the pool: guests that were started by hand are in no table.

use std::collections::BTreeMap;

use partitioner::MemRange;
use rustix::process::Pid;

use super::table::Uuid;
use crate::guest::argv;
use crate::guest::keyval;
use crate::guest::pool::Part;
use crate::guest::process::{Mapping, Process};
use crate::sysroot::SysRoot;

/// A process with some of the pool in its address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub pid: i32,
    /// The guest's name as QEMU has it, else `process N`.
    pub name: String,
    /// The guest's UUID, if it has one.
    pub uuid: Uuid,
    /// What it maps, merged and ascending.
    pub ranges: Vec<MemRange>,
}

/// All of them. What a process does with its address space meanwhile is not seen.
pub fn look(sys: &SysRoot, parts: &[Part]) -> Vec<Seen> {
    let pids = sys.list("proc").unwrap_or_default();
    let pids = pids.iter().filter_map(|name| name.parse::<i32>().ok());
    let mut seen: Vec<Seen> = pids.filter_map(|pid| process(sys, parts, pid)).collect();
    seen.sort_by_key(|seen| seen.pid);
    seen
}

fn process(sys: &SysRoot, parts: &[Part], pid: i32) -> Option<Seen> {
    let process = Process::new(sys, Pid::from_raw(pid)?);
    let mappings = process.mappings();
    let ranges = merged(mappings.iter().flat_map(|map| resolve(parts, map)).collect());
    if ranges.is_empty() {
        return None;
    }
    let command = process.command().unwrap_or_default();
    Some(Seen {
        pid,
        name: name(&command).unwrap_or_else(|| format!("process {pid}")),
        uuid: uuid(&command),
        ranges,
    })
}

fn resolve(parts: &[Part], map: &Mapping) -> Vec<MemRange> {
    let end = map.offset.saturating_add(map.len);
    let parts = parts.iter().filter(|part| part.file == map.file);
    let within = parts.filter_map(|part| {
        let from = map.offset.max(part.offset);
        let to = end.min(part.offset + part.range.len());
        MemRange::new(
            part.range.start() + from.checked_sub(part.offset)?,
            part.range.start() + to.checked_sub(part.offset)?,
        )
    });
    within.collect()
}

fn merged(mut ranges: Vec<MemRange>) -> Vec<MemRange> {
    ranges.sort();
    let mut merged: Vec<MemRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = MemRange::new(last.start(), last.end().max(range.end())).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// QEMU's `-name`: `[guest=]NAME[,...]`.
fn name(command: &[String]) -> Option<String> {
    let argument = argument(command, "name")?;
    let pairs = keyval::pairs(argument);
    let guest = pairs.iter().find(|(key, _)| key == "guest" || key.is_empty())?;
    let mut name = guest.1.clone();
    name.truncate(name.floor_char_boundary(63));
    (!name.is_empty()).then_some(name)
}

fn uuid(command: &[String]) -> Uuid {
    argument(command, "uuid").and_then(Uuid::parse).unwrap_or_default()
}

fn argument<'a>(command: &'a [String], option: &str) -> Option<&'a str> {
    let items: BTreeMap<&str, Option<&str>> = argv::items(command)
        .iter()
        .map(|item| (item.name, item.argument()))
        .collect();
    items.get(option).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    const GIB: u64 = 1 << 30;

    #[test]
    fn who_maps_the_pool_is_found_with_what_it_maps() {
        let tree = Tree::lab();
        let range = |start, len| MemRange::with_len(start, len).unwrap();
        let parts = [
            Part {
                file: "/dev/dax0.0".into(),
                offset: 0,
                range: range(4 * GIB, GIB),
                node: None,
            },
            Part {
                file: "/dev/dax0.0".into(),
                offset: GIB,
                range: range(8 * GIB, GIB),
                node: None,
            },
        ];
        tree.put(
            "proc/1/maps",
            "7f0000000000-7f0000200000 rw-p 00000000 00:06 412 /dev/dax0.0\n",
        );
        tree.put(
            "proc/7/maps",
            "55aa-55ab r--p 0000 00:00 0\n\
             7f0000000000-7f0020000000 rw-s 30000000 00:06 412                       /dev/dax0.0\n\
             7f0020000000-7f0020200000 rw-s 50000000 00:06 412                       /dev/dax0.0\n\
             7f0040000000-7f0060000000 rw-s 00000000 00:06 999                       /dev/dax7.0\n",
        );
        tree.put(
            "proc/7/cmdline",
            "qemu-system-x86_64\0-name\0guest=vm,,1,debug-threads=on\0-uuid\0\
             0123abcd-0000-4000-8000-00000000cafe\0",
        );
        tree.put(
            "proc/9/maps",
            "7f0000000000-7f0000200000 rw-s 00000000 00:06 412 /dev/dax0.0\n",
        );
        tree.put("proc/9/cmdline", "dd\0");
        let seen = look(&tree.sys(), &parts);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!((seen[0].pid, seen[0].name.as_str()), (7, "vm,1"));
        assert!(seen[0].uuid.is_known());
        // From one piece of the device into the other, and one more.
        let right = [range(4 * GIB + 0x3000_0000, 0x1000_0000), range(8 * GIB, 0x1020_0000)];
        assert_eq!(seen[0].ranges, right);
        assert_eq!((seen[1].name.as_str(), seen[1].ranges.len()), ("process 9", 1));
    }
}
