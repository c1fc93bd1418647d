//! Guests handed over between real QEMUs on one host (TCG): RAM stays in a file that both map, state crosses a pair of
//! sockets in place of the channel. Skipped where QEMU is not installed; the lab's scenario `qemus` has one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use locum_agent::channel::Port;
use locum_agent::config::Guest;
use locum_agent::deadline::Deadline;
use locum_agent::error::Refusal;
use locum_agent::guest::qmp::{Monitor, Qmp};
use locum_agent::guest::{Hypervisor, Place, Received, Sent, Spec, Vm, whether_it_came};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

mod bed;

use bed::{HANG, Killed, Lab, OFTEN, RAM, seen};

fn hand_over(
    source: &mut dyn Vm,
    target: &mut dyn Vm,
    until: &Deadline<'_>,
) -> (anyhow::Result<Sent>, anyhow::Result<Received>) {
    let (mut out, mut into) = Port::pair().unwrap();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| source.send(&mut out, until));
        let received = target.receive(&mut into, until);
        (sending.join().unwrap(), received)
    })
}

#[test]
fn a_guest_goes_over_and_back_and_its_ram_stays() {
    let Some(mut lab) = Lab::new() else { return };
    let (hypervisor, spec) = lab.running();
    assert!(
        spec.command.ends_with(&["-incoming".to_owned(), "defer".to_owned()]),
        "{:?}",
        spec.command
    );
    // It was started as `pc`, which every version of QEMU takes for another machine.
    assert!(
        spec.command
            .iter()
            .any(|word| word.starts_with("pc-i440fx-") && word.ends_with(",memory-backend=ram")),
        "{:?}",
        spec.command
    );

    let until = Deadline::after(HANG);
    let mut source = hypervisor.attach(&spec).unwrap();
    let there = lab.target(&spec, &[]);
    let mut target = hypervisor.prepare(&there, &until).unwrap();
    let (sent, received) = hand_over(source.as_mut(), target.as_mut(), &until);
    let (sent, received) = (sent.unwrap(), received.unwrap());
    let stopped_at = lab.counter();
    source.quit().unwrap();
    assert!(lab.counts(), "the guest runs in the target");
    assert!(lab.counter() >= stopped_at, "and went on where it was");
    assert_eq!(sent.ram_bytes_copied, 0);
    assert!(
        sent.state_bytes > 1000 && sent.state_bytes < RAM / 8,
        "{} bytes",
        sent.state_bytes
    );
    assert!(sent.begun < sent.stopped && sent.stopped < received.resumed);
    assert!(sent.stopped < received.received);
    assert!(source.has_gone().unwrap());

    // And back, as an abort does it.
    lab.source.take().unwrap().0.wait().unwrap();
    let mut returned = hypervisor.prepare(&spec, &until).unwrap();
    let (sent, received) = hand_over(target.as_mut(), returned.as_mut(), &until);
    sent.unwrap();
    received.unwrap();
    target.quit().unwrap();
    assert!(lab.counts(), "the guest runs where it came from");
    returned.quit().unwrap();
}

#[test]
fn a_target_that_refuses_leaves_the_guest_running_in_the_source() {
    let Some(mut lab) = Lab::new() else { return };
    let (hypervisor, spec) = lab.running();
    let until = Deadline::after(HANG);
    let mut source = hypervisor.attach(&spec).unwrap();
    let mut other = lab.target(&spec, &[]);
    for word in &mut other.command {
        *word = word.replace("pc,memory-backend", "isapc,memory-backend");
    }
    let mut target = hypervisor.prepare(&other, &until).unwrap();
    let (_, received) = hand_over(source.as_mut(), target.as_mut(), &until);
    received.unwrap_err();
    target.quit().unwrap();
    source.resume().unwrap();
    assert!(lab.counts(), "the guest goes on");

    // The next attempt, with a right target, works.
    let mut target = hypervisor.prepare(&lab.target(&spec, &[]), &until).unwrap();
    let (sent, received) = hand_over(source.as_mut(), target.as_mut(), &until);
    sent.unwrap();
    received.unwrap();
    source.quit().unwrap();
    assert!(lab.counts());
    target.quit().unwrap();
}

