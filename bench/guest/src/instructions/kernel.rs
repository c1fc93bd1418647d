//! The same at CPL 0: lab_probe.ko (`host-hotplug-agent/kmod/tests/probe`) executes what it is given.
//!
//! Beside what user space tries there is an interrupt that waits for the instruction to end: the CPU holds it back behind
//! an STI, or an STI and a MOV SS, and has to take it at the next instruction, wherever that came from.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};

use anyhow::{Context, Result, ensure};
use lab_instructions::{Case, DATA, Outcome, PAGE, TABLE};

use super::{BREAKPOINT, check};

/// The module's file.
const FILE: &str = "/proc/lab_probe";
/// Linux' `__KERNEL_DS`.
const DATA_SEGMENT: u64 = 0x18;
/// What a register holds that no instruction needs.
const FILL: u64 = 0x1122_3300;

/// Bits of what is asked for (probe.c).
const COMPATIBILITY: u64 = 1;
const SINGLE_STEP: u64 = 2;
const BREAKPOINTS: u64 = 4;
const INTERRUPT: u64 = 8;

/// Bytes of the code that is handed over.
const CODE: usize = 16;
/// Words of a stop, and stops of a reply.
const STOP: usize = 11;
const STOPS: usize = 4;

/// Vectors of exceptions (SDM vol. 3A, 7.3.1), and the module's number for the interrupt.
const DB: u64 = 1;
const BP: u64 = 3;
const UD: u64 = 6;
const GP: u64 = 13;
const INTERRUPTED: u64 = 256;

const RESUME_FLAG: u64 = 1 << 16;

/// What is special about a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    SingleStep,
    /// One on the instruction, and one on what follows.
    Breakpoints,
    /// STI, and an interrupt waits.
    AfterSti,
    /// STI and MOV SS, and an interrupt waits.
    AfterMovSs,
    /// MOV SS with RFLAGS.TF: the trap of the MOV waits for the instruction, too.
    StepAfterMovSs,
}

impl How {
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::SingleStep,
        Self::Breakpoints,
        Self::AfterSti,
        Self::AfterMovSs,
        Self::StepAfterMovSs,
    ];

    /// What is asked for.
    fn bits(self) -> u64 {
        match self {
            Self::Plain => 0,
            Self::SingleStep | Self::StepAfterMovSs => SINGLE_STEP,
            Self::Breakpoints => BREAKPOINTS,
            Self::AfterSti | Self::AfterMovSs => INTERRUPT,
        }
    }

    /// What comes before the instruction: STI is FB, and MOV SS, EBP is 8E D5.
    fn before(self) -> &'static [u8] {
        match self {
            Self::AfterSti => &[0xfb],
            Self::AfterMovSs => &[0xfb, 0x8e, 0xd5],
            Self::StepAfterMovSs => &[0x8e, 0xd5],
            _ => &[],
        }
    }
}

/// A stop: vector, RIP, RFLAGS, RSP, RAX, RCX, RDX, RBX, RSI, RDI, RBP.
type Stop = [u64; STOP];

const NAMES: [&str; 7] = ["rax", "rcx", "rdx", "rbx", "rsi", "rdi", "rbp"];

/// Tries every instruction that a kernel survives in every way on CPU 0; lines as [`super::all`] makes them.
///
/// # Errors
/// The module is not there; something known is not so.
pub fn kernel(checked: bool) -> Result<String> {
    let mut text = String::new();
    for case in TABLE.iter().filter(|case| case.in_kernel) {
        for compatibility in [false, true] {
            for how in How::ALL {
                let (begin, stops) = attempt(case, compatibility, how)
                    .with_context(|| format!("{} (compatibility: {compatibility}, {how:?})", case.name))?;
                let mode = if compatibility { "Compatibility" } else { "Long" };
                let _ = write!(text, "{} {mode} {how:?}:", case.name);
                for stop in &stops {
                    let _ = write!(text, " [{}]", told(case, &begin, how, stop));
                }
                text.push('\n');
                if checked && how == How::Plain {
                    let came = match stops.last() {
                        Some([UD, ..]) => Outcome::InvalidOpcode,
                        Some([GP, ..]) => Outcome::GeneralProtection,
                        Some([BP, ..]) => Outcome::Passes,
                        other => anyhow::bail!("{} ends with {other:x?}", case.name),
                    };
                    check(case, compatibility, 0, came)?;
                }
                // Were there none, all would be alike, too.
                ensure!(
                    !checked || how != How::AfterSti || case.name != "nop" || stops.iter().any(interrupts_behind),
                    "no interrupt behind a NOP that follows an STI: {stops:x?}"
                );
            }
        }
    }
    Ok(text)
}

