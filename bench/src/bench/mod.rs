//! `lab bench`: what Locum costs, counted on one emulated server under four set-ups.
//!
//! A [`bed`] is a booted host of one set-up, in which guests can be started and exits counted; the benchmarks are played
//! on beds: [`vmexit`] is the table of single events, [`redis`] the workload of [`figure`] 1, [`model`] what its events would
//! cost on silicon; [`handover`] plays refreshes. Results go to `target/bench`. What is counted in the emulator is no time.

pub mod bed;
pub mod figure;
pub mod handover;
pub mod model;
pub mod redis;
pub mod vmexit;

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    bochs::{Platform, SKYLAKE_X},
    paths,
};
use bed::{BedArgs, SetUp};
use redis::{Figure, RedisArgs};
use vmexit::{EVENTS, Event, Table, VmexitArgs};

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The table of single events.
    Vmexit,
    /// Workload A on Redis.
    Figure1,
    /// Pauses of guests that go over to the next host.
    Handover,
}

/// Count what Locum costs, under four set-ups.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Play this part only
    #[arg(long, value_enum)]
    pub only: Option<Part>,
    /// Set-ups to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = SetUp::ALL)]
    pub setups: Vec<SetUp>,
    /// Events of the vmexit table (default: all)
    #[arg(long, value_delimiter = ',', value_parser = vmexit::find)]
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
    /// Model of the emulated CPUs, as Bochs calls it
    #[arg(long, default_value = SKYLAKE_X)]
    pub cpu_model: String,
    /// Kill a machine after this many seconds of wall time
    #[arg(long, default_value_t = 3600)]
    pub timeout: u64,
    /// What runs the machines; kvm is untested
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// Plays the benchmarks; returns whether everything was measured.
///
/// # Errors
/// A result cannot be written.
pub fn bench(args: &BenchArgs) -> Result<bool> {
    let wants = |part| args.only.is_none_or(|only| only == part);
    let mut complete = true;
    let bed = BedArgs {
        cpus: 1,
        timeout: args.timeout,
        platform: args.platform,
        cpu_model: args.cpu_model.clone(),
    };
    if wants(Part::Vmexit) {
        let events = if args.events.is_empty() {
            EVENTS.to_vec()
        } else {
            args.events.clone()
        };
        let how = VmexitArgs {
            set_ups: args.setups.clone(),
            events,
            iterations: args.iterations,
            cycles: args.cycles,
            bed: bed.clone(),
        };
        let save = |table: &Table| write("vmexit.json", table);
        let table = vmexit::measure(&how, save)?;
        println!("{table}\nin target/bench/vmexit.json");
        complete &= table.errors.is_empty();
    }
    if wants(Part::Figure1) {
        let how = RedisArgs {
            set_ups: args.setups.clone(),
            records: args.records,
            warmup: args.warmup,
            operations: args.operations,
            repetitions: args.repetitions,
            threads: args.threads,
            bed: bed.clone(),
        };
        let save = |figure: &Figure| {
            write("figure1.json", figure)?;
            Ok(fs::write(dir().join("figure1.svg"), figure.draw()?)?)
        };
        let figure = redis::measure(&how, save)?;
        println!("{figure}\nin target/bench/figure1.json and figure1.svg");
        complete &= figure.errors.is_empty();
    }
    if wants(Part::Handover) {
        let save = |table: &handover::Table| write("handover.json", table);
        let table = handover::measure(args.timeout, args.platform, save)?;
        println!("{table}\nin target/bench/handover.json");
        complete &= table.errors.is_empty();
    }
    Ok(complete)
}

fn dir() -> PathBuf {
    paths::workspace().join("target/bench")
}

/// Writes a result to `target/bench`.
fn write(name: &str, result: &impl Serialize) -> Result<()> {
    fs::create_dir_all(dir())?;
    Ok(fs::write(
        dir().join(name),
        serde_json::to_string_pretty(result)?,
    )?)
}