/// Copies so many bytes of what is sent; then the channel breaks off, or nothing comes any more until somebody gives up.
fn hand_over_in_part(source: &mut dyn Vm, target: &mut dyn Vm, bytes: usize, breaks: bool) -> anyhow::Result<Received> {
    let (mut out, mut middle) = Port::pair().unwrap();
    let (mut further, mut into) = Port::pair().unwrap();
    let over = AtomicBool::new(false);
    let given_up = || over.load(Ordering::Relaxed);
    let until = Deadline::after(HANG).or_when(&given_up);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| source.send(&mut out, &until));
        let receiving = scope.spawn(|| target.receive(&mut into, &until));
        let mut some = vec![0; bytes];
        middle.read_exact(&mut some, &until).unwrap();
        further.write_all(&some, &until).unwrap();
        if breaks {
            drop((middle, further));
        } else {
            std::thread::sleep(OFTEN);
            over.store(true, Ordering::Relaxed);
        }
        sending.join().unwrap().unwrap_err();
        receiving.join().unwrap()
    })
}

#[test]
fn a_guest_of_which_a_part_has_come_has_not_run_there() {
    let Some(mut lab) = Lab::new() else { return };
    let (hypervisor, spec) = lab.running();
    let until = Deadline::after(HANG);
    for (bytes, breaks) in [
        (0, true),
        (0, false),
        (1000, true),
        (1000, false),
        (40_000, true),
        (40_000, false),
    ] {
        let what = format!("{bytes} bytes, then it breaks off: {breaks}");
        let mut source = hypervisor.attach(&spec).unwrap();
        let mut target = hypervisor.prepare(&lab.target(&spec, &[]), &until).unwrap();
        let received = hand_over_in_part(source.as_mut(), target.as_mut(), bytes, breaks);
        let begun = Instant::now();
        let came = whether_it_came(target.as_mut(), received).unwrap();
        assert!(came.is_err(), "{what}: it has come");
        println!("{what}: known after {:?}", begun.elapsed());
        assert!(!source.has_gone().unwrap(), "{what}");
        source.resume().unwrap();
        assert!(lab.counts(), "{what}: the guest does not go on");
    }
}

#[test]
fn a_target_that_does_not_start_says_why() {
    let Some(mut lab) = Lab::new() else { return };
    let guest = lab.boot(&lab.in_pool());
    let hypervisor = lab.hypervisor();
    let spec = hypervisor.inspect(&guest, 1).unwrap();
    let bad = lab.target(&spec, &["-device", "no-such-device"]);
    let error = hypervisor
        .prepare(&bad, &Deadline::after(HANG))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("no-such-device"), "{error}");
}

#[test]
fn a_target_whose_ram_is_elsewhere_does_not_get_the_guest() {
    let Some(mut lab) = Lab::new() else { return };
    let guest = lab.boot(&lab.in_pool());
    let hypervisor = lab.hypervisor();
    let spec = hypervisor.inspect(&guest, 1).unwrap();
    let mut there = lab.target(&spec, &[]);
    let pool = format!("mem-path={}", lab.pool.display());
    // Not there yet: QEMU makes it.
    let other = format!("mem-path={}", lab.path("other").display());
    for word in &mut there.command {
        *word = word.replace(&pool, &other);
    }
    let error = hypervisor.prepare(&there, &Deadline::after(HANG)).err().unwrap();
    assert!(error.to_string().contains("not in the pool here"), "{error:#}");
    assert!(lab.path("other").exists(), "QEMU did make it");
    assert!(lab.counts(), "the guest goes on");
}

