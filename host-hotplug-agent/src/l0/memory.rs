//! Copies of L0's structures, taken from wherever the shared region can be seen.
#![expect(unsafe_code, reason = "gives the ABI's plain structures their bytes")]

use std::mem::{MaybeUninit, offset_of, size_of};

use anyhow::{Context, Result};
use firmware_shim::{OutOfRange, PhysMem};
use locum_abi::{Header, HostStatus, Slot, Status, TraceRecord};

/// A structure of the ABI made of integers only, without padding that matters: any bytes are a value of it.
///
/// # Safety
/// Every bit pattern must be a valid value.
pub unsafe trait Plain: Copy {}

// SAFETY: `repr(C)` structures of integers and arrays of integers.
unsafe impl Plain for Header {}
// SAFETY: as above; enumerations are stored as raw words.
unsafe impl Plain for Status {}
// SAFETY: as above.
unsafe impl Plain for TraceRecord {}
// SAFETY: as above.
unsafe impl Plain for HostStatus {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// A copy of the structure at physical address `at`. L0 may write while it is copied: each field is a whole word and
/// coherent in itself, the structure as a whole need not be.
///
/// # Errors
/// If the memory cannot be read.
pub fn copy<T: Plain>(memory: &dyn PhysMem, at: u64) -> Result<T, OutOfRange> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the slice covers exactly the value, which is initialized (zeroed), and `T: Plain` accepts any bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    memory.read(at, bytes)?;
    // SAFETY: initialized, and any bytes are a value of `T`.
    Ok(unsafe { value.assume_init() })
}

/// A boxed copy of the status region: too large for comfort on a stack.
///
/// # Errors
/// If the memory cannot be read.
pub fn status(memory: &dyn PhysMem, header: &Header) -> Result<Box<Status>> {
    copy::<Status>(memory, header.status)
        .map(Box::new)
        .with_context(|| format!("L0's status page at {:#x}", header.status))
}

/// A copy of the status of the host in one slot: much less to copy than [`status()`].
///
/// # Errors
/// If the memory cannot be read.
pub fn host(memory: &dyn PhysMem, header: &Header, slot: Slot) -> Result<HostStatus> {
    let at = header.status + (offset_of!(Status, hosts) + slot.index() * size_of::<HostStatus>()) as u64;
    copy(memory, at).with_context(|| format!("L0's status of a host at {at:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::l0::FakeRegion;

    #[test]
    fn one_host_is_what_the_whole_status_says() {
        let region = FakeRegion::new(2);
        region.update(|status| {
            status.hosts[Slot::Even].generation = 6;
            status.hosts[Slot::Odd].generation = 5;
        });
        for slot in Slot::ALL {
            let whole = status(&region, &region.header()).unwrap().hosts[slot];
            let one = host(&region, &region.header(), slot).unwrap();
            assert_eq!(one.generation, whole.generation);
        }
        assert_eq!(host(&region, &region.header(), Slot::Odd).unwrap().generation, 5);
    }
}
