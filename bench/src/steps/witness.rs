//! A guest that was started, and how the lab sees that it lives.

use super::visits::Visit;

/// A guest that was started.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub name: String,
    pub witness: Witness,
}

/// How the lab sees that a guest lives, with what it saw when the guest was started.
#[derive(Debug, Clone)]
pub(super) enum Witness {
    /// The lab's own guests: the report of the checks that they do, which they leave in their memory.
    Beats(String),
    /// The one that serves a client on the segment: operations that the client had answers to.
    Client(usize),
    /// The stock guest: a page of its web server.
    Page(Visit),
}
