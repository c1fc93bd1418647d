//! One run of a machine with Locum: what is known of it, and how its reigning host is asked.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::{
    prepare::{MachineArgs, prepare},
    witness::Guest,
};
use crate::{
    debian::root::Root,
    image::{
        kernel::Kernel,
        stock_guest::{Disk, StockGuest},
    },
    machine::{Host, Machine, channel::JobId, deadline::Span, layout::Layout},
    progress::Progress,
    report::{self, Phase, Report, agent::Status},
};

/// Long enough for anything that a host does by itself; longer than the limits that commands there have by its own
/// clock.
pub(super) const LONG: Span = Span::seconds(900);
/// Long enough for a trifle that a living host is asked while a refresh goes on.
pub(super) const ANSWER: Span = Span::seconds(300);

/// A machine, what is known of it, and the report of the run.
pub(crate) struct Run {
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
    pub(super) guests: Vec<Guest>,
    /// The stock guest's, if there is one.
    pub(super) disk: Option<Disk>,
    /// Visits to the stock guest while a refresh went on: from which generation, in which state of the refresh.
    pub visits: Vec<(u32, String)>,
    /// Programs that tell how the busy guest gets on: in which generation.
    pub(super) lines: Vec<(u32, JobId)>,
    pub(super) phase_begin: u64,
    pub(super) phase_exits: u64,
}

impl Run {
    /// Builds and boots a machine up to its first host.
    ///
    /// # Errors
    /// Something does not build or boot.
    pub(crate) fn boot(args: &MachineArgs, progress: Progress) -> Result<Self> {
        progress.step("building");
        let setup = prepare(args)?;
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
            successor: hello.release.clone(),
            hosts: vec![hello.release],
            trees: trees(args)?,
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
            lines: Vec::new(),
            phase_begin: 0,
            phase_exits: 0,
        };
        run.end_phase("boot machine", 0)?;
        Ok(run)
    }

    /// The reigning host.
    pub(crate) fn host(&mut self) -> Host<'_> {
        self.machine.host(self.generation)
    }

    /// Runs a command in the reigning host that has to succeed.
    ///
    /// # Errors
    /// It fails, or the host does not answer.
    pub(crate) fn sh(&mut self, command: &str) -> Result<String> {
        self.host()
            .run(command, LONG)?
            .ok()
            .with_context(|| format!("running {command:?}"))
    }

    /// As [`Run::sh`], for a command that prints JSON.
    ///
    /// # Errors
    /// As [`Run::sh`]; or the JSON is not what is expected.
    pub(crate) fn json<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        let text = self.sh(command)?;
        serde_json::from_str(&text).with_context(|| format!("{command:?} printed:\n{text}"))
    }

    /// `locum status` of the reigning host.
    ///
    /// # Errors
    /// As [`Run::json`].
    pub(crate) fn status(&mut self) -> Result<Status> {
        self.json("locum status --json")
    }

    /// `locum status` of a host that may not be able to answer: its agent or module may not be up yet.
    ///
    /// # Errors
    /// The machine dies.
    pub(crate) fn status_of(&mut self, generation: u32) -> Result<Option<Status>> {
        let output = self.machine.host(generation).run("locum status --json", ANSWER)?;
        Ok(serde_json::from_str(&output.text).ok())
    }

    /// Powers the machine off, from its reigning host.
    ///
    /// # Errors
    /// It does not go off.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.progress.step("powering off");
        self.host().power_off()
    }

    /// Loads KVM and the module, makes the pool, starts the agent.
    ///
    /// # Errors
    /// One of them fails.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.progress
            .step("loading KVM, the pool, locum.ko; starting the agent");
        self.sh("/own/begin")?;
        self.wait_status("the agent's first word", |status| {
            (status.state == "idle").then_some(())
        })
    }

    /// Notes that something was shown.
    pub(crate) fn check(&mut self, what: &str) {
        self.report.checks.push(what.to_owned());
    }

    /// Ends a phase of the lab's own: it began where the last one ended.
    ///
    /// # Errors
    /// The host does not answer.
    pub(crate) fn end_phase(&mut self, name: &str, exits: u64) -> Result<()> {
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
    pub(crate) fn wait_status<T>(&mut self, what: &str, mut wanted: impl FnMut(&Status) -> Option<T>) -> Result<T> {
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

/// The Debian trees that a run takes, by their names in the cache.
fn trees(args: &MachineArgs) -> Result<Vec<String>> {
    let mut trees = args
        .platform
        .trees()
        .iter()
        .map(|get| get())
        .collect::<Result<Vec<_>>>()?;
    for kernel in [&args.kernel, &args.to] {
        trees.push(Kernel::get(kernel)?.root().clone());
    }
    if args.stock_guest {
        trees.push(Root::guest()?);
    }
    if args.selftests {
        trees.push(Kernel::get(&args.kernel)?.selftests()?);
    }
    Ok(trees.iter().map(Root::name).collect())
}
