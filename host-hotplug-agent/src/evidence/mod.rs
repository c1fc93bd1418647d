//! Why a successor died: what is left of it is saved before its memory is cleared, for nothing else tells.
//!
//! Its kernel's log, L0's log and trace go into one text; its memory, if the configuration wants it, into an ELF core. The
//! way back does not wait for a disk that is full: what cannot be saved is told, and lost.

pub mod printk;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use firmware_shim::PhysMem;
use partitioner::MemRange;

use crate::l0::trace;
use crate::machine::Machine;

/// Where it goes.
const DIR: &str = "var/log/locum";
/// Newest records of L0's trace that are saved.
const RECORDS: usize = 500;
/// So much of an image is copied at a time.
const CHUNK: u64 = 1 << 20;

/// What is known of the dead.
#[derive(Clone, Debug)]
pub struct Dead<'a> {
    /// Name of its configuration.
    pub name: &'a str,
    /// Why it was given up.
    pub why: &'a str,
    /// Its memory.
    pub memory: &'a [MemRange],
    /// Whether it is known to have been started. If not, there is something to save only if it has left a log.
    pub started: bool,
    /// Whether its memory is saved, too.
    pub keep_image: bool,
}

/// Saves what is left. Returns what was saved, and what could not be.
pub fn save(machine: &dyn Machine, dead: &Dead<'_>) -> Vec<String> {
    let log = printk::find(machine.memory(), dead.memory);
    if log.is_none() && !dead.started {
        return Vec::new();
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a name for a file, which a reader looks for by its date"
    )]
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let dir = machine.sys().path(DIR);
    // A daemon that died after this has another one save it again.
    let stems = (1..).map(|number| format!("{}-{seconds}-{number}", dead.name));
    let is_new = |stem: &String| !dir.join(format!("{stem}.log")).exists();
    let stem = stems.take(100).find(is_new).unwrap_or_default();
    let text = text(machine, dead, log.as_deref());
    let mut said = vec![told("log of the successor", &dir.join(format!("{stem}.log")), |file| {
        file.write_all(text.as_bytes())
    })];
    if dead.keep_image {
        said.push(told(
            "memory of the successor",
            &dir.join(format!("{stem}.core")),
            |file| image(machine.memory(), dead.memory, file),
        ));
    }
    said
}

/// Writes a file whole or not at all, and says which.
fn told(what: &str, path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> String {
    match whole(path, write) {
        Ok(path) => format!("{what}: {}", path.display()),
        Err(error) => {
            let error = format!("{what}: not saved, and lost ({error:#}): make room there before the next try");
            tracing::warn!("{error}");
            error
        }
    }
}

fn whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<PathBuf> {
    let context = || path.display().to_string();
    let dir = path.parent().with_context(context)?;
    if !dir.exists() {
        // It may hold what guests and users keep to themselves.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).with_context(context)?;
    }
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = BufWriter::new(open.with_context(context)?);
    let written = write(&mut file)
        .and_then(|()| file.flush())
        .and_then(|()| file.get_ref().sync_all());
    if let Err(error) = written {
        // Half of it takes room and is of no use.
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!("removing {}: {error}", path.display());
        }
        return Err(error).with_context(context);
    }
    Ok(path.to_owned())
}

fn text(machine: &dyn Machine, dead: &Dead<'_>, log: Option<&str>) -> String {
    let facts = machine.facts();
    let memory = machine.memory();
    let or = |text: Result<String>| text.unwrap_or_else(|error| format!("cannot be read: {error:#}\n"));
    let ranges: Vec<String> = dead.memory.iter().map(MemRange::to_string).collect();
    let records = trace::records(memory, &facts.header, RECORDS, &[]);
    let records = records.map(|records| records.iter().map(|record| format!("{record}\n")).collect());
    format!(
        "successor {}\ngiven up: {}\nmemory: {}\n\n--- log of its kernel (without times)\n{}\n\
         --- log of L0\n{}\n--- trace of L0, newest {RECORDS} records\n{}",
        dead.name,
        dead.why,
        ranges.join(", "),
        log.unwrap_or("none was found in its memory: it died before it printed, or printed more than its log holds\n"),
        or(trace::log(memory, &facts.header)),
        or(records)
    )
}

/// An ELF core (System V ABI, chapters 4 and 5): a segment for each range, by physical address.
fn image(memory: &dyn PhysMem, ranges: &[MemRange], file: &mut impl Write) -> io::Result<()> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    const X86_64: u16 = 62;
    const CORE: u16 = 4;
    const LOAD: u32 = 1;
    let count = u16::try_from(ranges.len()).map_err(io::Error::other)?;
    let mut head = Vec::new();
    // 64-bit, little-endian, version 1.
    head.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    head.extend(CORE.to_le_bytes());
    head.extend(X86_64.to_le_bytes());
    head.extend(1u32.to_le_bytes());
    // No entry; segments follow; no sections.
    for word in [0, HEADER, 0] {
        head.extend(word.to_le_bytes());
    }
    head.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, SEGMENT as u16, count, 0, 0, 0] {
        head.extend(half.to_le_bytes());
    }
    let mut offset = (HEADER + SEGMENT * u64::from(count)).next_multiple_of(4096);
    let first = offset;
    for range in ranges {
        head.extend(LOAD.to_le_bytes());
        head.extend(7u32.to_le_bytes());
        for word in [offset, 0, range.start(), range.len(), range.len(), 4096] {
            head.extend(word.to_le_bytes());
        }
        offset += range.len();
    }
    head.resize(first as usize, 0);
    file.write_all(&head)?;
    let mut chunk = vec![0; CHUNK as usize];
    for range in ranges {
        let mut at = range.start();
        while at < range.end() {
            let len = (range.end() - at).min(CHUNK) as usize;
            let bytes = chunk.get_mut(..len).unwrap_or_default();
            memory
                .read(at, bytes)
                .map_err(|error| io::Error::other(format!("memory at {:#x} cannot be read", error.addr)))?;
            file.write_all(bytes)?;
            at += len as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_shim::Pieces;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_image_is_a_core_with_a_segment_for_each_range() {
        let (low, high) = (vec![1; 4096], vec![2; 8192]);
        let memory = Pieces(&[(0x10_0000, &low), (0x4800_0000, &high)]);
        let range = |start, len| MemRange::with_len(start, len).unwrap();
        let ranges = [range(0x10_0000, 4096), range(0x4800_0000, 8192)];
        let mut out = Vec::new();
        image(&memory, &ranges, &mut out).unwrap();
        assert_eq!(out.len(), 4096 + 4096 + 8192);
        assert_eq!((&out[..4], out[16], out[18], out[56]), (&b"\x7fELF"[..], 4, 62, 2));
        let word = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().unwrap());
        // Offset, physical address, bytes of the second.
        assert_eq!(
            (word(120 + 8), word(120 + 24), word(120 + 32)),
            (8192, 0x4800_0000, 8192)
        );
        assert!(out[4096..8192].iter().all(|byte| *byte == 1) && out[8192..].iter().all(|byte| *byte == 2));
        let hole = [range(0x20_0000, 4096)];
        assert!(image(&memory, &hole, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_file_is_whole_and_roots_alone_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/locum/x.log");
        whole(&path, |file| file.write_all(b"text")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let full = path.with_file_name("full");
        let said = told("log", &full, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(said.contains("not saved") && said.contains("make room"), "{said}");
        assert!(!full.exists());
    }
}
