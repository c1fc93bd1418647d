//! The table of faults on the machine in memory: what befalls, played before every step of a refresh, with the same questions
//! after each. The daemons' deaths, which need another daemon, are in [`super::kills`], the hosts' in [`super::deaths`].

mod hangs;
mod streams;
mod table;

use std::sync::Arc;

use locum_abi::{HostState, Slot};

use super::kills::{Course, each};
use super::stage::{Stage, kept, named};
use crate::daemon::ipc::Question;
use crate::l0::{memory, view};
use crate::report::Report;
use crate::testing::vm::FakeHypervisor;
use crate::testing::world::{Behaviour, Blow, INCUMBENT, SUCCESSOR, World};

/// One line of the table.
struct Fault {
    /// What befalls.
    name: &'static str,
    /// Before the steps of which host's daemon.
    steps_of: Slot,
    /// In which course of events.
    course: &'static Course,
    /// What befalls, for a stage.
    blow: fn(&Stage) -> Blow,
    /// What an operator does about it, once the refresh has ended or is stuck.
    mend: fn(&Stage),
    /// Guests that may be lost, or stand still, and be told.
    victims: &'static [&'static str],
    /// Whether resources may be lost, and be told.
    lossy: bool,
    /// Steps there are at least.
    least: usize,
}

fn blow(stage: &Stage, what: impl Fn(&World) + Send + Sync + 'static) -> Blow {
    let world = Arc::downgrade(&stage.world);
    Arc::new(move || what(&world.upgrade().expect("the world of this step")))
}

impl Stage {
    /// Waits for the end of the refresh, or of the machine; an operator who finds it stuck does his part.
    fn ends_with(&self, mend: impl Fn(&Self)) {
        self.sees(|stage| {
            if stage.shared.status().course == "stuck" && !stage.retired() {
                mend(stage);
                stage.worker.answer(&Question::Retry).unwrap();
            } else if let Some(awaited) = stage.awaited() {
                assert!(awaited.contains("guest one") && awaited.contains("end it"), "{awaited}");
                mend(stage);
            }
            stage.retired() || stage.world.death().is_some() || stage.shared.lock().running.is_none()
        });
        if self.retired() {
            self.reigns();
        }
    }

    /// What the successor's daemon waits for, when the incumbent's sends its operator there.
    fn awaited(&self) -> Option<String> {
        self.shared.lock().awaits.as_ref()?;
        let there = self.world.successor_machine()?.daemon();
        there.lock().awaits.clone()
    }

    /// How it ended, as the incumbent says: what was aborted has an error, and nothing else has.
    fn reported(&self, what: &str) -> Report {
        let report = self.shared.lock().report.clone().unwrap_or_default();
        assert_eq!(
            report.outcome == "aborted",
            report.error.is_some(),
            "{what}: {report:?}"
        );
        named(report)
    }

    /// How it ended, as the host says that reigns.
    fn told(&self) -> Report {
        if self.retired() {
            kept(&self.reigns())
        } else {
            self.shared.lock().report.clone().unwrap_or_default()
        }
    }

    /// A victim runs in one host at most, and if it has a QEMU and stands still, or has died with the successor, somebody is
    /// told. Brings it back.
    fn settles_victim(&self, name: &str, crossed: bool, what: &str) {
        let owner = if self.retired() { SUCCESSOR } else { INCUMBENT };
        let running = self.world.runs_in(name);
        let unsaved = self.world.without_ram().iter().any(|(_, guest)| guest == name);
        let told = |word: &str| {
            let losses = self.told().losses;
            let known = losses
                .iter()
                .any(|loss| loss.contains(&format!("guest {name}")) && loss.contains(word));
            assert!(
                known,
                "{what}: guest {name} stands still, is lost, or would lose its RAM, and nobody is told: {losses:?}"
            );
        };
        if unsaved || (running.is_empty() && self.world.has_qemu(owner, name)) {
            told("cont");
        } else if running.is_empty()
            && crossed
            && owner == INCUMBENT
            && self.state_of(SUCCESSOR) == HostState::Dead as u32
        {
            told("");
        }
        if unsaved || running != [owner] {
            for slot in [INCUMBENT, SUCCESSOR] {
                self.world.kill_qemu(slot, name);
            }
            FakeHypervisor::new(&self.world, owner).boot(name);
        }
    }

