//! Machine checks that come while L0 runs (SDM vol. 3B, chapter 17): whose they are, and the answer to nobody's.
//!
//! The CPU resets the machine at a machine check that finds CR4.MCE clear or the one before unfinished
//! (IA32_MCG_STATUS.MCIP), and most checks are broadcast. So CR4.MCE is set wherever L0 runs, and each check is ended.
//!
//! | on a CPU | the check |
//! | --- | --- |
//! | that no host runs on: parked, or while L0 boots | is answered: recorded, MCIP cleared ([`answer`]) |
//! | where L0 serves a nested host | is noted ([`note`]), and raised in the host at the next VM entry |
//! | that is on its way between native and nested | is noted, and raised in the host by its module ([`locum_abi::Frame`]) |
//!
//! A host finds the MSRs as the CPU left them, and finishes the check itself. Banks are cleared by hosts alone, for they
//! log them: those of a parked CPU when it is next theirs, those that CPUs share at once.
//!
//! A check with RIPV clear on a CPU of a host is the host's to judge, too. On a parked CPU it ends in [`crate::trap`] as
//! a broken machine does: that CPU halts.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use bitflags::bitflags;
use locum_abi::{Event, MAX_CPUS};

use crate::arch::msr;
use crate::id::{self, CpuIndex, PerCpu};

bitflags! {
    /// IA32_MCG_STATUS (SDM vol. 3B, 17.3.1.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct McgStatus: u64 {
        /// What was interrupted can go on where it was.
        const RIPV = 1 << 0;
        /// A check has come, and was not finished yet.
        const MCIP = 1 << 2;
        const _ = !0;
    }

    /// IA32_MCi_STATUS (17.3.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct BankStatus: u64 {
        /// The bank's address register has the address.
        const ADDRV = 1 << 58;
        /// The bank says something.
        const VAL = 1 << 63;
        const _ = !0;
    }
}

/// Bits of IA32_MCG_CAP: number of banks (17.3.1.1).
const MCG_CAP_COUNT: u64 = 0xff;
/// MSRs of a bank: control, status, address, miscellaneous.
const BANK_STRIDE: u32 = 4;

/// What IA32_MCG_STATUS says, with a function that reads MSRs. Clear on a CPU that has no such MSR.
pub(crate) fn status(mut rdmsr: impl FnMut(u32) -> Option<u64>) -> McgStatus {
    McgStatus::from_bits_retain(rdmsr(msr::MCG_STATUS).unwrap_or(0))
}

/// Tells of a check that is nobody's, and of what the banks say; `clear` is to write 0 to IA32_MCG_STATUS afterwards.
/// Returns what that was.
pub(crate) fn answer(mut rdmsr: impl FnMut(u32) -> Option<u64>, trace: impl Fn(Event)) -> McgStatus {
    let status = status(&mut rdmsr);
    trace(Event::MachineCheck {
        to_host: false,
        status: status.bits(),
    });
    let banks = rdmsr(msr::MCG_CAP).unwrap_or(0) & MCG_CAP_COUNT;
    for bank in 0..banks as u32 {
        let first = msr::MC0_CTL + bank * BANK_STRIDE;
        let said = BankStatus::from_bits_retain(rdmsr(first + 1).unwrap_or(0));
        if !said.contains(BankStatus::VAL) {
            continue;
        }
        let address = if said.contains(BankStatus::ADDRV) {
            rdmsr(first + 2).unwrap_or(0)
        } else {
            0
        };
        trace(Event::MachineCheckBank {
            bank: bank as u8,
            status: said.bits(),
            address,
        });
    }
    status
}

/// Answers a check that a host has left on `cpu`, the CPU that executes this: it was noted, or the host has ended in its
/// handler, by a panic for one. INIT leaves MCIP as it is, and the next check would reset the machine. True: 0 is to be
/// written to IA32_MCG_STATUS.
pub(crate) fn left_by_host(cpu: CpuIndex, rdmsr: impl Fn(u32) -> Option<u64>, trace: impl Fn(Event)) -> bool {
    take(cpu);
    let left = status(&rdmsr).contains(McgStatus::MCIP);
    if left {
        answer(rdmsr, trace);
    }
    left
}

/// What IA32_MCG_STATUS said at the last check that was answered on each CPU, with [`TOLD`]; 0 once it was logged.
static ANSWERED: PerCpu<AtomicU64> = PerCpu([const { AtomicU64::new(0) }; MAX_CPUS]);
/// A reserved bit of IA32_MCG_STATUS.
const TOLD: u64 = 1 << 63;

