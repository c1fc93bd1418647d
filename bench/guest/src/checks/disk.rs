//! The thread that uses the guest's disk: writes blocks, reads them back and compares, past all caches.

use super::guest::Guest;
use super::pace::sleep;
use crate::beat::{DISK_BLOCKS, Fault, Tally};
use crate::pattern::Pattern;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const BLOCK: usize = 4096;
/// Distinguishes blocks from pages of the buffer.
const DISK: u64 = 0x6469_736b;

/// O_DIRECT wants aligned memory.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

pub(super) struct Disk {
    file: File,
}

impl Disk {
    /// Opens the first virtio disk, if the guest has one.
    pub(super) fn find() -> Option<Self> {
        let flags = libc::O_DIRECT | libc::O_DSYNC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open("/dev/vda")
            .ok()?;
        Some(Disk { file })
    }

    /// With every `step`th block from `first` on. Never returns.
    pub(super) fn work(&self, guest: &Guest<'_>, first: u64, step: u64) -> ! {
        let mut block = Box::new(Block([0; BLOCK]));
        let pattern = |number, generation| Pattern {
            seed: guest.seed ^ DISK,
            page: number,
            generation,
        };
        // Generation 0 is a block never written.
        let mut generations = [0u32; DISK_BLOCKS as usize];
        loop {
            let own = (0..)
                .zip(&mut generations)
                .filter(|(number, _)| u64::from(*number) % step == first);
            for (number, generation) in own {
                let offset = u64::from(number) * BLOCK as u64;
                if *generation > 0 {
                    match self.file.read_exact_at(&mut block.0, offset) {
                        Ok(()) => compare(guest, offset, pattern(number, *generation), &block.0),
                        Err(error) => refused(guest, offset, &error),
                    }
                }
                *generation += 1;
                block.0.copy_from_slice(&pattern(number, *generation).bytes(BLOCK));
                if let Err(error) = self.file.write_all_at(&block.0, offset) {
                    refused(guest, offset, &error);
                }
                guest.page.beat();
                sleep(guest, guest.params.io_ms * 1_000_000);
            }
        }
    }
}

fn compare(guest: &Guest<'_>, offset: u64, pattern: Pattern, found: &[u8]) {
    if let Some(at) = pattern.first_difference(found, BLOCK) {
        let byte = |bytes: &[u8]| bytes.get(at).copied().map_or(0, u64::from);
        guest.fault(
            Fault::DiskCorrupt,
            offset + at as u64,
            byte(&pattern.bytes(BLOCK)),
            byte(found),
        );
    }
    guest.page.add(Tally::DiskBlocks, 1);
}

fn refused(guest: &Guest<'_>, offset: u64, error: &std::io::Error) {
    guest.fault(
        Fault::DiskError,
        offset,
        0,
        error.raw_os_error().map_or(0, |e| u64::from(e.unsigned_abs())),
    );
}
