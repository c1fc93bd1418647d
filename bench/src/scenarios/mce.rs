//! Broadcast machine checks, native and nested, on one host and on two at the same time: each host gets each of them once
//! on each of its CPUs, and lives; on CPUs that are parked, or whose host takes none yet, L0 answers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::{
    machine::{checks::Checks, deadline::Span},
    steps::{Run, prepare::MachineArgs, successor::Successor},
};

/// Long enough for what a host does here.
const LONG: Span = Span::seconds(900);

/// Shell text: how many machine checks the CPUs of a host took so far.
const TAKEN: &str = r#"awk '$1 == "MCE:" { for (i = 2; $i ~ /^[0-9]+$/; i++) s += $i; print s }' /proc/interrupts"#;
/// Shell text: how often the log tells of an error in a bank, since it was looked at last.
const TOLD: &str = "dmesg -c | grep -c 'Machine Check Exception: 5 Bank 0: b1000000000000c0' || true";
/// Shell text: in and out of nested until it is enough.
const IN_AND_OUT: &str = "while [ ! -e /run/enough ]; do locum cycle 20 || exit 1; done; rm /run/enough";

/// The machine.
pub(super) fn machine(args: &mut MachineArgs) {
    args.machine_checks = true;
    args.timeout = args.timeout.max(1500);
}

/// Hosts that run, by generation, and how many CPUs each has.
type Hosts<'a> = &'a [(u32, u32)];

/// Machine checks to be raised.
#[derive(Clone, Copy)]
struct Ask<'a> {
    /// In which situation, for people.
    how: &'a str,
    /// How many.
    count: u64,
    /// While L0 runs on a CPU; else at any moment.
    in_l0: bool,
    /// The generation one of whose CPUs has the error in its bank; none: a CPU of each host has it.
    only: Option<u32>,
    /// What the reigning host does meanwhile, until `/run/enough` is there.
    meanwhile: Option<&'a str>,
}

impl<'a> Ask<'a> {
    const fn at_any_moment(how: &'a str, count: u64) -> Self {
        Self {
            how,
            count,
            in_l0: false,
            only: None,
            meanwhile: None,
        }
    }

    const fn in_l0(how: &'a str, count: u64) -> Self {
        Self {
            in_l0: true,
            ..Self::at_any_moment(how, count)
        }
    }
}

/// On one host: natively, with a CPU parked, nested, and on the way in and out.
pub(super) fn one_host(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    let all = [(0, run.report.cpus)];
    raised(run, &all, &Ask::at_any_moment("natively", 20))?;
    parked(run)?;
    run.sh("locum enter")?;
    raised(run, &all, &Ask::at_any_moment("nested", 20))?;
    raised(run, &all, &Ask::in_l0("nested, in L0", 40))?;
    run.sh("locum leave")?;
    let ways = Ask {
        meanwhile: Some(IN_AND_OUT),
        ..Ask::in_l0("on the way in and out", 100)
    };
    raised(run, &all, &ways)?;
    run.check_dormant()?;
    run.power_off()
}

/// On two hosts: while the second boots, and while guests run in the first and in the second, with the error in a bank of
/// each, or of one alone. At last on the second natively.
pub(super) fn two_hosts(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    let all = run.report.cpus;
    let successor = run.successor_that_halts()?;
    successor.install(&mut run.host())?;
    let [first, second] = [all - successor.cpus, successor.cpus];
    booting(run, &successor, first)?;
    run.machine.host(1).wait_ready(LONG)?;
    let both = [(0, first), (1, second)];
    let error_in = |generation, how, count| Ask {
        only: Some(generation),
        ..Ask::in_l0(how, count)
    };
    raised(run, &both, &Ask::in_l0("two hosts", 20))?;
    // No daemon has told the successor's Linux yet that there is another host.
    raised(run, &both, &error_in(1, "two hosts, the error in the successor", 10))?;
    run.let_guests_cross(&successor)?;
    raised(run, &both, &Ask::in_l0("two hosts, guests in the successor", 20))?;
    raised(run, &both, &error_in(0, "the same, the error in the incumbent", 10))?;
    raised(run, &both, &error_in(1, "the same, the error in the successor", 10))?;
    run.let_incumbent_go(&successor)?;
    let meeting = run.sh("cat /sys/devices/system/machinecheck/machinecheck0/monarch_timeout")?;
    ensure!(
        meeting.trim() != "0",
        "the CPUs of a host that is alone do not meet at machine checks"
    );
    raised(run, &[(1, all)], &Ask::at_any_moment("natively, in the successor", 20))?;
    run.check_dormant()?;
    run.power_off()
}

/// A CPU that is parked is answered for, and comes back.
fn parked(run: &mut Run) -> Result<()> {
    let last = run.report.cpus - 1;
    run.sh(&format!("echo 0 >/sys/devices/system/cpu/cpu{last}/online"))?;
    raised(run, &[(0, last)], &Ask::at_any_moment("with a CPU parked", 5))?;
    let said = format!("machine check on APIC id {last}, where no host runs");
    run.machine.wait_log("l0.log", &said, 5, LONG)?;
    run.sh(&format!("echo 1 >/sys/devices/system/cpu/cpu{last}/online"))?;
    run.check("machine checks on a parked CPU are answered, and the CPU comes back");
    Ok(())
}

