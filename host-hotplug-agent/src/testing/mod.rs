//! Fakes for this crate's tests. `world` knows nothing of those that act in it: `machine` (a host) and `vm` (its guests).

mod domain;
pub mod kernel;
pub mod l0;
pub mod machine;
pub mod tables;
pub mod torn;
pub mod tree;
pub mod trouble;
pub mod vm;
pub mod world;
