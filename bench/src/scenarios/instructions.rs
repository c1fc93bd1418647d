//! Every instruction that exits for a host, or may, comes to the same natively and nested: executed by user space
//! (`lab-guest instructions`) and by the kernel (`--kernel`, with `host-hotplug-agent/kmod/tests/probe`).

use anyhow::{Result, ensure};

use crate::steps::Run;

/// Who executes, how, and lines at the least.
const PROBES: [(&str, &str, usize); 2] = [
    ("user space", "lab-guest instructions --check", 500),
    ("kernel", "lab-guest instructions --kernel --check", 1000),
];

/// Each instruction is tried natively, nested, and natively again.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&[])?;
    run.sh("insmod /lab_probe.ko")?;
    attempt(run, "native")?;
    run.sh("locum enter")?;
    attempt(run, "nested")?;
    run.sh("locum leave")?;
    attempt(run, "again")?;
    run.check_dormant()?;
    for (number, (who, _, least)) in PROBES.into_iter().enumerate() {
        let lines: usize = run
            .sh(&format!("wc -l < /tmp/instructions.{number}.native"))?
            .trim()
            .parse()?;
        ensure!(lines >= least, "only {lines} lines to compare of the {who}");
        for with in ["nested", "again"] {
            let differ = run.sh(&format!(
                "diff /tmp/instructions.{number}.native /tmp/instructions.{number}.{with} || true"
            ))?;
            ensure!(
                differ.trim().is_empty(),
                "instructions of the {who} come to something else ({with}) than natively:\n{differ}"
            );
        }
        run.check(&format!(
            "{lines} tries of instructions by the {who} are alike native and nested"
        ));
    }
    run.power_off()
}

fn attempt(run: &mut Run, name: &str) -> Result<()> {
    run.progress.step(&format!("instructions, {name}"));
    for (number, (_, how, _)) in PROBES.into_iter().enumerate() {
        run.sh(&format!("{how} > /tmp/instructions.{number}.{name}"))?;
    }
    Ok(())
}
