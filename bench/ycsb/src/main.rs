//! `lab-ycsb`: see the library.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lab_ycsb::{
    client::{Client, Source},
    report::Run,
    workload::Workload,
};

/// Plays YCSB's workload A against a Redis server and prints what it took, as JSON
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The server
    #[arg(long, value_name = "ADDRESS:PORT")]
    server: String,
    /// Seconds to wait for the server
    #[arg(long, default_value_t = 600)]
    patience: u64,
    /// Records to load; workload A's own file says 1,000
    #[arg(long, default_value_t = 1000)]
    records: u64,
    /// Leave the records as an earlier run left them
    #[arg(long)]
    loaded: bool,
    /// Operations before the first repetition
    #[arg(long, default_value_t = 1000)]
    warmup: u64,
    /// Operations of a repetition
    #[arg(long, default_value_t = 10_000)]
    operations: u64,
    /// Repetitions
    #[arg(long, default_value_t = 5)]
    repetitions: u64,
    /// Seed of the first repetition; the next ones have the next ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Counters to read before and after each repetition: a file of lines "NAME VALUE" or a directory of files
    #[arg(long, value_name = "NAME=PATH", value_parser = source)]
    count: Vec<Source>,
}

fn source(text: &str) -> Result<Source, String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    Ok(Source {
        name: name.to_owned(),
        path: path.into(),
    })
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut client = Client::connect(&cli.server, Duration::from_secs(cli.patience))?;
    let mut before = Workload::new(cli.records, 0);
    if !cli.loaded {
        client.load(cli.records, &mut before)?;
    }
    client.repeat(cli.warmup, &mut before, &[])?;
    let repetitions = (0..cli.repetitions)
        .map(|number| {
            let mut workload = Workload::new(cli.records, cli.seed + number);
            client.repeat(cli.operations, &mut workload, &cli.count)
        })
        .collect::<Result<_>>()?;
    let run = Run {
        records: cli.records,
        warmup: cli.warmup,
        repetitions,
    };
    println!("{}", serde_json::to_string(&run)?);
    Ok(())
}
