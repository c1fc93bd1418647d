//! The beat page: one page of guest memory in which a guest says that it lives and what it checked.
//!
//! All words are 64-bit and atomic: vCPUs write them at the same time, and a host reads them through its own mapping of
//! the same physical page. The header (words 0 to 15) is written once and sealed by a checksum, so that a scan of the
//! pool does not take stray bytes for a page.

mod kinds;

pub(crate) use kinds::{Fault, Tally};

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words of a page.
pub(crate) const PAGE_WORDS: usize = 512;
/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = PAGE_WORDS * 8;
/// The words of one page, as both sides share them.
pub(crate) type PageWords = [AtomicU64; PAGE_WORDS];

/// Raised when the layout changes.
pub(crate) const REVISION: u64 = 1;
const MAGIC: [u8; 32] = *b"locum lab: a guest's beat page\n\0";
/// Blocks of its disk that a guest uses: few, so that soon after a handover all that was written before it has been read
/// again.
pub(crate) const DISK_BLOCKS: u64 = 32;
/// Longest name of a guest, in bytes.
pub(crate) const NAME_BYTES: usize = 32;

mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const NAME: usize = 4;
    pub(super) const REVISION: usize = 8;
    pub(super) const GPA: usize = 9;
    pub(super) const BOOT_ID: usize = 10;
    pub(super) const STARTED_NS: usize = 11;
    pub(super) const BUFFER_BYTES: usize = 12;
    pub(super) const HEADER_SUM: usize = 15;
    pub(super) const BEATS: usize = 16;
    pub(super) const RUNNING: usize = 17;
    pub(super) const SAMPLE_SEQUENCE: usize = 24;
    pub(super) const SAMPLE: usize = 25;
    pub(super) const FAULTS: usize = 40;
    pub(super) const TALLIES: usize = 64;
    pub(super) const FIRST_FAULT: usize = 96;
}

/// What never changes while a guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the guest, at most [`NAME_BYTES`] bytes.
    pub name: String,
    /// Guest-physical address of the page; 0 when unknown.
    pub gpa: u64,
    /// Random number of this boot: another one after a handover means that the guest rebooted.
    pub boot_id: u64,
    /// `CLOCK_REALTIME` at the start, in ns: of two pages with one name, the later is the live one.
    pub started_ns: u64,
    /// Size of the verified buffer, in bytes.
    pub buffer_bytes: u64,
}

/// The guest's clocks, read together at one beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The beat counter.
    pub beat: u64,
    /// The guest's TSC.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC`, in ns.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, in ns.
    pub realtime_ns: u64,
}

/// The first fault of a guest, with what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstFault {
    /// Which check failed.
    pub fault: Fault,
    /// Where: a byte offset into the buffer or disk, a register number, or a CPU, by kind.
    pub place: u64,
    /// The value expected.
    pub expected: u64,
    /// The value found.
    pub found: u64,
}

/// A view of a beat page, for the guest that writes it and for a host that reads it.
#[derive(Clone, Copy)]
pub struct BeatPage<'a> {
    words: &'a PageWords,
}

impl<'a> BeatPage<'a> {
    /// Writes the header of a new page and clears the rest. The seal comes last, so that a reader sees all or nothing.
    #[must_use]
    pub fn create(words: &'a PageWords, identity: &Identity) -> Self {
        let page = BeatPage { words };
        for word in words {
            word.store(0, Ordering::Relaxed);
        }
        page.put_bytes(word::MAGIC, &MAGIC);
        let mut name = [0; NAME_BYTES];
        for (to, from) in name.iter_mut().zip(identity.name.bytes()) {
            *to = from;
        }
        page.put_bytes(word::NAME, &name);
        page.put(word::REVISION, REVISION);
        page.put(word::GPA, identity.gpa);
        page.put(word::BOOT_ID, identity.boot_id);
        page.put(word::STARTED_NS, identity.started_ns);
        page.put(word::BUFFER_BYTES, identity.buffer_bytes);
        words[word::HEADER_SUM].store(page.header_sum(), Ordering::Release);
        page
    }

    /// Recognises a page by its magic, revision and seal.
    #[must_use]
    pub fn recognise(words: &'a PageWords) -> Option<Self> {
        let page = BeatPage { words };
        let starts = MAGIC
            .chunks_exact(8)
            .enumerate()
            .all(|(i, chunk)| page.get(word::MAGIC + i).to_le_bytes().as_slice() == chunk);
        let sealed = || words[word::HEADER_SUM].load(Ordering::Acquire) == page.header_sum();
        (starts && page.get(word::REVISION) == REVISION && sealed()).then_some(page)
    }

    /// Breaks the seal: from now on the page is not recognised.
    pub fn erase(&self) {
        self.put(word::MAGIC, 0);
    }

