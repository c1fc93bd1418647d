//! Machines made of facts, each with one thing that is not as it must be; and the facts of a machine made of files.

use std::fs;

use firmware_shim::e820::SLICES_END;
use locum_abi::vmx::NEEDS;
use partitioner::MemRange;

use super::facts::{CpuMsrs, Facts, Msrs, Qemu, SecureBoot, parse_cpuinfo};
use super::*;
use crate::inventory::Ram;
use crate::testing::tables;
use crate::testing::tree::Tree;

const CPUINFO: &str = "processor : 0\nvendor_id : GenuineIntel\nflags : vmx constant_tsc pdpe1gb arch_capabilities\n\
                       vmx flags : ept unrestricted_guest shadow_vmcs\n\nprocessor : 1\nvendor_id : GenuineIntel\n\
                       flags : vmx constant_tsc pdpe1gb arch_capabilities\nvmx flags : ept unrestricted_guest shadow_vmcs\n";
const CONFIG: &str = "CONFIG_ACPI_MADT_WAKEUP=y\nCONFIG_HOTPLUG_CPU=y\nCONFIG_MEMORY_HOTPLUG=y\n\
                      CONFIG_MEMORY_HOTREMOVE=y\nCONFIG_FIRMWARE_MEMMAP=y\nCONFIG_KVM_INTEL=m\nCONFIG_DEV_DAX=m\n\
                      CONFIG_DEV_DAX_HMEM=m\nCONFIG_MODULES=y\nCONFIG_RANDOMIZE_BASE=y\n";

fn msrs(change: impl FnOnce(&mut CpuMsrs)) -> Msrs {
    let good = CpuMsrs {
        feature_control: Some(5),
        vmx: NEEDS.map(|need| Some(need.bits)),
        xapic_disable_status: Some(0),
    };
    let mut other = good;
    change(&mut other);
    Msrs::Read(vec![(0, good), (1, other)])
}

/// A server that is as it must be.
fn good() -> Facts {
    let tree = Tree::lab();
    tree.put("proc/cpuinfo", CPUINFO);
    tree.put("boot/config-6.11.1+deb13-amd64", CONFIG);
    let mut facts = Facts::read(&tree.sys());
    facts.msrs = msrs(|_| ());
    facts.bios_area = Ok(SLICES_END);
    facts
}

fn all(facts: &Facts) -> Vec<Finding> {
    TABLE.iter().flat_map(|(_, rule)| rule(facts)).collect()
}

/// The findings that are not fine, after a change.
fn after(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = good();
    change(&mut facts);
    let mut findings = all(&facts);
    for finding in &findings {
        assert_eq!(finding.level == Level::Fine, finding.remedy.is_none(), "{finding}");
        assert_eq!(finding.to_string().lines().count(), 1, "{finding}");
    }
    findings.retain(|finding| finding.level != Level::Fine);
    findings
}

/// That change gives one finding of that level, whose line has these words.
#[track_caller]
fn gives(level: Level, words: &[&str], change: impl FnOnce(&mut Facts)) {
    let findings = after(change);
    let [finding] = findings.as_slice() else {
        panic!("{words:?}: {findings:#?}");
    };
    assert_eq!(finding.level, level, "{finding}");
    for word in words {
        assert!(finding.to_string().contains(word), "`{word}` is not in: {finding}");
    }
}

fn cpuinfo(facts: &mut Facts, from: &str, to: &str) {
    facts.cpus = Ok(parse_cpuinfo(&CPUINFO.replace(from, to)));
}

#[test]
fn a_good_server_has_nothing_but_fine_findings() {
    assert_eq!(after(|_| ()), []);
    assert!(all(&good()).len() >= 12);
}

