//! e820: a host's memory map.
//!
//! [`E820Map`] is a sorted map without overlaps; [`for_first_host`] and [`for_successor`] make a host's out of the
//! machine's; [`low_slices`] chooses the memory below 1 MiB that two hosts start their CPUs with.

mod hosts;
mod low;
mod map;

pub use hosts::{FirstHostMemory, SuccessorMemory, for_first_host, for_successor};
pub use low::{SLICE_SIZE, SLICE_SMALLEST, SLICES_END, SLICES_START, keep_low_slice, low_slices};
pub use map::{CAPACITY, E820Error, E820Map, Entry, MemoryType};
