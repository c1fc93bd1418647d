//! Workload A on a Redis server in a guest, under every set-up: the figures of figure 1.
//!
//! The client (`lab-ycsb`) runs in the host of the guest and counts what it can reach there, around its operations
//! alone: ticks, KVM's statistics, L0's exits. The rest is read by the lab around the client's run, of which
//! an empty one is taken off: L0's reasons, and the exits of the KVM below a nested host.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, ensure};
use lab_ycsb::report::{self, Latency, Repetition};
use serde::Serialize;

use super::{
    bed::{Bed, BedArgs, SetUp},
    figure::{self, Entry, PAPER, Spread},
    model::Costs,
};
use crate::{machine::platform::Platform, steps::exits::Counts};

/// Operations of the repetition that is traced, at most: tracing makes every exit dearer.
const TRACED: u64 = 1000;
/// Repetitions draw from seeds that start here; the warm-up has the one before.
const SEED: u64 = 1;
/// The client, with the guest's address (`redis.sh`).
const CLIENT: &str = "lab-ycsb --server 10.0.7.2:6379";
/// KVM's tracepoint of an exit.
const TRACEPOINT: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";

/// How to play.
#[derive(Debug, Clone)]
pub(crate) struct RedisArgs {
    /// Set-ups, of which plain KVM is the baseline.
    pub set_ups: Vec<SetUp>,
    /// Records in the server.
    pub records: u64,
    /// Operations before the first repetition.
    pub warmup: u64,
    /// Operations of a repetition.
    pub operations: u64,
    /// Repetitions.
    pub repetitions: u64,
    /// Clients at the same time.
    pub threads: u64,
    /// The machines.
    pub bed: BedArgs,
}

/// Figure 1.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// What ran the machines.
    pub platform: String,
    /// CPUs of the host.
    pub cpus: u32,
    /// Records in the server.
    pub records: u64,
    /// Operations before the first repetition.
    pub warmup: u64,
    /// Repetitions of every set-up.
    pub repetitions: u64,
    /// Clients at the same time (YCSB's `threadcount`).
    pub threads: u64,
    /// Model of the CPUs.
    pub cpu_model: String,
    /// The set-ups that were played.
    pub setups: Vec<Entry>,
    /// What the paper's figure says, in percent of overhead.
    pub paper_overhead_percent: BTreeMap<SetUp, f64>,
    /// What the model is made of.
    pub costs: Costs,
    /// Set-ups that could not be played, and why.
    pub errors: BTreeMap<SetUp, String>,
}

impl Figure {
    /// Draws it, as SVG.
    ///
    /// # Errors
    /// The drawing library refuses.
    pub(crate) fn draw(&self) -> Result<String> {
        figure::draw(&self.setups, self.threads)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&figure::table(&self.setups))?;
        for (set_up, error) in &self.errors {
            writeln!(f, "{} could not be played: {error}", set_up.title())?;
        }
        Ok(())
    }
}

/// Plays workload A under every set-up; `save` gets the figure after each of them.
///
/// # Errors
/// The table of costs is malformed, or saving fails. A set-up that fails is an entry of [`Figure::errors`].
pub(crate) fn measure(args: &RedisArgs, save: impl Fn(&Figure) -> Result<()>) -> Result<Figure> {
    let mut wanted = args.set_ups.clone();
    wanted.sort_unstable();
    wanted.dedup();
    let mut figure = Figure {
        platform: args.bed.platform.to_string(),
        cpus: args.bed.cpus,
        records: args.records,
        warmup: args.warmup,
        repetitions: args.repetitions,
        threads: args.threads,
        cpu_model: args.bed.cpu_model.clone(),
        setups: Vec::new(),
        paper_overhead_percent: PAPER.iter().copied().collect(),
        costs: Costs::table()?,
        errors: BTreeMap::new(),
    };
    let mut bed: Option<Bed> = None;
    for set_up in wanted {
        match play(set_up, args, bed.take()) {
            Ok((entry, used)) => {
                figure.setups.push(entry);
                bed = Some(used);
            }
            Err(error) => {
                figure.errors.insert(set_up, format!("{error:#}"));
            }
        }
        figure::compare(&mut figure.setups, &figure.costs);
        save(&figure)?;
    }
    if let Some(bed) = bed {
        bed.power_off()?;
    }
    Ok(figure)
}

