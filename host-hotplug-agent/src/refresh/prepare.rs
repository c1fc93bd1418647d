//! Everything that can be found out before anything is changed: whatever is wrong is refused here.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use locum_abi::CHANNEL_COUNT;
use partitioner::{Inventory, MemRange, PciAddress, Plan, PortRange, Request, Unreclaimed, plan};

use super::{by_kernel, incumbent::image};
use crate::config::{self, Config};
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::guest::others::{By, Other};
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
        with_all_domains(hypervisor, &mut config)?;
        let stays = |guest: &config::Guest| wishes.leave.contains(&guest.name);
        let (left, going) = config.guests.into_iter().partition::<Vec<_>, _>(stays);
        config.guests = going;
        let unseen = preflight::check_carried_over(&machine.carried_over())?;
        let files = Files::read(&config, &text.path)?;
        let now = Surroundings::of(machine, &config, &files, unreclaimed)?;
        // Guests last: what is cheaper to find out comes first.
        let guests = guests(hypervisor, &config)?;
        crossing::check(machine, &guests)?;
        let mut distrusted = storage(&guests, &config, wishes.trust_storage, &files.initramfs)?;
        let leaving = leaving(hypervisor.others(&guests), &left, wishes.leave)?;
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

/// Puts the domains that are in the pool, and that no other line names, in place of a line that means all of them.
fn with_all_domains(hypervisor: &dyn Hypervisor, config: &mut Config) -> Result<(), Refusal> {
    let means_all = |guest: &config::Guest| guest.libvirt.as_deref() == Some(config::ALL);
    if !config.guests.iter().any(means_all) {
        return Ok(());
    }
    let trust_storage = config
        .guests
        .iter()
        .any(|guest| means_all(guest) && guest.trust_storage);
    config.guests.retain(|guest| !means_all(guest));
    let here = hypervisor.guests_here()?.into_iter();
    let more: Vec<_> = here
        .filter(|guest| guest.libvirt.is_some())
        .filter(|guest| config.guests.iter().all(|known| known.libvirt != guest.libvirt))
        .map(|guest| config::Guest { trust_storage, ..guest })
        .collect();
    config.guests.extend(more);
    Ok(())
}

fn guests(hypervisor: &dyn Hypervisor, config: &Config) -> Result<Vec<Spec>, Refusal> {
    let mut turns = (1..CHANNEL_COUNT).cycle();
    config
        .guests
        .iter()
        .map(|guest| {
            let channel = guest.channel.or_else(|| turns.next()).unwrap_or(1);
            hypervisor.inspect(guest, channel)
        })
        .collect()
}

/// Of the guests that do not go over, those that an operator wants to be shut down, of whom a configuration names those in
/// `left`; all others are refused.
fn leaving(others: Vec<Other>, left: &[config::Guest], leave: &[String]) -> Result<Vec<Other>, Refusal> {
    // A configuration may call a guest otherwise than itself does.
    let is = |other: &Other, name: &String| {
        let named = |guest: &&config::Guest| match &other.by {
            By::Libvirt(domain) => guest.libvirt.as_ref() == Some(domain),
            By::Qmp(socket) => guest.libvirt.is_none() && guest.qmp == *socket,
            By::Nobody => false,
        };
        other.name == *name || left.iter().filter(named).any(|guest| guest.name == *name)
    };
    if let Some(other) = others.iter().find(|other| other.by == By::Nobody) {
        return Err(Refusal::NobodysGuest(other.name.clone()));
    }
    let untold: Vec<_> = others
        .iter()
        .filter(|other| leave.iter().all(|name| !is(other, name)))
        .map(|other| {
            let why = if other.in_pool {
                "no `[[guests]]` names it"
            } else {
                "its RAM is not in the pool"
            };
            (other.name.as_str(), why)
        })
        .collect();
    if !untold.is_empty() {
        let each: Vec<_> = untold.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        let leave: Vec<_> = untold.iter().map(|(name, _)| format!("--leave '{name}'")).collect();
        return Err(Refusal::Stays {
            guests: each.join(", "),
            leave: leave.join(" "),
        });
    }
    let known =
        |name: &String| left.iter().any(|guest| guest.name == *name) || others.iter().any(|other| is(other, name));
    match leave.iter().find(|name| !known(name)) {
        Some(name) => Err(Refusal::NotHere(name.clone())),
        None => Ok(others),
    }
}