/// The interrupt, at what follows an STI and a NOP.
fn interrupts_behind(stop: &Stop) -> bool {
    let [vector, rip, ..] = stop;
    (*vector, *rip) == (INTERRUPTED, 2)
}

/// One try: the registers that it began with, and its stops.
fn attempt(case: &Case, compatibility: bool, how: How) -> Result<([u64; 7], Vec<Stop>)> {
    let mut code = [0; CODE];
    let before = how.before();
    let used = [before, case.code, &[BREAKPOINT]].concat();
    code.get_mut(..used.len())
        .context("the code is too long for the module")?
        .copy_from_slice(&used);
    let [rax, rcx, rdx] = case.registers;
    let registers = [
        rax,
        rcx,
        rdx,
        FILL + 3,
        PAGE + DATA + 0x100,
        PAGE + DATA + 0x200,
        DATA_SEGMENT,
    ];
    let at = before.len() as u64;
    let bits = how.bits() | if compatibility { COMPATIBILITY } else { 0 };
    let mut request: Vec<u8> = [bits, at, at + case.code.len() as u64]
        .into_iter()
        .chain(registers)
        .flat_map(u64::to_ne_bytes)
        .collect();
    request.extend(code);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(FILE)
        .with_context(|| format!("{FILE}: load lab_probe.ko"))?;
    file.write_all(&request).context("the module refuses it")?;
    let mut reply = [0; 8 * (1 + STOP * STOPS)];
    let read = file.read(&mut reply)?;
    ensure!(read == reply.len(), "the module's reply has {read} bytes");
    let words: Vec<u64> = reply
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| u64::from_ne_bytes(*bytes))
        .collect();
    let (count, stops) = words.split_first().context("an empty reply")?;
    let stops = stops.as_chunks::<STOP>().0;
    Ok((
        registers,
        stops.iter().take(usize::try_from(*count)?).copied().collect(),
    ))
}

/// A stop in words: vector (256: the interrupt), how far from the instruction, flags, and the registers that are not as
/// chosen. RF is told of faults.
fn told(case: &Case, begin: &[u64; 7], how: How, stop: &Stop) -> String {
    let [vector, rip, rflags, rsp, registers @ ..] = stop;
    let at = rip.wrapping_sub(how.before().len() as u64) as i64;
    let fault = !matches!(*vector, DB | BP | INTERRUPTED);
    let flags = if fault { *rflags } else { rflags & !RESUME_FLAG };
    let mut text = format!("vector {vector} at {at:+} flags {flags:#x}");
    for ((name, chosen), found) in NAMES.into_iter().zip(begin).zip(registers) {
        if chosen != found && !case.varies.contains(&name) {
            let _ = write!(text, " {name}={found:#x}");
        }
    }
    if *rsp != 0 {
        let _ = write!(text, " rsp={rsp:#x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_leaves_room_for_every_instruction() {
        for case in TABLE {
            for how in How::ALL {
                assert!(how.before().len() + case.code.len() < CODE, "{} {how:?}", case.name);
            }
        }
    }

    #[test]
    fn a_stop_is_told_relative_to_the_instruction() {
        let case = &TABLE[0];
        let begin = [1, 2, 3, 4, 5, 6, 7];
        let stop = [GP, 3, 0x1_0202, 0, 1, 2, 3, 4, 5, 6, 0x77];
        assert_eq!(
            told(case, &begin, How::AfterMovSs, &stop),
            "vector 13 at +0 flags 0x10202 rbp=0x77"
        );
        let stop = [256, 2, 0x1_0202, 0u64.wrapping_sub(8), 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(
            told(case, &begin, How::AfterSti, &stop),
            "vector 256 at +1 flags 0x202 rsp=0xfffffffffffffff8"
        );
    }
}
