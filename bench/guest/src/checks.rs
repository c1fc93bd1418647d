//! The checks at work, in the guest's first process, each in its own thread.
//!
//! One thread per vCPU holds registers and beats; one works through the buffer; one each uses the disk and the network,
//! if there are any. Every thread looks at the clocks, and every piece of work beats, so the counter moves every few
//! thousand instructions whichever thread runs: that is the resolution with which a host sees a pause.

mod disk;
mod guest;
mod memory;
mod net;
mod pace;
mod registers;

use crate::beat::{BeatPage, Identity, PAGE_BYTES, Tally};
use crate::clock::{self, nanoseconds};
use crate::cpus::{bind, online_cpus};
use crate::map::Shared;
use crate::params::Params;
use crate::{setup, tsc};
use anyhow::{Result, bail};
use guest::Guest;
use rustix::time::ClockId;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Runs the checks for as long as the guest lives. Returns only on an error.
///
/// # Errors
/// There is too little memory: the message names what is missing.
pub(crate) fn run(params: &Params) -> Result<()> {
    let memory = Shared::locked(PAGE_BYTES)?;
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
        "lab {}: first beat, page at {:#x}, tsc {}, monotonic {} ns",
        identity.name,
        identity.gpa,
        tsc::read_ordered(),
        nanoseconds(ClockId::Monotonic)
    );
    work(&Guest {
        page,
        clocks: clock::Shared::default(),
        params,
        seed,
    })
}

fn work(guest: &Guest<'_>) -> Result<()> {
    let buffer = Shared::private(usize::try_from(guest.params.buffer_mib << 20)?)?;
    let cpus = online_cpus()?;
    let last = cpus.last().copied().unwrap_or(0);
    let disk = disk::Disk::find();
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
        if let Some(disk) = &disk {
            for first in 0..guest.params.disk_depth {
                scope.spawn(move || disk.work(guest, first, guest.params.disk_depth));
            }
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
