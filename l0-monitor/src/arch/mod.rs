//! The CPU as L0 meets it: general registers, descriptor tables, stacks, paging, LAPIC, MSRs, ports. Nothing here knows
//! what L0 is for.

pub(crate) mod cpuid;
pub(crate) mod gdt;
pub(crate) mod general;
pub(crate) mod lapic;
pub(crate) mod msr;
pub(crate) mod paging;
pub(crate) mod port;
pub(crate) mod registers;
pub(crate) mod serial;
pub(crate) mod stack;

pub(crate) use msr::xsetbv_safe;
