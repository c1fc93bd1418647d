//! The running kernel.

use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;

/// The oldest kernel that gives CPUs back to firmware.
const OLDEST: (u32, u32) = (6, 11);
/// What a host's kernel must have, and what for.
const NEEDED: [(&str, &str); 10] = [
    ("ACPI_MADT_WAKEUP", "gives CPUs back to firmware"),
    ("HOTPLUG_CPU", "takes CPUs offline"),
    ("MEMORY_HOTPLUG", "adds memory"),
    ("MEMORY_HOTREMOVE", "gives memory up"),
    ("FIRMWARE_MEMMAP", "tells the firmware's memory map"),
    ("KVM_INTEL", "runs guests"),
    ("DEV_DAX", "makes the pool a device"),
    ("DEV_DAX_HMEM", "finds the pool"),
    ("MODULES", "loads locum.ko"),
    ("RANDOMIZE_BASE", "loads modules where L0 can map them"),
];

/// Its release.
pub fn release(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "kernel";
    let release = &facts.release;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = if release.is_empty() {
        "of unknown release"
    } else {
        release
    };
    vec![match version >= OLDEST {
        true => Finding::fine(NAME, found),
        false => Finding::refuses(
            NAME,
            found,
            "use Linux 6.11 or later: it gives CPUs back to firmware through the ACPI wakeup mailbox",
        ),
    }]
}

/// How it was built.
pub fn config(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "kernel configuration";
    let config = match &facts.config {
        Ok(config) => config,
        Err(error) => {
            let remedy = format!(
                "see that it has {}",
                NEEDED.map(|(option, _)| format!("CONFIG_{option}")).join(", ")
            );
            return vec![Finding::hurts(NAME, format!("could not look ({error})"), remedy)];
        }
    };
    let has = |option: &str| {
        config.lines().any(|line| {
            let value = line
                .strip_prefix("CONFIG_")
                .and_then(|line| line.strip_prefix(option))
                .and_then(|rest| rest.strip_prefix('='));
            matches!(value, Some("y" | "m"))
        })
    };
    let missing: Vec<(&str, &str)> = NEEDED.into_iter().filter(|(option, _)| !has(option)).collect();
    if missing.is_empty() {
        return vec![Finding::fine(NAME, "has all that a host needs")];
    }
    let finding = |(option, what): (&str, &str)| {
        Finding::refuses(
            NAME,
            format!("without CONFIG_{option}, which {what}"),
            "use a kernel with it, such as Debian's",
        )
    };
    missing.into_iter().map(finding).collect()
}