#[test]
fn cpus_that_cannot_run_l0_are_told() {
    use Level::{Hurts, Refuses};
    for flag in ["vmx", "ept", "unrestricted_guest"] {
        let change = |facts: &mut Facts| cpuinfo(facts, &format!(" {flag}"), "");
        let findings = after(change);
        assert_eq!(findings[0].level, Refuses, "{findings:#?}");
        assert!(findings[0].found.contains(flag), "{findings:#?}");
        assert!(findings[0].remedy.as_ref().unwrap().contains("VT-x"));
    }
    gives(Refuses, &["CPU 1", "vmx"], |facts| {
        let (first, second) = CPUINFO.split_at(CPUINFO.len() / 2);
        let text = format!("{first}{}", second.replace("flags : vmx", "flags :"));
        facts.cpus = Ok(parse_cpuinfo(&text));
    });
    gives(Refuses, &["AuthenticAMD"], |facts| {
        cpuinfo(facts, "GenuineIntel", "AuthenticAMD")
    });
    let virtual_machine = after(|facts| cpuinfo(facts, "vmx constant_tsc", "hypervisor constant_tsc"));
    assert!(
        virtual_machine[0].to_string().contains("nested VMX"),
        "{virtual_machine:#?}"
    );
    gives(Refuses, &["/proc"], |facts| facts.cpus = Err("no /proc/cpuinfo".into()));
    gives(Hurts, &["constant_tsc"], |facts| cpuinfo(facts, " constant_tsc", ""));
    gives(Hurts, &["VMREAD"], |facts| cpuinfo(facts, " shadow_vmcs", ""));
    gives(Refuses, &["locked VMX off", "CPU 1", "VT-x"], |facts| {
        facts.msrs = msrs(|msrs| msrs.feature_control = Some(1));
    });
    for (index, need) in NEEDS.iter().enumerate() {
        for value in [None, Some(need.bits & (need.bits - 1))] {
            gives(Refuses, &["CPU 1", need.what, "Westmere"], |facts| {
                facts.msrs = msrs(|msrs| msrs.vmx[index] = value)
            });
        }
    }
    // A real CPU with unrestricted guest has all of them; what a virtual one has must be seen before a refresh.
    let virtual_machine = |facts: &mut Facts| {
        cpuinfo(facts, " arch_capabilities", " hypervisor");
        facts.msrs = Msrs::Unreadable("no module".into());
    };
    gives(Hurts, &["virtual machine", "no module"], virtual_machine);
    gives(Refuses, &["virtual machine", "modprobe msr"], |facts| {
        virtual_machine(facts);
        facts.above_l0 = true;
    });
    // Not locked: L0 allows it. A CPU without that MSR, and one whose VMX is allowed inside SMX, too.
    for control in [Some(0), None, Some(7)] {
        assert_eq!(
            after(|facts| facts.msrs = msrs(|msrs| msrs.feature_control = control)),
            []
        );
    }
}

#[test]
fn a_kernel_that_maps_more_than_a_block_at_once_is_refused() {
    gives(
        Level::Refuses,
        &["1024 MiB", "block of 128 MiB", "nogbpages"],
        |facts| {
            facts.above_l0 = true;
            facts.in_gib_pages = 1 << 30;
        },
    );
    assert_eq!(after(|facts| facts.in_gib_pages = 1 << 30), [], "L0 mends it");
    let large = |facts: &mut Facts| {
        facts.above_l0 = true;
        facts.in_gib_pages = 60 << 30;
        facts.block_size = Some(2 << 30);
    };
    assert_eq!(after(large), []);

    let tree = Tree::lab();
    tree.put(
        "proc/meminfo",
        "MemAvailable: 9 kB\nDirectMap2M:   512 kB\nDirectMap1G:    2097152 kB\n",
    );
    let facts = Facts::of_cpus_and_board(&tree.sys());
    assert_eq!((facts.in_gib_pages, facts.block_size), (2 << 30, Some(128 << 20)));
}

#[test]
fn what_l0_does_not_carry_over_is_told_with_its_argument() {
    for (flag, argument) in [("fred", "fred=off"), ("lass", "clearcpuid=lass")] {
        gives(Level::Refuses, &[flag, argument], |facts| {
            cpuinfo(facts, "pdpe1gb", &format!("pdpe1gb {flag}"));
        });
    }
    // CET stays in the CPU.
    assert_eq!(
        after(|facts| cpuinfo(facts, "pdpe1gb", "pdpe1gb ibt user_shstk")),
        after(|_| {})
    );
    let paging = |facts: &mut Facts| cpuinfo(facts, "pdpe1gb", "pdpe1gb la57");
    gives(Level::Hurts, &["la57", "no5lvl"], paging);
    gives(Level::Refuses, &["la57", "boot with no5lvl"], |facts| {
        paging(facts);
        facts.above_l0 = true;
    });
}

