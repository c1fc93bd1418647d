//! A host's `/proc` and `/sys` as plain files: four CPUs, 2 GiB of RAM in blocks of 128 MiB, two NICs, as in the lab.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

/// Bytes of a memory block.
pub const BLOCK: u64 = 128 << 20;

/// What is set otherwise while CPUs are nested, and as it is before and afterwards.
pub const SETTINGS: [(&str, &str); 2] = [
    (
        "sys/devices/system/machinecheck/machinecheck0/monarch_timeout",
        "1000000",
    ),
    ("sys/module/kernel/parameters/crash_kexec_post_notifiers", "N"),
];

/// A tree of files in a directory that goes away with it.
pub struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    /// The lab's machine under generation 0.
    pub fn lab() -> Self {
        // Like the real ones, these files are on no disk: a journal is written through with each action.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let tree = Self { dir: dir.unwrap() };
        tree.put("proc/sys/kernel/osrelease", "6.11.1+deb13-amd64\n");
        tree.put("proc/sys/kernel/random/boot_id", "this boot\n");
        tree.put("proc/meminfo", "MemTotal: 1600000 kB\nMemAvailable: 1400000 kB\n");
        tree.put(
            "proc/iomem",
            "00001000-0004ffff : System RAM\n00a00000-67ffffff : System RAM\n68000000-7fdfffff : Soft Reserved\n\
             c0000000-c001ffff : 0000:00:03.0\n",
        );
        tree.put("sys/devices/system/memory/block_size_bytes", format!("{BLOCK:x}\n"));
        for number in 0..13 {
            tree.block(number, "online", if number >= 8 { "Movable" } else { "Normal" });
        }
        let flags = fs::File::create(tree.path().join("proc/kpageflags")).unwrap();
        flags.set_len(13 * BLOCK / 4096 * 8).unwrap();
        super::tables::write(tree.path(), &[0, 1, 2, 3]);
        for (file, value) in SETTINGS {
            tree.put(file, format!("{value}\n"));
        }
        for cpu in 0..4 {
            let dir = format!("sys/devices/system/cpu/cpu{cpu}");
            fs::create_dir_all(tree.path().join(&dir)).unwrap();
            if cpu > 0 {
                tree.put(format!("{dir}/online"), "1\n");
            }
        }
        tree.put(
            "proc/cpuinfo",
            "processor : 0\nflags : vmx constant_tsc\nvmx flags : ept unrestricted_guest\n",
        );
        tree.function("0000:00:00.0", "0x060000", 0, None, "");
        tree.function("0000:00:1f.0", "0x060100", 0, None, "");
        tree.function(
            "0000:00:02.0",
            "0x020000",
            9,
            Some(("e1000", "eth0")),
            "0xc0020000 0xc003ffff 0x40200\n",
        );
        tree.function(
            "0000:00:03.0",
            "0x020000",
            11,
            Some(("e1000", "eth1")),
            "0xc0000000 0xc001ffff 0x40200\n0xc100 0xc13f 0x40101\n",
        );
        tree.put("sys/class/net/eth0/x", "");
        tree.put("sys/devices/pci0000:00/firmware_node/path", "\\_SB_.PCI0\n");
        tree.put(
            "sys/bus/pci/devices/0000:00:1f.0/firmware_node/path",
            "\\_SB_.PCI0.LPCB\n",
        );
        for (irq, chip, actions) in [(0, "IO-APIC", "timer"), (9, "IO-APIC", "acpi"), (24, "PCI-MSI", "x")] {
            tree.put(format!("sys/kernel/irq/{irq}/chip_name"), format!("{chip}\n"));
            tree.put(format!("sys/kernel/irq/{irq}/actions"), format!("{actions}\n"));
        }
        tree.memmap(&[
            (0, 0x9_ffff, "System RAM"),
            (0x10_0000, 0x7ffe_ffff, "System RAM"),
            (0x7fff_0000, 0x7fff_ffff, "ACPI Tables"),
        ]);
        tree
    }

    /// The same with a NIC that the fixture's AML has regions of: in its configuration space, in its registers.
    pub fn with_nic_of_firmware() -> Self {
        let tree = Self::lab();
        tree.function("0000:00:04.0", "0x020000", 10, None, "0xc0040000 0xc005ffff 0x40200\n");
        tree.put(
            "sys/bus/pci/devices/0000:00:04.0/firmware_node/path",
            "\\_SB_.PCI0.NIC4\n",
        );
        tree
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The tree as the agent sees it.
    pub fn sys(&self) -> crate::sysroot::SysRoot {
        crate::sysroot::SysRoot::at(self.path())
    }

    /// Writes a file, with the directories above it.
    pub fn put(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Makes the firmware's memory map: first and last byte, type.
    pub fn memmap(&self, ranges: &[(u64, u64, &str)]) {
        let _ = fs::remove_dir_all(self.path().join("sys/firmware/memmap"));
        for (index, (start, last, kind)) in ranges.iter().enumerate() {
            self.put(format!("sys/firmware/memmap/{index}/start"), format!("{start:#x}\n"));
            self.put(format!("sys/firmware/memmap/{index}/end"), format!("{last:#x}\n"));
            self.put(format!("sys/firmware/memmap/{index}/type"), format!("{kind}\n"));
        }
    }

    /// Sets the flags of the page at `address` in `/proc/kpageflags`; what was not set is 0.
    pub fn page(&self, address: u64, flags: u64) {
        let path = self.path().join("proc/kpageflags");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&flags.to_ne_bytes(), address / 4096 * 8).unwrap();
    }

    /// Makes a memory block.
    pub fn block(&self, number: u64, state: &str, zones: &str) {
        let dir = format!("sys/devices/system/memory/memory{number}");
        self.put(format!("{dir}/state"), format!("{state}\n"));
        self.put(format!("{dir}/valid_zones"), format!("{zones}\n"));
    }

    /// Makes a PCI function, with driver and network interface.
    pub fn function(&self, address: &str, class: &str, irq: u32, driver: Option<(&str, &str)>, resource: &str) {
        let dir = format!("sys/bus/pci/devices/{address}");
        self.put(format!("{dir}/class"), format!("{class}\n"));
        self.put(format!("{dir}/irq"), format!("{irq}\n"));
        self.put(format!("{dir}/resource"), resource);
        if let Some((driver, interface)) = driver {
            fs::create_dir_all(self.path().join(format!("sys/bus/pci/drivers/{driver}"))).unwrap();
            symlink(
                format!("../../../../bus/pci/drivers/{driver}"),
                self.path().join(format!("{dir}/driver")),
            )
            .unwrap();
            self.put(format!("{dir}/net/{interface}/flags"), "0x1002\n");
        }
    }
}
