//! One run of a machine with Locum: the steps that the demo and the tests are made of.

mod refresh;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::{
    boot::{self, MachineArgs},
    debian::roots::Root,
    image::{
        kernel::Kernel,
        stock_guest::{self, Disk, StockGuest, Visit},
    },
    machine::{Host, Machine, bochs, deadline::Span, layout::Layout},
    progress::Progress,
    report::{
        self, Phase, Report,
        agent::{Beat, Status},
    },
};

/// Long enough for anything that a host does by itself; longer than the limits that commands there have by its own
/// clock.
const LONG: Span = Span::seconds(900);
/// Long enough for a trifle that a living host is asked while a refresh goes on.
const ANSWER: Span = Span::seconds(300);
/// Long enough for a host to power the machine off.
pub const OFF: Span = Span::seconds(300);
/// Visits, some 15 emulated seconds apart, after which the stock guest should have booted.
const PATIENCE: u32 = 60;

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

pub use refresh::Outcome;

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
            trees: [
                Root::bochs()?.name(),
                Root::host()?.name(),
                Kernel::get(&args.kernel)?.root().name(),
                Kernel::get(&args.to)?.root().name(),
            ]
            .into_iter()
            .chain(args.stock_guest.then(Root::guest).transpose()?.map(|root| root.name()))
            .collect(),
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
            let disk = self.disk.as_ref().context("the machine has no disk for it")?;
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
        // QEMU takes a connection long before the guest answers. Each look ends in emulated time, however slow this
        // machine is.
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
        ensure!(before.all_native(), "not every CPU is native: {:?}", before.cpus);
        self.check_guests()?;
        let after = self.status()?;
        let exits = after.exits.total.abs_diff(before.exits.total);
        self.report.l0.native_exits += exits;
        self.report.l0.image_bytes = after.image_bytes;
        self.report.l0.exits_by_reason = after.exits.by_reason;
        ensure!(exits == 0, "L0 took {exits} exits while every CPU was native");
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

    /// Asks for the status until `wanted` returns something.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_status<T>(&mut self, what: &str, mut wanted: impl FnMut(&Status) -> Option<T>) -> Result<T> {
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
    let (from, to) = (before.clock?.monotonic_ns, after.clock.as_ref()?.monotonic_ns);
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
            format!(r#"{{"name":"g","beats":1,"host_tsc":{tsc},"faults":0,"clock":{{"tsc":0,"monotonic_ns":{ns}}}}}"#)
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
