//! L0.
#![no_std]
#[cfg(test)]
extern crate std;

pub mod arch;
pub mod boot;
pub mod cpu;
pub mod logger;
pub mod nested;
pub mod park;
pub mod partition;
pub mod shared;
pub mod vmx;
