//! I/O ports from user space: through `/dev/port`, or with IN and OUT where the kernel has no such file
//! (CONFIG_DEVPORT; Debian's cloud kernels).

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result};

/// Some ports.
pub(crate) enum Ports {
    /// Read and written as a file.
    File(File),
    /// This thread may use them itself, and so may those that it starts.
    Direct,
}

impl Ports {
    /// Gets `count` ports from `base`.
    ///
    /// # Errors
    /// This process is not root, or the kernel has neither way.
    pub(crate) fn open(base: u16, count: u16) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/port");
        match file {
            Ok(file) => return Ok(Self::File(file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("opening /dev/port (needs root)");
            }
            Err(_) => {}
        }
        allow(base, count).context("using I/O ports (needs root and CONFIG_DEVPORT or CONFIG_X86_IOPL_IOPERM)")?;
        Ok(Self::Direct)
    }

    /// Reads a port of those that were opened.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(&self, port: u16) -> Result<u8> {
        match self {
            Self::File(file) => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, port.into())?;
                let [byte] = byte;
                Ok(byte)
            }
            Self::Direct => Ok(input(port)),
        }
    }

    /// Writes a port of those that were opened.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, port: u16, byte: u8) -> Result<()> {
        match self {
            Self::File(file) => Ok(file.write_all_at(&[byte], port.into())?),
            Self::Direct => {
                output(port, byte);
                Ok(())
            }
        }
    }
}

#[expect(unsafe_code, reason = "ioperm has no safe wrapper")]
fn allow(base: u16, count: u16) -> io::Result<()> {
    // SAFETY: changes this thread's permissions only; no memory is involved.
    match unsafe { libc::ioperm(base.into(), count.into(), 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "IN is an instruction")]
fn input(port: u16) -> u8 {
    let byte;
    // SAFETY: reads a port of a UART that this process was given; without permission it faults, and touches no memory.
    unsafe {
        std::arch::asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack, preserves_flags));
    }
    byte
}

#[expect(unsafe_code, reason = "OUT is an instruction")]
fn output(port: u16, byte: u8) {
    // SAFETY: as `input`.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags));
    }
}
