//! What crosses from one host to the other: messages on channel 0, guests' state on the others.

pub mod message;
pub mod port;
pub mod stream;

pub use message::{Link, Message};
pub use port::Port;
