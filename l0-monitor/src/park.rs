//! Parking: where CPUs are that no host runs on.
//!
//! A parked CPU waits in L0, in VMX root or outside VMX operation as it came, for one of two things: a command of
//! another CPU under L0 ([`command`]), or a command in the wakeup mailbox of the host that owns it.
//!
//! **Waiting.** The host cannot tell L0 that it wrote its mailbox, so a parked CPU halts, and the timer of its own
//! LAPIC, which no host uses then, makes it look again every 100,000 timer counts (1-4 ms). MONITOR/MWAIT on the
//! mailbox's line would see the write itself, but emulators lose such wake-ups (Bochs arms by linear address, and the
//! host writes through another one). The argument `park=` of L0 chooses. CPU time that Bochs takes to bring Linux on
//! one CPU from its entry to the start of the others:
//!
//! | beside | time | |
//! | --- | --- | --- |
//! | no other CPU | 9.8 s | |
//! | 3 CPUs, `park=hlt` | 12.7 s | the default |
//! | 3 CPUs, `park=spin` | 36.5 s | |
//! | 3 CPUs, `park=mwait` | not measured | for real CPUs |
#![expect(unsafe_code, reason = "parked CPUs wait with instructions that have no safe form")]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

use locum_abi::mailbox::{NOOP, TEST, WAKEUP};
use locum_abi::{Event, MAX_CPUS, Slot};

use crate::arch::{cpuid, lapic, msr, registers};
use crate::id::{self, CpuIndex, PerCpu};
use crate::machine_check;
use crate::partition::{PARTITION, Partition, StartMode};
use crate::shared::{self, MailboxWords};
use crate::stage::{self, Stage, Step};

/// First address beyond what the firmware's page tables map: a CPU cannot be woken there.
pub(crate) const WAKEUP_LIMIT: u64 = 4 << 30;

/// What a parked CPU makes of its owner's mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing there, or a command that its addressee will answer.
    Wait,
    /// Proof that this CPU is parked was asked for: clear the command.
    Answer,
    /// A command that nobody may act on: clear it, since the host waits without limit, and trace it.
    Refuse,
    /// Clear the command and jump to `vector`.
    Wake {
        /// Where to.
        vector: u64,
    },
}

/// Decides what CPU `me` (APIC id) does about `mailbox`. `owned` tells whether an APIC id belongs to a CPU that the
/// mailbox's host owns and that was started.
pub(crate) fn decide(me: u32, owned: impl FnOnce(u32) -> bool, mailbox: MailboxWords) -> Action {
    let command = mailbox.head as u16;
    let apic_id = (mailbox.head >> 32) as u32;
    match command {
        NOOP => Action::Wait,
        _ if apic_id != me => {
            if owned(apic_id) {
                Action::Wait
            } else {
                Action::Refuse
            }
        }
        WAKEUP if mailbox.vector < WAKEUP_LIMIT => Action::Wake { vector: mailbox.vector },
        TEST => Action::Answer,
        _ => Action::Refuse,
    }
}

/// How parked CPUs wait.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wait {
    /// HLT, with a periodic timer.
    #[default]
    Halt = 0,
    /// MWAIT on the mailbox's line, with the same timer for wake-ups that get lost.
    Monitor = 1,
    /// PAUSE in a loop.
    Spin = 2,
}

static WAIT: AtomicU8 = AtomicU8::new(Wait::Halt as u8);

/// Chooses how CPUs that park from now on wait. MWAIT falls back to HLT on CPUs without it.
pub(crate) fn set_wait(wait: Wait) {
    WAIT.store(wait as u8, Relaxed);
}

fn wait_kind() -> Wait {
    match WAIT.load(Relaxed) {
        1 if cpuid::has_monitor() => Wait::Monitor,
        2 => Wait::Spin,
        _ => Wait::Halt,
    }
}

/// Where a CPU begins to run for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Entry point, in 64-bit mode on an identity map.
    pub(crate) rip: u64,
    /// RSI there (the zero page of a boot CPU, else 0).
    pub(crate) rsi: u64,
    /// Host that the CPU belongs to.
    pub(crate) slot: Slot,
}

