//! A guest that counts in its RAM, and what its QEMUs are started with.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use locum_agent::config::Guest;
use locum_agent::deadline::Deadline;
use locum_agent::guest::pool::Pool;
use locum_agent::guest::qemu::Qemu;
use locum_agent::guest::qmp::{Monitor, Qmp};
use locum_agent::guest::{Hypervisor, Spec};
use locum_agent::sysroot::SysRoot;
use serde_json::json;

pub(super) const RAM: u64 = 64 << 20;
/// What only a test which hangs takes, on the busiest machine.
pub(super) const HANG: Duration = Duration::from_secs(300);
/// Between two looks.
pub(super) const OFTEN: Duration = Duration::from_millis(20);
/// Where the guest counts.
pub(super) const COUNTER: u64 = 0x8000;
/// `mov ds:[0x8000]` counted up for ever: xor ax,ax; mov ds,ax; 1: inc dword [0x8000]; jmp 1b
pub(super) const BOOT_CODE: [u8; 11] = [0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9];

pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
    pub(super) pool: PathBuf,
    pub(super) source: Option<Killed>,
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
pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// None if there is no QEMU here.
    pub(super) fn new() -> Option<Self> {
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn command(&self, qmp: &Path, memory: &str) -> Vec<String> {
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

    pub(super) fn in_pool(&self) -> String {
        format!(
            "memory-backend-file,id=ram,size=64M,mem-path={},share=on",
            self.pool.display()
        )
    }

    /// Starts a guest and waits until it counts.
    pub(super) fn boot(&mut self, memory: &str) -> Guest {
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

    /// Starts a guest with its RAM in the pool, and looks at it once it counts.
    pub(super) fn running(&mut self) -> (Qemu, Spec) {
        let guest = self.boot(&self.in_pool());
        assert!(self.counts(), "the guest runs");
        let hypervisor = self.hypervisor();
        let spec = hypervisor.inspect(&guest, 1).unwrap();
        (hypervisor, spec)
    }

    pub(super) fn counter(&self) -> u32 {
        let mut bytes = [0; 4];
        // QEMU opens its monitor before its memory.
        let read = File::open(&self.pool).and_then(|file| file.read_exact_at(&mut bytes, COUNTER));
        if read.is_err() {
            return 0;
        }
        u32::from_le_bytes(bytes)
    }

    pub(super) fn counts(&self) -> bool {
        let before = self.counter();
        seen(|| self.counter() != before)
    }

    pub(super) fn hypervisor(&self) -> Qemu {
        Qemu::new(SysRoot::default(), Pool::File(self.pool.clone()))
    }

    /// The target's specification: the same guest, with another socket since both are on one host.
    pub(super) fn target(&self, spec: &Spec, extra: &[&str]) -> Spec {
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
pub(super) fn seen(so: impl Fn() -> bool) -> bool {
    Deadline::after(HANG).comes_true(OFTEN, so)
}
