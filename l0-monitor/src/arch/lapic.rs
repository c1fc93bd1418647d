//! The LAPIC of the CPU that runs this (SDM vol. 3A, chapter 11), in xAPIC or x2APIC mode as it was found.
//!
//! A LAPIC belongs to its CPU's host. L0 uses it to start CPUs at boot, to send INIT to the CPUs of a dead host and
//! NMIs to itself, and, while a CPU is parked and no host uses it, its timer.
//!
//! The crate `x2apic` is for the owner of a LAPIC, and L0 is a guest in it: the crate takes x2APIC mode wherever CPUID
//! has it, whatever mode a host left, and does not let task priority, spurious vector, local vectors and in-service
//! registers be read, which a parked CPU must save, wait for and put back.
#![expect(unsafe_code, reason = "the LAPIC is memory-mapped or behind WRMSR")]

use x86_64::registers::model_specific::ApicBaseFlags;

use super::{msr, paging};

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
/// In-service register: eight words of 32 vectors.
const ISR: u32 = 0x100;
/// Priority classes of vectors (SDM vol. 3A, 11.8.3.1).
const PRIORITY_CLASSES: usize = 16;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const VERSION: u32 = 0x30;
const LVT_TIMER: u32 = 0x320;
/// The other local vectors, each with the least "max LVT entry" of the version register of a LAPIC that has it (SDM
/// vol. 3A, 11.5.1): LINT0, LINT1 and errors always, then performance counters, thermal sensor, CMCI.
const LOCAL_VECTORS: [(u32, u32); 6] = [(0x350, 0), (0x360, 0), (0x370, 0), (0x340, 4), (0x330, 5), (0x2f0, 6)];
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

/// Vector of spurious interrupts (SDM vol. 3A, 11.9).
const SPURIOUS_VECTOR: u32 = 0xff;
/// Vector of the parked CPU's timer.
const PARK_VECTOR: u32 = 0xf0;
/// Timer counts between two looks of a parked CPU at its mailbox: 1 to 4 ms with the bus or crystal clocks of 25 to
/// 100 MHz that there are.
const PARK_COUNT: u32 = 100_000;

/// IA32_ARCH_CAPABILITIES: there is IA32_XAPIC_DISABLE_STATUS (SDM vol. 4, table 2-2).
const HAS_XAPIC_DISABLE_STATUS: u64 = 1 << 21;
/// IA32_XAPIC_DISABLE_STATUS: LAPICs can't leave x2APIC mode.
const LEGACY_XAPIC_DISABLED: u64 = 1 << 0;

/// Whether LAPICs can't leave x2APIC mode. `read` reads an MSR, `None` where there is none.
pub(crate) fn is_x2apic_locked(read: impl Fn(u32) -> Option<u64>) -> bool {
    let told = read(msr::ARCH_CAPABILITIES).is_some_and(|bits| bits & HAS_XAPIC_DISABLE_STATUS != 0);
    told && read(msr::XAPIC_DISABLE_STATUS).is_some_and(|bits| bits & LEGACY_XAPIC_DISABLED != 0)
}

/// How to reach this CPU's LAPIC. Good for as long as nobody changes its mode, so only while L0 keeps the CPU.
#[derive(Clone, Copy, Debug)]
struct Access {
    /// Address of the registers, `None` in x2APIC mode.
    mmio: Option<u64>,
}

impl Access {
    fn new() -> Self {
        let base = msr::read(msr::APIC_BASE);
        let x2apic = ApicBaseFlags::from_bits_retain(base).contains(ApicBaseFlags::X2APIC_ENABLE);
        Self {
            mmio: (!x2apic).then_some(base & paging::ADDRESS),
        }
    }

    fn read(self, register: u32) -> u32 {
        match self.mmio {
            None => msr::read(msr::X2APIC + register / 16) as u32,
            // SAFETY: the LAPIC's registers are at that address, which L0 maps one to one; reading those that L0 reads
            // has no side effect.
            Some(base) => unsafe { ((base + u64::from(register)) as *const u32).read_volatile() },
        }
    }

