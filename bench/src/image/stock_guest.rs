//! `g3`: a guest that nobody here made. Debian as it is installed in a virtual machine, with its own kernel and
//! initramfs, systemd and a web server; `bench/guest/stock/setup.sh` has all that was set in it.
//!
//! Its disk is what a data centre has: storage on the network. The lab serves a copy of it over NBD, and a host reaches
//! the lab through its network card, which the emulator connects to this machine.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Context, Result};
use lab_guest::{map::Shared, nbd};

use super::ext4;
use crate::debian::root::Root;

/// Its name.
pub(crate) const NAME: &str = "g3";
/// Size of its disk in MiB: what is in it, and half of it free.
const DISK: u64 = 640;
/// Pages of its file that the lab knows again, and what each begins with (`bench/guest/stock/setup.sh`).
pub(crate) const KEPT: u64 = 256;
const MARK: &[u8] = b"kept page ";
/// Bytes of a sector, where pages of a file may begin.
const SECTOR: usize = 512;

/// The guest as it was installed.
#[derive(Debug, Clone)]
pub(crate) struct StockGuest {
    root: Root,
    disk: PathBuf,
}

impl StockGuest {
    /// Installs it, unless it is cached.
    ///
    /// # Errors
    /// It cannot be fetched, or its disk cannot be made.
    pub(crate) fn get() -> Result<Self> {
        let root = Root::guest()?;
        let disk = root.derived("disk.ext4", (DISK, NAME), |part| make_disk(&root, part))?;
        Ok(Self { root, disk })
    }

    /// Its kernel.
    ///
    /// # Errors
    /// It has none, or several.
    pub(crate) fn kernel(&self) -> Result<PathBuf> {
        self.boot_file("vmlinuz-")
    }

    /// Its initramfs.
    ///
    /// # Errors
    /// As [`StockGuest::kernel`].
    pub(crate) fn initrd(&self) -> Result<PathBuf> {
        self.boot_file("initrd.img-")
    }

    fn boot_file(&self, prefix: &str) -> Result<PathBuf> {
        let dir = self.root.path("boot");
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with(prefix) {
                files.push(path);
            }
        }
        match files.as_slice() {
            [file] => Ok(file.clone()),
            _ => anyhow::bail!("{} has not one {prefix}*: {files:?}", dir.display()),
        }
    }
}

fn make_disk(root: &Root, disk: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(DISK << 20)?;
    ext4::make(root, root.dir(), disk, NAME, None)
}

/// A copy of the guest's disk, served over NBD to whoever connects for as long as the lab runs.
#[derive(Debug)]
pub(crate) struct Disk {
    port: u16,
    file: PathBuf,
    store: Arc<Watched>,
}

/// A disk on which reads of [`KEPT`] pages are counted.
#[derive(Debug)]
struct Watched {
    disk: Shared,
    kept: AtomicU64,
}

impl nbd::Store for Watched {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.disk.read(offset, to)?;
        self.kept.fetch_add(kept(to), Relaxed);
        Ok(())
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.disk.write(offset, from)
    }
}

fn kept(bytes: &[u8]) -> u64 {
    bytes.chunks(SECTOR).filter(|sector| sector.starts_with(MARK)).count() as u64
}

impl Disk {
    /// Serves a fresh copy in `dir`; connections are noted in `disk.log` there.
    ///
    /// # Errors
    /// The copy or the listening socket cannot be made.
    pub(crate) fn serve(guest: &StockGuest, dir: &Path) -> Result<Self> {
        let file = dir.join("disk.ext4");
        fs::copy(&guest.disk, &file).context("copying the stock guest's disk")?;
        let store = Arc::new(Watched {
            disk: Shared::file(&file, 0, None, true)?,
            kept: AtomicU64::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let log = Arc::new(fs::File::create(dir.join("disk.log"))?);
        let served = Arc::clone(&store);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (store, log) = (Arc::clone(&served), Arc::clone(&log));
                thread::spawn(move || {
                    // Nobody reads the log but in the search for a fault.
                    let _ = writeln!(&*log, "connection {number} begins");
                    let _ = stream.set_nodelay(true);
                    let end = nbd::serve(stream, &*store);
                    let _ = writeln!(&*log, "connection {number} ends: {end:?}");
                });
            }
        });
        Ok(Self { port, file, store })
    }

    /// How many of the [`KEPT`] pages were read so far, each as often as it was.
    #[must_use]
    pub(crate) fn kept_pages_read(&self) -> u64 {
        self.store.kept.load(Relaxed)
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Large, and made anew each time.
        let _ = fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_known_by_their_first_words() {
        let page = |number: u32| format!("kept page {number:<4085}\n");
        assert_eq!(page(7).len(), 4096);
        let bytes = format!("{}{}{}", " ".repeat(512), page(1), page(256));
        assert_eq!(kept(bytes.as_bytes()), 2);
        assert_eq!(kept(b""), 0);
    }
}
