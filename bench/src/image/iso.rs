//! The CD that the machine boots, by BIOS or UEFI: GRUB, L0, a kernel, an initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{debian::root::Root, tools};

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
    /// What boots it.
    pub boot: Boot,
    /// Commands for GRUB before it loads anything.
    pub before: Vec<String>,
}

/// What boots a CD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// A BIOS, by the GRUB of the developer's machine.
    Bios,
    /// UEFI firmware, by the GRUB of [`Root::uefi`].
    Uefi,
}

/// What the CD's GRUB has in it: commands, loaders, file system; then what some boards want.
const MODULES: &str = "normal multiboot2 linux iso9660 all_video mmap wrmsr";

/// GRUB's own modules for each.
const BIOS_MODULES: &str = "biosdisk setpci";
const UEFI_MODULES: &str = "search";

/// What GRUB does first where the firmware does not tell it which device it came from.
const UEFI_FIRST: &str = "search --file --set=root /boot/grub/grub.cfg\nset prefix=($root)/boot/grub\n";

/// Where a tree has GRUB's modules for UEFI.
pub(super) const GRUB: &str = "usr/lib/grub/x86_64-efi";

/// The file of the CD that UEFI boots: a file system of its own (UEFI 2.10, 13.3.2.1).
const UEFI_IMAGE: &str = "uefi.img";
/// Its size, in blocks of 512 bytes: a floppy's.
const UEFI_BLOCKS: &str = "2880";

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
        match self.boot {
            Boot::Bios => tools::run(
                Command::new("grub-mkrescue")
                    .args(["-d", "/usr/lib/grub/i386-pc", "--fonts=", "--themes=", "--locales="])
                    .arg(format!("--install-modules={MODULES} {BIOS_MODULES}"))
                    .arg("-o")
                    .arg(target)
                    .arg(dir),
            )?,
            Boot::Uefi => {
                fs::copy(uefi_image()?, dir.join(UEFI_IMAGE))?;
                tools::run(
                    Command::new("xorriso")
                        .args(["-as", "mkisofs", "-quiet", "-R"])
                        .args(["-e", UEFI_IMAGE, "-no-emul-boot", "-o"])
                        .arg(target)
                        .arg(dir),
                )?;
            }
        }
        fs::remove_dir_all(dir)?;
        Ok(())
    }

    fn config(&self) -> String {
        let Self { l0_args, cmdline, .. } = self;
        let mut before = String::new();
        if self.boot == Boot::Uefi {
            // What sets the screen up for whoever is loaded; a BIOS has it ready.
            before.push_str("insmod all_video\n");
        }
        for command in &self.before {
            before.push_str(&format!("{command}\n"));
        }
        let load = if self.l0.is_some() {
            format!("multiboot2 /boot/l0 {l0_args}\nmodule2 /boot/vmlinuz {cmdline}\nmodule2 /boot/initrd")
        } else {
            format!("linux /boot/vmlinuz {cmdline}\ninitrd /boot/initrd")
        };
        // The CD is read through the BIOS: GRUB's own driver waits a millisecond per sector, 1.7 G instructions in all.
        format!("set timeout=0\n{before}{load}\nboot\n")
    }
}

/// The file system with GRUB in it that UEFI boots: made once.
fn uefi_image() -> Result<PathBuf> {
    // GRUB's program and its first commands lie beside the image while it is made.
    const MAKE: &str = r#"set -e
        mformat -C -T "$UEFI_BLOCKS" -i "$1" ::
        mmd -i "$1" ::/EFI ::/EFI/BOOT
        mcopy -i "$1" "$2" ::/EFI/BOOT/BOOTX64.EFI"#;
    let root = Root::uefi()?;
    let ingredients = (MODULES, UEFI_MODULES, UEFI_FIRST, UEFI_BLOCKS, MAKE);
    root.derived("grub.img", ingredients, |part| {
        let program = part.with_extension("efi");
        let modules = format!("{MODULES} {UEFI_MODULES}");
        grub(&root.path(GRUB), UEFI_FIRST, &modules, &program)?;
        tools::shell(&MAKE.replace("$UEFI_BLOCKS", UEFI_BLOCKS), &[part, &program])?;
        Ok(fs::remove_file(program)?)
    })
}

/// Makes GRUB's program for UEFI, of the modules of that directory and with these first commands, at `program`.
///
/// # Errors
/// [`Root::uefi`] cannot be had, or its program fails.
pub(super) fn grub(directory: &Path, first: &str, modules: &str, program: &Path) -> Result<()> {
    let commands = program.with_extension("cfg");
    fs::write(&commands, first)?;
    tools::run(
        Root::uefi()?
            .program("usr/bin/grub-mkimage")
            .arg("-d")
            .arg(directory)
            .args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c"])
            .arg(&commands)
            .arg("-o")
            .arg(program)
            .args(modules.split(' ')),
    )?;
    Ok(fs::remove_file(commands)?)
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
            boot: Boot::Bios,
            before: Vec::new(),
        }
    }

    #[test]
    fn with_and_without_l0() {
        assert!(iso(None).config().contains("linux /boot/vmlinuz quiet\n"));
        let config = iso(Some("l0".into())).config();
        assert!(config.contains("multiboot2 /boot/l0 log=e9\nmodule2 /boot/vmlinuz quiet\n"));
        assert!(!config.contains("all_video"));
    }

    #[test]
    fn what_comes_before() {
        let config = Iso {
            boot: Boot::Uefi,
            before: vec!["cutmem 4M 5M".into()],
            ..iso(Some("l0".into()))
        }
        .config();
        assert!(
            config.starts_with("set timeout=0\ninsmod all_video\ncutmem 4M 5M\nmultiboot2 "),
            "{config}"
        );
    }
}
