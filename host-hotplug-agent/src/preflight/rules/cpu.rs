//! The CPUs: can they run L0, and is all that Linux uses of them known to L0?

use std::collections::BTreeSet;

use locum_abi::MAX_CPUS;
use locum_abi::vmx::{NEEDS, Need};

use super::cpus;
use crate::preflight::facts::{CpuMsrs, Facts, Msrs};
use crate::preflight::finding::{Finding, Level};

/// Features that L0 cannot do without, with the line of `/proc/cpuinfo` they are on.
const NEEDED: [&str; 3] = ["vmx", "ept", "unrestricted_guest"];
/// Features whose state L0 does not carry over, as `flags` names them while Linux uses them, and how to boot without.
/// What is newer is found in CR4, by the module ([`super::control_registers`]).
const IN_THE_WAY: [(&str, &str); 3] = [("fred", "fred=off"), ("lass", "clearcpuid=lass"), ("la57", "no5lvl")];
/// Of these, what L0 has the first host leave out by itself.
const LEFT_OUT_BY_L0: &str = "la57";
/// IA32_FEATURE_CONTROL: nobody can write it any more; VMXON is allowed outside SMX (SDM vol. 3C, 24.7).
const LOCKED: u64 = 1 << 0;
const VMX_ALLOWED: u64 = 1 << 2;
/// IA32_XAPIC_DISABLE_STATUS: the firmware locked the local APIC in x2APIC mode (SDM vol. 4, table 2-2).
const XAPIC_DISABLED: u64 = 1 << 0;
/// First APIC id that an interrupt without remapping does not reach: 255 is for all.
const APIC_IDS: u32 = 255;

/// Name of the line about controls.
const CONTROLS: &str = "VMX controls";

const VT_X: &str =
    "enable Intel VT-x in the firmware's set-up; Locum needs an Intel CPU with EPT and unrestricted guest";

/// VMX and what of it L0 needs, on every CPU.
pub fn vmx(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "CPU";
    let list = match &facts.cpus {
        Ok(list) => list,
        Err(error) => return vec![Finding::refuses(NAME, error, "mount /proc")],
    };
    let mut findings = Vec::new();
    if let Some(cpu) = list
        .iter()
        .find(|cpu| !cpu.vendor.is_empty() && cpu.vendor != "GenuineIntel")
    {
        let found = format!("it is of {}", cpu.vendor);
        return vec![Finding::refuses(NAME, found, "use a server with Intel CPUs")];
    }
    for flag in NEEDED {
        let lacking: Vec<u32> = list.iter().filter(|cpu| !cpu.has(flag)).map(|cpu| cpu.number).collect();
        // Without VMX the others are not told.
        if !lacking.is_empty() && (findings.is_empty() || flag == "vmx") {
            let who = match lacking.len() == list.len() {
                true => "the CPU lacks".to_owned(),
                false => format!("{} lack(s)", cpus(&lacking)),
            };
            let virtual_machine = list.iter().any(|cpu| cpu.has("hypervisor"));
            let remedy = match virtual_machine {
                true => format!("this is a virtual machine: have its hypervisor offer nested VMX. Else {VT_X}"),
                false => VT_X.to_owned(),
            };
            let found = format!("{who} {flag} (/proc/cpuinfo)");
            findings.push(Finding::refuses(NAME, found, remedy));
        }
    }
    if findings.is_empty() {
        let found = "vmx, ept, unrestricted_guest";
        let shadowing = list.iter().all(|cpu| cpu.has("shadow_vmcs"));
        let shadowing = if shadowing { ", shadow_vmcs" } else { "" };
        findings.push(Finding::fine(NAME, format!("{found}{shadowing}")));
    }
    if list.iter().any(|cpu| !cpu.has("constant_tsc")) {
        findings.push(Finding::hurts(
            "TSC",
            "without constant_tsc",
            "guests' clocks may go wrong when the TSC's rate changes: keep the CPU's frequency fixed",
        ));
    }
    findings
}

/// VMX locked off by the firmware.
pub fn lock(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "VMX lock";
    let all = match &facts.msrs {
        Msrs::Read(all) => all,
        // Linux clears the flag vmx where that MSR does not allow it (arch/x86/kernel/cpu/feat_ctl.c).
        Msrs::Unreadable(why) => {
            let found = match facts.every_cpu_has("vmx") {
                true => format!("Linux found VMX allowed; not looked at ({why})"),
                false => format!("could not look ({why})"),
            };
            return vec![Finding::fine(NAME, found)];
        }
    };
    let off = |control: u64| control & LOCKED != 0 && control & VMX_ALLOWED == 0;
    let locked: Vec<u32> = all
        .iter()
        .filter(|(_, msrs)| msrs.feature_control.is_some_and(off))
        .map(|(number, _)| *number)
        .collect();
    if !locked.is_empty() {
        let found = format!(
            "the firmware locked VMX off in IA32_FEATURE_CONTROL ({})",
            cpus(&locked)
        );
        return vec![Finding::refuses(NAME, found, VT_X)];
    }
    let found = match all.iter().any(|(_, msrs)| msrs.feature_control.is_none()) {
        true => "IA32_FEATURE_CONTROL is not there",
        false => "not locked off",
    };
    vec![Finding::fine(NAME, found)]
}

