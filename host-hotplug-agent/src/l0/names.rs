//! Words for the ABI's numbers.

use locum_abi::{CpuMode, Errno, Grant, HostState, HostStatus, Op, StopReason, Will};

/// The mode as `/sys/kernel/locum/mode` writes it.
pub fn cpu_mode(raw: u32) -> &'static str {
    match CpuMode::from_raw(raw) {
        Some(CpuMode::Absent) => "absent",
        Some(CpuMode::Parked) => "parked",
        Some(CpuMode::Native) => "native",
        Some(CpuMode::Nested) => "nested",
        None => "unknown",
    }
}

/// The state of a host in one word.
pub fn host_state(raw: u32) -> &'static str {
    match HostState::from_raw(raw) {
        Some(HostState::Absent) => "absent",
        Some(HostState::Preparing) => "preparing",
        Some(HostState::Running) => "running",
        Some(HostState::Dead) => "dead",
        Some(HostState::Retired) => "retired",
        Some(HostState::Dumping) => "dumping",
        None => "unknown",
    }
}

/// Why the host of this slot is dead, in one sentence with its numbers.
pub fn stop_reason(host: &HostStatus) -> String {
    let [a, b, c] = host.detail;
    match StopReason::from_raw(host.reason) {
        Some(reason @ (StopReason::WildAccess | StopReason::Unhandled)) => {
            format!("{} (qualification {c:#x})", death(reason, [a, b], host.cpu))
        }
        Some(reason) => death(reason, [a, b], host.cpu),
        None => format!("reason {} of a later release ({a:#x}, {b:#x}, {c:#x})", host.reason),
    }
}

/// Why a host is dead, with the first two numbers that the reason has.
pub fn death(reason: StopReason, [a, b]: [u64; 2], apic_id: u32) -> String {
    match reason {
        StopReason::None => "it is not dead".to_owned(),
        StopReason::TripleFault => format!("triple fault at RIP {a:#x} on APIC {apic_id}"),
        StopReason::WildAccess => {
            format!("it touched memory that it does not own: address {b:#x} from RIP {a:#x} on APIC {apic_id}")
        }
        StopReason::Unhandled => format!(
            "{} exit that L0 does not serve at RIP {a:#x} on APIC {apic_id}",
            exit_reason(b & 0xffff)
        ),
        StopReason::EntryFailure => format!("VM entry failed at RIP {a:#x} on APIC {apic_id} (code {b:#x})"),
        StopReason::Aborted => "it was aborted".to_owned(),
        StopReason::PoweredOff => format!("it powered off or rebooted by itself on APIC {apic_id}"),
    }
}

/// Why a host is dead, in one word.
pub fn reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::None => "none",
        StopReason::TripleFault => "triple-fault",
        StopReason::WildAccess => "wild-access",
        StopReason::Unhandled => "unhandled",
        StopReason::EntryFailure => "entry-failure",
        StopReason::Aborted => "aborted",
        StopReason::PoweredOff => "powered-off",
    }
}

/// Why L0 refused.
pub fn why(errno: Errno) -> &'static str {
    match errno {
        Errno::Argument => "an argument is out of range or not aligned",
        Errno::NotOwner => "the caller does not own the resource",
        Errno::NotParked => "the CPU is not parked",
        Errno::State => "the other host is not in the state that this needs",
        Errno::NoSpace => "a table of L0 is full",
        Errno::NoVmx => "this CPU has no VMX, EPT or unrestricted guest, or the firmware disabled VMX",
        Errno::EntryFailed => "VM entry failed",
        Errno::Timeout => "CPUs of the other host did not answer INIT in time",
        Errno::Frame => "the frame is not what L0 expects",
    }
}

/// Why L0 refused, by the number it returned; `None` for 0 or an unknown one.
pub fn errno(raw: u32) -> Option<&'static str> {
    Errno::from_raw(raw).map(why)
}