#[test]
fn a_locked_x2apic_is_told_whether_or_not_it_can_be_looked_at() {
    let lock = |facts: &mut Facts| facts.msrs = msrs(|msrs| msrs.xapic_disable_status = Some(1));
    gives(Level::Refuses, &["0xbd", "set-up"], lock);
    let findings = after(|facts| {
        lock(facts);
        facts.remapping.dmar = true;
    });
    assert!(findings[0].found.contains("L0 hides the DMAR"), "{findings:#?}");
    let blind = |facts: &mut Facts| facts.msrs = Msrs::Unreadable("no /dev/cpu/0/msr: `modprobe msr`".into());
    gives(Level::Hurts, &["could not look", "modprobe msr"], blind);
    let none = after(|facts| {
        blind(facts);
        cpuinfo(facts, " arch_capabilities", "");
    });
    assert_eq!(none, [], "a CPU that cannot have it");
}

#[test]
fn numbers_beyond_l0s_limits_are_told() {
    let of = |count: u32| (0..count).collect::<Vec<_>>();
    let madt = |facts: &mut Facts, cpus: Vec<u32>| facts.madt.as_mut().unwrap().cpus = cpus;
    gives(Level::Hurts, &["300, of which L0 leaves 45 out"], |facts| {
        madt(facts, of(300))
    });
    gives(Level::Hurts, &["5, of which L0 leaves 2 out"], |facts| {
        madt(facts, vec![0, 2, 4, 255, 256])
    });
    gives(Level::Refuses, &["at least two"], |facts| madt(facts, of(1)));
    let ioapics = |count: usize| move |facts: &mut Facts| facts.madt.as_mut().unwrap().addresses = vec![0; count];
    gives(Level::Refuses, &["65", "L0 filters 64"], ioapics(65));
    gives(Level::Refuses, &["none in the MADT"], ioapics(0));
    let pins_from = |base: u32| move |facts: &mut Facts| facts.madt.as_mut().unwrap().gsi_bases = vec![0, base];
    gives(Level::Hurts, &["none from 1024 on moves"], pins_from(1024));
    assert_eq!(after(pins_from(1000)), []);
    assert_eq!(after(ioapics(64)), []);
    let end = |end: u64| move |facts: &mut Facts| facts.memmap.as_mut().unwrap().push((1 << 32, end - (1 << 32), 1));
    assert_eq!(after(end(2 << 40)), []);
    gives(Level::Refuses, &["8192 GiB"], end((8 << 40) + 1));
    gives(Level::Refuses, &["64 GiB"], |facts| {
        end((64 << 30) + 1)(facts);
        cpuinfo(facts, " pdpe1gb", "");
    });
}

#[test]
fn the_boards_peculiarities_are_told() {
    use Level::{Hurts, Refuses};
    let put = |address: &str| {
        let address = address.parse().unwrap();
        move |facts: &mut Facts| {
            let functions = facts.functions.as_mut().unwrap();
            let mut function = functions.iter().find(|function| !function.bridge).unwrap().clone();
            function.address = address;
            functions.push(function);
        }
    };
    gives(Hurts, &["1 in 0001"], put("0001:40:00.0"));
    gives(Hurts, &["VMD", "1 in 10000"], put("10000:01:00.0"));
    gives(Hurts, &["DMAR", "intel_iommu=off"], |facts| facts.remapping.dmar = true);
    gives(Hurts, &["dmar0"], |facts| facts.remapping.units = vec!["dmar0".into()]);
    gives(Refuses, &["ACPI tables", "checksum"], |facts| {
        facts.platform = Err("the FADT's checksum".into())
    });
    gives(Hurts, &["ACPI tables", "run as root"], |facts| {
        facts.platform = Err("permission denied".into());
        facts.tables_hidden = true;
    });
    gives(Refuses, &["multiboot2", "turn it off"], |facts| {
        facts.secure_boot = SecureBoot::On
    });
    gives(Hurts, &["efivarfs"], |facts| facts.secure_boot = SecureBoot::Unknown);
    assert_eq!(after(|facts| facts.secure_boot = SecureBoot::Off), []);
    gives(Refuses, &["integrity", "locum.ko"], |facts| {
        facts.lockdown = Some("integrity".into())
    });
    assert_eq!(after(|facts| facts.lockdown = Some("none".into())), []);
}

