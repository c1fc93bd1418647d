//! What crosses from one host to the other: messages on channel 0, guests' state on the others.

pub(crate) mod link;
pub(crate) mod message;
#[cfg(test)]
mod noise;
pub mod port;
pub(crate) mod stream;
pub(crate) mod tunnel;
pub(crate) mod versions;

pub(crate) use link::Link;
pub(crate) use message::Message;
pub use port::Port;
pub(crate) use versions::Versions;
