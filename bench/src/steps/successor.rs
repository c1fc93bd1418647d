//! Successors, good and bad, as an operator would configure them.

use std::fmt::Write as _;

use anyhow::Result;

use crate::machine::{Host, channel, deadline::Span};

/// What a successor boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The kernel as Debian ships it.
    Stock,
    /// Its header, and bytes behind that make no sense there: compressed data from further back.
    Garbage,
    /// Its header, and these instructions at the 64-bit entry.
    Code(&'static [u8]),
}

impl Kernel {
    /// Spins with interrupts off: `cli; jmp .`.
    pub(crate) const HANG: Self = Self::Code(&[0xfa, 0xeb, 0xfe]);
    /// Ends in a triple fault: an IDT of limit 0 from the stack, then `ud2`.
    /// `xor eax,eax; push rax; push rax; lidt [rsp]; ud2`.
    pub(crate) const TRIPLE_FAULT: Self = Self::Code(&[0x31, 0xc0, 0x50, 0x50, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b]);
    /// Writes to 0x2000_0000, memory of the incumbent: `mov eax,0x20000000; mov [rax],eax; jmp .`.
    pub(crate) const WILD_WRITE: Self = Self::Code(&[0xb8, 0x00, 0x00, 0x00, 0x20, 0x89, 0x00, 0xeb, 0xfe]);
}

/// A configuration for `locum`.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    /// Its name: that of the file in `/etc/locum`.
    pub name: String,
    /// Generation that it will be.
    pub generation: u32,
    /// Release of its kernel, one of those in the image.
    pub release: String,
    /// What becomes of that kernel.
    pub kernel: Kernel,
    /// CPUs it boots with.
    pub cpus: u32,
    /// Memory it boots with, in MiB.
    pub memory: u32,
    /// PCI function that moves with it.
    pub device: Option<String>,
    /// Guests to hand over.
    pub guests: Vec<String>,
    /// Added to its command line.
    pub cmdline: String,
    /// Files and directories that it gets besides `/etc/locum`.
    pub carry: Vec<String>,
    /// Seconds that it has to boot; emulated seconds of 100 M instructions.
    pub boot_timeout: u64,
    /// What powers the incumbent off; empty: the agent itself.
    pub poweroff: &'static [&'static str],
    /// Seconds that the incumbent has to power off.
    pub retire_timeout: u64,
    /// Seconds that a host that panics has to write its dump.
    pub dump_timeout: u64,
}

impl Successor {
    /// Writes the configuration, and the kernel if it is a bad one, in the incumbent.
    ///
    /// # Errors
    /// The incumbent does not answer or its file system is full.
    pub(crate) fn install(&self, host: &mut Host<'_>) -> Result<()> {
        let wait = Span::seconds(300);
        if let Some(script) = self.spoil() {
            host.run(&script, wait)?.ok()?;
        }
        host.push(&format!("/etc/locum/{}.toml", self.name), self.toml().as_bytes(), wait)
    }

    /// What asks for it.
    pub(super) fn refresh_command(&self) -> String {
        format!("locum refresh {}", self.name)
    }

