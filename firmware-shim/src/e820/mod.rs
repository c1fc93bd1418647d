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
pub(crate) use low::EBDA_SEGMENT;
pub use low::{
    SLICE_SIZE, SLICE_SMALLEST, SLICES_END, SLICES_START, bios_area, bios_start, keep_low_slice, low_slices,
    low_slices_below,
};
pub use map::{CAPACITY, E820Error, E820Map, Entry, MemoryType};
pub use pool::{POOL_PIECES, Piece, Pool, PoolSize, memory_block_size, needs_small_pages, pool_by_size};
