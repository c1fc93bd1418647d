//! Entering and leaving nested mode without a successor: for tests and debugging.

use anyhow::Result;
use locum_abi::uapi::ALL_CPUS;
use serde::Serialize;

use super::{print_json, print_line};
use crate::cli::Output;
use crate::machine::{Access, Device};
use crate::sysroot::SysRoot;

pub fn enter(sys: &SysRoot) -> Result<()> {
    let switch = Device::open(sys, Access::Control)?.enter(ALL_CPUS)?;
    print_line(&format!("{} CPUs nested, {} ticks", switch.done, switch.ticks))
}

pub fn leave(sys: &SysRoot) -> Result<()> {
    let switch = Device::open(sys, Access::Control)?.leave(ALL_CPUS)?;
    print_line(&format!("{} CPUs native, {} ticks", switch.done, switch.ticks))
}

/// What many cycles cost.
#[derive(Serialize)]
struct Cycles {
    cycles: u32,
    enter_ticks: u64,
    leave_ticks: u64,
    enter_max: u64,
    leave_max: u64,
}

pub fn cycle(sys: &SysRoot, count: u32, pause_us: u32, output: Output) -> Result<()> {
    let cycle = Device::open(sys, Access::Control)?.cycle(count, pause_us)?;
    let cycles = Cycles {
        cycles: cycle.done,
        enter_ticks: cycle.enter_ticks,
        leave_ticks: cycle.leave_ticks,
        enter_max: cycle.enter_max,
        leave_max: cycle.leave_max,
    };
    if output.json {
        return print_json(&cycles);
    }
    print_line(&format!(
        "{} cycles; ticks over all CPUs: enter {} (longest {}), leave {} (longest {})",
        cycles.cycles, cycles.enter_ticks, cycles.enter_max, cycles.leave_ticks, cycles.leave_max
    ))
}
