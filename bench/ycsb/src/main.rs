//! `lab-ycsb`: see the library.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lab_ycsb::{
    client::{self, Client, Source},
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
    /// Clients that do operations at the same time (YCSB's threadcount)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
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
    let patience = Duration::from_secs(cli.patience);
    let mut clients = (0..cli.threads)
        .map(|_| Client::connect(&cli.server, patience))
        .collect::<Result<Vec<_>>>()?;
    if !cli.loaded {
        clients[0].load(cli.records, &mut Workload::new(cli.records, 0))?;
    }
    client::repeat(&mut clients, cli.warmup, (cli.records, 0), &[])?;
    let repetitions = (0..cli.repetitions)
        .map(|number| {
            let draw = (cli.records, cli.seed + number);
            client::repeat(&mut clients, cli.operations, draw, &cli.count)
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
