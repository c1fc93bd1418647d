//! NMIs between the CPUs of a host, native and nested: each arrives, and none at the other host.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::{machine::deadline::Span, steps::Run};

/// Rounds in which a host has all its CPUs tell where they are.
const ROUNDS: u64 = 200;

/// Long enough for them.
const LONG: Span = Span::seconds(900);

/// Shell text: the rounds, and then for each CPU how often it told, and how many NMIs it took. A CPU that sends tells
/// without an NMI (`nmi_trigger_cpumask_backtrace()` in lib/nmi_backtrace.c).
const TRACES: &str = r#"nmis() { awk 'NR == 1 { n = NF } $1 == "NMI:" { s = 0; for (i = 2; i <= n + 1; i++) s += $i; print s }' /proc/interrupts; }
dmesg -n 1; dmesg -c >/dev/null; before=$(nmis)
for i in $(seq ROUNDS); do echo l >/proc/sysrq-trigger; dmesg -c | grep -o 'NMI backtrace for cpu [0-9]*'; done |
    awk '{ told[$NF]++ } END { for (cpu in told) print "cpu", cpu, told[cpu] }'
echo nmis $(($(nmis) - before)); dmesg -n 7"#;

/// On one host natively; then on both of a refresh, nested, while guests run in the incumbent and when they have crossed; and
/// on the successor natively.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    let all = run.report.cpus;
    each(run, &[(0, all)], "natively")?;
    run.check_guests()?;
    let successor = run.successor_that_halts()?;
    successor.install(&mut run.host())?;
    run.sh(&format!("locum refresh {} --detach", successor.name))?;
    run.machine.host(1).wait_ready(LONG)?;
    let both = [(0, all - successor.cpus), (1, successor.cpus)];
    each(run, &both, "nested, the guests in the incumbent")?;
    run.check_guests()?;
    run.let_guests_cross(&successor)?;
    each(run, &both, "nested, the guests in the successor")?;
    run.let_incumbent_go(&successor)?;
    each(run, &[(1, all)], "natively, in the successor")?;
    run.check_guests()?;
    run.power_off()
}

/// Has these hosts trace all their CPUs at the same time, generation and number of CPUs of each.
fn each(run: &mut Run, hosts: &[(u32, u32)], how: &str) -> Result<()> {
    run.progress.step(&format!("NMIs, {how}"));
    let script = TRACES.replace("ROUNDS", &ROUNDS.to_string());
    let mut jobs = Vec::new();
    for &(generation, cpus) in hosts {
        let job = run.machine.host(generation).start(&script)?;
        jobs.push((generation, cpus, job));
    }
    for (generation, cpus, job) in jobs {
        let text = run.machine.host(generation).finish(job, LONG)?.ok()?;
        let told = parse(&text)?;
        ensure!(
            told.cpus.len() as u64 == u64::from(cpus) && told.cpus.values().all(|traces| *traces == ROUNDS),
            "{how}, generation {generation}: not each of {cpus} CPUs told {ROUNDS} times where it was:\n{text}"
        );
        let sent = ROUNDS * u64::from(cpus - 1);
        ensure!(
            told.nmis == sent,
            "{how}, generation {generation}: {} NMIs arrived, {sent} were sent",
            told.nmis
        );
        run.check(&format!(
            "{how}: {sent} NMIs were sent in generation {generation}, and so many arrived"
        ));
    }
    Ok(())
}

/// What [`TRACES`] prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// How often each CPU told where it was.
    cpus: BTreeMap<u32, u64>,
    /// NMIs that all of them took.
    nmis: u64,
}

fn parse(text: &str) -> Result<Told> {
    let mut told = Told::default();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["cpu", cpu, traces] => drop(told.cpus.insert(cpu.parse()?, traces.parse()?)),
            ["nmis", nmis] => told.nmis = nmis.parse()?,
            _ => {}
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_and_nmis_are_read() {
        let told = parse("cpu 0 200\ncpu 1 199\nnmis 200\n").unwrap();
        assert_eq!(told.cpus, BTreeMap::from([(0, 200), (1, 199)]));
        assert_eq!(told.nmis, 200);
        assert!(parse("cpu x 1").is_err());
    }

    #[test]
    fn the_rounds_are_shell_text() {
        let status = std::process::Command::new("sh")
            .args(["-n", "-c", TRACES])
            .status()
            .unwrap();
        assert!(status.success());
    }
}
