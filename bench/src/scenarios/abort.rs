//! Successors that do not come up: the incumbent gets everything back and says why.

use anyhow::{Result, bail, ensure};

use crate::{
    boot::SUCCESSOR,
    demo, kernel,
    run::{Outcome, Run},
    successor::Kernel,
};

/// Emulated seconds that a successor gets which never says anything.
const SHORT: u64 = 20;

pub fn garbage(run: &mut Run) -> Result<()> {
    fails(run, Kernel::Garbage, "")
}

pub fn hang(run: &mut Run) -> Result<()> {
    fails(run, Kernel::HANG, "")
}

pub fn triple_fault(run: &mut Run) -> Result<()> {
    fails(run, Kernel::TRIPLE_FAULT, "")
}

pub fn wild_write(run: &mut Run) -> Result<()> {
    fails(run, Kernel::WILD_WRITE, "")
}

pub fn panic(run: &mut Run) -> Result<()> {
    run.machine.expect_panic("console1.log");
    fails(run, Kernel::Stock, "rdinit=/nothing root=/nothing")?;
    let console = run.machine.log("console1.log");
    ensure!(
        console.contains("Kernel panic"),
        "the successor did not panic as it should have"
    );
    Ok(())
}

fn fails(run: &mut Run, kernel: Kernel, cmdline: &str) -> Result<()> {
    demo::native(run, &[])?;
    let facts = Facts::of(run)?;
    let mut successor = demo::successor(run, &kernel::full_release(SUCCESSOR)?)?;
    let good = successor.clone();
    successor.kernel = kernel;
    successor.cmdline = cmdline.to_owned();
    // A kernel that gets as far as a panic needs longer than one that does nothing.
    successor.boot_timeout = if kernel == Kernel::Stock { 120 } else { SHORT };
    let words = match run.refresh(&successor)? {
        Outcome::Failed(words) => words,
        Outcome::Done => bail!("the refresh went through with a successor that cannot boot"),
    };
    let error = words.lines().last().unwrap_or_default();
    ensure!(
        !error.trim().is_empty(),
        "the refresh failed without a word"
    );
    run.check(&format!("the refresh is given up: {error}"));
    facts.still(run)?;
    run.check_dormant()?;
    // What was taken back is as good as new.
    demo::refresh(run, &good)
}

/// What an incumbent has that a failed refresh must not change.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    online: String,
    memory: String,
    devices: String,
    owned: usize,
}

impl Facts {
    fn of(run: &mut Run) -> Result<Self> {
        let status = run.status()?;
        Ok(Self {
            online: run.sh("cat /sys/devices/system/cpu/online")?,
            memory: run.sh("cat /sys/devices/system/memory/memory*/state | sort | uniq -c")?,
            devices: run.sh("ls /sys/bus/pci/devices")?,
            owned: status
                .cpus
                .iter()
                .filter(|cpu| cpu.owner == Some(0))
                .count(),
        })
    }

    fn still(&self, run: &mut Run) -> Result<()> {
        let now = Self::of(run)?;
        ensure!(
            *self == now,
            "the incumbent has not got everything back:\nbefore {self:?}\nafter {now:?}"
        );
        run.check("the incumbent has its CPUs, memory and devices back");
        Ok(())
    }
}
