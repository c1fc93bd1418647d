//! One run of a machine with Locum: the steps that the demo and the tests are made of.

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::{
    agent::{Beat, Gap, Status},
    bochs,
    boot::{self, MachineArgs},
    channel::JobId,
    deadline::Span,
    kernel::Kernel,
    layout::Layout,
    machine::{Host, Machine},
    progress::Progress,
    report::{self, Phase, Report},
    roots::Root,
    stock_guest::{self, Disk, StockGuest, Visit},
    successor::Successor,
};

/// Long enough for anything that a host does by itself; longer than the limits that commands there have by its own clock.
const LONG: Span = Span::seconds(900);
/// Long enough for a whole refresh, and for the agents to give one up; the machine's own limit may be shorter.
const REFRESH: Span = Span::seconds(1800);
/// Long enough for a trifle that a living host is asked while a refresh goes on.
const ANSWER: Span = Span::seconds(300);
/// Long enough for a host to power the machine off.
pub const OFF: Span = Span::seconds(300);
/// How often a refresh is looked at; looking costs the hosts some instructions.
const LOOK: Span = Span::seconds(3);

/// Visits, some 15 emulated seconds apart, after which the stock guest should have booted.
const PATIENCE: u32 = 60;

/// The file that ends the watches of a refresh, in either host.
fn watched(successor: u32) -> String {
    format!("/run/watched-{successor}")
}

/// A machine, what is known of it, and the report of the run.
pub struct Run {
    /// The machine.
    pub machine: Machine,
    /// What was shown so far.
    pub report: Report,
    /// Generation that reigns.
    pub generation: u32,
    /// Where what lies in the machine's RAM.
    pub layout: Layout,
    /// The live line.
    pub progress: Progress,
    /// Model of its CPUs, as Bochs calls it.
    pub cpu_model: String,
    /// Release of the kernel that the first successor runs, unless a scenario has other wishes.
    pub to: String,
    guests: Vec<Guest>,
    /// The stock guest's, if there is one.
    disk: Option<Disk>,
    /// Visits to the stock guest while a refresh went on: from which generation, in which state of the refresh.
    pub visits: Vec<(u32, String)>,
    phase_begin: u64,
    phase_exits: u64,
}

/// A guest that was started.
#[derive(Debug, Clone)]
struct Guest {
    name: String,
    witness: Witness,
}

/// How the lab sees that a guest lives, with what it saw when the guest was started.
#[derive(Debug, Clone)]
enum Witness {
    /// The lab's own guests: the report of the checks that they do, which they leave in their memory.
    Beats(String),
    /// The stock guest: a page of its web server.
    Page(Visit),
}

/// A guest that is watched while a refresh goes on.
struct Watch {
    guest: Guest,
    generation: u32,
    job: JobId,
}

/// How a refresh ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The successor reigns.
    Done,
    /// `locum refresh` failed with this text; the incumbent reigns.
    Failed(String),
}

impl Run {
    /// Builds and boots a machine up to its first host.
    ///
    /// # Errors
    /// Something does not build or boot.
    pub fn boot(args: &MachineArgs, progress: Progress) -> Result<Self> {
        progress.step("building");
        let setup = boot::prepare(args)?;
        let disk = if args.stock_guest {
            Some(Disk::serve(&StockGuest::get()?, &setup.dir)?)
        } else {
            None
        };
        progress.step("booting: GRUB, L0, the incumbent");
        let mut machine = Machine::start(&setup)?;
        let hello = machine.host(0).wait_ready(setup.limit)?;
        let report = Report {
            platform: args.platform.to_string(),
            cpus: args.cpus,
            incumbent: hello.release.clone(),
            successor: hello.release,
            trees: vec![
                Root::bochs()?.name(),
                Root::host()?.name(),
                Kernel::get(&args.kernel)?.root().name(),
                Kernel::get(&args.to)?.root().name(),
            ],
            ..Report::default()
        };
        let mut run = Self {
            machine,
            report,
            generation: 0,
            layout: args.layout,
            progress,
            cpu_model: args.cpu_model.clone(),
            to: Kernel::release_of(&args.to)?,
            guests: Vec::new(),
            disk,
            visits: Vec::new(),
            phase_begin: 0,
            phase_exits: 0,
        };
        run.end_phase("boot machine", 0)?;
        Ok(run)
    }

