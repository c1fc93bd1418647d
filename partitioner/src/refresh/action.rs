//! What the agent is told to do. Every action is all or nothing: one that failed has left nothing behind.

use alloc::string::String;
use core::fmt;

use crate::{ApicId, MemRange, Owner, PciAddress, Transfer};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Action {
    /// Take a memory block off Linux (`offline_and_remove_memory`).
    RemoveMemory {
        /// The block.
        range: MemRange,
        /// Whether it is online now.
        online: bool,
    },
    /// Clear a memory block and give it to Linux (`add_memory_driver_managed`), and online it as movable if `online`.
    AddMemory {
        /// The block.
        range: MemRange,
        /// Whether to online it.
        online: bool,
    },
    /// Take a CPU off Linux; it parks in L0.
    OfflineCpu(ApicId),
    /// Let Linux start a parked CPU.
    OnlineCpu(ApicId),
    /// Take a PCI function off Linux (`remove` in sysfs).
    RemovePci(PciAddress),
    /// Rescan for a PCI function until it is there.
    AddPci(PciAddress),
    /// Copy kernel, initramfs, zero page and tables to the successor's memory.
    LoadSuccessor,
    /// Clear the successor's memory.
    WipeSuccessor,
    /// Make this CPU nested.
    EnterNested(ApicId),
    /// Make this CPU native.
    LeaveNested(ApicId),
    /// Have L0 change the owner of a resource.
    Transfer(Transfer),
    /// Have L0 start the successor's boot CPU.
    StartSuccessor,
    /// Have L0 take all the successor's CPUs from it, by INIT if need be.
    StopSuccessor,
    /// Wait until the successor's agent answers; the time-out is the agent's, and a failure.
    AwaitSuccessor,
    /// Hand a guest over to the successor. A failure leaves it running in the incumbent.
    MoveGuest(String),
    /// Take a guest back from the successor. A failure leaves it running there.
    ReturnGuest(String),
    /// Send this state to the successor's agent and wait until it has it
    /// ([`Refresh::take_over`](super::Refresh::take_over)).
    Entrust,
    /// Power off the incumbent. Done if ever this returns.
    PowerOff,
    /// Wait until L0 says that the incumbent is gone; the time-out is the agent's, and a failure.
    AwaitIncumbentGone,
    /// Have L0 take all the incumbent's CPUs from it by INIT.
    TakeIncumbent,
}

/// Something that did not come back, and does not keep the rest from going on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Loss {
    /// A memory block that the host could not add.
    Memory(MemRange),
    /// A CPU that the host could not bring online.
    Cpu(ApicId),
    /// A PCI function that did not appear.
    Function(PciAddress),
    /// A CPU that stays nested.
    Nested(ApicId),
    /// The successor's memory was not cleared at once.
    Unwiped,
    /// A guest that died with the successor.
    Guest(String),
    /// The dump of a host that panicked, cut off because it took too long.
    Dump,
    /// A guest that died with the incumbent.
    Left(String),
    /// A guest whose QEMU in the successor had stopped it when the incumbent died.
    Stopped(String),
}

