//! A guest of a real QEMU (TCG) where another one was: the pool is a plain file, `/proc` is this machine's. Skipped where QEMU
//! is not installed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use locum_abi::{PoolExtent, Slot};
use locum_agent::deadline::Deadline;
use locum_agent::guest::pool::Pool;
use locum_agent::pool::table::{Table, Words};
use locum_agent::pool::{Extents, Keeper, View, Wanted};
use locum_agent::sysroot::SysRoot;

const RAM: u64 = 64 << 20;
/// Where the BIOS puts a boot sector.
const BOOT: u64 = 0x7c00;
/// `jmp .`, and what a guest would keep to itself.
const SECTOR: &[u8] = b"\xeb\xfethe first guest's secret";
const HANG: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Memory(Vec<AtomicU64>);

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        self.0[index].load(SeqCst)
    }

    fn store(&self, index: usize, value: u64) {
        self.0[index].store(value, SeqCst);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        self.0[index].compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    fn fence(&self) {
        std::sync::atomic::fence(SeqCst);
    }
}

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With its RAM where the pool says, and a floppy; `None` if there is no QEMU here.
fn start(dir: &Path, view: &View, more: &[&str]) -> Option<Guest> {
    let qmp = dir.join(format!("{}.qmp", view.guest));
    // An older QEMU has no offset; there, a guest begins where its device does.
    let backend = view.backend().unwrap().replace(",offset=0", "");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(backend.split(' ')).args(more).args([
        "-M",
        "pc,memory-backend=ram",
        "-m",
        "64",
        "-accel",
        "tcg",
        "-display",
        "none",
        "-nodefaults",
    ]);
    command
        .arg("-name")
        .arg(&view.guest)
        .arg("-uuid")
        .arg(view.uuid.to_string());
    let socket = format!("unix:{},server=on,wait=off", qmp.display());
    command.arg("-qmp").arg(socket);
    let disk = format!(
        "if=floppy,format=raw,readonly=on,file.locking=off,file={}",
        dir.join("disk").display()
    );
    let child = command.arg("-drive").arg(disk).stdin(Stdio::null()).spawn().ok()?;
    let guest = Guest(child);
    assert!(seen(|| UnixStream::connect(&qmp).is_ok()), "QEMU does not come up");
    Some(guest)
}

fn seen(so: impl Fn() -> bool) -> bool {
    Deadline::after(HANG).comes_true(Duration::from_millis(20), so)
}

/// What a guest has at an address.
fn ram(pool: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(pool).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn a_guest_that_starts_where_another_was_finds_zeroes() {
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let dir = dir.path();
    let mut sector = SECTOR.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1_474_560, 0);
    fs::write(dir.join("disk"), sector).unwrap();
    let pool = dir.join("pool");
    // Another kernel's bytes are all over it.
    fs::write(&pool, vec![0xa5; RAM as usize]).unwrap();
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    for name in ["proc", "dev"] {
        symlink(format!("/{name}"), root.join(name)).unwrap();
    }
    let sys = SysRoot::at(&root);
    let words = Memory(
        (0..8 * size_of::<PoolExtent>() / 8)
            .map(|_| AtomicU64::new(0))
            .collect(),
    );
    let words: Arc<dyn Words> = Arc::new(words);
    let extents: Extents = Table::new(words, size_of::<PoolExtent>(), 8);
    let keeper = || Keeper::new(&sys, &Pool::File(pool.clone()), &extents, Slot::Even, false).unwrap();
    let alloc = |name: &str| {
        let wanted = Wanted {
            name: name.to_owned(),
            size: RAM,
            node: None,
            uuid: None,
        };
        keeper().alloc(&wanted)
    };

    let first = alloc("first").unwrap();
    let Some(guest) = start(dir, &first, &[]) else {
        eprintln!("skipped: no QEMU");
        return;
    };
    assert!(seen(|| ram(&pool, BOOT, SECTOR.len()) == SECTOR), "the guest boots");
    // It runs, and this machine's /proc shows where.
    let refused = format!("{:#}", keeper().free("first").unwrap_err());
    let pid = guest.0.id().to_string();
    assert!(refused.contains(&format!("process {pid} (first)")), "{refused}");
    assert!(format!("{:#}", alloc("second").unwrap_err()).contains("the pool is full"));
    drop(guest);
    // Its QEMU is gone; whether the guest is, nobody knows but its operator.
    assert!(format!("{:#}", alloc("second").unwrap_err()).contains("the pool is full"));
    assert_eq!(ram(&pool, BOOT, SECTOR.len()), SECTOR);
    keeper().free("first").unwrap();
    assert_eq!(ram(&pool, BOOT, SECTOR.len()), SECTOR, "nobody has it yet");

    let second = alloc("second").unwrap();
    assert_eq!((second.start, second.end), (first.start, first.end));
    // Stopped before its first instruction.
    let _guest = start(dir, &second, &["-S"]).unwrap();
    let low = ram(&pool, 0, 0xa_0000);
    assert!(low.iter().all(|byte| *byte == 0), "below the BIOS all is zero");
    let high = ram(&pool, 0x10_0000, RAM as usize - 0x10_0000);
    assert!(high.iter().all(|byte| *byte == 0));
    let list = keeper().list().unwrap();
    assert_eq!(
        (list.len(), list[0].guest.as_str(), list[0].state),
        (1, "second", "used")
    );
}
