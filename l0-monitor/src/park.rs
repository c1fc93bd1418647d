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
#![expect(
    unsafe_code,
    reason = "parking switches stacks and waits with instructions that have no safe form"
)]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicU8, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use locum_abi::mailbox::{NOOP, TEST, WAKEUP};
use locum_abi::{CpuMode, Event, MAX_CPUS, Slot};

use crate::arch::{cpuid, gdt, idt, lapic, registers};
use crate::boot::{host, reset};
use crate::cpu::{self, CpuIndex};
use crate::nested::{self, Start, run};
use crate::partition;
use crate::shared::{self, MailboxWords};

/// First address beyond what the firmware's page tables map: a CPU cannot be woken there.
pub const WAKEUP_LIMIT: u64 = 4 << 30;

/// What a parked CPU makes of its owner's mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
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
pub fn decide(me: u32, owned: impl FnOnce(u32) -> bool, mailbox: MailboxWords) -> Action {
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
pub enum Wait {
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
pub fn set_wait(wait: Wait) {
    WAIT.store(wait as u8, Relaxed);
}

fn wait_kind() -> Wait {
    match WAIT.load(Relaxed) {
        1 if cpuid::has_monitor() => Wait::Monitor,
        2 => Wait::Spin,
        _ => Wait::Halt,
    }
}

/// What one CPU under L0 tells a parked one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start in VMX non-root.
    StartNested(Start),
}

/// The parked CPU has a command already, or is not parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

const EMPTY: u32 = 0;
const FILLING: u32 = 1;
const FULL: u32 = 2;

/// One command per CPU: filled by whoever moves it from `EMPTY` to `FILLING`, taken by its CPU when `FULL`.
struct Inbox {
    state: AtomicU32,
    command: UnsafeCell<Option<Command>>,
}

// SAFETY: `state` hands `command` from one CPU to another: only the CPU that won `FILLING` writes it, only the
// addressee reads it, after `FULL`.
unsafe impl Sync for Inbox {}

static INBOXES: [Inbox; MAX_CPUS] = [const {
    Inbox {
        state: AtomicU32::new(EMPTY),
        command: UnsafeCell::new(None),
    }
}; MAX_CPUS];

/// Gives a parked CPU something to do.
///
/// # Errors
/// [`Busy`] if it isn't parked, or has not taken an earlier command yet.
pub fn command(cpu: CpuIndex, command: Command) -> Result<(), Busy> {
    if shared::status().cpu(cpu).mode() != CpuMode::Parked {
        return Err(Busy);
    }
    let inbox = &INBOXES[cpu.get()];
    if inbox.state.compare_exchange(EMPTY, FILLING, AcqRel, Relaxed).is_err() {
        return Err(Busy);
    }
    // SAFETY: this CPU won the inbox; see the `Sync` impl.
    unsafe { *inbox.command.get() = Some(command) };
    inbox.state.store(FULL, Release);
    poke();
    Ok(())
}

/// Whether a command waits for `cpu`.
pub fn has_command(cpu: CpuIndex) -> bool {
    INBOXES[cpu.get()].state.load(Acquire) != EMPTY
}

fn take_command(cpu: CpuIndex) -> Option<Command> {
    let inbox = &INBOXES[cpu.get()];
    if inbox.state.load(Acquire) != FULL {
        return None;
    }
    // SAFETY: full and addressed to this CPU; see the `Sync` impl.
    let command = unsafe { (*inbox.command.get()).take() };
    inbox.state.store(EMPTY, Release);
    command
}

/// Makes parked CPUs look again, for instance because owners changed. They would do so by themselves soon.
pub fn poke() {
    Slot::ALL.into_iter().for_each(shared::touch_mailbox);
}

/// Parks this CPU, which is `cpu`, from whatever L0 was doing: the stack starts over. L0's page tables, GDT and IDT are
/// in use and interrupts off.
pub fn park(cpu: CpuIndex) -> ! {
    // SAFETY: nothing on the old stack is needed again, since neither function returns; the new one belongs to this
    // CPU. RSP is 16-byte aligned before the call, as the ABI wants it.
    unsafe {
        asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {parked}",
            "ud2",
            top = in(reg) cpu::stack_top(cpu),
            in("rdi") cpu.get(),
            parked = sym parked,
            options(noreturn),
        )
    }
}

