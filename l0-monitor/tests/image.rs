//! The image that GRUB loads: a host, and the CPU on a host's behalf, jump to the places in it that are named here, and
//! with CET on (SDM vol. 1, 17.3) each must begin with ENDBR64, or the jump is a #CP that nobody survives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Builds the image as a release has it.
fn image() -> Vec<u8> {
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target directory");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "l0-monitor",
            "--bin",
            "l0",
        ])
        .args(["--target", "x86_64-unknown-none", "--target-dir"])
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("run cargo");
    assert!(status.success(), "L0 does not build");
    let path: PathBuf = [target_dir, Path::new("x86_64-unknown-none/release/l0")]
        .iter()
        .collect();
    fs::read(path).expect("read the image")
}

/// The bytes from a symbol on.
fn code<'a>(elf: &ElfFile64<'a>, name: &str) -> &'a [u8] {
    let symbol = elf
        .symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap_or_else(|| panic!("no symbol {name}"));
    let section = symbol.section_index().expect("in a section");
    let section = elf.section_by_index(section).expect("the section");
    let at = usize::try_from(symbol.address() - section.address()).expect("inside it");
    &section.data().expect("its bytes")[at..]
}

#[test]
fn what_is_jumped_to_begins_with_endbr64() {
    let image = image();
    let elf = ElfFile64::<object::Endianness>::parse(&*image).expect("an ELF file");
    // Where a native host's stub jumps; what a host's CPU jumps to when it is given up, copied to its page as it is.
    for name in ["l0_native_entry", "l0_reset_vector"] {
        assert_eq!(code(&elf, name)[..4], ENDBR64, "{name}");
    }
    // Where the IDT leads.
    let stubs = code(&elf, "l0_trap_stubs");
    for (vector, stub) in stubs.chunks_exact(16).take(256).enumerate() {
        assert_eq!(stub[..4], ENDBR64, "vector {vector}");
        // What follows is the push of an error code or the vector's, never the end of another stub.
        let push = if has_error_code(vector) { 4 } else { 6 };
        let pushed = match stub[push] {
            0x6a => i32::from(stub[push + 1] as i8),
            0x68 => i32::from_le_bytes(stub[push + 1..push + 5].try_into().expect("four bytes")),
            other => panic!("vector {vector}: opcode {other:#x}"),
        };
        assert_eq!(pushed, vector as i32);
    }
}

/// On the way back to a native host, a machine check is a note of L0's until the stub's IDT is loaded. Looked for any
/// earlier, the last of them would never be found.
#[test]
fn a_check_is_looked_for_once_the_stubs_idt_is_loaded() {
    let image = image();
    let elf = ElfFile64::<object::Endianness>::parse(&*image).expect("an ELF file");
    let way = &code(&elf, "l0_to_stub")[..64];
    let at = |bytes: &[u8]| way.windows(bytes.len()).position(|found| found == bytes);
    // LIDT [RDI + disp8]; XCHG [RSI], AL; JMP RAX.
    let steps = [&[0x0f, 0x01, 0x5f][..], &[0x86, 0x06], &[0xff, 0xe0]].map(|bytes| at(bytes).expect("its bytes"));
    assert!(steps.is_sorted(), "{steps:?}");
}

/// SDM vol. 3A, table 6-1.
fn has_error_code(vector: usize) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
