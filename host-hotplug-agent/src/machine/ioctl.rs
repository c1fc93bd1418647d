//! The module's ioctls, typed.
#![expect(unsafe_code, reason = "ioctl(2) with the structures of locum_uapi.h")]

use std::fs::File;

use rustix::io::Result;
use rustix::ioctl::{NoArg, Setter, Updater, ioctl};

use super::uapi::{Call, Cycle, Info, Range, Request, Switch, Text, nr};

/// Defines a function per ioctl that reads and writes one structure.
macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident = $number:expr, $type:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// See `locum_uapi.h`. The structure's outputs are valid on errors as well.
        pub fn $name(fd: &File, value: &mut $type) -> Result<()> {
            // SAFETY: the number carries the structure's size, which `uapi` checks; the kernel reads and writes no
            // more.
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
        /// See `locum_uapi.h`.
        pub fn $name(fd: &File, value: $type) -> Result<()> {
            // SAFETY: the number carries the structure's size, which `uapi` checks; the kernel only reads it.
            unsafe { ioctl(fd, Setter::<{ $number }, $type>::new(value)) }
        }
    )* };
}

updates! {
    /// What the module knows about L0 and this host.
    info = nr::INFO, Info;
    /// CPUs become nested.
    enter = nr::ENTER, Switch;
    /// CPUs become native.
    leave = nr::LEAVE, Switch;
    /// Enters and leaves many times.
    cycle = nr::CYCLE, Cycle;
    /// Gives a resource to the other slot.
    grant = nr::GRANT, Call;
    /// Starts the other host.
    start = nr::START, Call;
    /// Stops the other host and takes everything back.
    abort = nr::ABORT, Call;
    /// Offlines and removes memory.
    mem_remove = nr::MEM_REMOVE, Range;
    /// Adds memory, offline.
    mem_add = nr::MEM_ADD, Range;
    /// Overwrites memory with zeroes.
    mem_wipe = nr::MEM_WIPE, Range;
    /// Takes the waiting name from `/sys/kernel/locum/refresh`.
    next_request = nr::NEXT_REQUEST, Request;
}

sets! {
    /// What power-off does while this host is nested.
    power_policy = nr::POWER_POLICY, u32;
    /// New content of a file in `/sys/kernel/locum`.
    text = nr::TEXT, Text;
    /// Whether a refresh runs.
    busy = nr::BUSY, u32;
}

/// This file becomes the daemon's.
///
/// # Errors
/// See `locum_uapi.h`.
pub fn listen(fd: &File) -> Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctl(fd, NoArg::<{ nr::LISTEN }>::new()) }
}
