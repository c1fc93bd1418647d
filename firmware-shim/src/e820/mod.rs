//! e820: a host's memory map.
//!
//! [`E820Map`] is a sorted map without overlaps; [`for_first_host`] and [`for_successor`] make a host's out of the
//! machine's.

mod hosts;
mod map;

pub use hosts::{FirstHostMemory, SuccessorMemory, for_first_host, for_successor};
pub use map::{CAPACITY, E820Error, E820Map, Entry, MemoryType};
