//! The end-to-end tests, by name.

mod abort;
mod board;
mod debian;
mod dumps;
mod faults;
mod fleet;
mod floor;
mod growth;
mod install;
mod instructions;
mod kmod;
mod kvm_selftests;
mod libvirt;
mod mce;
mod native;
mod nmi;
mod package;
mod pool;
mod qemus;
mod refreshes;
mod refuse;
mod selftest;
mod service;
mod stock;
mod tools;

use std::path::Path;

use anyhow::Result;

use crate::{
    debian::kernels::{NEXT, OLDEST},
    machine::{
        bochs::{IVY_BRIDGE, SKYLAKE_X, TIGER_LAKE},
        layout::Layout,
    },
    steps::{Run, prepare::MachineArgs},
};

/// One end-to-end test.
pub(crate) struct Scenario {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Minutes that it takes where nothing else runs, roughly.
    pub minutes: u32,
    /// The test.
    pub play: Play,
}

/// A test.
#[derive(Clone, Copy)]
pub(crate) enum Play {
    /// On a booted machine: what it wants of the machine, and what is done there.
    On(fn(&mut MachineArgs), fn(&mut Run) -> Result<()>),
    /// Without one. It may use the directory given, which is not there yet.
    Program(fn(&Path) -> Result<()>),
}

/// Successors that fail on a machine as usual.
const fn abort(name: &'static str, about: &'static str, play: fn(&mut Run) -> Result<()>) -> Scenario {
    Scenario {
        name,
        about,
        minutes: 5,
        play: Play::On(|_| {}, play),
    }
}

/// Every scenario.
pub(crate) fn every() -> impl Iterator<Item = &'static Scenario> {
    CI.iter().chain(BY_NAME)
}

/// Every scenario that `cargo lab test` plays by itself. A boot takes a minute or more, so each boot shows many things.
pub(crate) const CI: &[Scenario] = &[
    Scenario {
        name: "native",
        about: "all CPUs, KVM and two guests without an exit to L0; 100 times in and out of nested; bad plans refused",
        minutes: 10,
        play: Play::On(
            |args| {
                args.l0_args = "check=vmcs".into();
                // How `echo b > /proc/sysrq-trigger` resets: by a triple fault.
                args.cmdline = "reboot=triple".into();
            },
            native::all,
        ),
    },
    Scenario {
        name: "refresh-next",
        about: "from the stable line to the newest backports kernel and back, under a microvm and a q35 with two vCPUs, \
                virtio disk and net, on 4 CPUs of a server's model, KVM using APICv with posted interrupts; nothing \
                unreclaimed grows",
        minutes: 15,
        play: Play::On(
            |args| {
                args.to = NEXT.into();
                args.cpu_model = SKYLAKE_X.into();
            },
            |run| refreshes::all(run, &["g1", "g2"], 2),
        ),
    },
    Scenario {
        name: "refresh-2-cpus",
        about: "2 CPUs of a model without VMCS shadowing, one guest, one refresh, in which the incumbent's daemon is killed",
        minutes: 4,
        play: Play::On(
            |args| {
                args.cpus = 2;
                args.cpu_model = IVY_BRIDGE.into();
            },
            |run| refreshes::with(run, &["g1"], 1, Some(&faults::IN_CI)),
        ),
    },
    Scenario {
        name: "floor",
        about: "one CPU with APICv: a nested guest's CPUID takes two entries of L0 and few instructions more than natively",
        minutes: 3,
        play: Play::On(floor::machine, floor::all),
    },
    Scenario {
        name: "floor-next",
        about: "the same on the newest backports kernel",
        minutes: 3,
        play: Play::On(
            |args| {
                floor::machine(args);
                args.kernel = NEXT.into();
                args.to = NEXT.into();
            },
            floor::all,
        ),
    },
    Scenario {
        name: "selftest",
        about: "L0's self-test passes on three models of CPUs, and tells what VMX instructions cost there",
        minutes: 1,
        play: Play::Program(selftest::all),
    },
    Scenario {
        name: "kmod-oldest",
        about: "locum.ko's own tests on the oldest kernel, on a fake L0 (QEMU without VMX)",
        minutes: 2,
        play: Play::Program(|dir| kmod::check(OLDEST, dir)),
    },
    Scenario {
        name: "kmod-next",
        about: "the same on the newest backports kernel",
        minutes: 2,
        play: Play::Program(|dir| kmod::check(NEXT, dir)),
    },
    Scenario {
        name: "bios",
        about: "the second board (QEMU TCG, no VMX) with SeaBIOS, q35, pc, and holes in its RAM: L0 stays dormant, the host \
                has all that it has without L0; a broadcast machine check, reboot, power-off",
        minutes: 2,
        play: Play::Program(board::bios),
    },
    Scenario {
        name: "uefi",
        about: "the same with OVMF, with and without S3, and its build for SMM: 2 sockets, 2 NUMA nodes, x2APIC; \
                framebuffer, EFI variables",
        minutes: 3,
        play: Play::Program(board::uefi),
    },
    Scenario {
        name: "big",
        about: "the same with 72 CPUs and 68 GiB of RAM, most of it never touched",
        minutes: 2,
        play: Play::Program(board::big),
    },
    Scenario {
        name: "libvirt",
        about: "two libvirts of Debian's in namespaces that stand for hosts: a guest crosses three times, its RAM in place, and \
                is paused, saved and started where it is then; where it has ordinary RAM it does not go",
        minutes: 1,
        play: Play::Program(libvirt::all),
    },
    Scenario {
        name: "qemus",
        about: "real QEMUs of the hosts' version, without KVM: guests cross between two of them and get another one, their RAM in \
                place, and what fails or dies on the way",
        minutes: 1,
        play: Play::Program(qemus::all),
    },
    Scenario {
        name: "fleet",
        about: "the package's playbook on two programs that stand for machines: one is refreshed after the other, and the first \
                failure stops it",
        minutes: 1,
        play: Play::Program(fleet::all),
    },
    Scenario {
        name: "aborts",
        about: "three successors that fail under a guest, then one that does not",
        minutes: 6,
        play: Play::On(
            |_| {},
            |run| {
                let faults = [abort::HANG, abort::TRIPLE_FAULT, abort::WILD_WRITE];
                abort::each(run, &["g1".into()], &faults)
            },
        ),
    },
];

