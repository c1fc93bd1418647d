//! The guest that crosses, and what shows that it lives: a boot sector that counts the ticks of its timer in its RAM, which
//! is a piece of a file that stands for the pool.

use std::{
    fs::{self, File, Permissions},
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::{HANG, OFTEN, SHARED};

/// Its description for libvirt.
pub(super) const DOMAIN: &str = include_str!("../../../libvirt/domain.xml");
pub(super) const NAME: &str = "guest";
pub(super) const UUID: &str = "11111111-2222-4333-8444-555555555555";
/// Bytes of its RAM.
pub(super) const RAM: u64 = 64 << 20;
/// Where in the pool its piece begins: not where QEMU would begin by itself.
pub(super) const OFFSET: u64 = 32 << 20;
/// The file that stands for the pool, in the directory that hosts share.
pub(super) const POOL: &str = "pool";

/// Where it counts, four bytes.
const COUNTER: u64 = 0x8000;
/// xor ax,ax; mov ds,ax; mov dx,0x3f8; mov al,'l'; sti; 1: hlt; inc dword [0x8000]; out dx,al; jmp 1b
///
/// A guest that counted as fast as it can would come to its first number again within some seconds.
const BOOT_CODE: [u8; 19] = [
    0x31, 0xc0, 0x8e, 0xd8, 0xba, 0xf8, 0x03, 0xb0, SAYS, 0xfb, 0xf4, 0x66, 0xff, 0x06, 0x00, 0x80, 0xee, 0xeb, 0xf7,
];
/// What it says on its console when it has counted.
pub(super) const SAYS: u8 = b'l';
/// Bytes of a floppy disk, whose first sector the firmware starts.
const FLOPPY: usize = 1_474_560;
const SECTOR: usize = 512;

/// RAM that neither the boot sector touches nor the firmware, which has its tables in the uppermost 16 MiB and its own code
/// below. Something is in it: zeroes take no room in a stream.
const MARKED: Range<u64> = 8 << 20..40 << 20;

/// What it is booted from.
pub(super) fn floppy() -> Vec<u8> {
    let mut floppy = [BOOT_CODE.as_slice(), &[0; SECTOR - BOOT_CODE.len() - 2], &[0x55, 0xaa]].concat();
    floppy.resize(FLOPPY, 0);
    floppy
}

/// Where libvirt's hook says what the guest has of the pool, and the emulator looks.
pub(super) fn given_path() -> String {
    format!("run/locum/libvirt/{UUID}.json")
}

/// What it says. `crossing`: the guest is to come from another host.
pub(super) fn given(crossing: bool) -> Value {
    let device = format!("{SHARED}/{POOL}");
    json!({ "device": device, "offset": OFFSET, "size": RAM, "crossing": crossing })
}

/// What is marked, as it is there.
fn marks() -> Vec<u8> {
    let words = MARKED.step_by(8).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// The file that stands for the pool, seen from outside of all hosts.
pub(super) struct Pool(File);

impl Pool {
    /// A new one, with marks in the guest's piece.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        // QEMU is libvirt's user, who is not root.
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        file.set_len(OFFSET + 2 * RAM)?;
        file.write_all_at(&marks(), OFFSET + MARKED.start)?;
        Ok(Self(file))
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
        self.0.read_exact_at(&mut bytes, OFFSET + range.start)?;
        Ok(bytes)
    }

    /// How far the guest has counted.
    pub(super) fn counter(&self) -> Result<u32> {
        let bytes = self.read(COUNTER..COUNTER + 4)?;
        Ok(bytes.try_into().map(u32::from_le_bytes).unwrap_or_default())
    }

    /// What it has counted to when it goes on.
    pub(super) fn counts(&self) -> Result<u32> {
        let (before, begin) = (self.counter()?, Instant::now());
        while begin.elapsed() < HANG {
            let now = self.counter()?;
            if now != before {
                return Ok(now);
            }
            thread::sleep(OFTEN);
        }
        ensure!(before > 0, "the guest does not begin to count in its piece of the pool");
        bail!("the guest stands still at {before}")
    }

    /// The guest's RAM is its own, as far as it is marked.
    pub(super) fn is_marked(&self) -> Result<()> {
        ensure!(self.read(MARKED)? == marks(), "the guest's RAM is not what it was");
        Ok(())
    }

    /// Zeroes where the guest's RAM is.
    pub(super) fn wipe(&self) -> Result<()> {
        self.0
            .write_all_at(&vec![0; usize::try_from(RAM)?], OFFSET)
            .context("wiping the pool")
    }

    /// Does some work while the guest counts; returns what came of it, and how long the guest stood still at most.
    ///
    /// # Errors
    /// It went back.
    pub(super) fn watched<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Duration)> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| self.watch(&done));
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            let still = watch.join().map_err(|_| anyhow!("the watch has panicked"))??;
            Ok((outcome, still))
        })
    }

    fn watch(&self, done: &AtomicBool) -> Result<Duration> {
        let mut still = Still::new(self.counter()?, Instant::now());
        while !done.load(Ordering::Relaxed) {
            still.look(self.counter()?, Instant::now())?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(still.longest)
    }
}

