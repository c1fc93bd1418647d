//! What a nested host may ask L0 for: `VMCALL` at CPL 0 with RAX = [`Op`], RDI, RSI, RDX = arguments.
//!
//! RAX returns 0 or the negative of an [`Errno`]; no other register changes. A `VMCALL` with an RAX that is not an
//! [`Op`], or at another CPL, raises #UD, as it would without L0. A native host cannot call (L0 is dormant): its only
//! way in is the frame (see [`crate::frame`]).

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
    /// Give a resource of the caller to the other slot. RDI: [`ResourceKind`], RSI, RDX: as the kind says.
    Grant = OP_MAGIC | 2,
    /// Start the host of the other slot, to which at least one parked CPU and memory were granted. RDI: physical
    /// address of the 64-bit entry point; RSI: of the zero page, both in granted memory; RDX: APIC id of its boot CPU.
    Start = OP_MAGIC | 3,
    /// Stop the host of the other slot, take its CPUs (by INIT if they run) and give all it has back to the caller.
    Abort = OP_MAGIC | 4,
    /// The caller ends: all it has goes to the other slot, which must be running. Its other CPUs must be parked. Does
    /// not return on success: this CPU parks, owned by the other slot.
    Retire = OP_MAGIC | 5,
    /// Park this CPU (used by the reset vector). Does not return.
    Park = OP_MAGIC | 6,
    /// The caller ends by itself (power-off, reboot, panic) and asks to be declared dead. Does not return where
    /// another host runs; where none does, refused with [`Errno::State`] and the host uses the machine's own ports.
    Exit = OP_MAGIC | 7,
}

impl Op {
    /// The operation of a raw RAX.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        Some(match raw.wrapping_sub(OP_MAGIC) {
            0 => Self::Ping,
            1 => Self::Leave,
            2 => Self::Grant,
            3 => Self::Start,
            4 => Self::Abort,
            5 => Self::Retire,
            6 => Self::Park,
            7 => Self::Exit,
            _ => return None,
        })
    }
}

/// What [`Op::Grant`] gives.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// A parked CPU. `b`: APIC id.
    Cpu = 0,
    /// Memory or MMIO. `b`: first byte, `c`: bytes, both multiples of 4 KiB.
    Memory = 1,
    /// A PCI function. `b`: bus << 8 | device << 3 | function, `c`: 0.
    Pci = 2,
    /// I/O ports. `b`: first port, `c`: number.
    Ports = 3,
    /// An interrupt pin. `b`: GSI, `c`: 0.
    Pin = 4,
}

impl ResourceKind {
    /// The kind of a raw RDI.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        Some(match raw {
            0 => Self::Cpu,
            1 => Self::Memory,
            2 => Self::Pci,
            3 => Self::Ports,
            4 => Self::Pin,
            _ => return None,
        })
    }
}

/// Why L0 refused. RAX returns the negative.
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
    /// This CPU is nested already.
    Nested = 7,
    /// VM entry failed; the frame's `detail` has the VM-instruction error or exit reason.
    EntryFailed = 8,
    /// CPUs of the other host did not answer INIT in time.
    Timeout = 9,
    /// The frame is not what L0 expects (magic, CPU, or not mapped where it says).
    Frame = 10,
}

impl Errno {
    /// The error of a raw code.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Argument,
            2 => Self::NotOwner,
            3 => Self::NotParked,
            4 => Self::State,
            5 => Self::NoSpace,
            6 => Self::NoVmx,
            7 => Self::Nested,
            8 => Self::EntryFailed,
            9 => Self::Timeout,
            10 => Self::Frame,
            _ => return None,
        })
    }
}
