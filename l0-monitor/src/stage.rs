//! Where every CPU stands between a host and L0, and who may move it: the arbitration of INIT.
//!
//! INIT is held pending while a CPU is in VMX root, and would *reset* it as soon as it leaves VMX operation (SDM vol.
//! 3C,
//! 25.2). So a CPU parks only after it has won its [`StageWord`], and one to which INIT was sent first goes back into
//! non-root, where the INIT becomes an exit. In the same word a parked CPU is claimed, so that nobody takes a CPU for
//! parked that is about to start.
//!
//! ```text
//!  Absent --ComeUp--> Parking --Settle--> Parked --Wake-------------------------> Starting
//!     |                ^ ^ ^ ^               |                                     | | |
//!     |                | | | |               +--Claim--> Claimed --Command---------+ | |
//!     |                | | | +-----------------------------------------Refuse--------+ |
//!     |                | | +--Offline-- Native <--------------------RunNative----------|
//!     +--Boot--> Native| |              |   ^                                          |
//!                      | |         Enter|   |Leave                                     |
//!                      | |              v   |                                          |
//!                      | +----Park----- Nested <--------------------RunNested----------+
//!                      |                |
//!                      |                +--SendInit--> InitSent
//!                      +--------------------------Init----+
//! ```
//!
//! A step is a compare-and-swap from the one stage from which it is legal. Steps with "another" below are taken by
//! another CPU, all others by the CPU itself. `tests/stages.rs` has a model checker try every interleaving.

use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

use locum_abi::{CpuMode, MAX_CPUS};

use crate::id::{self, CpuIndex, PerCpu};
use crate::shared;

/// Where a CPU stands.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// L0 has not started it.
    Absent = 0,
    /// In the parking loop, with nothing of a host's left in it.
    Parked = 1,
    /// In the parking loop, and another CPU is writing down how it is to start.
    Claimed = 2,
    /// About to start for a host.
    Starting = 3,
    /// A host runs on it in VMX root.
    Native = 4,
    /// A host runs on it in non-root, or L0 serves that host.
    Nested = 5,
    /// The same, and INIT was sent to it: its next stage is Parking, by the exit that INIT causes.
    InitSent = 6,
    /// On its way to the parking loop: it may still hold data of its host's VMCSs, but no INIT may be sent any more.
    Parking = 7,
}

impl Stage {
    const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::Parked,
            2 => Self::Claimed,
            3 => Self::Starting,
            4 => Self::Native,
            5 => Self::Nested,
            6 => Self::InitSent,
            7 => Self::Parking,
            _ => Self::Absent,
        }
    }
}

/// A legal change of stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Started by L0 at boot.
    ComeUp,
    /// It reaches the parking loop.
    Settle,
    /// The boot CPU, which never parked, goes to the first host.
    Boot,
    /// Its host wrote its mailbox.
    Wake,
    /// Another CPU is going to tell it how to start.
    Claim,
    /// Another CPU has told it.
    Command,
    /// The start is off: its host does not own it any more, or does not run.
    Refuse,
    /// It goes to its host, in VMX root.
    RunNative,
    /// It goes to its host, in non-root.
    RunNested,
    /// Its host calls L0 to become nested.
    Enter,
    /// Its host calls L0 to become native.
    Leave,
    /// Its native host gives it up.
    Offline,
    /// Its nested host gives it up or died on it.
    Park,
    /// Another CPU is going to send it INIT.
    SendInit,
    /// The INIT has come.
    Init,
}

impl Step {
    /// From where and to where it leads.
    #[must_use]
    pub const fn ends(self) -> (Stage, Stage) {
        use Stage::{Absent, Claimed, InitSent, Native, Nested, Parked, Parking, Starting};
        match self {
            Self::ComeUp => (Absent, Parking),
            Self::Settle => (Parking, Parked),
            Self::Boot => (Absent, Native),
            Self::Wake => (Parked, Starting),
            Self::Claim => (Parked, Claimed),
            Self::Command => (Claimed, Starting),
            Self::Refuse => (Starting, Parking),
            Self::RunNative => (Starting, Native),
            Self::RunNested => (Starting, Nested),
            Self::Enter => (Native, Nested),
            Self::Leave => (Nested, Native),
            Self::Offline => (Native, Parking),
            Self::Park => (Nested, Parking),
            Self::SendInit => (Nested, InitSent),
            Self::Init => (InitSent, Parking),
        }
    }