/// For how long a counter stood still.
struct Still {
    last: u32,
    since: Instant,
    longest: Duration,
}

impl Still {
    fn new(counter: u32, now: Instant) -> Self {
        Self {
            last: counter,
            since: now,
            longest: Duration::ZERO,
        }
    }

    fn look(&mut self, counter: u32, now: Instant) -> Result<()> {
        ensure!(
            counter >= self.last,
            "the guest went back from {} to {counter}",
            self.last
        );
        self.longest = self.longest.max(now - self.since);
        if counter != self.last {
            (self.last, self.since) = (counter, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_finds_a_boot_sector() {
        let floppy = floppy();
        assert_eq!(floppy.len(), FLOPPY);
        assert!(floppy.starts_with(&BOOT_CODE));
        assert_eq!(floppy[510..512], [0x55, 0xaa]);
        // It jumps back to its HLT.
        let [.., jump] = BOOT_CODE;
        let end = BOOT_CODE.len();
        assert_eq!(
            BOOT_CODE[end.checked_add_signed(i8::from_le_bytes([jump]).into()).unwrap()],
            0xf4
        );
    }

    #[test]
    fn the_domain_is_the_one_that_is_given_its_piece() {
        for word in [
            format!("<name>{NAME}</name>"),
            format!("<uuid>{UUID}</uuid>"),
            format!("<memory unit='MiB'>{}</memory>", RAM >> 20),
        ] {
            assert!(DOMAIN.contains(&word), "{word}");
        }
    }

    #[test]
    fn a_piece_of_the_pool_is_marked_and_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(&dir.path().join("pool")).unwrap();
        pool.is_marked().unwrap();
        assert_eq!(pool.counter().unwrap(), 0);
        pool.0.write_all_at(&7u32.to_le_bytes(), OFFSET + COUNTER).unwrap();
        assert_eq!(pool.counter().unwrap(), 7);
        pool.0.write_all_at(&[1], OFFSET + RAM).unwrap();
        pool.wipe().unwrap();
        assert_eq!(pool.counter().unwrap(), 0);
        assert!(pool.is_marked().is_err());
        assert_eq!(pool.read(RAM..RAM + 1).unwrap(), [1], "the next piece is another's");
    }

    #[test]
    fn the_longest_standstill_is_told_and_a_step_back_is_an_error() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut still = Still::new(5, begin);
        for (counter, milliseconds) in [(5, 10), (6, 20), (6, 90), (7, 100), (8, 110)] {
            still.look(counter, at(milliseconds)).unwrap();
        }
        assert_eq!(still.longest, Duration::from_millis(80));
        assert!(still.look(7, at(120)).is_err());
    }
}