    /// Who wrote the page.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let mut name = Vec::with_capacity(NAME_BYTES);
        for i in 0..NAME_BYTES / 8 {
            name.extend_from_slice(&self.get(word::NAME + i).to_le_bytes());
        }
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES));
        Identity {
            name: String::from_utf8_lossy(&name).into_owned(),
            gpa: self.get(word::GPA),
            boot_id: self.get(word::BOOT_ID),
            started_ns: self.get(word::STARTED_NS),
            buffer_bytes: self.get(word::BUFFER_BYTES),
        }
    }

    /// The beat counter itself, which workers increment, also from assembly.
    #[must_use]
    pub fn beat_counter(&self) -> &'a AtomicU64 {
        &self.words[word::BEATS]
    }

    /// One beat.
    pub fn beat(&self) {
        self.beat_counter().fetch_add(1, Ordering::Relaxed);
    }

    /// Beats so far.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beat_counter().load(Ordering::Relaxed)
    }

    /// Says that the buffer is filled and every check runs.
    pub fn set_running(&self) {
        self.put(word::RUNNING, 1);
    }

    /// Whether every check runs.
    #[must_use]
    pub fn running(&self) -> bool {
        self.get(word::RUNNING) == 1
    }

    /// Publishes a sample. Only one thread of the guest may do so.
    pub fn publish(&self, sample: Sample) {
        let sequence = &self.words[word::SAMPLE_SEQUENCE];
        let before = sequence.load(Ordering::Relaxed);
        sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.put(word::SAMPLE, sample.beat);
        self.put(word::SAMPLE + 1, sample.tsc);
        self.put(word::SAMPLE + 2, sample.monotonic_ns);
        self.put(word::SAMPLE + 3, sample.realtime_ns);
        sequence.store(before.wrapping_add(2), Ordering::Release);
    }

    /// The latest sample, or `None` when the guest stays in the middle of writing it: a guest that was stopped there
    /// remains there, so the reader must not wait for it.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        for _ in 0..1000 {
            let before = self.words[word::SAMPLE_SEQUENCE].load(Ordering::Acquire);
            let sample = Sample {
                beat: self.get(word::SAMPLE),
                tsc: self.get(word::SAMPLE + 1),
                monotonic_ns: self.get(word::SAMPLE + 2),
                realtime_ns: self.get(word::SAMPLE + 3),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.get(word::SAMPLE_SEQUENCE) == before {
                return Some(sample);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Adds to a tally.
    pub fn add(&self, tally: Tally, amount: u64) {
        self.words[word::TALLIES + tally as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// Raises a tally to `value` if it is below.
    pub fn raise(&self, tally: Tally, value: u64) {
        self.words[word::TALLIES + tally as usize].fetch_max(value, Ordering::Relaxed);
    }

    /// The value of a tally.
    #[must_use]
    pub fn tally(&self, tally: Tally) -> u64 {
        self.get(word::TALLIES + tally as usize)
    }

    /// Counts a fault and keeps the details of the first.
    pub fn record(&self, fault: FirstFault) {
        self.words[word::FAULTS + fault.fault as usize].fetch_add(1, Ordering::Relaxed);
        let first = &self.words[word::FIRST_FAULT];
        let claim = first.compare_exchange(0, fault.fault as u64, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_ok() {
            self.put(word::FIRST_FAULT + 1, fault.place);
            self.put(word::FIRST_FAULT + 2, fault.expected);
            self.put(word::FIRST_FAULT + 3, fault.found);
        }
    }

    /// How often a fault was counted.
    #[must_use]
    pub fn count(&self, fault: Fault) -> u64 {
        self.get(word::FAULTS + fault as usize)
    }

    /// All faults together.
    #[must_use]
    pub fn faults(&self) -> u64 {
        Fault::ALL.iter().map(|&fault| self.count(fault)).sum()
    }

    /// The first fault, if there was any.
    #[must_use]
    pub fn first_fault(&self) -> Option<FirstFault> {
        let number = self.get(word::FIRST_FAULT);
        let fault = Fault::ALL.into_iter().find(|&fault| fault as u64 == number)?;
        Some(FirstFault {
            fault,
            place: self.get(word::FIRST_FAULT + 1),
            expected: self.get(word::FIRST_FAULT + 2),
            found: self.get(word::FIRST_FAULT + 3),
        })
    }

    fn get(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    fn put(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Relaxed);
    }

    fn put_bytes(&self, word: usize, bytes: &[u8; 32]) {
        for (i, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
            self.put(word + i, u64::from_le_bytes(*chunk));
        }
    }

    fn header_sum(&self) -> u64 {
        // FNV-1a over words: stray bytes must not pass, an adversary is not expected.
        (0..word::HEADER_SUM).fold(0xcbf2_9ce4_8422_2325, |sum, word| {
            (sum ^ self.get(word)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// A zeroed page.
#[cfg(test)]
pub(crate) fn blank_page() -> Box<PageWords> {
    Box::new([const { AtomicU64::new(0) }; PAGE_WORDS])
}

const _: () = {
    assert!(word::FAULTS + Fault::ALL.len() < word::TALLIES);
    assert!(word::TALLIES + Tally::ALL.len() <= word::FIRST_FAULT);
};

#[cfg(test)]
mod tests;
