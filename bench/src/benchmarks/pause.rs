//! Where the time goes while a guest crosses: by QEMU's own trace in both hosts.
//!
//! QEMU says when it has done what, by its host's clock; two looks at the clock and at the machine's TSC in each host make ticks
//! of that. Until the source's QEMU is done its steps count, and from then on the target's, which has loaded what had come.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    machine::{deadline::Span, platform::Platform},
    progress::Progress,
    steps::{Run, prepare::MachineArgs, successor::Successor},
};

/// A guest of which a table is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Guest {
    /// A q35 with 2 vCPUs, virtio disk and net
    Usual,
    /// The same with devices that have less to save
    Lean,
    /// A microvm with 1 vCPU
    Microvm,
    /// The same with 4 vCPUs
    #[value(name = "microvm-4")]
    #[serde(rename = "microvm-4")]
    Microvm4,
}

impl Guest {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Usual, Self::Lean, Self::Microvm, Self::Microvm4];

    /// Its name for `guest.sh`.
    fn name(self) -> &'static str {
        match self {
            Self::Usual | Self::Lean => "g2",
            Self::Microvm => "m128c1o0",
            Self::Microvm4 => "m128c4o0",
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usual => "q35, 2 vCPUs, usual devices",
            Self::Lean => "q35, 2 vCPUs, lean devices",
            Self::Microvm => "microvm, 1 vCPU",
            Self::Microvm4 => "microvm, 4 vCPUs",
        })
    }
}

/// What QEMU traces, in `/etc/locum/trace`, where `guest.sh` finds it in either host.
const EVENTS: &str = "vmstate_downtime_*";
/// Long enough for a file.
const LONG: Span = Span::seconds(300);
/// Around what the incumbent says on its console as it ends.
const MARKS: [&str; 2] = ["lab: the source's trace", "lab: end of the trace"];
/// Says it, waits until the line has had it, and powers off.
const TELL: &str = "{ echo; echo \"lab: the source's trace\"; lab-guest clock; cat /run/*.trace; echo 'lab: end of the trace'; } \
     >/dev/ttyS0; sleep 5; exec poweroff -f";
/// QEMU's checkpoints, and what has been done when one is reached.
const CHECKPOINTS: [(&str, &str); 8] = [
    ("src-vm-stopped", "stop the vCPUs, drain devices, flush the disk"),
    ("src-iterable-saved", "save: RAM's parts that are not shared"),
    ("src-non-iterable-saved", "save: the end of the stream"),
    ("src-downtime-end", "save: inactivate the disk, finish"),
    ("dst-precopy-loadvm-completed", "load: the end of the stream"),
    ("dst-precopy-bh-enter", "resume: the main loop's turn"),
    (
        "dst-precopy-bh-announced",
        "resume: activate the disk, announce the guest",
    ),
    ("dst-precopy-bh-vm-started", "resume: start devices and vCPUs"),
];
/// A row's share of all, in thousandths, below which it is counted with others.
const SMALL: u64 = 10;

/// Two looks at a host's clock and its TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clock([Look; 2]);

/// TSC, and nanoseconds since 1970.
type Look = (u64, u64);

impl Clock {
    /// The TSC at a time.
    fn tsc(&self, ns: u64) -> u64 {
        let Self([(tsc, at), (later, end)]) = *self;
        let rate = (later - tsc) as f64 / (end - at) as f64;
        (tsc as f64 + (ns as f64 - at as f64) * rate).round() as u64
    }

    /// Ticks of so many microseconds.
    fn ticks(&self, us: u64) -> u64 {
        self.tsc(self.0[0].1 + us * 1000) - self.0[0].0
    }
}

/// A line of QEMU's trace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// When it was written: what it tells of has just ended.
    tsc: u64,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Checkpoint(String),
    /// State of a device was saved or loaded, and the ticks that took.
    State {
        device: String,
        ticks: u64,
    },
}

/// One step of the pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// In words.
    pub step: String,
    /// How long it took.
    pub ticks: u64,
}

/// One refresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Table {
    /// Which guest crossed.
    pub guest: Guest,
    /// In order; what is between two devices is `-`, all of it in one row.
    pub rows: Vec<Row>,
    /// From QEMU's stop in the incumbent to its guest's start in the successor.
    pub ticks: u64,
    /// The same as the agents have it, from and to QEMU's events.
    pub by_agents: u64,
    /// Steps of the agents' in that, by name.
    pub steps: BTreeMap<String, u64>,
}

/// What no line of the trace tells of.
const UNTOLD: &str = "-";

