//! The CPU as L0 meets it: descriptor tables, exceptions, paging, LAPIC, MSRs, ports. Nothing here knows what L0 is
//! for.

pub mod cpuid;
pub mod gdt;
pub mod idt;
pub mod lapic;
pub mod msr;
pub mod paging;
pub mod port;
pub mod registers;
pub mod serial;

pub use msr::xsetbv_safe;
