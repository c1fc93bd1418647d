//! Fakes for this crate's tests.

pub mod kernel;
pub mod l0;
pub mod tables;
pub mod tree;
pub mod vm;
pub mod world;
