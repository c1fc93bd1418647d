//! What a nested host pays for, in ticks of the TSC. See [`Cost`].

use core::hint::black_box;

use crate::arch::cpuid;
use crate::selftest::guest::{Code, FIELD, Guest, Registers, another_vmcs, ticks};
use crate::selftest::table::{Cost, Tried};
use crate::vmx::Hardware;
use crate::vmx::field;
use crate::vmx::hardware::{Invalidate, SINGLE_CONTEXT};
use crate::vmx::instructions::Cpu;

/// How often each is done for one measurement.
const TIMES: u64 = 1000;
/// How many measurements: the least counts, the others were disturbed.
const MEASUREMENTS: usize = 5;

/// Tenths of a tick that `work` takes, which does something `per` times.
fn tenths(per: u64, mut work: impl FnMut()) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..MEASUREMENTS {
        let start = ticks();
        work();
        least = least.min(ticks().wrapping_sub(start));
    }
    least.saturating_mul(10) / per
}

/// Tenths of a tick that `once` takes, less those of a loop around nothing.
fn each<T>(hw: &mut Cpu, mut once: impl FnMut(&mut Cpu) -> T) -> u64 {
    let empty = tenths(TIMES, || {
        for i in 0..TIMES {
            black_box(i);
        }
    });
    let full = tenths(TIMES, || {
        for i in 0..TIMES {
            black_box(i);
            black_box(once(hw));
        }
    });
    full.saturating_sub(empty)
}

/// Times everything. The guest has run; its VMCS is current, before and after.
pub(super) fn measure(guest: &mut Guest<'_>, revision: u32, tried: &mut Tried) {
    // To its VMCALL.
    let mut good = guest.run(Code::Call, Registers::default()).is_ok();
    let transition = tenths(TIMES, || good &= guest.rounds(TIMES).is_ok());
    if good {
        tried.cost(Cost::Transition, transition);
    }
    let (own, other) = (guest.regions.vmcs01, another_vmcs(revision));
    let eptp = guest.hw.get(field::EPTP);
    let hw = &mut *guest.hw;
    tried.cost(Cost::Vmread, each(hw, |hw| hw.get(FIELD)));
    tried.cost(Cost::Vmwrite, each(hw, |hw| hw.put(FIELD, 0)));
    tried.cost(
        Cost::Vmclear,
        each(hw, |hw| {
            hw.vmclear(other);
            hw.select(&other);
        }),
    );
    let both = each(hw, |hw| {
        hw.select(&own);
        hw.select(&other);
    });
    tried.cost(Cost::Vmptrld, both / 2);
    hw.vmclear(other);
    hw.select(&own);
    tried.cost(
        Cost::Invept,
        each(hw, |hw| hw.invalidate(Invalidate::Ept, SINGLE_CONTEXT, [eptp, 0])),
    );
    tried.cost(Cost::Cpuid, each(hw, |hw| hw.cpuid(0, 0)));
    if cpuid::has_ibpb() {
        tried.cost(Cost::Ibpb, each(hw, |hw| hw.predictor_barrier()));
    }
}
