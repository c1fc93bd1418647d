//! The package's playbook for a fleet, played by Debian's Ansible on programs that stand for machines: no machine is booted. What
//! the playbook asks such a program is answered by the agent's own types.

mod bed;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use lab_fleet::{Fate, Ill, Last, Machine};

use self::bed::Bed;
use crate::{debian::root::Root, image::build, progress::say, suite::Skipped, tools};

/// The kernel that machines run, and the one that they go to.
const OLD: &str = "6.12.107+deb13-amd64";
const NEW: &str = "6.12.118+deb13-amd64";
/// The machines, in the order in which they are begun.
const NAMES: [&str; 2] = ["a", "b"];

/// All of it.
pub(super) fn all(dir: &Path) -> Result<()> {
    if !tools::is_root() {
        bail!(Skipped(
            "Ansible's tree is entered by root, and you are not root".into()
        ));
    }
    tools::ensure()?;
    let (tree, program) = (Root::ansible()?, build::stand_in()?);
    // Ansible takes a processor to itself for most of the time.
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let players = ["one", "two"].map(|name| {
            let (tree, program, next) = (tree.clone(), &program, &next);
            scope.spawn(move || {
                let played = Bed::new(tree, program, &dir.join(name)).and_then(|bed| some(&bed, next));
                // Nobody begins another one when one has failed.
                if played.is_err() {
                    next.fetch_add(2 + CASES.len(), Ordering::Relaxed);
                }
                played
            })
        });
        for player in players {
            player.join().map_err(|_| anyhow!("a player has panicked"))??;
        }
        Ok::<(), Error>(())
    })?;
    say(&format!(
        "fleet: {} kinds of failures and of unfit machines leave the second machine alone",
        CASES.len()
    ));
    tools::remove_tree(dir)
}

/// Plays what nobody else plays.
fn some(bed: &Bed, next: &AtomicUsize) -> Result<()> {
    loop {
        match next.fetch_add(1, Ordering::Relaxed) {
            0 => goes(bed)?,
            1 => REFUSED_PLAN
                .play(bed, &["--extra-vars", "locum_serial=2"])
                .context("two machines at a time")?,
            number => {
                let Some(case) = CASES.get(number - 2) else {
                    return Ok(());
                };
                case.play(bed, &[]).with_context(|| case.name.to_owned())?;
            }
        }
    }
}

/// A machine in good health.
fn fit() -> Machine {
    Machine::new(OLD, &[OLD, NEW], &["web", "db"])
}

/// Both are refreshed: one after the other, and once.
fn goes(bed: &Bed) -> Result<()> {
    bed.furnish(&[fit(), fit()])?;
    let checked = bed.play(&["--check"])?;
    checked.ends(true)?;
    checked.says("a: would be refreshed")?;
    checked.says("b: would be refreshed")?;
    checked.changes(&[1, 1])?;
    ensure!(
        bed.machines()? == [fit(), fit()],
        "--check changes a machine:\n{checked}"
    );
    ensure!(bed.events()?.is_empty(), "--check does something:\n{checked}");
    say("fleet: --check tells, and changes nothing");

    let played = bed.play(&[])?;
    played.ends(true)?;
    let right: Vec<String> = NAMES
        .iter()
        .flat_map(|name| ["image", "begins", "ends"].map(|what| format!("{name} {what}")))
        .collect();
    let events = bed.events()?;
    ensure!(events == right, "what was done is {events:?}:\n{played}");
    for machine in bed.machines()? {
        ensure!(
            (machine.generation, machine.kernel.as_str()) == (1, NEW),
            "a machine was not refreshed: {machine:?}\n{played}"
        );
    }
    played.says("2 guests, the longest pause 20.0 ms")?;
    say("fleet: both machines are refreshed, one after the other");

    let again = bed.play(&[])?;
    again.ends(true)?;
    again.changes(&[0, 0])?;
    again.says(&format!("a: runs {NEW} already"))?;
    ensure!(bed.events()? == right, "the second time does something:\n{again}");
    say("fleet: the second time changes nothing");
    Ok(())
}

/// What the first machine may be like, and what is said of it then.
struct Case {
    name: &'static str,
    /// Whether its refresh may begin.
    begins: bool,
    makes: fn(&mut Machine),
    says: &'static [&'static str],
}

