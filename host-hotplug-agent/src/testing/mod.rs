//! Fakes for this crate's tests.

pub mod l0;
