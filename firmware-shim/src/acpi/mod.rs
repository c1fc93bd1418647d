//! ACPI: the machine's tables read, a host's tables made.
//!
//! Reading: [`Rsdp`] -> [`Machine`] (the XSDT or RSDT) -> [`Fadt`], [`Madt`], [`Mcfg`], [`Srat`], [`Hest`]. Making: [`first_host_tables`]
//! and [`successor_tables`], which both lay their tables out in one buffer, RSDP first.
//!
//! # Why not the crate `acpi`
//! It reads whole tables as we do, and is the witness of our tests. But it trusts firmware where L0 must not: it has no
//! error for memory that is not there, follows a null pointer in the root table, walks an MADT for ever or beyond its
//! end, and believes a short FADT by its revision. `tests/it/fit.rs` has a test for each, which fails once that is
//! mended. Its types are references into the firmware's memory, and its register addresses cannot be written back. The
//! agent reads by the same code as L0: it makes a successor's tables out of what it reads, and a table needs one reader.

mod build;
mod error;
mod errors;
mod fadt;
mod fadt_build;
mod gas;
mod header;
mod locm;
mod machine;
mod madt;
mod madt_build;
mod madt_entry;
mod mcfg;
mod rsdp;
mod signature;
mod sink;
mod srat;

pub use build::{HostFirmware, HostTables, SUCCESSOR_KEEPS, first_host_tables, successor_tables};
pub use error::{AcpiError, BuildError};
pub use errors::{ErrorSources, Hest};
pub use fadt::{BootArch, FADT_REVISION_6_LEN, Fadt, FadtFlags};
pub use gas::{Gas, SPACE_SYSTEM_IO, SPACE_SYSTEM_MEMORY};
pub use header::{SDT_HEADER_LEN, SdtHeader};
pub use locm::{LOCM_LEN, Locm};
pub use machine::{Machine, TableRef};
pub use madt::{Cpu, Madt, PCAT_COMPAT};
pub use madt_entry::{LAPIC_ENABLED, LAPIC_ONLINE_CAPABLE, MadtEntry, WAKEUP_VERSION_1};
pub use mcfg::{EcamRegion, Mcfg};
pub use rsdp::{RSDP_V1_LEN, RSDP_V2_LEN, Rsdp};
pub use signature::Signature;
pub use srat::{NodeMemory, Srat};
