//! The journal's file: a line that says what follows, then the entry as JSON.
//!
//! ```text
//! locum-journal FORMAT BYTES CRC32\n
//! {...}
//! ```
//!
//! It is replaced as a whole: a reader finds one entry or the other. What cannot be used is kept aside, never thrown away.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Entry;
use crate::sysroot::SysRoot;

/// Where it is.
const FILE: &str = "run/locum/journal";
const MAGIC: &str = "locum-journal";
/// Changes when an older `locum` could misunderstand an entry, or a newer one an older entry.
const FORMAT: u32 = 1;

/// The journal of this host.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// Cut off, or changed since.
    #[error("it is torn or damaged ({0})")]
    Torn(&'static str),
    /// Of another format.
    #[error("it is in format {0}, this `locum` writes format {FORMAT}: another release wrote it")]
    Format(u32),
    /// Not what a journal says.
    #[error("it cannot be understood ({0}): another release wrote it")]
    Json(#[from] serde_json::Error),
    /// Of another boot or host.
    #[error("it is not of this host, but of {0}")]
    Foreign(String),
    /// It is there and cannot be read.
    #[error("it cannot be read ({0})")]
    Io(#[from] io::Error),
}

impl Journal {
    /// Below `sys`.
    pub fn at(sys: &SysRoot) -> Self {
        Self { path: sys.path(FILE) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier daemon of this host wrote; nothing if no refresh was under way.
    ///
    /// # Errors
    /// [`Bad`].
    pub fn read(&self, boot_id: &str, generation: u64) -> Result<Option<Entry>, Bad> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let entry = decode(&bytes)?;
        if entry.boot_id != boot_id {
            return Err(Bad::Foreign(format!("boot {}", entry.boot_id)));
        }
        if entry.generation != generation {
            return Err(Bad::Foreign(format!("generation {}", entry.generation)));
        }
        Ok(Some(entry))
    }

    /// Writes an entry in place of the last one. Returns once it is whole on the file system.
    ///
    /// # Errors
    /// If it cannot be written; the last one stays.
    pub fn write(&self, entry: &Entry) -> io::Result<()> {
        let bytes = encode(entry)?;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }

    /// No refresh is under way any more.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        crate::file::remove(&self.path)
    }

    /// Keeps one that cannot be used, under another name, which is returned.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        let bad = self.path.with_extension("bad");
        fs::rename(&self.path, &bad)?;
        Ok(bad)
    }
}

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(entry)?;
    let mut bytes = format!("{MAGIC} {FORMAT} {} {:08x}\n", json.len(), crc32fast::hash(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Entry, Bad> {
    let end = memchr::memchr(b'\n', bytes).ok_or(Bad::Torn("its first line has no end"))?;
    let (line, json) = bytes.split_at(end);
    let json = json.get(1..).unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(Bad::Torn("its first line is no journal's"));
    }
    let format = words.next().and_then(|word| word.parse().ok());
    match format.ok_or(Bad::Torn("its first line has no format"))? {
        FORMAT => {}
        other => return Err(Bad::Format(other)),
    }
    let length = words.next().and_then(|word| word.parse::<usize>().ok());
    if length != Some(json.len()) {
        return Err(Bad::Torn("it is not as long as its first line says"));
    }
    let crc = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
    if crc != Some(crc32fast::hash(json)) {
        return Err(Bad::Torn("its checksum is wrong"));
    }
    Ok(serde_json::from_slice(json)?)
}

#[cfg(test)]
mod tests {
    use super::super::Brief;
    use super::*;
    use partitioner::{Generation, Refresh};

    fn entry() -> Entry {
        Entry {
            boot_id: "one".to_owned(),
            generation: 4,
            name: "next".to_owned(),
            refresh: Refresh::idle(Generation(4), vec![]),
            brief: Brief::default(),
            report: None,
            abort: Some("stopped by the operator".to_owned()),
        }
    }

    fn journal(dir: &Path) -> Journal {
        Journal::at(&SysRoot::at(dir))
    }

    #[test]
    fn what_was_written_is_read_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        assert!(journal.read("one", 4).unwrap().is_none());
        journal.write(&entry()).unwrap();
        assert_eq!(journal.read("one", 4).unwrap(), Some(entry()));
        let later = Entry { abort: None, ..entry() };
        journal.write(&later).unwrap();
        assert_eq!(journal.read("one", 4).unwrap(), Some(later));
        journal.remove().unwrap();
        journal.remove().unwrap();
        assert!(journal.read("one", 4).unwrap().is_none());
    }

    #[test]
    fn a_journal_torn_anywhere_is_never_believed() {
        let bytes = encode(&entry()).unwrap();
        for length in 0..bytes.len() {
            let torn = decode(&bytes[..length]);
            assert!(matches!(torn, Err(Bad::Torn(_))), "{length}: {torn:?}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "a bit of byte {at} changed");
        }
        assert_eq!(decode(&bytes).unwrap(), entry());
        let mut longer = bytes;
        longer.push(b' ');
        assert!(matches!(decode(&longer), Err(Bad::Torn(_))));
    }

    #[test]
    fn another_boots_or_releases_journal_is_told_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        journal.write(&entry()).unwrap();
        let says = |boot, generation| journal.read(boot, generation).unwrap_err().to_string();
        assert!(says("two", 4).contains("boot one"), "{}", says("two", 4));
        assert!(says("one", 6).contains("generation 4"));
        let text = fs::read_to_string(journal.path()).unwrap();
        fs::write(journal.path(), text.replacen("journal 1 ", "journal 2 ", 1)).unwrap();
        assert!(says("one", 4).contains("format 2"));
        // The same format, and yet something that this release does not know.
        let json = br#"{"boot_id":"one"}"#;
        let line = format!("{MAGIC} {FORMAT} {} {:08x}\n", json.len(), crc32fast::hash(json));
        fs::write(journal.path(), [line.as_bytes(), json].concat()).unwrap();
        assert!(says("one", 4).contains("another release"));
        let bad = journal.set_aside().unwrap();
        assert!(bad.exists() && bad.ends_with("journal.bad"));
        assert!(journal.read("one", 4).unwrap().is_none());
    }
}
