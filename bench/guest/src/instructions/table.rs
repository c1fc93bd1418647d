//! The instructions: all that exit from VMX non-root operation always (SDM vol. 3C, 27.1.2), those that may (27.1.3), those
//! that are undefined there unless a control enables them, and some that never exit, to compare with.

use super::{DATA, PAGE};

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// Its name, without a space.
    pub name: &'static str,
    /// Its bytes, the same in both modes.
    pub code: &'static [u8],
    /// RAX, RCX, RDX.
    pub registers: [u64; 3],
    /// Registers whose values differ from one time to the next.
    pub varies: &'static [&'static str],
}

const fn case(name: &'static str, code: &'static [u8]) -> Case {
    Case {
        name,
        code,
        registers: [PAGE + DATA, 0, 0],
        varies: &[],
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

/// All of them. Memory operands are at [EAX], which is RAX's lower half.
pub(super) const TABLE: &[Case] = &[
    case("nop", &[0x90]),
    case("inc", &[0x40, 0x90]),
    // What exits always.
    with("cpuid-0", &[0x0f, 0xa2], [0, 0, 0]),
    with("cpuid-1", &[0x0f, 0xa2], [1, 0, 0]),
    with("cpuid-7", &[0x0f, 0xa2], [7, 0, 0]),
    with("cpuid-7-1", &[0x0f, 0xa2], [7, 1, 0]),
    with("cpuid-d", &[0x0f, 0xa2], [0xd, 0, 0]),
    with("cpuid-d-1", &[0x0f, 0xa2], [0xd, 1, 0]),
    with("cpuid-ext", &[0x0f, 0xa2], [0x8000_0001, 0, 0]),
    with("cpuid-beyond", &[0x0f, 0xa2], [0x4fff_ffff, 0, 0]),
    case("getsec", &[0x0f, 0x37]),
    case("invd", &[0x0f, 0x08]),
    with("xsetbv", &[0x0f, 0x01, 0xd1], [7, 0, 0]),
    case("invept", &[0x66, 0x0f, 0x38, 0x80, 0x00]),
    case("invvpid", &[0x66, 0x0f, 0x38, 0x81, 0x00]),
    case("vmcall", &[0x0f, 0x01, 0xc1]),
    with("vmcall-ping", &[0x0f, 0x01, 0xc1], [0x4c4f_434d_0000_0000, 0, 0]),
    case("vmclear", &[0x66, 0x0f, 0xc7, 0x30]),
    case("vmlaunch", &[0x0f, 0x01, 0xc2]),
    case("vmptrld", &[0x0f, 0xc7, 0x30]),
    case("vmptrst", &[0x0f, 0xc7, 0x38]),
    case("vmread", &[0x0f, 0x78, 0xc1]),
    case("vmread-memory", &[0x0f, 0x78, 0x08]),
    case("vmresume", &[0x0f, 0x01, 0xc3]),
    case("vmwrite", &[0x0f, 0x79, 0xc1]),
    case("vmxoff", &[0x0f, 0x01, 0xc4]),
    case("vmxon", &[0xf3, 0x0f, 0xc7, 0x30]),
    case("vmfunc", &[0x0f, 0x01, 0xd4]),
    // What may exit.
    case("clts", &[0x0f, 0x06]),
    case("enclu", &[0x0f, 0x01, 0xd7]),
    case("encls", &[0x0f, 0x01, 0xcf]),
    case("hlt", &[0xf4]),
    with("in", &[0xec], [0, 0, 0x80]),
    with("in-imm", &[0xe4, 0x80], [0, 0, 0]),
    with("ins", &[0x6c], [0, 0, 0x80]),
    with("out", &[0xee], [0, 0, 0x80]),
    with("outs", &[0x6e], [0, 0, 0x80]),
    with("out-pci", &[0xef], [0x8000_0000, 0, 0xcf8]),
    case("invlpg", &[0x0f, 0x01, 0x38]),
    case("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x08]),
    case("lgdt", &[0x0f, 0x01, 0x10]),
    case("lidt", &[0x0f, 0x01, 0x18]),
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
    case("mwait", &[0x0f, 0x01, 0xc9]),
    case("mov-from-cr0", &[0x0f, 0x20, 0xc1]),
    case("mov-to-cr0", &[0x0f, 0x22, 0xc1]),
    case("mov-from-cr3", &[0x0f, 0x20, 0xd9]),
    case("mov-to-cr3", &[0x0f, 0x22, 0xd9]),
    case("mov-from-cr4", &[0x0f, 0x20, 0xe1]),
    case("mov-to-cr4", &[0x0f, 0x22, 0xe1]),
    case("mov-from-dr7", &[0x0f, 0x21, 0xf9]),
    case("mov-to-dr7", &[0x0f, 0x23, 0xf9]),
    case("pause", &[0xf3, 0x90]),
    case("pconfig", &[0x0f, 0x01, 0xc5]),
    case("rdmsr", &[0x0f, 0x32]),
    with("rdmsr-high", &[0x0f, 0x32], [0, 0x4000_0000, 0]),
    with("rdpmc", &[0x0f, 0x33], [0, 0, 0]),
    varying("rdrand", &[0x0f, 0xc7, 0xf1], &["rcx"]),
    varying("rdseed", &[0x0f, 0xc7, 0xf9], &["rcx"]),
    varying("rdtsc", &[0x0f, 0x31], &["rax", "rdx"]),
    varying("rdtscp", &[0x0f, 0x01, 0xf9], &["rax", "rdx"]),
    case("rdpid", &[0xf3, 0x0f, 0xc7, 0xf9]),
    case("rsm", &[0x0f, 0xaa]),
    case("tpause", &[0x66, 0x0f, 0xae, 0xf1]),
    case("umwait", &[0xf2, 0x0f, 0xae, 0xf1]),
    case("wbinvd", &[0x0f, 0x09]),
    case("wbnoinvd", &[0xf3, 0x0f, 0x09]),
    case("wrmsr", &[0x0f, 0x30]),
    case("wrmsrns", &[0x0f, 0x01, 0xc6]),
    case("rdmsrlist", &[0xf2, 0x0f, 0x01, 0xc6]),
    case("wrmsrlist", &[0xf3, 0x0f, 0x01, 0xc6]),
    case("xrstors", &[0x0f, 0xc7, 0x18]),
    case("xsaves", &[0x0f, 0xc7, 0x28]),
    case("enqcmds", &[0xf3, 0x0f, 0x38, 0xf8, 0x08]),
    case("serialize", &[0x0f, 0x01, 0xe8]),
    // What does not exit.
    with("xgetbv", &[0x0f, 0x01, 0xd0], [0, 0, 0]),
    case("ud2", &[0x0f, 0x0b]),
    case("int3", &[0xcc]),
    case("icebp", &[0xf1]),
    case("int-7f", &[0xcd, 0x7f]),
    case("cli", &[0xfa]),
    case("sti", &[0xfb]),
    case("pushf", &[0x9c, 0x90]),
    case("clac", &[0x0f, 0x01, 0xca]),
    case("swapgs", &[0x0f, 0x01, 0xf8]),
    case("bad-memory", &[0x8b, 0x09]),
];