/// What is or was given.
pub fn grant(grant: Grant) -> String {
    match grant {
        Grant::Cpu { apic_id } => format!("APIC {apic_id}"),
        Grant::Memory { start, end } => {
            let bytes = end.saturating_sub(start);
            let size = if bytes.is_multiple_of(1 << 20) {
                format!("{} MiB", bytes >> 20)
            } else {
                format!("{} KiB", bytes >> 10)
            };
            format!("memory {start:#x}-{end:#x} ({size})")
        }
        Grant::Pci { function } => format!("PCI function {}", pci_function(function)),
        Grant::Ports { first, last } if first == last => format!("port {first:#x}"),
        Grant::Ports { first, last } => format!("ports {first:#x}-{last:#x}"),
        Grant::Pin { gsi } => format!("IOAPIC pin {gsi}"),
    }
}

/// A function of segment 0, as sysfs names it.
pub fn pci_function(function: u16) -> String {
    let [bus, rest] = function.to_be_bytes();
    format!("0000:{bus:02x}:{:02x}.{}", rest >> 3, rest & 7)
}

/// An operation in one word.
pub fn op(op: Op) -> &'static str {
    match op {
        Op::Ping => "ping",
        Op::Leave => "leave",
        Op::Grant => "grant",
        Op::Start => "start",
        Op::Abort => "abort",
        Op::Retire => "retire",
        Op::Park => "park",
        Op::Exit => "exit",
        Op::Will => "will",
        Op::Dump => "dump",
    }
}

/// A will in one word.
pub fn will(will: Will) -> &'static str {
    match will {
        Will::Pass => "pass",
        Will::Reset => "reset",
        Will::Yield => "yield",
    }
}

/// An exception as the SDM writes it (vol. 3A, table 7-1).
pub fn exception(vector: u8) -> String {
    let name = match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "an NMI",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        20 => "#VE",
        21 => "#CP",
        _ => return format!("vector {vector}"),
    };
    name.to_owned()
}

/// Basic exit reason in words (SDM vol. 3D, appendix C); those that no host of ours causes are numbered only.
pub fn exit_reason(raw: u64) -> String {
    let name = match raw {
        0 => "exception_or_nmi",
        1 => "external_interrupt",
        2 => "triple_fault",
        3 => "init",
        4 => "sipi",
        7 => "interrupt_window",
        8 => "nmi_window",
        10 => "cpuid",
        12 => "hlt",
        13 => "invd",
        18 => "vmcall",
        19 => "vmclear",
        20 => "vmlaunch",
        21 => "vmptrld",
        22 => "vmptrst",
        23 => "vmread",
        24 => "vmresume",
        25 => "vmwrite",
        26 => "vmxoff",
        27 => "vmxon",
        28 => "cr_access",
        29 => "dr_access",
        30 => "io",
        31 => "rdmsr",
        32 => "wrmsr",
        33 => "entry_failed_guest_state",
        34 => "entry_failed_msr_load",
        48 => "ept_violation",
        49 => "ept_misconfig",
        50 => "invept",
        52 => "preemption_timer",
        53 => "invvpid",
        54 => "wbinvd",
        55 => "xsetbv",
        _ => return format!("reason_{raw}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_told_with_its_numbers() {
        let host = HostStatus {
            state: HostState::Dead as u32,
            reason: StopReason::WildAccess as u32,
            detail: [0xffff_8000, 0x10_0000, 0x2],
            generation: 1,
            cpu: 2,
        };
        let text = stop_reason(&host);
        assert!(text.contains("0x100000") && text.contains("APIC 2"), "{text}");
    }

    #[test]
    fn what_is_given_is_named_as_linux_names_it() {
        let memory = |start, end| grant(Grant::Memory { start, end });
        assert_eq!(
            memory(0x4800_0000, 0x5000_0000),
            "memory 0x48000000-0x50000000 (128 MiB)"
        );
        assert_eq!(memory(0xc002_0000, 0xc002_1000), "memory 0xc0020000-0xc0021000 (4 KiB)");
        assert_eq!(grant(Grant::Pci { function: 0x031a }), "PCI function 0000:03:03.2");
        let ports = |first, last| grant(Grant::Ports { first, last });
        assert_eq!(ports(0x2f8, 0x2ff), "ports 0x2f8-0x2ff");
        assert_eq!(ports(0x80, 0x80), "port 0x80");
    }

    #[test]
    fn numbers_of_later_releases_have_a_name_too() {
        assert_eq!(cpu_mode(99), "unknown");
        assert_eq!(exit_reason(200), "reason_200");
        assert_eq!(errno(0), None);
    }
}
