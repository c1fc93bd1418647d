//! What there is to play, and what of it is played.

use anyhow::{Context, Result, ensure};

use super::{args::TestArgs, results};
use crate::scenarios::{self, Scenario};

/// Minutes that a part of `--all` may take.
const SHARD: u32 = 60;

/// What to play, the longest first: then two machines end at about the same time.
pub(super) fn choose(args: &TestArgs) -> Result<Vec<&'static Scenario>> {
    let mut chosen = Vec::new();
    for name in &args.only {
        let found = scenarios::every().find(|scenario| scenario.name == name);
        chosen
            .push(found.with_context(|| format!("no scenario is called {name}; `cargo lab test --list` shows them"))?);
    }
    if args.only.is_empty() {
        chosen.extend(scenarios::CI);
    }
    if args.all {
        chosen.extend(scenarios::BY_NAME);
    }
    chosen.sort_by_key(|scenario| std::cmp::Reverse(scenario.minutes));
    let Some(shard) = args.shard else {
        return Ok(chosen);
    };
    let mut parts = vec![(0, Vec::new()); shard.of];
    for scenario in chosen {
        // Always to the shortest so far.
        if let Some((minutes, part)) = parts.iter_mut().min_by_key(|(minutes, _)| *minutes) {
            *minutes += scenario.minutes;
            part.push(scenario);
        }
    }
    let (minutes, part) = parts.swap_remove(shard.number - 1);
    let jobs = u32::try_from(args.jobs.max(1))?;
    ensure!(
        minutes.div_ceil(jobs) <= SHARD,
        "part {} of {} would take {} minutes, more than {SHARD}; cut it into more parts",
        shard.number,
        shard.of,
        minutes.div_ceil(jobs)
    );
    Ok(part)
}

/// The scenarios for people, with the last result of each.
pub(super) fn list() -> Result<String> {
    let last = results::last()?;
    let lines = |scenarios: &[Scenario]| -> String {
        scenarios
            .iter()
            .map(|scenario| {
                let result = last
                    .get(scenario.name)
                    .map_or_else(|| "never played here".to_owned(), ToString::to_string);
                format!(
                    "  {:<22} {}\n  {:<22} about {} min; {result}\n",
                    scenario.name, scenario.about, "", scenario.minutes
                )
            })
            .collect()
    };
    Ok(format!(
        "played by `cargo lab test`:\n{}and besides by `cargo lab test --all`, or --only NAME:\n{}",
        lines(scenarios::CI),
        lines(scenarios::BY_NAME)
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TestArgs,
    }

    fn names(args: &[&str]) -> Result<Vec<&'static str>> {
        let cli = Cli::try_parse_from([&["test"], args].concat())?;
        let chosen = choose(&cli.args)?;
        Ok(chosen.iter().map(|scenario| scenario.name).collect())
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_told() {
        let mut all: Vec<_> = scenarios::every().map(|scenario| scenario.name).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(names(&["--only", "nothing"]).is_err());
        assert_eq!(names(&["--only", "refresh"]).unwrap(), ["refresh"]);
    }

    #[test]
    fn shards_are_all_scenarios_once() {
        let mut all = names(&["--all"]).unwrap();
        assert_eq!(all.len(), scenarios::every().count());
        let shards = (1..=6).map(|part| names(&["--all", "--shard", &format!("{part}/6")]).unwrap());
        let mut dealt: Vec<_> = shards.flatten().collect();
        all.sort_unstable();
        dealt.sort_unstable();
        assert_eq!(dealt, all);
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(names(&["--all", "--shard", wrong]).is_err(), "{wrong}");
        }
        assert!(names(&["--shard", "1/3"]).is_err());
        assert!(names(&["--all", "--shard", "1/1", "--jobs", "1"]).is_err());
    }
}
