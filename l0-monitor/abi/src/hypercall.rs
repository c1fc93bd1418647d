//! What a nested host may ask L0 for: `VMCALL` at CPL 0 with RAX = [`Op`], RDI, RSI, RDX = arguments.
//!
//! RAX returns 0 or the negative of an [`Errno`]; no other register changes. A `VMCALL` with an RAX that is not an
//! [`Op`] of this L0, or at another CPL, ends as it would without L0 (#UD, #GP or VMfail: SDM vol. 3D, VMCALL): who asks for
//! what an older L0 may not know must be prepared for that. A native host cannot call (L0 is dormant): its only way in is
//! the frame (see [`crate::frame`]).

use crate::Grant;
use crate::raw::from_raw;

/// Upper half of RAX of every operation ("LOCM"), so that a stray VMCALL is not taken for one of ours.
pub const OP_MAGIC: u64 = 0x4c4f_434d_0000_0000;

/// Operations.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Does nothing: 0. Tells a module that L0 is above it.
    Ping = OP_MAGIC,
    /// Give this CPU back to the host, in VMX root. RDI: address of the CPU's [`crate::Frame`]. On success execution
    /// goes on at the frame's `rip`; on refusal after the VMCALL.
    Leave = OP_MAGIC | 1,
    /// Give a resource of the caller to the other slot. RDI: [`crate::ResourceKind`], RSI, RDX: as the kind says.
    Grant = OP_MAGIC | 2,
    /// Start the host of the other slot, to which at least one parked CPU and memory were granted. RDI: physical
    /// address of the 64-bit entry point; RSI: of the zero page, both in granted memory; RDX: APIC id of its boot CPU.
    Start = OP_MAGIC | 3,
    /// Stop the host of the other slot, take its CPUs (by INIT if they run) and give all it has to the caller. Refused
    /// with [`Errno::State`] where the other host reigns, lives and has not left [`Will::Yield`].
    Abort = OP_MAGIC | 4,
    /// The caller ends: all it has goes to the other slot, which must be running. Its other CPUs must be parked. Does
    /// not return on success: this CPU parks, owned by the other slot.
    Retire = OP_MAGIC | 5,
    /// Park this CPU (used by the reset vector). Does not return.
    Park = OP_MAGIC | 6,
    /// The caller ends by itself (power-off, reboot, panic) and asks to be declared dead. RDI, RSI, RDX: told in
    /// [`crate::HostStatus::detail`]. Does not return where another host goes on (see [`Will`]); where none does, refused
    /// with [`Errno::State`] and the host uses the machine's own ports.
    Exit = OP_MAGIC | 7,
    /// What becomes of the machine when the caller, which reigns, cannot go on. RDI: a [`Will`]. It holds until the next
    /// one, or until one of two hosts is gone.
    Will = OP_MAGIC | 8,
    /// The caller has panicked and is about to jump to its crash kernel, which writes a dump: it is
    /// [`crate::HostState::Dumping`] from here on. Refused with [`Errno::State`] where no other host runs.
    Dump = OP_MAGIC | 9,
}

from_raw!(Op: u64 { Ping, Leave, Grant, Start, Abort, Retire, Park, Exit, Will, Dump });

/// What becomes of the machine when the reigning host cannot go on while another one runs.
#[repr(u64)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Will {
    /// If it dies, the other host goes on, and may take what it had by [`Op::Abort`]. So it is without a will.
    #[default]
    Pass = 0,
    /// If it dies, the machine is reset, as if there were no other host: that one is not ready to go on without it.
    Reset = 1,
    /// As [`Will::Pass`], and the other host may take it even while it lives: no guest runs in it any more.
    Yield = 2,
}

from_raw!(Will: u64 { Pass, Reset, Yield });