#[test]
fn guests_whose_ram_is_elsewhere_are_refused_with_the_remedy() {
    for (memory, word) in [
        ("memory-backend-ram,id=ram,size=64M", "memory-backend-ram"),
        (
            "memory-backend-file,id=ram,size=64M,mem-path=/dev/shm/locum-test-elsewhere,share=on",
            "elsewhere",
        ),
    ] {
        let Some(mut lab) = Lab::new() else { return };
        let guest = lab.boot(memory);
        let refusal = lab.hypervisor().inspect(&guest, 1).unwrap_err();
        assert!(matches!(refusal, Refusal::NotInPool { .. }), "{refusal}");
        let text = refusal.to_string();
        assert!(text.contains(word) && text.contains("share=on"), "{text}");
    }
    let _ = fs::remove_file("/dev/shm/locum-test-elsewhere");
    let Some(mut lab) = Lab::new() else { return };
    let private = lab.in_pool().replace("share=on", "share=off");
    let guest = lab.boot(&private);
    let refusal = lab.hypervisor().inspect(&guest, 1).unwrap_err();
    assert!(refusal.to_string().contains("not share=on"), "{refusal}");
}

#[test]
fn a_guest_that_is_not_there_or_does_not_run_is_refused() {
    let Some(mut lab) = Lab::new() else { return };
    let hypervisor = lab.hypervisor();
    let nobody = Guest {
        name: "none".to_owned(),
        qmp: lab.path("none.qmp"),
        libvirt: None,
        command: vec![],
        channel: None,
        trust_storage: false,
    };
    assert!(matches!(hypervisor.inspect(&nobody, 1), Err(Refusal::NoGuest { .. })));
    let guest = lab.boot(&lab.in_pool());
    let until = Deadline::after(HANG);
    let mut qmp = Qmp::connect(&guest.qmp, &until).unwrap();
    qmp.execute("stop", serde_json::json!({}), &until).unwrap();
    drop(qmp);
    let refusal = hypervisor.inspect(&guest, 1).unwrap_err();
    assert!(matches!(refusal, Refusal::GuestNotRunning { .. }), "{refusal}");
}

/// Bytes of RAM that a migration to a file takes along.
fn saved_ram(qmp: &Path) -> u64 {
    let until = Deadline::after(HANG);
    let mut qmp = Qmp::connect(qmp, &until).unwrap();
    let uri = json!({ "uri": "exec:cat > /dev/null" });
    qmp.execute("migrate", uri, &until).unwrap();
    let mut total = 0;
    let saved = until.comes_true(OFTEN, || {
        let info = qmp.execute("query-migrate", json!({}), &until).unwrap();
        total = info["ram"]["total"].as_u64().unwrap_or(0);
        assert_ne!(info["status"], "failed", "{info}");
        info["status"] == "completed"
    });
    assert!(saved, "it is never saved");
    total
}

#[test]
fn a_guest_that_is_saved_after_a_handover_is_saved_with_its_ram() {
    let Some(mut lab) = Lab::new() else { return };
    let (hypervisor, spec) = lab.running();
    let until = Deadline::after(HANG);
    let mut source = hypervisor.attach(&spec).unwrap();
    let there = lab.target(&spec, &[]);
    let mut target = hypervisor.prepare(&there, &until).unwrap();
    let (sent, received) = hand_over(source.as_mut(), target.as_mut(), &until);
    sent.unwrap();
    received.unwrap();
    source.quit().unwrap();
    // As if its agent had died now, and another had found the guest.
    drop(target);
    let mut target = hypervisor.find(&there).unwrap().unwrap();
    assert_eq!(target.arrive().unwrap(), Place::Running);
    drop(target);
    assert!(saved_ram(&there.qmp) >= RAM);
    let mut target = hypervisor.find(&there).unwrap().unwrap();
    target.quit().unwrap();
}

#[test]
fn a_guest_whose_handover_was_begun_by_an_agent_that_died_is_saved_with_its_ram() {
    let Some(mut lab) = Lab::new() else { return };
    let (hypervisor, spec) = lab.running();
    let until = Deadline::after(HANG);
    let mut qmp = Qmp::connect(&spec.qmp, &until).unwrap();
    let on = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    qmp.execute("migrate-set-capabilities", on, &until).unwrap();
    drop(qmp);
    let mut found = hypervisor.find(&spec).unwrap().unwrap();
    found.plain().unwrap();
    drop(found);
    assert!(saved_ram(&spec.qmp) >= RAM);
}

