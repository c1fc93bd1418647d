//! What of this machine Locum cannot do with, or only at a loss: the one table of checks.
//!
//! `locum preflight` goes through all of it, under a stock Linux without L0 and without the module, on a machine without
//! VMX, too. `locum plan` and `locum refresh` refuse for what stands in the way of a refresh ([`Stage::Refresh`]), before
//! anything is taken, and `locum doctor` shows that part.
//!
//! [`facts`] only look and judge nothing; [`rules`] are pure and look at nothing else.

pub mod facts;
mod finding;
mod rules;

pub use facts::{Facts, Qemu};
pub use finding::{Finding, Level};

use crate::error::Refusal;
use crate::machine::CarriedOver;
use crate::sysroot::SysRoot;
use rules::{board, control_registers, cpu, guests, kernel, memory};

/// When a rule matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before L0 is there: it decides whether, or how well, the machine boots through it.
    Boot,
    /// For as long as there is to be a refresh.
    Refresh,
}

/// Findings about one thing; none if it does not arise.
type Rule = fn(&Facts) -> Vec<Finding>;

/// Every check.
const TABLE: [(Stage, Rule); 20] = [
    (Stage::Refresh, cpu::vmx),
    (Stage::Refresh, cpu::lock),
    (Stage::Refresh, cpu::capabilities),
    (Stage::Refresh, cpu::state),
    (Stage::Refresh, cpu::x2apic),
    (Stage::Boot, cpu::number),
    (Stage::Refresh, board::ioapics),
    (Stage::Boot, board::segments),
    (Stage::Boot, board::remapping),
    (Stage::Boot, board::tables),
    (Stage::Boot, board::secure_boot),
    (Stage::Boot, board::lockdown),
    (Stage::Boot, memory::low),
    (Stage::Boot, memory::reach),
    (Stage::Boot, memory::kinds),
    (Stage::Boot, memory::blocks),
    (Stage::Refresh, memory::direct_map),
    (Stage::Refresh, kernel::release),
    (Stage::Boot, kernel::config),
    (Stage::Boot, guests::running),
];

/// All findings about this machine.
pub fn examine(sys: &SysRoot) -> Vec<Finding> {
    let facts = Facts::read(sys);
    TABLE.iter().flat_map(|(_, rule)| rule(&facts)).collect()
}

/// Those that matter to a refresh.
pub fn for_refresh(sys: &SysRoot) -> Vec<Finding> {
    let facts = Facts::of_cpus_and_board(sys);
    let rows = TABLE.iter().filter(|(stage, _)| *stage == Stage::Refresh);
    rows.flat_map(|(_, rule)| rule(&facts)).collect()
}

/// Refuses a refresh on a machine that it cannot go well on.
///
/// # Errors
/// [`Refusal::Unfit`].
pub fn check(sys: &SysRoot) -> Result<(), Refusal> {
    for_refresh(sys).into_iter().try_for_each(refuse)
}

/// What the module found of the CPUs' control registers, as a line.
pub fn carried_over(found: &anyhow::Result<CarriedOver>) -> Finding {
    control_registers::finding(found)
}

/// Refuses a refresh because of them; what could not be looked at is returned, to be told.
///
/// # Errors
/// [`Refusal::Unfit`].
pub fn check_carried_over(found: &anyhow::Result<CarriedOver>) -> Result<Option<String>, Refusal> {
    let finding = carried_over(found);
    let told = (finding.level == Level::Hurts).then(|| finding.in_words());
    refuse(finding).map(|()| told)
}

fn refuse(finding: Finding) -> Result<(), Refusal> {
    match finding.level {
        Level::Refuses => Err(Refusal::Unfit {
            cause: format!("{}: {}", finding.name, finding.found),
            remedy: finding.remedy.unwrap_or_default(),
        }),
        Level::Fine | Level::Hurts => Ok(()),
    }
}

#[cfg(test)]
mod tests;