impl Action {
    /// What undoes it; `None` if it changes nothing that needs undoing, or nothing can.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        Some(match self {
            Self::RemoveMemory { range, online } => Self::AddMemory {
                range: *range,
                online: *online,
            },
            Self::OfflineCpu(apic) => Self::OnlineCpu(*apic),
            Self::RemovePci(address) => Self::AddPci(*address),
            Self::LoadSuccessor => Self::WipeSuccessor,
            Self::EnterNested(apic) => Self::LeaveNested(*apic),
            Self::Transfer(transfer) => Self::Transfer(transfer.reversed()),
            Self::StartSuccessor => Self::StopSuccessor,
            Self::MoveGuest(name) => Self::ReturnGuest(name.clone()),
            // The successor's agent may have taken over, but it acts only when the incumbent is gone.
            Self::AwaitSuccessor | Self::Entrust => return None,
            // Not on an incumbent's list: undoing actions, the successor's, and the end.
            Self::AddMemory { .. }
            | Self::OnlineCpu(_)
            | Self::AddPci(_)
            | Self::WipeSuccessor
            | Self::LeaveNested(_)
            | Self::StopSuccessor
            | Self::ReturnGuest(_)
            | Self::PowerOff
            | Self::AwaitIncumbentGone
            | Self::TakeIncumbent => return None,
        })
    }

    /// What is lost if it fails where there is no way back. `None`: nothing may go on without it, since a guest, or
    /// memory in use by another host, depends on it.
    pub(super) fn loss(&self) -> Option<Loss> {
        match self {
            Self::AddMemory { range, .. } => Some(Loss::Memory(*range)),
            Self::OnlineCpu(apic) => Some(Loss::Cpu(*apic)),
            Self::AddPci(address) => Some(Loss::Function(*address)),
            Self::LeaveNested(apic) => Some(Loss::Nested(*apic)),
            Self::WipeSuccessor => Some(Loss::Unwiped),
            _ => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveMemory { range, .. } => write!(f, "remove memory {range}"),
            Self::AddMemory { range, .. } => write!(f, "add memory {range}"),
            Self::OfflineCpu(apic) => write!(f, "offline the CPU with {apic}"),
            Self::OnlineCpu(apic) => write!(f, "online the CPU with {apic}"),
            Self::RemovePci(address) => write!(f, "remove PCI function {address}"),
            Self::AddPci(address) => write!(f, "find PCI function {address}"),
            Self::LoadSuccessor => f.write_str("load the successor's image"),
            Self::WipeSuccessor => f.write_str("clear the successor's memory"),
            Self::EnterNested(apic) => write!(f, "enter nested on the CPU with {apic}"),
            Self::LeaveNested(apic) => write!(f, "leave nested on the CPU with {apic}"),
            Self::Transfer(Transfer {
                resource,
                to: Owner::Nobody,
                ..
            }) => write!(f, "leave {resource} to nobody"),
            Self::Transfer(Transfer { resource, to, .. }) => write!(f, "give {resource} to {to}"),
            Self::StartSuccessor => f.write_str("start the successor"),
            Self::StopSuccessor => f.write_str("stop the successor"),
            Self::AwaitSuccessor => f.write_str("wait for the successor's agent"),
            Self::MoveGuest(name) => write!(f, "hand guest {name} over"),
            Self::ReturnGuest(name) => write!(f, "take guest {name} back"),
            Self::Entrust => f.write_str("put the successor in charge"),
            Self::PowerOff => f.write_str("power off the incumbent"),
            Self::AwaitIncumbentGone => f.write_str("wait until the incumbent is gone"),
            Self::TakeIncumbent => f.write_str("take the incumbent's CPUs by force"),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(range) => write!(
                f,
                "memory {range} is not in use: the next refresh can give it to its successor"
            ),
            Self::Cpu(apic) => write!(f, "the CPU with {apic} is offline: bring it online by hand"),
            Self::Function(address) => write!(f, "PCI function {address} is missing: `echo 1 > /sys/bus/pci/rescan`"),
            Self::Nested(apic) => write!(
                f,
                "the CPU with {apic} is still nested, and slower: offline and online it"
            ),
            Self::Unwiped => f.write_str(
                "the successor's memory was not cleared at once: each block is cleared before it is used again",
            ),
            Self::Guest(name) => write!(f, "guest {name} died with the successor: start it anew"),
            Self::Dump => f.write_str(
                "the crash dump of the host that panicked was cut off, for it took longer than `timeouts.dump`: allow it more",
            ),
            Self::Left(name) => write!(f, "guest {name} died with the incumbent: start it anew"),
            Self::Stopped(name) => write!(
                f,
                "guest {name} was stopped when the incumbent died: if you had paused it, let it go on; if it was on its way \
                 back, it may have run there, so end its QEMU and start it anew"
            ),
        }
    }
}
