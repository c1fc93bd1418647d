//! The module's ioctls, typed.
#![expect(unsafe_code, reason = "ioctl(2) with the structures of locum_abi::uapi")]

use std::fs::File;

use locum_abi::uapi::{self, Call, Cycle, Info, Range, Request, Switch, Text};
use rustix::io::Result;
use rustix::ioctl::{NoArg, Setter, Updater, ioctl};

/// Defines a function per ioctl that reads and writes one structure.
macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident = $number:expr, $type:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`uapi`]. The structure's outputs are valid on errors as well.
        pub fn $name(fd: &File, value: &mut $type) -> Result<()> {
            // SAFETY: `uapi` makes the number of the structure's size; the kernel reads and writes no more.
            unsafe { ioctl(fd, Updater::<{ $number }, $type>::new(value)) }
        }
    )* };
}

/// Defines a function per ioctl that only reads one structure.
macro_rules! sets {
    ($($(#[$doc:meta])* $name:ident = $number:expr, $type:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`uapi`].
        pub fn $name(fd: &File, value: $type) -> Result<()> {
            // SAFETY: `uapi` makes the number of the structure's size; the kernel only reads it.
            unsafe { ioctl(fd, Setter::<{ $number }, $type>::new(value)) }
        }
    )* };
}

updates! {
    /// What the module knows about L0 and this host.
    info = uapi::IOC_INFO, Info;
    /// CPUs become nested.
    enter = uapi::IOC_ENTER, Switch;
    /// CPUs become native.
    leave = uapi::IOC_LEAVE, Switch;
    /// Enters and leaves many times.
    cycle = uapi::IOC_CYCLE, Cycle;
    /// Gives a resource to the other slot.
    grant = uapi::IOC_GRANT, Call;
    /// Starts the other host.
    start = uapi::IOC_START, Call;
    /// Stops the other host and takes everything back.
    abort = uapi::IOC_ABORT, Call;
    /// Says what becomes of the machine when this host cannot go on.
    will = uapi::IOC_WILL, Call;
    /// Offlines and removes memory.
    mem_remove = uapi::IOC_MEM_REMOVE, Range;
    /// Adds memory, offline.
    mem_add = uapi::IOC_MEM_ADD, Range;
    /// Overwrites memory with zeroes.
    mem_wipe = uapi::IOC_MEM_WIPE, Range;
    /// Takes the waiting name from `/sys/kernel/locum/refresh`.
    next_request = uapi::IOC_NEXT_REQUEST, Request;
}

sets! {
    /// What power-off does while this host is nested.
    power_policy = uapi::IOC_POWER_POLICY, u32;
    /// New content of a file in `/sys/kernel/locum`.
    text = uapi::IOC_TEXT, Text;
    /// Whether a refresh runs.
    busy = uapi::IOC_BUSY, u32;
}

/// This file becomes the daemon's.
///
/// # Errors
/// See [`uapi`].
pub fn listen(fd: &File) -> Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctl(fd, NoArg::<{ uapi::IOC_LISTEN }>::new()) }
}
