//! The board and its firmware.

use std::collections::BTreeMap;

use locum_abi::GRANTABLE_PINS;

use crate::preflight::facts::{Facts, SecureBoot};
use crate::preflight::finding::Finding;

/// IOAPICs that L0 serves while two hosts run (`MAX_IOAPICS` in its `machine`).
const MAX_IOAPICS: usize = 64;
/// Above it Linux numbers domains that no firmware knows.
const LAST_SEGMENT: u32 = 0xffff;

/// More IOAPICs than L0 filters.
pub fn ioapics(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "IOAPICs";
    let Ok(madt) = &facts.madt else { return Vec::new() };
    let count = madt.addresses.len();
    match count {
        0 => vec![Finding::refuses(
            NAME,
            "none in the MADT",
            "boot without noapic, and turn the IOAPIC on in the firmware's set-up",
        )],
        1..=MAX_IOAPICS => {
            let first = madt.gsi_bases.first().copied().unwrap_or(0);
            let last = madt.gsi_bases.iter().max().copied().unwrap_or(0);
            let found = format!("{count}, pins (GSIs) from {first}, the last one's from {last}");
            vec![match last < GRANTABLE_PINS {
                true => Finding::fine(NAME, found),
                false => Finding::hurts(
                    NAME,
                    format!("{found}: none from {GRANTABLE_PINS} on moves ahead of time"),
                    "nothing need be done, but to leave what is wired there out of `devices` and `pins`",
                ),
            }]
        }
        _ => vec![Finding::refuses(
            NAME,
            format!("{count}, and L0 filters {MAX_IOAPICS}"),
            "turn some off in the firmware's set-up (unused PCIe root complexes)",
        )],
    }
}

/// PCI functions that L0 does not know.
pub fn segments(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "PCI segments";
    let mut segments: BTreeMap<u32, usize> = BTreeMap::new();
    for function in facts.functions.iter().flatten().filter(|function| !function.bridge) {
        *segments.entry(function.address.segment()).or_default() += 1;
    }
    let list = |keep: &dyn Fn(u32) -> bool| {
        let kept = segments.iter().filter(|(segment, _)| keep(**segment));
        let words: Vec<String> = kept
            .map(|(segment, count)| format!("{count} in {segment:04x}"))
            .collect();
        words.join(", ")
    };
    let other = list(&|segment| (1..=LAST_SEGMENT).contains(&segment));
    let made_up = list(&|segment| segment > LAST_SEGMENT);
    let mut findings = Vec::new();
    if let Err(error) = &facts.functions {
        findings.push(Finding::hurts(
            NAME,
            format!("could not look ({error})"),
            "mount /sys, and run as root",
        ));
    }
    if !other.is_empty() {
        findings.push(Finding::hurts(
            NAME,
            format!("functions that no plan moves ({other}): L0 knows segment 0000 only"),
            "let no successor have drivers for them; put what is to move ahead of time into slots of segment 0000",
        ));
    }
    if !made_up.is_empty() {
        findings.push(Finding::hurts(
            NAME,
            format!("functions behind Intel VMD that move with it only ({made_up})"),
            "turn VMD off in the firmware's set-up if they are to move one by one",
        ));
    }
    if findings.is_empty() && !segments.is_empty() {
        findings.push(Finding::fine(NAME, "0000 only"));
    }
    findings
}

/// Remapping units, which two hosts cannot share.
pub fn remapping(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "IOMMU";
    let units = &facts.remapping.units;
    if !facts.remapping.dmar && units.is_empty() {
        return vec![Finding::fine(NAME, "none")];
    }
    let found = match units.is_empty() {
        true => "there is a DMAR table, which L0 hides from its hosts".to_owned(),
        false => format!("in use ({}), and L0 hides it from its hosts", units.join(", ")),
    };
    vec![Finding::hurts(
        NAME,
        format!("{found}: no device passthrough to guests"),
        "give the Locum entry intel_iommu=off intremap=off",
    )]
}

/// The tables that L0 reads.
pub fn tables(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "ACPI tables";
    match (&facts.madt, &facts.platform) {
        (Ok(_), Ok(_)) => vec![Finding::fine(NAME, "FADT, MADT and MCFG can be read")],
        (Err(error), _) | (_, Err(error)) if facts.tables_hidden => {
            vec![Finding::hurts(NAME, format!("could not look ({error})"), "run as root")]
        }
        (Err(error), _) | (_, Err(error)) => vec![Finding::refuses(
            NAME,
            error,
            "update the firmware, or report this with the tables (/sys/firmware/acpi/tables)",
        )],
    }
}

/// Whether GRUB may load L0.
pub fn secure_boot(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "Secure Boot";
    match facts.secure_boot {
        SecureBoot::Bios => vec![Finding::fine(NAME, "the firmware is a BIOS")],
        SecureBoot::Off => vec![Finding::fine(NAME, "off")],
        SecureBoot::On => vec![Finding::refuses(
            NAME,
            "on: GRUB then loads no multiboot2 image such as L0",
            "turn it off in the firmware's set-up",
        )],
        SecureBoot::Unknown => vec![Finding::hurts(
            NAME,
            "could not look (UEFI without efivars)",
            "mount efivarfs at /sys/firmware/efi/efivars, or see the firmware's set-up",
        )],
    }
}

/// Whether the kernel takes the module.
pub fn lockdown(facts: &Facts) -> Vec<Finding> {
    match facts.lockdown.as_deref() {
        None | Some("none") => Vec::new(),
        Some(mode) => vec![Finding::refuses(
            "lockdown",
            format!(
                "the kernel is locked down ({mode}): it loads no unsigned locum.ko, and nobody may see physical memory"
            ),
            "turn Secure Boot off, or boot without lockdown=",
        )],
    }
}
