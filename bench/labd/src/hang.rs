//! A host that hangs in its shutdown, by what it has: kexec shuts the kernel down, stops all CPUs but one, and jumps to
//! these instructions.
#![expect(unsafe_code, reason = "kexec_load(2) and reboot(2)")]

use std::ffi::c_void;
use std::io;

use anyhow::{Context, Result, bail};

/// `cli; jmp .`
const CODE: [u8; 3] = [0xfa, 0xeb, 0xfe];
/// Memory that a host has on every board of the lab.
const AT: usize = 0x1000_0000;
const PAGE: usize = 4096;

/// `struct kexec_segment` (Linux, include/uapi/linux/kexec.h).
#[repr(C)]
struct Segment {
    buffer: *const c_void,
    buffer_size: usize,
    at: *const c_void,
    size: usize,
}

/// Does not return, unless the kernel does not do it.
///
/// # Errors
/// The kernel has no kexec, or refuses.
pub(crate) fn hang() -> Result<()> {
    let segment = Segment {
        buffer: CODE.as_ptr().cast(),
        buffer_size: CODE.len(),
        at: std::ptr::without_provenance(AT),
        size: PAGE,
    };
    // SAFETY: the kernel reads one segment, and from it as many bytes as the code has.
    let loaded = unsafe { libc::syscall(libc::SYS_kexec_load, AT, 1_usize, &raw const segment, 0_usize) };
    if loaded != 0 {
        return Err(io::Error::last_os_error()).context("kexec_load");
    }
    // SAFETY: ends this kernel; takes no pointer.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    bail!("kexec: {}", io::Error::last_os_error())
}
