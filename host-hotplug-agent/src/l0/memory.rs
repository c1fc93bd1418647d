//! Copies of L0's structures, taken from wherever the shared region can be seen.
#![expect(unsafe_code, reason = "gives the ABI's plain structures their bytes")]

use std::mem::{MaybeUninit, size_of};

use anyhow::{Context, Result};
use firmware_shim::{OutOfRange, PhysMem, Pieces};
use locum_abi::header::MAX_CPUS;
use locum_abi::layout::{Array, FIRST_STATUS_CPUS};
use locum_abi::{CpuStatus, Header, HostStatus, KeptRecord, Layout, Slot, Status, TraceRecord};

use crate::error::Refusal;

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
unsafe impl Plain for CpuStatus {}
// SAFETY: as above.
unsafe impl Plain for TraceRecord {}
// SAFETY: as above.
unsafe impl Plain for KeptRecord {}
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
    copy_part(memory, at, size_of::<T>())
}

/// As [`copy()`], of a structure of which only the first `bytes` are there, as in another release; the rest is zero.
///
/// # Errors
/// If the memory cannot be read.
pub fn copy_part<T: Plain>(memory: &dyn PhysMem, at: u64, bytes: usize) -> Result<T, OutOfRange> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the slice covers exactly the value, which is initialized (zeroed), and `T: Plain` accepts any bytes.
    let all = unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    let known = bytes.min(size_of::<T>());
    memory.read(at, all.get_mut(..known).unwrap_or_default())?;
    // SAFETY: initialized, and any bytes are a value of `T`.
    Ok(unsafe { value.assume_init() })
}

/// A copy of an element of one of L0's arrays, which may be shorter or longer there than here.
///
/// # Errors
/// If there is no such element, or the memory cannot be read.
pub fn element<T: Plain>(memory: &dyn PhysMem, array: &Array, index: u32) -> Result<T> {
    let at = array
        .address(index)
        .with_context(|| format!("L0 has no element {index}"))?;
    copy_part(memory, at, array.known::<T>()).with_context(|| format!("L0's memory at {at:#x}"))
}

/// Copies of the first `count` elements of one of L0's arrays. They are read at once: each read is a system call.
///
/// # Errors
/// If the memory cannot be read.
pub fn elements<T: Plain>(memory: &dyn PhysMem, array: &Array, count: u32) -> Result<Vec<T>> {
    let mut raw = vec![0; array.stride as usize * count as usize];
    memory
        .read(array.start, &mut raw)
        .with_context(|| format!("L0's memory at {:#x}", array.start))?;
    let here = Array { start: 0, ..*array };
    (0..count)
        .map(|index| element(&Pieces(&[(0, &raw)]), &here, index))
        .collect()
}

/// Where this L0 has its arrays.
///
/// # Errors
/// Those of [`super::header::read`].
pub fn layout(header: &Header) -> Result<Layout, Refusal> {
    Ok(Layout::of(header)?)
}

/// A copy of the status region, boxed: too large for comfort on a stack. CPUs beyond those that this release has room for
/// are left out.
///
/// # Errors
/// If the memory cannot be read.
pub fn status(memory: &dyn PhysMem, header: &Header) -> Result<Box<Status>> {
    let layout = layout(header)?;
    let context = || format!("L0's status page at {:#x}", header.status);
    // What lies before the first release's CPUs has its place for ever, but for the hosts.
    let mut status = copy_part::<Status>(memory, header.status, FIRST_STATUS_CPUS as usize)
        .map(Box::new)
        .with_context(context)?;
    for (slot, host) in status.hosts.iter_mut() {
        *host = element(memory, &layout.hosts, slot.raw())?;
    }
    // More than L0 has room for is not believed, and shown as it is.
    if status.cpu_count <= layout.cpus.count {
        status.cpu_count = status.cpu_count.min(MAX_CPUS as u32);
        let there = elements(memory, &layout.cpus, status.cpu_count).with_context(context)?;
        for (cpu, there) in status.cpus.iter_mut().zip(there) {
            *cpu = there;
        }
    }
    Ok(status)
}

/// A copy of the status of the host in one slot: much less to copy than [`status()`].
///
/// # Errors
/// If the memory cannot be read.
pub fn host(memory: &dyn PhysMem, header: &Header, slot: Slot) -> Result<HostStatus> {
    element(memory, &layout(header)?.hosts, slot.raw()).context("L0's status of a host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use locum_abi::MAX_CPUS;

    use crate::testing::l0::{FIRST_HEADER, FIRST_STATUS, FakeRegion};

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

    #[test]
    fn an_l0_of_the_first_release_is_read() {
        let memory = Pieces(&[(0x80_0000, FIRST_HEADER), (0x80_1000, FIRST_STATUS)]);
        let header = super::super::header::read(&memory, 0x80_0000).unwrap();
        let status = status(&memory, &header).unwrap();
        assert_eq!((status.generation, status.cpu_count, status.refusals), (7, 2, 3));
        assert_eq!(
            (status.hosts[Slot::Even].cpu, status.hosts[Slot::Odd].generation),
            (1, 7)
        );
        let cpus = &status.cpus;
        assert_eq!((cpus[0].owner, cpus[1].apic_id, cpus[1].nmis), (1, 2, 0x501));
        assert_eq!((cpus[1].exits_by_reason[79], cpus[2].enters), (2079, 0));
        assert_eq!(host(&memory, &header, Slot::Odd).unwrap().detail, [4, 5, 6]);
    }

    #[test]
    fn an_l0_of_a_later_release_is_read() {
        let header = Header {
            size: 2048,
            status: 0x1000,
            status_hosts: 128,
            host_status_size: 64,
            status_cpus: 256,
            cpu_status_size: 768,
            cpu_capacity: 1024,
            status_size: 256 + 1024 * 768,
            ..Header::of_this_release()
        };
        let mut there = vec![0; header.status_size as usize];
        let mut put = |at: usize, value: u32| there[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, 9);
        put(4, 1000);
        put(128 + 64 + 32, 8);
        for cpu in 0..1000 {
            put(256 + 768 * cpu, cpu as u32);
        }
        let memory = Pieces(&[(0x1000, &there)]);
        let status = status(&memory, &header).unwrap();
        assert_eq!((status.generation, status.hosts[Slot::Odd].generation), (9, 8));
        assert_eq!(
            (status.cpu_count, status.cpus[MAX_CPUS - 1].apic_id),
            (MAX_CPUS as u32, MAX_CPUS as u32 - 1),
            "as many as there is room for"
        );
        assert_eq!(host(&memory, &header, Slot::Odd).unwrap().generation, 8);
    }
}
