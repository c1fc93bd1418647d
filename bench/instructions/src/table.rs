//! The table: all that exit from VMX non-root operation always (SDM vol. 3C, 27.1.2), those that may (27.1.3), those that
//! are undefined there unless a control enables them, and some that never exit, to compare with.

use crate::Outcome::{GeneralProtection, InvalidOpcode, Passes};
use crate::{Case, DATA, Native, Outcome, PAGE};

const fn case(name: &'static str, code: &'static [u8]) -> Case {
    Case {
        name,
        code,
        registers: [PAGE + DATA, 0, 0],
        varies: &[],
        in_kernel: true,
        native: None,
    }
}

const fn with(name: &'static str, code: &'static [u8], registers: [u64; 3]) -> Case {
    Case {
        registers,
        ..case(name, code)
    }
}

const fn varying(name: &'static str, code: &'static [u8], varies: &'static [&'static str]) -> Case {
    Case {
        varies,
        ..case(name, code)
    }
}

/// A VMX instruction that its CPU has.
const fn vmx(name: &'static str, code: &'static [u8]) -> Case {
    Case {
        native: Some(Native {
            kernel: Passes,
            user: GeneralProtection,
            only_64_bit: true,
        }),
        ..case(name, code)
    }
}

impl Case {
    /// What comes of it at CPL 0 and 3, in both modes.
    const fn is(self, kernel: Outcome, user: Outcome) -> Self {
        Self {
            native: Some(Native {
                kernel,
                user,
                only_64_bit: false,
            }),
            ..self
        }
    }

    /// It would be the end of a kernel, or of its state, or it ends in an exception that a kernel does not hand on.
    const fn in_user_space_only(self) -> Self {
        Self {
            in_kernel: false,
            ..self
        }
    }
}

