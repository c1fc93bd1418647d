//! `/etc/locum/NAME.toml`: what the administrator wants for a successor.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use partitioner::{CpuNumber, CpuRequest, Gsi, MemRange, MemoryRequest, PciAddress, PortRange};
use serde::{Deserialize, Deserializer};

use crate::error::Refusal;
use crate::journal::ConfigText;

/// A successor's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initramfs; several files are concatenated.
    pub initramfs: OneOrMore,
    /// The kernel's command line; what Locum itself needs is added to it.
    #[serde(default)]
    pub cmdline: String,
    /// CPUs: how many, or a list of Linux's numbers.
    pub cpus: Cpus,
    /// Memory: a size with unit ("512M"), or a list of ranges ("0x48000000-0x50000000", END exclusive).
    pub memory: Memory,
    /// PCI functions to move ("0000:00:03.0").
    #[serde(default)]
    pub devices: Vec<PciAddress>,
    /// Further I/O ports ("0x2e8-0x2ef", END inclusive). Those of the successor's console are added by themselves.
    #[serde(default)]
    pub ports: Vec<PortRange>,
    /// Further IOAPIC pins.
    #[serde(default)]
    pub pins: Vec<Gsi>,
    /// Files and directories of this host that the successor finds at the same paths.
    #[serde(default)]
    pub carry: Vec<PathBuf>,
    /// Guests to hand over.
    #[serde(default)]
    pub guests: Vec<Guest>,
    /// How long to wait.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Whether the memory of a successor that died is saved before it is cleared.
    #[serde(default)]
    pub keep_image: bool,
    /// What powers the incumbent off. Empty: `systemctl poweroff` under systemd, the system call elsewhere.
    #[serde(default)]
    pub poweroff: Vec<String>,
}

/// A string or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a path or a list of paths is wanted")]
pub enum OneOrMore {
    /// One file.
    One(PathBuf),
    /// Several files.
    More(Vec<PathBuf>),
}

impl OneOrMore {
    /// As a list.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::More(paths) => paths,
        }
    }
}

/// CPUs for the successor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a number of CPUs or a list of CPU numbers is wanted")]
pub enum Cpus {
    /// So many.
    Count(usize),
    /// These.
    List(Vec<u32>),
}

impl Cpus {
    /// In the words of the plan.
    pub fn request(&self) -> CpuRequest {
        match self {
            Self::Count(count) => CpuRequest::Count(*count),
            Self::List(numbers) => CpuRequest::List(numbers.iter().copied().map(CpuNumber).collect()),
        }
    }
}

/// Memory for the successor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "a size such as \"512M\" or a list of ranges such as \"0x48000000-0x50000000\" is wanted"
)]
pub enum Memory {
    /// So much.
    Size(Size),
    /// These ranges.
    Blocks(Vec<MemRange>),
}

impl Memory {
    /// In the words of the plan.
    pub fn request(&self) -> MemoryRequest {
        match self {
            Self::Size(size) => MemoryRequest::Size(size.0),
            Self::Blocks(ranges) => MemoryRequest::Blocks(ranges.clone()),
        }
    }
}

/// Bytes, written with a unit: "512M", "2G", "4096K".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size: write a number with the unit K, M or G, such as \"512M\"");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text.get(digits.len()..).unwrap_or_default() {
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

/// Longest time for guests to shut down: less than a client waits for the daemon's answer.
const SHUTDOWN_MAX: Duration = Duration::from_secs(480);

/// Instead of a domain's name: all of them.
pub const ALL: &str = "all";

/// A guest to hand over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name. Of libvirt's, the domain's name if none is given.
    #[serde(default)]
    pub name: String,
    /// QMP socket of its QEMU here. On the successor the same path is used. Empty for a guest of libvirt's.
    #[serde(default)]
    pub qmp: PathBuf,
    /// Name of its domain, if libvirt has it: it crosses by libvirt's own migration. [`ALL`]: each domain that is in the pool.
    #[serde(default)]
    pub libvirt: Option<String>,
    /// Program and arguments that become its QEMU on the successor, with the same QMP socket. Empty: those of the
    /// running QEMU. `-incoming defer` is added.
    #[serde(default)]
    pub command: Vec<String>,
    /// Channel to use, 1 to 3. None: the guests take turns.
    #[serde(default)]
    pub channel: Option<usize>,
    /// The successor has all of its disks, whatever Locum finds of them.
    #[serde(default)]
    pub trust_storage: bool,
}

