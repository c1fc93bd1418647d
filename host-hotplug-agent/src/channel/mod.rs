//! What crosses from one host to the other: messages on channel 0, guests' state on the others.

pub(crate) mod message;
#[cfg(test)]
mod noise;
pub mod port;
pub(crate) mod stream;
pub(crate) mod tunnel;
pub(crate) mod versions;

pub(crate) use message::{Link, Message};
pub use port::Port;
pub(crate) use versions::Versions;
