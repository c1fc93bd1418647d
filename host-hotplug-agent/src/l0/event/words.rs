//! Events for operators.

use locum_abi::{Event, Slot, Will};

use super::{names, pci_function, vmcs};

const PAGE_FAULT: u8 = 14;
/// Of IA32_MCi_STATUS, UC: the error was not corrected (SDM vol. 3B, "IA32_MCi_STATUS MSRS").
const MCI_STATUS_UC: u64 = 1 << 61;

/// The event in words, told by the CPU `apic_id`.
pub(in crate::l0) fn words(event: Event, apic_id: u16) -> String {
    match event {
        Event::Boot { cpus } => format!("L0 booted on {cpus} CPUs"),
        Event::Park { from_nested: true } => "parked, from nested mode".to_owned(),
        Event::Park { from_nested: false } => "parked".to_owned(),
        Event::Wake {
            nested,
            entry,
            zero_page,
        } => format!(
            "woken {} at {entry:#x}{}",
            if nested { "nested" } else { "native" },
            at_zero_page(zero_page)
        ),
        Event::MailboxRefused {
            command,
            apic_id,
            vector,
        } => format!(
            "refused {}: APIC {apic_id} is not this host's, or not parked",
            mailbox_command(command, vector)
        ),
        Event::Enter { in_vmx, vmcs } => format!("became nested; {}", vmx(in_vmx, vmcs)),
        Event::Leave {
            in_vmx,
            vmcs,
            given_back,
        } => format!("became native; {}, {given_back} VMCSs given back", vmx(in_vmx, vmcs)),
        Event::CallRefused {
            errno,
            op: Some(op),
            argument,
        } => format!(
            "refused {}: {} (first argument {argument:#x})",
            names::op(op),
            names::why(errno)
        ),
        Event::CallRefused {
            errno,
            op: None,
            argument,
        } => format!("refused to enter: {} (frame at {argument:#x})", names::why(errno)),
        Event::Owner { grant, to } => format!("{} is now {}'s", names::grant(grant), host(to)),
        Event::HostStart { slot, entry, zero_page } => {
            format!("{} starts at {entry:#x}{}", host(slot), at_zero_page(zero_page))
        }
        Event::HostDead { slot, reason, detail } => {
            format!("{} died: {}", host(slot), names::death(reason, detail, apic_id.into()))
        }
        Event::HostRetired { slot } => format!("{} retired", host(slot)),
        Event::HostDumps { slot } => format!("{} has panicked and writes a dump", host(slot)),
        Event::Will { slot, will } => match will {
            Will::Pass => format!("if {} dies, {} goes on", host(slot), host(slot.other())),
            Will::Reset => format!("if {} dies, the machine is reset", host(slot)),
            Will::Yield => format!("{} may be taken by {}", host(slot), host(slot.other())),
        },
        Event::CpuTaken { slot } => format!("taken from {}, which is dead", host(slot)),
        Event::PortDenied { port, size, write } => match write {
            Some(value) => format!("denied OUT {port:#x} ({}, {value:#x})", bytes(size)),
            None => format!("denied IN {port:#x} ({})", bytes(size)),
        },
        Event::PinDenied { gsi, value } => format!("denied a write to IOAPIC pin {gsi} (low word {value:#x})"),
        Event::PciDenied { address, offset, write } => {
            let register = (address & 0xfc) + u32::from(offset);
            let place = format!("PCI function {}, register {register:#x}", pci_function(address));
            match write {
                Some(value) => format!("denied a write to {place} ({value:#x})"),
                None => format!("denied a read of {place}"),
            }
        }
        Event::Inject { vector, error, rip } => format!(
            "injected {} into the host at RIP {rip:#x} (error code {error:#x})",
            names::exception(vector)
        ),
        Event::MemoryDenied {
            qualification,
            address,
            rip,
        } => format!(
            "denied {} memory at {address:#x} from RIP {rip:#x}",
            match qualification & 7 {
                access if access & 2 != 0 => "a write to",
                access if access & 4 != 0 => "an instruction fetch from",
                _ => "a read of",
            }
        ),
        Event::VmxFail {
            instruction,
            rflags,
            field,
        } => format!(
            "{} of {} by L0 failed (RFLAGS {rflags:#x}): a bug of L0's, please report it",
            match instruction {
                23 => "VMREAD".to_owned(),
                25 => "VMWRITE".to_owned(),
                other => format!("instruction {other}"),
            },
            vmcs::field(field as u32)
        ),
        Event::PowerFiltered { port, value } => {
            format!("kept OUT {port:#x} ({value:#x}), a power-off or reset, from the machine")
        }
        Event::Fault { vector, rip, detail } => format!(
            "L0 took {} at RIP {rip:#x} ({} {detail:#x}): a bug of L0's, please report it",
            names::exception(vector),
            if vector == PAGE_FAULT { "CR2" } else { "error code" }
        ),
        Event::VmcsChecked { same: true, vmcs, .. } => format!("VMCS {vmcs:#x} was given back as it was"),
        Event::VmcsChecked {
            same: false,
            field: Some(field),
            vmcs,
            difference,
        } => format!(
            "VMCS {vmcs:#x} was given back changed: {} by {difference:#x}",
            vmcs::field(field)
        ),
        Event::VmcsChecked {
            same: false,
            field: None,
            vmcs,
            ..
        } => format!("VMCS {vmcs:#x} was given back with several fields changed"),
        Event::FieldTrapped { field, write, times } => format!(
            "{} of {} exited {times} times so far",
            if write { "VMWRITE" } else { "VMREAD" },
            vmcs::field(field)
        ),
        Event::MachineCheck { to_host, status } => format!(
            "a machine check came while L0 ran (IA32_MCG_STATUS {status:#x}); {}",
            if to_host {
                "handed to the host"
            } else {
                "answered, no host ran here"
            }
        ),
        Event::MachineCheckBank { bank, status, address } => format!(
            "bank {bank} says {} error: IA32_MC{bank}_STATUS {status:#x}, address {address:#x}",
            if status & MCI_STATUS_UC != 0 {
                "an uncorrected"
            } else {
                "a corrected"
            }
        ),
    }
}

fn host(slot: Slot) -> &'static str {
    match slot {
        Slot::Even => "the even host",
        Slot::Odd => "the odd host",
    }
}

fn at_zero_page(address: u64) -> String {
    match address {
        0 => String::new(),
        address => format!(", zero page at {address:#x}"),
    }
}

fn mailbox_command(command: u16, vector: u64) -> String {
    match command {
        locum_abi::mailbox::WAKEUP => format!("a mailbox wakeup at {vector:#x}"),
        locum_abi::mailbox::TEST => "a mailbox test".to_owned(),
        command => format!("mailbox command {command}"),
    }
}

fn vmx(in_vmx: bool, vmcs: Option<u64>) -> String {
    match (in_vmx, vmcs) {
        (false, _) => "the host is not in VMX operation".to_owned(),
        (true, None) => "the host has no current VMCS".to_owned(),
        (true, Some(vmcs)) => format!("the host's current VMCS is {vmcs:#x}"),
    }
}

fn bytes(size: u8) -> String {
    match size {
        1 => "1 byte".to_owned(),
        size => format!("{size} bytes"),
    }
}
