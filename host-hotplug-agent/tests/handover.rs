//! Guests handed over between real QEMUs on one host (TCG): RAM stays in a file that both map, state crosses a pair of
//! sockets in place of the channel. Skipped where QEMU is not installed; the lab's scenario `qemus` has one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use locum_agent::channel::Port;
use locum_agent::config::Guest;
use locum_agent::deadline::Deadline;
use locum_agent::error::Refusal;
use locum_agent::guest::pool::Pool;
use locum_agent::guest::qemu::Qemu;
use locum_agent::guest::qmp::{Monitor, Qmp};
use locum_agent::guest::{Hypervisor, Place, Received, Sent, Spec, Vm, whether_it_came};
use locum_agent::sysroot::SysRoot;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const RAM: u64 = 64 << 20;
/// What only a test which hangs takes, on the busiest machine.
const HANG: Duration = Duration::from_secs(300);
/// Between two looks.
const OFTEN: Duration = Duration::from_millis(20);
/// Where the guest counts.
const COUNTER: u64 = 0x8000;
/// `mov ds:[0x8000]` counted up for ever: xor ax,ax; mov ds,ax; 1: inc dword [0x8000]; jmp 1b
const BOOT_CODE: [u8; 11] = [0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9];

struct Lab {
    dir: tempfile::TempDir,
    pool: PathBuf,
    source: Option<Killed>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Dropped before by a test that failed: it would go on.
        if let Ok(mut target) = Qmp::connect(&self.path("target.qmp"), &Deadline::after(OFTEN)) {
            let _ = target.execute("quit", json!({}), &Deadline::after(OFTEN));
        }
    }
}

/// A process that ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// None if there is no QEMU here.
    fn new() -> Option<Self> {
        Command::new("qemu-system-x86_64")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .ok()?;
        let dir = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
        let mut disk = vec![0; 1_474_560];
        disk[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(dir.path().join("disk"), disk).unwrap();
        let pool = dir.path().join("pool");
        Some(Self {
            dir,
            pool,
            source: None,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, qmp: &Path, memory: &str) -> Vec<String> {
        let disk = self.path("disk");
        format!(
            "qemu-system-x86_64 -M pc,memory-backend=ram -accel tcg -m 64 -nodefaults -no-user-config -display none \
             -object {memory} -qmp unix:{},server=on,wait=off \
             -drive if=floppy,format=raw,readonly=on,file.locking=off,file={}",
            qmp.display(),
            disk.display()
        )
        .split_whitespace()
        .map(str::to_owned)
        .collect()
    }

    fn in_pool(&self) -> String {
        format!(
            "memory-backend-file,id=ram,size=64M,mem-path={},share=on",
            self.pool.display()
        )
    }

    /// Starts a guest and waits until it counts.
    fn boot(&mut self, memory: &str) -> Guest {
        let qmp = self.path("source.qmp");
        let command = self.command(&qmp, memory);
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.source = Some(Killed(child));
        assert!(seen(|| UnixStream::connect(&qmp).is_ok()), "QEMU does not come up");
        Guest {
            name: "one".to_owned(),
            qmp,
            libvirt: None,
            command: vec![],
            channel: None,
            trust_storage: false,
        }
    }

    fn counter(&self) -> u32 {
        let mut bytes = [0; 4];
        // QEMU opens its monitor before its memory.
        let read = File::open(&self.pool).and_then(|file| file.read_exact_at(&mut bytes, COUNTER));
        if read.is_err() {
            return 0;
        }
        u32::from_le_bytes(bytes)
    }

    fn counts(&self) -> bool {
        let before = self.counter();
        seen(|| self.counter() != before)
    }

    fn hypervisor(&self) -> Qemu {
        Qemu::new(SysRoot::default(), Pool::File(self.pool.clone()))
    }

    /// The target's specification: the same guest, with another socket since both are on one host.
    fn target(&self, spec: &Spec, extra: &[&str]) -> Spec {
        let qmp = self.path("target.qmp");
        let mut command = locum_agent::guest::argv::incoming(&self.command(&qmp, &self.in_pool()));
        command.extend(extra.iter().map(|word| (*word).to_owned()));
        Spec {
            qmp,
            command,
            output: self.path("target.log"),
            ..spec.clone()
        }
    }
}

/// Whether it is so within the time of a test.
fn seen(so: impl Fn() -> bool) -> bool {
    Deadline::after(HANG).comes_true(OFTEN, so)
}

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
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts(), "the guest runs");
    let hypervisor = lab.hypervisor();
    let spec = hypervisor.inspect(&guest, 1).unwrap();
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
    let guest = lab.boot(&lab.in_pool());
    let hypervisor = lab.hypervisor();
    assert!(lab.counts());
    let spec = hypervisor.inspect(&guest, 1).unwrap();
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
    let guest = lab.boot(&lab.in_pool());
    let hypervisor = lab.hypervisor();
    assert!(lab.counts());
    let spec = hypervisor.inspect(&guest, 1).unwrap();
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
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts());
    let hypervisor = lab.hypervisor();
    let spec = hypervisor.inspect(&guest, 1).unwrap();
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
    let guest = lab.boot(&lab.in_pool());
    assert!(lab.counts());
    let hypervisor = lab.hypervisor();
    let spec = hypervisor.inspect(&guest, 1).unwrap();
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
        command: vec![],
        output: lab.path("orphan.log"),
        channel: 1,
        ram: vec![],
        release: None,
        pid: None,
        disks: vec![],
        networks: vec![],
        uuid: None,
        libvirt: None,
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
