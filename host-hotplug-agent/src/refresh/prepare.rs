//! Everything that can be found out before anything is changed: whatever is wrong is refused here.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use partitioner::{Inventory, MemRange, PciAddress, Plan, PortRange, Request, Unreclaimed, plan};

use super::{by_kernel, going, incumbent::image};
use crate::config::{self, Config};
use crate::deadline::Deadline;
use crate::error::{Refusal, listed};
use crate::guest::others::Other;
use crate::guest::{Hypervisor, Spec, there};
use crate::inventory::{self, serial, serial::Line};
use crate::journal::ConfigText;
use crate::load::{Files, threads};
use crate::machine::Machine;
use crate::pool::crossing;
use crate::preflight;
use crate::sysroot::SysRoot;

/// Ports of a UART.
const UART_PORTS: u16 = 8;

/// What an operator refreshes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'c> {
    /// `NAME.toml` in the configuration directory.
    Named(&'c str),
    /// The installed kernel of that version; all else is made of this host ([`super::by_kernel`]).
    Kernel(&'c str),
}

impl<'c> From<&'c str> for Choice<'c> {
    fn from(name: &'c str) -> Self {
        Self::Named(name)
    }
}

impl Choice<'_> {
    /// How the refresh is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Kernel(version) => version,
        }
    }
}

/// What an operator says beside the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'w> {
    /// Guests whose storage the successor has, whatever is found of it.
    pub trust_storage: &'w [String],
    /// Guests that do not go over, and are shut down first.
    pub leave: &'w [String],
}

impl Wishes<'_> {
    /// Whether there is nothing in it.
    pub fn are_none(&self) -> bool {
        self.trust_storage.is_empty() && self.leave.is_empty()
    }
}

/// A refresh that can begin.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Name of the configuration.
    pub name: String,
    /// The configuration.
    pub config: Config,
    /// The file that it is from.
    pub text: ConfigText,
    /// Kernel and initramfs.
    pub files: Files,
    /// Guests to hand over.
    pub guests: Vec<Spec>,
    /// Guests that do not go over: to be shut down before it begins ([`Self::shut_down`]).
    pub leaving: Vec<Other>,
    /// What this host has.
    pub inventory: Inventory,
    /// What the successor is to get.
    pub request: Request,
    /// What to beware of beside the plan's warnings.
    pub notes: Vec<String>,
}

impl Prepared {
    /// Reads or makes the configuration and checks everything.
    ///
    /// # Errors
    /// A [`Refusal`], or what cannot be read of this host.
    pub fn new(
        machine: &dyn Machine,
        hypervisor: &dyn Hypervisor,
        config_dir: &Path,
        choice: Choice<'_>,
        wishes: Wishes<'_>,
        unreclaimed: Vec<Unreclaimed>,
    ) -> Result<Self> {
        let (mut config, text) = match choice {
            Choice::Named(name) => Config::read(config_dir, name)?,
            Choice::Kernel(version) => by_kernel::config(machine, hypervisor, version)?,
        };
        preflight::check(machine.sys())?;
        going::with_all_domains(hypervisor, &mut config)?;
        let stays = |guest: &config::Guest| wishes.leave.contains(&guest.name);
        let (left, going) = config.guests.into_iter().partition::<Vec<_>, _>(stays);
        config.guests = going;
        let unseen = preflight::check_carried_over(&machine.carried_over())?;
        let files = Files::read(&config, &text.path)?;
        let now = Surroundings::of(machine, &config, &files, unreclaimed)?;
        // Guests last: what is cheaper to find out comes first.
        let guests = going::guests(hypervisor, &config)?;
        crossing::check(machine, &guests)?;
        let mut distrusted = going::storage(&guests, &config, wishes.trust_storage, &files.initramfs)?;
        let leaving = going::leaving(hypervisor.others(&guests), &left, wishes.leave)?;
        let mut notes = there::check(&files.initramfs, &guests)?;
        notes.append(&mut distrusted);
        notes.extend(unseen);
        notes.extend(now.notes);
        notes.extend(pinned(machine));
        Ok(Self {
            name: choice.name().to_owned(),
            config,
            text,
            files,
            guests,
            leaving,
            inventory: now.inventory,
            request: now.request,
            notes,
        })
    }

