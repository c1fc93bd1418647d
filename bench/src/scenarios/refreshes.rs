//! Hosts replaced one after the other under their guests, which stand still no longer than they may.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::faults::{self, Fault};
use crate::{
    machine::{
        bochs::{self, SKYLAKE_X},
        deadline::length,
    },
    report::Guest,
    steps::{Run, successor::Successor},
};

/// Ticks from QEMU's stop in the one host to its resume in the other that a guest may take: 6 million for a microvm, 60
/// for one with devices; and twice in each of three steps a slice of the scheduler's (3 ms) for whoever else uses that
/// CPU. On the server's model that is most of it: the others watch over the work.
pub(super) fn pause_limit(guest: &str, cpu_model: &str) -> u64 {
    let work = if guest == "g1" { 6_000_000 } else { 60_000_000 };
    let slice = 3 * bochs::tsc_hz(cpu_model).unwrap_or(bochs::IPS) / 1000;
    work + 6 * slice
}

/// Whether a guest stood still at all, and for less than `limit` ticks from QEMU's stop to its resume.
pub(super) fn check_pause(guest: &Guest, limit: u64) -> Result<()> {
    let stopped = guest.stopped();
    ensure!(
        (1..limit).contains(&stopped),
        "guest {} stood still for {stopped} instructions ({}); the limit is {limit}",
        guest.name,
        guest.told(),
    );
    Ok(())
}

/// The watcher's word may be so many times as much: while others take the successor's CPUs, its own absence counts.
const WATCHER: u64 = 10;

/// On a CPU that has all of it, KVM in the reigning host uses APICv: else the scenario does not show what it says.
pub(super) fn check_apicv(run: &mut Run) -> Result<()> {
    if run.cpu_model == SKYLAKE_X {
        let used = run.sh("cat /sys/module/kvm_intel/parameters/enable_apicv")?;
        ensure!(used.trim() == "Y", "KVM does not use APICv: {used}");
        run.check(&format!("generation {}: KVM uses APICv", run.generation));
    }
    Ok(())
}

/// So many refreshes in one boot, the kernels taking turns.
pub(super) fn all(run: &mut Run, guests: &[&str], count: u32) -> Result<()> {
    with(run, guests, count, None)
}

/// As [`all`]; each with a fault in it, through which it goes.
pub(super) fn with(run: &mut Run, guests: &[&str], count: u32, fault: Option<&Fault>) -> Result<()> {
    let guests: Vec<_> = guests.iter().map(|name| (*name).to_owned()).collect();
    run.start_native(&guests)?;
    run.kaslr()?;
    run.check("generation 0: KASLR on, its image below the memory that successors get");
    check_apicv(run)?;
    let releases = [run.to.clone(), run.report.incumbent.clone()];
    let mut lost = None;
    for release in releases.iter().cycle().take(count as usize) {
        let successor = run.successor_of(release)?;
        match fault {
            Some(fault) => faults::meet(run, fault, &successor)?,
            None => run.replace_host(&successor)?,
        }
        check_apicv(run)?;
        for guest in &run.report.guests {
            let limit = pause_limit(&guest.name, &run.cpu_model);
            check_pause(guest, limit)?;
            let (seen, by) = (guest.pause_instructions, &guest.pause_seen_by);
            let most = limit * WATCHER;
            ensure!(
                seen < most,
                "guest {} stood still for {seen} instructions as seen by {by}; the limit is {most}",
                guest.name,
            );
            let hz = bochs::tsc_hz(&run.cpu_model).unwrap_or(bochs::IPS);
            let (fell, longest) = (Duration::from_nanos(guest.vdso_fell_ns), length(limit, hz));
            ensure!(
                fell < longest,
                "guest {}: the vDSO's clock fell by {fell:?}, more than the longest pause of {longest:?}",
                guest.name,
            );
        }
        let now = run.report.unreclaimed_bytes;
        ensure!(
            lost.is_none_or(|lost| now <= lost),
            "unreclaimed memory grew to {now} bytes"
        );
        lost = Some(now);
    }
    run.power_off()
}

/// Milliseconds of its host after which the disk of [`late_disk`]'s guest answers.
const LATE: u64 = 100;
/// Requests that it has at once, as `guest.sh` has it.
const AT_ONCE: u32 = 4;

/// A disk that does what it is asked for late, so that as a rule requests are under way when the guest is stopped. One that came to
/// nothing, or was done after a later one of the next host's, would leave a block that is not what the guest wrote there last.
pub(super) fn late_disk(run: &mut Run) -> Result<()> {
    run.sh(&format!("echo {LATE} >/etc/locum/late"))?;
    run.start_native(&["g2".to_owned()])?;
    requests_wait(run)?;
    let successor = run.successor()?;
    run.replace_host(&successor)?;
    requests_wait(run)?;
    // QEMU waits for the answers, and then for that to a flush.
    let answers = 2 * LATE * bochs::tsc_hz(&run.cpu_model).unwrap_or(bochs::IPS) / 1000;
    let limit = pause_limit("g2", &run.cpu_model) + answers;
    let guest = run.report.guest("g2");
    check_pause(guest, limit)?;
    // A flush at least.
    ensure!(
        guest.stopped() > answers / 2,
        "the disk was not asked while the guest stood still, for {} ticks",
        guest.stopped()
    );
    run.power_off()
}

fn requests_wait(run: &mut Run) -> Result<()> {
    let said = run.sh("tail -n 1 /run/g2.disk.log")?;
    let most = said.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
    ensure!(
        most.is_some_and(|most| most >= AT_ONCE),
        "the disk's server has not had {AT_ONCE} requests at once: {said:?}"
    );
    run.check(&format!(
        "generation {}: g2's disk is {LATE} ms late, and has had {AT_ONCE} requests at once",
        run.generation
    ));
    Ok(())
}

/// A successor that has no RAM below 4 GiB, so without a card: the lab's know 32-bit DMA only.
pub(super) fn above_4g(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".to_owned()])?;
    run.kaslr()?;
    let successor = Successor {
        device: None,
        ..run.successor_of(&run.to.clone())?
    };
    run.replace_host(&successor)?;
    let image = run.kernel_image()?;
    ensure!(
        image.start >= 4 << 30,
        "the successor's kernel is at {image:#x?}, below 4 GiB"
    );
    run.check("the successor's kernel is above 4 GiB");
    run.power_off()
}
