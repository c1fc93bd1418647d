//! The end-to-end tests, by name.

mod abort;
mod refuse;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    boot::{MachineArgs, SUCCESSOR},
    demo, kernel,
    run::Run,
};

/// One end-to-end test.
pub struct Scenario {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The machine it wants.
    pub machine: fn(&mut MachineArgs),
    /// The test, on the booted machine.
    pub play: fn(&mut Run) -> Result<()>,
}

/// Every scenario that `cargo lab test` plays by itself, the basic ones first: hosts without guests.
///
/// Guests are left to [`BY_NAME`]. In Bochs 3.0 a guest's kernel dies now and then of an event that KVM injects (see
/// `image/begin`), also while L0 is dormant: a test that does so at random proves nothing.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "hosts",
        about: "4 CPUs, one refresh, no guest",
        machine: |_| {},
        play: |run| refreshes(run, &[], 1),
    },
    Scenario {
        name: "hosts-three",
        about: "A to B to A', nothing unreclaimed grows",
        machine: |_| {},
        play: |run| refreshes(run, &[], 2),
    },
    Scenario {
        name: "hosts-cycle",
        about: "100 times in and out of nested under KVM, VMCSs compared",
        machine: |args| args.l0_args = "check=vmcs".into(),
        play: |run| {
            demo::native(run, &[])?;
            demo::cycle(run, 100)?;
            run.check_dormant()
        },
    },
    Scenario {
        name: "abort-hang",
        about: "a successor that hangs with interrupts off",
        machine: |_| {},
        play: abort::hang,
    },
    Scenario {
        name: "abort-triple-fault",
        about: "a successor that ends in a triple fault",
        machine: |_| {},
        play: abort::triple_fault,
    },
    Scenario {
        name: "abort-wild-write",
        about: "a successor that writes to the incumbent's memory",
        machine: |_| {},
        play: abort::wild_write,
    },
];

/// The scenarios with guests, and those that were not seen to pass yet, played by name (`--only`).
pub const BY_NAME: &[Scenario] = &[
    Scenario {
        name: "plain-kvm",
        about: "the lab itself: without L0, KVM runs a guest",
        machine: |args| {
            args.plain = true;
            args.strict = false;
            args.cpus = 2;
            // Without L0 nobody declares the pool, so the command line does; that needs addresses that stay.
            args.cmdline = "nokaslr memmap=0x17e00000%0x68000000-1+0xefffffff".into();
        },
        play: plain_kvm,
    },
    Scenario {
        name: "native",
        about: "a host boots through L0 with all CPUs, KVM runs guests, L0 takes no exit",
        machine: |_| {},
        play: |run| {
            demo::native(run, &["g1".into(), "g2".into()])?;
            ensure!(run.sh("nproc")?.trim() == "4", "not all CPUs are online");
            run.sh("locum doctor").map(drop)
        },
    },
    Scenario {
        name: "cycle",
        about: "100 times in and out of nested under two guests",
        machine: |_| {},
        play: |run| {
            demo::native(run, &["g1".into(), "g2".into()])?;
            demo::cycle(run, 100)?;
            run.check_dormant()
        },
    },
    Scenario {
        name: "refresh",
        about: "4 CPUs, one guest, one refresh",
        machine: |_| {},
        play: |run| refreshes(run, &["g1"], 1),
    },
    Scenario {
        name: "refresh-2-cpus",
        about: "the same with 2 CPUs",
        machine: |args| args.cpus = 2,
        play: |run| refreshes(run, &["g1"], 1),
    },
    Scenario {
        name: "two-guests",
        about: "a microvm and a q35 with two vCPUs, virtio disk and net, in one refresh",
        machine: |_| {},
        play: |run| refreshes(run, &["g1", "g2"], 1),
    },
    Scenario {
        name: "three-generations",
        about: "A to B to A', the same guest, nothing unreclaimed grows",
        machine: |_| {},
        play: |run| refreshes(run, &["g1"], 2),
    },
    Scenario {
        name: "refuse",
        about: "plans and files that cannot be are refused, nothing changes",
        machine: |_| {},
        play: refuse::all,
    },
    Scenario {
        name: "abort-garbage",
        about: "a successor whose kernel is garbage",
        machine: |_| {},
        play: abort::garbage,
    },
    Scenario {
        name: "abort-panic",
        about: "a successor that panics",
        machine: |_| {},
        play: abort::panic,
    },
    Scenario {
        name: "hosts-2-cpus",
        about: "one refresh with 2 CPUs, no guest",
        machine: |args| args.cpus = 2,
        play: |run| refreshes(run, &[], 1),
    },
];

fn plain_kvm(run: &mut Run) -> Result<()> {
    run.sh(
        "modprobe kvm_intel && echo off >/sys/module/kvm/parameters/nx_huge_pages && /guest/pool-up.sh",
    )?;
    run.start_guest("g1")?;
    run.check_guests()?;
    run.host().power_off(Duration::from_secs(300))
}

/// So many refreshes in one boot, the kernels taking turns.
fn refreshes(run: &mut Run, guests: &[&str], count: u32) -> Result<()> {
    let guests: Vec<_> = guests.iter().map(|name| (*name).to_owned()).collect();
    demo::native(run, &guests)?;
    let releases = [
        kernel::full_release(SUCCESSOR)?,
        run.report.incumbent.clone(),
    ];
    let mut lost = None;
    for release in releases.iter().cycle().take(count as usize) {
        let successor = demo::successor(run, release)?;
        demo::refresh(run, &successor)?;
        for guest in &run.report.guests {
            let limit = if guest.name == "g1" {
                6_000_000
            } else {
                20_000_000
            };
            ensure!(
                guest.pause_instructions < limit,
                "guest {} paused for {} instructions, the limit is {limit}",
                guest.name,
                guest.pause_instructions
            );
        }
        let now = run.report.unreclaimed_bytes;
        ensure!(
            lost.is_none_or(|lost| now <= lost),
            "unreclaimed memory grew to {now} bytes"
        );
        lost = Some(now);
    }
    run.host().power_off(Duration::from_secs(300))
}
