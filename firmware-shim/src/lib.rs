//! What a host sees as firmware: its memory map, its ACPI tables, its zero page; and what the machine's own firmware
//! left.
//!
//! Pure: no I/O, no allocation, no clock. L0 uses it at boot for the first host, the agent for every successor.
//!
//! # What it is not
//! It loads nothing and places nothing: the caller decides which addresses things have, copies kernel and ramdisk
//! there, and owns the buffers. It knows no policy either: who gets which CPU or memory is an argument. It never looks
//! at AML; DSDT and SSDTs are passed on by address.
//!
//! # Data flow
//! ```text
//!  machine's memory --PhysMem--> Rsdp -> Machine -> Fadt, Madt, Mcfg
//!                                           |
//!  HostFirmware (CPUs, mailbox, LOCM) ------+--> first_host_tables / successor_tables --> &mut [u8] at a physical
//!  address
//!
//!  firmware's map -> E820Map -> for_first_host / for_successor --> E820Map --+
//!  kernel file ----> KernelImage --------------------------------------------+--> ZeroPage::write --> &mut [u8; 4096]
//! ```
//! All input (tables, maps, kernel files) is taken for untrustworthy: a damaged one is an error, never a panic.
//!
//! # Modules
//! - [`acpi`]: reads the machine's tables, makes a host's.
//! - [`e820`]: memory maps.
//! - [`efi`]: the EFI memory map.
//! - [`linux`]: kernel files and the zero page of the 64-bit boot protocol.
//!
//! The stack is used for at most a few memory maps of 6 KiB each.
#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
mod bytes;
pub mod e820;
pub mod efi;
pub mod linux;
mod mem;

pub use mem::{OutOfRange, PhysMem, Pieces};
