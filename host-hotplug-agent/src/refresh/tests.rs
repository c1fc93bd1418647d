//! The whole refresh, on a machine that is made of memory: the way there, every way back.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use locum_abi::{CpuMode, HostState, Slot, StopReason};

use super::stage::{HANG, Stage, kept};
use crate::channel::versions::VERSION;
use crate::daemon::ipc::Question;
use crate::error::{Failure, Refusal};
use crate::guest::frames::Frame;
use crate::l0::{memory, view};
use crate::machine::{Machine, TextKind};
use crate::refresh::prepare::PlanView;
use crate::refresh::{Prepared, Wishes};
use crate::testing::vm::FakeHypervisor;
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

#[test]
fn the_successor_takes_over_the_whole_machine() {
    let stage = Stage::new(Behaviour::Boots);
    stage.begin();
    let incumbent = stage.wait();
    assert_eq!(incumbent.outcome, "retired", "{incumbent:#?}");
    let successor = stage.reigns();
    let report = kept(&successor);
    assert_eq!(report.outcome, "done");
    assert_eq!(report.error, None);
    assert_eq!(
        (report.incumbent.as_str(), report.successor.as_str()),
        ("6.11.1+deb13-amd64", "6.12.2+deb13-amd64")
    );
    assert_eq!(stage.world.runs_in("one"), [SUCCESSOR]);
    assert_eq!(stage.world.runs_in("two"), [SUCCESSOR]);

    let phases: Vec<_> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        phases,
        [
            "offload", "load", "enter", "start", "boot", "handover", "retire", "leave", "reclaim"
        ]
    );
    for guest in &report.guests {
        assert!(guest.moved && guest.pause_ticks > 0, "{guest:?}");
        assert_eq!((guest.state_bytes, guest.ram_bytes_copied), (16, 0));
        assert_eq!(guest.late_frames, 1);
    }
    assert_eq!(report.losses, Vec::<String>::new());
    let given = stage.world.given();
    let frames = |name: &str| vec![vec![Frame(name.as_bytes().to_vec())], Vec::new()];
    let expected = ["one", "two"].map(|name| (SUCCESSOR, name.to_owned(), frames(name)));
    assert_eq!(given, expected, "what came for a guest while it crossed");
    assert!(!stage.world.holds_frames());
    // Block 0, which holds L0 and the trampolines, less what L0 has: it has holes and never moves.
    assert!(report.unreclaimed_bytes > 0 && report.unreclaimed_bytes < 128 << 20);

    let status = memory::status(&stage.world.region, &stage.world.region.header()).unwrap();
    assert_eq!(status.generation, 1);
    assert!(
        status.cpus[..4]
            .iter()
            .all(|cpu| (view::owner(cpu), cpu.mode) == (Some(SUCCESSOR), CpuMode::Native as u32))
    );
    let blocks = successor.sys().list("sys/devices/system/memory").unwrap();
    assert_eq!(
        blocks.len(),
        8,
        "all whole blocks of the incumbent came by hotplug: {blocks:?}"
    );
    assert!(successor.sys().exists("sys/bus/pci/devices/0000:00:02.0"));
    assert_eq!(
        stage.world.leaks(),
        [] as [String; 0],
        "nothing of the incumbent's memory"
    );
    assert_eq!(stage.world.extents_in(), [SUCCESSOR; 2]);
}

#[test]
fn what_an_earlier_host_left_is_cleared_before_it_is_given() {
    let stage = Stage::new(Behaviour::Boots);
    let left = partitioner::Unreclaimed {
        range: partitioner::MemRange::new(0xa0_0000, 0xc0_0000).unwrap(),
        node: partitioner::NodeId(0),
    };
    let iomem = "00c00000-67ffffff : System RAM\n68000000-7fdfffff : Soft Reserved\nc0000000-c001ffff : 0000:00:03.0\n";
    stage.machine.tree().put("proc/iomem", iomem);
    // Linux has no block there that could be in use.
    fs::remove_dir_all(stage.machine.tree().path().join("sys/devices/system/memory/memory0")).unwrap();
    stage.shared.lock().refresh = partitioner::Refresh::idle(partitioner::Generation(0), vec![left]);
    stage.begin();
    assert_eq!(stage.wait().outcome, "retired");
    stage.reigns();
    assert!(stage.world.cleared(left.range));
    assert_eq!(stage.world.leaks(), [] as [String; 0]);
}

