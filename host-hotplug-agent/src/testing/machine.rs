//! A host of the fake world: what the module, Linux and L0 would do for its agent, and the rules that they would enforce.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use firmware_shim::PhysMem;
use locum_abi::{CpuMode, Grant, HostState, HostStatus, Slot, Status, Will};
use partitioner::{MemRange, PciAddress};

use super::tree::{BLOCK, Tree};
use super::vm::FakeHypervisor;
use super::world::{Behaviour, Held, INCUMBENT, SUCCESSOR, World, owned_by};
use crate::acpi::Interrupts;
use crate::channel::Port;
use crate::clock::Clock;
use crate::daemon::Worker;
use crate::inventory::{cpu_dir, memory::block_dir, pci};
use crate::journal::Journal;
use crate::l0::{memory, view};
use crate::machine::{CarriedOver, Facts, Machine, Start, TextKind};
use crate::pool::Extents;
use crate::refresh::{Agent, Shared};
use crate::sysroot::SysRoot;

/// One host of the world.
pub struct FakeMachine {
    world: Arc<World>,
    tree: Arc<Tree>,
    sys: SysRoot,
    facts: Facts,
    hidden: Mutex<BTreeMap<String, PathBuf>>,
    /// What the threads of its last daemon share.
    daemon: Mutex<Option<Arc<Shared>>>,
    /// Which successor it is.
    number: usize,
}

impl FakeMachine {
    /// The host in `slot` on a tree of files.
    pub fn new(world: &Arc<World>, slot: Slot, tree: Tree) -> Arc<Self> {
        let sys = tree.sys();
        let header = world.region.header();
        let facts = Facts {
            header,
            header_address: 0x80_0000,
            slot,
            tsc_khz: 100_000,
        };
        let number = world.lock().successors;
        Arc::new(Self {
            number,
            world: world.clone(),
            tree: Arc::new(tree),
            sys,
            facts,
            hidden: Mutex::new(BTreeMap::new()),
            daemon: Mutex::new(None),
        })
    }