/// Plays one set-up. The bed of the one before serves again if it only has to be made nested: then it is the same
/// guest.
fn play(set_up: SetUp, args: &RedisArgs, before: Option<Bed>) -> Result<(Entry, Bed)> {
    let mut bed = match before {
        Some(mut bed) if set_up == SetUp::LocumNested && bed.set_up() == SetUp::LocumNative => {
            bed.nest()?;
            bed
        }
        other => {
            if let Some(other) = other {
                other.power_off()?;
            }
            let mut bed = Bed::boot(set_up, &args.bed)?;
            start_server(&mut bed)?;
            bed
        }
    };
    let entry = run(&mut bed, args)?;
    Ok((entry, bed))
}

/// Starts the guest and waits until its server answers.
fn start_server(bed: &mut Bed) -> Result<()> {
    bed.step("starting the guest with Redis");
    bed.sh("setsid /guest/redis.sh >/run/redis.qemu 2>&1 </dev/null &")?;
    let up = bed.sh(&format!("{CLIENT} --patience 300 --loaded --warmup 0 --repetitions 0"));
    if let Err(error) = up {
        let said = bed.sh("cat /run/redis.qemu /run/redis.log")?;
        return Err(error.context(format!("what QEMU and the guest said:\n{said}")));
    }
    Ok(())
}

fn run(bed: &mut Bed, args: &RedisArgs) -> Result<Entry> {
    bed.step("loading the records, warming up");
    let records = format!("--records {} --threads {}", args.records, args.threads);
    client(bed, &format!("{records} --warmup {} --repetitions 0", args.warmup))?;
    // Without operations: what the lab's own counting costs.
    let begin = bed.counts()?;
    client(bed, &format!("{records} --loaded --warmup 0 --repetitions 0"))?;
    let empty = bed.counts()?.since(&begin);
    let mut repetitions = Vec::new();
    for number in 0..args.repetitions {
        bed.step(&format!("repetition {} of {}", number + 1, args.repetitions));
        let before = bed.counts()?;
        let repetition = repeat(bed, &records, args.operations, SEED + number)?;
        let counts = bed.counts()?.since(&before);
        repetitions.push((repetition, counts));
    }
    let reasons = trace(bed, &records, args.operations.min(TRACED))?;
    let mut entry = summarize(bed.set_up(), &repetitions, &empty)?;
    entry.guest_exits_by_reason = reasons;
    if args.bed.platform == Platform::Bochs {
        entry.operations_per_second = None;
        entry.seconds = None;
    }
    Ok(entry)
}

fn client(bed: &mut Bed, options: &str) -> Result<report::Run> {
    let text = bed.sh(&format!("{CLIENT} {options}"))?;
    serde_json::from_str(&text).with_context(|| format!("lab-ycsb printed:\n{text}"))
}

/// One repetition, in a run of the client of its own: it warms itself up with some operations.
fn repeat(bed: &mut Bed, records: &str, operations: u64, seed: u64) -> Result<Repetition> {
    let l0 = match bed.set_up() {
        SetUp::LocumNative | SetUp::LocumNested => "--count l0=/sys/kernel/locum/counters",
        SetUp::Kvm | SetUp::NestedKvm => "",
    };
    let run = client(
        bed,
        &format!(
            "{records} --loaded --warmup 20 --operations {operations} --repetitions 1 --seed {seed} \
             --count kvm=/sys/kernel/debug/kvm {l0}"
        ),
    )?;
    run.repetitions
        .into_iter()
        .next()
        .context("lab-ycsb made no repetition")
}