/// Memory in which a kernel's log says so.
fn printed(lines: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0; 2 << 20];
    let mut at = 0x3000;
    for (number, line) in (0x3fff_ffff_ffff_e000u64..).zip(lines) {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        bytes[at + 8..at + 8 + line.len()].copy_from_slice(line.as_bytes());
        at += (8 + line.len()).next_multiple_of(8);
    }
    bytes
}

#[test]
fn what_a_dead_successor_printed_is_saved_before_its_memory_is_cleared() {
    let stage = Stage::new(Behaviour::TripleFaults);
    stage.world.region.put(
        0x5000_0000,
        printed(&["Linux version 6.12.2", "BUG: unable to handle page fault"]),
    );
    stage.world.region.log("a line of L0\n");
    stage.begin();
    let report = stage.wait();
    let [saved] = report.saved.as_slice() else {
        panic!("{:?}", report.saved);
    };
    let path = saved.strip_prefix("log of the successor: ").unwrap();
    assert!(path.contains("var/log/locum/next-"), "{path}");
    let text = fs::read_to_string(path).unwrap();
    for word in [
        "given up: ",
        "0xdead",
        "Linux version 6.12.2\nBUG: unable to handle page fault\n",
        "a line of L0",
    ] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    stage.intact();
}

#[test]
fn an_abort_does_not_wait_for_a_disk() {
    let stage = Stage::new(Behaviour::TripleFaults);
    // No directory can be made there.
    stage.machine.tree().put("var/log", "");
    let file = stage.machine.tree().path().join("etc/locum/next.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("keep_image = true\n{config}")).unwrap();
    stage.begin();
    let report = stage.wait();
    assert_eq!((report.outcome.as_str(), report.saved.len()), ("aborted", 2));
    assert!(
        report.saved.iter().all(|saved| saved.contains("not saved")),
        "{:?}",
        report.saved
    );
    stage.intact();
    assert_eq!(report.losses, [] as [String; 0]);
}

#[test]
fn where_nothing_was_started_nothing_is_saved() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(INCUMBENT, "enter", 1);
    stage.begin();
    assert_eq!(stage.wait().saved, [] as [String; 0]);
    assert!(!stage.machine.tree().path().join("var/log/locum").exists());
}

#[test]
fn memory_that_cannot_be_cleared_stays_out_of_use() {
    // The first four are for all of the successor's memory at once.
    let stage = Stage::new(Behaviour::TripleFaults);
    stage.world.fail_after(INCUMBENT, "wipe", 4, 1);
    stage.begin();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    assert_eq!(stage.world.leaks(), [] as [String; 0]);
    let [loss] = report.losses.as_slice() else {
        panic!("{:?}", report.losses);
    };
    assert!(loss.contains("memory 0x") && loss.contains("not in use"), "{loss}");

    // If only that fails, each block is cleared before it is added.
    let stage = Stage::new(Behaviour::TripleFaults);
    stage.world.fail(INCUMBENT, "wipe", 1);
    stage.begin();
    let report = stage.wait();
    assert!(
        report.losses.iter().any(|loss| loss.contains("not cleared at once")),
        "{report:#?}"
    );
    stage.intact();
}

#[test]
fn a_guest_that_does_not_get_what_came_late_has_crossed_all_the_same() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(SUCCESSOR, "give_frames", 2);
    stage.begin();
    let report = kept(&stage.reigns());
    assert_eq!((report.outcome.as_str(), report.error), ("done", None));
    assert_eq!(stage.world.given(), []);
    assert_eq!(stage.world.runs_in("two"), [SUCCESSOR]);
}

