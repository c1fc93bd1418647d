//! What each instruction does that exits for a host, or may, when user space executes it: a line for each, to be compared
//! between a native and a nested host.
//!
//! A child is traced. Its code page holds the instruction and an INT3, its registers are chosen, and it runs until a
//! signal stops it: natively and nested the same signals come at the same places, with the same registers. Each
//! instruction is tried in 64-bit and in compatibility mode, plainly, with RFLAGS.TF, and with an execution breakpoint
//! on it. [`kernel`] has a module do the same at CPL 0.
#![expect(
    unsafe_code,
    reason = "makes a child that executes what is in a page, and drives it by ptrace"
)]

mod child;
mod kernel;

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use lab_instructions::{Case, Outcome, PAGE, TABLE};

use child::{Child, Registers, Stop};
pub use kernel::kernel;

/// Bytes of the child's page, [`PAGE`]. Code is at its beginning.
const PAGE_BYTES: usize = 4096;
/// The top of the child's stack, in the page.
const STACK: u64 = 0xf00;
/// More stops than this are not looked at: what goes round is as good as known.
const STOPS: usize = 4;
/// INT3.
const BREAKPOINT: u8 = 0xcc;

const TRAP_FLAG: u64 = 1 << 8;
const RESUME_FLAG: u64 = 1 << 16;

/// A code segment of Linux' (arch/x86/include/asm/segment.h, `__USER_CS` and `__USER32_CS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Long,
    Compatibility,
}

/// What is special about a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    SingleStep,
    Breakpoint,
}

/// Holds what came of an instruction against what is known of it.
fn check(case: &Case, compatibility: bool, cpl: u8, came: Outcome) -> Result<()> {
    let Some(native) = case.native else {
        return Ok(());
    };
    let known = native.at(cpl, compatibility);
    let width = if compatibility { "compatibility" } else { "64-bit" };
    ensure!(
        came == known,
        "{} at CPL {cpl} in {width} mode: {came:?}, and lab-instructions says {known:?}",
        case.name
    );
    Ok(())
}

/// Tries every instruction in every way on CPU 0. A line each: the try, then every stop until the instruction is passed
/// or has failed. With `checked`, what is known of an instruction has to be so, which it is in VMX operation only.
///
/// # Errors
/// The child can't be made or driven; something known is not so.
pub fn all(checked: bool) -> Result<String> {
    let mut child = Child::start()?;
    let mut text = String::new();
    for case in TABLE {
        for mode in [Mode::Long, Mode::Compatibility] {
            for how in [How::Plain, How::SingleStep, How::Breakpoint] {
                let stops = attempt(&mut child, case, mode, how)
                    .with_context(|| format!("{} ({mode:?}, {how:?})", case.name))?;
                if checked && how == How::Plain {
                    let came = match stops.last() {
                        Some((stop, _)) if stop.signal == libc::SIGILL => Outcome::InvalidOpcode,
                        Some((stop, _)) if stop.is_fault() => Outcome::GeneralProtection,
                        _ => Outcome::Passes,
                    };
                    check(case, mode == Mode::Compatibility, 3, came)?;
                }
                let _ = write!(text, "{} {mode:?} {how:?}:", case.name);
                for stop in &stops {
                    let _ = write!(text, " [{}]", told(case, stop));
                }
                text.push('\n');
            }
        }
    }
    ensure!(!text.is_empty(), "nothing was tried");
    Ok(text)
}

/// One try.
fn attempt(child: &mut Child, case: &Case, mode: Mode, how: How) -> Result<Vec<(Stop, Registers)>> {
    let page = child.page();
    page.fill(0);
    let [code, end] = [case.code, &[BREAKPOINT]];
    page[..code.len()].copy_from_slice(code);
    page[code.len()..=code.len()].copy_from_slice(end);
    let mut registers = child.registers()?;
    registers.choose(case, mode);
    if how == How::SingleStep {
        registers.set_flag(TRAP_FLAG);
    }
    child.set_registers(&registers)?;
    child.set_breakpoint((how == How::Breakpoint).then_some(PAGE))?;
    let mut stops = Vec::new();
    let last = PAGE + code.len() as u64 + 1;
    while stops.len() < STOPS {
        let stop = child.run()?;
        let registers = child.registers()?;
        let over = stop.is_fault() || registers.rip() == last;
        stops.push((stop, registers));
        if over {
            break;
        }
    }
    child.set_breakpoint(None)?;
    Ok(stops)
}

/// A stop in words: signal and its code, how far the code went, flags, and the registers that are not as chosen. A fault
/// saves RFLAGS with RF set; at other stops emulators have it as an interrupt before left it.
fn told(case: &Case, (stop, registers): &(Stop, Registers)) -> String {
    let mut text = format!(
        "signal {} code {} at {:+} flags {:#x}",
        stop.signal,
        stop.code,
        registers.rip().wrapping_sub(PAGE) as i64,
        if stop.is_fault() {
            registers.flags()
        } else {
            registers.flags() & !RESUME_FLAG
        }
    );
    for (name, value) in registers.changed(case) {
        let _ = write!(text, " {name}={value:#x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of one instruction.
    fn lines<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let begin = format!("{name} ");
        text.lines().filter(|line| line.starts_with(&begin)).collect()
    }

    #[test]
    fn this_machine_does_what_is_known_of_it() {
        let text = all(false).unwrap();
        assert_eq!(text.lines().count(), TABLE.len() * 6);
        // HLT is #GP in user space (SIGSEGV, SI_KERNEL), however it is tried.
        let hlt = lines(&text, "hlt");
        assert!(
            hlt[0].ends_with("[signal 11 code 128 at +0 flags 0x10202]"),
            "{}",
            hlt[0]
        );
        // NOP passes, and traps where it is asked to: after it with TF, at it with a breakpoint, once.
        let nop = lines(&text, "nop");
        assert_eq!(nop[0], "nop Long Plain: [signal 5 code 128 at +2 flags 0x202]");
        assert!(
            nop[1].starts_with("nop Long SingleStep: [signal 5 code 2 at +1 flags 0x302"),
            "{}",
            nop[1]
        );
        assert!(
            nop[2].starts_with("nop Long Breakpoint: [signal 5 code 4 at +0 flags 0x202"),
            "{}",
            nop[2]
        );
        assert_eq!(nop[2].matches("at +0").count(), 1, "{}", nop[2]);
        // In compatibility mode INC is one byte.
        let inc = lines(&text, "inc");
        assert!(
            inc[0].ends_with("at +3 flags 0x202]") && inc[3].ends_with("at +3 flags 0x202 rax=0x10000401]"),
            "{inc:?}"
        );
        // A second run says the same.
        assert_eq!(text, all(false).unwrap());
    }
}