/// The guest's exits for an operation by reason, from a histogram of KVM's tracepoint.
fn trace(bed: &mut Bed, records: &str, operations: u64) -> Result<BTreeMap<String, f64>> {
    bed.step("tracing exits");
    bed.sh(&format!(
        "[ -d {TRACEPOINT} ] || mount -t tracefs none /sys/kernel/tracing; \
         echo 'hist:keys=exit_reason' >{TRACEPOINT}/trigger"
    ))?;
    repeat(bed, records, operations, SEED)?;
    let text = bed.sh(&format!(
        "cat {TRACEPOINT}/hist; echo '!hist:keys=exit_reason' >{TRACEPOINT}/trigger"
    ))?;
    // The operations that the client warms up with are traced, too.
    let traced = operations + 20;
    Ok(histogram(&text)
        .into_iter()
        .map(|(reason, hits)| (reason_name(reason), share(hits, traced)))
        .collect())
}

/// Lines such as `{ exit_reason:         12 } hitcount:        300` (Documentation/trace/histogram.rst).
fn histogram(text: &str) -> BTreeMap<u32, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, hits) = line.split_once("hitcount:")?;
            let reason = key.split_once("exit_reason:")?.1;
            let reason = reason.trim().trim_end_matches('}').trim();
            Some((reason.parse().ok()?, hits.trim().parse().ok()?))
        })
        .collect()
}

/// Names of basic exit reasons (SDM vol. 3C, appendix C) that a Linux guest causes.
fn reason_name(reason: u32) -> String {
    let name = match reason {
        0 => "exception-or-nmi",
        1 => "external-interrupt",
        7 => "interrupt-window",
        10 => "cpuid",
        12 => "hlt",
        18 => "vmcall",
        28 => "cr-access",
        30 => "io-instruction",
        31 => "rdmsr",
        32 => "wrmsr",
        40 => "pause",
        43 => "tpr-below-threshold",
        44 => "apic-access",
        45 => "virtualized-eoi",
        48 => "ept-violation",
        49 => "ept-misconfiguration",
        52 => "preemption-timer",
        54 => "wbinvd",
        55 => "xsetbv",
        56 => "apic-write",
        other => return format!("reason-{other}"),
    };
    name.to_owned()
}

/// Figures for an operation, from what was counted in each repetition.
fn summarize(set_up: SetUp, repetitions: &[(Repetition, Counts)], empty: &Counts) -> Result<Entry> {
    let all = || repetitions.iter().map(|(repetition, _)| repetition);
    ensure!(
        all().all(|repetition| repetition.operations > 0),
        "a repetition without operations"
    );
    let instructions = Spread::of(all().map(|r| share(r.ticks, r.operations)))?;
    let guest_exits = Spread::of(all().map(|r| share(count_of("kvm", r).unwrap_or_default(), r.operations)))?;
    // The client's count where it reaches the counter, else the lab's around it.
    let below = Spread::of(repetitions.iter().map(|(r, counts)| {
        let around = counts.below_total.saturating_sub(empty.below_total);
        share(count_of("l0", r).unwrap_or(around), r.operations)
    }))?;
    let operations = all().map(|r| r.operations).sum();
    let kvm_statistics = sums(all().flat_map(|r| r.counters.get("kvm").into_iter().flatten().map(|(k, n)| (k, *n))));
    let reasons = sums(repetitions.iter().flat_map(|(_, counts)| {
        let own = |name| empty.below.get(name).copied().unwrap_or_default();
        counts
            .below
            .iter()
            .map(move |(name, count)| (name, count.saturating_sub(own(name))))
    }));
    let shares = |counts: BTreeMap<String, u64>| {
        counts
            .into_iter()
            .map(|(name, count)| (name, share(count, operations)))
            .collect()
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let seconds = |r: &Repetition| r.nanoseconds.max(1) as f64 / 1e9;
    Ok(Entry {
        name: set_up,
        operations,
        instructions_per_op: instructions.median,
        instructions_spread: instructions,
        guest_exits_per_op: guest_exits.median,
        kvm_statistics_per_op: shares(kvm_statistics),
        guest_exits_by_reason: BTreeMap::new(),
        l0_exits_per_op: below.median,
        l0_exits_by_reason: shares(reasons),
        counted_overhead_percent: None,
        counted_overhead_spread_percent: None,
        modelled_overhead_percent: None,
        modelled_without_ibpb_percent: None,
        modelled_cleared_percent: None,
        modelled_parts_percent: None,
        read_ticks: latency(all().map(|r| &r.read))?,
        update_ticks: latency(all().map(|r| &r.update))?,
        operations_per_second: Some(Spread::of(all().map(|r| share(r.operations, 1) / seconds(r)))?),
        seconds: Some(all().map(seconds).sum()),
    })
}

/// What of `count` falls to one of so many operations.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn share(count: u64, operations: u64) -> f64 {
    count as f64 / operations as f64
}

