//! Every word shared between L0, `locum.ko` and user space.
//!
//! This crate is the one source of truth for the memory that several programs look at: addresses inside L0's shared
//! region, hypercall numbers, error codes, the records of the trace ring, ioctls. It holds layouts and names, never
//! behaviour that touches memory. The C headers `locum_abi.h` and `locum_uapi.h` of the module are generated from here
//! (see `tests/c_header.rs`), and that test fails when they differ.
//!
//! How a host finds it all: an ACPI table with signature [`LOCM_SIGNATURE`] carries the physical address of the
//! [`Header`]; the header carries every other address. Nothing else is at an address a host may assume.
//!
//! | module | what it describes | who writes it |
//! | --- | --- | --- |
//! | [`header`] | what L0 is and where its parts are; what releases have in common | L0, once at boot |
//! | [`layout`] | where the elements of L0's arrays are | |
//! | [`status`] | modes, owners, counters | L0, read-only for hosts |
//! | [`frame`] | the page through which one CPU changes between native and nested | module and L0 |
//! | [`hypercall`], [`grant`] | what a nested host may ask for | |
//! | [`mailbox`] | ACPI multiprocessor wakeup mailbox | host, cleared by L0 |
//! | [`channel`] | byte rings between the two hosts | both hosts |
//! | [`pool`] | which guest's RAM lies where | both hosts |
//! | [`trace`], [`event`] | the always-on trace ring and what its records tell, the log ring | L0 |
//! | [`slot`] | the two places for a host | |
//! | [`vmx`] | what L0 needs of a CPU, for those who ask before L0 is there | |
//! | [`uapi`] | what the module offers to programs: ioctls | programs and the module |
#![no_std]
#![forbid(unsafe_code)]

pub mod channel;
pub mod event;
pub mod frame;
pub mod grant;
pub mod header;
pub mod hypercall;
pub mod layout;
pub mod mailbox;
pub mod pool;
mod raw;
pub mod slot;
pub mod status;
pub mod trace;
pub mod uapi;
pub mod vmx;

pub use channel::{CHANNEL_COUNT, ChannelRing};
pub use event::{Event, TraceKind};
pub use frame::Frame;
pub use grant::{GRANTABLE_FUNCTIONS, GRANTABLE_PINS, Grant, ResourceKind};
pub use header::{
    BLANK_RANGES, BlankRange, FAMILY, FEATURES, HEADER_MIN, Header, LOCM_SIGNATURE, MAGIC, MAX_CPUS, POOL_PIECES,
    PoolPiece, SlotInfo,
};
pub use hypercall::{Call, Errno, Op, Will};
pub use layout::{HeaderError, Layout};
pub use mailbox::Mailbox;
pub use pool::{POOL_EXTENTS, POOL_GRAIN, PoolExtent, PoolState};
pub use slot::{PerSlot, SLOTS, Slot};
pub use status::{CpuMode, CpuStatus, HostState, HostStatus, Status, StopReason};
pub use trace::{KeptRecord, KeptRing, LogRing, TraceRecord, TraceRing};

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
