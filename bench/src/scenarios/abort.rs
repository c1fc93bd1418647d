//! Successors that do not come up: the incumbent gets everything back and says why.

use anyhow::{Context, Result, bail, ensure};

use crate::steps::{
    Run,
    refresh::Outcome,
    successor::{Kernel, Successor},
};

/// Emulated seconds that a successor gets which never says anything.
const SHORT: u64 = 20;

/// A way in which a successor fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    what: &'static str,
    kernel: Kernel,
    cmdline: &'static str,
}

/// Random bytes for a kernel.
pub(super) const GARBAGE: Failure = Failure::of("garbage for a kernel", Kernel::Garbage);
/// Interrupts off, for ever.
pub(super) const HANG: Failure = Failure::of("a kernel that hangs with interrupts off", Kernel::HANG);
/// A triple fault.
pub(super) const TRIPLE_FAULT: Failure = Failure::of("a triple fault", Kernel::TRIPLE_FAULT);
/// A write to the incumbent's memory.
pub(super) const WILD_WRITE: Failure = Failure::of("a write to the incumbent's memory", Kernel::WILD_WRITE);
/// A kernel that finds no init.
pub(super) const PANIC: Failure = Failure {
    what: "a kernel that panics",
    kernel: Kernel::Stock,
    cmdline: "rdinit=/nothing root=/nothing",
};

impl Failure {
    const fn of(what: &'static str, kernel: Kernel) -> Self {
        Self {
            what,
            kernel,
            cmdline: "",
        }
    }
}

/// One refresh after the other fails under the guests; then one goes through.
pub(super) fn each(run: &mut Run, guests: &[String], failures: &[Failure]) -> Result<()> {
    run.start_native(guests)?;
    let good = run.successor()?;
    let facts = Facts::of(run)?;
    for failure in failures {
        fails(run, &good, *failure).with_context(|| failure.what.to_owned())?;
        facts.still(run)?;
        run.check_dormant()?;
    }
    // What was taken back is as good as new.
    run.replace_host(&good)
}

fn fails(run: &mut Run, good: &Successor, failure: Failure) -> Result<()> {
    let panics = failure.kernel == Kernel::Stock;
    if panics {
        run.machine.expect_panic("console1.log");
    }
    let successor = Successor {
        kernel: failure.kernel,
        cmdline: failure.cmdline.to_owned(),
        // A kernel that gets as far as a panic needs longer than one that does nothing: 14 emulated seconds.
        boot_timeout: if panics { 45 } else { SHORT },
        ..good.clone()
    };
    let words = match run.refresh(&successor)? {
        Outcome::Failed(words) => words,
        Outcome::Done => bail!("the refresh went through with a successor that cannot boot"),
    };
    let error = words.lines().last().unwrap_or_default();
    ensure!(!error.trim().is_empty(), "the refresh failed without a word");
    if panics {
        let console = run.machine.log("console1.log");
        ensure!(
            console.contains("Kernel panic"),
            "the successor did not panic as it should have"
        );
    }
    run.check(&format!("{}: given up: {error}", failure.what));
    Ok(())
}

/// What an incumbent has that a failed refresh must not change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    online: String,
    memory: String,
    devices: String,
    owned: usize,
}

impl Facts {
    pub(super) fn of(run: &mut Run) -> Result<Self> {
        let status = run.status()?;
        Ok(Self {
            online: run.sh("cat /sys/devices/system/cpu/online")?,
            memory: run.sh("cat /sys/devices/system/memory/memory*/state | sort | uniq -c")?,
            devices: run.sh("ls /sys/bus/pci/devices")?,
            owned: status.cpus.iter().filter(|cpu| cpu.owner == Some(0)).count(),
        })
    }

    pub(super) fn still(&self, run: &mut Run) -> Result<()> {
        let now = Self::of(run)?;
        ensure!(
            *self == now,
            "the incumbent has not got everything back:\nbefore {self:?}\nafter {now:?}"
        );
        run.check("the incumbent has its CPUs, memory and devices back");
        Ok(())
    }
}
