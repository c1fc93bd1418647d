//! libvirt's hook (`/etc/libvirt/hooks/qemu.d/locum`, <https://libvirt.org/hooks.html>): before a domain's QEMU starts, the
//! domain gets its piece of the pool; when it has ended, that goes back. It runs as root, and what it says where it fails is
//! what libvirt tells whoever starts the domain.

use std::path::PathBuf;

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use super::renew::saved;
use super::variables;
use super::wrapper::{self, EMULATOR, Given};
use crate::file;
use crate::pool::table::Uuid;
use crate::pool::{Keeper, Wanted};
use crate::sysroot::SysRoot;

/// What Locum needs to know of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Bytes of RAM, those of memory devices included.
    pub memory: u64,
    /// Its emulator is ours.
    pub wrapped: bool,
    /// The file of its UEFI variables, if it has one.
    pub variables: Option<PathBuf>,
}

/// When libvirt calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Its QEMU is about to start.
    Start,
    /// Its QEMU has ended, and all that libvirt had for it is given up.
    End,
    /// Anything else.
    Other,
}

impl Moment {
    /// Of the hook's second and third argument.
    pub fn of(operation: &str, part: &str) -> Self {
        match (operation, part) {
            ("prepare", "begin") => Self::Start,
            ("release", "end") => Self::End,
            _ => Self::Other,
        }
    }
}

impl Domain {
    /// Of libvirt's description.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(xml: &str) -> Result<Self> {
        let document = Document::parse(xml).context("the domain's description is no XML")?;
        let root = document.root_element();
        let text = |name: &str| child(root, name).and_then(|node| node.text()).map(str::trim);
        let memory = child(root, "memory").context("the domain's description has no <memory>")?;
        let uuid = text("uuid").and_then(Uuid::parse).filter(|uuid| uuid.is_known());
        let emulator = child(root, "devices").and_then(|devices| child(devices, "emulator"));
        Ok(Self {
            name: text("name")
                .context("the domain's description has no <name>")?
                .to_owned(),
            uuid: uuid.context("the domain's description has no <uuid>")?,
            memory: bytes(memory).context("<memory> of the domain's description is no size")?,
            wrapped: emulator.and_then(|node| node.text()).map(str::trim) == Some(EMULATOR),
            variables: child(root, "os").and_then(|os| child(os, "nvram")).and_then(file_of),
        })
    }
}