/// An operation with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Op::Ping`].
    Ping,
    /// [`Op::Leave`].
    Leave {
        /// Address of the frame, for the host and under L0's page tables.
        frame: u64,
    },
    /// [`Op::Grant`].
    Grant(Grant),
    /// [`Op::Start`].
    Start {
        /// Physical address of the 64-bit entry point.
        entry: u64,
        /// Physical address of the zero page.
        zero_page: u64,
        /// APIC id of the boot CPU.
        apic_id: u32,
    },
    /// [`Op::Abort`].
    Abort,
    /// [`Op::Retire`].
    Retire,
    /// [`Op::Park`].
    Park,
    /// [`Op::Exit`].
    Exit {
        /// What the status will tell.
        detail: [u64; 3],
    },
    /// [`Op::Will`].
    Will(Will),
    /// [`Op::Dump`].
    Dump,
}

impl Call {
    /// Checks the arguments of an operation.
    ///
    /// # Errors
    /// [`Errno::Argument`].
    pub fn decode(op: Op, arguments: [u64; 3]) -> Result<Self, Errno> {
        let [a, b, c] = arguments;
        Ok(match op {
            Op::Ping => Self::Ping,
            Op::Leave => Self::Leave { frame: a },
            Op::Grant => Self::Grant(Grant::decode(arguments)?),
            Op::Start => Self::Start {
                entry: a,
                zero_page: b,
                apic_id: u32::try_from(c).map_err(|_| Errno::Argument)?,
            },
            Op::Abort => Self::Abort,
            Op::Retire => Self::Retire,
            Op::Park => Self::Park,
            Op::Exit => Self::Exit { detail: arguments },
            Op::Dump => Self::Dump,
            Op::Will => Self::Will(Will::from_raw(a).ok_or(Errno::Argument)?),
        })
    }
}

/// Why L0 refused. RAX returns the negative. Numbers are never used again: 7 was one that no L0 ever returned.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// An argument is out of range, not aligned, or reserved and not zero.
    Argument = 1,
    /// The caller does not own the resource.
    NotOwner = 2,
    /// The CPU is not parked.
    NotParked = 3,
    /// The host in the other slot is not in the state the operation needs.
    State = 4,
    /// A table of L0 is full.
    NoSpace = 5,
    /// The CPU can't run L0: no VMX, EPT or unrestricted guest, or disabled in IA32_FEATURE_CONTROL.
    NoVmx = 6,
    /// VM entry failed.
    EntryFailed = 8,
    /// CPUs of the other host did not answer INIT in time.
    Timeout = 9,
    /// The frame is not what L0 expects (magic, CPU, or not mapped where it says).
    Frame = 10,
}

from_raw!(Errno: u32 { Argument, NotOwner, NotParked, State, NoSpace, NoVmx, EntryFailed, Timeout, Frame });

impl Errno {
    /// What the call returns in RAX.
    #[must_use]
    pub const fn rax(self) -> u64 {
        -(self as i64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_numbers_are_operations() {
        for op in Op::ALL {
            assert_eq!(Op::from_raw(*op as u64), Some(*op));
        }
        assert_eq!(Op::from_raw(0), None);
        assert_eq!(Op::from_raw(OP_MAGIC | 10), None);
        assert_eq!(Op::from_raw(OP_MAGIC | 1 << 63), None);
    }

    #[test]
    fn arguments_are_taken_apart() {
        let wide = [0x10_0000, 0x1000, 1 << 32];
        assert_eq!(Call::decode(Op::Start, wide), Err(Errno::Argument));
        assert_eq!(Call::decode(Op::Grant, wide), Err(Errno::Argument));
        let start = Call::Start {
            entry: 0x10_0000,
            zero_page: 0x1000,
            apic_id: 3,
        };
        assert_eq!(Call::decode(Op::Start, [0x10_0000, 0x1000, 3]), Ok(start));
        for will in Will::ALL {
            assert_eq!(Call::decode(Op::Will, [*will as u64, 0, 0]), Ok(Call::Will(*will)));
        }
        assert_eq!(Call::decode(Op::Will, [3, 0, 0]), Err(Errno::Argument));
        assert_eq!(Errno::Frame.rax(), (-10_i64) as u64);
    }
}
