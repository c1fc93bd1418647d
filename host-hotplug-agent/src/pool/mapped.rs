//! Memory mapped from files: the pool's table, and RAM to clear.
#![expect(unsafe_code, reason = "mmap(2) of memory that other programs write too")]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::table::Words;

/// So many bytes are cleared at a time: a multiple of the largest page of device-DAX.
const WINDOW: u64 = 1 << 30;

/// A shared mapping, readable and writable.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is this value's, and is only reached by atomic words or through `&mut`.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// `len` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(file: &impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len / 8, "word {index} of {}", self.len / 8);
        // SAFETY: inside the mapping, which begins at a page; other programs access it by atomic words only.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast::<u64>().add(index)) }
    }

    fn clear(&mut self) {
        // SAFETY: the mapping's bytes. Whoever else has them mapped gets zeroes: that is what this is for.
        unsafe { self.start.as_ptr().write_bytes(0, self.len) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody borrows it any more.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::warn!("unmapping memory: {error}");
        }
    }
}

impl Words for Mapped {
    fn load(&self, index: usize) -> u64 {
        self.word(index).load(SeqCst)
    }

    fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, SeqCst);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        self.word(index).compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    fn fence(&self) {
        fence(SeqCst);
    }
}

/// Overwrites a part of a device-DAX device, or of a plain file, with zeroes. It is there for all who map it when this returns.
///
/// # Errors
/// If it cannot be mapped, or a plain file is shorter.
pub fn clear(path: &Path, offset: u64, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let kind = fs::metadata(path)?;
    if !kind.file_type().is_char_device() && offset.checked_add(len).is_none_or(|end| end > kind.len()) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut done = 0;
    while done < len {
        let part = (len - done).min(WINDOW);
        let size = usize::try_from(part).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Mapped::new(&file, offset + done, size)?.clear();
        done += part;
    }
    Ok(())
}
