//! A domain's description as the other host's libvirt gets it: without what confines its QEMU here.
//!
//! Where libvirt confines QEMUs (AppArmor, SELinux), each domain that runs has a `<seclabel>` of that model, whether it was
//! asked for or not, and it crosses with the domain. A libvirt without that model refuses such a domain, and the one of a
//! successor's initramfs has none: the rules are of the machine's own root. One that has some labels a domain without a label
//! by itself (libvirt `src/security/security_manager.c`, `virSecurityManagerGenLabel()`).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use super::virsh::Libvirt;
use crate::deadline::Deadline;
use crate::file;
use crate::sysroot::SysRoot;

/// The file with a description, as long as it is needed: there may be passwords in it.
pub(super) struct Description(PathBuf);

impl Description {
    /// Asks libvirt for the one of a domain that runs, and writes what the other libvirt gets to a file.
    ///
    /// # Errors
    /// If libvirt does not tell, or it cannot be written.
    pub(super) fn write(
        sys: &SysRoot,
        libvirt: &Libvirt,
        (domain, uuid): (&str, &str),
        until: &Deadline<'_>,
    ) -> Result<Self> {
        let words = ["dumpxml", domain, "--migratable", "--security-info"];
        let xml = unlabelled(&libvirt.run(&words, until)?)?;
        // Not where its QEMU may write.
        let path = sys.path(format!("run/locum/libvirt/{uuid}.xml"));
        let write = || {
            file::remove(&path)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(xml.as_bytes())
        };
        let this = Self(path.clone());
        write().with_context(|| path.display().to_string())?;
        Ok(this)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The description without labels that libvirt has made itself. One that was asked for stays: what it asks for cannot be
/// done without.
fn unlabelled(xml: &str) -> Result<String> {
    let document = Document::parse(xml).context("the domain's description is no XML")?;
    let mut rest = xml.to_owned();
    let labels = document.root_element().children().filter(|node| is_made(*node));
    // From the last one on: those before stay where they are.
    for label in labels.collect::<Vec<_>>().into_iter().rev() {
        rest.replace_range(label.range(), "");
    }
    Ok(rest)
}

/// What libvirt has the domain's QEMU confined by, unless somebody has asked for it: the model's name.
///
/// # Errors
/// If `xml` is no description of a domain.
pub fn confined_by(xml: &str) -> Result<Option<String>> {
    let document = Document::parse(xml).context("the domain's description is no XML")?;
    let label = document.root_element().children().find(|node| is_made(*node));
    Ok(label.and_then(|label| label.attribute("model")).map(str::to_owned))
}

/// Users and groups (DAC) are no matter of a model that a host may lack, and libvirt leaves out those that it has made.
fn is_made(node: Node<'_, '_>) -> bool {
    let base = node.children().any(|child| child.has_tag_name("baselabel"));
    node.has_tag_name("seclabel")
        && node.attribute("type") == Some("dynamic")
        && node.attribute("model").is_some_and(|model| model != "dac")
        && !base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_libvirt_has_made_do_not_cross() {
        let xml = "<domain type='kvm'><name>a</name><devices><disk><source><seclabel model='dac' relabel='no'/></source>\
                   </disk></devices>\n<seclabel type='dynamic' model='apparmor' relabel='yes'>\n<label>libvirt-1</label>\n\
                   </seclabel><seclabel type='dynamic' model='dac' relabel='yes'/><seclabel type='dynamic' model='selinux'/>\
                   </domain>";
        let rest = unlabelled(xml).unwrap();
        assert!(
            !rest.contains("apparmor") && !rest.contains("selinux") && !rest.contains("libvirt-1"),
            "{rest}"
        );
        assert_eq!(rest.matches("model='dac'").count(), 2, "{rest}");
        assert!(
            rest.ends_with("</devices>\n<seclabel type='dynamic' model='dac' relabel='yes'/></domain>"),
            "{rest}"
        );
        assert!(unlabelled("no domain").is_err());
        assert_eq!(confined_by(xml).unwrap().as_deref(), Some("apparmor"));
    }

    #[test]
    fn labels_that_were_asked_for_cross() {
        for label in [
            "<seclabel type='static' model='apparmor' relabel='yes'><label>mine</label></seclabel>",
            "<seclabel type='none' model='apparmor'/>",
            "<seclabel type='dynamic' model='selinux'><baselabel>svirt_custom_t</baselabel></seclabel>",
            "<seclabel type='dynamic'/>",
        ] {
            let xml = format!("<domain>{label}</domain>");
            assert_eq!(unlabelled(&xml).unwrap(), xml);
            assert_eq!(confined_by(&xml).unwrap(), None);
        }
    }
}