    /// Has the guests shut down that do not go over, and looks anew at what this host has then.
    ///
    /// # Errors
    /// [`Refusal::StaysUp`], or what cannot be read of this host.
    pub fn shut_down(
        &mut self,
        machine: &dyn Machine,
        hypervisor: &dyn Hypervisor,
        unreclaimed: Vec<Unreclaimed>,
        given_up: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let until = Deadline::after(self.config.timeouts.shutdown).or_when(given_up);
        // All at a time: each may take as long as its services want.
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let until = &until;
            let ask = |other| scope.spawn(move || hypervisor.shut_down(other, until));
            let threads: Vec<_> = self.leaving.iter().map(ask).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for (other, outcome) in self.leaving.drain(..).zip(outcomes) {
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the thread that asked it panicked")));
            outcome.map_err(|error| Refusal::StaysUp {
                guest: other.name,
                problem: format!("{error:#}"),
            })?;
        }
        // Their memory is free now, and their devices are Linux's.
        let now = Surroundings::of(machine, &self.config, &self.files, unreclaimed)?;
        self.inventory = now.inventory;
        self.request = now.request;
        Ok(())
    }

    /// The plan, and everything tried that can be tried without taking anything.
    ///
    /// # Errors
    /// [`Refusal::Plan`], [`Refusal::FewThreads`], or why the image could not be loaded.
    pub fn plan(&self, machine: &dyn Machine) -> Result<Plan> {
        let plan = plan(&self.inventory, &self.request).map_err(Refusal::from)?;
        let bytes = |ranges: &[MemRange]| ranges.iter().map(|range| range.len()).sum();
        threads::check(bytes(&plan.memory), bytes(&self.inventory.pool), self.request.boot)?;
        image::rehearse(machine, &self.config, &self.files, &plan)?;
        Ok(plan)
    }
}

/// What of this host a refresh has to do with.
struct Surroundings {
    inventory: Inventory,
    request: Request,
    notes: Vec<String>,
}

impl Surroundings {
    fn of(machine: &dyn Machine, config: &Config, files: &Files, unreclaimed: Vec<Unreclaimed>) -> Result<Self> {
        let facts = machine.facts();
        let status = machine.status()?;
        let mut inventory = inventory::take(machine.sys(), &facts.header, &status, facts.slot, unreclaimed)?;
        let (request, waits) = request(machine.sys(), &inventory, config, files, console_port(machine))?;
        let stays = inventory::pages::settle(machine.sys(), &mut inventory, &request);
        Ok(Self {
            inventory,
            request,
            notes: stays.into_iter().chain(waits).collect(),
        })
    }
}

/// The console port of the successor's slot.
pub(super) fn console_port(machine: &dyn Machine) -> u32 {
    let facts = machine.facts();
    facts.header.slots[facts.slot.other()].console_port
}

/// What the successor is to get, and a note if programs that write to its console will wait.
fn request(
    sys: &SysRoot,
    inventory: &Inventory,
    config: &Config,
    files: &Files,
    console_port: u32,
) -> Result<(Request, Option<String>)> {
    let mut ports = config.ports.clone();
    let mut pins = config.pins.clone();
    let mut note = None;
    if let Some(first) = u16::try_from(console_port).ok().filter(|&port| port != 0) {
        let console = PortRange::new(first, first.saturating_add(UART_PORTS - 1));
        ports.extend(console.filter(|console| !ports.iter().any(|ports| ports.overlaps(*console))));
        // Linux polls for its own words, but lets programs wait for the interrupt.
        match serial::line(sys, inventory, first)? {
            Line::None => {}
            Line::Free(gsi) if pins.contains(&gsi) => {}
            Line::Free(gsi) => pins.push(gsi),
            Line::Shared(gsi, other) => {
                note = Some(format!(
                    "the interrupt of the next host's console, {gsi}, stays here, for {other} has it: programs that write \
                     to that console wait for what does not come"
                ));
            }
        }
    }
    let request = Request {
        cpus: config.cpus.request(),
        memory: config.memory.request(),
        boot: files.boot_size(),
        functions: config.devices.clone(),
        ports,
        pins,
        guests: config.guests.iter().map(|guest| guest.name.clone()).collect(),
    };
    Ok((request, note))
}

/// Who has memory pinned. Linux moves it out of the way as it is pinned, if it can.
fn pinned(machine: &dyn Machine) -> Option<String> {
    let who = inventory::pins::holders(machine.sys())?;
    Some(format!(
        "pinned memory: {who}. Should the refresh be given up because a memory block stays, stop these first"
    ))
}

