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
//!  GRUB ------------> boot -> the first host, native
//!                         \-> other CPUs -> doors::parking
//!  CPU taken offline -> doors::reset -> doors::parking -> park <-> mailbox, commands
//!                                           \-> a host, native or nested
//!  native call ------> doors::native_call -> nested::transition -> VM entry
//!  VM exit ----------> doors::vm_exit -> nested::run -> exits -> partition (who owns what)
//! ```
//!
//! # The rooms, from the roof to the ground
//! A room imports rooms below it, never one above.
//!
//! | module | what it knows |
//! | --- | --- |
//! | [`boot`] | from GRUB to the first host; runs once |
//! | [`doors`] | every way in and out at run time |
//! | [`selftest`] | what L0 counts on in a CPU, tried without a host |
//! | [`nested`] | VMX root under a running KVM |
//! | [`trap`] | exceptions and NMIs while L0 runs |
//! | [`park`] | CPUs that no host runs on |
//! | [`partition`] | owners of CPUs, memory, ports, pins and PCI functions; the two hosts |
//! | [`machine`] | what the machine is |
//! | [`machine_check`] | machine checks that come while L0 runs |
//! | [`stage`] | where every CPU stands: parked, native, nested, on its way |
//! | [`vmx`] | VMX as the SDM has it |
//! | [`fatal`] | where an error ends that L0 can't go on after |
//! | [`logger`] | the log |
//! | [`shared`] | what hosts see of L0, laid out in [`shared::layout`] |
//! | [`arch`] | the CPU: registers, tables, stacks, paging, LAPIC, MSRs, ports |
//! | [`id`] | which CPUs there are |
//!
//! Everything but half of `boot` and the panic handler compiles on the host too, where the tests run.
#![no_std]
#![warn(unreachable_pub)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "only what tests/ and the image need is public; the documentation is for who changes L0"
)]
#![cfg_attr(
    not(target_os = "none"),
    expect(
        dead_code,
        reason = "what is not used is told by the build for bare metal, which has all of boot"
    )
)]
#[cfg(any(test, feature = "fuzz"))]
extern crate std;

mod arch;
mod boot;
mod doors;
mod fatal;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod id;
mod logger;
mod machine;
mod machine_check;
mod nested;
mod park;
mod partition;
mod selftest;
mod shared;
pub mod stage;
mod trap;
mod vmx;

pub use fatal::end;