impl Start {
    /// None: zeroes.
    const NONE: Self = Self {
        rip: 0,
        rsi: 0,
        slot: Slot::Even,
    };
}

/// How each CPU is to start that was commanded to: its stage says whose it is, and whether there is anything in it. Zeroes
/// before, so that the image need not hold them.
struct Command(UnsafeCell<Start>);

// SAFETY: the CPU's stage hands the command over: only the CPU that took `Step::Claim` writes it, before
// `Step::Command`; only the addressee reads it, after.
unsafe impl Sync for Command {}

static COMMANDS: PerCpu<Command> = PerCpu([const { Command(UnsafeCell::new(Start::NONE)) }; MAX_CPUS]);

/// Has a CPU start in VMX non-root for which the caller took [`Step::Claim`]. It looks for that within a few ms.
pub(crate) fn command(cpu: CpuIndex, start: Start) {
    // SAFETY: this CPU claimed the other; see the `Sync` impl.
    unsafe { *COMMANDS[cpu].0.get() = start };
    let told = stage::take(cpu, Step::Command);
    debug_assert!(told.is_ok(), "a claimed CPU is nobody else's");
}

fn take_command(cpu: CpuIndex) -> Option<Start> {
    if stage::of(cpu) != Stage::Starting {
        return None;
    }
    // SAFETY: commanded, and addressed to this CPU; see the `Sync` impl.
    Some(unsafe { *COMMANDS[cpu].0.get() })
}

/// Waits on this CPU, which is `cpu` and in [`Stage::Parking`], until it is to run for a host: where, and in which
/// mode. Its stage is [`Stage::Starting`] then. L0's page tables, GDT and IDT are in use and interrupts off.
pub(crate) fn wait_for_start(cpu: CpuIndex) -> (Start, StartMode) {
    // SAFETY: parked CPUs run on L0's page tables, and no host uses this CPU's LAPIC from here on.
    let lapic = unsafe {
        registers::normalise();
        lapic::Parked::new()
    };
    if machine_check::left_by_host(cpu, msr::read_safe, shared::trace) {
        msr::write_safe(msr::MCG_STATUS, 0);
    }
    if let Err(found) = stage::take(cpu, Step::Settle) {
        log::error!("APIC id {} parks from stage {found:?}", id::apic_id(cpu));
    }
    if cpuid::has_cet() {
        // CR4.CET is off, and the next host finds the MSR as reset leaves it.
        msr::write_safe(msr::S_CET, 0);
    }
    let kind = wait_kind();
    let (start, mode) = loop {
        if let Some(found) = look(&PARTITION, cpu) {
            break found;
        }
        wait(kind, PARTITION.owner(cpu));
        lapic.acknowledge();
        machine_check::log(cpu);
    };
    lapic.quiet();
    // SAFETY: interrupts that are still pending are taken here, under L0's IDT; after that the LAPIC is the host's.
    unsafe {
        asm!("sti", "nop", "nop", "cli", options(nomem, nostack));
        lapic.restore();
    }
    shared::trace(Event::Wake {
        nested: mode == StartMode::Nested,
        entry: start.rip,
        zero_page: start.rsi,
    });
    (start, mode)
}

/// Looks for a command of L0's and at the mailbox of the CPU's owner.
pub(crate) fn look(partition: &Partition, cpu: CpuIndex) -> Option<(Start, StartMode)> {
    if let Some(start) = take_command(cpu) {
        return begin(partition, cpu, start);
    }
    let slot = partition.owner(cpu);
    let mailbox = shared::mailbox(slot);
    match decide(id::apic_id(cpu), |id| is_owned(partition, id, slot), mailbox) {
        Action::Wait => None,
        Action::Answer => {
            shared::clear_mailbox(slot, mailbox.head);
            None
        }
        Action::Refuse => {
            if shared::clear_mailbox(slot, mailbox.head) {
                refuse(mailbox);
            }
            None
        }
        Action::Wake { vector } => {
            // Somebody else may be about to start it: then the command of that one comes first.
            stage::take(cpu, Step::Wake).ok()?;
            let start = Start {
                rip: vector,
                rsi: 0,
                slot,
            };
            let begun = begin(partition, cpu, start);
            shared::clear_mailbox(slot, mailbox.head);
            if begun.is_none() {
                refuse(mailbox);
            }
            begun
        }
    }
}

