//! What nested mode costs at the least, so that no change makes it dearer unnoticed.

use anyhow::{Result, ensure};

use crate::{
    machine::bochs::SKYLAKE_X,
    steps::{
        Run,
        events::{self, Price},
        exits::{Below, LAZY_LABD},
        prepare::MachineArgs,
    },
};

/// Instructions that nested mode may add to a guest's CPUID. On one CPU a tick is one.
const MORE_TICKS: u64 = 400;
/// Instructions by which two native medians may differ.
const SPREAD: u64 = 16;
/// How often.
const EVENTS: u32 = 4000;
/// Exits that the host's own timer and the asking may add to each event.
const NOISE: f64 = 0.1;

/// One CPU of a server's model, on which a tick is an instruction.
pub(super) fn machine(args: &mut MachineArgs) {
    args.cpus = 1;
    args.cpu_model = SKYLAKE_X.into();
    args.cmdline = LAZY_LABD.into();
}

/// A guest executes CPUID natively, nested, and natively again.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.begin()?;
    super::refreshes::check_apicv(run)?;
    run.prepare_counting()?;
    run.start_measuring_guest(1)?;
    let native = natively(run)?;
    run.sh("locum enter")?;
    let nested = cpuid(run)?;
    run.sh("locum leave")?;
    let again = natively(run)?;
    ensure!(
        again.ticks.abs_diff(native.ticks) <= SPREAD,
        "a stay in nested mode changed what CPUID costs natively: {native:?}, {again:?}"
    );
    // One for the guest's exit, one for KVM's VMRESUME.
    ensure!(nested.guest_exits > 0.0, "KVM counted no exit: {nested:?}");
    let entries = nested.l0_exits / nested.guest_exits;
    ensure!(
        (entries - 2.0).abs() < NOISE,
        "{entries:.2} entries of L0 for an exit of the guest: {nested:?}"
    );
    let more = nested.ticks.saturating_sub(native.ticks);
    ensure!(
        (1..=MORE_TICKS).contains(&more),
        "CPUID takes {} instructions natively and {} nested, {MORE_TICKS} more are allowed",
        native.ticks,
        nested.ticks
    );
    run.check(&format!(
        "a guest's CPUID takes {} instructions natively, {more} more and {entries:.2} entries of L0 nested",
        native.ticks
    ));
    run.power_off()
}

/// Not one exit to L0, from before the first event until after the last.
fn natively(run: &mut Run) -> Result<Price> {
    let before = run.status()?;
    ensure!(before.all_native(), "a CPU is nested: {:?}", before.cpus);
    let price = cpuid(run)?;
    let exits = run.status()?.exits.total - before.exits.total;
    ensure!(exits == 0, "native, L0 took {exits} exits");
    Ok(price)
}

fn cpuid(run: &mut Run) -> Result<Price> {
    let event = events::find("cpuid").map_err(anyhow::Error::msg)?;
    run.progress.step(event.title);
    run.measure(&event, EVENTS, Below::L0)
}