    /// The reigning host.
    pub fn host(&mut self) -> Host<'_> {
        self.machine.host(self.generation)
    }

    /// Runs a command in the reigning host that has to succeed.
    ///
    /// # Errors
    /// It fails, or the host does not answer.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.host()
            .run(command, LONG)?
            .ok()
            .with_context(|| format!("running {command:?}"))
    }

    /// As [`Run::sh`], for a command that prints JSON.
    ///
    /// # Errors
    /// As [`Run::sh`]; or the JSON is not what is expected.
    pub fn json<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        let text = self.sh(command)?;
        serde_json::from_str(&text).with_context(|| format!("{command:?} printed:\n{text}"))
    }

    /// `locum status` of the reigning host.
    ///
    /// # Errors
    /// As [`Run::json`].
    pub fn status(&mut self) -> Result<Status> {
        self.json("locum status --json")
    }

    /// Loads KVM and the module, makes the pool, starts the agent.
    ///
    /// # Errors
    /// One of them fails.
    pub fn begin(&mut self) -> Result<()> {
        self.progress
            .step("loading KVM, the pool, locum.ko; starting the agent");
        self.sh("/own/begin")?;
        self.wait_status("the agent's first word", |status| {
            (status.state == "idle").then_some(())
        })
    }

    /// Starts a guest of `/guest/guest.sh` and waits until it runs all its checks, or serves its page.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_guest(&mut self, name: &str) -> Result<()> {
        self.progress.step(&format!("starting guest {name}"));
        if name == stock_guest::NAME {
            let disk = self
                .disk
                .as_ref()
                .context("the machine has no disk for it")?;
            let port = disk.port().to_string();
            let file = format!("/etc/locum/{name}.disk");
            self.host().push(&file, port.as_bytes(), LONG)?;
        }
        self.sh(&format!(
            "setsid /guest/guest.sh {name} >/run/{name}.qemu 2>&1 </dev/null &"
        ))?;
        let witness = self
            .first_sign(name)
            .with_context(|| format!("guest {name} does not come up"));
        let witness = match witness {
            Ok(witness) => witness,
            Err(error) => {
                // The machine may be gone; then the error says so.
                let words = format!("cat /run/{name}.qemu /run/{name}.log");
                let log = self.host().run(&words, ANSWER).map(|output| output.text);
                let log = log.unwrap_or_default();
                return Err(error.context(format!("what QEMU and the guest said:\n{log}")));
            }
        };
        self.guests.push(Guest {
            name: name.to_owned(),
            witness,
        });
        self.report.guest(name);
        Ok(())
    }

    fn first_sign(&mut self, name: &str) -> Result<Witness> {
        if name != stock_guest::NAME {
            let watch = format!("lab-guest watch --name {name} --running --timeout 600");
            return Ok(Witness::Beats(self.sh(&watch)?));
        }
        // QEMU takes a connection long before the guest answers. Each look ends in emulated time, however slow this machine is.
        let look = format!(
            "sleep 5; [ -S /run/{name}.qmp ] || exit 1; timeout 10 {}visit 2>/dev/null || echo",
            stock_guest::FETCH
        );
        for _ in 0..PATIENCE {
            let page = self.sh(&look).context("its QEMU is gone")?;
            if let Ok(visit) = Visit::parse(&page) {
                return Ok(Witness::Page(visit));
            }
        }
        bail!("it does not answer after {PATIENCE} visits")
    }

    /// Names of the guests.
    #[must_use]
    pub fn guest_names(&self) -> Vec<String> {
        self.guests.iter().map(|guest| guest.name.clone()).collect()
    }

    /// Proves, from the reigning host, that every guest is still in the boot it was started with and finds no fault.
    ///
    /// # Errors
    /// One did not survive.
    pub fn check_guests(&mut self) -> Result<()> {
        for (number, Guest { name, witness }) in self.guests.clone().into_iter().enumerate() {
            self.progress.step(&format!("checking guest {name}"));
            self.report.guest(&name).alive = false;
            self.report.guest(&name).checksum_ok = false;
            let before = match witness {
                Witness::Beats(before) => before,
                Witness::Page(before) => {
                    let now = self.visit()?;
                    now.follows(&before)?;
                    self.guests[number].witness = Witness::Page(now);
                    let entry = self.report.guest(&name);
                    (entry.alive, entry.checksum_ok) = (true, true);
                    continue;
                }
            };
            let file = format!("/run/{name}.before.json");
            self.host().push(&file, before.as_bytes(), LONG)?;
            let after: Beat = self.json(&format!(
                "lab-guest watch --name {name} --survived {file} --timeout 600"
            ))?;
            // Only Bochs' TSC has a rate that is known beforehand.
            let lag = bochs::tsc_hz(&self.cpu_model)
                .filter(|_| self.report.platform == "bochs")
                .and_then(|hz| clock_lag(&before, &after, hz));
            let entry = self.report.guest(&name);
            entry.alive = true;
            entry.checksum_ok = after.faults == 0;
            entry.clock_lag_ns = lag;
        }
        self.check("the guests live and their checks find nothing");
        Ok(())
    }

    /// Has the stock guest serve its page, in the reigning host.
    fn visit(&mut self) -> Result<Visit> {
        Visit::parse(&self.sh(&format!("{}visit", stock_guest::FETCH))?)
    }

    /// Notes that something was shown.
    pub fn check(&mut self, what: &str) {
        self.report.checks.push(what.to_owned());
    }

    /// Shows that L0 is dormant: every CPU native, and no exit while the guests go on for a while.
    ///
    /// # Errors
    /// A CPU is nested, or L0 took an exit.
    pub fn check_dormant(&mut self) -> Result<()> {
        let before = self.status()?;
        ensure!(
            before.all_native(),
            "not every CPU is native: {:?}",
            before.cpus
        );
        self.check_guests()?;
        let after = self.status()?;
        let exits = after.exits.total.abs_diff(before.exits.total);
        self.report.l0.native_exits += exits;
        self.report.l0.image_bytes = after.image_bytes;
        self.report.l0.exits_by_reason = after.exits.by_reason;
        ensure!(
            exits == 0,
            "L0 took {exits} exits while every CPU was native"
        );
        self.check(&format!(
            "generation {}: every CPU native, no exit to L0 meanwhile",
            self.generation
        ));
        Ok(())
    }

    /// Ends a phase of the lab's own: it began where the last one ended.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn end_phase(&mut self, name: &str, exits: u64) -> Result<()> {
        let now = self.host().tsc()?;
        self.report.phases.push(Phase {
            name: name.to_owned(),
            by: "lab".into(),
            what: report::describe(name).to_owned(),
            instructions: now.saturating_sub(self.phase_begin),
            l0_exits: exits.saturating_sub(self.phase_exits),
        });
        self.phase_begin = now;
        self.phase_exits = exits;
        Ok(())
    }

    /// Replaces the reigning host. `Ok(Outcome::Failed)` is a refresh that was given up, with the incumbent answering.
    ///
    /// # Errors
    /// Neither end is reached in time, or the machine dies.
    pub fn refresh(&mut self, successor: &Successor) -> Result<Outcome> {
        self.progress.step("configuring the successor");
        for guest in &mut self.report.guests {
            guest.pause_seen_by.clear();
        }
        successor.install(&mut self.host())?;
        // What the incumbent's watches print comes over the line at once, and stays when the host is gone.
        let here = self.watch_pages(self.generation, successor.generation)?;
        let job = self
            .host()
            .start(&format!("locum refresh {}", successor.name))?;
        let outcome = self.follow(job, successor.generation)?;
        for watch in here {
            let text = self.machine.host(watch.generation).poll(watch.job).0;
            self.take_visits(&watch, &String::from_utf8_lossy(&text))?;
        }
        if outcome == Outcome::Done {
            self.generation = successor.generation;
            self.conclude()?;
        } else {
            let end = format!("touch {}", watched(successor.generation));
            self.sh(&end)?;
        }
        Ok(outcome)
    }

    fn follow(&mut self, job: JobId, generation: u32) -> Result<Outcome> {
        let end = self.machine.deadline(REFRESH)?;
        let mut said = Vec::new();
        let mut watches: Option<Vec<Watch>> = None;
        loop {
            let (text, status) = self.machine.host(self.generation).poll(job);
            said.extend(text);
            if let Some(status) = status.filter(|status| *status != 0) {
                let said = String::from_utf8_lossy(&said);
                return Ok(Outcome::Failed(format!("status {status}: {}", said.trim())));
            }
            if let Some(hello) = self.machine.host(generation).hello() {
                self.report.successor = hello.release;
                if watches.is_none() {
                    watches = Some(self.watch_guests(generation)?);
                }
                // Cheap, for it runs while guests go over.
                let look = "cat /sys/kernel/locum/state /sys/kernel/locum/progress 2>/dev/null";
                // A successor that does not answer is the agents' business: theirs is the outcome.
                let answer = self.machine.host(generation).run(look, ANSWER);
                let words = answer.map(|output| output.text).unwrap_or_default();
                self.progress.step(&format!(
                    "generation {generation}: {}",
                    words.trim().replace('\n', ", ")
                ));
                if words.lines().next() == Some("idle") && self.reigns(generation)? {
                    self.take_watches(generation, &watches.unwrap_or_default())?;
                    return Ok(Outcome::Done);
                }
            } else {
                let last = String::from_utf8_lossy(&said)
                    .lines()
                    .last()
                    .unwrap_or("refreshing")
                    .to_owned();
                self.progress.step(&last);
            }
            if self.machine.now()? > end {
                let said = String::from_utf8_lossy(&said).into_owned();
                return Err(self
                    .machine
                    .failure(&format!("the refresh does not end; locum said:\n{said}")));
            }
            self.machine.look(LOOK)?;
        }
    }

    /// Watches the guests from the successor while they come over.
    fn watch_guests(&mut self, generation: u32) -> Result<Vec<Watch>> {
        let mut watches = self.watch_pages(generation, generation)?;
        watches.extend(self.watch_gaps(generation)?);
        Ok(watches)
    }

    /// Visits the stock guest from a host again and again until the refresh is over, for it is to serve throughout.
    fn watch_pages(&mut self, generation: u32, successor: u32) -> Result<Vec<Watch>> {
        let until = watched(successor);
        self.watch(generation, &stock_guest::watch(&until), |witness| {
            matches!(witness, Witness::Page(_))
        })
    }

    /// Watches the beats of the lab's guests from the successor; both hosts map the same pool. Not where that host has one CPU: a
    /// watcher that waits for the CPU sees nothing but that, and QEMU's word stands.
    fn watch_gaps(&mut self, generation: u32) -> Result<Vec<Watch>> {
        if self.report.cpus < 4 {
            return Ok(Vec::new());
        }
        let wait = "until (: </dev/dax0.0) 2>/dev/null; do sleep 0.2; done";
        let until = watched(generation);
        let watch = format!("{wait}; lab-guest watch --name NAME --gaps 120 --until {until}");
        self.watch(generation, &watch, |witness| {
            matches!(witness, Witness::Beats(_))
        })
    }

    /// Starts `command` in a host for each guest of that kind; NAME in it is the guest's.
    fn watch(
        &mut self,
        generation: u32,
        command: &str,
        kind: fn(&Witness) -> bool,
    ) -> Result<Vec<Watch>> {
        let mut watches = Vec::new();
        for guest in self.guests.clone() {
            if kind(&guest.witness) {
                let command = command.replace("NAME", &guest.name);
                let job = self.machine.host(generation).start(&command)?;
                watches.push(Watch {
                    guest,
                    generation,
                    job,
                });
            }
        }
        Ok(watches)
    }

    fn take_watches(&mut self, generation: u32, watches: &[Watch]) -> Result<()> {
        self.machine
            .host(generation)
            .run(&format!("touch {}", watched(generation)), ANSWER)?
            .ok()?;
        let status: Option<Status> = self.successor_state(generation)?;
        let moved = status
            .and_then(|status| status.last_report)
            .map(|report| report.guests)
            .unwrap_or_default();
        for watch in watches {
            let output = self.machine.host(generation).finish(watch.job, LONG)?;
            if matches!(watch.guest.witness, Witness::Page(_)) {
                self.take_visits(watch, &output.text)?;
                continue;
            }
            let name = &watch.guest.name;
            let file = self
                .machine
                .dir()
                .join(format!("gaps-{generation}-{name}.json"));
            std::fs::write(file, &output.text)?;
            let gaps: Vec<Gap> = serde_json::from_str(&output.text)
                .with_context(|| format!("the watch of guest {name} said: {}", output.text))?;
            let Some(guest) = moved.iter().find(|guest| guest.name == *name) else {
                continue;
            };
            // The beats that stood still around the resume; without such a gap QEMU's word stands.
            if let Some(gap) = gaps
                .iter()
                .find(|gap| (gap.from_tsc..gap.to_tsc).contains(&guest.resumed))
            {
                self.report.guest(name).pause_instructions = gap.to_tsc - gap.from_tsc;
                self.report.guest(name).pause_seen_by = "beats".into();
            }
        }
        Ok(())
    }

    /// Keeps the visits that a watch made; the guest has to be the same all along.
    fn take_visits(&mut self, watch: &Watch, text: &str) -> Result<()> {
        let file = format!("visits-{}-{}.txt", watch.generation, watch.guest.name);
        std::fs::write(self.machine.dir().join(file), text)?;
        let Witness::Page(mut last) = watch.guest.witness.clone() else {
            return Ok(());
        };
        for (state, visit) in stock_guest::visits(text) {
            visit.follows(&last)?;
            last = visit;
            self.visits.push((watch.generation, state));
        }
        Ok(())
    }

    fn reigns(&mut self, generation: u32) -> Result<bool> {
        let status = self.successor_state(generation)?;
        Ok(status.is_some_and(|status| status.generation == generation && status.all_native()))
    }

    fn successor_state(&mut self, generation: u32) -> Result<Option<Status>> {
        let output = self
            .machine
            .host(generation)
            .run("locum status --json", ANSWER)?;
        // Until its agent and module are up it cannot answer.
        Ok(serde_json::from_str(&output.text).ok())
    }

    /// Takes the refresh over into the report.
    fn conclude(&mut self) -> Result<()> {
        let status = self.status()?;
        let refresh = status
            .last_report
            .context("the new host's agent knows of no refresh")?;
        let seen: Vec<_> = self
            .report
            .guests
            .iter()
            .filter(|guest| guest.pause_seen_by == "beats")
            .map(|guest| (guest.name.clone(), guest.pause_instructions))
            .collect();
        self.report.add_refresh(&refresh);
        for (name, pause) in seen {
            self.report.guest(&name).pause_instructions = pause;
            self.report.guest(&name).pause_seen_by = "beats".into();
        }
        self.report.generation = status.generation;
        self.report.unreclaimed_bytes = status.unreclaimed_bytes.max(refresh.unreclaimed_bytes);
        self.phase_begin = self.host().tsc()?;
        self.phase_exits = status.exits.total;
        if let Some(error) = refresh.error {
            bail!("the refresh went through, but: {error}");
        }
        Ok(())
    }

    /// Asks for the status until `wanted` returns something.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_status<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T> {
        let end = self.machine.deadline(LONG)?;
        let mut last = String::new();
        while self.machine.now()? < end {
            let output = self.host().run("locum status --json", LONG)?;
            if let Ok(status) = serde_json::from_str::<Status>(&output.text)
                && let Some(found) = wanted(&status)
            {
                return Ok(found);
            }
            last = output.text;
            self.machine.look(Span::seconds(1))?;
        }
        bail!("waiting for {what}; the last status was:\n{last}")
    }
}