    /// As [`Self::ended`], but for what was lost: that is told, piece by piece, and is not another host's.
    fn ended_at_a_loss(&self, what: &str) {
        let losses = self.told().losses;
        if losses.is_empty() {
            return self.ended(what);
        }
        let owner = if self.retired() { SUCCESSOR } else { INCUMBENT };
        let reigning = match owner {
            SUCCESSOR => self.world.successor_machine().unwrap(),
            INCUMBENT => self.machine.clone(),
        };
        let sys = crate::machine::Machine::sys(&*reigning);
        let blocks = match owner {
            SUCCESSOR => 8,
            INCUMBENT => 13,
        };
        let there = sys.list("sys/devices/system/memory").unwrap();
        let online = |name: &&String| {
            sys.read(format!("sys/devices/system/memory/{name}/state"))
                .is_ok_and(|is| is == "online")
        };
        let there = there
            .iter()
            .filter(|name| name.starts_with("memory"))
            .filter(online)
            .count();
        let told = |word: &str| losses.iter().filter(|loss| loss.contains(word)).count();
        assert!(
            there + told("memory 0x") >= blocks,
            "{what}: {there} blocks; {losses:?}"
        );
        let status = memory::status(&self.world.region, &self.world.region.header()).unwrap();
        for cpu in &status.cpus[..4] {
            assert_eq!(view::owner(cpu), Some(owner), "{what}: APIC {}", cpu.apic_id);
        }
        let native = status.cpus[..4]
            .iter()
            .filter(|cpu| cpu.mode == locum_abi::CpuMode::Native as u32);
        assert!(native.count() + told("APIC") >= 4, "{what}: {losses:?}");
        assert_eq!(self.world.leaks(), [] as [String; 0], "{what}");
        for guest in ["one", "two"] {
            assert_eq!(self.world.runs_in(guest), [owner], "{what}: guest {guest}; {losses:?}");
        }
    }
}

/// Every step is played where the environment says so; else one of some, which are others in each row.
fn some_of(row: usize, of: usize) -> impl Fn(usize) -> usize + Copy {
    let every = std::env::var_os("LOCUM_EVERY_STEP").is_some();
    let (first, apart) = if every { (0, 1) } else { (row % of, of) };
    move |number| first + number * apart
}

/// False: there were not so many steps.
fn befalls(fault: &Fault, after: usize) -> bool {
    let stage = Stage::new(Behaviour::Boots);
    (fault.course.faults)(&stage);
    let what = (fault.blow)(&stage);
    stage.world.strike(fault.steps_of, after, what);
    stage.begin();
    stage.ends_with(fault.mend);
    let Some(step) = stage.world.struck(fault.steps_of) else {
        return false;
    };
    let what = format!("{}, before step {after} (`{step}`)", fault.name);
    if let Some(death) = stage.world.death() {
        // The incumbent had powered off into a dead successor: nobody is left whom anything could be asked.
        assert!(death.reset && fault.victims.len() == 2, "{what}: {death:?}");
        return true;
    }
    (fault.mend)(&stage);
    for victim in fault.victims {
        stage.settles_victim(victim, true, &what);
    }
    if fault.lossy {
        stage.ended_at_a_loss(&what);
    } else {
        stage.ended(&what);
    }
    let report = stage.reported(&what);
    assert_eq!(stage.world.without_ram(), [], "{what}: to save it would lose its RAM");
    // One of a few is enough: the questions above have found nothing that is not as it was.
    if after.is_multiple_of(4) && report.losses.is_empty() {
        stage.refreshes(&what);
    }
    true
}

#[test]
fn whatever_befalls_at_whatever_step_everything_has_one_owner() {
    for (row, fault) in table::TABLE.iter().enumerate() {
        let some = some_of(row, 5);
        each(|number| befalls(fault, some(number)), fault.name, fault.least / some(1));
    }
}
