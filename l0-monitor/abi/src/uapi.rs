//! What `locum.ko` offers to programs: `/dev/locum`, its ioctls, and the channels.
//!
//! `/dev/locum` (mode 0600) is the module's control device.
//!
//! *Files.* Opened read-only it allows [`IOC_INFO`] and reading L0's header, status, trace and log. Everything else
//! needs an open for reading and writing; others get -EPERM.
//!
//! *Offsets are physical addresses.* pread(2) works inside L0's header, status, trace (kept records too) and log (addresses from
//! [`IOC_INFO`] and the header), and, on a file opened for writing, inside all of the shared region, inside memory
//! removed with [`IOC_MEM_REMOVE`] and, while there is no other host, inside the machine's firmware tables (memory that
//! e820 calls Reserved, ACPI Tables or ACPI Non-volatile Storage, but for L0's private memory). pwrite(2) works inside
//! removed memory and the other slot's `tables`. Elsewhere: -EFAULT. In memory that was granted to the other host, or
//! in `tables` while that host runs: -EBUSY. mmap(2) (PROT_READ, MAP_SHARED) works for the page-aligned parts of
//! the shared region that the file may read; -EACCES with PROT_WRITE, but for the pool's table. Reads and writes may be short: go on at the next
//! offset.
//!
//! *Structures* have no padding and are copied back to the caller on errors too, so that fields marked "out" are valid
//! whenever the call returned 0 or an error other than -EFAULT, -ENOTTY, -EPERM, -E2BIG. Fields called `reserved` must
//! be 0 (-EINVAL) unless marked "out". All addresses and sizes are bytes; CPU numbers are Linux's, APIC ids are called
//! so.
//!
//! *L0's refusals* ([`Errno`](crate::Errno)) are copied raw to `l0_errno` (0: L0 was not asked, or agreed) and mapped:
//! Argument -EINVAL, NotOwner -EACCES, NotParked -EBUSY, State -EBADFD, NoSpace -ENOSPC, NoVmx -EOPNOTSUPP, EntryFailed
//! -EIO, Timeout -ETIMEDOUT, Frame -EBADMSG, any other -EPROTO. -EOPNOTSUPP with an `l0_errno` of 0: L0 is older than
//! the request.
//!
//! *Releases.* The module may be older or newer than the program. Structures grow at their end only; the ioctl's number
//! carries the size that the program knows. What is missing there counts as 0, and what the module does not know must be
//! 0 (-E2BIG) and comes back as 0. An ioctl that the module does not know: -ENOTTY. What else the module can do since
//! the first release is told in [`Info::features`]. Only if a field moves does [`UAPI_FAMILY`] change, and only another
//! family is a reason for a program to refuse the module as a whole. Numbers are never used again: 0x33 was an ioctl
//! before the first release.
//!
//! ioctls are serialized by one mutex; a waiting caller can be killed (-ERESTARTSYS/-EINTR).

mod call;
mod channel;
mod info;
mod memory;
mod number;
mod power;
mod switch;
mod sysfs;

pub use call::{Call, IOC_ABORT, IOC_GRANT, IOC_PING, IOC_START, IOC_WILL};
pub use channel::{CHAN_SHUTDOWN, SHUT_READ, SHUT_WRITE};
pub use info::{IOC_INFO, Info, UAPI_FAMILY, UAPI_FEATURES};
pub use memory::{IOC_MEM_ADD, IOC_MEM_REMOVE, IOC_MEM_WIPE, Range};
pub use number::IOC;
pub use power::{IOC_POWER_POLICY, PowerPolicy};
pub use switch::{ALL_CPUS, Cycle, IOC_CYCLE, IOC_ENTER, IOC_LEAVE, NO_CPU, SWITCH_CHECK, Switch};
pub use sysfs::{IOC_BUSY, IOC_LISTEN, IOC_NEXT_REQUEST, IOC_TEXT, Request, TEXT_MAX, Text, TextKind};
