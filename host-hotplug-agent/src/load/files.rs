//! The successor's files, read and checked before anything is changed.

use std::fs;
use std::path::Path;

use firmware_shim::linux::{KernelError, KernelImage};
use partitioner::BootSize;

use super::{bootconfig, cpio, initramfs};
use crate::config::Config;
use crate::error::Refusal;

/// Zeroes between two archives: a compressed one ends only where the next bytes cannot be a block of it.
const ARCHIVE_GAP: usize = 512;
/// Where a bootconfig begins: `tools/bootconfig` makes its length a multiple of this.
const BOOTCONFIG_ALIGN: usize = 4;
/// Bytes that zero page, rest of the memory map and command line take at most.
pub const BOOT_PAGES: u64 = 4 * 4096;

/// Kernel and initramfs in memory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// All initramfs files one after the other, then the archive of carried files, then the bootconfig that one of the
    /// files had.
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
        let unusable = |error: KernelError| bad("kernel", &config.kernel, error.to_string());
        let image = KernelImage::parse(&kernel).map_err(unusable)?;
        if !image.relocatable() {
            // A successor's memory is never where that is: the incumbent's own kernel is there, as a rule.
            return Err(unusable(KernelError::NotRelocatable(image.preferred_address())));
        }
        let mut all = Vec::new();
        let mut last: Option<(&Path, Vec<u8>)> = None;
        for file in config.initramfs.as_slice() {
            let bytes = read("initramfs", file)?;
            let wrong = |problem| bad("initramfs", file, problem);
            initramfs::check(&bytes).map_err(wrong)?;
            let (archives, bootconfig) = bootconfig::split(&bytes).map_err(wrong)?;
            append(&mut all, archives);
            if bootconfig.is_empty() {
                continue;
            }
            if let Some((first, _)) = last {
                return Err(wrong(format!(
                    "it ends with a bootconfig, and so does {}, but the kernel reads one only: take one of them off \
                     (`bootconfig -d`)",
                    first.display()
                )));
            }
            last = Some((file, bootconfig.to_owned()));
        }
        if !config.carry.is_empty() {
            append(&mut all, &cpio::pack(&config.carry)?);
        }
        if let Some((_, bootconfig)) = last {
            // The kernel looks for it at the very end only.
            all.resize(all.len().next_multiple_of(BOOTCONFIG_ALIGN), 0);
            all.extend_from_slice(&bootconfig);
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

fn append(all: &mut Vec<u8>, archives: &[u8]) {
    if !all.is_empty() && !archives.is_empty() {
        all.resize((all.len() + ARCHIVE_GAP).next_multiple_of(ARCHIVE_GAP), 0);
    }
    all.extend_from_slice(archives);
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
            keep_image: false,
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
    fn a_kernel_that_cannot_be_moved_is_refused_with_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mut fixed = bzimage(64 << 10);
        fixed[0x234] = 0;
        fs::write(&config.kernel, fixed).unwrap();
        let told = problem(&config);
        for part in ["vmlinuz", "not relocatable", "0x1000000", "use a kernel that is"] {
            assert!(told.contains(part), "{told}");
        }
    }

    /// `tools/bootconfig -a` after a zstd archive of 90 bytes.
    const BOOTCONFIG: &[u8] = include_bytes!("../../tests/inputs/initramfs-bootconfig/bootconfig.img");

    #[test]
    fn a_bootconfig_stays_at_the_end_of_all_that_is_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let alone = config(dir.path());
        let put = |name: &str, bytes: &[u8]| {
            fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        };
        let (archive, bootconfig) = bootconfig::split(BOOTCONFIG).unwrap();
        let with = put("with", BOOTCONFIG);
        let padded = put("padded", &[BOOTCONFIG, &[0; 3]].concat());
        let text = put("text", bootconfig);
        let plain = dir.path().join("initrd");
        for files in [
            vec![with.clone()],
            vec![padded.clone()],
            vec![with.clone(), plain.clone()],
            vec![plain.clone(), with.clone()],
            vec![text.clone(), plain.clone()],
            vec![plain.clone(), text.clone()],
        ] {
            for carry in [vec![], alone.carry.clone()] {
                let config = Config {
                    initramfs: OneOrMore::More(files.clone()),
                    carry,
                    ..alone.clone()
                };
                let all = Files::read(&config, Path::new("x.toml")).unwrap().initramfs;
                assert_eq!(initramfs::check(&all), Ok(()), "{config:?}");
                assert!(all.ends_with(bootconfig), "{config:?}");
                let (archives, _) = bootconfig::split(&all).unwrap();
                let kernels = archives.windows(4).filter(|bytes| *bytes == b"HdrS").count();
                let carries = usize::from(!config.carry.is_empty());
                assert_eq!(kernels, usize::from(files.contains(&plain)) + carries, "{config:?}");
                assert_eq!(archives.starts_with(archive), files[0] == with || files[0] == padded);
            }
        }
        let two = Config {
            initramfs: OneOrMore::More(vec![with, text]),
            ..alone
        };
        let problem = problem(&two);
        assert!(problem.contains("with") && problem.contains("one only"), "{problem}");
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
