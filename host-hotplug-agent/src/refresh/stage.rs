//! Where refreshes are tested: a machine in memory with two guests, and a daemon on it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use locum_abi::CpuMode;

use crate::daemon::Worker;
use crate::deadline::Deadline;
use crate::error::Failure;
use crate::l0::{memory, view};
use crate::load::cpio;
use crate::machine::{Machine, TextKind};
use crate::refresh::{Limits, Shared};
use crate::report::Report;
use crate::testing::kernel::bzimage;
use crate::testing::machine::FakeMachine;
use crate::testing::tree::Tree;
use crate::testing::vm::FakeHypervisor;
use crate::testing::world::{Behaviour, INCUMBENT, World};

/// Limit that only a test which hangs reaches, on the busiest machine.
pub(super) const HANG: Duration = Duration::from_secs(180);

/// Four CPUs, two guests, an incumbent with a daemon.
pub(super) struct Stage {
    pub(super) world: Arc<World>,
    pub(super) machine: Arc<FakeMachine>,
    pub(super) shared: Arc<Shared>,
    pub(super) worker: Arc<Worker>,
}

impl Stage {
    /// The agents' time-outs are such that only what hangs meets them.
    pub(super) fn new(behaviour: Behaviour) -> Self {
        let boot = match behaviour {
            Behaviour::Hangs => 2,
            _ => HANG.as_secs(),
        };
        Self::with_timeouts(behaviour, boot, HANG.as_secs())
    }

    pub(super) fn with_timeouts(behaviour: Behaviour, boot: u64, retire: u64) -> Self {
        Self::with_limits(behaviour, (boot, retire), Limits::default())
    }

    /// The same, with a world that something is peculiar about from the start.
    pub(super) fn with(behaviour: Behaviour, peculiar: impl FnOnce(&World)) -> Self {
        let world = World::new(behaviour);
        peculiar(&world);
        Self::in_world(world, (HANG.as_secs(), HANG.as_secs()))
    }

    /// Seconds to boot and to retire, and how long the agents wait for each other.
    pub(super) fn with_limits(behaviour: Behaviour, seconds: (u64, u64), limits: Limits) -> Self {
        let world = World::new(behaviour);
        world.limit(limits);
        Self::in_world(world, seconds)
    }

    fn in_world(world: Arc<World>, (boot, retire): (u64, u64)) -> Self {
        let tree = Tree::lab();
        tree.put("sys/devices/system/cpu/online", "0-3\n");
        let kernel = tree.put("vmlinuz", bzimage(256 << 10));
        let initramfs = tree.put("initrd", cpio::pack(std::slice::from_ref(&kernel)).unwrap());
        tree.put(
            "etc/locum/next.toml",
            format!(
                "kernel = {kernel:?}\ninitramfs = {initramfs:?}\ncmdline = \"console=ttyS1\"\ncpus = 2\n\
                 memory = \"512M\"\ndevices = [\"0000:00:03.0\"]\ntimeouts = {{ boot = {boot}, retire = {retire} }}\n\
                 [[guests]]\nname = \"one\"\nqmp = \"/run/one\"\n[[guests]]\nname = \"two\"\nqmp = \"/run/two\"\n"
            ),
        );
        let machine = FakeMachine::new(&world, INCUMBENT, tree);
        let hypervisor = FakeHypervisor::new(&world, INCUMBENT);
        hypervisor.boot("one");
        hypervisor.boot("two");
        let (worker, shared) = machine.start_daemon();
        Self {
            world,
            machine,
            shared,
            worker,
        }
    }

    /// Adds to the time-outs in the configuration.
    pub(super) fn configure(&self, timeout: &str) {
        let file = self.machine.tree().path().join("etc/locum/next.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            text.replacen("timeouts = {", &format!("timeouts = {{ {timeout},"), 1),
        )
        .unwrap();
    }

    pub(super) fn begin(&self) {
        self.worker.begin("next").unwrap();
    }

    pub(super) fn wait(&self) -> Report {
        self.sees(|stage| stage.shared.lock().running.is_none());
        named(self.shared.lock().report.clone().unwrap())
    }

    /// Runs it and expects that it comes back, with `word` in the reason.
    pub(super) fn aborts(&self, word: &str) {
        self.aborts_as(None, word);
    }

    /// The same, and the reason has that name.
    pub(super) fn aborts_as(&self, failure: impl Into<Option<Failure>>, word: &str) {
        self.begin();
        let report = self.wait();
        assert_eq!(report.outcome, "aborted", "{report:#?}");
        let error = report.error.unwrap();
        assert!(error.contains(word), "`{word}` is not in: {error}");
        let name = report.error_name.expect("what went wrong has a name");
        if let Some(failure) = failure.into() {
            assert_eq!(name, failure.name(), "{error}");
        }
        assert_eq!(self.world.shown(TextKind::LastError), error.replace('\n', " "));
        self.intact();
        assert_eq!(self.world.runs_in("one"), [INCUMBENT]);
        assert_eq!(self.world.runs_in("two"), [INCUMBENT]);
    }

    /// The incumbent has its machine, as if nothing had been.
    pub(super) fn intact(&self) {
        let status = memory::status(&self.world.region, &self.world.region.header()).unwrap();
        for cpu in &status.cpus[..4] {
            assert_eq!(
                (view::owner(cpu), cpu.mode),
                (Some(INCUMBENT), CpuMode::Native as u32),
                "APIC {}",
                cpu.apic_id
            );
        }
        let sys = self.machine.sys();
        for number in 1..4 {
            assert_eq!(
                sys.read(format!("sys/devices/system/cpu/cpu{number}/online")).unwrap(),
                "1"
            );
        }
        for number in 0..13 {
            assert_eq!(
                sys.read(format!("sys/devices/system/memory/memory{number}/state"))
                    .unwrap(),
                "online"
            );
        }
        assert!(sys.exists("sys/bus/pci/devices/0000:00:03.0"));
        assert_eq!(self.shared.status().state, "idle");
        assert_eq!(self.world.leaks(), [] as [String; 0]);
    }

    /// Waits until it goes neither on nor back.
    pub(super) fn stuck(&self) {
        self.sees(|stage| stage.shared.status().course == "stuck");
    }

    /// Waits until the successor reigns; returns its files.
    pub(super) fn reigns(&self) -> Arc<Tree> {
        self.sees(|stage| {
            let successor = stage.world.successor();
            successor.is_some_and(|tree| tree.path().join("run/locum/kept.json").exists())
        });
        self.world.successor().unwrap()
    }

    /// Waits until it is so.
    pub(super) fn sees(&self, so: impl Fn(&Self) -> bool) {
        let seen = Deadline::after(HANG).comes_true(Duration::from_millis(2), || so(self));
        assert!(seen, "{}", self.shared.status().summary);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.world.end();
    }
}

pub(super) fn kept(successor: &Tree) -> Report {
    let text = fs::read_to_string(successor.path().join("run/locum/kept.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    named(serde_json::from_value(kept["report"].clone()).unwrap())
}

/// A report of what has ended: what went wrong has a name, and nothing else has.
pub(super) fn named(report: Report) -> Report {
    assert_eq!(report.error.is_some(), report.error_name.is_some(), "{report:#?}");
    report
}
