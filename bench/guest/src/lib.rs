//! What runs inside and around a guest so that the lab can prove that the guest survived a refresh.
//!
//! ```text
//!   guest (guest-init, PID 1)                       host (lab-guest)
//!   registers ─┐                                    watch ── reads the beat page out of the pool
//!   memory ────┤ checks ──> beat page ──(pool)──>   disk ─── serves a range of the pool over NBD
//!   clocks ────┤                                    echo ─── answers the guest's UDP datagrams
//!   disk, net ─┘
//! ```
//!
//! The guest never reports over a network or through its host's kernel: it writes one page of its own memory, and
//! whichever host maps the pool reads that page. So the same evidence is seen by the incumbent, by the successor, and
//! while neither runs the guest; a guest that stopped shows as a counter that stopped.
//!
//! Every check compares with what the guest itself can derive again (a pattern, a value held in a register, the last
//! clock reading), so a fault in the monitor cannot also forge the expectation. Each has a test in which it fails.
//!
//! The checks are no benchmark: those are in [`measure`], which a guest runs instead of them.
//!
//! - [`beat`]: the page, its layout, its writers and readers; [`scan`] finds such pages in the pool.
//! - [`pattern`], [`registers`], [`clock`]: the checks themselves, free of I/O.
//! - [`init`]: PID 1 of the guest, which does [`setup`] and then runs the [`checks`], or has it [`measure`].
//! - [`measure`]: what an exit costs the guest; its client is on the host.
//! - [`instructions`]: what a host's user space sees of instructions, to be compared native and nested.
//! - [`watch`], [`nbd`], [`echo`]: the host's side.
//! - [`map`]: the only place that maps memory.

mod beat;
mod checks;
mod clock;
mod cpus;
pub mod echo;
pub mod init;
pub mod instructions;
mod kernel_clock;
pub mod map;
pub mod measure;
pub mod nbd;
mod params;
mod pattern;
mod priority;
mod registers;
mod scan;
mod setup;
pub mod tsc;
pub mod watch;
