//! e820: a host's memory map.
//!
//! [`E820Map`] is a sorted map without overlaps; [`for_first_host`] and [`for_successor`] make a host's out of the
//! machine's; [`low_slices`] chooses the memory below 1 MiB that two hosts start their CPUs with,
//! [`pool_by_size`] that of the guests.

mod hosts;
mod low;
mod map;
mod pool;

pub use hosts::{FirstHostMemory, SuccessorMemory, for_first_host, for_successor};
pub use low::{
    BASE_MEMORY_KIB, EBDA_SEGMENT, SLICE_SIZE, SLICE_SMALLEST, SLICES_END, SLICES_START, bios_start, keep_low_slice,
    low_slices, low_slices_below,
};
pub use map::{CAPACITY, E820Error, E820Map, Entry, MemoryType};
pub use pool::{POOL_PIECES, Piece, Pool, PoolSize, memory_block_size, needs_small_pages, pool_by_size};
