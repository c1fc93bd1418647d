//! What `lab test` can be told.

use clap::Args;

use crate::machine::platform::Platform;

/// Run every test; the last line is "N passed, N failed".
#[derive(Debug, Clone, Args)]
pub(crate) struct TestArgs {
    /// Only this scenario (repeatable), and not the workspace's tests
    #[arg(long)]
    pub only: Vec<String>,
    /// The long scenarios, too, and those that are played by name
    #[arg(long, conflicts_with = "only")]
    pub all: bool,
    /// With --all: cut the scenarios into M parts of alike length and play part N (the workspace's tests are in the
    /// first)
    #[arg(long, value_name = "N/M", requires = "all", value_parser = Shard::parse)]
    pub shard: Option<Shard>,
    /// Print the scenarios' names, what they show, and how and when each was last played here
    #[arg(long)]
    pub list: bool,
    /// Machines at a time; one keeps a CPU of yours busy
    #[arg(long, default_value_t = 2)]
    pub jobs: usize,
    /// Kill a machine after this many emulated seconds: 100 million ticks each, some 1.4 s here
    #[arg(long, value_name = "SECONDS", default_value_t = 2400)]
    pub timeout: u64,
    /// What runs the machines of scenarios that do not choose it themselves; needs VMX
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Which of them, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match parts {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("write N/M, such as 1/3 for the first of three parts".into()),
        }
    }
}