    /// Its files.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    fn apic(&self, number: u32) -> u32 {
        Interrupts::read(&self.sys).unwrap().cpus[number as usize]
    }

    fn mode(&self, number: u32, mode: CpuMode) {
        let apic = self.apic(number);
        self.world
            .region
            .update(|status| status.cpus[apic as usize].mode = mode as u32);
    }

    fn nested(&self) -> bool {
        let status = self.status().unwrap();
        let own = status.cpus[..4]
            .iter()
            .filter(|cpu| view::owner(cpu) == Some(self.facts.slot));
        own.filter(|cpu| cpu.mode != CpuMode::Parked as u32)
            .all(|cpu| cpu.mode == CpuMode::Nested as u32)
    }

    fn hosts_other(&self) -> u32 {
        let status = memory::status(&self.world.region, &self.facts.header).unwrap();
        status.hosts[self.facts.slot.other()].state
    }

    fn sees(&self) -> Result<()> {
        let inner = self.world.lock();
        let dead = self.facts.slot == SUCCESSOR && (inner.dead || inner.successors != self.number);
        ensure!(!dead, "a dead host sees nothing");
        Ok(())
    }

    /// The successor as it comes up: its own CPUs and memory, a worker that serves.
    fn boot_successor(&self) {
        let status = self.status().unwrap();
        let apic = |slot: Slot| {
            status.cpus[..4]
                .iter()
                .filter(move |cpu| view::owner(cpu) == Some(slot))
                .map(|cpu| cpu.apic_id as u8)
        };
        let own: Vec<u8> = apic(SUCCESSOR).collect();
        let mut all = own.clone();
        all.extend(apic(INCUMBENT));
        let tree = Tree::lab();
        super::tables::write(tree.path(), &all);
        let lacking = usize::from(self.world.behaviour == Behaviour::LacksCpu);
        tree.put(
            "sys/devices/system/cpu/online",
            format!("0-{}\n", own.len() - 1 - lacking),
        );
        for number in own.len()..all.len() {
            tree.put(format!("{}/online", cpu_dir(number as u32)), "0\n");
        }
        tree.put("proc/sys/kernel/osrelease", "6.12.2+deb13-amd64\n");
        fs::remove_dir_all(tree.path().join("sys/devices/system/memory")).unwrap();
        fs::remove_dir_all(tree.path().join("sys/bus/pci/devices/0000:00:02.0")).unwrap();
        let machine = FakeMachine::new(&self.world, SUCCESSOR, tree);
        {
            let mut inner = self.world.lock();
            inner.successor = Some(machine.tree.clone());
            inner.successor_machine = Some(machine.clone());
        }
        self.world.begin_daemon(SUCCESSOR);
        machine.start_daemon();
    }

    /// Whether this host runs.
    pub fn alive(&self) -> bool {
        self.sees().is_ok()
    }

    /// What the threads of its last daemon share.
    pub fn daemon(&self) -> Arc<Shared> {
        self.daemon.lock().unwrap().clone().unwrap()
    }

    /// A daemon of this host begins.
    pub fn start_daemon(self: &Arc<Self>) -> (Arc<Worker>, Arc<Shared>) {
        self.try_start_daemon().unwrap()
    }

    /// As [`Self::start_daemon`]; an error if the host dies meanwhile.
    pub fn try_start_daemon(self: &Arc<Self>) -> Result<(Arc<Worker>, Arc<Shared>)> {
        let config = self.tree.path().join("etc/locum");
        let generation = self.host(self.facts.slot)?.generation;
        let shared = Arc::new(Shared::new(u64::from(generation), vec![], None));
        let agent = Agent {
            machine: self.clone(),
            hypervisor: Arc::new(FakeHypervisor::new(&self.world, self.facts.slot)),
            shared: shared.clone(),
            journal: Arc::new(Journal::at(&self.sys)),
            limits: self.world.limits(),
            speaks: self.world.speaks(self.facts.slot),
        };
        *self.daemon.lock().unwrap() = Some(shared.clone());
        let worker = Arc::new(Worker::new(agent, config));
        worker.take_up()?;
        Ok((worker, shared))
    }
}

impl Machine for FakeMachine {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn sys(&self) -> &SysRoot {
        &self.sys
    }

    fn memory(&self) -> &dyn PhysMem {
        &self.world.region
    }

    fn status(&self) -> Result<Box<Status>> {
        self.sees()?;
        memory::status(&self.world.region, &self.facts.header)
    }

    fn host(&self, slot: Slot) -> Result<HostStatus> {
        self.sees()?;
        memory::host(&self.world.region, &self.facts.header, slot)
    }

    fn offline_cpu(&self, number: u32) -> Result<()> {
        self.world.fault(self.facts.slot, "offline_cpu")?;
        self.sys.write(format!("{}/online", cpu_dir(number)), "0")?;
        self.mode(number, CpuMode::Parked);
        Ok(())
    }

    fn online_cpu(&self, number: u32) -> Result<()> {
        self.world.fault(self.facts.slot, "online_cpu")?;
        let apic = self.apic(number) as usize;
        let status = self.status()?;
        ensure!(
            view::owner(&status.cpus[apic]) == Some(self.facts.slot),
            "CPU {number} is not this host's"
        );
        self.sys.write(format!("{}/online", cpu_dir(number)), "1")?;
        let nested = status.cpus.iter().any(|cpu| cpu.mode == CpuMode::Nested as u32);
        self.mode(number, if nested { CpuMode::Nested } else { CpuMode::Native });
        Ok(())
    }

    fn remove_pci(&self, address: PciAddress) -> Result<()> {
        self.world.fault(self.facts.slot, "remove_pci")?;
        let away = self.tree.path().join(format!("removed-{address}"));
        fs::rename(self.sys.path(pci::dir(address)), &away)?;
        self.hidden.lock().unwrap().insert(address.to_string(), away);
        Ok(())
    }