extern "C" fn parked(index: usize) -> ! {
    let Some(cpu) = CpuIndex::new(index) else {
        registers::halt_forever()
    };
    let status = shared::status().cpu(cpu);
    let from_nested = registers::cr4() & registers::CR4_VMXE != 0;
    // SAFETY: parked CPUs run on L0's page tables.
    unsafe { registers::normalise() };
    let me = cpu::apic_id(cpu);
    for slot in Slot::ALL {
        reset::set_nested(me, slot, false);
    }
    shared::trace(Event::Park { from_nested });
    // SAFETY: the CPU is parked from here on.
    let lapic = unsafe { lapic::Parked::new() };
    status.set_mode(CpuMode::Parked);
    let kind = wait_kind();
    let (start, mailbox) = loop {
        if let Some(Command::StartNested(start)) = take_command(cpu)
            && run::claim_start(cpu, start.slot)
        {
            break (start, None);
        }
        if let Some(slot) = partition::cpu_owner(cpu) {
            let mailbox = shared::mailbox(slot);
            match decide(me, |id| is_owned(id, slot), mailbox) {
                Action::Wait => {}
                Action::Answer => {
                    shared::clear_mailbox(slot, mailbox.head);
                }
                Action::Refuse => {
                    if shared::clear_mailbox(slot, mailbox.head) {
                        shared::trace(Event::MailboxRefused {
                            command: mailbox.head as u16,
                            apic_id: (mailbox.head >> 32) as u32,
                            vector: mailbox.vector,
                        });
                        shared::status().count_refusal();
                    }
                }
                Action::Wake { .. } if !run::claim_start(cpu, slot) => {
                    shared::clear_mailbox(slot, mailbox.head);
                }
                Action::Wake { vector } => {
                    break (
                        Start {
                            rip: vector,
                            rsi: 0,
                            slot,
                        },
                        Some(mailbox.head),
                    );
                }
            }
            wait(kind, slot);
        } else {
            wait(kind, Slot::Even);
        }
        lapic.acknowledge();
    };
    lapic.quiet();
    // SAFETY: interrupts that are still pending are taken here, under L0's IDT; after that the LAPIC is the host's.
    unsafe {
        asm!("sti", "nop", "nop", "cli", options(nomem, nostack));
        lapic.restore();
    }
    let nested = mailbox.is_none() || partition::two_hosts() || partition::slot_is_nested(start.slot);
    shared::trace(Event::Wake {
        nested,
        entry: start.rip,
        zero_page: start.rsi,
    });
    if !nested {
        status.set_mode(CpuMode::Native);
        run::mark_parked(cpu);
    }
    if let Some(head) = mailbox {
        shared::clear_mailbox(start.slot, head);
    }
    if nested {
        nested::start(cpu, start)
    } else {
        // SAFETY: the host asked for this CPU to go there, and L0 has nothing more to do on it.
        unsafe { host::enter_native(start.slot, start.rip, start.rsi) }
    }
}

fn is_owned(apic_id: u32, slot: Slot) -> bool {
    cpu::index_of_apic(apic_id).is_some_and(|cpu| {
        partition::cpu_owner(cpu) == Some(slot) && shared::status().cpu(cpu).mode() != CpuMode::Absent
    })
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

/// Where [`crate::boot::reset`] and the AP trampoline lead, on this CPU's stack, with L0's page tables. The rest of
/// L0's CPU state is loaded here.
///
/// # Safety
/// Only jumped to by these two.
pub unsafe extern "C" fn arrive() -> ! {
    let Some(cpu) = cpu::current() else {
        registers::halt_forever()
    };
    // SAFETY: on the CPU itself, interrupts off, on L0's page tables; the IDT was filled before any CPU got here.
    unsafe {
        gdt::load(cpu);
        idt::load();
    }
    park(cpu)
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
