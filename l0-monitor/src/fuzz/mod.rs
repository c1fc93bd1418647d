//! What hosts can throw at L0, made of arbitrary bytes, on the model of a CPU: fuzz targets.
//!
//! Each target turns bytes into a host's doings and asserts after each of them what has to hold (section 10 of
//! ARCHITECTURE.md). The same functions are run by `fuzz/` (coverage-guided, for as long as one likes) and by
//! `tests/corpus.rs` (on what that found so far, with every `cargo test`). Inputs that end in the middle of a step mean
//! zeroes from there on, and every life has a last step: no input takes long.

mod decode;
mod life;
mod wild;

/// What runs an input.
pub type Target = fn(&[u8]);

/// The targets by their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("decode", decode::decode),
    ("life", life::life),
    ("wild", wild::wild),
    ("partition", crate::partition::fuzz::partition),
];

/// Steps of a life.
pub(crate) const STEPS: usize = 400;

/// Runs one of them.
///
/// # Panics
/// If there is no such target, or if something does not hold.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target {name}"));
    target(data);
}
