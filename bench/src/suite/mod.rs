//! `lab test`: every test of the workspace, then the scenarios.

mod args;
mod choice;
mod play;
mod results;
mod skipped;
mod workspace;

use std::{thread, time::Instant};

use anyhow::{Result, bail};

use crate::{
    debian::kernels::{NEWEST, NEXT, OLDEST},
    image::kernel::{self, announce},
    machine::platform::Platform,
};
pub(crate) use args::TestArgs;
pub(crate) use skipped::Skipped;
use workspace::Count;

/// Runs the tests; returns whether all passed.
///
/// # Errors
/// An unknown name, or cargo cannot be started.
pub(crate) fn test(args: &TestArgs) -> Result<bool> {
    if args.list {
        print!("{}", choice::list()?);
        return Ok(true);
    }
    args.platform.with_vmx()?;
    let begin = Instant::now();
    let commit = results::commit();
    let chosen = choice::choose(args)?;
    let names = [OLDEST, NEWEST, NEXT];
    announce(&names)?;
    // What the scenarios need is fetched while the workspace's tests run; a few by name fetch it themselves.
    let (wanted, platforms): (&[&str], &[Platform]) = if args.only.is_empty() {
        (&names, &[args.platform, Platform::Tcg])
    } else {
        (&[], &[])
    };
    let workspace_too = args.only.is_empty() && args.shard.is_none_or(|shard| shard.number == 1);
    let (count, fetched) = thread::scope(|scope| {
        let fetched = scope.spawn(|| kernel::prefetch(wanted, platforms));
        let count = if workspace_too {
            workspace::test(args.all)
        } else {
            Ok(Count::default())
        };
        (count, fetched.join())
    });
    let mut count = count?;
    match fetched {
        Ok(Ok(_)) => {
            for played in play::all(&chosen, args, &commit) {
                let word = match (played.skipped, played.ok) {
                    (true, _) => "SKIPPED",
                    (false, true) => "ok",
                    (false, false) => "FAILED",
                };
                println!("{:>6} s  {:<22} {word}", played.seconds, played.scenario);
                // Once more, since of a long log often only the end is kept.
                for line in played.error.iter().flat_map(|error| error.lines()) {
                    println!("          {line}");
                }
                if played.skipped {
                    continue;
                }
                if played.ok {
                    count.passed += 1;
                } else {
                    count.failed += 1;
                }
            }
        }
        Ok(Err(error)) => {
            println!("no scenario can be played: {error:#}");
            count.failed += chosen.len();
        }
        Err(_) => bail!("the thread that fetches has panicked"),
    }
    println!("{:>6} s  in all", begin.elapsed().as_secs());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}