/// What `locum plan` prints.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PlanView {
    /// Name of the configuration.
    pub name: String,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Bytes of the initramfs, with what is carried.
    pub initramfs_bytes: usize,
    /// The plan.
    pub plan: Plan,
    /// PCI functions that no plan moves, for they are in another segment than 0.
    pub immovable: Vec<PciAddress>,
    /// Bytes of RAM that the successor boots with.
    pub memory_bytes: u64,
    /// Bytes that will be nobody's.
    pub unreclaimed_bytes: u64,
    /// Guests and how they are started.
    pub guests: Vec<Spec>,
    /// Guests that are shut down first.
    pub leaving: Vec<String>,
    /// What to beware of beside the plan's warnings.
    pub notes: Vec<String>,
}

impl PlanView {
    /// Of a refresh that can begin.
    ///
    /// # Errors
    /// As [`Prepared::plan`].
    pub fn new(prepared: &Prepared, machine: &dyn Machine) -> Result<Self> {
        let plan = prepared.plan(machine)?;
        Ok(Self {
            name: prepared.name.clone(),
            kernel: prepared.config.kernel.clone(),
            initramfs_bytes: prepared.files.initramfs.len(),
            immovable: prepared
                .inventory
                .immovable()
                .map(|function| function.address)
                .collect(),
            memory_bytes: plan.memory_bytes(),
            unreclaimed_bytes: plan.unreclaimed_bytes(),
            guests: prepared.guests.clone(),
            leaving: prepared.leaving.iter().map(|other| other.name.clone()).collect(),
            notes: prepared.notes.clone(),
            plan,
        })
    }
}

impl std::fmt::Display for PlanView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plan = &self.plan;
        let list = |items: Vec<String>| listed(&items);
        let cpus = |cpus: &[partitioner::Cpu]| {
            list(
                cpus.iter()
                    .map(|cpu| format!("{} ({})", cpu.number.0, cpu.apic))
                    .collect(),
            )
        };
        writeln!(f, "successor   {} (generation {})", self.name, plan.generation.next().0)?;
        writeln!(
            f,
            "kernel      {}, initramfs {} bytes",
            self.kernel.display(),
            self.initramfs_bytes
        )?;
        writeln!(f, "CPUs        {}; kept: {}", cpus(&plan.cpus), cpus(&plan.kept_cpus))?;
        let memory = list(plan.memory.iter().map(ToString::to_string).collect());
        writeln!(f, "memory      {} MiB: {memory}", self.memory_bytes >> 20)?;
        writeln!(f, "to migrate  {} MiB", plan.to_migrate >> 20)?;
        writeln!(
            f,
            "PCI         {}",
            list(plan.functions.iter().map(ToString::to_string).collect())
        )?;
        if !self.immovable.is_empty() {
            writeln!(
                f,
                "immovable   {}: in another PCI segment than 0000",
                list(self.immovable.iter().map(ToString::to_string).collect())
            )?;
        }
        writeln!(
            f,
            "ports       {}",
            list(plan.ports.iter().map(ToString::to_string).collect())
        )?;
        writeln!(
            f,
            "pins        {}",
            list(plan.pins.iter().map(|gsi| gsi.0.to_string()).collect())
        )?;
        let guests = self
            .guests
            .iter()
            .map(|guest| format!("{} (channel {})", guest.name, guest.channel));
        writeln!(f, "guests      {}", list(guests.collect()))?;
        if !self.leaving.is_empty() {
            writeln!(f, "shut down   {}", list(self.leaving.clone()))?;
        }
        writeln!(
            f,
            "then        {} blocks, CPUs {}, PCI {} are reclaimed",
            plan.reclaim.blocks.len(),
            list(plan.reclaim.cpus.iter().map(|apic| apic.0.to_string()).collect()),
            list(plan.reclaim.functions.iter().map(ToString::to_string).collect())
        )?;
        write!(
            f,
            "left over   {} KiB in blocks with holes",
            self.unreclaimed_bytes >> 10
        )?;
        for warning in &plan.warnings {
            write!(f, "\nbeware      {warning}")?;
        }
        for note in &self.notes {
            write!(f, "\nbeware      {note}")?;
        }
        Ok(())
    }
}