    /// # Safety
    /// The write must not make the LAPIC deliver what L0 or the CPU's host does not expect.
    unsafe fn write(self, register: u32, value: u32) {
        match self.mmio {
            // SAFETY: the caller answers for the effect.
            None => unsafe { msr::write(msr::X2APIC + register / 16, u64::from(value)) },
            // SAFETY: the LAPIC's registers are at that address; the caller answers for the effect.
            Some(base) => unsafe {
                ((base + u64::from(register)) as *mut u32).write_volatile(value);
            },
        }
    }

    fn id(self) -> u32 {
        match self.mmio {
            None => self.read(ID),
            Some(_) => self.read(ID) >> 24,
        }
    }

    fn has(self, local_vector: u32) -> bool {
        let last = self.read(VERSION) >> 16 & 0xff;
        LOCAL_VECTORS
            .iter()
            .any(|(register, least)| *register == local_vector && *least <= last)
    }

    /// # Safety
    /// Nobody may count on this local vector.
    unsafe fn mask(self, local_vector: u32) {
        if self.has(local_vector) {
            let value = self.read(local_vector);
            // SAFETY: a masked vector delivers nothing, and the caller says that nobody misses it.
            unsafe { self.write(local_vector, value | LVT_MASKED) };
        }
    }

    fn wait_delivered(self) {
        for _ in 0..DELIVERY_POLLS {
            if self.read(ICR_LOW) & ICR_PENDING == 0 {
                return;
            }
            core::hint::spin_loop();
        }
        log::error!("LAPIC {} does not deliver an IPI", self.id());
    }

    /// # Safety
    /// As for [`Self::write`].
    unsafe fn send(self, apic_id: u32, command: u32) {
        if self.mmio.is_none() {
            let icr = u64::from(apic_id) << 32 | u64::from(command);
            // SAFETY: the caller answers for the effect. The x2APIC has no delivery status to wait for.
            unsafe { msr::write(msr::X2APIC + ICR_LOW / 16, icr) };
            return;
        }
        self.wait_delivered();
        // The host may have been between its two writes of the ICR.
        let destination = self.read(ICR_HIGH);
        // SAFETY: the caller answers for the effect.
        unsafe {
            self.write(ICR_HIGH, apic_id << 24);
            self.write(ICR_LOW, command);
        }
        self.wait_delivered();
        // SAFETY: nothing is sent until the lower half is written.
        unsafe { self.write(ICR_HIGH, destination) };
    }
}

/// Sends INIT to another CPU.
///
/// # Safety
/// The CPU must not run anything whose loss L0's memory safety depends on (a lock held, a table half written).
pub(crate) unsafe fn send_init(apic_id: u32) {
    // SAFETY: the caller answers for the CPU.
    unsafe { Access::new().send(apic_id, ICR_INIT | ICR_ASSERT) };
}

/// Sends SIPI: a CPU that waits for it starts in real mode at `page` * 4096.
///
/// # Safety
/// There must be code meant for that at `page`.
pub(crate) unsafe fn send_sipi(apic_id: u32, page: u8) {
    // SAFETY: the caller answers for the code.
    unsafe { Access::new().send(apic_id, ICR_STARTUP | ICR_ASSERT | u32::from(page)) };
}

/// Sends an NMI to this CPU. It is pending when the function returns, or was taken under L0's IDT.
pub(crate) fn send_nmi_self() {
    let lapic = Access::new();
    // SAFETY: L0's IDT handles NMIs at any time. By its id, since the self shorthand allows fixed delivery only.
    unsafe { lapic.send(lapic.id(), ICR_NMI | ICR_ASSERT) };
}