/// Found out before anything is begun.
const REFUSED_PLAN: Case = Case {
    name: "a plan that is refused",
    begins: false,
    makes: |machine| machine.fate = Fate::RefusedPlan,
    says: &["a: was not begun: ", "vm9 (its RAM is not in the pool)", "--leave vm9"],
};

/// Machines that are not to be begun, and refreshes that fail.
const CASES: &[Case] = &[
    Case {
        name: "a kernel that is not installed",
        begins: false,
        makes: |machine| machine.installed.retain(|kernel| kernel != NEW),
        says: &["a: was not begun: ", "is not installed"],
    },
    REFUSED_PLAN,
    Case {
        name: "a refresh that is refused",
        begins: false,
        makes: |machine| machine.fate = Fate::RefusedAtOnce,
        says: &["a: the refresh was refused", "vm9 (its RAM is not in the pool)"],
    },
    Case {
        name: "a refresh that is given up",
        begins: true,
        makes: |machine| machine.fate = Fate::Aborts,
        says: &[
            "a: its refresh was given up",
            "the successor does not answer within 600 s",
        ],
    },
    Case {
        name: "a refresh that is stuck",
        begins: true,
        makes: |machine| machine.fate = Fate::GetsStuck,
        says: &["a: its refresh is stuck: CPU 3 does not come online", "locum retry"],
    },
    Case {
        name: "a machine that does not come back",
        begins: true,
        makes: |machine| machine.fate = Fate::StaysAway,
        says: &["a: does not answer since its refresh was begun"],
    },
    Case {
        name: "a machine that was reset",
        begins: true,
        makes: |machine| machine.fate = Fate::Resets,
        says: &["a: is of generation 0, not 1: it was reset", "web, db"],
    },
    Case {
        name: "a guest that is missing",
        begins: true,
        makes: |machine| machine.fate = Fate::LosesGuest,
        says: &[
            "a: was refreshed, and something did not come: guests db",
            "its QEMU is gone",
        ],
    },
    Case {
        name: "a guest that has ended",
        begins: true,
        makes: |machine| machine.fate = Fate::EndsGuest,
        says: &["a: was refreshed, and has no QEMU of db now"],
    },
    Case {
        name: "a machine that cannot be reached",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::Unreachable),
        says: &["a: was not begun: it cannot be reached"],
    },
    Case {
        name: "a machine without L0",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::NoL0),
        says: &["a: was not begun: ", "/dev/locum is not there"],
    },
    Case {
        name: "a machine without a daemon",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::NoDaemon),
        says: &["a: was not begun: ", "systemctl start locum"],
    },
    Case {
        name: "a machine that refreshes already",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::Refreshes),
        says: &["a: was not begun: it is offloaded", "locum refresh --follow"],
    },
    Case {
        name: "a machine with a nested CPU",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::Nested),
        says: &["a: was not begun: CPUs are not native", "locum abort"],
    },
    Case {
        name: "a machine that lacks memory",
        begins: false,
        makes: |machine| machine.ill = Some(Ill::Unreclaimed(5 << 30)),
        says: &[
            "a: was not begun: 5368709120 bytes",
            "locum_unreclaimed_limit is 4294967296",
        ],
    },
    Case {
        name: "a machine whose last refresh failed",
        begins: false,
        makes: |machine| {
            machine.last = Some(Last {
                from: OLD.to_owned(),
                to: NEW.to_owned(),
                outcome: "aborted".to_owned(),
                lost: Vec::new(),
            });
        },
        says: &[
            "a: was not begun: its last refresh was aborted",
            "locum_after_failure=true",
        ],
    },
];

impl Case {
    /// Has both machines refreshed, of which the first one is like this. The second one is left alone.
    fn play(&self, bed: &Bed, words: &[&str]) -> Result<()> {
        let mut ready = fit();
        ready.images.push(NEW.to_owned());
        let mut first = ready.clone();
        (self.makes)(&mut first);
        bed.furnish(&[first, ready.clone()])?;
        let played = bed.play(words)?;
        played.ends(false)?;
        for words in self.says {
            played.says(words)?;
        }
        let [_, second] = bed.machines()?;
        ensure!(second == ready, "the second machine was touched: {second:?}\n{played}");
        let events = bed.events()?;
        let right: &[&str] = if self.begins { &["a begins", "a ends"] } else { &[] };
        ensure!(events == right, "what was done is {events:?}, not {right:?}:\n{played}");
        Ok(())
    }
}
