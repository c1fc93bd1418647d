//! Power-off and panic

use super::number::iow;

/// What power-off does while this host is nested.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerPolicy {
    /// Tell L0 that this host ended ([`StopReason::PoweredOff`](crate::StopReason::PoweredOff)); the other host goes on.
    Exit = 0,
    /// Give everything to the other host, which must be running.
    Retire = 1,
}

/// Takes a [`PowerPolicy`] by pointer, 32 bits; the default is [`PowerPolicy::Exit`]. It stays until it is set again (a
/// shutdown by systemd ends the daemon first). A native host always powers the machine off. Errors: -EINVAL.
pub const IOC_POWER_POLICY: u32 = iow::<u32>(0x40);