/// Refuses guests whose disks the successor may not have, but for those that an operator trusts. Returns a note for each of
/// these.
fn storage(guests: &[Spec], config: &Config, trusted: &[String], initramfs: &[u8]) -> Result<Vec<String>, Refusal> {
    if let Some(name) = trusted
        .iter()
        .find(|name| guests.iter().all(|guest| guest.name != **name))
    {
        let known: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
        return Err(Refusal::NoSuchGuest {
            name: name.clone(),
            known: if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            },
        });
    }
    let mut notes = Vec::new();
    for guest in guests {
        let problems: Vec<_> = guest
            .disks
            .iter()
            .filter(|disk| !disk.is_settled_by(initramfs))
            .map(|disk| disk.problem.as_str())
            .collect();
        if problems.is_empty() {
            continue;
        }
        let what = problems.join("; ");
        let in_file = config
            .guests
            .iter()
            .any(|known| known.name == guest.name && known.trust_storage);
        if !in_file && !trusted.contains(&guest.name) {
            return Err(Refusal::Storage {
                guest: guest.name.clone(),
                what,
            });
        }
        notes.push(format!("guest {}: its storage is trusted: {what}", guest.name));
    }
    Ok(notes)
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
        let list = |items: Vec<String>| {
            if items.is_empty() {
                "none".to_owned()
            } else {
                items.join(", ")
            }
        };
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::guest::{Vm, storage::Disk};

    /// Knows what is in the pool, and nothing else.
    struct Pool(Vec<config::Guest>);

    impl Hypervisor for Pool {
        fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal> {
            Ok(self.0.clone())
        }
        fn inspect(&self, _: &config::Guest, _: usize) -> Result<Spec, Refusal> {
            unreachable!("nobody asked")
        }
        fn attach(&self, _: &Spec) -> Result<Box<dyn Vm>> {
            unreachable!("nobody asked")
        }
        fn find(&self, _: &Spec) -> Result<Option<Box<dyn Vm>>> {
            unreachable!("nobody asked")
        }
        fn prepare(&self, _: &Spec, _: &Deadline<'_>) -> Result<Box<dyn Vm>> {
            unreachable!("nobody asked")
        }
        fn others(&self, _: &[Spec]) -> Vec<Other> {
            unreachable!("nobody asked")
        }
        fn shut_down(&self, _: &Other, _: &Deadline<'_>) -> Result<()> {
            unreachable!("nobody asked")
        }
        fn users(&self) -> Option<String> {
            unreachable!("nobody asked")
        }
    }

    fn guest(name: &str, domain: Option<&str>) -> config::Guest {
        config::Guest {
            name: name.to_owned(),
            qmp: PathBuf::new(),
            libvirt: domain.map(str::to_owned),
            command: Vec::new(),
            channel: None,
            trust_storage: false,
        }
    }

    #[test]
    fn disks_that_the_successor_may_not_have_are_refused_unless_trusted() {
        let spec = |name: &str, problems: &[&str]| Spec {
            name: name.to_owned(),
            qmp: PathBuf::new(),
            command: Vec::new(),
            output: PathBuf::new(),
            channel: 1,
            ram: Vec::new(),
            uuid: None,
            libvirt: None,
            release: None,
            pid: None,
            disks: problems
                .iter()
                .map(|problem| Disk {
                    problem: (*problem).to_owned(),
                    read_only: None,
                })
                .collect(),
        };
        let guests = [
            spec("a", &[]),
            spec("b", &["/b is a file of this host", "/c is another"]),
        ];
        let config = |guests: &str| {
            let text = format!("kernel = \"/k\"\ninitramfs = \"/i\"\ncpus = 1\nmemory = \"1G\"\n{guests}");
            Config::parse(Path::new("/x.toml"), &text).unwrap()
        };
        let no_one = config("");
        let refusal = storage(&guests, &no_one, &[], &[]).unwrap_err();
        assert!(matches!(&refusal, Refusal::Storage { .. }), "{refusal}");
        for part in [
            "guest b",
            "/b is a file of this host; /c is another",
            "--trust-storage 'b'",
        ] {
            assert!(refusal.to_string().contains(part), "{part}: {refusal}");
        }
        let refusal = storage(&guests, &no_one, &["a".to_owned()], &[]).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Storage { .. }),
            "trust in another: {refusal}"
        );
        let refusal = storage(&guests, &no_one, &["b".to_owned(), "z".to_owned()], &[]).unwrap_err();
        assert!(
            refusal.to_string().contains("`z`") && refusal.to_string().contains("a, b"),
            "{refusal}"
        );
        let by_name = storage(&guests, &no_one, &["b".to_owned()], &[]).unwrap();
        assert!(
            by_name.len() == 1 && by_name[0].contains("/c is another"),
            "{by_name:?}"
        );
        let in_file = config("[[guests]]\nname = \"b\"\nqmp = \"/b\"\ntrust_storage = true\n");
        assert_eq!(storage(&guests, &in_file, &[], &[]).unwrap(), by_name);
    }

    #[test]
    fn all_domains_are_those_that_no_line_names() {
        let pool = Pool(vec![guest("q", None), guest("a", Some("a")), guest("b", Some("b"))]);
        let names = |lines: &str| {
            let text = format!("kernel = \"/k\"\ninitramfs = \"/i\"\ncpus = 1\nmemory = \"1G\"\n{lines}");
            let mut config = Config::parse(Path::new("/x.toml"), &text).unwrap();
            with_all_domains(&pool, &mut config).unwrap();
            let names = config.guests.into_iter().map(|guest| guest.name);
            names.collect::<Vec<_>>()
        };
        let all = "[[guests]]\nlibvirt = \"all\"\n";
        assert_eq!(names(all), ["a", "b"]);
        assert_eq!(
            names(&format!("{all}[[guests]]\nname = \"first\"\nlibvirt = \"b\"\n")),
            ["first", "a"]
        );
        assert_eq!(names("[[guests]]\nlibvirt = \"b\"\n"), ["b"]);
    }
}