#[test]
fn a_refresh_between_releases_does_without_what_one_of_them_did_not_know() {
    for (older, version) in [INCUMBENT, SUCCESSOR]
        .iter()
        .flat_map(|slot| (1..VERSION).map(move |version| (*slot, version)))
    {
        let which = format!("{older:?}, version {version}");
        let stage = Stage::with(Behaviour::Boots, |world| world.speaks_up_to(older, version));
        stage.begin();
        assert_eq!(stage.wait().outcome, "retired", "{which}");
        let report = kept(&stage.reigns());
        assert_eq!((report.outcome.as_str(), report.error), ("done", None), "{which}");
        for guest in &report.guests {
            assert!(guest.moved && guest.late_frames == 0, "{which}: {guest:?}");
        }
        for name in ["one", "two"] {
            assert_eq!(stage.world.runs_in(name), [SUCCESSOR], "{which}");
        }
        assert_eq!(stage.world.given(), [], "{which}");
        assert!(!stage.world.holds_frames(), "{which}: nobody would let them go");
    }
}

#[test]
fn a_cpu_that_leaves_late_has_left_before_exits_count_as_native() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(SUCCESSOR, "leave", 1);
    stage.begin();
    assert_eq!(stage.wait().outcome, "retired");
    let report = kept(&stage.reigns());
    assert_eq!(report.losses, [] as [String; 0]);
    let status = memory::status(&stage.world.region, &stage.world.region.header()).unwrap();
    assert!(status.cpus[..4].iter().all(|cpu| cpu.mode == CpuMode::Native as u32));
    assert!(report.exits_at_end > 0);
    assert_eq!(report.exits_at_end, view::total_exits(&status));
}

#[test]
fn a_successor_that_hangs_is_stopped_after_the_time_out() {
    Stage::new(Behaviour::Hangs).aborts_as(
        Failure::RefreshFailedBoot,
        "no word from the successor's agent within 2 s",
    );
}

#[test]
fn a_triple_fault_is_told_with_its_address() {
    let stage = Stage::new(Behaviour::TripleFaults);
    let start = Instant::now();
    stage.aborts_as(Failure::RefreshSuccessorDied, "triple fault at RIP 0xdead");
    let name = stage.shared.status().last_error_name;
    assert_eq!(name.as_deref(), Some("refresh-successor-died"));
    let error = stage.shared.status().last_error.unwrap();
    assert!(!error.contains("within"), "not taken for a time-out: {error}");
    assert!(start.elapsed() < HANG, "no time-out is waited for");
}

#[test]
fn a_successor_with_too_few_cpus_is_stopped() {
    Stage::new(Behaviour::LacksCpu).aborts("1 of 2 CPUs");
}

#[test]
fn whatever_fails_on_the_way_there_is_undone() {
    for operation in [
        "remove_memory",
        "offline_cpu",
        "remove_pci",
        "write",
        "enter",
        "grant",
        "start",
        "channel",
        "attach",
        "send",
    ] {
        let stage = Stage::new(Behaviour::Boots);
        stage.world.fail(INCUMBENT, operation, 1);
        stage.aborts(&format!("{operation} fails"));
    }
}

#[test]
fn a_second_failure_of_each_kind_is_undone_too() {
    // The first of several memory blocks, CPUs and grants has been done already.
    for operation in ["remove_memory", "offline_cpu", "enter", "grant"] {
        let stage = Stage::new(Behaviour::Boots);
        stage.world.fail_after(INCUMBENT, operation, 1, 1);
        stage.aborts(&format!("{operation} fails"));
    }
}

#[test]
fn a_guest_whose_qemu_does_not_start_there_stays() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(SUCCESSOR, "prepare", 1);
    stage.aborts("prepare fails");
}

