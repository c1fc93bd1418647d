//! Machine checks. The lab's Bochs raises them when it is asked to in its file of ticks (`emulator/bochs.patch`): from
//! outside, so that they come upon whatever the CPUs are at.
//!
//! Each is broadcast, as most are on Intel's CPUs: every CPU takes #MC. The error that it is about stands in bank 0 of
//! the CPUs that are named, and is one that Linux survives: uncorrected, signalled, with the CPU's context whole, and
//! to be acted upon at leisure (SRAO, SDM vol. 3B, 17.6). What is less, Linux takes for no reason for a check, and panics
//! (`mce_reign()` in arch/x86/kernel/cpu/mce/core.c). So does a host none of whose CPUs has an error in a bank.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, thread::sleep};

use anyhow::{Context, Result, ensure};

use super::{
    bochs,
    deadline::Span,
    server::{LOOK, Machine},
};

/// The MSRs of a CPU with one bank, in the columns of Bochs: IA32_MCG_CAP (one bank; software can recover from errors),
/// IA32_MCG_STATUS, and IA32_MC0_CTL, STATUS, ADDR and MISC. Software may only clear the last three.
pub(super) const MSRS: &str = "\
0x179 0 00000000 01000001 ffffffff ffffffff 00000000 00000000
0x17a 0 00000000 00000000 ffffffff fffffff8 00000000 00000000
0x400 0 00000000 00000000 00000000 00000000 00000000 00000000
0x401 3 00000000 00000000 00000000 00000000 00000000 00000000
0x402 3 00000000 00000000 00000000 00000000 00000000 00000000
0x403 3 00000000 00000000 00000000 00000000 00000000 00000000
";

/// IA32_MC0_STATUS of the error: VAL, UC, EN, S, found by memory scrubbing (SDM vol. 3B, 17.3.2.2 and 17.9.3). Without an
/// address, there is no page for Linux to take out of use.
const SCRUBBED: u64 = 0xb100_0000_0000_00c0;

/// Which checks are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checks {
    /// How many, one after the other, each when all CPUs have ended the one before.
    pub count: u64,
    /// Mask of the CPUs (APIC ids) whose bank has the error.
    pub errors: u64,
    /// Each is to come while, or up to 1,000 ticks after, some CPU runs L0; else at any moment.
    pub in_l0: bool,
}

/// What CPUs did that took a check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// In VMX non-root operation; it exited.
    pub exits: u64,
    /// In VMX non-root operation; the IDT there got it.
    pub in_guest: u64,
    /// In L0, or halted where L0 parks CPUs.
    pub in_l0: u64,
    /// Something else.
    pub elsewhere: u64,
}

impl Taken {
    /// All of them.
    #[must_use]
    pub(crate) fn all(&self) -> u64 {
        self.exits + self.in_guest + self.in_l0 + self.elsewhere
    }
}

/// The emulator's words, in the order of its file (`bx_shown_t` in the patch).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Words([u64; 11]);

/// Of [`Words`]: those that the lab writes.
const ASKED: usize = 2;
const CPUS: usize = 3;
const STATUS: usize = 4;
const AIM: usize = 5;
/// Of [`Words`]: checks raised, and where the first word of [`Taken`] is.
const RAISED: usize = 6;
const TAKEN: usize = 7;

impl Words {
    fn read(file: &File) -> Result<Self> {
        let mut words = [[0; 8]; 11];
        file.read_exact_at(words.as_flattened_mut(), 0)
            .context("Bochs shows no machine checks")?;
        Ok(Self(words.map(u64::from_le_bytes)))
    }

    fn taken_since(&self, before: &Self) -> Taken {
        let word = |number: usize| self.0[TAKEN + number] - before.0[TAKEN + number];
        Taken {
            exits: word(0),
            in_guest: word(1),
            in_l0: word(2),
            elsewhere: word(3),
        }
    }
}