/// Controls that CPUs lack.
fn lacking_controls(all: &[(u32, CpuMsrs)], virtual_machine: bool) -> Option<Finding> {
    let lacks = |msrs: &CpuMsrs, index: usize, need: &Need| {
        let value = msrs.vmx.get(index).copied().flatten();
        value.is_none_or(|value| value & need.bits != need.bits)
    };
    let (mut what, mut who) = (Vec::new(), BTreeSet::new());
    for (index, need) in NEEDS.iter().enumerate() {
        let lacking = all.iter().filter(|(_, msrs)| lacks(msrs, index, need));
        let numbers: Vec<u32> = lacking.map(|(number, _)| *number).collect();
        if !numbers.is_empty() {
            what.push(need.what);
            who.extend(numbers);
        }
    }
    let who: Vec<u32> = who.into_iter().collect();
    let remedy = match virtual_machine {
        true => "have the hypervisor of this virtual machine offer them, or use a real machine",
        false => "use a CPU that has them (Westmere or later)",
    };
    (!what.is_empty()).then(|| {
        Finding::refuses(
            CONTROLS,
            format!("{}: not all of {}", cpus(&who), what.join("; ")),
            remedy,
        )
    })
}

/// What L0 needs of VMX that `/proc/cpuinfo` does not tell, and what is slow without.
pub fn capabilities(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let told = facts.every_cpu_has("vmx");
    let virtual_machine = facts.cpus.iter().flatten().any(|cpu| cpu.has("hypervisor"));
    match &facts.msrs {
        Msrs::Read(all) if told => findings.extend(lacking_controls(all, virtual_machine)),
        // Every CPU with unrestricted guest has them; a hypervisor may leave some out.
        Msrs::Unreadable(why) if told && virtual_machine => {
            let level = if facts.above_l0 { Level::Refuses } else { Level::Hurts };
            findings.push(Finding {
                level,
                ..Finding::hurts(
                    CONTROLS,
                    format!("this is a virtual machine, and could not look what of VMX its hypervisor offers ({why})"),
                    "`modprobe msr` and run as root",
                )
            });
        }
        _ => {}
    }
    // Older kernels do not name the flags of VMX one by one.
    let tells = facts.every_cpu_has("ept");
    if tells && !facts.every_cpu_has("shadow_vmcs") {
        findings.push(Finding::hurts(
            "VMCS shadowing",
            "not there (or not told by this kernel): every VMREAD and VMWRITE of KVM costs a VM exit while nested",
            "nothing need be done; refreshes cost guests more time",
        ));
    }
    findings
}

/// What the kernel uses of the CPU and L0 does not carry over.
pub fn state(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "CPU state";
    let used = |flag: &str| facts.cpus.iter().flatten().any(|cpu| cpu.has(flag));
    let mut findings = Vec::new();
    let in_use: Vec<(&str, &str)> = IN_THE_WAY.into_iter().filter(|(flag, _)| used(flag)).collect();
    let (by_l0, in_the_way): (Vec<_>, Vec<_>) = in_use
        .into_iter()
        .partition(|(flag, _)| *flag == LEFT_OUT_BY_L0 && !facts.above_l0);
    let (flags, arguments): (Vec<&str>, Vec<&str>) = in_the_way.into_iter().unzip();
    if !flags.is_empty() {
        let found = format!("{} in use, which L0 does not carry over", flags.join(", "));
        findings.push(Finding::refuses(
            NAME,
            found,
            format!("boot with {}", arguments.join(" ")),
        ));
    }
    if !by_l0.is_empty() {
        findings.push(Finding::hurts(
            NAME,
            "5-level paging (la57) in use, which L0 has its hosts leave out (no5lvl)",
            "nothing need be done below 64 TiB of RAM",
        ));
    }
    if findings.is_empty() && facts.cpus.is_ok() {
        findings.push(Finding::fine(NAME, "nothing that L0 does not carry over"));
    }
    findings
}

/// x2APIC locked on by the firmware: above L0 no host has the remapping units that Linux wants for it.
pub fn x2apic(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "x2APIC";
    let read = match &facts.msrs {
        Msrs::Unreadable(why) => {
            // Only a CPU with IA32_ARCH_CAPABILITIES can have it.
            return match facts.cpus.iter().flatten().any(|cpu| cpu.has("arch_capabilities")) {
                true => vec![Finding::hurts(
                    NAME,
                    format!("could not look whether the firmware locked it on ({why})"),
                    "`modprobe msr` and run as root",
                )],
                false => Vec::new(),
            };
        }
        Msrs::Read(all) => all,
    };
    let locked = read
        .iter()
        .any(|(_, msrs)| msrs.xapic_disable_status.is_some_and(|s| s & XAPIC_DISABLED != 0));
    if locked {
        let dmar = if facts.remapping.dmar || facts.above_l0 {
            ", and L0 hides the DMAR table"
        } else {
            ""
        };
        let found = format!(
            "the firmware locked it on (MSR 0xbd){dmar}: Linux cannot leave it, and does not use it without interrupt remapping"
        );
        let remedy = "turn x2APIC, or its lock, off in the firmware's set-up";
        return vec![Finding::refuses(NAME, found, remedy)];
    }
    vec![Finding::fine(NAME, "not locked on")]
}

/// How many CPUs L0 leaves out.
pub fn number(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "number of CPUs";
    // A table that cannot be read has a finding of its own.
    let Ok(madt) = &facts.madt else { return Vec::new() };
    let total = madt.cpus.len();
    let reachable = madt.cpus.iter().filter(|&&id| id < APIC_IDS).count();
    let used = reachable.min(MAX_CPUS);
    if used < total {
        let found = format!(
            "{total}, of which L0 leaves {} out (it takes {MAX_CPUS} with APIC ids below {APIC_IDS})",
            total - used
        );
        let remedy =
            "turn Hyper-Threading or sub-NUMA APIC numbering off in the firmware's set-up, or do without these CPUs";
        return vec![Finding::hurts(NAME, found, remedy)];
    }
    if total < 2 {
        let remedy = "use a machine with at least two CPUs: a successor boots beside this host";
        return vec![Finding::refuses(NAME, format!("{total}"), remedy)];
    }
    vec![Finding::fine(NAME, format!("{total}"))]
}
