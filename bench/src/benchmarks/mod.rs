//! `lab bench`: what Locum costs, counted on one emulated server under four set-ups.
//!
//! A [`bed`] is a booted host of one set-up, in which guests can be started and exits counted; the benchmarks are
//! played on beds: [`vmexit`] is the table of single events, [`redis`] the workload of [`figure`] 1, [`model`] what its
//! events would cost on silicon; [`handover`], [`service`] and [`pause`] play refreshes. Results go to `target/bench`.
//! What is counted in the emulator is no time.

pub(crate) mod bed;
pub(crate) mod figure;
pub(crate) mod handover;
pub(crate) mod model;
mod pause;
pub(crate) mod redis;
mod service;
pub(crate) mod vmexit;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::{
    debian::kernels::{NEWEST, OLDEST},
    image::kernel::announce,
    machine::{bochs::SKYLAKE_X, platform::Platform},
    paths,
    steps::events::{self, EVENTS, Event},
};
use bed::{BedArgs, SetUp};
use pause::Guest;
use redis::RedisArgs;
use vmexit::VmexitArgs;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The table of single events.
    Vmexit,
    /// Workload A on Redis.
    Figure1,
    /// Pauses of guests that go over to the next host.
    Handover,
    /// A refresh as a client of a guest sees it.
    Refresh,
    /// Where the pause of a guest goes.
    Pause,
}

/// Count what Locum costs, under four set-ups.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// Play this part only
    #[arg(long, value_enum)]
    pub only: Option<Part>,
    /// Set-ups to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = SetUp::ALL)]
    pub setups: Vec<SetUp>,
    /// Events of the vmexit table (default: all)
    #[arg(long, value_delimiter = ',', value_parser = events::find)]
    pub events: Vec<Event>,
    /// How often each event of the vmexit table is measured
    #[arg(long, default_value_t = 4000)]
    pub iterations: u32,
    /// How often every CPU enters and leaves nested
    #[arg(long, default_value_t = 100)]
    pub cycles: u32,
    /// Operations of a repetition of workload A
    #[arg(long, default_value_t = 10_000)]
    pub operations: u64,
    /// Repetitions of workload A
    #[arg(long, default_value_t = 5)]
    pub repetitions: u64,
    /// Operations of workload A before the first repetition
    #[arg(long, default_value_t = 1000)]
    pub warmup: u64,
    /// Records of workload A; its own file says 1,000
    #[arg(long, default_value_t = 1000)]
    pub records: u64,
    /// Clients of workload A at the same time (YCSB's threadcount)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: u64,
    /// Guests whose pause is explained
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Guest::ALL)]
    pub guests: Vec<Guest>,
    /// Model of the emulated CPUs, as Bochs calls it
    #[arg(long, default_value = SKYLAKE_X)]
    pub cpu_model: String,
    /// Kill a machine after this many emulated seconds: 100 million ticks each, or a second of the host's clock asleep
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
    /// What runs the machines; needs VMX
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// Plays the benchmarks; returns whether everything was measured.
///
/// # Errors
/// A result cannot be written.
pub(crate) fn bench(args: &BenchArgs) -> Result<bool> {
    args.platform.with_vmx()?;
    announce(&[OLDEST, NEWEST])?;
    let wants = |part| args.only.is_none_or(|only| only == part);
    let mut complete = true;
    if wants(Part::Vmexit) {
        complete &= vmexit(args)?;
    }
    if wants(Part::Figure1) {
        complete &= figure1(args)?;
    }
    if wants(Part::Vmexit) || wants(Part::Figure1) {
        combine(&dir())?;
    }
    if wants(Part::Handover) {
        complete &= handover(args)?;
    }
    if wants(Part::Refresh) {
        service::measure(&dir(), args.timeout, args.platform)?;
    }
    if wants(Part::Pause) {
        let tables = pause::measure(&args.guests, args.timeout, args.platform)?;
        write("pause.json", &tables)?;
        for table in tables {
            println!("{table}");
        }
        println!("in target/bench/pause.json");
    }
    Ok(complete)
}