/// Tells of a mailbox command that was not carried out.
fn refuse(mailbox: MailboxWords) {
    shared::trace(Event::MailboxRefused {
        command: mailbox.head as u16,
        apic_id: (mailbox.head >> 32) as u32,
        vector: mailbox.vector,
    });
    shared::status().count_refusal();
}

/// How the CPU, in [`Stage::Starting`], begins. None, and it stays parked, if that host may not start it any more.
fn begin(partition: &Partition, cpu: CpuIndex, start: Start) -> Option<(Start, StartMode)> {
    let mode = partition.start_mode(cpu, start.slot);
    if mode.is_none() {
        // Nothing of a host is on this CPU: it goes on waiting.
        let refused = stage::take(cpu, Step::Refuse).and_then(|()| stage::take(cpu, Step::Settle));
        debug_assert!(refused.is_ok());
    }
    Some((start, mode?))
}

fn is_owned(partition: &Partition, apic_id: u32, slot: Slot) -> bool {
    id::index_of_apic(apic_id).is_some_and(|cpu| partition.owner(cpu) == slot && stage::of(cpu) != Stage::Absent)
}

/// Waits until something may have happened.
fn wait(kind: Wait, slot: Slot) {
    match kind {
        // SAFETY: L0's IDT handles every interrupt. STI takes effect after HLT has begun, so the timer is not missed.
        Wait::Halt => unsafe { asm!("sti", "hlt", "cli", options(nostack)) },
        // SAFETY: as above; MONITOR reads one line of the mailbox, which is mapped. A write between the look and
        // MONITOR is found after the next tick.
        Wait::Monitor => unsafe {
            asm!(
                "monitor",
                "xor eax, eax",
                "sti",
                "mwait",
                "cli",
                inout("rax") shared::slot_area(slot) => _,
                in("ecx") 0,
                in("edx") 0,
                options(nostack),
            );
        },
        // SAFETY: as above.
        Wait::Spin => unsafe { asm!("sti", "pause", "cli", options(nostack)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(command: u16, apic_id: u32, vector: u64) -> MailboxWords {
        MailboxWords {
            head: u64::from(command) | u64::from(apic_id) << 32,
            vector,
        }
    }

    #[test]
    fn only_the_addressee_acts() {
        let wake = mailbox(WAKEUP, 3, 0x9_8000);
        assert_eq!(decide(3, |_| true, wake), Action::Wake { vector: 0x9_8000 });
        assert_eq!(decide(2, |id| id == 3, wake), Action::Wait);
        let test = mailbox(TEST, 3, 0);
        assert_eq!(decide(3, |_| true, test), Action::Answer);
        assert_eq!(decide(2, |_| true, test), Action::Wait);
        assert_eq!(decide(2, |_| true, mailbox(NOOP, 2, 1)), Action::Wait);
    }

    #[test]
    fn what_nobody_may_do_is_refused() {
        assert_eq!(decide(2, |_| false, mailbox(WAKEUP, 7, 0)), Action::Refuse);
        assert_eq!(decide(2, |_| false, mailbox(TEST, 7, 0)), Action::Refuse);
        assert_eq!(decide(2, |_| true, mailbox(3, 2, 0)), Action::Refuse);
        assert_eq!(decide(2, |_| true, mailbox(WAKEUP, 2, WAKEUP_LIMIT)), Action::Refuse);
    }

    #[test]
    fn the_reserved_word_is_ignored() {
        let odd = MailboxWords {
            head: u64::from(TEST) | 0xffff << 16 | 2 << 32,
            vector: 0,
        };
        assert_eq!(decide(2, |_| true, odd), Action::Answer);
    }
}