    fn find_pci(&self, address: PciAddress) -> Result<()> {
        self.world.fault(self.facts.slot, "find_pci")?;
        let place = self.sys.path(pci::dir(address));
        match self.hidden.lock().unwrap().remove(&address.to_string()) {
            Some(away) => fs::rename(away, place)?,
            None => fs::create_dir_all(place)?,
        }
        Ok(())
    }

    fn rescan_pci(&self) -> Result<()> {
        self.world.fault(self.facts.slot, "rescan_pci")?;
        for (address, away) in std::mem::take(&mut *self.hidden.lock().unwrap()) {
            fs::rename(away, self.sys.path(pci::dir(address.parse().unwrap())))?;
        }
        Ok(())
    }

    fn is_removed(&self, block: MemRange) -> Result<bool> {
        let inner = self.world.lock();
        let granted = inner
            .granted
            .iter()
            .any(|grant| matches!(*grant, Grant::Memory { start, .. } if start == block.start()));
        Ok(inner.removed.contains(&block.start()) && !granted)
    }

    fn remove_memory(&self, block: MemRange) -> Result<()> {
        self.world.fault(self.facts.slot, "remove_memory")?;
        fs::remove_dir_all(self.sys.path(block_dir(block.start(), BLOCK)))?;
        self.world.lock().removed.insert(block.start());
        Ok(())
    }

    fn add_memory(&self, block: MemRange, _node: u32, online: bool) -> Result<()> {
        self.world.fault(self.facts.slot, "add_memory")?;
        let mut inner = self.world.lock();
        ensure!(
            inner.granted.is_empty() || self.facts.slot == SUCCESSOR,
            "memory {block} may be the successor's"
        );
        inner.removed.remove(&block.start());
        inner.passes(block.start(), self.facts.slot);
        let number = block.start() / BLOCK;
        self.tree
            .block(number, if online { "online" } else { "offline" }, "Movable");
        Ok(())
    }

    fn wipe(&self, range: MemRange) -> Result<()> {
        self.world.fault(self.facts.slot, "wipe")?;
        let mut inner = self.world.lock();
        let given = |grant: &Grant| {
            let memory = match *grant {
                Grant::Memory { start, end } => MemRange::new(start, end),
                _ => None,
            };
            self.facts.slot == INCUMBENT && memory.is_some_and(|memory| memory.overlaps(range))
        };
        ensure!(!inner.granted.iter().any(given), "memory {range} is the successor's");
        let blocks = (range.start() / BLOCK)..range.end().div_ceil(BLOCK);
        for number in blocks {
            ensure!(
                !self.sys.exists(block_dir(number * BLOCK, BLOCK)),
                "memory {range} is in use"
            );
            inner.held.insert(number * BLOCK, Held::Zeroes);
        }
        inner.wiped.push(range);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.world.fault(self.facts.slot, "write")?;
        let tables = self.facts.header.slots[SUCCESSOR];
        let end = at + bytes.len() as u64;
        let mut inner = self.world.lock();
        let in_tables = at >= tables.tables && end <= tables.tables + tables.tables_size;
        let blocks = (at / BLOCK)..=((end - 1) / BLOCK);
        let in_removed = blocks.into_iter().all(|block| inner.removed.contains(&(block * BLOCK)));
        ensure!(
            in_tables || in_removed,
            "{at:#x} is neither removed memory nor the tables'"
        );
        inner.written.insert(at);
        if in_removed {
            for block in (at / BLOCK)..=((end - 1) / BLOCK) {
                inner.held.insert(block * BLOCK, Held::Of(SUCCESSOR));
            }
        }
        Ok(())
    }

    fn carried_over(&self) -> Result<CarriedOver> {
        let (apic_id, cr4) = (0, self.world.lock().unknown_cr4);
        Ok(match cr4 {
            0 => CarriedOver::All,
            cr4 => CarriedOver::Not { apic_id, cr4 },
        })
    }

    fn enter(&self, number: u32) -> Result<()> {
        self.world.fault(self.facts.slot, "enter")?;
        self.mode(number, CpuMode::Nested);
        Ok(())
    }