impl Table {
    /// How much of it has a name, in per cent.
    fn explained(&self) -> f64 {
        let named = self.rows.iter().filter(|row| row.step != UNTOLD);
        100.0 * named.map(|row| row.ticks).sum::<u64>() as f64 / self.ticks.max(1) as f64
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.guest)?;
        let is_small = |row: &&Row| row.ticks * 1000 < self.ticks * SMALL && row.step != UNTOLD;
        for row in self.rows.iter().filter(|row| !is_small(row)) {
            writeln!(f, "{:>12}  {}", row.ticks, row.step)?;
        }
        let small: Vec<_> = self.rows.iter().filter(is_small).collect();
        let ticks: u64 = small.iter().map(|row| row.ticks).sum();
        writeln!(f, "{ticks:>12}  {} smaller steps", small.len())?;
        writeln!(f, "{:>12}  all; {:.1}% has a name", self.ticks, self.explained())?;
        write!(f, "{:>12}  by the agents: {:?}", self.by_agents, self.steps)
    }
}

/// Plays a refresh for each guest: `target/bench/pause.json`.
///
/// # Errors
/// One does not go through, or QEMU's traces do not tell of it.
pub(super) fn measure(guests: &[Guest], timeout: u64, platform: Platform) -> Result<Vec<Table>> {
    guests.iter().map(|guest| refresh(timeout, platform, *guest)).collect()
}

fn refresh(timeout: u64, platform: Platform, which: Guest) -> Result<Table> {
    let name = which.name();
    let machine = MachineArgs {
        timeout,
        platform,
        strict: true,
        ..MachineArgs::default()
    };
    let mut run = Run::boot(&machine, Progress::new("pause"))?;
    run.host().push("/etc/locum/trace", EVENTS.as_bytes(), LONG)?;
    if which == Guest::Lean {
        run.sh("touch /etc/locum/lean")?;
    }
    run.start_native(&[name.to_owned()])?;
    let before = look(&run.sh("lab-guest clock")?)?;
    let successor = Successor {
        poweroff: &["/bin/sh", "-c", TELL],
        ..run.successor()?
    };
    run.replace_host(&successor)?;
    let come = look(&run.sh("lab-guest clock")?)?;
    let target = run.sh(&format!("sleep 10; lab-guest clock; cat /run/{name}.trace"))?;
    let console = fs::read(run.machine.dir().join("console0.log"))?;
    let console = String::from_utf8_lossy(&console).replace('\r', "");
    let source = between(&console, MARKS).context("the incumbent did not say what its QEMU had traced")?;
    let guest = run.report.guest(name);
    ensure!(guest.alive && guest.checksum_ok, "{name} did not survive");
    let mut table = table(which, &lines(source, before)?, &lines(&target, come)?)?;
    table.by_agents = guest.stopped();
    table.steps = guest
        .steps
        .iter()
        .map(|step| (step.name.clone(), step.instructions))
        .collect();
    run.power_off()?;
    Ok(table)
}

fn between<'a>(text: &'a str, [begin, end]: [&str; 2]) -> Option<&'a str> {
    Some(text.split_once(begin)?.1.split_once(end)?.0.trim_start())
}

fn look(text: &str) -> Result<Look> {
    let words = text.trim().split_once(' ');
    let look = words.and_then(|(tsc, ns)| Some((tsc.parse().ok()?, ns.parse().ok()?)));
    look.with_context(|| format!("not two numbers: {text:?}"))
}

/// The lines of a trace, behind one of the host's clock, which was looked at before, too.
fn lines(text: &str, before: Look) -> Result<Vec<Line>> {
    let (first, trace) = text.split_once('\n').context("the trace is empty")?;
    let clock = Clock([before, look(first)?]);
    ensure!(clock.0[0].1 < clock.0[1].1, "the host's clock stands still: {clock:?}");
    Ok(trace.lines().filter_map(|text| line(text, &clock)).collect())
}

/// `PROCESS@SECONDS.MICROSECONDS:EVENT ARGUMENTS` (QEMU scripts/tracetool/backend/log.py); none if it is of another event.
fn line(text: &str, clock: &Clock) -> Option<Line> {
    let (_, rest) = text.split_once('@')?;
    let (time, rest) = rest.split_once(':')?;
    let (seconds, micros) = time.split_once('.')?;
    let ns = seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000;
    let (event, arguments) = rest.split_once(' ')?;
    let value = |key: &str| {
        let words = arguments.split(' ');
        words
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    };
    let what = match event {
        "vmstate_downtime_checkpoint" => What::Checkpoint(arguments.to_owned()),
        "vmstate_downtime_save" | "vmstate_downtime_load" => What::State {
            device: value("idstr")?.to_owned(),
            ticks: clock.ticks(value("downtime")?.parse().ok()?),
        },
        _ => return None,
    };
    Some(Line {
        tsc: clock.tsc(ns),
        what,
    })
}