/// Begins the refresh, and has machine checks raised when the successor's kernel prints its first words, so before it takes
/// any: L0 answers for it. The incumbent keeps so many CPUs.
fn booting(run: &mut Run, successor: &Successor, cpus: u32) -> Result<()> {
    // What is asked beforehand need not be asked while that kernel goes on.
    let [taken, answers] = [ask(run, 0, TAKEN)?, answered(run)?];
    run.sh(&format!("locum refresh {} --detach", successor.name))?;
    run.machine.wait_log("console1.log", "Linux version", 1, LONG)?;
    run.progress.step("machine checks, while the successor boots");
    let checks = Checks {
        count: 3,
        errors: u64::MAX,
        in_l0: false,
    };
    run.machine.machine_checks(&checks, LONG)?;
    let here = ask(run, 0, TAKEN)? - taken;
    let sent = checks.count * u64::from(cpus);
    ensure!(
        here == sent,
        "{here} machine checks arrived in the incumbent, not {sent}"
    );
    let answers = answered(run)? - answers;
    // One of the successor's CPUs boots, and the others are parked.
    let wanted = checks.count * u64::from(successor.cpus);
    ensure!(
        answers == wanted,
        "L0 answered {answers} machine checks of a successor that boots, not {wanted}: it may have been too late for them"
    );
    run.check(&format!(
        "{answers} machine checks were answered for a successor that boots"
    ));
    Ok(())
}

/// Machine checks that L0 answered so far, as its trace has them.
fn answered(run: &mut Run) -> Result<u64> {
    ask(run, 0, "locum trace --kind machine-check | grep -c answered || true")
}

/// Raises them. Afterwards each of these hosts has taken each of them on each CPU, and the guests go on.
fn raised(run: &mut Run, hosts: Hosts, wanted: &Ask) -> Result<()> {
    let Ask {
        how,
        count,
        in_l0,
        only,
        meanwhile,
    } = *wanted;
    run.progress.step(&format!("machine checks, {how}"));
    let mut before = BTreeMap::new();
    for &(generation, _) in hosts {
        before.insert(generation, ask(run, generation, TAKEN)?);
        ask(run, generation, TOLD)?;
    }
    let errors = with_errors(run, only)?;
    let job = meanwhile.map(|command| run.host().start(command)).transpose()?;
    let checks = Checks { count, errors, in_l0 };
    let taken = run.machine.machine_checks(&checks, LONG);
    let taken = taken.with_context(|| format!("machine checks, {how}"))?;
    if let Some(job) = job {
        run.sh("touch /run/enough")?;
        run.host().finish(job, LONG)?.ok()?;
    }
    for &(generation, cpus) in hosts {
        let here = ask(run, generation, TAKEN)? - before[&generation];
        let sent = count * u64::from(cpus);
        ensure!(
            here == sent,
            "{how}: {here} machine checks arrived in generation {generation}, not {sent}; {taken:?}"
        );
        let told = ask(run, generation, TOLD)?;
        let concerned = only.is_none_or(|only| only == generation);
        ensure!(
            (told > 0) == concerned,
            "{how}: the log of generation {generation} tells of {told} errors"
        );
    }
    let all = count * u64::from(run.report.cpus);
    ensure!(
        taken.all() == all,
        "{how}: the CPUs took {} of {all}: {taken:?}",
        taken.all()
    );
    ensure!(!in_l0 || taken.in_l0 > 0, "{how}: none came while L0 ran: {taken:?}");
    run.check(&format!(
        "{how}: {count} machine checks, taken by all CPUs (by exits {}, by the IDT of a nested host {}, in L0 {}, elsewhere {})",
        taken.exits, taken.in_guest, taken.in_l0, taken.elsewhere
    ));
    run.check_guests()
}

/// The first CPU of each host, or of that one, as a mask of APIC ids.
fn with_errors(run: &mut Run, only: Option<u32>) -> Result<u64> {
    let mut firsts = BTreeMap::new();
    for cpu in run.status()?.cpus {
        if let Some(slot) = cpu.owner.filter(|slot| only.is_none_or(|only| only % 2 == *slot)) {
            firsts.entry(slot).or_insert(cpu.apic_id);
        }
    }
    ensure!(!firsts.is_empty(), "no CPU is generation {only:?}'s");
    Ok(firsts.values().fold(0, |mask, id| mask | 1 << id))
}

/// A number that a command in a host prints.
fn ask(run: &mut Run, generation: u32, command: &str) -> Result<u64> {
    let text = run.machine.host(generation).run(command, LONG)?.ok()?;
    text.trim()
        .parse()
        .with_context(|| format!("{command:?} printed {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_run_is_shell_text() {
        for text in [TAKEN, TOLD, IN_AND_OUT] {
            let status = std::process::Command::new("sh").args(["-n", "-c", text]).status();
            assert!(status.unwrap().success(), "{text}");
        }
    }

    #[test]
    fn machine_checks_are_counted_over_all_cpus() {
        let table =
            " NMI: 1 2 Non-maskable interrupts\n MCE: 3 4 Machine check exceptions\n MCP: 5 6 Machine check polls\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), table).unwrap();
        let script = TAKEN.replace("/proc/interrupts", &file.path().display().to_string());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n");
    }
}
