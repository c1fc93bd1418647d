//! `locum setup`: whether the next boot goes by way of Locum.
//!
//! GRUB's environment block (`grubenv`) has one word of Locum's. Where it is 1, the entries that
//! `/etc/grub.d/20_linux_locum` has written make themselves the default, for one boot: the entry takes the word back before
//! it loads anything. A host that has come up well puts it there again. So after a boot that fails or hangs, whatever the
//! reason, GRUB takes the entry that it took before there was Locum.

pub mod defaults;
mod grub;
mod libvirt;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::image;
use crate::preflight::facts::SecureBoot;
use crate::sysroot::SysRoot;
use defaults::Defaults;
use grub::Grub;

/// L0, as the package brings it.
const L0: &str = "boot/locum-l0";
const LOCM: &str = "sys/firmware/acpi/tables/LOCM";

/// One thing that the next boot by way of Locum needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// Whether it is as it must be.
    pub ok: bool,
    /// Whether the next boot needs it; else a refresh does.
    pub needed: bool,
    /// What was found, and if it is not as it must be, what to do.
    pub text: String,
}

impl Finding {
    fn ok(what: &'static str, text: impl Into<String>) -> Self {
        Self {
            what,
            ok: true,
            needed: true,
            text: text.into(),
        }
    }

    fn bad(what: &'static str, text: impl Into<String>) -> Self {
        Self {
            ok: false,
            ..Self::ok(what, text)
        }
    }
}

/// Looks at all that the next boot needs, and then a refresh; changes nothing.
pub fn examine(sys: &SysRoot) -> Vec<Finding> {
    let grub = Grub::of(sys);
    let mut findings = vec![
        secure_boot(sys),
        l0(sys),
        entries(&grub),
        environment(&grub),
        next(&grub),
        successor(sys, &grub),
    ];
    findings.extend(libvirt::finding(sys));
    findings
}

/// Has the next boot go by way of Locum, once.
///
/// # Errors
/// If something that it needs is missing: nothing has changed then.
pub fn once(sys: &SysRoot) -> Result<()> {
    let missing: Vec<String> = examine(sys)
        .into_iter()
        .filter(|finding| finding.needed && !finding.ok)
        .map(|finding| format!("{}: {}", finding.what, finding.text))
        .collect();
    if !missing.is_empty() {
        bail!("the next boot stays as it is. {}", missing.join("; "));
    }
    Grub::of(sys).set_next()
}

/// What became of a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// The next boot goes by way of Locum, too.
    Stays,
    /// The operator does not want it to (`LOCUM_STAY`).
    NotWanted,
}

/// This boot went by way of Locum and ended well.
///
/// # Errors
/// If it did not go by way of Locum, or GRUB's environment block cannot be written.
pub fn confirm(sys: &SysRoot) -> Result<Confirmed> {
    if !sys.exists(LOCM) {
        bail!("this host runs without L0: there is nothing to confirm");
    }
    if Defaults::read(sys).get("LOCUM_STAY") == Some("no") {
        return Ok(Confirmed::NotWanted);
    }
    let grub = Grub::of(sys);
    if let Some(why) = grub.unwritable() {
        bail!("{why}");
    }
    grub.set_next()?;
    Ok(Confirmed::Stays)
}

fn secure_boot(sys: &SysRoot) -> Finding {
    const WHAT: &str = "Secure Boot";
    match SecureBoot::read(sys) {
        SecureBoot::On => Finding::bad(
            WHAT,
            "it is on, and GRUB starts nothing that nobody has signed; switch it off in the firmware's set-up",
        ),
        _ => Finding::ok(WHAT, "it is not on"),
    }
}

fn l0(sys: &SysRoot) -> Finding {
    const WHAT: &str = "L0";
    if sys.exists(L0) {
        Finding::ok(WHAT, format!("/{L0} is there"))
    } else {
        Finding::bad(WHAT, format!("there is no /{L0}; install the package anew"))
    }
}

fn entries(grub: &Grub<'_>) -> Finding {
    const WHAT: &str = "GRUB's menu";
    match grub.newest_entry() {
        Some(id) => Finding::ok(WHAT, format!("entry {id}")),
        None => Finding::bad(
            WHAT,
            "it has no entry by way of Locum; each needs a kernel with its initramfs and a locum.ko for it (`dkms status`); \
             then `update-grub`",
        ),
    }
}

fn environment(grub: &Grub<'_>) -> Finding {
    const WHAT: &str = "boot once";
    match grub.unwritable() {
        None => Finding::ok(WHAT, "GRUB can write its environment block"),
        Some(why) => Finding::bad(WHAT, why),
    }
}

/// What a refresh to the newest kernel starts from.
fn successor(sys: &SysRoot, grub: &Grub<'_>) -> Finding {
    let id = grub.newest_entry().unwrap_or_default();
    let version = id.strip_prefix(grub::PREFIX).unwrap_or(&id);
    let finding = if version.is_empty() {
        Finding::bad("successor", "there is no kernel with a locum.ko")
    } else if image::is_fresh(sys, version) {
        Finding::ok("successor", format!("its image for {version} is there"))
    } else {
        Finding::bad(
            "successor",
            format!("it has no image yet that is of what is installed now: `locum image {version}`"),
        )
    };
    Finding {
        needed: false,
        ..finding
    }
}

fn next(grub: &Grub<'_>) -> Finding {
    const WHAT: &str = "next boot";
    match grub.next() {
        Ok(true) => Finding::ok(WHAT, "by way of Locum"),
        Ok(false) => Finding::ok(WHAT, "as without Locum"),
        Err(error) => Finding::bad(WHAT, format!("{error:#}; is grub-common installed?")),
    }
}
