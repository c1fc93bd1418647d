//! The second board: machines on which L0 stays dormant, with the firmware, the layout and the size that the first board
//! has not.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    debian::kernels::OLDEST,
    machine::{
        board::{Board, Chipset, Firmware, SKYLAKE, X2APIC},
        deadline::Span,
        layout::Layout,
        platform::Platform,
    },
    progress::Progress,
    steps::{Run, prepare::MachineArgs},
};

/// Seconds of its own time after which a machine is killed.
const LIMIT: u64 = 600;

/// Long enough for a host that lives to say so, even if it has to boot first.
const ANSWER: Span = Span::seconds(120);

/// A machine, and what must hold of it.
struct Case {
    /// In a word.
    name: &'static str,
    /// What it is like.
    machine: fn(&mut MachineArgs),
    /// What must hold, in this order. Nothing comes after the last of [`OFF`].
    checks: &'static [&'static [Check]],
}

/// What must hold, in words, and how that is seen.
type Check = (&'static str, fn(&mut Run) -> Result<()>);

/// Whatever the machine is.
const HOST: &[Check] = &[
    ("L0 has started the host", Run::under_l0),
    ("DMI", Run::dmi),
    ("the kernel keeps out of the pool", Run::pool_is_free),
    ("KASLR, below the memory that successors get", Run::kaslr),
    ("entering is refused, and the doctor says why", |run| {
        run.cannot_enter().map(drop)
    }),
];

/// Where L0 can't be.
const WITHOUT_L0: &[Check] = &[
    ("the host runs without L0, on all CPUs", Run::without_l0),
    ("the command line says why", |run| {
        run.boot_error("no two usable pieces")
    }),
    // What came before it, the kernel's own loader scrolls away.
    ("the screen said what comes", |run| run.text_screen("without Locum")),
    ("power-off", Run::switch_off),
];

/// The firmware's memory map does not fit the zero page.
const LONG_MAP: &[Check] = &[("a memory map of more than 128 entries", Run::long_map)];

/// What L0 does for the host's CPUs.
const CPUS: &[Check] = &[
    ("three rounds of CPU offline and online", |run| {
        run.cpus_off_and_on(&[1, 2, 3], 3)
    }),
    ("a broadcast machine check beside a parked CPU", Run::machine_check),
];

/// What a BIOS has set up.
const BIOS: &[Check] = &[("a screen", Run::screen)];

/// What UEFI has set up.
const UEFI: &[Check] = &[("the framebuffer", Run::framebuffer), ("EFI variables", Run::efivars)];

/// What the firmware has handed over.
const LAYOUT: &[Check] = &[
    ("x2APIC on at hand-over", Run::x2apic),
    ("two NUMA nodes", Run::two_nodes),
];

/// A pool by size.
const POOL: &[Check] = &[("a piece of the pool on each node", Run::pool_on_both_nodes)];

/// The end.
const OFF: &[Check] = &[
    ("reboot", Run::reboot),
    ("the kernel keeps out of the pool, again", Run::pool_is_free),
    ("power-off", Run::switch_off),
];

/// SeaBIOS on both chipsets, with holes where real machines have some, and with one that leaves L0 no room.
pub(super) fn bios(dir: &Path) -> Result<()> {
    const ALL: &[&[Check]] = &[HOST, BIOS, CPUS, OFF];
    each(
        dir,
        &[
            Case {
                name: "q35",
                machine: |_| {},
                checks: ALL,
            },
            Case {
                name: "pc",
                machine: |args| {
                    args.board.chipset = Chipset::Pc;
                },
                checks: ALL,
            },
            Case {
                name: "la57",
                machine: |args| args.board.tcg_cpu = format!("{SKYLAKE},+la57"),
                checks: &[HOST, &[("five-level paging", Run::five_levels)], CPUS, OFF],
            },
            Case {
                name: "holes",
                machine: |args| {
                    args.board.grub = [
                        "cutmem 0x28000 0x2a000",
                        "cutmem 0x58000 0x59000",
                        "cutmem 0x800000 0x900000",
                    ]
                    .map(String::from)
                    .into();
                },
                checks: &[HOST, CPUS, &[("power-off", Run::switch_off)]],
            },
            Case {
                name: "fragments",
                machine: |args| args.board.grub = fragments().collect(),
                checks: &[HOST, LONG_MAP, &[("power-off", Run::switch_off)]],
            },
            Case {
                name: "no-room",
                machine: |args| {
                    args.board.grub = vec!["cutmem 0x20000 0x9f000".into()];
                    args.board.grub.extend(fragments());
                },
                checks: &[LONG_MAP, WITHOUT_L0],
            },
        ],
    )
}

/// Makes a memory map of more entries than the zero page has room for: one page in 64 KiB is missing.
fn fragments() -> impl Iterator<Item = String> {
    const START: u64 = 0x2000_0000;
    (0..150u64).map(|nth| {
        let hole = START + nth * 0x1_0000;
        format!("cutmem {hole:#x} {:#x}", hole + 0x1000)
    })
}

/// OVMF of three kinds, on two sockets with a NUMA node each.
pub(super) fn uefi(dir: &Path) -> Result<()> {
    const ALL: &[&[Check]] = &[HOST, UEFI, LAYOUT, CPUS, OFF];
    each(
        dir,
        &[
            Case {
                name: "no-s3",
                machine: |args| server(args, Firmware::UefiNoS3),
                checks: ALL,
            },
            Case {
                name: "s3",
                machine: |args| server(args, Firmware::Uefi),
                checks: ALL,
            },
            Case {
                name: "smm",
                machine: |args| {
                    server(args, Firmware::UefiSmm);
                    // The later one counts.
                    args.l0_args = "pool=25%".into();
                },
                checks: &[HOST, POOL, UEFI, LAYOUT, CPUS, OFF],
            },
        ],
    )
}

/// Two sockets and nodes, and a pool in the second node's RAM.
fn server(args: &mut MachineArgs, firmware: Firmware) {
    args.board = Board {
        firmware,
        memory: 6144,
        sockets: 2,
        nodes: 2,
        grub: vec![X2APIC.into()],
        ..Board::default()
    };
    // Below 4 GiB there are 2; the rest begins there.
    args.layout = Layout {
        memory: 8192,
        pool: 5120,
        pool_end: 6144,
        successor: 512,
    };
}

/// More than 64 CPUs, and so much RAM that Linux makes memory blocks of 2 GiB.
pub(super) fn big(dir: &Path) -> Result<()> {
    const SIZE: &[Check] = &[("memory blocks of 2 GiB", blocks), ("all RAM", all_ram)];
    each(
        dir,
        &[Case {
            name: "big",
            machine: |args| {
                args.cpus = 72;
                args.board = Board {
                    memory: 68 * 1024,
                    sockets: 2,
                    threads: 2,
                    nodes: 2,
                    ..Board::default()
                };
                args.layout = Layout {
                    memory: 70 * 1024,
                    pool: 64 * 1024,
                    pool_end: 66 * 1024,
                    successor: 2048,
                };
            },
            checks: &[
                HOST,
                SIZE,
                &[
                    ("two NUMA nodes", Run::two_nodes),
                    // To stop 72 CPUs for each takes as long as anything here.
                    ("CPU offline and online", |run| run.cpus_off_and_on(&[1, 36, 71], 1)),
                    ("a broadcast machine check beside a parked CPU", Run::machine_check),
                    ("power-off", Run::switch_off),
                ],
            ],
        }],
    )
}

fn blocks(run: &mut Run) -> Result<()> {
    let size = run.sh("cat /sys/devices/system/memory/block_size_bytes")?;
    ensure!(size.trim() == "80000000", "memory blocks have 0x{} bytes", size.trim());
    Ok(())
}

/// All but the pool's 2 GiB and what Linux itself takes.
fn all_ram(run: &mut Run) -> Result<()> {
    let kib: u64 = run.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")?.trim().parse()?;
    ensure!(kib >> 20 >= 63, "the host has {} GiB of 66", kib >> 20);
    Ok(())
}

/// Tries everything on each machine, and tells all that does not hold.
fn each(dir: &Path, cases: &[Case]) -> Result<()> {
    let mut bad = Vec::new();
    let mut tried = 0;
    for case in cases {
        let dir = dir.join(case.name);
        let outcome = play(case, &dir, &mut tried, &mut bad);
        let iso = dir.join("boot.iso");
        if iso.exists() {
            fs::remove_file(iso)?;
        }
        if let Err(error) = outcome {
            bad.push(format!("{}: {error:#}", case.name));
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {tried} things do not hold on the second board:\n- {}",
        bad.len(),
        bad.join("\n- ")
    )
}

/// One machine.
///
/// # Errors
/// It does not boot, or is gone before everything was tried.
fn play(case: &Case, dir: &Path, tried: &mut usize, bad: &mut Vec<String>) -> Result<()> {
    let mut args = MachineArgs {
        strict: true,
        timeout: LIMIT,
        platform: Platform::Tcg,
        // Nobody comes after it.
        to: OLDEST.into(),
        dir: Some(dir.to_owned()),
        ..MachineArgs::default()
    };
    (case.machine)(&mut args);
    *tried += 1;
    let mut run = Run::boot(&args, Progress::new(case.name))?;
    let checks: Vec<_> = case.checks.concat();
    let outcome = (|| {
        for (what, check) in &checks {
            run.progress.step(what);
            *tried += 1;
            match check(&mut run) {
                Ok(()) => run.check(what),
                Err(error) => {
                    bad.push(format!("{}: {what}: {error:#}", case.name));
                    // A host that is gone would only say so again with all that comes next. One that reset the
                    // machine comes back, and the first question may be lost meanwhile.
                    let answer = run.host().run("true", ANSWER);
                    answer
                        .or_else(|_| run.host().run("true", ANSWER))
                        .context("what comes next was not tried: the host does not answer any more")?;
                }
            }
        }
        Ok(())
    })();
    run.report.ok = outcome.is_ok() && run.report.checks.len() == checks.len();
    run.report.write(&dir.join("report.json"))?;
    outcome
}