/// Asks for checks; returns the words before.
fn ask(file: &Path, checks: &Checks) -> Result<(File, Words)> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(file)
        .context("only Bochs raises machine checks")?;
    let before = Words::read(&file)?;
    ensure!(
        before.0[ASKED] == before.0[RAISED],
        "the machine checks asked for last have not all been raised"
    );
    // What is asked for comes last: it is what the emulator looks at.
    for (number, word) in [
        (CPUS, checks.errors),
        (STATUS, SCRUBBED),
        (AIM, checks.in_l0.into()),
        (ASKED, before.0[ASKED] + checks.count),
    ] {
        file.write_all_at(&word.to_le_bytes(), number as u64 * 8)?;
    }
    Ok((file, before))
}

impl Machine {
    /// Raises machine checks, and says what the CPUs did that took them. The machine has to have been started with the
    /// MSRs for them.
    ///
    /// # Errors
    /// They are not raised within `limit`: some CPU does not end the one before, or no CPU runs L0; the machine dies.
    pub(crate) fn machine_checks(&mut self, checks: &Checks, limit: Span) -> Result<Taken> {
        let (file, before) = ask(&self.dir().join(bochs::TICKS), checks)?;
        let deadline = self.deadline(limit)?;
        loop {
            let now = Words::read(&file)?;
            if now.0[RAISED] == now.0[ASKED] {
                // A CPU takes it at its next instruction, and its host is to have the time to tell of it.
                self.look(Span::seconds(1))?;
                return Ok(Words::read(&file)?.taken_since(&before));
            }
            let raised = now.0[RAISED] - before.0[RAISED];
            self.check(deadline)
                .with_context(|| format!("{raised} of {} machine checks were raised", checks.count))?;
            sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_patch() {
        let patch = include_str!("../../emulator/bochs.patch");
        let (_, after) = patch.split_once("enum bx_shown_t {").unwrap();
        let (names, _) = after.split_once("};").unwrap();
        let names: Vec<_> = names
            .lines()
            .filter_map(|line| line.trim_start_matches('+').trim().split(',').next())
            .filter(|name| name.starts_with("BX_"))
            .collect();
        let at = |name| names.iter().position(|found| *found == name);
        assert_eq!(at("BX_ASKED_CHECKS"), Some(ASKED));
        assert_eq!(at("BX_ASKED_CPUS"), Some(CPUS));
        assert_eq!(at("BX_ASKED_STATUS"), Some(STATUS));
        assert_eq!(at("BX_ASKED_AIM"), Some(AIM));
        assert_eq!(at("BX_SHOWN_CHECKS"), Some(RAISED));
        assert_eq!(at("BX_SHOWN_TAKEN"), Some(TAKEN));
    }

    #[test]
    fn checks_are_asked_for_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticks");
        let mut shown = [[0_u8; 8]; 11];
        shown[ASKED] = 3_u64.to_le_bytes();
        shown[RAISED] = shown[ASKED];
        std::fs::write(&path, shown.as_flattened()).unwrap();
        let checks = Checks {
            count: 5,
            errors: 0b1001,
            in_l0: true,
        };
        let (file, before) = ask(&path, &checks).unwrap();
        let now = Words::read(&file).unwrap();
        assert_eq!(now.0[ASKED..TAKEN], [8, 0b1001, SCRUBBED, 1, 3]);
        assert!(ask(&path, &checks).is_err(), "the first are not raised yet");
        for (number, count) in [1, 2, 3, 4_u64].into_iter().enumerate() {
            file.write_all_at(&count.to_le_bytes(), (TAKEN + number) as u64 * 8)
                .unwrap();
        }
        let taken = Words::read(&file).unwrap().taken_since(&before);
        let expected = Taken {
            exits: 1,
            in_guest: 2,
            in_l0: 3,
            elsewhere: 4,
        };
        assert_eq!((taken, taken.all()), (expected, 10));
    }

    #[test]
    fn another_emulator_raises_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticks");
        let checks = Checks {
            count: 1,
            errors: 1,
            in_l0: false,
        };
        assert!(ask(&path, &checks).is_err());
        std::fs::write(&path, [0; 16]).unwrap();
        assert!(ask(&path, &checks).is_err());
    }
}
