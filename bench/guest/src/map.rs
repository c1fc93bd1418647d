//! Memory that is shared with somebody else: a guest's pages, or the pool as a host sees it.
//!
//! The other side writes at any time, so the memory is only ever seen as atomics, or copied in and out by bytes.
#![expect(unsafe_code, reason = "mmap, and views of memory that others write")]

use crate::beat::{PAGE_BYTES, PageWords};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::path::Path;
use std::ptr::NonNull;

/// A device-DAX mapping must be aligned to its page size (drivers/dax/device.c, `check_vma`): 2 MiB in the pool.
pub const ALIGNMENT: u64 = 2 << 20;

/// Mapped memory, unmapped when dropped.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is owned, and all access to it is atomic or by copying bytes.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps `[offset, offset + length)` of a file or device-DAX; to its end without `length`.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or the range is misaligned or beyond its end.
    pub fn file(path: &Path, offset: u64, length: Option<u64>, write: bool) -> Result<Self> {
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).with_context(|| {
            format!(
                "cannot open {}: run pool-up.sh first, or name another file",
                path.display()
            )
        })?;
        let stat = rustix::fs::fstat(&fd)?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        let size = if is_device {
            device_size(stat.st_rdev)?
        } else {
            stat.st_size.unsigned_abs()
        };
        let length = length.unwrap_or(size.saturating_sub(offset));
        let end = offset.checked_add(length).context("offset + length overflows")?;
        ensure!(
            length > 0 && end <= size,
            "{offset:#x}+{length:#x} is not inside {} of {size:#x} bytes",
            path.display()
        );
        let unit = if is_device { ALIGNMENT } else { PAGE_BYTES as u64 };
        ensure!(
            offset.is_multiple_of(unit) && length.is_multiple_of(unit),
            "{offset:#x}+{length:#x}: offset and length must be multiples of {unit:#x}"
        );
        let protection = if write {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        let length = usize::try_from(length)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in this process.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &fd, offset) }
            .with_context(|| format!("cannot map {offset:#x}+{length:#x} of {}", path.display()))?;
        Self::new(base.cast(), length)
    }

    /// Maps physical memory that Linux does not use as RAM, through `/dev/mem`, uncached where it is a device.
    ///
    /// # Errors
    /// Not root, or the kernel does not allow it: where a driver has claimed the range it wants `iomem=relaxed`.
    pub fn physical(address: u64, length: usize) -> Result<Self> {
        let fd = rustix::fs::open("/dev/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("cannot open /dev/mem: run as root")?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in this process.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                address,
            )
        }
        .with_context(|| format!("cannot map physical {address:#x}+{length:#x}: boot with iomem=relaxed"))?;
        Self::new(base.cast(), length)
    }

    /// Fresh zeroed memory that stays where it is: shared, so that no huge page is made of it later, and locked.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn locked(length: usize) -> Result<Self> {
        let shared = Self::anonymous(length, MapFlags::SHARED | MapFlags::POPULATE)?;
        // SAFETY: exactly the mapping made above.
        unsafe { rustix::mm::mlock(shared.base.as_ptr().cast(), length) }.context("cannot lock memory")?;
        Ok(shared)
    }

    /// Fresh zeroed private memory, given page by page as it is touched.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn private(length: usize) -> Result<Self> {
        Self::anonymous(length, MapFlags::PRIVATE | MapFlags::NORESERVE)
    }

    fn anonymous(length: usize, flags: MapFlags) -> Result<Self> {
        ensure!(
            length > 0 && length.is_multiple_of(PAGE_BYTES),
            "{length:#x} is not a whole number of pages"
        );
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
        }
        .with_context(|| format!("cannot get {length:#x} bytes: give the guest more memory or a smaller buffer"))?;
        Self::new(base.cast(), length)
    }

    fn new(base: *mut u8, length: usize) -> Result<Self> {
        let base = NonNull::new(base).context("mmap returned address 0")?;
        Ok(Shared { base, length })
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes: never, since it cannot be made so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Address of the first byte in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The memory as pages of atomic words.
    #[must_use]
    pub fn pages(&self) -> &[PageWords] {
        // SAFETY: the mapping is page aligned, lives as long as self, and holds this many pages. Loads from a read-only
        // mapping are fine; this process stores to pages of a mapping it made writable only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.length / PAGE_BYTES) }
    }

    /// Loads the first 32 bits, as one access of that size: what a device wants. 0 from less memory than that.
    #[must_use]
    pub fn first_u32(&self) -> u32 {
        if self.length < 4 {
            return 0;
        }
        // SAFETY: the mapping is page aligned, lives as long as self and has these bytes.
        unsafe { std::ptr::read_volatile(self.base.as_ptr().cast()) }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// The range is not inside the memory.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let from = self.range(offset, to.len())?;
        // SAFETY: `range` checked the bounds, and `to` is memory of this process.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies bytes in. The memory must have been mapped writable.
    ///
    /// # Errors
    /// The range is not inside the memory.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        let to = self.range(offset, from.len())?;
        // SAFETY: `range` checked the bounds, and `from` is memory of this process.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn range(&self, offset: u64, length: usize) -> Result<*mut u8> {
        let start = usize::try_from(offset)?;
        match start.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.base.as_ptr().wrapping_add(start)),
            _ => bail!("{offset:#x}+{length:#x} is not inside {:#x} bytes", self.length),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; borrows of it cannot outlive self. An error is impossible for a whole
        // mapping.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A character device has no size of its own; DAX says it in sysfs.
fn device_size(device: u64) -> Result<u64> {
    let path = format!(
        "/sys/dev/char/{}:{}/size",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path}: not a DAX device; mount sysfs"))?;
    text.trim().parse().with_context(|| format!("{path}: not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    #[cfg_attr(miri, ignore = "maps memory")]
    fn bytes_and_words_are_the_same_memory() {
        let shared = Shared::private(8192).expect("8 KiB");
        shared.write_at(4096, &7u64.to_le_bytes()).expect("inside");
        assert_eq!(shared.pages()[1][0].load(Ordering::Relaxed), 7);
        let mut byte = [0];
        shared.read_at(4096, &mut byte).expect("inside");
        assert_eq!(byte, [7]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory")]
    fn nothing_outside_is_touched() {
        let shared = Shared::private(4096).expect("4 KiB");
        for offset in [4096, 4095, u64::MAX] {
            assert!(shared.write_at(offset, &[0; 2]).is_err());
            assert!(shared.read_at(offset, &mut [0; 2]).is_err());
        }
        assert!(Shared::private(4095).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps memory")]
    fn a_file_is_mapped_within_its_size_only() {
        let path = std::env::temp_dir().join(format!("lab-guest-map-{}", std::process::id()));
        std::fs::write(&path, vec![1; 3 * 4096]).expect("temporary file");
        assert_eq!(Shared::file(&path, 4096, None, false).expect("two pages").len(), 8192);
        assert!(Shared::file(&path, 4096, Some(3 * 4096), false).is_err());
        assert!(Shared::file(&path, 100, Some(4096), false).is_err());
        assert!(Shared::file(&path, u64::MAX, Some(4096), false).is_err());
        std::fs::remove_file(&path).expect("made above");
        assert!(Shared::file(&path, 0, None, false).is_err());
    }
}
