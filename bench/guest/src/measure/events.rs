//! The events themselves.
#![expect(unsafe_code, reason = "IN, VMCALL and iopl; loads from devices are in map.rs")]

use super::orders::{Event, Measured};
use super::timing::{self, Ticker};
use crate::beat::PAGE_BYTES;
use crate::cpus::{bind, online_cpus};
use crate::map::Shared;
use crate::tsc;
use anyhow::{Context, Result, bail, ensure};
use std::arch::asm;
use std::sync::atomic::{AtomicBool, Ordering};

/// Edge/level control of KVM's PIC, which it has even where the machine shows none (arch/x86/kvm/i8259.c).
const ELCR: u16 = 0x4d0;
/// COM2, which the guest does not have.
const NO_PORT: u16 = 0x2f8;
/// KVM's IOAPIC.
const IOAPIC: u64 = 0xfec0_0000;
/// The first virtio-mmio transport of QEMU's microvm, and what its first word reads as ("virt").
const VIRTIO: (u64, u32) = (0xfeb0_0000, 0x7472_6976);
/// RAM that `measure.sh` hides from the guest's kernel (`memmap=32M$112M`), so that nobody has touched it:
/// below 96 MiB the kernel unpacked itself, and the initramfs lies at the end.
const FRESH: (u64, u64) = (112 << 20, 32 << 20);

/// Everything that the events need, set up once.
#[derive(Debug)]
pub(super) struct Bench {
    cpus: Vec<usize>,
    ticker: Ticker,
    ioapic: Shared,
    virtio: Shared,
    fresh: Shared,
    touched: usize,
}

impl Bench {
    /// Gets at ports and devices.
    ///
    /// # Errors
    /// Not root, or not a guest of `measure.sh`: the message says what is missing.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: iopl lets this process use ports; what it does with them is in this file.
        ensure!(unsafe { libc::iopl(3) } == 0, "iopl: run as root");
        let bench = Bench {
            cpus: online_cpus()?,
            ticker: Ticker::new()?,
            ioapic: Shared::physical(IOAPIC, PAGE_BYTES)?,
            virtio: Shared::physical(VIRTIO.0, PAGE_BYTES)?,
            fresh: Shared::physical(FRESH.0, usize::try_from(FRESH.1)?)?,
            touched: 0,
        };
        bind(0);
        let word = bench.virtio.first_u32();
        ensure!(
            word == VIRTIO.1,
            "no virtio-mmio at {:#x}: {word:#x}; run as a microvm",
            VIRTIO.0
        );
        Ok(bench)
    }

    /// Numbers of the guest's CPUs.
    #[must_use]
    pub(super) fn cpus(&self) -> &[usize] {
        &self.cpus
    }

    /// Measures an event.
    ///
    /// # Errors
    /// The guest is not one that can: too few CPUs, or no untouched RAM left.
    pub(super) fn measure(&mut self, event: Event, count: u32) -> Result<Measured> {
        let mut empty = each(count, || {});
        empty.sort_unstable();
        let middle = empty.get(empty.len() / 2).copied().unwrap_or(0);
        let (ticks, base) = match event {
            Event::Empty => (empty, 0),
            Event::Cpuid => (each(count, cpuid), middle),
            Event::Vmcall => (each(count, vmcall), middle),
            Event::PioKernel => (each(count, || input(ELCR)), middle),
            Event::PioUser => (each(count, || input(NO_PORT)), middle),
            Event::MmioKernel => (each(count, || load(&self.ioapic)), middle),
            Event::MmioUser => (each(count, || load(&self.virtio)), middle),
            Event::Ept => (self.touch(count)?, middle),
            Event::Ipi => (self.ipi(count)?, middle),
            Event::Timer => (self.ticker.interruptions(count)?, middle),
        };
        Measured::new(event, ticks, base).context("nothing was measured")
    }

    fn touch(&mut self, count: u32) -> Result<Vec<u64>> {
        let first = self.touched;
        let left = self.fresh.pages().len() - first;
        let wanted = count as usize;
        if wanted > left {
            bail!("only {left} untouched pages are left");
        }
        self.touched += wanted;
        let mut page = first;
        let pages = self.fresh.pages();
        Ok(each(count, || {
            // Through a black box, or the compiler moves the store out from between the readings.
            if let Some(words) = std::hint::black_box(pages.get(page)) {
                words[0].store(1, Ordering::Release);
            }
            page += 1;
        }))
    }

    /// The other thread spins in user mode on another vCPU, so the kernel must interrupt it: `membarrier(2)` returns
    /// when its handler has run.
    fn ipi(&self, count: u32) -> Result<Vec<u64>> {
        let Some(&other) = self.cpus.iter().find(|cpu| **cpu != 0) else {
            bail!("needs two vCPUs (-smp 2)");
        };
        timing::membarrier_register()?;
        let (up, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bind(other);
                up.store(true, Ordering::Release);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            while !up.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let ticks = each(count, timing::membarrier);
            stop.store(true, Ordering::Relaxed);
            Ok(ticks)
        })
    }
}

/// Ticks of each of `count` turns.
fn each(count: u32, mut turn: impl FnMut()) -> Vec<u64> {
    // Written before, so that no page of it is touched for the first time while ticks are counted.
    let mut ticks = vec![u64::MAX; count as usize];
    for turn_ticks in &mut ticks {
        let begin = tsc::read_ordered();
        turn();
        *turn_ticks = tsc::read_ordered().wrapping_sub(begin);
    }
    ticks
}

fn cpuid() {
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
}

/// Hypercall 0 does not exist in KVM, so nothing is done even where user mode were allowed to ask.
fn vmcall() {
    // SAFETY: in a guest of KVM it changes RAX only.
    unsafe { asm!("vmcall", inout("rax") 0u64 => _, options(nostack)) };
}

fn load(device: &Shared) {
    std::hint::black_box(device.first_u32());
}

fn input(port: u16) {
    let byte: u8;
    // SAFETY: iopl(3) was granted, and reading these two ports changes nothing.
    unsafe { asm!("in al, dx", in("dx") port, out("al") byte, options(nostack, nomem)) };
    std::hint::black_box(byte);
}
