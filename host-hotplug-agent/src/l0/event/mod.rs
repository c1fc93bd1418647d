//! What trace records tell: for operators in words, for programs as fields. The one place that has words for events.

mod fields;
#[cfg(test)]
mod tests;
mod words;

use locum_abi::TraceKind;

use super::{names, vmcs};
pub(super) use fields::fields;
pub(super) use words::words;

/// The kind in one word.
pub(super) fn kind(kind: TraceKind) -> &'static str {
    match kind {
        TraceKind::None => "none",
        TraceKind::Boot => "boot",
        TraceKind::Park => "park",
        TraceKind::Wake => "wake",
        TraceKind::MailboxRefused => "mailbox-refused",
        TraceKind::Enter => "enter",
        TraceKind::Leave => "leave",
        TraceKind::CallRefused => "hypercall-refused",
        TraceKind::Owner => "owner",
        TraceKind::HostStart => "host-start",
        TraceKind::HostDead => "host-dead",
        TraceKind::HostRetired => "host-retired",
        TraceKind::CpuTaken => "cpu-taken",
        TraceKind::PortDenied => "port-denied",
        TraceKind::PinDenied => "pin-denied",
        TraceKind::PciDenied => "pci-denied",
        TraceKind::Inject => "inject",
        TraceKind::MemoryDenied => "mem-denied",
        TraceKind::VmxFail => "vmx-fail",
        TraceKind::PowerFiltered => "power-filtered",
        TraceKind::Fault => "fault",
        TraceKind::VmcsChecked => "vmcs-checked",
        TraceKind::FieldTrapped => "field-trapped",
        TraceKind::MachineCheck => "machine-check",
        TraceKind::MachineCheckBank => "machine-check-bank",
        TraceKind::Will => "will",
        TraceKind::HostDumps => "host-dumps",
    }
}

/// The function that a value of port 0xCF8 selects.
fn pci_function(address: u32) -> String {
    names::pci_function((address >> 8) as u16)
}