#[test]
fn the_memorys_peculiarities_are_told() {
    use Level::{Hurts, Refuses};
    let low = |facts: &mut Facts| facts.memmap = Ok(vec![(0, 0x2_0000, 1), (0x10_0000, 0x7ff0_0000, 1)]);
    gives(Refuses, &["low memory"], low);
    let above_l0 = after(|facts| {
        low(facts);
        facts.above_l0 = true;
    });
    assert_eq!(above_l0, [], "L0 has chosen already");
    // 160 KiB, which is what GRUB's cutmem leaves there: two slices of 48 KiB.
    let bios = |start| move |facts: &mut Facts| facts.bios_area = Ok(start);
    let fine = |change: &dyn Fn(&mut Facts)| {
        let mut facts = good();
        change(&mut facts);
        memory::low(&facts)
    };
    assert!(
        fine(&bios(0x2_8000))[0]
            .found
            .ends_with("0x10000-0x1c000 and 0x1c000-0x28000")
    );
    gives(Refuses, &["two usable pieces", "from 0x20000 on"], bios(0x2_0000));
    gives(
        Hurts,
        &["by the memory map", "/dev/mem: denied", "run as root"],
        |facts| facts.bios_area = Err("/dev/mem: denied".into()),
    );
    let kmem = MemRange::new(1 << 33, 1 << 34).unwrap();
    gives(Hurts, &["0x200000000-0x400000000", "(kmem)"], |facts| {
        let half = 3 << 32;
        for (start, end) in [(kmem.start(), half), (half, kmem.end())] {
            let piece = MemRange::new(start, end).unwrap();
            facts
                .ram
                .as_mut()
                .unwrap()
                .foreign
                .push((piece, "System RAM (kmem)".into()));
        }
    });
    gives(Hurts, &["run as root"], |facts| facts.ram = Err("hidden".into()));
    let blocks = |change: fn(&mut partitioner::MemoryBlock)| {
        move |facts: &mut Facts| facts.blocks.as_mut().unwrap().1.iter_mut().for_each(change)
    };
    gives(
        Hurts,
        &["0 can be offlined", "movable_node"],
        blocks(|block| block.removable = false),
    );
    gives(Hurts, &["none of them below 4 GiB"], |facts| {
        facts.ram = Ok(Ram::default());
        blocks(|block| {
            block.range = MemRange::with_len(block.range.start() + (1 << 32), block.range.len()).unwrap();
        })(facts);
    });
    gives(Hurts, &["2 have holes"], |facts| {
        let ram = facts.ram.as_mut().unwrap();
        ram.own = vec![
            MemRange::new(0x1000, 0x800_0000).unwrap(),
            MemRange::new(0xa00_0000, 0x6800_0000).unwrap(),
        ];
    });
    gives(Hurts, &["each is 2048 MiB"], |facts| {
        facts.blocks.as_mut().unwrap().0 = 2 << 30
    });
    gives(Refuses, &["CONFIG_MEMORY_HOTREMOVE"], |facts| {
        facts.blocks = Err("no such file".into())
    });
}

#[test]
fn old_and_bare_kernels_are_told() {
    gives(Level::Refuses, &["6.1.0-18-amd64", "6.11"], |facts| {
        facts.release = "6.1.0-18-amd64".into()
    });
    gives(Level::Refuses, &["unknown release"], |facts| facts.release.clear());
    assert_eq!(after(|facts| facts.release = "7.3.4".into()), []);
    for line in CONFIG.lines() {
        let option = line.split('=').next().unwrap();
        gives(Level::Refuses, &[option], |facts| {
            facts.config = Ok(CONFIG.replace(line, &format!("# {option} is not set")));
        });
    }
    gives(Level::Hurts, &["could not look", "CONFIG_ACPI_MADT_WAKEUP"], |facts| {
        facts.config = Err("nowhere".into())
    });
}

fn qemu(command: &str) -> Qemu {
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    Qemu::parse(&words)
}

