//! A dead kernel's log, found in its memory.
//!
//! Since Linux 5.10 the texts of the log lie one behind the other in a ring (`kernel/printk/printk_ringbuffer.c`): each has
//! the 8 bytes of its record's number before it, is padded to 8 bytes, and the next record has the next number. So from the
//! first line that every kernel prints all others are found, without symbols or debug information, and however early it died.
//! The kernel may have begun in a static ring and gone on in a larger one: the longer of two is the log. Times and levels are
//! elsewhere. If the first line has been overwritten, nothing is found.

use firmware_shim::PhysMem;
use memchr::memmem;
use partitioner::MemRange;

/// How the first line begins (`linux_banner` in `init/version-timestamp.c`).
const BANNER: &[u8] = b"Linux version ";
/// So much is looked through at a time.
const WINDOW: u64 = 1 << 20;
/// Numbers have two bits less than a word (`DESC_FLAGS_MASK`).
const NUMBERS: u64 = !0 >> 2;
/// Records without text have no place in the ring, but a number: at most so many in a row.
const GAP: u64 = 64;
/// Longer than any record (`LOG_LINE_MAX`, and what a device's name or a backtrace adds).
const RECORD: u64 = 8 << 10;
/// Longer than any ring that is not the operator's own choice.
const RING: u64 = 16 << 20;

/// The log in that memory; `None` if there is none.
pub fn find(memory: &dyn PhysMem, ranges: &[MemRange]) -> Option<String> {
    let mut longest: Option<Vec<Vec<u8>>> = None;
    let finder = memmem::Finder::new(BANNER);
    let mut window = vec![0; WINDOW as usize + BANNER.len()];
    for range in ranges {
        let mut at = range.start();
        while at < range.end() {
            // What begins in this window may end in the next.
            let len = (range.end() - at).min(window.len() as u64) as usize;
            let bytes = window.get_mut(..len).unwrap_or_default();
            if memory.read(at, bytes).is_ok() {
                for found in finder.find_iter(bytes) {
                    let lines = follow(memory, *range, at + found as u64);
                    if lines.len() > longest.as_ref().map_or(1, Vec::len) {
                        longest = Some(lines);
                    }
                }
            }
            at += WINDOW;
        }
    }
    let lines = longest?;
    let text: Vec<String> = lines
        .iter()
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    Some(text.join("\n") + "\n")
}

/// The texts from a first one on. No more than that if it is not in a ring.
fn follow(memory: &dyn PhysMem, range: MemRange, text: u64) -> Vec<Vec<u8>> {
    let ring = Ring { memory, range };
    let mut lines = Vec::new();
    let end = text.saturating_add(RING).min(range.end());
    let mut at = text;
    let Some(mut number) = text
        .checked_sub(8)
        .filter(|at| at % 8 == 0)
        .and_then(|at| ring.word(at))
    else {
        return lines;
    };
    while at < end {
        let next = ring.next(at, number);
        let stop = next.map_or((at + RECORD).min(end), |(at, _)| at);
        lines.extend(ring.text(at, stop, next.is_some()));
        let Some((place, found)) = next else {
            break;
        };
        (at, number) = (place + 8, found);
    }
    lines
}

struct Ring<'a> {
    memory: &'a dyn PhysMem,
    range: MemRange,
}

impl Ring<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let inside = at >= self.range.start() && at.checked_add(8)? <= self.range.end();
        (inside && self.memory.read(at, &mut bytes).is_ok()).then(|| u64::from_le_bytes(bytes))
    }

    /// The record that follows the text at `at`, of the record `number`: where it begins, and its number.
    fn next(&self, at: u64, number: u64) -> Option<(u64, u64)> {
        let mut bytes = vec![0; RECORD.min(self.range.end().saturating_sub(at)) as usize];
        self.memory.read(at, &mut bytes).ok()?;
        let words = bytes.chunks_exact(8).enumerate().skip(1);
        words
            .filter_map(|(index, word)| {
                let found = u64::from_le_bytes(word.try_into().ok()?);
                let ahead = found.wrapping_sub(number) & NUMBERS;
                let is_number = found <= NUMBERS && (1..=GAP).contains(&ahead);
                is_number.then_some((at + 8 * index as u64, found))
            })
            .next()
    }

    /// The text from `at` to `stop`, without what pads it.
    fn text(&self, at: u64, stop: u64, followed: bool) -> Option<Vec<u8>> {
        let mut bytes = vec![0; stop.saturating_sub(at) as usize];
        self.memory.read(at, &mut bytes).ok()?;
        let zero = bytes.iter().position(|byte| *byte == 0);
        if let Some(zero) = zero {
            bytes.truncate(zero);
        } else if !followed {
            return None;
        }
        Some(trimmed(bytes))
    }
}