fn vmexit(args: &BenchArgs) -> Result<bool> {
    let how = VmexitArgs {
        set_ups: args.setups.clone(),
        events: if args.events.is_empty() {
            EVENTS.to_vec()
        } else {
            args.events.clone()
        },
        iterations: args.iterations,
        cycles: args.cycles,
        bed: args.bed(),
    };
    let table = vmexit::measure(&how, |table| write("vmexit.json", table))?;
    println!("{table}\nin target/bench/vmexit.json");
    Ok(table.errors.is_empty())
}

fn figure1(args: &BenchArgs) -> Result<bool> {
    let how = RedisArgs {
        set_ups: args.setups.clone(),
        records: args.records,
        warmup: args.warmup,
        operations: args.operations,
        repetitions: args.repetitions,
        threads: args.threads,
        bed: args.bed(),
    };
    let figure = redis::measure(&how, |figure| {
        write("figure1.json", figure)?;
        Ok(fs::write(dir().join("figure1.svg"), figure.draw()?)?)
    })?;
    println!("{figure}\nin target/bench/figure1.json and figure1.svg");
    Ok(figure.errors.is_empty())
}

fn handover(args: &BenchArgs) -> Result<bool> {
    let table = handover::measure(args.timeout, args.platform, |table| write("handover.json", table))?;
    println!("{table}\nin target/bench/handover.json");
    Ok(table.errors.is_empty())
}

impl BenchArgs {
    /// The machines, with one CPU each.
    fn bed(&self) -> BedArgs {
        BedArgs {
            cpus: 1,
            timeout: self.timeout,
            platform: self.platform,
            cpu_model: self.cpu_model.clone(),
        }
    }
}

/// Puts the table of single events into the figure's file, if both are there and from the same kind of machine.
fn combine(dir: &Path) -> Result<()> {
    let read = |name| -> Result<Option<Value>> {
        let path = dir.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let value = serde_json::from_slice(&fs::read(&path)?);
        value.with_context(|| format!("{}", path.display()))
    };
    let (Some(mut figure), Some(events)) = (read("figure1.json")?, read("vmexit.json")?) else {
        return Ok(());
    };
    let alike = |name| figure.get(name) == events.get(name);
    let rows = if alike("platform") && alike("cpu_model") {
        events.get("vmexit").cloned().unwrap_or_default()
    } else {
        Value::Null
    };
    if let Some(figure) = figure.as_object_mut() {
        figure.insert("vmexit".to_owned(), rows);
    }
    Ok(fs::write(
        dir.join("figure1.json"),
        serde_json::to_string_pretty(&figure)?,
    )?)
}

fn dir() -> PathBuf {
    paths::workspace().join("target/bench")
}

/// Writes a result to `target/bench`.
fn write(name: &str, result: &impl Serialize) -> Result<()> {
    fs::create_dir_all(dir())?;
    Ok(fs::write(dir().join(name), serde_json::to_string_pretty(result)?)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_the_same_machine_are_in_the_figures_file() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: &Value| {
            fs::write(dir.path().join(name), value.to_string()).unwrap();
        };
        let vmexit = |dir: &Path| {
            combine(dir).unwrap();
            let text = fs::read(dir.join("figure1.json")).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()["vmexit"].clone()
        };
        put(
            "figure1.json",
            &json!({"platform": "bochs", "cpu_model": "a", "setups": []}),
        );
        assert_eq!(vmexit(dir.path()), Value::Null);
        let rows = json!([{"event": "cpuid"}]);
        put(
            "vmexit.json",
            &json!({"platform": "bochs", "cpu_model": "a", "vmexit": rows}),
        );
        assert_eq!(vmexit(dir.path()), rows);
        put(
            "vmexit.json",
            &json!({"platform": "bochs", "cpu_model": "b", "vmexit": rows}),
        );
        assert_eq!(vmexit(dir.path()), Value::Null);
        fs::write(dir.path().join("vmexit.json"), "{").unwrap();
        assert!(combine(dir.path()).is_err());
    }
}