    /// The mode that hosts see from then on, if it changes. Only the CPU itself takes such a step.
    #[must_use]
    pub const fn shows(self) -> Option<CpuMode> {
        match self {
            Self::Settle => Some(CpuMode::Parked),
            Self::Boot | Self::RunNative | Self::Leave => Some(CpuMode::Native),
            Self::RunNested | Self::Enter => Some(CpuMode::Nested),
            _ => None,
        }
    }
}

/// An atomic byte. The model checker has one of its own.
pub trait Word {
    /// Reads it, sequentially consistent.
    fn load(&self) -> u8;
    /// Changes it from `from` to `to`, sequentially consistent.
    ///
    /// # Errors
    /// What it was, if not `from`.
    fn swap_if(&self, from: u8, to: u8) -> Result<(), u8>;
}

impl Word for AtomicU8 {
    fn load(&self) -> u8 {
        self.load(SeqCst)
    }

    fn swap_if(&self, from: u8, to: u8) -> Result<(), u8> {
        self.compare_exchange(from, to, SeqCst, SeqCst).map(drop)
    }
}

/// The stage of one CPU.
#[derive(Debug)]
pub struct StageWord<W = AtomicU8>(W);

impl StageWord {
    const fn new() -> Self {
        Self(AtomicU8::new(Stage::Absent as u8))
    }
}

impl<W: Word> StageWord<W> {
    /// Over a word that holds 0, [`Stage::Absent`].
    pub const fn over(word: W) -> Self {
        Self(word)
    }

    /// Where the CPU stands.
    pub fn get(&self) -> Stage {
        Stage::from_raw(self.0.load())
    }

    /// Takes a step.
    ///
    /// # Errors
    /// Where the CPU stands, if the step does not begin there. Nothing changed then.
    pub fn take(&self, step: Step) -> Result<(), Stage> {
        let (from, to) = step.ends();
        self.0.swap_if(from as u8, to as u8).map_err(Stage::from_raw)
    }
}

static STAGES: PerCpu<StageWord> = PerCpu([const { StageWord::new() }; MAX_CPUS]);

/// Where a CPU stands.
pub(crate) fn of(cpu: CpuIndex) -> Stage {
    STAGES[cpu].get()
}

/// Has `cpu` take a step, and shows hosts, and the code at their reset vectors, what they may know of it.
///
/// # Errors
/// Where the CPU stands, if the step does not begin there. Nothing changed then.
pub(crate) fn take(cpu: CpuIndex, step: Step) -> Result<(), Stage> {
    STAGES[cpu].take(step)?;
    if let Some(mode) = step.shows() {
        shared::set_reset_mode(id::apic_id(cpu), mode == CpuMode::Nested);
        shared::status().cpu(cpu).set_mode(mode);
    }
    Ok(())
}

/// Has a CPU stand anywhere, as no step does: for a new life on the same CPUs.
#[cfg(feature = "fuzz")]
pub(crate) fn put(cpu: CpuIndex, stage: Stage) {
    STAGES[cpu].0.store(stage as u8, SeqCst);
}

/// Whether `cpu` is parked, and nobody is about to start it.
pub(crate) fn is_parked(cpu: CpuIndex) -> bool {
    of(cpu) == Stage::Parked
}

/// Whether `cpu` is parked or was never started: no host runs there, or is about to.
pub(crate) fn is_idle(cpu: CpuIndex) -> bool {
    matches!(of(cpu), Stage::Parked | Stage::Absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_taken_from_one_stage_only() {
        let stage = StageWord::new();
        assert_eq!(stage.take(Step::Wake), Err(Stage::Absent));
        for (step, then) in [
            (Step::ComeUp, Stage::Parking),
            (Step::Settle, Stage::Parked),
            (Step::Claim, Stage::Claimed),
            (Step::Command, Stage::Starting),
            (Step::RunNested, Stage::Nested),
            (Step::SendInit, Stage::InitSent),
        ] {
            assert_eq!(stage.take(step), Ok(()));
            assert_eq!(stage.get(), then);
        }
        assert_eq!(stage.take(Step::Park), Err(Stage::InitSent), "INIT is on its way");
        assert_eq!(stage.take(Step::Leave), Err(Stage::InitSent));
        assert_eq!(stage.take(Step::Init), Ok(()));
        assert_eq!(stage.get(), Stage::Parking);
    }
}