/// A text as it is read: `printk_sprint()` has written it with its level, two bytes, before it and a newline behind it, and
/// moved it to the front. So its last two bytes are there twice, and the newline behind them; behind a text that was continued
/// is a level (`KERN_SOH`, 1).
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(level) = bytes.iter().position(|byte| *byte == 1) {
        bytes.truncate(level);
    }
    if bytes.last() != Some(&b'\n') {
        return bytes;
    }
    bytes.pop();
    let moved = bytes.rchunks_exact(2).take(2).collect::<Vec<_>>();
    if let [last, before] = moved.as_slice()
        && last == before
    {
        bytes.truncate(bytes.len() - 2);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_shim::Pieces;

    const BASE: u64 = 0x4800_0000;

    /// A ring as Linux fills it: texts with their numbers from `first` on; "" is a record without text.
    fn ring(first: u64, texts: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, text) in (0..).zip(texts).filter(|(_, text)| !text.is_empty()) {
            bytes.extend((first.wrapping_add(index) & NUMBERS).to_le_bytes());
            // With its level and a newline, moved to the front.
            let start = bytes.len();
            bytes.extend(b"\x016");
            bytes.extend(text.as_bytes());
            bytes.push(b'\n');
            bytes.copy_within(start + 2..start + 2 + text.len(), start);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn found(pieces: &[(u64, &[u8])]) -> Option<String> {
        let mut memory = vec![0; 3 << 20];
        for (at, bytes) in pieces {
            let at = *at as usize;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let range = MemRange::with_len(BASE, memory.len() as u64).unwrap();
        find(&Pieces(&[(BASE, &memory)]), &[range])
    }

    /// The first number of a ring of 2^13 records (`DESC0_ID`): they wrap around to 0.
    const FIRST: u64 = NUMBERS - 8191;
    const LINES: [&str; 5] = [
        "Linux version 6.12.107+deb13-amd64 (debian-kernel@lists.debian.org)",
        "Command line: console=ttyS1",
        "",
        "Kernel panic - not syncing: VFS: Unable to mount root fs on \"\" or unknown-block(0,0)",
        "12345678",
    ];

    #[test]
    fn the_texts_come_in_order_from_the_first_line_on() {
        for first in [FIRST, NUMBERS - 2, 7] {
            let ring = ring(first, &LINES);
            let text = found(&[(0x1_2340, &ring)]).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines, [LINES[0], LINES[1], LINES[3], LINES[4]], "{first:#x}");
        }
    }

    #[test]
    fn what_printing_leaves_behind_a_text_is_cut_off() {
        for (left, text) in [
            (&b"x---\n"[..], &b"x---"[..]),
            (b"one two\n", b"one two"),
            (b"usable\x01c", b"usable"),
            (b"]-----\n", b"]---"),
            (b"a\n", b"a"),
            (b"\n", b""),
        ] {
            assert_eq!(trimmed(left.to_vec()), text);
        }
    }

    #[test]
    fn the_longer_of_two_rings_is_the_log() {
        let early = ring(FIRST, &LINES[..2]);
        let late = ring(FIRST + 100, &LINES);
        for (one, two) in [(0x1000, 0x2f_0000), (0x2f_0000, 0x1000)] {
            let text = found(&[(one, &early), (two, &late)]).unwrap();
            assert_eq!(text.lines().count(), 4);
        }
    }

    #[test]
    fn one_across_two_windows_is_found() {
        for shift in (0..=48).step_by(8) {
            let text = found(&[((1 << 20) - shift, &ring(FIRST, &LINES))]).unwrap();
            assert_eq!(text.lines().count(), 4, "{shift}");
        }
    }

    #[test]
    fn a_banner_that_is_in_no_ring_is_none() {
        assert_eq!(found(&[]), None);
        // As in the kernel's image, and in a program that prints it.
        assert_eq!(
            found(&[(0x2003, LINES[0].as_bytes()), (0x3008, LINES[0].as_bytes())]),
            None
        );
        let mut torn = ring(FIRST, &LINES);
        torn[80..].fill(0xff);
        assert_eq!(found(&[(0x1000, &torn)]), None);
        // At the very end, and cut off.
        let ring = ring(FIRST, &LINES);
        let cut = &ring[..100];
        let text = found(&[((3 << 20) - 100, cut)]);
        assert!(text.is_none_or(|text| text.starts_with("Linux version 6.12")));
    }
}
