//! The CPUs of the guest, and which of them a thread runs on.

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Numbers of the CPUs that are online.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn online_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Binds the calling thread to one vCPU: its TSC is about that vCPU alone.
pub(crate) fn bind(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        println!("lab: cannot bind a thread to vCPU {cpu}: {error}");
    }
}
