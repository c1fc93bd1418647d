//! PID 1 of the guest: sets the guest up and runs the checks, each in its own thread.
//!
//! One thread per vCPU holds registers and beats; one works through the buffer; one each uses the disk and the network,
//! if there are any. Every thread looks at the clocks, and every piece of work beats, so the counter moves every few
//! thousand instructions whichever thread runs: that is the resolution with which a host sees a pause.

mod disk;
mod memory;
mod net;
mod pace;
mod registers;
pub(crate) mod setup;

pub use disk::BLOCKS as DISK_BLOCKS;

use crate::beat::{BeatPage, Fault, FirstFault, Identity, Sample, Tally};
use crate::clock::{self, Floor, Look, nanoseconds};
use crate::map::Shared;
use crate::params::Params;
use crate::tsc;
use anyhow::{Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::ClockId;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// What all threads share.
struct Guest<'a> {
    page: BeatPage<'a>,
    clocks: clock::Shared,
    params: &'a Params,
    seed: u64,
}

impl Guest<'_> {
    fn fault(&self, fault: Fault, place: u64, expected: u64, found: u64) {
        self.page.record(FirstFault {
            fault,
            place,
            expected,
            found,
        });
    }

    /// Looks at the clocks and records what ran backwards.
    fn look(&self, own_tsc: &Floor) -> Look {
        let look = self.clocks.look(own_tsc);
        for (fault, backwards) in &look.faults {
            self.fault(*fault, 0, backwards.earlier, backwards.later);
        }
        self.page.add(Tally::ClockChecks, 1);
        self.page.raise(Tally::LongestStepNs, look.step_ns);
        look
    }

    /// Looks at the clocks and publishes them. One thread only.
    fn publish(&self, own_tsc: &Floor) {
        let look = self.look(own_tsc);
        self.page.publish(Sample {
            beat: self.page.beats(),
            tsc: look.tsc,
            monotonic_ns: look.monotonic_ns,
            realtime_ns: look.realtime_ns,
        });
    }
}

/// Runs as PID 1. Returns only on an error, upon which the guest's kernel panics and says so.
///
/// # Errors
/// The guest cannot be set up: the message names what is missing.
pub fn run_as_init() -> Result<()> {
    setup::mounts()?;
    let params = setup::params()?;
    let modules = if params.modules { setup::load_modules()? } else { 0 };
    if !params.measure.is_empty() {
        return crate::measure::run(&params.measure);
    }
    let memory = Shared::locked(crate::beat::PAGE_BYTES)?;
    let [words] = memory.pages() else {
        bail!("one page was asked for")
    };
    let seed = RandomState::new().build_hasher().finish();
    let identity = Identity {
        name: params.name.clone(),
        gpa: setup::physical_address(memory.address())?,
        boot_id: seed,
        started_ns: nanoseconds(ClockId::Realtime),
        buffer_bytes: params.buffer_mib << 20,
    };
    let page = BeatPage::create(words, &identity);
    page.beat();
    println!(
        "lab {}: first beat, page at {:#x}, tsc {}, monotonic {} ns, {modules} modules",
        identity.name,
        identity.gpa,
        tsc::read_ordered(),
        nanoseconds(ClockId::Monotonic)
    );
    let guest = Guest {
        page,
        clocks: clock::Shared::default(),
        params: &params,
        seed,
    };
    run(&guest)
}

fn run(guest: &Guest<'_>) -> Result<()> {
    let buffer = Shared::private(usize::try_from(guest.params.buffer_mib << 20)?)?;
    let cpus = online_cpus()?;
    let last = cpus.last().copied().unwrap_or(0);
    std::thread::scope(|scope| {
        for &cpu in &cpus {
            scope.spawn(move || {
                bind(cpu);
                registers::work(guest, cpu as u64, cpu == 0);
            });
        }
        scope.spawn(|| {
            bind(last);
            memory::work(guest, &buffer);
        });
        if let Some(disk) = disk::Disk::find() {
            scope.spawn(move || disk.work(guest));
        }
        if let Some(net) = net::Net::find() {
            scope.spawn(move || net.work(guest));
        }
        report(guest)
    })
}

/// Says on the console, from time to time, what the beat page says.
fn report(guest: &Guest<'_>) -> Result<()> {
    let Params {
        name,
        report_ms,
        reboot_after,
        ..
    } = guest.params;
    let page = guest.page;
    loop {
        std::thread::sleep(Duration::from_millis(if *report_ms == 0 { 1000 } else { *report_ms }));
        if *report_ms > 0 {
            let faults = page.faults();
            let ms = nanoseconds(ClockId::Monotonic) / 1_000_000;
            println!(
                "lab {name}: beat {} passes {} faults {faults} at {ms} ms",
                page.beats(),
                page.tally(Tally::Passes)
            );
            if let Some(first) = page.first_fault() {
                println!("lab {name}: first {first:x?}");
            }
        }
        if *reboot_after > 0 && page.beats() > *reboot_after {
            setup::reboot()?;
        }
    }
}

pub(crate) fn online_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Binds the calling thread to one vCPU: its TSC is about that vCPU alone.
pub(crate) fn bind(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        println!("lab: cannot bind a thread to vCPU {cpu}: {error}");
    }
}