/// Smaller ones, for the search for a fault, played by name (`--only`).
pub(crate) const BY_NAME: &[Scenario] = &[
    Scenario {
        name: "package",
        about: "the Debian package is made, installed, and purged in a directory: lintian is quiet, DKMS builds the module, \
                GRUB's menu has the entry, the next boot goes by way of Locum once, purge leaves nothing",
        minutes: 5,
        play: Play::Program(package::all),
    },
    Scenario {
        name: "install",
        about: "the second board with UEFI and Debian on its disk: the package is installed, the server boots by way of Locum; \
                an L0 that cannot be loaded, one that refuses and one that hangs cost one boot each; purge leaves nothing",
        minutes: 20,
        play: Play::Program(install::all),
    },
    Scenario {
        name: "debian",
        about: "the emulated server with a disk: a whole Debian with Locum's package boots above L0 from its own root, its \
                units are up, the disk's PCI function goes and comes back, and what is written outlives a reboot",
        minutes: 10,
        play: Play::Program(debian::all),
    },
    Scenario {
        name: "debian-refresh",
        about: "the same: by `locum refresh --kernel` to the newest backports kernel and back, under a microvm and a stock Debian \
                that is a domain of libvirt's with its disk on the network; each time the root on the disk takes over",
        minutes: 60,
        play: Play::Program(debian::refreshes),
    },
    Scenario {
        name: "miri",
        about: "the tests of L0 with its model of a CPU, of the ABI, the plan and the tables, under Miri",
        minutes: 60,
        play: Play::Program(tools::miri),
    },
    Scenario {
        name: "fuzz",
        about: "L0's four fuzz targets with new inputs, ten minutes in all",
        minutes: 13,
        play: Play::Program(tools::fuzz),
    },
    Scenario {
        name: "kmod-every",
        about: "locum.ko is built, warnings being errors, for every kernel that the archive has with headers",
        minutes: 15,
        play: Play::Program(kmod::every),
    },
    Scenario {
        name: "floor-cleared",
        about: "the same as floor with L0's shadowing=cleared: as few entries of L0",
        minutes: 3,
        play: Play::On(
            |args| {
                floor::machine(args);
                args.l0_args = "shadowing=cleared".into();
            },
            floor::all,
        ),
    },
    Scenario {
        name: "instructions",
        about: "every instruction that exits for a host, or may, in its kernel and in user space (64-bit and compatibility \
                mode, with breakpoints, behind STI and MOV SS with an interrupt waiting), with and without TF: alike \
                native and nested, and as L0's tests have it",
        minutes: 3,
        play: Play::On(
            |args| {
                args.cpus = 2;
                args.probe = true;
            },
            instructions::all,
        ),
    },
    Scenario {
        name: "selftests",
        about: "Linux's own tests of KVM, its nested guests included: each comes to the same natively and nested",
        minutes: 30,
        play: Play::On(
            |args| {
                args.cpus = 2;
                args.selftests = true;
                // Native and nested, each has its bound; together they are more than other scenarios.
                args.timeout = args.timeout.max(6000);
            },
            kvm_selftests::all,
        ),
    },
    Scenario {
        name: "refresh-desktop",
        about: "4 CPUs of a desktop's model, without APICv, a guest with devices, one refresh",
        minutes: 6,
        play: Play::On(|_| {}, |run| refreshes::all(run, &["g2"], 1)),
    },
    abort(
        "aborts-more",
        "two successors that fail in other ways under a guest, then one that does not",
        |run| abort::each(run, &["g1".into()], &[abort::GARBAGE, abort::PANIC]),
    ),
    Scenario {
        name: "nmi",
        about: "NMIs between the CPUs of a host, 200 rounds each: natively, on both hosts of a refresh at the same time, and in \
                the successor, under two guests",
        minutes: 12,
        play: Play::On(|_| {}, nmi::all),
    },
    Scenario {
        name: "mce",
        about: "broadcast machine checks under two guests: natively, with a CPU parked, nested, and on the way in and out",
        minutes: 8,
        play: Play::On(mce::machine, mce::one_host),
    },
    Scenario {
        name: "mce-two-hosts",
        about: "the same under one guest on both hosts of a refresh at the same time, with the error in a bank of each or of one alone, while \
                the second boots, and when the guests have crossed",
        minutes: 12,
        play: Play::On(mce::machine, mce::two_hosts),
    },
    Scenario {
        name: "cycles",
        about: "8,000 times in and out of nested under two guests: every VMCS is left as it was",
        minutes: 15,
        play: Play::On(|args| args.l0_args = "check=vmcs".into(), native::cycles),
    },
    Scenario {
        name: "cycles-windows",
        about: "in and out of nested with L0's shadowing=windows, as on CPUs without APICv: the guests' timers fire",
        minutes: 15,
        play: Play::On(
            |args| args.l0_args = "check=vmcs shadowing=windows".into(),
            native::windows,
        ),
    },
    Scenario {
        name: "cycles-guests",
        about: "1,000 times in and out of nested while guests start and are killed beside one that lives: nothing grows",
        minutes: 20,
        play: Play::On(|_| {}, growth::cycles),
    },
    Scenario {
        name: "refresh-20",
        about: "2 CPUs: 20 refreshes in one boot under a busy microvm: nothing grows",
        minutes: 45,
        play: Play::On(|args| args.cpus = 2, growth::refreshes),
    },
    Scenario {
        name: "service",
        about: "two refreshes under a client outside: YCSB's workload A on one TCP connection to a Redis server in a q35 guest, by \
                bridges of both hosts, each with a card of its own on the same segment; no operation fails",
        minutes: 15,
        play: Play::On(|args| args.segment = true, service::all),
    },
    Scenario {
        name: "three-generations",
        about: "A to B to A' under a microvm and a q35 with two vCPUs, virtio disk and net; nothing unreclaimed grows",
        minutes: 15,
        play: Play::On(|_| {}, |run| refreshes::all(run, &["g1", "g2"], 2)),
    },
    Scenario {
        name: "above-4g",
        about: "RAM above 4 GiB, and a successor that has no other; a guest, one refresh",
        minutes: 10,
        play: Play::On(|args| args.layout = Layout::HIGH, refreshes::above_4g),
    },
    Scenario {
        name: "refresh-cet",
        about: "4 CPUs with CET, both hosts tracking indirect branches (IBT), two guests, one refresh",
        minutes: 10,
        play: Play::On(
            |args| args.cpu_model = TIGER_LAKE.into(),
            |run| {
                run.sh("dmesg | grep -q 'Indirect Branch Tracking enabled'")?;
                refreshes::all(run, &["g1", "g2"], 1)
            },
        ),
    },
    Scenario {
        name: "plain-kvm",
        about: "the lab itself: without L0, KVM runs a guest",
        minutes: 2,
        play: Play::On(
            |args| {
                args.plain = true;
                args.strict = false;
                args.cpus = 2;
                args.cmdline = Layout::USUAL.plain_pool();
            },
            native::plain,
        ),
    },
    Scenario {
        name: "hosts",
        about: "4 CPUs, one refresh, no guest",
        minutes: 4,
        play: Play::On(|_| {}, |run| refreshes::all(run, &[], 1)),
    },
    Scenario {
        name: "hosts-2-cpus",
        about: "the same with 2 CPUs",
        minutes: 4,
        play: Play::On(|args| args.cpus = 2, |run| refreshes::all(run, &[], 1)),
    },
    Scenario {
        name: "hosts-three",
        about: "A to B to A', no guest",
        minutes: 7,
        play: Play::On(|_| {}, |run| refreshes::all(run, &[], 2)),
    },
    Scenario {
        name: "refresh",
        about: "4 CPUs, one guest, one refresh",
        minutes: 5,
        play: Play::On(|_| {}, |run| refreshes::all(run, &["g1"], 1)),
    },
    abort(
        "abort-hang",
        "a successor that hangs with interrupts off, no guest",
        |run| abort::each(run, &[], &[abort::HANG]),
    ),
    abort(
        "abort-triple-fault",
        "a successor that ends in a triple fault, no guest",
        |run| abort::each(run, &[], &[abort::TRIPLE_FAULT]),
    ),
    abort(
        "abort-wild-write",
        "a successor that writes to the incumbent's memory, no guest",
        |run| abort::each(run, &[], &[abort::WILD_WRITE]),
    ),
    abort(
        "abort-garbage",
        "a successor whose kernel is garbage, no guest",
        |run| abort::each(run, &[], &[abort::GARBAGE]),
    ),
    Scenario {
        name: "pool",
        about: "pieces of the pool given and taken back: a guest finds zeroes where another was; a refresh on top",
        minutes: 6,
        play: Play::On(|_| {}, pool::all),
    },
    Scenario {
        name: "fault-daemon-killed",
        about: "kill -9 of either daemon at steps of refreshes that go through all the same, under a guest",
        minutes: 25,
        play: Play::On(|_| {}, faults::daemons),
    },
    Scenario {
        name: "fault-daemon-stranded",
        about: "kill -9 of the incumbent's daemon while a successor hangs, its journal whole, lost or torn: all is given back",
        minutes: 8,
        play: Play::On(|_| {}, faults::daemon_stranded),
    },
    Scenario {
        name: "fault-others",
        about: "QEMUs that are killed or hang, and `locum refresh` interrupted: given up or gone on with, under a guest",
        minutes: 12,
        play: Play::On(|_| {}, faults::others),
    },
    Scenario {
        name: "fault-incumbent-panics",
        about: "the incumbent panics when the first of two guests has crossed: the successor takes the machine over with it; \
                another refresh",
        minutes: 10,
        play: Play::On(|_| {}, faults::incumbent_panics),
    },
    Scenario {
        name: "fault-incumbent-dumps",
        about: "the same with a crash kernel loaded (kdump): the successor waits for its dump, which is whole; another refresh",
        minutes: 12,
        play: Play::On(dumps::machine, dumps::waited_for),
    },
    Scenario {
        name: "fault-dump-cut-off",
        about: "the same with a dump that does not end: it is cut off after timeouts.dump, and told",
        minutes: 10,
        play: Play::On(dumps::machine, dumps::cut_off),
    },
    Scenario {
        name: "fault-incumbent-hangs",
        about: "an incumbent that hangs with interrupts off while it powers off is taken by INIT after the time-out, under a \
                guest",
        minutes: 6,
        play: Play::On(|_| {}, faults::incumbent_hangs),
    },
    abort("abort-panic", "a successor that panics, no guest", |run| {
        abort::each(run, &[], &[abort::PANIC])
    }),
    Scenario {
        name: "refresh-late-disk",
        about: "a guest whose disk is late, and has several requests at once, when it is stopped: none is lost, or done after a \
                later one",
        minutes: 6,
        play: Play::On(|_| {}, refreshes::late_disk),
    },
    Scenario {
        name: "refresh-stock-guest",
        about: "4 CPUs, a Debian as it is installed in a virtual machine: it serves all along, has cached what it had, and nothing is \
                wrong in its journal",
        minutes: 20,
        play: Play::On(stock::machine, stock::all),
    },
];
