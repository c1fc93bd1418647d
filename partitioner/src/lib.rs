//! Who gets what in a refresh, and in which order it happens.
//!
//! # What this is
//!
//! The policy of a host refresh as pure data and pure functions. From what the incumbent's agent observed (an
//! [`Inventory`]) and what the administrator asks for (a [`Request`]), [`plan()`] makes a [`Plan`] or says in one
//! sentence why not. A [`Refresh`] then says, action by action, how to get there, how to get back from any point
//! before the incumbent is retired, and how the successor takes over the whole machine.
//!
//! # What this is not
//!
//! It does no I/O, reads no clock, starts no thread and enforces nothing: the agent performs the actions, L0
//! enforces who owns what, and time-outs are the agent's (it reports them as [`Event::Failed`]). It does not parse
//! configuration files or firmware tables, and it does not place the kernel within the memory it chose.
//!
//! # How data flows through it
//!
//! ```text
//!  /sys, /proc, L0 ──> Inventory ─┐
//!                                 ├─> plan() ──> Plan ──> Event::Plan ─┐
//!  /etc/locum/NAME.toml > Request ┘                                    v
//!                                        agent: perform Action  <── Refresh ──> status, progress
//!                                        agent: Event::Done|Failed ──> ^
//!                                                                      │ Action::Entrust: the state itself crosses
//!                                        successor's agent: ──────> Refresh::take_over(state)
//! ```
//!
//! The agent's whole loop is "next action, perform it, report the result":
//!
//! ```
//! # use partitioner::{Action, Event, Refresh, Refused};
//! fn run(refresh: &mut Refresh, mut perform: impl FnMut(&Action) -> Result<(), String>) -> Result<(), Refused> {
//!     let mut next = refresh.apply(Event::Start)?;
//!     while let Some(action) = next {
//!         let event = match perform(&action) {
//!             Ok(()) => Event::Done,
//!             Err(reason) => Event::Failed(reason),
//!         };
//!         next = refresh.apply(event)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Principles
//!
//! 1. A resource has exactly one [`Owner`]. It changes owner in [`Partition::transfer`] and nowhere else.
//! 2. A plan is rehearsed on a [`Partition`] before it is returned: what [`plan()`] accepts cannot collide later.
//! 3. What was done is written down, and undone in reverse order.
//! 4. Whatever is refused names its cause and its remedy.
//!
//! # Modules
//!
//! | module | what |
//! | --- | --- |
//! | [`ids`] | names of CPUs, nodes, interrupts, generations and slots |
//! | [`range`] | ranges of memory and I/O ports |
//! | [`pci`] | PCI functions and what they occupy |
//! | [`inventory`] | the machine as the incumbent sees it |
//! | [`request`] | what the successor is to get |
//! | [`plan`](mod@plan) | the plan, its choices and checks |
//! | [`error`] | why there is no plan; what to beware of in one |
//! | [`partition`] | who owns what |
//! | [`refresh`] | the state machine, of both hosts' sides |
//!
//! With the feature `serde`, all of it can be stored, shown and passed on.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod error;
pub mod ids;
pub mod inventory;
pub mod partition;
pub mod pci;
pub mod plan;
pub mod range;
pub mod refresh;
pub mod request;

pub use error::{PlanError, Warning};
pub use ids::{ApicId, CpuNumber, Generation, Gsi, NodeId, Slot};
pub use inventory::{BlockState, Cpu, FirmwareRegion, Inventory, MemoryBlock, Pin, StayingPorts, Unreclaimed};
pub use partition::{Owner, Partition, Resource, Transfer, TransferError};
pub use pci::{Bar, PciAddress, PciFunction};
pub use plan::{Plan, Reclaim, plan};
pub use range::{MemRange, PortRange};
pub use refresh::{Action, Course, Event, Loss, PlanRefused, Progress, Refresh, Refused, Role, State};
pub use request::{BootSize, CpuRequest, MemoryRequest, Request};
