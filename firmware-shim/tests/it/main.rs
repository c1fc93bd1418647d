//! Tests of `firmware-shim` from outside, against machines made of bytes, with the `acpi` crate, `linux-boot-params`
//! and `iasl` as independent readers.

mod e820;
mod efi_map;
mod errors;
mod fit;
mod fixture;
mod fuzz;
mod host_tables;
mod iasl;
mod low_slices;
mod machines;
mod platform;
mod pool;
mod published_madt;
mod read;
mod srat;
mod witness;
mod zero_page;
