//! The LAPIC of the CPU that runs this (SDM vol. 3A, chapter 11), in xAPIC or x2APIC mode as it was found.
//!
//! A LAPIC belongs to its CPU's host. L0 uses it to start CPUs at boot, to send INIT to the CPUs of a dead host and
//! NMIs to itself, and, while a CPU is parked and no host uses it, its timer.
#![expect(unsafe_code, reason = "the LAPIC is memory-mapped or behind WRMSR")]

use super::msr;

/// APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// APIC_BASE: address bits.
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// First MSR of the x2APIC's registers; a register at MMIO offset `o` is MSR `0x800 + o / 16`.
const X2APIC_MSRS: u32 = 0x800;

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

const ICR_NMI: u32 = 0x400;
const ICR_INIT: u32 = 0x500;
const ICR_STARTUP: u32 = 0x600;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_PENDING: u32 = 1 << 12;

const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const SVR_ENABLED: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// How often the delivery status is read before L0 stops waiting: far longer than any delivery takes.
const DELIVERY_POLLS: u32 = 1_000_000;

/// Vector of the parked CPU's timer.
const PARK_VECTOR: u32 = 0xf0;
/// Timer counts between two looks of a parked CPU at its mailbox: 1 to 4 ms with the bus or crystal clocks of 25 to
/// 100 MHz that there are.
const PARK_COUNT: u32 = 100_000;

/// Address of the registers, `None` in x2APIC mode.
fn mmio() -> Option<u64> {
    let base = msr::read(msr::APIC_BASE);
    (base & BASE_X2APIC == 0).then_some(base & BASE_ADDRESS)
}

fn read(register: u32) -> u32 {
    match mmio() {
        None => msr::read(X2APIC_MSRS + register / 16) as u32,
        // SAFETY: the LAPIC's registers are at that address, which L0 maps one to one; reading those that L0 reads has
        // no side effect.
        Some(base) => unsafe { ((base + u64::from(register)) as *const u32).read_volatile() },
    }
}

/// # Safety
/// The write must not make the LAPIC deliver what L0 or the CPU's host does not expect.
unsafe fn write(register: u32, value: u32) {
    match mmio() {
        // SAFETY: the caller answers for the effect.
        None => unsafe { msr::write(X2APIC_MSRS + register / 16, u64::from(value)) },
        // SAFETY: the LAPIC's registers are at that address; the caller answers for the effect.
        Some(base) => unsafe { ((base + u64::from(register)) as *mut u32).write_volatile(value) },
    }
}

/// # Safety
/// As for [`write`].
unsafe fn send(apic_id: u32, command: u32) {
    if mmio().is_none() {
        let icr = u64::from(apic_id) << 32 | u64::from(command);
        // SAFETY: the caller answers for the effect. The x2APIC has no delivery status to wait for.
        unsafe { msr::write(X2APIC_MSRS + ICR_LOW / 16, icr) };
        return;
    }
    wait_delivered();
    // The host may have been between its two writes of the ICR.
    let destination = read(ICR_HIGH);
    // SAFETY: the caller answers for the effect.
    unsafe {
        write(ICR_HIGH, apic_id << 24);
        write(ICR_LOW, command);
    }
    wait_delivered();
    // SAFETY: nothing is sent until the lower half is written.
    unsafe { write(ICR_HIGH, destination) };
}

fn wait_delivered() {
    for _ in 0..DELIVERY_POLLS {
        if read(ICR_LOW) & ICR_PENDING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
    log::error!("LAPIC {} does not deliver an IPI", id());
}

/// APIC id of this CPU.
pub fn id() -> u32 {
    match mmio() {
        None => read(ID),
        Some(_) => read(ID) >> 24,
    }
}

/// Ends the interrupt in service, if there is one.
pub fn eoi() {
    // SAFETY: L0 calls this in interrupt handlers of its own only.
    unsafe { write(EOI, 0) };
}

/// Sends INIT to another CPU.
///
/// # Safety
/// The CPU must not run anything whose loss L0's memory safety depends on (a lock held, a table half written).
pub unsafe fn send_init(apic_id: u32) {
    // SAFETY: the caller answers for the CPU.
    unsafe { send(apic_id, ICR_INIT | ICR_ASSERT) };
}

/// Sends SIPI: a CPU that waits for it starts in real mode at `page` * 4096.
///
/// # Safety
/// There must be code meant for that at `page`.
pub unsafe fn send_sipi(apic_id: u32, page: u8) {
    // SAFETY: the caller answers for the code.
    unsafe { send(apic_id, ICR_STARTUP | ICR_ASSERT | u32::from(page)) };
}

/// Sends an NMI to this CPU. It is pending when the function returns, or was taken under L0's IDT.
pub fn send_nmi_self() {
    // SAFETY: L0's IDT handles NMIs at any time. By its id, since the self shorthand allows fixed delivery only.
    unsafe { send(id(), ICR_NMI | ICR_ASSERT) };
}

/// What a host (or the reset) had in the registers that a parked CPU uses.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    tpr: u32,
    svr: u32,
    timer: u32,
    divide: u32,
}

/// Makes the LAPIC of this parked CPU interrupt it from time to time. Interrupts that a host left pending are dropped
/// as soon as interrupts are on.
///
/// # Safety
/// This CPU is parked: no host counts on its LAPIC.
pub unsafe fn park() -> Parked {
    let parked = Parked {
        tpr: read(TPR),
        svr: read(SVR),
        timer: read(LVT_TIMER),
        divide: read(TIMER_DIVIDE),
    };
    // SAFETY: the caller says that the LAPIC is L0's; L0's IDT handles every vector.
    unsafe {
        write(SVR, SVR_ENABLED | super::idt::SPURIOUS as u32);
        write(TPR, 0);
        write(TIMER_DIVIDE, DIVIDE_BY_1);
        write(LVT_TIMER, LVT_PERIODIC | PARK_VECTOR);
        write(TIMER_INITIAL, PARK_COUNT);
    }
    parked
}

/// Stops the timer. One more interrupt may be pending: turn interrupts on for a moment before [`unpark`].
///
/// # Safety
/// [`park`] was called on this CPU and [`unpark`] not yet.
pub unsafe fn quiet() {
    // SAFETY: the timer is L0's, see the function's contract.
    unsafe {
        write(LVT_TIMER, LVT_MASKED | PARK_VECTOR);
        write(TIMER_INITIAL, 0);
    }
}

/// Puts the registers back.
///
/// # Safety
/// After [`quiet`], with no interrupt pending.
pub unsafe fn unpark(parked: Parked) {
    // SAFETY: these are the values that were there before, but for a timer that would start to count.
    unsafe {
        write(TIMER_DIVIDE, parked.divide);
        write(LVT_TIMER, parked.timer | LVT_MASKED);
        write(TPR, parked.tpr);
        write(SVR, parked.svr);
    }
}