const CROSSES: &str = "qemu-system-x86_64 -name guest=vm1,debug-threads=on -machine pc-q35-10.0,memory-backend=ram \
    -cpu Skylake-Server -object memory-backend-file,id=ram,mem-path=/dev/dax0.0,share=on,align=2M,size=4G \
    -qmp unix:/run/vm1.qmp,server=on,wait=off";

#[test]
fn guests_that_cannot_cross_are_told() {
    let guest = |change: &dyn Fn(&str) -> String| {
        let guest = qemu(&change(CROSSES));
        move |facts: &mut Facts| facts.guests = vec![guest]
    };
    assert_eq!(after(guest(&|line| line.to_owned())), []);
    let json = r#"{"qom-type":"memory-backend-file","id":"ram","mem-path":"/dev/dax0.0","share":true}"#;
    let file = "memory-backend-file,id=ram,mem-path=/dev/dax0.0,share=on,align=2M,size=4G";
    assert_eq!(after(guest(&|line| line.replace(file, json))), []);
    for (from, to, word) in [
        (",share=on", "", "memory-backend-file"),
        ("memory-backend-file", "memory-backend-memfd", "memory-backend-file"),
        (
            "-object memory-backend-file,id=ram,mem-path=/dev/dax0.0,share=on,align=2M,size=4G",
            "-m 4G",
            "step 3",
        ),
        ("-qmp unix:", "-serial unix:", "QMP"),
        ("-cpu Skylake-Server", "-cpu host,-vmx", "`host`"),
        (
            "-cpu Skylake-Server",
            "-cpu Skylake-Server -device vfio-pci,host=3:0.0",
            "virtio",
        ),
        (
            "pc-q35-10.0,memory-backend=ram",
            "microvm,memory-backend=ram",
            "microvm",
        ),
        (
            "-machine pc-q35-10.0,memory-backend=ram",
            "-enable-kvm",
            "default machine type",
        ),
    ] {
        gives(Level::Hurts, &["vm1", word], guest(&|line| line.replace(from, to)));
    }
    let of_version = |version| {
        move |facts: &mut Facts| {
            let version = Some(version);
            facts.guests = vec![Qemu {
                version,
                ..qemu(CROSSES)
            }];
        }
    };
    gives(Level::Hurts, &["older than 4.0"], of_version((3, 1)));
    gives(Level::Hurts, &["older than 8.1"], of_version((7, 2)));
    assert_eq!(after(of_version((8, 1))), []);
}