/// All of them. Memory operands are at [EAX], which is RAX's lower half.
pub const TABLE: &[Case] = &[
    case("nop", &[0x90]).is(Passes, Passes),
    case("inc", &[0x40, 0x90]),
    // What exits always.
    with("cpuid-0", &[0x0f, 0xa2], [0, 0, 0]).is(Passes, Passes),
    with("cpuid-1", &[0x0f, 0xa2], [1, 0, 0]).is(Passes, Passes),
    with("cpuid-7", &[0x0f, 0xa2], [7, 0, 0]).is(Passes, Passes),
    with("cpuid-7-1", &[0x0f, 0xa2], [7, 1, 0]).is(Passes, Passes),
    with("cpuid-d", &[0x0f, 0xa2], [0xd, 0, 0]).is(Passes, Passes),
    with("cpuid-d-1", &[0x0f, 0xa2], [0xd, 1, 0]).is(Passes, Passes),
    with("cpuid-ext", &[0x0f, 0xa2], [0x8000_0001, 0, 0]).is(Passes, Passes),
    with("cpuid-beyond", &[0x0f, 0xa2], [0x4fff_ffff, 0, 0]).is(Passes, Passes),
    case("getsec", &[0x0f, 0x37]).is(InvalidOpcode, InvalidOpcode),
    case("invd", &[0x0f, 0x08])
        .is(Passes, GeneralProtection)
        .in_user_space_only(),
    with("xsetbv", &[0x0f, 0x01, 0xd1], [7, 0, 0])
        .is(Passes, GeneralProtection)
        .in_user_space_only(),
    vmx("invept", &[0x66, 0x0f, 0x38, 0x80, 0x00]),
    vmx("invvpid", &[0x66, 0x0f, 0x38, 0x81, 0x00]),
    vmx("vmcall", &[0x0f, 0x01, 0xc1]),
    with("vmcall-ping", &[0x0f, 0x01, 0xc1], [0x4c4f_434d_0000_0000, 0, 0]).in_user_space_only(),
    vmx("vmclear", &[0x66, 0x0f, 0xc7, 0x30]),
    vmx("vmlaunch", &[0x0f, 0x01, 0xc2]),
    vmx("vmptrld", &[0x0f, 0xc7, 0x30]),
    vmx("vmptrst", &[0x0f, 0xc7, 0x38]),
    vmx("vmread", &[0x0f, 0x78, 0xc1]),
    vmx("vmread-memory", &[0x0f, 0x78, 0x08]),
    vmx("vmresume", &[0x0f, 0x01, 0xc3]),
    vmx("vmwrite", &[0x0f, 0x79, 0xc1]),
    vmx("vmxoff", &[0x0f, 0x01, 0xc4]).in_user_space_only(),
    vmx("vmxon", &[0xf3, 0x0f, 0xc7, 0x30]),
    case("vmfunc", &[0x0f, 0x01, 0xd4]).is(InvalidOpcode, InvalidOpcode),
    // What may exit.
    case("clts", &[0x0f, 0x06]),
    case("enclu", &[0x0f, 0x01, 0xd7]),
    case("encls", &[0x0f, 0x01, 0xcf]),
    case("hlt", &[0xf4]).is(Passes, GeneralProtection).in_user_space_only(),
    Case {
        varies: &["rax"],
        ..with("in", &[0xec], [0, 0, 0x80])
    },
    Case {
        varies: &["rax"],
        ..with("in-imm", &[0xe4, 0x80], [0, 0, 0])
    },
    with("ins", &[0x6c], [0, 0, 0x80]),
    with("out", &[0xee], [0, 0, 0x80]),
    with("outs", &[0x6e], [0, 0, 0x80]),
    with("out-pci", &[0xef], [0x8000_0000, 0, 0xcf8]),
    case("invlpg", &[0x0f, 0x01, 0x38]),
    case("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x08]),
    case("lgdt", &[0x0f, 0x01, 0x10]).in_user_space_only(),
    case("lidt", &[0x0f, 0x01, 0x18]).in_user_space_only(),
    case("lldt", &[0x0f, 0x00, 0xd1]),
    case("ltr", &[0x0f, 0x00, 0xd9]),
    case("sgdt", &[0x0f, 0x01, 0x00, 0x8b, 0x08]),
    case("sidt", &[0x0f, 0x01, 0x08, 0x8b, 0x08]),
    case("sldt", &[0x0f, 0x00, 0xc1]),
    case("str", &[0x0f, 0x00, 0xc9]),
    case("smsw", &[0x0f, 0x01, 0xe1]),
    case("lmsw", &[0x0f, 0x01, 0xf1]),
    case("loadiwkey", &[0xf3, 0x0f, 0x38, 0xdc, 0xc1]),
    case("monitor", &[0x0f, 0x01, 0xc8]),
    case("mwait", &[0x0f, 0x01, 0xc9]).in_user_space_only(),
    case("mov-from-cr0", &[0x0f, 0x20, 0xc1]).is(Passes, GeneralProtection),
    case("mov-to-cr0", &[0x0f, 0x22, 0xc1]).is(GeneralProtection, GeneralProtection),
    varying("mov-from-cr3", &[0x0f, 0x20, 0xd9], &["rcx"]),
    case("mov-to-cr3", &[0x0f, 0x22, 0xd9]).in_user_space_only(),
    case("mov-from-cr4", &[0x0f, 0x20, 0xe1]).is(Passes, GeneralProtection),
    case("mov-to-cr4", &[0x0f, 0x22, 0xe1]).is(GeneralProtection, GeneralProtection),
    case("mov-from-dr7", &[0x0f, 0x21, 0xf9]),
    case("mov-to-dr7", &[0x0f, 0x23, 0xf9]),
    case("pause", &[0xf3, 0x90]),
    case("pconfig", &[0x0f, 0x01, 0xc5]),
    case("rdmsr", &[0x0f, 0x32]),
    // What comes of it is not told: to the lab's emulator an MSR that there is not holds 0.
    with("rdmsr-high", &[0x0f, 0x32], [0, 0x4000_0000, 0]),
    Case {
        varies: &["rax", "rdx"],
        ..with("rdpmc", &[0x0f, 0x33], [0, 0, 0])
    },
    varying("rdrand", &[0x0f, 0xc7, 0xf1], &["rcx"]),
    varying("rdseed", &[0x0f, 0xc7, 0xf9], &["rcx"]),
    varying("rdtsc", &[0x0f, 0x31], &["rax", "rdx"]),
    varying("rdtscp", &[0x0f, 0x01, 0xf9], &["rax", "rdx"]),
    case("rdpid", &[0xf3, 0x0f, 0xc7, 0xf9]),
    case("rsm", &[0x0f, 0xaa]).is(InvalidOpcode, InvalidOpcode),
    case("tpause", &[0x66, 0x0f, 0xae, 0xf1]),
    case("umwait", &[0xf2, 0x0f, 0xae, 0xf1]),
    case("wbinvd", &[0x0f, 0x09]).is(Passes, GeneralProtection),
    case("wbnoinvd", &[0xf3, 0x0f, 0x09]),
    case("wrmsr", &[0x0f, 0x30]),
    case("wrmsrns", &[0x0f, 0x01, 0xc6]),
    case("rdmsrlist", &[0xf2, 0x0f, 0x01, 0xc6]),
    case("wrmsrlist", &[0xf3, 0x0f, 0x01, 0xc6]),
    case("xrstors", &[0x0f, 0xc7, 0x18]),
    case("xsaves", &[0x0f, 0xc7, 0x28]),
    case("enqcmds", &[0xf3, 0x0f, 0x38, 0xf8, 0x08]),
    case("serialize", &[0x0f, 0x01, 0xe8]),
    // What shows something at CPL 0 only.
    with("xsetbv-x87-off", &[0x0f, 0x01, 0xd1], [0, 0, 0]).is(GeneralProtection, GeneralProtection),
    with("xsetbv-1", &[0x0f, 0x01, 0xd1], [7, 1, 0]).is(GeneralProtection, GeneralProtection),
    with("rdmsr-efer", &[0x0f, 0x32], [0, 0xc000_0080, 0]),
    with("rdmsr-apic-base", &[0x0f, 0x32], [0, 0x1b, 0]),
    with("rdmsr-microcode", &[0x0f, 0x32], [0, 0x8b, 0]),
    with("rdmsr-update", &[0x0f, 0x32], [0, 0x79, 0]),
    with("rdmsr-pebs", &[0x0f, 0x32], [0, 0x3f1, 0]),
    with("rdmsr-pt", &[0x0f, 0x32], [0, 0x570, 0]),
    with("rdmsr-lbr", &[0x0f, 0x32], [0, 0x14ce, 0]),
    with("rdmsr-none", &[0x0f, 0x32], [0, 0x1fff, 0]),
    with("rdmsr-vmx", &[0x0f, 0x32], [0, 0x480, 0]),
    with("wrmsr-vmx", &[0x0f, 0x30], [0, 0x480, 0]),
    with("wrmsr-high", &[0x0f, 0x30], [0, 0x4000_0000, 0]),
    with("wrmsr-efer-bad", &[0x0f, 0x30], [0xffff_ffff, 0xc000_0080, 0xffff_ffff]),
    Case {
        registers: [PAGE + DATA, 2, 0],
        ..vmx("invept-all", &[0x66, 0x0f, 0x38, 0x80, 0x08])
    },
    Case {
        registers: [PAGE + DATA, 7, 0],
        ..vmx("invept-bad", &[0x66, 0x0f, 0x38, 0x80, 0x08])
    },
    Case {
        registers: [PAGE + DATA, 2, 0],
        ..vmx("invvpid-all", &[0x66, 0x0f, 0x38, 0x81, 0x08])
    },
    Case {
        registers: [PAGE + DATA, 1, 0],
        ..vmx("invvpid-none", &[0x66, 0x0f, 0x38, 0x81, 0x08])
    },
    Case {
        registers: [PAGE + DATA, 7, 0],
        ..vmx("invvpid-bad", &[0x66, 0x0f, 0x38, 0x81, 0x08])
    },
    with("invpcid-bad", &[0x66, 0x0f, 0x38, 0x82, 0x08], [PAGE + DATA, 7, 0]),
    with(
        "mov-to-cr0-reserved",
        &[0x0f, 0x22, 0xc1],
        [0, 0xffff_ffff_0000_0000, 0],
    )
    .is(GeneralProtection, GeneralProtection),
    with("mov-to-cr4-reserved", &[0x0f, 0x22, 0xe1], [0, 0x8000_0000, 0]).is(GeneralProtection, GeneralProtection),
    case("mov-from-cr8", &[0x44, 0x0f, 0x20, 0xc1]),
    with("lmsw-usual", &[0x0f, 0x01, 0xf1], [0, 3, 0]),
    with("rdpmc-bad", &[0x0f, 0x33], [0, 0x3fff_ffff, 0]),
    with("monitor-bad", &[0x0f, 0x01, 0xc8], [PAGE + DATA, 1, 0]),
    with("pconfig-bad", &[0x0f, 0x01, 0xc5], [0x7fff_ffff, 0, 0]),
    // What does not exit.
    with("xgetbv", &[0x0f, 0x01, 0xd0], [0, 0, 0]),
    case("ud2", &[0x0f, 0x0b]).is(InvalidOpcode, InvalidOpcode),
    case("int3", &[0xcc]).in_user_space_only(),
    case("icebp", &[0xf1]).in_user_space_only(),
    case("int-7f", &[0xcd, 0x7f]).in_user_space_only(),
    case("cli", &[0xfa]),
    case("sti", &[0xfb]).in_user_space_only(),
    case("pushf", &[0x9c, 0x90]),
    case("clac", &[0x0f, 0x01, 0xca]),
    case("swapgs", &[0x0f, 0x01, 0xf8]).in_user_space_only(),
    case("bad-memory", &[0x8b, 0x09]).in_user_space_only(),
];