/// The LAPIC of a parked CPU, and what a host (or the reset) had in the registers that L0 uses meanwhile.
#[derive(Debug)]
pub(crate) struct Parked {
    lapic: Access,
    tpr: u32,
    svr: u32,
    timer: u32,
    divide: u32,
    vectors: [u32; LOCAL_VECTORS.len()],
}

impl Parked {
    /// Makes the LAPIC of this parked CPU interrupt it from time to time. Interrupts that a host left pending are
    /// dropped as soon as interrupts are on.
    ///
    /// # Safety
    /// This CPU is parked: no host counts on its LAPIC.
    pub(crate) unsafe fn new() -> Self {
        let lapic = Access::new();
        let parked = Self {
            lapic,
            vectors: LOCAL_VECTORS.map(|(register, _)| match lapic.has(register) {
                true => lapic.read(register),
                false => 0,
            }),
            tpr: lapic.read(TPR),
            svr: lapic.read(SVR),
            timer: lapic.read(LVT_TIMER),
            divide: lapic.read(TIMER_DIVIDE),
        };
        // SAFETY: the caller says that the LAPIC is L0's; L0's IDT handles every vector.
        unsafe {
            // A counter or a sensor that a host left on must not raise NMIs in L0.
            for (register, _) in LOCAL_VECTORS {
                lapic.mask(register);
            }
            lapic.write(SVR, SVR_ENABLED | SPURIOUS_VECTOR);
            lapic.write(TPR, 0);
            lapic.write(TIMER_DIVIDE, DIVIDE_BY_1);
            lapic.write(LVT_TIMER, LVT_PERIODIC | PARK_VECTOR);
            lapic.write(TIMER_INITIAL, PARK_COUNT);
        }
        parked
    }

    /// Ends all interrupts in service: those taken since the last call, and one that a host may have left there.
    pub(crate) fn acknowledge(&self) {
        // At most one per priority class can be in service.
        for _ in 0..PRIORITY_CLASSES {
            let in_service = (0..8).any(|i| self.lapic.read(ISR + 16 * i) != 0);
            if !in_service {
                return;
            }
            // SAFETY: the LAPIC is L0's, see `new`.
            unsafe { self.lapic.write(EOI, 0) };
        }
    }

    /// Stops the timer. One more interrupt may be pending: turn interrupts on for a moment, then [`Self::restore`].
    pub(crate) fn quiet(&self) {
        // SAFETY: the timer is L0's, see `new`.
        unsafe {
            self.lapic.write(LVT_TIMER, LVT_MASKED | PARK_VECTOR);
            self.lapic.write(TIMER_INITIAL, 0);
        }
    }

    /// Puts the registers back, but for a timer that would start to count.
    ///
    /// # Safety
    /// After [`Self::quiet`], with interrupts off and none pending.
    pub(crate) unsafe fn restore(self) {
        self.acknowledge();
        // SAFETY: these are the values that were there before.
        unsafe {
            self.lapic.write(TIMER_DIVIDE, self.divide);
            self.lapic.write(LVT_TIMER, self.timer | LVT_MASKED);
            self.lapic.write(TPR, self.tpr);
            for ((register, _), value) in LOCAL_VECTORS.into_iter().zip(self.vectors) {
                if self.lapic.has(register) {
                    self.lapic.write(register, value);
                }
            }
            // Last: a LAPIC that is off keeps its vectors masked.
            self.lapic.write(SVR, self.svr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2apic_is_locked_where_the_cpu_can_tell_and_does() {
        let locked = |capabilities, status| {
            is_x2apic_locked(|msr| match msr {
                msr::ARCH_CAPABILITIES => capabilities,
                msr::XAPIC_DISABLE_STATUS => status,
                _ => panic!("{msr:#x}"),
            })
        };
        assert!(locked(Some(1 << 21 | 1), Some(1)));
        assert!(!locked(Some(1 << 21), Some(2)));
        assert!(!locked(Some(1 << 20), Some(1)), "what is read there means nothing");
        assert!(!locked(None, Some(1)) && !locked(Some(1 << 21), None));
    }
}