#[test]
fn what_a_refresh_depends_on_is_what_it_is_refused_for() {
    let tree = Tree::lab();
    assert!(check(&tree.sys()).is_ok());
    let put_msr = |cpu: u32, msr: usize, value: u64| {
        let path = tree.path().join(format!("dev/cpu/{cpu}/msr"));
        let mut bytes = fs::read(&path).unwrap_or_else(|_| vec![0; 0x800]);
        for (place, byte) in bytes[msr..].iter_mut().zip(value.to_le_bytes()) {
            *place = if msr < 0x480 { byte } else { *place | byte };
        }
        tree.put(format!("dev/cpu/{cpu}/msr"), bytes);
    };
    // A file of bytes holds no two MSRs side by side; these are far enough apart, or have all bits of their neighbours.
    put_msr(0, 0x3a, 5);
    for need in NEEDS {
        put_msr(0, need.msr as usize, need.bits);
    }
    assert!(check(&tree.sys()).is_ok());
    put_msr(0, 0xbd, 1);
    assert!(check(&tree.sys()).is_ok(), "not told to be there");
    put_msr(0, 0x10a, 1 << 21);
    let error = check(&tree.sys()).unwrap_err().to_string();
    assert!(error.starts_with("x2APIC: ") && error.contains("0xbd"), "{error}");
    put_msr(0, 0xbd, 0);
    put_msr(0, 0x3a, 1);
    let error = check(&tree.sys()).unwrap_err().to_string();
    assert!(error.starts_with("VMX lock: ") && error.contains("CPU 0"), "{error}");
    put_msr(0, 0x3a, 5);
    // What only the boot through L0 depends on is no reason to refuse.
    tree.put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    let boots = examine(&tree.sys())
        .into_iter()
        .filter(|finding| finding.level == Level::Refuses)
        .count();
    assert_eq!((boots, check(&tree.sys()).is_ok()), (1, true));
    tree.put("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
    assert!(check(&tree.sys()).is_err());
}

#[test]
fn files_become_facts() {
    let tree = Tree::lab();
    assert_eq!(Facts::read(&tree.sys()).secure_boot, SecureBoot::Bios);
    let variable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::create_dir_all(tree.path().join("sys/firmware/efi")).unwrap();
    assert_eq!(Facts::read(&tree.sys()).secure_boot, SecureBoot::Unknown);
    tree.put("sys/firmware/efi/efivars/Boot0000-x", "");
    assert_eq!(Facts::read(&tree.sys()).secure_boot, SecureBoot::Off);
    for (value, told) in [(1, SecureBoot::On), (0, SecureBoot::Off)] {
        tree.put(variable, [6, 0, 0, 0, value]);
        assert_eq!(Facts::read(&tree.sys()).secure_boot, told);
    }
    assert!(
        Facts::read(&tree.sys())
            .config
            .unwrap_err()
            .contains("/boot/config-6.11.1+deb13-amd64")
    );
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3];
    gzip.extend(miniz_oxide::deflate::compress_to_vec(CONFIG.as_bytes(), 6));
    gzip.extend([0; 8]);
    tree.put("proc/config.gz", &gzip);
    assert_eq!(Facts::read(&tree.sys()).config.as_deref(), Ok(CONFIG));
    tree.put("proc/config.gz", &gzip[..40]);
    assert!(Facts::read(&tree.sys()).config.unwrap_err().contains("config.gz"));
    assert!(
        Facts::read(&tree.sys())
            .bios_area
            .unwrap_err()
            .starts_with("/dev/mem: ")
    );
    let mut page = vec![0; 0x500];
    page[0x40e..0x410].copy_from_slice(&[0xc0, 0x9f]);
    page[0x413..0x415].copy_from_slice(&639u16.to_le_bytes());
    tree.put("dev/mem", &page);
    assert_eq!(Facts::read(&tree.sys()).bios_area, Ok(0x9_f000));
    page[0x413] = 160;
    page[0x414] = 0;
    tree.put("dev/mem", &page);
    assert_eq!(Facts::read(&tree.sys()).bios_area, Ok(0x2_8000));
    assert!(!Facts::read(&tree.sys()).above_l0);
    tree.put("sys/firmware/acpi/tables/LOCM", "LOCM");
    assert!(Facts::read(&tree.sys()).above_l0);
    tree.put("sys/firmware/acpi/tables/DMAR", "DMAR");
    assert!(Facts::read(&tree.sys()).remapping.dmar);
    tables::write_madt(
        tree.path(),
        &[0, 1, 2, 3, 4, 5],
        &[1, 12, 1, 0, 0, 0, 0xc1, 0xfe, 24, 0, 0, 0],
    );
    let madt = Facts::read(&tree.sys()).madt.unwrap();
    assert_eq!((madt.cpus.len(), madt.gsi_bases), (6, vec![0, 24]));
}

#[test]
fn running_qemus_are_found_by_their_processes() {
    let tree = Tree::lab();
    let words = |line: &str| line.replace(' ', "\0") + "\0";
    tree.put("proc/12/cmdline", words("sh -c sleep"));
    tree.put(
        "proc/34/cmdline",
        words(&CROSSES.replace("unix:/run/vm1.qmp", "unix:/run/vm1.qmp -netdev tap,id=n,fd=31")),
    );
    tree.put("proc/34/exe", "\x7fELF\0QEMU emulator version 9.2.4 (x)\n\0");
    let guests = Facts::read(&tree.sys()).guests;
    let [guest] = guests.as_slice() else {
        panic!("{guests:?}")
    };
    assert_eq!(
        (guest.pid, guest.name.as_str(), guest.version),
        (34, "vm1", Some((9, 2)))
    );
    assert_eq!(guest.machine.as_deref(), Some("pc-q35-10.0"));
    assert!(guest.bound.as_ref().unwrap().contains("fd=31"), "{guest:?}");
}