/// Exits that the client counted at a source; `None` if it does not reach it.
fn count_of(source: &str, repetition: &Repetition) -> Option<u64> {
    let counters = repetition.counters.get(source)?;
    Some(counters.get("exits").copied().unwrap_or_default())
}

/// Adds up counts of the same name.
fn sums<'a>(counts: impl Iterator<Item = (&'a String, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in counts {
        *sums.entry(name.clone()).or_default() += count;
    }
    sums
}

/// Each percentile's median over the repetitions.
fn latency<'a>(all: impl Iterator<Item = &'a Latency> + Clone) -> Result<Latency> {
    let median = |value: fn(&Latency) -> u64| {
        let mut values: Vec<_> = all.clone().map(value).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().context("no repetition")
    };
    Ok(Latency {
        mean: Spread::of(all.clone().map(|latency| latency.mean))?.median,
        p50: median(|latency| latency.p50)?,
        p95: median(|latency| latency.p95)?,
        p99: median(|latency| latency.p99)?,
        p999: median(|latency| latency.p999)?,
        max: median(|latency| latency.max)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repetition(ticks: u64, exits: u64, l0: Option<u64>) -> Repetition {
        let count = |value| BTreeMap::from([("exits".to_owned(), value)]);
        let mut counters = BTreeMap::from([("kvm".to_owned(), count(exits))]);
        if let Some(l0) = l0 {
            counters.insert("l0".to_owned(), count(l0));
        }
        Repetition {
            operations: 100,
            reads: 50,
            ticks,
            nanoseconds: 1_000_000_000,
            read: Latency::default(),
            update: Latency::default(),
            counters,
        }
    }

    fn below(total: u64) -> Counts {
        Counts {
            below: [("cpuid".to_owned(), total)].into(),
            below_total: total,
            ..Counts::default()
        }
    }

    #[test]
    fn figures_are_medians_for_an_operation() {
        let repetitions = [
            (repetition(1000, 500, Some(1000)), below(1100)),
            (repetition(3000, 700, Some(1200)), below(1300)),
            (repetition(2000, 600, Some(1400)), below(1500)),
        ];
        let entry = summarize(SetUp::LocumNested, &repetitions, &below(100)).unwrap();
        assert_eq!(entry.operations, 300);
        assert_eq!(entry.instructions_per_op, 20.0);
        assert_eq!(entry.instructions_spread.max, 30.0);
        assert_eq!(entry.guest_exits_per_op, 6.0);
        assert_eq!(entry.l0_exits_per_op, 12.0);
        assert_eq!(entry.l0_exits_by_reason["cpuid"], 12.0);
        assert_eq!(entry.kvm_statistics_per_op["exits"], 6.0);
        assert_eq!(entry.operations_per_second.unwrap().median, 100.0);
        assert!(summarize(SetUp::Kvm, &[], &below(0)).is_err());
    }

    #[test]
    fn what_the_client_cannot_reach_is_counted_around_it() {
        let repetitions = [(repetition(1000, 500, None), below(1100))];
        let entry = summarize(SetUp::NestedKvm, &repetitions, &below(100)).unwrap();
        assert_eq!(entry.l0_exits_per_op, 10.0);
    }

    #[test]
    fn histograms_of_the_tracer_are_read() {
        let text = "# event histogram\n#\n{ exit_reason:         12 } hitcount:        300\n\
                    { exit_reason:          1 } hitcount:          7\n\nTotals:\n    Hits: 307\n";
        assert_eq!(histogram(text), BTreeMap::from([(12, 300), (1, 7)]));
        assert_eq!(reason_name(12), "hlt");
        assert_eq!(reason_name(99), "reason-99");
    }
}