/// Remembers for the log, which the trap handler cannot write to, that a check with this status was answered on `cpu`.
pub(crate) fn remember(cpu: CpuIndex, status: McgStatus) {
    ANSWERED[cpu].store(status.bits() | TOLD, SeqCst);
}

/// Logs what was remembered for `cpu`.
pub(crate) fn log(cpu: CpuIndex) {
    if ANSWERED[cpu].load(SeqCst) == 0 {
        return;
    }
    let status = ANSWERED[cpu].swap(0, SeqCst) & !TOLD;
    log::warn!(
        "machine check on APIC id {}, where no host runs (IA32_MCG_STATUS {status:#x}): answered; the trace has its banks",
        id::apic_id(cpu)
    );
}

/// Set while a check waits for the host of a CPU.
static NOTED: PerCpu<AtomicU8> = PerCpu([const { AtomicU8::new(0) }; MAX_CPUS]);

/// Notes a check for the host of `cpu`, the CPU that executes this.
pub(crate) fn note(cpu: CpuIndex) {
    NOTED[cpu].store(1, SeqCst);
}

/// Whether a check waited for the host of `cpu`, which is the CPU that executes this; it does not any more.
pub(crate) fn take(cpu: CpuIndex) -> bool {
    NOTED[cpu].swap(0, SeqCst) != 0
}

/// Address of the byte that is not 0 while a check waits, for the assembly around VM entry.
pub(crate) fn noted_at(cpu: CpuIndex) -> u64 {
    (&raw const NOTED[cpu]).expose_provenance() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use std::vec::Vec;

    fn told(msrs: &[(u32, u64)]) -> (McgStatus, Vec<Event>) {
        let events = RefCell::new(Vec::new());
        let rdmsr = |msr| msrs.iter().find(|(number, _)| *number == msr).map(|(_, value)| *value);
        let status = answer(rdmsr, |event| events.borrow_mut().push(event));
        (status, events.into_inner())
    }

    #[test]
    fn banks_that_say_something_are_told_of() {
        let (val, addrv) = (1 << 63, 1 << 58);
        let (status, events) = told(&[
            (0x179, 0x1c0_0003),
            (0x17a, 5),
            (0x401, 0),
            (0x402, 0x5000),
            (0x405, val | addrv | 0x400),
            (0x406, 0x1234_0000),
            (0x409, val | 7),
            (0x40a, 0x9999),
            (0x40d, val),
        ]);
        assert_eq!(status, McgStatus::RIPV | McgStatus::MCIP);
        let bank = |bank, status, address| Event::MachineCheckBank { bank, status, address };
        assert_eq!(
            events,
            [
                Event::MachineCheck {
                    to_host: false,
                    status: 5
                },
                bank(1, val | addrv | 0x400, 0x1234_0000),
                // Without a valid address what the register holds means nothing; a fourth bank there is not.
                bank(2, val | 7, 0),
            ]
        );
    }

    #[test]
    fn a_cpu_without_the_msrs_is_answered_too() {
        let (status, events) = told(&[]);
        assert_eq!((status, events.len()), (McgStatus::empty(), 1));
    }

    #[test]
    fn what_a_host_leaves_unfinished_is_answered() {
        let cpu = CpuIndex::new(61).unwrap();
        for noted in [false, true] {
            for (status, left) in [(0, false), (1, false), (5, true)] {
                if noted {
                    note(cpu);
                }
                let events = RefCell::new(0);
                let rdmsr = |msr| (msr == msr::MCG_STATUS).then_some(status);
                assert_eq!(
                    left_by_host(cpu, rdmsr, |_| *events.borrow_mut() += 1),
                    left,
                    "{status}"
                );
                assert_eq!((events.into_inner(), take(cpu)), (i32::from(left), false));
            }
        }
    }

    #[test]
    fn a_note_is_taken_once() {
        let cpu = CpuIndex::new(62).unwrap();
        assert!(!take(cpu));
        note(cpu);
        // SAFETY: a static byte.
        #[expect(unsafe_code, reason = "as the assembly reads it")]
        let byte = unsafe { core::ptr::with_exposed_provenance::<u8>(noted_at(cpu) as usize).read_volatile() };
        assert_eq!(byte, 1);
        assert!(take(cpu) && !take(cpu));
    }
}
