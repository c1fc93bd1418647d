//! Events for programs.

use locum_abi::{Event, Grant};
use serde_json::{Value, json};

use super::{names, pci_function, vmcs};

/// The event as fields of a JSON object. Slots are numbers, as in `locum status`.
pub(in crate::l0) fn fields(event: Event) -> Value {
    match event {
        Event::Boot { cpus } => json!({ "cpus": cpus }),
        Event::Park { from_nested } => json!({ "from_nested": from_nested }),
        Event::Wake {
            nested,
            entry,
            zero_page,
        } => json!({ "nested": nested, "entry": entry, "zero_page": zero_page }),
        Event::MailboxRefused {
            command,
            apic_id,
            vector,
        } => json!({ "command": command, "for_apic_id": apic_id, "vector": vector }),
        Event::Enter { in_vmx, vmcs } => json!({ "in_vmx": in_vmx, "vmcs": vmcs }),
        Event::Leave {
            in_vmx,
            vmcs,
            given_back,
        } => json!({ "in_vmx": in_vmx, "vmcs": vmcs, "given_back": given_back }),
        Event::CallRefused { errno, op, argument } => {
            json!({ "errno": errno as u32, "why": names::why(errno), "op": op.map(names::op), "argument": argument })
        }
        Event::Owner { grant, to } => {
            let mut fields = resource(grant);
            fields["to"] = to.raw().into();
            fields
        }
        Event::HostStart { slot, entry, zero_page } => {
            json!({ "slot": slot.raw(), "entry": entry, "zero_page": zero_page })
        }
        Event::HostDead { slot, reason, detail } => {
            json!({ "slot": slot.raw(), "reason": names::reason(reason), "detail": detail })
        }
        Event::HostRetired { slot } | Event::HostDumps { slot } | Event::CpuTaken { slot } => {
            json!({ "slot": slot.raw() })
        }
        Event::Will { slot, will } => json!({ "slot": slot.raw(), "will": names::will(will) }),
        Event::PortDenied { port, size, write } => json!({ "port": port, "size": size, "write": write }),
        Event::PinDenied { gsi, value } => json!({ "gsi": gsi, "value": value }),
        Event::PciDenied { address, offset, write } => {
            let register = (address & 0xfc) + u32::from(offset);
            json!({ "function": pci_function(address), "register": register, "write": write })
        }
        Event::Inject { vector, error, rip } => json!({ "vector": vector, "error": error, "rip": rip }),
        Event::MemoryDenied {
            qualification,
            address,
            rip,
        } => json!({ "qualification": qualification, "address": address, "rip": rip }),
        Event::VmxFail {
            instruction,
            rflags,
            field,
        } => json!({ "instruction": instruction, "rflags": rflags, "field": field }),
        Event::PowerFiltered { port, value } => json!({ "port": port, "value": value }),
        Event::Fault { vector, rip, detail } => json!({ "vector": vector, "rip": rip, "detail": detail }),
        Event::VmcsChecked {
            same,
            field,
            vmcs,
            difference,
        } => {
            let name = field.and_then(vmcs::name);
            json!({ "same": same, "field": field, "name": name, "vmcs": vmcs, "difference": difference })
        }
        Event::FieldTrapped { field, write, times } => {
            json!({ "field": field, "name": vmcs::name(field), "write": write, "times": times })
        }
        Event::MachineCheck { to_host, status } => json!({ "to_host": to_host, "mcg_status": status }),
        Event::MachineCheckBank { bank, status, address } => {
            json!({ "bank": bank, "mci_status": status, "mci_address": address })
        }
    }
}

fn resource(grant: Grant) -> Value {
    match grant {
        Grant::Cpu { apic_id } => json!({ "resource": "cpu", "granted_apic_id": apic_id }),
        Grant::Memory { start, end } => json!({ "resource": "memory", "start": start, "end": end }),
        Grant::Pci { function } => json!({ "resource": "pci", "function": names::pci_function(function) }),
        Grant::Ports { first, last } => json!({ "resource": "ports", "first": first, "last": last }),
        Grant::Pin { gsi } => json!({ "resource": "pin", "gsi": gsi }),
    }
}
