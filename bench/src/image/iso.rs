//! The CD that the machine boots: GRUB, L0, a kernel, an initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::tools;

/// What GRUB loads.
#[derive(Debug)]
pub(crate) struct Iso {
    /// L0; without it GRUB loads Linux itself.
    pub l0: Option<PathBuf>,
    /// L0's command line.
    pub l0_args: String,
    /// The host's bzImage.
    pub kernel: PathBuf,
    /// The host's command line.
    pub cmdline: String,
    /// The host's initramfs.
    pub initrd: PathBuf,
}

impl Iso {
    /// Writes the CD image to `target`, staging it in `dir`.
    ///
    /// # Errors
    /// A file is missing or grub-mkrescue fails.
    pub(crate) fn build(&self, dir: &Path, target: &Path) -> Result<()> {
        let boot = dir.join("boot");
        fs::create_dir_all(boot.join("grub"))?;
        if let Some(l0) = &self.l0 {
            fs::copy(l0, boot.join("l0"))?;
        }
        fs::copy(&self.kernel, boot.join("vmlinuz"))?;
        if fs::hard_link(&self.initrd, boot.join("initrd")).is_err() {
            fs::copy(&self.initrd, boot.join("initrd"))?;
        }
        fs::write(boot.join("grub/grub.cfg"), self.config())?;
        tools::run(
            Command::new("grub-mkrescue")
                .args(["-d", "/usr/lib/grub/i386-pc", "--fonts=", "--themes=", "--locales="])
                .arg("--install-modules=normal multiboot2 linux iso9660 biosdisk")
                .arg("-o")
                .arg(target)
                .arg(dir),
        )?;
        fs::remove_dir_all(dir)?;
        Ok(())
    }

    fn config(&self) -> String {
        let Self { l0_args, cmdline, .. } = self;
        let load = if self.l0.is_some() {
            format!("multiboot2 /boot/l0 {l0_args}\nmodule2 /boot/vmlinuz {cmdline}\nmodule2 /boot/initrd")
        } else {
            format!("linux /boot/vmlinuz {cmdline}\ninitrd /boot/initrd")
        };
        // The CD is read through the BIOS: GRUB's own driver waits a millisecond per sector, 1.7 G instructions in all.
        format!("set timeout=0\n{load}\nboot\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(l0: Option<PathBuf>) -> Iso {
        Iso {
            l0,
            l0_args: "log=e9".into(),
            kernel: "k".into(),
            cmdline: "quiet".into(),
            initrd: "i".into(),
        }
    }

    #[test]
    fn with_and_without_l0() {
        assert!(iso(None).config().contains("linux /boot/vmlinuz quiet\n"));
        let config = iso(Some("l0".into())).config();
        assert!(config.contains("multiboot2 /boot/l0 log=e9\nmodule2 /boot/vmlinuz quiet\n"));
    }
}