fn table(guest: Guest, source: &[Line], target: &[Line]) -> Result<Table> {
    let at = |lines: &[Line], name: &str| {
        let line = lines.iter().find(|line| line.what == What::Checkpoint(name.to_owned()));
        line.map(|line| line.tsc)
            .with_context(|| format!("QEMU's trace has no {name}"))
    };
    let (begin, sent) = (at(source, "src-downtime-start")?, at(source, "src-downtime-end")?);
    let end = at(target, "dst-precopy-bh-vm-started")?;
    let mut rows = Vec::new();
    let mut untold = 0;
    let mut last = begin;
    let steps = source
        .iter()
        .filter(|line| (begin + 1..=sent).contains(&line.tsc))
        .map(|line| ("save", line));
    let steps = steps.chain(
        target
            .iter()
            .filter(|line| (sent + 1..=end).contains(&line.tsc))
            .map(|line| ("load", line)),
    );
    for (side, line) in steps {
        let all = line.tsc.saturating_sub(last);
        last = last.max(line.tsc);
        let (step, ticks) = match &line.what {
            What::State { device, ticks } => (format!("{side}: {device}"), all.min(*ticks)),
            What::Checkpoint(name) => match CHECKPOINTS.iter().find(|(known, _)| known == name) {
                Some((_, words)) => ((*words).to_owned(), all),
                None => (UNTOLD.to_owned(), 0),
            },
        };
        untold += all - ticks;
        rows.push(Row { step, ticks });
    }
    rows.retain(|row| row.step != UNTOLD);
    rows.push(Row {
        step: UNTOLD.to_owned(),
        ticks: untold,
    });
    Ok(Table {
        guest,
        rows,
        ticks: end - begin,
        by_agents: 0,
        steps: BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TSC of 100 MHz, in a host that has counted one second as the other has two.
    const SOURCE: &str = "3000000000 30000000000
7@10.000000:vmstate_downtime_checkpoint src-downtime-start
7@10.000100:vmstate_downtime_checkpoint src-vm-stopped
7@10.000160:vmstate_downtime_save type=non-iterable idstr=timer instance_id=0 downtime=50
7@10.000200:vmstate_downtime_checkpoint src-downtime-end
";
    const TARGET: &str = "5000000000 60000000000
some warning
8@20.000190:vmstate_downtime_load type=non-iterable idstr=timer instance_id=0 downtime=5
8@20.000400:vmstate_downtime_load type=non-iterable idstr=0000:00:04.0/virtio-net instance_id=0 downtime=150
8@20.000450:vmstate_downtime_checkpoint dst-precopy-bh-vm-started
8@20.000460:vmstate_downtime_load type=non-iterable idstr=late instance_id=0 downtime=5
";

    fn example() -> Table {
        let source = lines(SOURCE, (0, 0)).unwrap();
        let target = lines(TARGET, (0, 10_000_000_000)).unwrap();
        table(Guest::Lean, &source, &target).unwrap()
    }

    #[test]
    fn steps_of_two_hosts_are_on_one_line_of_time() {
        let table = example();
        let rows: Vec<_> = table.rows.iter().map(|row| (row.step.as_str(), row.ticks)).collect();
        assert_eq!(
            rows,
            [
                ("stop the vCPUs, drain devices, flush the disk", 10_000),
                ("save: timer", 5_000),
                ("save: inactivate the disk, finish", 4_000),
                // It ended 200 us after the source was done.
                ("load: 0000:00:04.0/virtio-net", 15_000),
                ("resume: start devices and vCPUs", 5_000),
                ("-", 6_000),
            ]
        );
        assert_eq!(table.ticks, 45_000);
        assert_eq!(rows.iter().map(|(_, ticks)| ticks).sum::<u64>(), table.ticks);
        assert!((table.explained() - 86.7).abs() < 0.1, "{}", table.explained());
        let text = table.to_string();
        assert!(
            text.starts_with("q35, 2 vCPUs, lean devices\n") && text.contains("86.7% has a name"),
            "{text}"
        );
        assert_eq!(serde_json::to_value(&table).unwrap()["guest"], "lean");
    }

    #[test]
    fn a_trace_that_lacks_an_end_is_an_error() {
        let whole = lines(SOURCE, (0, 0)).unwrap();
        let target = lines(TARGET, (0, 10_000_000_000)).unwrap();
        let error = table(Guest::Usual, &whole[..3], &target).unwrap_err();
        assert!(error.to_string().contains("src-downtime-end"), "{error}");
        assert!(lines("", (0, 0)).is_err() && lines("1 1\n", (1, 1)).is_err());
    }

    #[test]
    fn a_console_has_more_than_the_trace() {
        let [begin, end] = MARKS;
        let console = format!("boot\n{begin}\n1 2\nx\n{end}\nReboot");
        assert_eq!(between(&console, MARKS), Some("1 2\nx\n"));
        assert_eq!(between("boot\n", MARKS), None);
        assert!(TELL.contains(begin) && TELL.contains(end));
    }
}