/// How far the guest's monotonic clock fell behind the host's TSC of this rate, by which both reports are dated.
fn clock_lag(before: &str, after: &Beat, tsc_hz: u64) -> Option<i64> {
    let before: Beat = serde_json::from_str(before).ok()?;
    let (from, to) = (
        before.clock?.monotonic_ns,
        after.clock.as_ref()?.monotonic_ns,
    );
    let ticks = after.host_tsc.checked_sub(before.host_tsc)?;
    let host_ns = u128::from(ticks) * 1_000_000_000 / u128::from(tsc_hz);
    let host_ns = i64::try_from(host_ns).ok()?;
    Some(host_ns - i64::try_from(to.checked_sub(from)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_host_time_less_guest_time() {
        let beat = |tsc: u64, ns: u64| {
            format!(
                r#"{{"name":"g","beats":1,"host_tsc":{tsc},"faults":0,"clock":{{"tsc":0,"monotonic_ns":{ns}}}}}"#
            )
        };
        let after = serde_json::from_str(&beat(1_000_100, 1_000_900)).unwrap();
        // A million ticks are ten million ns; the guest counted a thousandth of them.
        assert_eq!(
            clock_lag(&beat(100, 900), &after, 100_000_000),
            Some(10_000_000 - 1_000_000)
        );
        assert_eq!(
            clock_lag(&beat(100, 900), &after, 2_000_000_000),
            Some(500_000 - 1_000_000)
        );
    }
}