#[test]
fn a_guest_that_is_refused_there_runs_on_here_and_the_others_come_back() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(SUCCESSOR, "receive", 1);
    stage.aborts_as(Failure::RefreshFailedHandover, "receive fails");

    // The second guest fails, the first has gone over: it is taken back.
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail_after(SUCCESSOR, "receive", 1, 1);
    stage.aborts("receive fails");
}

#[test]
fn a_successor_that_dies_in_the_handover_takes_only_its_own_guests() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail_after(SUCCESSOR, "die_in_receive", 1, 1);
    stage.begin();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    stage.intact();
    assert_eq!(
        stage.world.runs_in("one"),
        [] as [Slot; 0],
        "was in the successor when that died"
    );
    assert_eq!(stage.world.runs_in("two"), [INCUMBENT], "was on its way and runs on");
    assert!(
        report.losses.iter().any(|loss| loss.contains("guest one")),
        "{:?}",
        report.losses
    );
}

#[test]
fn the_operator_can_stop_it_and_ask_only_once() {
    // It hangs long enough for the operator.
    let stage = Stage::with_timeouts(Behaviour::Hangs, HANG.as_secs(), HANG.as_secs());
    assert!(
        stage
            .worker
            .answer(&Question::Abort)
            .unwrap_err()
            .to_string()
            .contains("nothing to abort")
    );
    stage.begin();
    let second = stage.worker.begin("next").unwrap_err();
    assert!(
        matches!(second.downcast_ref(), Some(Refusal::Running(name)) if name == "next"),
        "{second}"
    );
    stage.sees(|stage| stage.shared.status().state == "nested");
    stage.worker.answer(&Question::Abort).unwrap();
    let report = stage.wait();
    assert_eq!(report.error.as_deref(), Some("stopped by the operator"));
    stage.intact();
}

#[test]
fn a_refresh_is_refused_for_what_its_plan_is_refused_for() {
    let stage = Stage::new(Behaviour::Boots);
    let file = stage.machine.tree().path().join("initrd");
    // With so large an initramfs beside the pool the successor's kernel would die of too few threads, long after
    // everything was taken. (Zeroes after an archive are padding.)
    let mut initramfs = std::fs::read(&file).unwrap();
    initramfs.resize(initramfs.len() + (96 << 20), 0);
    std::fs::write(&file, initramfs).unwrap();
    let error = stage.worker.begin("next").expect_err("refused");
    assert!(
        matches!(error.downcast_ref(), Some(Refusal::FewThreads { .. })),
        "{error}"
    );
    assert!(stage.shared.lock().running.is_none());
    stage.intact();
}

#[test]
fn what_l0_would_not_carry_over_is_refused_before_anything_is_taken() {
    let stage = Stage::new(Behaviour::Boots);
    // As if Linux had LASS on: entering would be refused, with memory and CPUs taken.
    stage.world.use_cr4(1 << 27);
    let error = format!("{:#}", stage.worker.begin("next").expect_err("refused"));
    assert!(
        error.contains("LASS (bit 27)") && error.contains("clearcpuid=lass"),
        "{error}"
    );
    stage.intact();
    stage.world.use_cr4(0);
    assert!(stage.worker.begin("next").is_ok());
}

#[test]
fn a_block_that_linux_would_not_give_is_not_taken() {
    let stage = Stage::new(Behaviour::Boots);
    let last_page = 0x6800_0000 - 4096;
    // Taken by the kernel at boot (KPF_RESERVED).
    stage.machine.tree().page(last_page, 1 << 32);
    stage.begin();
    assert_eq!(stage.wait().outcome, "retired");
    let sys = stage.machine.sys();
    let there = |number: u64| sys.exists(format!("sys/devices/system/memory/memory{number}"));
    assert!(there(12) && !there(8), "the highest block stays, a lower one goes");
}