    fn leave(&self, number: u32) -> Result<()> {
        self.world.fault(self.facts.slot, "leave")?;
        let apic = self.apic(number);
        // The frame's own exit is its last.
        self.world.region.update(|status| status.cpus[apic as usize].exits += 1);
        self.mode(number, CpuMode::Native);
        Ok(())
    }

    fn grant(&self, grant: Grant) -> Result<()> {
        self.world.fault(self.facts.slot, "grant")?;
        ensure!(self.nested(), "this host is not nested");
        ensure!(
            !self.world.lock().granted.contains(&grant),
            "{grant:?} is not this host's"
        );
        self.world.region.update(|status| {
            status.hosts[SUCCESSOR].state = HostState::Preparing as u32;
            if let Grant::Cpu { apic_id } = grant {
                let cpu = &mut status.cpus[apic_id as usize];
                assert_eq!(cpu.mode, CpuMode::Parked as u32);
                cpu.owner = SUCCESSOR.raw();
            }
        });
        self.world.lock().granted.push(grant);
        Ok(())
    }

    fn start(&self, start: Start) -> Result<()> {
        self.world.fault(self.facts.slot, "start")?;
        let Start {
            entry,
            zero_page,
            boot_cpu,
        } = start;
        {
            let mut inner = self.world.lock();
            ensure!(
                self.hosts_other() == HostState::Preparing as u32,
                "nothing was prepared"
            );
            let ours = |at: u64| {
                let holds =
                    |grant: &Grant| matches!(*grant, Grant::Memory { start, end } if (start..end).contains(&at));
                inner.granted.iter().any(holds)
            };
            ensure!(
                ours(entry) && ours(zero_page),
                "entry or zero page in memory that was not granted"
            );
            ensure!(
                inner.written.contains(&zero_page) && inner.written.contains(&(entry - 0x200)),
                "not loaded"
            );
            inner.dead = false;
            let given: Vec<MemRange> = inner.granted.iter().filter_map(ram).collect();
            for memory in given {
                let block = memory.start() / BLOCK * BLOCK;
                if inner.removed.contains(&block) {
                    // It may use any of it.
                    let blocks = (block / BLOCK)..memory.end().div_ceil(BLOCK);
                    inner
                        .held
                        .extend(blocks.map(|number| (number * BLOCK, Held::Of(SUCCESSOR))));
                } else if !inner.wiped.contains(&memory) {
                    inner
                        .leaks
                        .push(format!("the successor has {memory} as an earlier host left it"));
                }
            }
            inner.successors += 1;
        }
        self.world.clear_channels();
        self.world.region.update(|status| {
            assert_eq!(view::owner(&status.cpus[boot_cpu.0 as usize]), Some(SUCCESSOR));
            status.hosts[SUCCESSOR].state = HostState::Running as u32;
            status.hosts[SUCCESSOR].generation = 1;
            for cpu in owned_by(status, SUCCESSOR).take(2) {
                cpu.mode = CpuMode::Nested as u32;
            }
        });
        match self.world.behaviour {
            Behaviour::Boots | Behaviour::LacksCpu => self.boot_successor(),
            Behaviour::Hangs => {}
            Behaviour::TripleFaults => self.world.kill_successor(),
        }
        Ok(())
    }

    fn abort(&self) -> Result<()> {
        self.world.fault(self.facts.slot, "abort")?;
        let slot = self.facts.slot;
        ensure!(self.nested(), "this host is not nested");
        let other = self.hosts_other();
        ensure!(
            ![HostState::Absent, HostState::Retired]
                .map(|state| state as u32)
                .contains(&other),
            "there is no other host"
        );
        let dead = [HostState::Dead, HostState::Dumping]
            .map(|state| state as u32)
            .contains(&other);
        let yields = self.world.will() == Will::Yield;
        ensure!(
            slot == INCUMBENT || dead || yields,
            "the successor may take the incumbent only when that is dead, or yields"
        );
        if slot == INCUMBENT {
            self.world.stop_successor();
        }
        {
            let mut inner = self.world.lock();
            inner.granted.clear();
            inner.will = Will::Pass;
        }
        self.world.region.update(|status| {
            status.hosts[slot.other()].state = HostState::Absent as u32;
            for cpu in owned_by(status, slot.other()) {
                cpu.owner = slot.raw();
                cpu.mode = CpuMode::Parked as u32;
            }
            if slot == SUCCESSOR {
                status.generation += 1;
            }
        });
        if slot == SUCCESSOR {
            self.world.end_daemon(INCUMBENT);
        }
        Ok(())
    }