#[test]
fn a_qemu_that_hangs_is_told_and_not_waited_for_for_ever() {
    let Some(mut lab) = Lab::new() else { return };
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts());
    let pid = Pid::from_child(&lab.source.as_ref().unwrap().0);
    let signal = |signal| kill_process(pid, signal).unwrap();
    let mut connected = Qmp::connect(&guest.qmp, &Deadline::after(HANG)).unwrap();
    signal(Signal::STOP);
    let error = connected.execute("query-status", json!({}), &Deadline::after(Duration::from_secs(1)));
    let error = format!("{:#}", error.unwrap_err());
    assert!(
        error.contains("query-status: QEMU does not answer in time: it hangs"),
        "{error}"
    );
    drop(connected);
    // More often than its socket takes connections that nobody accepts. It may have accepted one before it stopped.
    for _ in 0..4 {
        let error = Qmp::connect(&guest.qmp, &Deadline::after(Duration::from_secs(1)));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("hang"), "{error}");
    }
    signal(Signal::CONT);
    assert!(lab.counts(), "the guest is where it was");
}

#[test]
fn a_qemu_that_a_dead_agent_had_started_is_found_without_its_socket() {
    let Some(lab) = Lab::new() else { return };
    let spec = Spec {
        name: "one".to_owned(),
        qmp: lab.path("orphan.qmp"),
        output: lab.path("orphan.log"),
        channel: 1,
        ..Spec::default()
    };
    let start = || {
        let started = Command::new("sleep").arg("60").env("LOCUM_QMP", &spec.qmp).spawn();
        let started = Killed(started.unwrap());
        // It has begun before its environment is there to be read.
        let environment = format!("/proc/{}/environ", started.0.id());
        let wanted = spec.qmp.to_str().unwrap().as_bytes();
        let named = |environment: Vec<u8>| environment.windows(wanted.len()).any(|at| at == wanted);
        assert!(seen(|| fs::read(&environment).is_ok_and(named)), "it does not start");
        started
    };
    let mut orphan = start();
    assert!(lab.hypervisor().find(&spec).unwrap().is_none());
    assert!(!orphan.0.wait().unwrap().success(), "it was ended");
    // One whose socket is bound may have a guest: it is told, and left alone.
    let _socket = std::os::unix::net::UnixListener::bind(&spec.qmp).unwrap();
    fs::remove_file(&spec.qmp).unwrap();
    let mut running = start();
    let error = lab.hypervisor().find(&spec).err().unwrap().to_string();
    assert!(error.contains("has a QEMU here already"), "{error}");
    assert!(running.0.try_wait().unwrap().is_none());
}

/// Ends a QEMU that this process did not start itself, or that its agent did.
fn end(qmp: &Path) {
    let mut left = Qmp::connect(qmp, &Deadline::after(HANG)).unwrap();
    let _ = left.execute("quit", json!({}), &Deadline::after(HANG));
    let _ = left.wait_closed(&Deadline::after(HANG));
}

