//! The pattern of a page, which the guest can derive again: any other content is a fault.
//!
//! A page holds its number and generation in word 0 and a sequence drawn from both in the others. The expected
//! generation is kept elsewhere, so a page that went back to an earlier state of itself, though whole, is seen as
//! stale. The sequence is a 64-bit linear congruential one: two instructions a word, which an emulator can afford.

use crate::beat::{PAGE_WORDS, PageWords};
use std::sync::atomic::Ordering;

/// Why a page is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The page is whole, but of this other generation: a write was lost.
    Stale(u32),
    /// A word is wrong.
    Corrupt {
        /// Index of the first wrong word.
        word: usize,
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
}

/// What a page should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// Distinguishes guests, disks and boots.
    pub seed: u64,
    /// Number of the page.
    pub page: u32,
    /// Number of times it was written.
    pub generation: u32,
}

impl Pattern {
    /// Writes the pattern.
    pub(crate) fn fill(&self, words: &PageWords) {
        let mut value = self.start();
        words[0].store(self.title(), Ordering::Relaxed);
        for word in &words[1..] {
            value = next(value);
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Compares a page with the pattern.
    ///
    /// # Errors
    /// The [`Damage`] found.
    pub(crate) fn verify(&self, words: &PageWords) -> Result<(), Damage> {
        self.compare(words).map_err(|damage| {
            let title = words[0].load(Ordering::Relaxed);
            let earlier = Pattern {
                generation: title as u32,
                ..*self
            };
            if earlier != *self && earlier.compare(words).is_ok() {
                return Damage::Stale(earlier.generation);
            }
            damage
        })
    }

    fn compare(&self, words: &PageWords) -> Result<(), Damage> {
        let mut expected = self.title();
        let mut value = self.start();
        for (word, cell) in words.iter().enumerate() {
            let found = cell.load(Ordering::Relaxed);
            if found != expected {
                return Err(Damage::Corrupt { word, expected, found });
            }
            value = next(value);
            expected = value;
        }
        Ok(())
    }

    /// The pattern as bytes, for disks and datagrams.
    #[must_use]
    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut value = self.start();
        let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
        let mut expected = self.title();
        while bytes.len() < length {
            bytes.extend_from_slice(&expected.to_le_bytes());
            value = next(value);
            expected = value;
        }
        bytes.truncate(length);
        bytes
    }

    /// Compares bytes with [`Pattern::bytes`]; the offset of the first byte that differs, or of the shorter end.
    #[must_use]
    pub(crate) fn first_difference(&self, bytes: &[u8], length: usize) -> Option<usize> {
        let expected = self.bytes(length);
        let differs = expected.iter().zip(bytes).position(|(a, b)| a != b);
        differs.or_else(|| (bytes.len() != length).then_some(bytes.len().min(length)))
    }

    fn title(&self) -> u64 {
        u64::from(self.page) << 32 | u64::from(self.generation)
    }

    fn start(&self) -> u64 {
        // The finaliser of splitmix64: neighbouring pages and generations get unrelated sequences.
        let mut z = self.seed ^ self.title().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Knuth's MMIX multiplier and increment.
const fn next(value: u64) -> u64 {
    value
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}

const _: () = assert!(PAGE_WORDS > 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::blank_page;

    const P: Pattern = Pattern {
        seed: 1,
        page: 2,
        generation: 3,
    };

    #[test]
    fn what_was_filled_verifies() {
        let page = blank_page();
        P.fill(&page);
        assert_eq!(P.verify(&page), Ok(()));
    }

    #[test]
    fn every_single_flipped_bit_is_seen() {
        let page = blank_page();
        P.fill(&page);
        for word in 0..PAGE_WORDS {
            let bit = 1 << (word % 64);
            page[word].fetch_xor(bit, Ordering::Relaxed);
            assert!(
                matches!(P.verify(&page), Err(Damage::Corrupt { word: w, .. }) if w == word),
                "word {word}"
            );
            page[word].fetch_xor(bit, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_lost_write_is_stale_and_a_torn_one_is_corrupt() {
        let page = blank_page();
        Pattern { generation: 2, ..P }.fill(&page);
        assert_eq!(P.verify(&page), Err(Damage::Stale(2)));
        let newer = blank_page();
        P.fill(&newer);
        for word in 0..PAGE_WORDS / 2 {
            page[word].store(newer[word].load(Ordering::Relaxed), Ordering::Relaxed);
        }
        assert!(matches!(P.verify(&page), Err(Damage::Corrupt { word: 256, .. })));
    }

    #[test]
    fn the_page_of_another_guest_or_place_is_corrupt() {
        let page = blank_page();
        Pattern { seed: 2, ..P }.fill(&page);
        assert!(matches!(P.verify(&page), Err(Damage::Corrupt { word: 1, .. })));
        Pattern { page: 1, ..P }.fill(&page);
        assert!(matches!(P.verify(&page), Err(Damage::Corrupt { word: 0, .. })));
    }

    #[test]
    fn bytes_are_the_words_and_differences_are_found() {
        let page = blank_page();
        P.fill(&page);
        let words: Vec<u8> = page
            .iter()
            .flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        assert_eq!(P.bytes(4096), words);
        let mut bytes = P.bytes(100);
        assert_eq!(P.first_difference(&bytes, 100), None);
        assert_eq!(P.first_difference(&bytes[..60], 100), Some(60));
        bytes[77] ^= 4;
        assert_eq!(P.first_difference(&bytes, 100), Some(77));
    }
}
