//! Follows logs that grow, reading every byte once.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use memchr::memmem;

/// Read at a time.
const CHUNK: usize = 1 << 16;

/// Counts how often a text occurs in a growing file.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    text: Vec<u8>,
    /// Bytes read so far.
    offset: u64,
    /// The last of them, too few for the text: it may begin there.
    tail: Vec<u8>,
    found: usize,
}

impl Follower {
    /// Follows the file from its beginning; it need not exist yet.
    #[must_use]
    pub(super) fn new(path: PathBuf, text: &str) -> Self {
        Self {
            path,
            text: text.into(),
            offset: 0,
            tail: Vec::new(),
            found: 0,
        }
    }

    /// Reads what came since the last look. Returns how often the text occurred so far.
    pub(super) fn look(&mut self) -> usize {
        // What cannot be read now can be at the next look.
        if let Ok(mut file) = File::open(&self.path) {
            let _ = self.read(&mut file);
        }
        self.found
    }

    fn read(&mut self, file: &mut File) -> std::io::Result<()> {
        if file.metadata()?.len() < self.offset {
            // Begun anew.
            self.offset = 0;
            self.tail.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = file.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            self.offset += n as u64;
            self.take(chunk.get(..n).unwrap_or_default());
        }
    }

    fn take(&mut self, new: &[u8]) {
        self.tail.extend(new);
        self.found += memmem::find_iter(&self.tail, &self.text).count();
        let keep = self.text.len().saturating_sub(1);
        let rest = self.tail.len().saturating_sub(keep);
        self.tail.drain(..rest);
    }
}

/// The last bytes of a file, at most so many, as text; empty if there is none.
#[must_use]
pub(super) fn tail(path: &Path, most: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    const SIGN: &str = "Kernel panic - not syncing";

    struct Log {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Log {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("console0.log");
            Self { _dir: dir, path }
        }

        fn append(&self, text: &str) {
            let mut options = fs::OpenOptions::new();
            let mut file = options.create(true).append(true).open(&self.path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_log_that_is_not_there_yet_has_nothing() {
        let log = Log::new();
        let mut follower = Follower::new(log.path.clone(), SIGN);
        assert_eq!(follower.look(), 0);
        log.append(SIGN);
        assert_eq!(follower.look(), 1);
        assert_eq!(follower.look(), 1, "read twice");
    }

    #[test]
    fn a_sign_split_at_any_byte_over_two_reads_is_found_once() {
        for at in 0..=SIGN.len() {
            let log = Log::new();
            let mut follower = Follower::new(log.path.clone(), SIGN);
            let (one, two) = SIGN.split_at(at);
            log.append(&format!("booting\n{one}"));
            follower.look();
            log.append(&format!("{two}: no init\n"));
            assert_eq!(follower.look(), 1, "split at {at}");
            log.append("more\n");
            assert_eq!(follower.look(), 1, "split at {at}");
        }
    }

    #[test]
    fn a_sign_that_comes_byte_by_byte_is_found() {
        let log = Log::new();
        let mut follower = Follower::new(log.path.clone(), SIGN);
        for byte in format!("{SIGN}\n{SIGN}\n").chars() {
            log.append(&byte.to_string());
            follower.look();
        }
        assert_eq!(follower.look(), 2);
    }

    #[test]
    fn only_what_is_new_is_read_and_chunks_hide_nothing() {
        let log = Log::new();
        let mut follower = Follower::new(log.path.clone(), SIGN);
        // Across the border of two chunks.
        log.append(&"x".repeat(CHUNK - 3));
        log.append(SIGN);
        log.append(&"x".repeat(3 * CHUNK));
        assert_eq!(follower.look(), 1);
        let length = fs::metadata(&log.path).unwrap().len();
        assert_eq!(follower.offset, length);
        assert!(follower.tail.len() < SIGN.len(), "it keeps what it has read");
        // A sign in what was read already is not looked at again.
        let text = fs::read_to_string(&log.path).unwrap();
        fs::write(&log.path, text.replace(&"x".repeat(SIGN.len()), SIGN)).unwrap();
        assert_eq!(follower.look(), 1);
    }

    #[test]
    fn a_log_that_is_truncated_is_followed_from_its_beginning() {
        let log = Log::new();
        let mut follower = Follower::new(log.path.clone(), SIGN);
        log.append(&format!("{SIGN}, and then some half of it: Kernel pa"));
        assert_eq!(follower.look(), 1);
        fs::write(&log.path, "nic - not syncing\n").unwrap();
        assert_eq!(follower.look(), 1, "halves of two files make no whole");
        log.append(SIGN);
        assert_eq!(follower.look(), 2);
    }

    #[test]
    fn the_tail_is_the_end() {
        let log = Log::new();
        assert_eq!(tail(&log.path, 4), "");
        log.append("one two");
        assert_eq!(tail(&log.path, 4), " two");
        assert_eq!(tail(&log.path, 400), "one two");
    }
}