#[test]
fn a_guest_gets_another_qemu_under_the_same_name() {
    let Some(mut lab) = Lab::new() else { return };
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts(), "the guest runs");
    let before = lab.source.as_ref().unwrap().0.id();
    let hypervisor = lab.hypervisor();
    let mut spec = hypervisor.inspect(&guest, 1).unwrap();
    // The agent's own socket is the guest's only one.
    spec.output = lab.path("renewed.log");
    let until = Deadline::after(HANG);

    // One that does not start, and one that does not take its state.
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut other = spec.clone();
        change(&mut other.command);
        format!("{:#}", hypervisor.renew(&other, &until).unwrap_err())
    };
    let error = with(&|command| command.extend(["-device".to_owned(), "no-such-device".to_owned()]));
    assert!(error.contains("no-such-device"), "{error}");
    assert!(lab.counts(), "the guest goes on in the QEMU that it has");
    let error = with(&|command| {
        for word in command {
            if word.starts_with("pc-i440fx") {
                *word = "isapc,memory-backend=ram".to_owned();
            }
        }
    });
    assert!(error.contains("does not take its state"), "{error}");
    assert!(lab.counts(), "the guest goes on in the QEMU that it has");
    assert_eq!(hypervisor.inspect(&guest, 1).unwrap().pid, spec.pid, "by its socket");

    let counted = lab.counter();
    let renewed = hypervisor.renew(&spec, &until).unwrap();
    assert!(lab.counts() && lab.counter() >= counted, "the guest goes on");
    assert_eq!(renewed.ram_bytes_copied, 0);
    assert!(renewed.stopped_ticks > 0 && renewed.state_bytes > 1000, "{renewed:?}");
    assert_eq!((renewed.from, renewed.to.is_some()), (spec.release, true));
    let now = hypervisor.inspect(&guest, 1).unwrap();
    assert_ne!(now.pid, spec.pid);
    assert!(
        lab.source.as_mut().unwrap().0.wait().is_ok(),
        "process {before} is gone"
    );
    assert!(!lab.path("source.qmp.before").exists());
    // Once more, since what it was started with is of ours now.
    hypervisor
        .renew(&hypervisor.inspect(&guest, 1).unwrap(), &until)
        .unwrap();
    assert!(lab.counts());
    assert_eq!(hypervisor.go_on_renewing(), [] as [&str; 0]);
    end(&guest.qmp);
}

/// What an agent that dies while it gives a guest another QEMU has written down.
fn write_down(spec: &Spec) {
    let note = json!({ "spec": spec, "sockets": [&spec.qmp] });
    let mut path = spec.qmp.clone().into_os_string();
    path.push(".renewing");
    fs::write(path, note.to_string()).unwrap();
}

#[test]
fn a_renewal_that_a_dead_agent_had_begun_is_ended_by_the_next() {
    let Some(mut lab) = Lab::new() else { return };
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts(), "the guest runs");
    let hypervisor = lab.hypervisor();
    let mut spec = hypervisor.inspect(&guest, 1).unwrap();
    spec.output = lab.path("renewed.log");
    let until = Deadline::after(HANG);
    let before = lab.path("source.qmp.before");
    let left = || lab.path("source.qmp.renewing").exists() || before.exists();

    // It died before the other QEMU was there.
    write_down(&spec);
    fs::rename(&spec.qmp, &before).unwrap();
    assert_eq!(hypervisor.go_on_renewing(), [] as [&str; 0]);
    assert!(lab.counts() && !left());
    assert_eq!(hypervisor.inspect(&guest, 1).unwrap().pid, spec.pid);

    // While the other QEMU waited.
    write_down(&spec);
    fs::rename(&spec.qmp, &before).unwrap();
    drop(hypervisor.prepare(&spec, &until).unwrap());
    assert_eq!(hypervisor.go_on_renewing(), [] as [&str; 0]);
    assert!(lab.counts() && !left());
    assert_eq!(hypervisor.inspect(&guest, 1).unwrap().pid, spec.pid);

    // When the guest ran there already.
    let mut source = hypervisor.attach(&spec).unwrap();
    write_down(&spec);
    fs::rename(&spec.qmp, &before).unwrap();
    let mut target = hypervisor.prepare(&spec, &until).unwrap();
    let (sent, received) = hand_over(source.as_mut(), target.as_mut(), &until);
    sent.unwrap();
    received.unwrap();
    drop((source, target));
    assert_eq!(hypervisor.go_on_renewing(), [] as [&str; 0]);
    assert!(lab.counts() && !left());
    assert_ne!(hypervisor.inspect(&guest, 1).unwrap().pid, spec.pid);
    assert!(lab.source.as_mut().unwrap().0.wait().is_ok(), "the one before is gone");
    end(&guest.qmp);
}