    fn will(&self, will: Will) -> Result<bool> {
        self.world.fault(self.facts.slot, "will")?;
        ensure!(self.nested(), "this host is not nested");
        ensure!(self.facts.slot == INCUMBENT, "this host does not reign");
        let beside = self.hosts_other() == HostState::Running as u32;
        let mut inner = self.world.lock();
        if inner.knows_no_wills {
            return Ok(false);
        }
        ensure!(will != Will::Yield || beside, "there is nobody to yield to");
        inner.will = will;
        Ok(true)
    }

    fn power_off(&self, _command: &[String]) -> Result<()> {
        self.world.fault(self.facts.slot, "power_off")?;
        {
            let inner = self.world.lock();
            assert!(
                inner.vms.keys().all(|(slot, _)| *slot == SUCCESSOR),
                "no guest is left behind"
            );
            if inner.hangs_in_power_off {
                return Ok(());
            }
        }
        let mut heir = false;
        self.world.region.update(|status| {
            heir = status.hosts[SUCCESSOR].state == HostState::Running as u32;
            if !heir {
                return;
            }
            status.hosts[INCUMBENT].state = HostState::Retired as u32;
            status.generation += 1;
            for cpu in owned_by(status, INCUMBENT) {
                cpu.owner = SUCCESSOR.raw();
                cpu.mode = CpuMode::Parked as u32;
            }
        });
        if !heir {
            self.world.reset("power_off");
        }
        Ok(())
    }

    fn extents(&self) -> Option<&Extents> {
        Some(&self.world.extents)
    }

    fn channel(&self, number: usize) -> Result<Port> {
        self.sees()?;
        self.world.fault(self.facts.slot, "channel")?;
        let end = self.world.open(number, self.facts.slot)?;
        Ok(Port::new(File::from(OwnedFd::from(end))))
    }

    fn set_clock(&self, clock: &Clock) -> Result<()> {
        self.world.fault(self.facts.slot, "set_clock")?;
        ensure!(clock.tsc_khz == self.facts.tsc_khz, "a clock of another rate");
        Ok(())
    }

    fn publish(&self, kind: TextKind, text: &str) {
        if kind == TextKind::State {
            // Between what an action did and the journal's word of it.
            self.world.step(self.facts.slot, "publish");
        }
        if kind == TextKind::Progress && self.facts.slot == INCUMBENT && text.contains(", next: ") {
            let boot_id = self
                .sys
                .read_optional("proc/sys/kernel/random/boot_id")
                .unwrap_or_default();
            let generation = memory::host(&self.world.region, &self.facts.header, INCUMBENT)
                .map_or(0, |host| u64::from(host.generation));
            let journal = Journal::at(&self.sys);
            // Beyond the point of no return, and on the way back, what cannot be written down is done all the same.
            let full = journal.path().with_extension("new").is_dir();
            if !full && let Ok(Some(entry)) = journal.read(&boot_id, generation) {
                let written = entry.refresh.summary();
                if !text.contains(&written) {
                    let early = format!("`{text}` is shown, `{written}` written down");
                    self.world.lock().unwritten.push(early);
                }
            }
        }
        self.world.show(self.facts.slot, kind, text);
    }

    fn busy(&self, _busy: bool) {}
}

/// The memory that is given, if that is RAM and not a device's.
fn ram(grant: &Grant) -> Option<MemRange> {
    match *grant {
        Grant::Memory { start, end } if end <= 0x8000_0000 => MemRange::new(start, end),
        _ => None,
    }
}
