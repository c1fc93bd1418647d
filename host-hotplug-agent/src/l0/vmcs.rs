//! Names of the VMCS fields that KVM or L0 uses (SDM vol. 3D, appendix B).

/// The field in words, by its encoding if it has no name here.
pub(super) fn field(encoding: u32) -> String {
    name(encoding).unwrap_or_else(|| format!("VMCS field {encoding:#x}"))
}

/// The field's name. The upper half of a 64-bit field (bit 0 of the encoding) has that of the whole.
pub(super) fn name(encoding: u32) -> Option<String> {
    let encoding = encoding & !1;
    let named = NAMES.iter().find(|(code, _)| *code == encoding);
    named
        .map(|(_, name)| (*name).to_owned())
        .or_else(|| of_segment(encoding))
}

/// Selector, limit, access rights and base of each segment register: the encodings of a row go by twos.
fn of_segment(encoding: u32) -> Option<String> {
    const SEGMENTS: [&str; 8] = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];
    const ROWS: [(u32, &str); 4] = [
        (0x0800, "selector"),
        (0x4800, "limit"),
        (0x4814, "access rights"),
        (0x6806, "base"),
    ];
    ROWS.iter().find_map(|(first, what)| {
        let index = encoding.checked_sub(*first)? / 2;
        let segment = SEGMENTS.get(index as usize)?;
        Some(format!("guest {segment} {what}"))
    })
}

const NAMES: &[(u32, &str)] = &[
    (0x0000, "VPID"),
    (0x0002, "posted-interrupt notification vector"),
    (0x0810, "guest interrupt status"),
    (0x0812, "PML index"),
    (0x0c00, "host ES selector"),
    (0x0c02, "host CS selector"),
    (0x0c04, "host SS selector"),
    (0x0c06, "host DS selector"),
    (0x0c08, "host FS selector"),
    (0x0c0a, "host GS selector"),
    (0x0c0c, "host TR selector"),
    (0x2000, "address of I/O bitmap A"),
    (0x2002, "address of I/O bitmap B"),
    (0x2004, "address of the MSR bitmaps"),
    (0x2006, "VM-exit MSR-store address"),
    (0x2008, "VM-exit MSR-load address"),
    (0x200a, "VM-entry MSR-load address"),
    (0x200e, "PML address"),
    (0x2010, "TSC offset"),
    (0x2012, "virtual-APIC address"),
    (0x2014, "APIC-access address"),
    (0x2016, "posted-interrupt descriptor address"),
    (0x201a, "EPT pointer"),
    (0x201c, "EOI-exit bitmap 0"),
    (0x201e, "EOI-exit bitmap 1"),
    (0x2020, "EOI-exit bitmap 2"),
    (0x2022, "EOI-exit bitmap 3"),
    (0x2026, "VMREAD bitmap address"),
    (0x2028, "VMWRITE bitmap address"),
    (0x202c, "XSS-exiting bitmap"),
    (0x2032, "TSC multiplier"),
    (0x2400, "guest-physical address"),
    (0x2800, "VMCS link pointer"),
    (0x2802, "guest IA32_DEBUGCTL"),
    (0x2804, "guest IA32_PAT"),
    (0x2806, "guest IA32_EFER"),
    (0x2808, "guest IA32_PERF_GLOBAL_CTRL"),
    (0x280a, "guest PDPTE0"),
    (0x280c, "guest PDPTE1"),
    (0x280e, "guest PDPTE2"),
    (0x2810, "guest PDPTE3"),
    (0x2812, "guest IA32_BNDCFGS"),
    (0x2c00, "host IA32_PAT"),
    (0x2c02, "host IA32_EFER"),
    (0x2c04, "host IA32_PERF_GLOBAL_CTRL"),
    (0x4000, "pin-based controls"),
    (0x4002, "primary processor-based controls"),
    (0x4004, "exception bitmap"),
    (0x4006, "page-fault error-code mask"),
    (0x4008, "page-fault error-code match"),
    (0x400a, "CR3-target count"),
    (0x400c, "VM-exit controls"),
    (0x400e, "VM-exit MSR-store count"),
    (0x4010, "VM-exit MSR-load count"),
    (0x4012, "VM-entry controls"),
    (0x4014, "VM-entry MSR-load count"),
    (0x4016, "VM-entry interruption information"),
    (0x4018, "VM-entry exception error code"),
    (0x401a, "VM-entry instruction length"),
    (0x401c, "TPR threshold"),
    (0x401e, "secondary processor-based controls"),
    (0x4020, "PLE gap"),
    (0x4022, "PLE window"),
    (0x4400, "VM-instruction error"),
    (0x4402, "exit reason"),
    (0x4404, "VM-exit interruption information"),
    (0x4406, "VM-exit interruption error code"),
    (0x4408, "IDT-vectoring information"),
    (0x440a, "IDT-vectoring error code"),
    (0x440c, "VM-exit instruction length"),
    (0x440e, "VM-exit instruction information"),
    (0x4810, "guest GDTR limit"),
    (0x4812, "guest IDTR limit"),
    (0x4824, "guest interruptibility state"),
    (0x4826, "guest activity state"),
    (0x482a, "guest IA32_SYSENTER_CS"),
    (0x482e, "VMX-preemption timer"),
    (0x4c00, "host IA32_SYSENTER_CS"),
    (0x6000, "CR0 guest/host mask"),
    (0x6002, "CR4 guest/host mask"),
    (0x6004, "CR0 read shadow"),
    (0x6006, "CR4 read shadow"),
    (0x6400, "exit qualification"),
    (0x640a, "guest-linear address"),
    (0x6800, "guest CR0"),
    (0x6802, "guest CR3"),
    (0x6804, "guest CR4"),
    (0x6816, "guest GDTR base"),
    (0x6818, "guest IDTR base"),
    (0x681a, "guest DR7"),
    (0x681c, "guest RSP"),
    (0x681e, "guest RIP"),
    (0x6820, "guest RFLAGS"),
    (0x6822, "guest pending debug exceptions"),
    (0x6824, "guest IA32_SYSENTER_ESP"),
    (0x6826, "guest IA32_SYSENTER_EIP"),
    (0x6c00, "host CR0"),
    (0x6c02, "host CR3"),
    (0x6c04, "host CR4"),
    (0x6c06, "host FS base"),
    (0x6c08, "host GS base"),
    (0x6c0a, "host TR base"),
    (0x6c0c, "host GDTR base"),
    (0x6c0e, "host IDTR base"),
    (0x6c10, "host IA32_SYSENTER_ESP"),
    (0x6c12, "host IA32_SYSENTER_EIP"),
    (0x6c14, "host RSP"),
    (0x6c16, "host RIP"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_of_the_sdm() {
        assert_eq!(field(0x681e), "guest RIP");
        assert_eq!(field(0x2011), "TSC offset", "its upper half");
        assert_eq!(field(0x0802), "guest CS selector");
        assert_eq!(field(0x480e), "guest TR limit");
        assert_eq!(field(0x4814), "guest ES access rights");
        assert_eq!(field(0x6814), "guest TR base");
        assert_eq!(field(0x4ffe), "VMCS field 0x4ffe");
    }

    #[test]
    fn no_field_has_two_names() {
        let mut codes: Vec<u32> = NAMES.iter().map(|(code, _)| *code).collect();
        assert!(codes.is_sorted(), "a table that is in order is easy to check");
        codes.dedup();
        assert_eq!(codes.len(), NAMES.len());
        let twice: Vec<_> = codes.into_iter().filter(|code| of_segment(*code).is_some()).collect();
        assert_eq!(twice, [] as [u32; 0]);
    }
}
