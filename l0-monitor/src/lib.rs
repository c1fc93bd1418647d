//! L0: the monitor that a server boots before its Linux/KVM host, and that is dormant while the host runs.
//!
//! # What it does
//! It is the host's firmware for CPUs (it parks those that no host runs on, and hands them out again), and for the time
//! of a refresh it takes VMX root from the host's KVM, runs a second host beside it and keeps the two apart.
//!
//! # What it is not
//! It decides nothing about a refresh: who gets what is the agent's plan. It parses no files, allocates nothing after
//! boot, runs no device, and executes no instruction on a CPU on which a host runs natively.
//!
//! # The ways in
//!
//! ```text
//!  GRUB ------------> boot::entry -> boot::main -> the first host, native
//!                                        \-> other CPUs -> park
//!  CPU taken offline -> boot::reset -> park <-> mailbox, commands -> boot::host (native) or nested::start
//!  host calls -------> boot::native -> nested::native_call -> nested
//!  VM exit ----------> nested::run -> exits -> partition (who owns what)
//! ```
//!
//! # The rooms
//! | module | what it knows |
//! | --- | --- |
//! | [`arch`] | the CPU: tables, exceptions, paging, LAPIC, MSRs, ports |
//! | [`cpu`] | which CPUs there are |
//! | [`boot`] | from GRUB to the first host; the ways back in |
//! | [`park`] | CPUs that no host runs on |
//! | [`vmx`] | VMX as the SDM has it |
//! | [`nested`] | VMX root under a running KVM |
//! | [`partition`] | owners of CPUs, memory, ports, pins and PCI functions |
//! | [`shared`] | what hosts see of L0, laid out in [`shared::layout`] |
//! | [`logger`] | the log |
//!
//! Everything but the entry, the linker script and the panic handler compiles on the host too, where the tests run.
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
