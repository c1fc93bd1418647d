//! Hosts with a crash kernel (kdump): what a host that panics leaves, and who waits for that.

use anyhow::{Context, Result, ensure};

use super::faults;
use crate::{
    machine::layout::Layout,
    steps::{Run, prepare::MachineArgs, successor::Successor, vmcore},
};

/// The incumbent's console, and its crash kernel's.
const CONSOLE: &str = "console0.log";

/// A machine whose first host can have a crash kernel.
pub(super) fn machine(args: &mut MachineArgs) {
    args.layout = Layout::CRASH;
    args.crash = true;
    args.cmdline = "crashkernel=224M".into();
}

/// The incumbent panics when the first of two guests has crossed, and writes its dump: the successor waits for that, and then
/// takes the machine over, with that guest.
pub(super) fn waited_for(run: &mut Run) -> Result<()> {
    let (begin, end) = (1024, 1024 + run.layout.successor);
    let successor = dumps(run, &format!("lab.foreign={begin}-{end}"), 1500)?;
    let console = run.machine.log(CONSOLE);
    let told = vmcore::Told::parse(&console, &run.machine.dir().join("vmcore.head"))?;
    told.check(&run.report.incumbent, run.report.cpus / 2, end - begin)?;
    run.check("its crash kernel had a whole dump, with its notes and its log, and read zeroes where memory is the other host's");
    let lost = run.status()?.last_report.context("there is no report")?.losses;
    ensure!(
        !lost.iter().any(|loss| loss.contains("dump")),
        "the dump was cut off: {lost:?}"
    );
    // What the crash kernel read zeroes for was what the successor booted in.
    let map =
        run.sh("cd /sys/firmware/memmap; for e in *; do echo $(cat $e/type) $(cat $e/start) $(cat $e/end); done")?;
    let own = format!(
        "System RAM {:#x} {:#x}",
        u64::from(begin) << 20,
        (u64::from(end) << 20) - 1
    );
    ensure!(
        map.contains(&own),
        "the successor did not boot in {own}, but in:\n{map}"
    );
    and_on(run, &successor)
}

/// As [`waited_for`], but the dump does not end.
pub(super) fn cut_off(run: &mut Run) -> Result<()> {
    // Until its first process the crash kernel takes more than half of that: its image is checked and unpacked first.
    let successor = dumps(run, "lab.linger", 120)?;
    let console = run.machine.log(CONSOLE);
    ensure!(console.contains("crash: lingers"), "no crash kernel ran");
    let lost = run.status()?.last_report.context("there is no report")?.losses;
    ensure!(
        lost.iter().any(|loss| loss.contains("timeouts.dump")),
        "it is not told that the dump was cut off: {lost:?}"
    );
    run.check("the dump took too long: it was cut off and told");
    and_on(run, &successor)
}

/// The incumbent panics with a crash kernel loaded that is given these words; returns when the successor reigns.
fn dumps(run: &mut Run, words: &str, dump_timeout: u64) -> Result<Successor> {
    run.start_native(&["g1".into(), "g2".into()])?;
    run.sh(&format!("/own/crash/load {words}"))?;
    let successor = Successor {
        dump_timeout,
        ..run.successor()?
    };
    successor.install(&mut run.host())?;
    faults::arm_panic(run)?;
    run.sh(&format!("locum refresh {} --detach", successor.name))?;
    run.sees_dump(&successor)?;
    let report = run.succeeded_by(&successor)?;
    let error = report.error.unwrap_or_default();
    ensure!(
        error.contains("the incumbent died") && error.contains("panicked"),
        "no word of the incumbent's panic: {error:?}"
    );
    run.lose_guest("g2");
    let trace = run.sh("locum trace")?;
    ensure!(
        trace.contains("has panicked and writes a dump"),
        "no word of the dump in L0's trace:\n{trace}"
    );
    Ok(successor)
}

/// The successor has the whole machine, and is replaced as if nothing had been.
fn and_on(run: &mut Run, successor: &Successor) -> Result<()> {
    run.check_whole(successor)?;
    let release = run.report.incumbent.clone();
    let next = run.successor_of(&release)?;
    run.replace_host(&next)?;
    run.power_off()
}
