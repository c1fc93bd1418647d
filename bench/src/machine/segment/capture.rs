//! What went over a segment, as Wireshark and tcpdump read it: the classic format of libpcap, whose time is the emulated one.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use super::NS_PER_TICK;

/// Magic number of files whose times have nanoseconds (pcap-savefile(5)).
const MAGIC: u32 = 0xa1b2_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Longest packet, in bytes.
const LONGEST: u32 = 0xffff;

/// A capture that goes on.
#[derive(Debug)]
pub(super) struct Capture<W: Write>(W);

impl Capture<BufWriter<File>> {
    /// Into a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Capture::new(BufWriter::new(File::create(path)?))
    }
}

impl<W: Write> Capture<W> {
    fn new(mut to: W) -> io::Result<Self> {
        let version = 2 | 4 << 16;
        for word in [MAGIC, version, 0, 0, LONGEST, ETHERNET] {
            to.write_all(&word.to_ne_bytes())?;
        }
        Ok(Self(to))
    }

    /// A frame that was on the wire at that tick.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn frame(&mut self, tick: u64, frame: &[u8]) -> io::Result<()> {
        let ns = tick * NS_PER_TICK;
        let length = frame.len() as u64;
        for word in [ns / 1_000_000_000, ns % 1_000_000_000, length, length] {
            // Seconds last until 2106.
            self.0
                .write_all(&u32::try_from(word).unwrap_or(u32::MAX).to_ne_bytes())?;
        }
        self.0.write_all(frame)
    }

    /// All of it is in the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_time_and_length() {
        let mut capture = Capture::new(Vec::new()).unwrap();
        capture.frame(123_456_789, &[7; 60]).unwrap();
        let bytes = capture.0;
        assert_eq!(bytes.len(), 24 + 16 + 60);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(20)), (MAGIC, 1));
        assert_eq!([24, 28, 32, 36].map(word), [1, 234_567_890, 60, 60]);
    }
}
