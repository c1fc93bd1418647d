//! Calls of L0
//!
//! All of them run on the CPU of the caller and fail with -ENOTCONN while that CPU, or any other online CPU of this
//! host, is native. -EOPNOTSUPP with an `l0_errno` of 0: L0 is older than the operation.

use super::number::iowr;
use crate::{Grant, Will};

/// A call of L0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// In: what the ioctl says.
    pub a: u64,
    /// In: what the ioctl says.
    pub b: u64,
    /// In: what the ioctl says.
    pub c: u64,
    /// Out: why L0 refused, 0 if it did not.
    pub l0_errno: u32,
    /// In: 0.
    pub reserved: u32,
    /// Out: TSC ticks that the call took.
    pub ticks: u64,
}

impl Call {
    /// For [`IOC_PING`].
    #[must_use]
    pub fn ping() -> Self {
        Self::default()
    }

    /// For [`IOC_GRANT`].
    #[must_use]
    pub fn grant(grant: Grant) -> Self {
        Self::with(grant.encode())
    }

    /// For [`IOC_START`]: physical addresses of the 64-bit entry point and of the zero page, APIC id of the boot CPU.
    #[must_use]
    pub fn start(entry: u64, zero_page: u64, boot_apic: u32) -> Self {
        Self::with([entry, zero_page, u64::from(boot_apic)])
    }

    /// For [`IOC_ABORT`].
    #[must_use]
    pub fn abort() -> Self {
        Self::default()
    }

    /// For [`IOC_WILL`].
    #[must_use]
    pub fn will(will: Will) -> Self {
        Self::with([will as u64, 0, 0])
    }

    fn with([a, b, c]: [u64; 3]) -> Self {
        Self {
            a,
            b,
            c,
            ..Self::default()
        }
    }
}

/// L0 answers. `a`, `b`, `c`: 0.
pub const IOC_PING: u32 = iowr::<Call>(0x20);

/// Give a resource to the other slot. `a`: [`ResourceKind`](crate::ResourceKind), which says what `b` and `c` are.
/// The module refuses memory that is System RAM of this kernel, and CPUs that are online here: -EBUSY.
pub const IOC_GRANT: u32 = iowr::<Call>(0x21);

/// Start the other host. `a`: physical entry address, `b`: of the zero page, `c`: APIC id of the boot CPU.
pub const IOC_START: u32 = iowr::<Call>(0x22);

/// Stop the other host and take everything back. `a`, `b`, `c`: 0. Memory granted before is "removed memory" again: wipe
/// it, then add it.
pub const IOC_ABORT: u32 = iowr::<Call>(0x23);

/// What becomes of the machine when this host, which reigns, cannot go on. `a`: a [`Will`]; `b`, `c`: 0.
pub const IOC_WILL: u32 = iowr::<Call>(0x24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call as Meant, Op};

    #[test]
    fn l0_understands_what_is_packed() {
        let grant = Grant::Ports {
            first: 0x2f8,
            last: 0x2ff,
        };
        let Call { a, b, c, .. } = Call::grant(grant);
        assert_eq!(Meant::decode(Op::Grant, [a, b, c]), Ok(Meant::Grant(grant)));
        let Call { a, b, c, .. } = Call::start(0x4a00_0200, 0x9_4000, 3);
        let start = Meant::Start {
            entry: 0x4a00_0200,
            zero_page: 0x9_4000,
            apic_id: 3,
        };
        assert_eq!(Meant::decode(Op::Start, [a, b, c]), Ok(start));
        assert_eq!(Call::ping(), Call::abort());
        let Call { a, b, c, .. } = Call::will(Will::Yield);
        assert_eq!(Meant::decode(Op::Will, [a, b, c]), Ok(Meant::Will(Will::Yield)));
    }
}