    /// Its configuration file.
    #[must_use]
    pub(crate) fn toml(&self) -> String {
        let console = self.generation % 2;
        let mut text = format!(
            r#"kernel = "{kernel}"
initramfs = "/boot/initrd"
cmdline = "console=ttyS{console},115200 idle=halt no_ipi_broadcast=1 retain_initrd panic=0 lab.begin {extra}"
cpus = {cpus}
memory = "{memory}M"
poweroff = {poweroff:?}
ports = ["{channel}"]
carry = [{carry}]
"#,
            kernel = self.kernel_path(),
            extra = self.cmdline,
            carry = std::iter::once("/etc/locum")
                .chain(self.carry.iter().map(String::as_str))
                .map(|path| format!("\"{path}\""))
                .collect::<Vec<_>>()
                .join(", "),
            cpus = self.cpus,
            memory = self.memory,
            poweroff = self.poweroff,
            channel = channel::ports(self.generation),
        );
        if let Some(device) = &self.device {
            let _ = writeln!(text, "devices = [\"{device}\"]");
        }
        for guest in &self.guests {
            let _ = write!(
                text,
                "\n[[guests]]\nname = \"{guest}\"\nqmp = \"/run/{guest}.qmp\"\n\
                 command = [\"/guest/guest.sh\", \"{guest}\", \"-incoming\", \"defer\"]\n"
            );
            // Its disk's server is outside, behind a socket by the same name in either host.
            if guest == "g2" {
                text.push_str("trust_storage = true\n");
            }
        }
        let _ = write!(
            text,
            "\n[timeouts]\nboot = {}\nretire = {}\ndump = {}\n",
            self.boot_timeout, self.retire_timeout, self.dump_timeout
        );
        text
    }

    fn kernel_path(&self) -> String {
        match self.kernel {
            Kernel::Stock => format!("/boot/vmlinuz-{}", self.release),
            _ => format!("/tmp/vmlinuz-{}", self.name),
        }
    }

    /// Shell text that makes the bad kernel from the good one: all of its header and length stay, so that whatever
    /// checks the file finds nothing wrong.
    fn spoil(&self) -> Option<String> {
        // The 64-bit entry is 512 bytes into the part after the setup sectors, whose number is at 0x1f1
        // (Documentation/arch/x86/boot.rst).
        let code = match self.kernel {
            Kernel::Stock => return None,
            Kernel::Garbage => format!("tail -c +4000001 /boot/vmlinuz-{} | head -c 1048576", self.release),
            Kernel::Code(code) => {
                let escaped = code.iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "\\{byte:03o}");
                    text
                });
                format!("printf '{escaped}'")
            }
        };
        Some(format!(
            "set -e; k={path}; cp /boot/vmlinuz-{release} $k; s=$(od -An -tu1 -j497 -N1 $k); \
             {code} | dd of=$k bs=512 seek=$((s + 2)) conv=notrunc 2>/dev/null",
            path = self.kernel_path(),
            release = self.release,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn successor(kernel: Kernel) -> Successor {
        Successor {
            name: "next".into(),
            generation: 1,
            release: "6.12".into(),
            kernel,
            cpus: 2,
            memory: 512,
            device: Some("0000:00:03.0".into()),
            guests: vec!["g1".into()],
            cmdline: String::new(),
            carry: Vec::new(),
            boot_timeout: 60,
            poweroff: &[],
            retire_timeout: 120,
            dump_timeout: 300,
        }
    }

    #[test]
    fn consoles_and_channels_follow_the_generation() {
        let mut one = successor(Kernel::Stock);
        assert!(one.toml().contains("console=ttyS1") && one.toml().contains("0x2e8-0x2ef"));
        one.generation = 2;
        assert!(one.toml().contains("console=ttyS0") && one.toml().contains("0x3e8-0x3ef"));
    }

    #[test]
    fn code_lands_at_the_64_bit_entry_and_the_length_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut kernel = vec![0x55; 8192];
        kernel[0x1f1] = 3;
        std::fs::write(path("vmlinuz-6.12"), &kernel).unwrap();
        let script = successor(Kernel::HANG)
            .spoil()
            .unwrap()
            .replace("/tmp/", &path(""))
            .replace("/boot/", &path(""));
        let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(status.success());
        let spoilt = std::fs::read(path("vmlinuz-next")).unwrap();
        assert_eq!(spoilt.len(), kernel.len());
        // Setup sectors: the boot sector and 3 more; then 512 bytes to the 64-bit entry.
        assert_eq!(spoilt[4 * 512 + 512..][..4], [0xfa, 0xeb, 0xfe, 0x55]);
        assert_eq!(spoilt[4 * 512 + 511], 0x55);
    }
}
