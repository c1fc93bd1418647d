//! Every instruction that exits for a host, or may, comes to the same natively and nested.

use anyhow::{Result, ensure};

use crate::steps::Run;

/// Lines that are compared, at the least: instructions, in two modes, three ways.
const LINES: usize = 300;

/// User space tries each instruction natively, nested, and natively again.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&[])?;
    attempt(run, "native")?;
    run.sh("locum enter")?;
    attempt(run, "nested")?;
    run.sh("locum leave")?;
    attempt(run, "again")?;
    run.check_dormant()?;
    let lines: usize = run.sh("wc -l < /tmp/instructions.native")?.trim().parse()?;
    ensure!(lines >= LINES, "only {lines} lines to compare");
    for with in ["nested", "again"] {
        let differ = run.sh(&format!(
            "diff /tmp/instructions.native /tmp/instructions.{with} || true"
        ))?;
        ensure!(
            differ.trim().is_empty(),
            "instructions come to something else ({with}) than natively:\n{differ}"
        );
    }
    run.check(&format!(
        "{lines} tries of instructions in user space are alike native and nested"
    ));
    run.power_off()
}

fn attempt(run: &mut Run, name: &str) -> Result<()> {
    run.progress.step(&format!("instructions, {name}"));
    run.sh(&format!("lab-guest instructions > /tmp/instructions.{name}"))?;
    Ok(())
}
