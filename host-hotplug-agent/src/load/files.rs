//! The successor's files, read and checked before anything is changed.

use std::fs;
use std::path::Path;

use firmware_shim::linux::KernelImage;
use partitioner::BootSize;

use super::{cpio, initramfs};
use crate::config::Config;
use crate::error::Refusal;

/// Zeroes between two archives: a compressed one ends only where the next bytes cannot be a block of it.
const ARCHIVE_GAP: usize = 512;
/// Bytes that zero page and command line take at most.
pub const BOOT_PAGES: u64 = 4 * 4096;

/// Kernel and initramfs in memory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// All initramfs files one after the other, then the archive of carried files.
    pub initramfs: Vec<u8>,
}

impl Files {
    /// Reads and checks the files that `config`, which was read from `path`, names.
    ///
    /// # Errors
    /// [`Refusal::NoFile`], [`Refusal::BadFile`] or [`Refusal::NoCarry`].
    pub fn read(config: &Config, path: &Path) -> Result<Self, Refusal> {
        let read = |what, file: &Path| {
            fs::read(file).map_err(|error| Refusal::NoFile {
                what,
                path: file.to_owned(),
                error,
                config: path.to_owned(),
            })
        };
        let bad = |what, file: &Path, problem: String| Refusal::BadFile {
            what,
            path: file.to_owned(),
            problem,
        };
        let kernel = read("kernel", &config.kernel)?;
        KernelImage::parse(&kernel).map_err(|error| bad("kernel", &config.kernel, error.to_string()))?;
        let mut all = Vec::new();
        for file in config.initramfs.as_slice() {
            let bytes = read("initramfs", file)?;
            initramfs::check(&bytes).map_err(|problem| bad("initramfs", file, problem))?;
            append(&mut all, bytes);
        }
        if !config.carry.is_empty() {
            append(&mut all, cpio::pack(&config.carry)?);
        }
        Ok(Self { kernel, initramfs: all })
    }

    /// What must lie in one range of the successor's memory.
    pub fn boot_size(&self) -> BootSize {
        let kernel = KernelImage::parse(&self.kernel).ok();
        BootSize {
            kernel_init: kernel.map_or(0, |kernel| kernel.init_size()),
            kernel_align: kernel.map_or(1, |kernel| kernel.alignment()),
            initramfs: self.initramfs.len() as u64,
            tables: BOOT_PAGES,
        }
    }
}

fn append(all: &mut Vec<u8>, archive: Vec<u8>) {
    if all.is_empty() {
        *all = archive;
    } else {
        all.resize((all.len() + ARCHIVE_GAP).next_multiple_of(ARCHIVE_GAP), 0);
        all.extend_from_slice(&archive);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cpus, Memory, OneOrMore, Size};
    use crate::testing::kernel::bzimage;

    fn config(dir: &Path) -> Config {
        fs::write(dir.join("vmlinuz"), bzimage(64 << 10)).unwrap();
        fs::write(dir.join("initrd"), cpio::pack(&[dir.join("vmlinuz")]).unwrap()).unwrap();
        Config {
            kernel: dir.join("vmlinuz"),
            initramfs: OneOrMore::One(dir.join("initrd")),
            cmdline: String::new(),
            cpus: Cpus::Count(1),
            memory: Memory::Size(Size(512 << 20)),
            devices: vec![],
            ports: vec![],
            pins: vec![],
            carry: vec![dir.join("vmlinuz")],
            guests: vec![],
            timeouts: Default::default(),
            poweroff: vec![],
        }
    }

    fn problem(config: &Config) -> String {
        Files::read(config, Path::new("/etc/locum/x.toml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn whole_files_are_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::read(&config(dir.path()), Path::new("x.toml")).unwrap();
        assert_eq!(initramfs::check(&files.initramfs), Ok(()));
        assert!(files.initramfs.len() > 2 * (64 << 10), "carried file and initramfs");
        assert_eq!(files.boot_size().kernel_init, 0x200_0000);
    }

    #[test]
    fn missing_and_truncated_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let good = config(dir.path());
        let missing = Config {
            kernel: dir.path().join("nothing"),
            ..good.clone()
        };
        assert!(problem(&missing).contains("nothing"));
        let missing = Config {
            initramfs: OneOrMore::More(vec![dir.path().join("none")]),
            ..good.clone()
        };
        assert!(problem(&missing).contains("initramfs"));

        let cut = |name: &str| {
            let path = dir.path().join(name);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        };
        cut("initrd");
        assert!(problem(&good).contains("truncated"), "{}", problem(&good));
        cut("vmlinuz");
        assert!(problem(&good).contains("truncated"), "{}", problem(&good));
        fs::write(dir.path().join("vmlinuz"), vec![0xa5; 100_000]).unwrap();
        assert!(
            problem(&good).contains("HdrS"),
            "garbage is no kernel: {}",
            problem(&good)
        );
    }
}
