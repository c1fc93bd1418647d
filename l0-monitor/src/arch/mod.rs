//! The CPU as L0 meets it: general registers, descriptor tables, stacks, paging, LAPIC, MSRs, ports. Nothing here knows what L0 is
//! for.

pub mod cpuid;
pub mod gdt;
pub mod general;
pub mod lapic;
pub mod msr;
pub mod paging;
pub mod port;
pub mod registers;
pub mod serial;
pub mod stack;

pub use msr::xsetbv_safe;
