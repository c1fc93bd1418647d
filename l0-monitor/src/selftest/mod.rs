//! The self-test (argument `selftest`): what L0 counts on in a CPU, tried on each one without a host, and what it costs.
//!
//! Emulators do not show all that a CPU does, and nobody publishes what some VMX instructions cost. So a machine can be
//! asked before it is trusted with a host: each CPU runs a [guest] of two instructions in every way that L0 runs a host
//! ([`checks`]), and times what a nested host pays for ([`costs`]). The boot CPU writes a [table] to the log, and the
//! machine is reset.
//!
//! CPUs are tried one after the other: the others as boot starts them, before they park.

mod checks;
mod costs;
mod guest;
pub(crate) mod table;

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use locum_abi::MAX_CPUS;
use spin::Mutex;

use crate::id::{self, CpuIndex, PerCpu};
use table::Tried;

static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether each CPU has tried itself, and what it found. All zeroes at first, which an `Option` would not be, so that the
/// image need not hold it.
static RESULTS: Mutex<PerCpu<(bool, Tried)>> = Mutex::new(PerCpu([(false, Tried::NOTHING); MAX_CPUS]));

/// Has CPUs try themselves as they come up. Called at boot, before any is started.
pub(crate) fn want() {
    WANTED.store(true, Relaxed);
}

/// Whether there is to be a self-test.
pub(crate) fn wanted() -> bool {
    WANTED.load(Relaxed)
}

/// Tries this CPU, which is `cpu`, on L0's page tables and descriptor tables, with interrupts off, outside VMX
/// operation. It is so again afterwards, or if an INIT of the test has got stuck, in VMX root, where that is held.
pub(crate) fn run(cpu: CpuIndex) {
    let tried = checks::run(cpu);
    RESULTS.lock()[cpu] = (true, tried);
}

/// Writes the table of all CPUs to the log. True if nothing has failed.
pub(crate) fn report() -> bool {
    let results = RESULTS.lock();
    let cpus = id::all().map(|cpu| {
        let (tried, found) = &results[cpu];
        (id::apic_id(cpu), tried.then_some(found))
    });
    table::write(cpus, |line| log::info!("{line}"))
}
