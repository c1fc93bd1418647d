//! Guests that run now: can they cross?

use crate::preflight::facts::{Facts, Qemu};
use crate::preflight::finding::Finding;

/// The oldest QEMU that leaves RAM where it is (`x-ignore-shared`).
const OLDEST: (u32, u32) = (4, 0);
/// The oldest that puts several guests into one file (`offset` of memory-backend-file).
const WITH_OFFSET: (u32, u32) = (8, 1);
/// CPU models that show the guest whatever host and QEMU have.
const HOST_MODELS: [&str; 2] = ["host", "max"];

/// One finding for each thing that keeps a guest here.
pub fn running(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "guests";
    if facts.guests.is_empty() {
        return vec![Finding::fine(NAME, "no QEMU runs")];
    }
    let mut findings = Vec::new();
    for guest in &facts.guests {
        let troubles = troubles(guest);
        let who = format!("process {} ({})", guest.pid, guest.name);
        if troubles.is_empty() {
            findings.push(Finding::fine(
                "guest",
                format!("{who} can cross once its RAM lies in the pool"),
            ));
        }
        let finding = |(found, remedy): (String, String)| Finding::hurts("guest", format!("{who} {found}"), remedy);
        findings.extend(troubles.into_iter().map(finding));
    }
    findings
}

fn troubles(guest: &Qemu) -> Vec<(String, String)> {
    let mut troubles = Vec::new();
    let mut add = |found: &str, remedy: &str| troubles.push((found.to_owned(), remedy.to_owned()));
    match guest.version {
        Some(version) if version < OLDEST => add(
            "runs in a QEMU older than 4.0, which copies RAM",
            "restart it in QEMU 4.0 or later",
        ),
        Some(version) if version < WITH_OFFSET => add(
            "runs in a QEMU older than 8.1, which knows no `offset` in a file",
            "make one device-DAX device for each such guest",
        ),
        _ => {}
    }
    if !guest.ram_in_shared_file {
        add(
            "has its RAM in no shared memory-backend-file",
            "start it with -object memory-backend-file,...,share=on and -machine memory-backend=...: README, step 3",
        );
    }
    if !guest.qmp {
        add(
            "has no QMP socket of its own",
            "start it with -qmp unix:PATH,server=on,wait=off",
        );
    }
    if guest.passthrough {
        add(
            "has devices of the machine (vfio)",
            "replace them by virtio devices: above L0 there is no device passthrough",
        );
    }
    match guest.machine.as_deref() {
        Some(machine) if machine.starts_with("microvm") => add(
            "is a microvm, whose machine type has no versions",
            "have the same release of QEMU in both hosts",
        ),
        None => add(
            "has the default machine type",
            "name a versioned one (-machine help): QEMUs of two releases have two defaults",
        ),
        _ => {}
    }
    if let Some(cpu) = guest.cpu.as_deref().filter(|cpu| HOST_MODELS.contains(cpu)) {
        add(
            &format!("has the CPU model `{cpu}`, which shows what host and QEMU have"),
            "have the same CPU arguments of the kernel and the same release of QEMU in both hosts, or name a model",
        );
    }
    if let Some(bound) = &guest.bound {
        add(
            &format!("was started with {bound}"),
            "give it a `command` that opens and makes these itself",
        );
    }
    troubles
}