#[test]
fn what_the_load_would_be_refused_for_is_refused_before_anything_is_taken() {
    // A command line that is too long for the kernel.
    let stage = Stage::new(Behaviour::Boots);
    let file = stage.machine.tree().path().join("etc/locum/next.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("console=ttyS1", &"x".repeat(2000))).unwrap();
    let error = format!("{:#}", stage.worker.begin("next").expect_err("refused"));
    assert!(error.contains("command line"), "{error}");
    stage.intact();

    // A memory map that the successor's cannot be made from.
    let stage = Stage::new(Behaviour::Boots);
    fs::remove_dir_all(stage.machine.tree().path().join("sys/firmware/memmap")).unwrap();
    stage.worker.begin("next").expect_err("refused");
    stage.intact();

    // All that is asked for is memory that nobody owns, and the image cannot be written there.
    let stage = Stage::new(Behaviour::Boots);
    let left = partitioner::Unreclaimed {
        range: partitioner::MemRange::new(0xa0_0000, 0x4800_0000).unwrap(),
        node: partitioner::NodeId(0),
    };
    stage
        .machine
        .tree()
        .put("proc/iomem", "48000000-67ffffff : System RAM\n");
    stage.shared.lock().refresh = partitioner::Refresh::idle(partitioner::Generation(0), vec![left]);
    let error = stage.worker.begin("next").expect_err("refused");
    assert!(
        matches!(error.downcast_ref(), Some(Refusal::NoBlockForImage { .. })),
        "{error:#}"
    );
    stage.intact();
}

/// A refresh to `next`, before it begins.
fn prepared(stage: &Stage) -> Prepared {
    let hypervisor = FakeHypervisor::new(&stage.world, INCUMBENT);
    let config = stage.machine.tree().path().join("etc/locum");
    let (choice, wishes) = ("next".into(), Wishes::default());
    Prepared::new(&*stage.machine, &hypervisor, &config, choice, wishes, vec![]).unwrap()
}

#[test]
fn a_plan_says_what_it_could_not_look_at_and_what_stays() {
    let stage = Stage::new(Behaviour::Boots);
    stage.machine.tree().function("10000:01:00.0", "0x010802", 0, None, "");
    let prepared = prepared(&stage);
    let text = PlanView::new(&prepared, &*stage.machine).unwrap().to_string();
    for guest in ["one", "two"] {
        let note = format!("beware      guest {guest}: qemu of the successor was not looked at");
        assert!(text.contains(&note), "{text}");
    }
    assert!(text.contains("immovable   10000:01:00.0: in another"), "{text}");
}

#[test]
fn the_pin_of_the_next_hosts_console_goes_with_its_ports() {
    let stage = Stage::new(Behaviour::Boots);
    let tree = stage.machine.tree();
    tree.put("sys/class/tty/ttyS1/port", "0x2F8\n");
    tree.put("sys/class/tty/ttyS1/irq", "3\n");
    let prepared = || prepared(&stage);
    let (alone, plan) = (prepared(), prepared().plan(&*stage.machine).unwrap());
    assert!(plan.pins.contains(&partitioner::Gsi(3)), "{:?}", plan.pins);
    tree.put("sys/kernel/irq/3/chip_name", "IO-APIC\n");
    tree.put("sys/kernel/irq/3/actions", "ttyS3\n");
    let shared = prepared();
    assert!(!shared.request.pins.contains(&partitioner::Gsi(3)));
    let told = |prepared: &Prepared| prepared.notes.iter().any(|note| note.contains("ttyS3 has it"));
    assert!(told(&shared) && !told(&alone), "{:?}", shared.notes);
}

#[test]
fn an_incumbent_that_dies_on_its_way_out_is_taken() {
    let stage = Stage::with_timeouts(Behaviour::Boots, HANG.as_secs(), 1);
    stage.world.fail(INCUMBENT, "power_off", usize::MAX);
    stage.begin();
    stage.stuck();
    stage.world.region.update(|status| {
        status.hosts[INCUMBENT].state = HostState::Dead as u32;
        status.hosts[INCUMBENT].reason = StopReason::PoweredOff as u32;
    });
    let successor = stage.reigns();
    assert_eq!(kept(&successor).outcome, "done");
    let status = memory::status(&stage.world.region, &stage.world.region.header()).unwrap();
    assert!(status.cpus[..4].iter().all(|cpu| view::owner(cpu) == Some(SUCCESSOR)));
}

#[test]
fn an_incumbent_that_does_not_power_off_at_once_can_do_so_later() {
    let stage = Stage::with_timeouts(Behaviour::Boots, HANG.as_secs(), 1);
    // Above another one it would have been taken by then.
    stage.world.forget_wills();
    stage.world.fail(INCUMBENT, "power_off", 1);
    stage.begin();
    stage.stuck();
    let abort = stage.worker.answer(&Question::Abort).unwrap_err();
    assert!(matches!(abort.downcast_ref(), Some(Refusal::TooLate(_))), "{abort}");
    // Longer than the successor waits before it tries force.
    sleep(Duration::from_millis(1300));
    stage.worker.answer(&Question::Retry).unwrap();
    assert_eq!(kept(&stage.reigns()).outcome, "done");
}

#[test]
fn what_cannot_be_reclaimed_is_reported_and_the_rest_goes_on() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.fail(SUCCESSOR, "add_memory", 1);
    stage.world.fail(SUCCESSOR, "find_pci", 1);
    stage.begin();
    let report = kept(&stage.reigns());
    assert_eq!(report.outcome, "done");
    assert_eq!(report.losses.len(), 2, "{:?}", report.losses);
    assert!(report.unreclaimed_bytes >= 128 << 20);
}