/// The names of libvirt's networks that a domain is on.
///
/// # Errors
/// If `xml` is no description of a domain.
pub fn networks(xml: &str) -> Result<Vec<String>> {
    let document = Document::parse(xml).context("the domain's description is no XML")?;
    let devices = child(document.root_element(), "devices");
    let devices = devices.context("the domain's description has no <devices>")?;
    let interfaces = devices
        .children()
        .filter(|device| device.has_tag_name("interface") && device.attribute("type") == Some("network"));
    let mut names: Vec<_> = interfaces
        .filter_map(|interface| child(interface, "source")?.attribute("network"))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The file that `<nvram>` names, in libvirt's old way or its new one (since 8.5), in which it may be none.
fn file_of(nvram: Node<'_, '_>) -> Option<PathBuf> {
    let path = match nvram.attribute("type") {
        None => nvram.text()?.trim(),
        Some("file") => child(nvram, "source")?.attribute("file")?,
        Some(_) => return None,
    };
    Some(path.into()).filter(|path: &PathBuf| path.is_absolute())
}

/// A scaled size (libvirt `virScaleInteger`); libvirt itself writes KiB.
fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let number: u64 = node.text()?.trim().parse().ok()?;
    let unit: u64 = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Brings the domain's UEFI variables to where its next QEMU looks for them.
///
/// # Errors
/// If they stay where they are: the domain must not start without them.
pub fn bring_variables(sys: &SysRoot, domain: &Domain) -> Result<()> {
    let path = domain.variables.as_deref();
    path.map_or(Ok(()), |path| variables::bring_back(sys, path))
}

/// Gives the domain its piece of the pool, or finds the one that it comes with, and writes down which.
///
/// # Errors
/// If there is none for it: the domain must not start.
pub fn start(sys: &SysRoot, keeper: &Keeper<'_>, domain: &Domain) -> Result<Given> {
    let wanted = Wanted {
        name: domain.name.clone(),
        size: domain.memory,
        node: None,
        uuid: Some(domain.uuid),
    };
    let (view, crossing) = if is_saved(sys, domain) {
        (keeper.kept(&wanted)?, true)
    } else {
        keeper.for_start(&wanted)?
    };
    let given = Given {
        device: view.device.context("no device of this host has its RAM")?.into(),
        offset: view.offset.context("no device of this host has its RAM")?,
        size: view.end - view.start,
        crossing,
    };
    let path = sys.path(wrapper::given_path(&domain.uuid.to_string()));
    file::put_json(&path, &given)?;
    Ok(given)
}

/// Whether it has no QEMU only because that is being replaced.
fn is_saved(sys: &SysRoot, domain: &Domain) -> bool {
    sys.exists(saved(&domain.uuid.to_string()))
}

/// Takes back what the domain has, unless its guest has gone to the other host with it, or is to go on in another QEMU.
///
/// # Errors
/// Why it was not taken back.
pub fn end(sys: &SysRoot, keeper: &Keeper<'_>, domain: &Domain) -> Result<()> {
    forget(sys, domain)?;
    if is_saved(sys, domain) {
        return Ok(());
    }
    keeper.free(&domain.uuid.to_string()).map(drop)
}

/// Forgets what the domain had: where there is no pool, it has ordinary RAM.
///
/// # Errors
/// If the file cannot be removed.
pub fn forget(sys: &SysRoot, domain: &Domain) -> Result<()> {
    let path = sys.path(wrapper::given_path(&domain.uuid.to_string()));
    file::remove(&path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='kvm' id='1'><name>web &amp; co</name>
        <uuid>11111111-2222-4333-8444-555555555555</uuid>
        <memory unit='KiB'>65536</memory><currentMemory unit='KiB'>1</currentMemory>
        <devices><emulator>/usr/lib/locum/qemu</emulator><memory model='dimm'/></devices></domain>";

    #[test]
    fn a_domain_is_described_by_libvirt() {
        let domain = Domain::parse(XML).unwrap();
        assert_eq!(
            (domain.name.as_str(), domain.memory, domain.wrapped),
            ("web & co", 64 << 20, true)
        );
        assert_eq!(domain.uuid.to_string(), "11111111-2222-4333-8444-555555555555");
        let other = Domain::parse(&XML.replace("/usr/lib/locum/qemu", "/usr/bin/qemu-system-x86_64")).unwrap();
        assert!(!other.wrapped);
        let size = |text: &str| Domain::parse(&XML.replace("unit='KiB'>65536", text)).map(|domain| domain.memory);
        assert_eq!(size("unit='GiB'>2").unwrap(), 2 << 30);
        assert_eq!(size(">4").unwrap(), 4096);
        for bad in ["unit='parsec'>2", ">", ">many", "unit='TiB'>99999999999"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for part in ["<name>", "<uuid>", "<memory unit"] {
            let without = XML.replacen(part, &part.replace('<', "<x"), 1);
            assert!(Domain::parse(&without).is_err(), "{part}");
        }
        assert!(Domain::parse("no domain").is_err());
    }

    #[test]
    fn uefi_variables_are_in_a_file_that_libvirt_names_in_two_ways() {
        let variables = |os: &str| {
            let xml = XML.replace("<devices>", &format!("<os>{os}</os><devices>"));
            Domain::parse(&xml).unwrap().variables
        };
        let file = Some(PathBuf::from("/n/a.fd"));
        assert_eq!(variables("<loader/><nvram template='/t'> /n/a.fd\n</nvram>"), file);
        assert_eq!(variables("<nvram type='file'><source file='/n/a.fd'/></nvram>"), file);
        for none in [
            "",
            "<nvram/>",
            "<nvram>a.fd</nvram>",
            "<nvram type='block'><source dev='/dev/a'/></nvram>",
        ] {
            assert_eq!(variables(none), None, "{none}");
        }
    }

    #[test]
    fn networks_are_those_of_libvirts() {
        let xml = "<domain><devices><interface type='network'><mac/><source network='lan' portid='1' bridge='virbr0'/></interface>
            <interface type='bridge'><source bridge='br0'/></interface><interface type='network'><source network='a b'/></interface>
            <interface type='network'><source network='lan'/></interface></devices></domain>";
        assert_eq!(networks(xml).unwrap(), ["a b", "lan"]);
        assert_eq!(networks(XML).unwrap(), [] as [&str; 0]);
        assert!(networks("<domain/>").is_err());
    }

    #[test]
    fn libvirt_calls_at_many_moments() {
        assert_eq!(Moment::of("prepare", "begin"), Moment::Start);
        assert_eq!(Moment::of("release", "end"), Moment::End);
        for (operation, part) in [
            ("start", "begin"),
            ("stopped", "end"),
            ("migrate", "begin"),
            ("reconnect", "begin"),
        ] {
            assert_eq!(Moment::of(operation, part), Moment::Other);
        }
    }
}
