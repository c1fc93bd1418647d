//! A thread that is not made to wait for others.
#![expect(unsafe_code, reason = "sched_setscheduler(2), which rustix lacks")]

/// From now on this thread runs before all that have no real-time priority (sched(7), `SCHED_FIFO`). Only root may.
///
/// # Errors
/// The system's.
pub(crate) fn first() -> std::io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads a sched_param, and changes nothing but the calling thread's priority.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