#[test]
fn where_not_even_the_way_back_works_the_operator_can_retry() {
    let stage = Stage::new(Behaviour::Hangs);
    stage.world.fail(INCUMBENT, "abort", 1);
    stage.begin();
    stage.stuck();
    stage.worker.answer(&Question::Retry).unwrap();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    stage.intact();
}

#[test]
fn a_refused_request_changes_nothing_and_says_so_in_sysfs() {
    let stage = Stage::new(Behaviour::Boots);
    let error = stage.worker.begin("other").unwrap_err().to_string();
    assert!(error.contains("next"), "known names are offered: {error}");
    assert_eq!(stage.world.shown(TextKind::LastError), error);
    stage.machine.tree().put("proc/cpuinfo", "flags : svm constant_tsc\n");
    let error = stage.worker.begin("next").unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Refusal::Unfit { .. })), "{error}");
    stage.intact();
    // What the module would refuse when CPUs are to enter nested mode.
    for flag in ["fred", "lass"] {
        let cpu = format!("flags : vmx constant_tsc {flag}\nvmx flags : ept unrestricted_guest\n");
        stage.machine.tree().put("proc/cpuinfo", cpu);
        let error = stage.worker.begin("next").unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains("boot with"), "{error}");
        stage.intact();
    }
}

#[test]
fn a_daemon_that_runs_until_its_host_reigns_ends_then_and_not_before() {
    let stage = Stage::new(Behaviour::Boots);
    let succeeded = || stage.worker.has_succeeded();
    assert!(succeeded());
    stage.shared.lock().succeeds = true;
    assert!(!succeeded(), "it serves the incumbent, or takes over from it");
    stage.shared.lock().succeeds = false;
    stage.shared.lock().running = Some("next".to_owned());
    assert!(!succeeded(), "something is left to do");
    stage.shared.lock().running = None;
    let other = |state: HostState| {
        stage
            .world
            .region
            .update(|status| status.hosts[SUCCESSOR].state = state as u32);
    };
    other(HostState::Dead);
    assert!(!succeeded(), "there is another host");
    other(HostState::Retired);
    stage.world.region.update(|status| status.generation = 1);
    assert!(!succeeded(), "another one reigns");
}