/// How long to wait at most: whole seconds in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the successor's start to its agent's first message.
    #[serde(deserialize_with = "seconds")]
    pub boot: Duration,
    /// For one guest's QEMU on the successor to be ready.
    #[serde(deserialize_with = "seconds")]
    pub guest_start: Duration,
    /// For one guest's handover, from stop to resume.
    #[serde(deserialize_with = "seconds")]
    pub guest_move: Duration,
    /// For guests to shut down that do not go over, or that were started since the refresh began.
    #[serde(deserialize_with = "seconds")]
    pub shutdown: Duration,
    /// For the incumbent to be gone, once it is to power off.
    #[serde(deserialize_with = "seconds")]
    pub retire: Duration,
    /// For a CPU that Linux took offline to reach L0.
    #[serde(deserialize_with = "seconds")]
    pub cpu: Duration,
    /// For the crash kernel of a host that panicked to write its dump, before the other host takes what it had.
    #[serde(deserialize_with = "seconds")]
    pub dump: Duration,
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_secs)
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(600),
            guest_start: Duration::from_secs(120),
            guest_move: Duration::from_secs(60),
            shutdown: Duration::from_secs(120),
            retire: Duration::from_secs(120),
            cpu: Duration::from_secs(60),
            dump: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// Reads `NAME.toml` in `dir`; returns its text, too.
    ///
    /// # Errors
    /// [`Refusal::BadName`], [`Refusal::NoConfig`] or [`Refusal::BadConfig`].
    pub fn read(dir: &Path, name: &str) -> Result<(Self, ConfigText), Refusal> {
        if !is_file_name(name, ".-_") {
            return Err(Refusal::BadName(name.to_owned()));
        }
        let path = path(dir, name);
        let text = fs::read_to_string(&path).map_err(|error| Refusal::NoConfig {
            path: path.clone(),
            error,
            known: known(dir),
        })?;
        let config = Self::parse(&path, &text)?;
        Ok((config, ConfigText { path, text }))
    }

    /// From the text of the file at `path`.
    ///
    /// # Errors
    /// [`Refusal::BadConfig`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Refusal> {
        let bad = |offset: usize, problem: String| Refusal::BadConfig {
            path: path.to_owned(),
            line: text.get(..offset).unwrap_or(text).matches('\n').count() + 1,
            problem,
        };
        let mut config: Self = toml::from_str(text)
            .map_err(|error| bad(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        for guest in &mut config.guests {
            if let (true, Some(domain)) = (guest.name.is_empty(), &guest.libvirt) {
                guest.name.clone_from(domain);
            }
        }
        config
            .check()
            .map_err(|(word, problem)| bad(text.find(&word).unwrap_or(0), problem))?;
        Ok(config)
    }

    /// What the types do not say. On error: a word of the file near the fault, and the problem.
    fn check(&self) -> Result<(), (String, String)> {
        if self.initramfs.as_slice().is_empty() {
            return Err((
                "initramfs".into(),
                "`initramfs` is an empty list: name at least one file".into(),
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        for guest in &self.guests {
            if guest.name.is_empty() || !seen.insert(&guest.name) {
                let problem = format!("guest name `{}` is empty or used twice: give each its own", guest.name);
                return Err((format!("\"{}\"", guest.name), problem));
            }
            if guest.libvirt.is_some() != guest.qmp.as_os_str().is_empty() {
                let problem = format!(
                    "guest {}: give either `qmp`, the socket of its QEMU, or `libvirt`, the name of its domain",
                    guest.name
                );
                return Err((format!("\"{}\"", guest.name), problem));
            }
            if let (Some(domain), false) = (&guest.libvirt, guest.command.is_empty()) {
                let problem = format!(
                    "guest {}: libvirt makes the command line of its domains itself",
                    guest.name
                );
                return Err((format!("\"{domain}\""), problem));
            }
            if guest
                .channel
                .is_some_and(|channel| channel == 0 || channel >= locum_abi::CHANNEL_COUNT)
            {
                let most = locum_abi::CHANNEL_COUNT - 1;
                return Err((
                    "channel".into(),
                    format!("guest {}: `channel` runs from 1 to {most}", guest.name),
                ));
            }
        }
        if self.timeouts.shutdown > SHUTDOWN_MAX {
            let problem = format!(
                "`shutdown` is {} s at most: who asks for a refresh waits so long",
                SHUTDOWN_MAX.as_secs()
            );
            return Err(("shutdown".into(), problem));
        }
        if let Some(address) = self.devices.iter().find(|address| address.segment() != 0) {
            let problem = format!("`devices` holds `{address}`: L0 knows PCI segment 0000 only; leave it out");
            return Err((address.to_string(), problem));
        }
        if let Some(path) = self.carry.iter().find(|path| !path.is_absolute()) {
            let problem = format!("`carry` holds `{}`: paths must be absolute", path.display());
            return Err((path.display().to_string(), problem));
        }
        Ok(())
    }
}

/// Whether a name that an operator gives is part of a path, and of nothing else: at most 63 ASCII letters, digits and `others`,
/// and no `.` first.
pub fn is_file_name(name: &str, others: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    !name.is_empty() && name.len() <= 63 && !name.starts_with('.') && name.chars().all(legal)
}

/// The file of that name.
pub fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

fn known(dir: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    if names.is_empty() {
        format!("(nothing in {})", dir.display())
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
kernel = "/boot/vmlinuz-6.12.2"
initramfs = ["/boot/initrd", "/boot/extra.cpio"]
cmdline = "console=ttyS1"
cpus = [2, 3]
memory = "512M"
devices = ["00:03.0"]
ports = ["0x2e8-0x2ef"]
carry = ["/etc/locum", "/root/image"]

[[guests]]
name = "one"
qmp = "/run/one.qmp"

[timeouts]
boot = 300
"#;

    fn parse(text: &str) -> Result<Config, Refusal> {
        Config::parse(Path::new("/etc/locum/next.toml"), text)
    }

    #[test]
    fn a_whole_file_is_understood() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.initramfs.as_slice().len(), 2);
        assert_eq!(
            config.cpus.request(),
            CpuRequest::List(vec![CpuNumber(2), CpuNumber(3)])
        );
        assert_eq!(config.memory.request(), MemoryRequest::Size(512 << 20));
        assert_eq!(config.timeouts.boot, Duration::from_secs(300));
        assert_eq!(config.timeouts.retire, Timeouts::default().retire);
        assert_eq!(config.devices[0].to_string(), "0000:00:03.0");
    }

    #[test]
    fn the_line_of_a_fault_is_told() {
        let line_of = |text: &str| match parse(text) {
            Err(Refusal::BadConfig { line, problem, .. }) => (line, problem),
            other => panic!("{other:?}"),
        };
        assert_eq!(line_of(&GOOD.replace("cpus = [2, 3]", "cpus = [2, 3")).0, 6);
        let (line, problem) = line_of(&GOOD.replace("512M", "half"));
        assert_eq!(line, 6, "{problem}");
        let (line, problem) = line_of(&GOOD.replace("carry =", "cary ="));
        assert_eq!(line, 9);
        assert!(problem.contains("cary"), "{problem}");
        let (line, problem) = line_of(&GOOD.replace("00:03.0", "eth0"));
        assert_eq!(line, 7);
        assert!(problem.contains("no PCI address"), "{problem}");
        assert_eq!(line_of(&GOOD.replace("boot = 300", "boot = -1")).0, 16);
        let (line, problem) = line_of(&GOOD.replace("00:03.0", "0001:00:03.0"));
        assert_eq!(line, 7);
        assert!(problem.contains("segment 0000"), "{problem}");
        let (line, problem) = line_of(&format!("{GOOD}\n[[guests]]\nname = \"one\"\nqmp = \"/x\"\n"));
        assert_eq!(line, 12);
        assert!(problem.contains("twice"), "{problem}");
    }

    #[test]
    fn a_guest_is_libvirts_or_has_a_socket() {
        let guest = |lines: &str| parse(&GOOD.replace("name = \"one\"\nqmp = \"/run/one.qmp\"", lines));
        let config = guest("libvirt = \"web\"").unwrap();
        assert_eq!(
            (config.guests[0].name.as_str(), config.guests[0].libvirt.as_deref()),
            ("web", Some("web"))
        );
        assert_eq!(guest("libvirt = \"web\"\nname = \"w\"").unwrap().guests[0].name, "w");
        for bad in [
            "name = \"one\"",
            "name = \"one\"\nqmp = \"/x\"\nlibvirt = \"one\"",
            "libvirt = \"one\"\ncommand = [\"kvm\"]",
        ] {
            assert!(
                matches!(guest(bad), Err(Refusal::BadConfig { line: 12 | 13, .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn names_do_not_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b", ".hidden", "a b"] {
            assert!(
                matches!(Config::read(dir.path(), name), Err(Refusal::BadName(_))),
                "{name}"
            );
        }
        fs::write(dir.path().join("other.toml"), GOOD).unwrap();
        let error = Config::read(dir.path(), "next").unwrap_err();
        assert!(error.to_string().contains("other"), "known names are offered: {error}");
        assert!(Config::read(dir.path(), "other").is_ok());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(Size::try_from("512M".to_owned()), Ok(Size(512 << 20)));
        assert_eq!(Size::try_from("2GiB".to_owned()), Ok(Size(2 << 30)));
        for bad in ["", "M", "512", "1.5G", "-1M", "99999999999G", "1T"] {
            assert!(Size::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
