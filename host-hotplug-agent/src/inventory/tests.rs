use partitioner::{Bar, CpuRequest, Gsi, MemoryRequest, PlanError, Request, Warning, plan};

use super::*;
use crate::l0::memory as l0_memory;
use crate::testing::l0::FakeRegion;
use crate::testing::tables::{self, SSDT_PLAIN};
use crate::testing::tree::Tree;

pub fn inventory(tree: &Tree) -> Inventory {
    let region = FakeRegion::new(4);
    let status = l0_memory::status(&region, &region.header()).unwrap();
    take(&tree.sys(), &region.header(), &status, Slot::Even, Vec::new()).unwrap()
}

pub fn request(devices: &[&str]) -> Request {
    Request {
        cpus: CpuRequest::Count(2),
        memory: MemoryRequest::Size(512 << 20),
        boot: partitioner::BootSize::default(),
        functions: devices.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![PortRange::new(0x2f8, 0x2ff).unwrap()],
        pins: vec![],
        guests: vec![],
    }
}

#[test]
fn the_lab_machine_can_be_planned() {
    let tree = Tree::lab();
    let inventory = inventory(&tree);
    assert_eq!(inventory.cpus.len(), 4);
    assert!(inventory.cpus.iter().all(|cpu| cpu.online));
    assert_eq!(inventory.blocks.iter().filter(|block| block.removable).count(), 5);
    assert_eq!(inventory.never_moves.len(), 1, "the first 10 MiB, in one piece");
    let nic = inventory.functions.iter().find(|f| f.address.device() == 3).unwrap();
    assert_eq!(nic.driver.as_deref(), Some("e1000"));
    assert_eq!(nic.bars.len(), 2);
    assert!(matches!(nic.bars[1], Bar::Ports(ports) if ports.first() == 0xc100));
    let acpi = inventory.pins.iter().find(|pin| pin.gsi.0 == 9).unwrap();
    assert_eq!(acpi.users, ["acpi"]);
    assert_eq!(inventory.pins.len(), 24);

    let plan = plan(&inventory, &request(&["0000:00:03.0"])).unwrap();
    assert_eq!(plan.cpus.len(), 2);
    assert_eq!(plan.memory_bytes(), 512 << 20);
    assert_eq!(plan.pins.iter().map(|gsi| gsi.0).collect::<Vec<_>>(), [11]);
}

#[test]
fn what_is_busy_is_refused_with_its_user() {
    let tree = Tree::lab();
    tree.put("sys/bus/pci/devices/0000:00:03.0/net/eth1/flags", "0x1003\n");
    let error = plan(&inventory(&tree), &request(&["0000:00:03.0"])).unwrap_err();
    assert!(matches!(error, PlanError::Busy { .. }));
    assert!(error.to_string().contains("eth1"), "{error}");

    let shared = plan(&inventory(&tree), &request(&["0000:00:02.0"])).unwrap_err();
    assert!(
        matches!(shared, PlanError::SharedPin { .. }),
        "the SCI's pin cannot go: {shared}"
    );
    let unknown = plan(&inventory(&tree), &request(&["0000:00:1e.0"])).unwrap_err();
    assert!(matches!(unknown, PlanError::UnknownFunction(_)), "{unknown}");
}

#[test]
fn what_the_firmwares_code_uses_is_refused_with_its_region() {
    let tree = Tree::with_nic_of_firmware();
    let before = inventory(&tree);
    assert_eq!(before.unread_firmware, Vec::<String>::new());
    let error = plan(&before, &request(&["0000:00:04.0"])).unwrap_err().to_string();
    assert!(error.contains("0000:00:04.0 cannot go"), "{error}");
    assert!(error.contains(r"\_SB_.PCI0.NIC4.NCFG of DSDT"), "{error}");
    assert!(plan(&before, &request(&["0000:00:03.0"])).is_ok());

    // A region in memory that would be taken else, and a table that cannot be read.
    tree.put("sys/firmware/acpi/tables/SSDT1", SSDT_PLAIN);
    tree.put("sys/firmware/acpi/tables/SSDT2", [0x10; 40]);
    let inventory = inventory(&tree);
    let size = Request {
        memory: MemoryRequest::Size(256 << 20),
        ..request(&[])
    };
    let made = plan(&inventory, &size).unwrap();
    let region = MemRange::new(0x4800_1000, 0x4800_1010).unwrap();
    assert!(
        made.memory.iter().all(|memory| !memory.overlaps(region)),
        "{:?}",
        made.memory
    );
    assert!(matches!(made.warnings.as_slice(), [Warning::UnreadFirmware(text)] if text.starts_with("SSDT2: ")));
    let named = Request {
        memory: MemoryRequest::Blocks(vec![MemRange::new(0x4800_0000, 0x5000_0000).unwrap()]),
        ..request(&[])
    };
    let error = plan(&inventory, &named).unwrap_err().to_string();
    assert!(error.contains(r"\_SB_.PCI0.RAMR of SSDT1"), "{error}");
}

#[test]
fn cpu_0_the_last_cpu_and_too_much_memory_are_refused() {
    let inventory = inventory(&Tree::lab());
    let with = |cpus, memory| {
        plan(
            &inventory,
            &Request {
                cpus,
                memory,
                ..request(&[])
            },
        )
        .unwrap_err()
    };
    let size = MemoryRequest::Size(128 << 20);
    assert_eq!(
        with(CpuRequest::List(vec![CpuNumber(0)]), size.clone()),
        PlanError::CpuZero
    );
    assert!(matches!(with(CpuRequest::Count(4), size), PlanError::LastCpu { .. }));
    assert!(matches!(
        with(CpuRequest::Count(1), MemoryRequest::Size(2 << 30)),
        PlanError::TooMuchMemory { .. }
    ));
}

/// As an i865 board has it: the timer at pin 2, the SCI (ISA 9) at pin 20.
#[test]
fn pins_are_those_that_the_firmware_wired() {
    let tree = Tree::lab();
    let overrides = [[2, 10, 0, 0, 2, 0, 0, 0, 0, 0], [2, 10, 0, 9, 20, 0, 0, 0, 0xf, 0]];
    tables::write_madt(tree.path(), &[0, 1, 2, 3], &overrides.concat());
    let inventory = inventory(&tree);
    let users = |gsi| {
        let pin = inventory.pins.iter().find(|pin| pin.gsi == Gsi(gsi)).unwrap();
        pin.users.join(",")
    };
    assert_eq!([users(0), users(2), users(9), users(20)], ["", "timer", "", "acpi"]);
    // What Linux numbers 9 is on that pin, too.
    let nic = inventory.functions.iter().find(|f| f.address.device() == 2).unwrap();
    assert_eq!(nic.gsi, Some(Gsi(20)));
    for (pin, free) in [(2, false), (20, false), (0, true), (9, true)] {
        let request = Request {
            pins: vec![Gsi(pin)],
            ..request(&[])
        };
        assert_eq!(plan(&inventory, &request).is_ok(), free, "pin {pin}");
    }
}

#[test]
fn a_cpu_of_the_other_host_is_not_ours() {
    let tree = Tree::lab();
    let region = FakeRegion::new(4);
    region.update(|status| status.cpus[3].owner = Slot::Odd.raw());
    let status = l0_memory::status(&region, &region.header()).unwrap();
    let inventory = take(&tree.sys(), &region.header(), &status, Slot::Even, Vec::new()).unwrap();
    assert_eq!(inventory.cpus.len(), 3);
}

/// Names, classes and resources of a server with Intel VMD.
const VMD: &str = include_str!("../../tests/inputs/vmd-domain/pci-devices.txt");

/// The lab's machine with these functions besides: address, class, a line of `resource`.
fn with_functions(lines: &str) -> Tree {
    let tree = Tree::lab();
    for line in lines.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (address, class) = (words.next().unwrap(), words.next().unwrap());
        tree.function(address, class, 0, None, &words.collect::<Vec<_>>().join(" "));
    }
    tree
}

#[test]
fn functions_of_vmds_domains_are_listed_and_stay() {
    for domain in ["10000", "10001", "100000", "7fffffff"] {
        let disk = format!("{domain}:01:00.0");
        let tree = with_functions(&VMD.replace("10000:", &format!("{domain}:")));
        let inventory = inventory(&tree);
        let immovable: Vec<_> = inventory.immovable().map(|f| f.address.to_string()).collect();
        assert_eq!(immovable, [format!("{domain}:00:00.0"), disk.clone()]);
        let made = plan(&inventory, &request(&["0000:00:03.0"])).unwrap();
        assert_eq!(made.warnings, []);
        let reclaimed = &made.reclaim.functions;
        assert!(reclaimed.iter().all(|address| address.segment() == 0), "{reclaimed:?}");
        assert!(reclaimed.iter().any(|address| address.to_string() == "0000:17:05.5"));
        let error = plan(&inventory, &request(&[&disk])).unwrap_err().to_string();
        assert!(error.contains(&disk) && error.contains("segment 0000 only"), "{error}");
    }
}

#[test]
fn what_lies_behind_a_vmd_follows_it() {
    // As sysfs nests them, behind a bridge of that domain.
    let tree = with_functions(
        "0000:17:05.5 0x010400 0xb8000000 0xb9ffffff 0x140204\n10000:00:00.0 0x060400\n\
         10000:01:00.0 0x010802 0xb8000000 0xb8003fff 0x140204\n10000:02:00.0 0x010802 0xb8010000 0xb8013fff 0x140204\n\
         0001:40:00.0 0x010802 0xc8000000 0xc8003fff 0x140204\n",
    );
    let devices = tree.path().join("sys/bus/pci/devices");
    let nested = "sys/devices/pci0000:16/0000:17:05.5/pci10000:00/10000:00:00.0/10000:01:00.0";
    std::fs::create_dir_all(tree.path().join(nested).parent().unwrap()).unwrap();
    std::fs::rename(devices.join("10000:01:00.0"), tree.path().join(nested)).unwrap();
    std::os::unix::fs::symlink(tree.path().join(nested), devices.join("10000:01:00.0")).unwrap();
    // Its handler must not be taken for a line of the machine.
    tree.put(format!("{nested}/irq"), "9\n");
    let inventory = inventory(&tree);
    let found = |address: &str| {
        inventory
            .functions
            .iter()
            .find(|f| f.address.to_string() == address)
            .unwrap()
    };
    let endpoint = Some("0000:17:05.5".parse().unwrap());
    assert_eq!(found("10000:01:00.0").behind, endpoint, "by its place in sysfs");
    assert_eq!(found("10000:01:00.0").gsi, None);
    assert_eq!(found("10000:02:00.0").behind, endpoint, "by its registers");
    assert_eq!(found("0001:40:00.0").behind, None);
    let made = plan(&inventory, &request(&["0000:17:05.5"])).unwrap();
    assert_eq!(made.functions.len(), 1);
    let first = "0001:40:00.0".parse().unwrap();
    assert_eq!(made.warnings, [Warning::OtherSegments { first, count: 1 }]);
    assert_eq!(made.mmio, [MemRange::new(0xb800_0000, 0xba00_0000).unwrap()]);
    let error = plan(&inventory, &request(&["10000:01:00.0"])).unwrap_err().to_string();
    assert!(error.contains("ask for 0000:17:05.5"), "{error}");
    let error = plan(&inventory, &request(&["0001:40:00.0"])).unwrap_err().to_string();
    assert!(
        error.contains("0001:40:00.0") && error.contains("leave it out"),
        "{error}"
    );
}

/// Persistent memory that Linux uses as RAM: `/proc/iomem` and `/sys/firmware/memmap` of a server.
const KMEM_IOMEM: &str = include_str!("../../tests/inputs/kmem-blocks-not-in-e820/iomem.txt");
const KMEM_MEMMAP: &str = include_str!("../../tests/inputs/kmem-blocks-not-in-e820/memmap.txt");

/// The lab's machine, and memory from 5.25 to 6.25 GiB that Linux uses and the firmware calls by that name, if any.
fn with_memory_above(kind: Option<&str>, iomem: &str) -> Tree {
    let tree = Tree::lab();
    for number in 42..50 {
        tree.block(number, "online", "Movable");
    }
    let mut map = vec![(0, 0x9_ffff, "System RAM"), (0x10_0000, 0x7fff_ffff, "System RAM")];
    if let Some(kind) = kind {
        let range = KMEM_MEMMAP.split(' ').next().unwrap();
        let (start, last) = range.split_once('-').unwrap();
        let number = |text| crate::sysroot::parse_number(text).unwrap();
        map.push((number(start), number(last), kind));
    }
    tree.memmap(&map);
    tree.put("proc/iomem", format!("00001000-0004ffff : System RAM\n{iomem}"));
    tree
}

#[test]
fn a_successor_boots_in_ordinary_memory_only() {
    assert!(KMEM_MEMMAP.lines().next().unwrap().ends_with(" Persistent Memory"));
    let virtio = KMEM_IOMEM.replace("(kmem)", "(virtio_mem)");
    for (kind, iomem, word, found_again) in [
        (Some("Persistent Memory"), KMEM_IOMEM, "persistent memory", false),
        (None, KMEM_IOMEM, "not in its memory map", false),
        (None, &virtio, "not in its memory map", false),
        (Some("Soft Reserved"), KMEM_IOMEM, "soft reserved", true),
        (Some("Reserved"), KMEM_IOMEM, "reserved", true),
    ] {
        let inventory = inventory(&with_memory_above(kind, iomem));
        let wanted = request(&[]);
        let made = plan(&inventory, &wanted).unwrap();
        let ordinary = MemRange::new(0x4800_0000, 0x6800_0000).unwrap();
        assert_eq!(made.memory, [ordinary], "{kind:?}");
        let too_much = Request {
            memory: MemoryRequest::Size(768 << 20),
            ..wanted.clone()
        };
        let error = plan(&inventory, &too_much).unwrap_err();
        assert!(
            matches!(error, PlanError::TooMuchMemory { could, .. } if could == 640 << 20),
            "{error}"
        );
        let range = MemRange::new(0x1_7000_0000, 0x1_9000_0000).unwrap();
        let named = Request {
            memory: MemoryRequest::Blocks(vec![range]),
            ..wanted
        };
        let error = plan(&inventory, &named).unwrap_err().to_string();
        assert!(
            error.contains("0x170000000-0x178000000") && error.contains(word),
            "{error}"
        );
        // Either its successor adds it later, or it is told that it is gone.
        let added = made
            .reclaim
            .blocks
            .iter()
            .filter(|block| block.range.start() >= 1 << 32)
            .count();
        let lost = made
            .warnings
            .iter()
            .filter(|warning| matches!(warning, Warning::MemoryLost { .. }));
        assert_eq!(
            (added, lost.count()),
            if found_again { (8, 0) } else { (0, 1) },
            "{kind:?}"
        );
    }
}

#[test]
fn memory_that_the_firmware_knows_is_ordinary_wherever_it_came_from() {
    // One block below 4 GiB, the rest from above.
    let wanted = Request {
        memory: MemoryRequest::Size(768 << 20),
        ..request(&[])
    };
    let low = MemRange::new(0x6000_0000, 0x6800_0000).unwrap();
    // Plugged in through ACPI, which Linux then lists in the map; and what an earlier refresh left Reserved there.
    for (kind, name) in [("System RAM", "System RAM"), ("Reserved", "System RAM (locum)")] {
        let iomem = KMEM_IOMEM.replace("System RAM (kmem)", name);
        let made = plan(&inventory(&with_memory_above(Some(kind), &iomem)), &wanted).unwrap();
        let high = MemRange::new(0x1_6800_0000, 0x1_9000_0000).unwrap();
        assert_eq!(made.memory, [low, high], "{kind}");
    }
    // In part persistent: no block of that kind moves.
    let tree = with_memory_above(
        Some("System RAM"),
        &KMEM_IOMEM.replace("System RAM (kmem)", "System RAM"),
    );
    tree.memmap(&[
        (0, 0x7fff_ffff, "System RAM"),
        (0x1_4000_0000, 0x1_8c00_0fff, "System RAM"),
        (0x1_8c00_1000, 0x3_3fff_ffff, "Persistent Memory"),
    ]);
    let made = plan(&inventory(&tree), &wanted).unwrap();
    assert_eq!(made.memory, [low, MemRange::new(0x1_6000_0000, 0x1_8800_0000).unwrap()]);
}

#[test]
fn cores_are_known_by_their_threads() {
    let tree = Tree::lab();
    for cpu in 0..4 {
        let siblings = format!("{},{}\n", cpu % 2, cpu % 2 + 2);
        tree.put(
            format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
            siblings,
        );
    }
    let inventory = inventory(&tree);
    let cores: Vec<_> = inventory.cpus.iter().map(|cpu| cpu.core.unwrap().0).collect();
    assert_eq!(cores, [0, 1, 0, 1]);
    let made = plan(&inventory, &request(&[])).unwrap();
    assert_eq!(made.cpus.iter().map(|cpu| cpu.number.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(made.warnings, []);
}

#[test]
fn bridges_above_a_function_that_leaves_stay_on() {
    let tree = Tree::lab();
    let (root, port, card) = ("0000:40:01.0", "0000:42:1c.0", "0000:43:00.0");
    let mut place = "sys/devices/pci0000:40".to_owned();
    std::fs::create_dir_all(tree.path().join("sys/bus/pci/devices")).unwrap();
    for name in [root, port, card] {
        place += &format!("/{name}");
        // The port's kernel is without power management.
        if name != port {
            tree.put(format!("{place}/power/control"), "auto\n");
        }
        std::fs::create_dir_all(tree.path().join(&place)).unwrap();
        let link = tree.path().join(format!("sys/bus/pci/devices/{name}"));
        std::os::unix::fs::symlink(tree.path().join(&place), link).unwrap();
    }
    let sys = tree.sys();
    pci::keep_bridges_on(&sys, card.parse().unwrap()).unwrap();
    let control = |name| sys.read_optional(format!("sys/bus/pci/devices/{name}/power/control"));
    assert_eq!(control(root).as_deref(), Some("on"));
    assert_eq!(control(port), None);
    assert_eq!(control(card).as_deref(), Some("auto"));
    assert!(
        pci::keep_bridges_on(&sys, "0000:49:00.0".parse().unwrap()).is_err(),
        "no such function"
    );
}

#[test]
fn an_ioapic_has_as_many_pins_as_the_kernel_found() {
    let second = [1, 12, 1, 0, 0, 0, 0xc1, 0xfe, 160, 0, 0, 0];
    let pins = |log: &str| {
        let tree = Tree::lab();
        tables::write_madt(tree.path(), &[0, 1, 2, 3], &second);
        tree.put("dev/kmsg", log);
        let inventory = inventory(&tree);
        inventory.pins.iter().map(|pin| pin.gsi.0).collect::<Vec<_>>()
    };
    // A PCH of today has 120 (linux-surface issue 176).
    let told = pins(
        "6,100,0,-;Using ACPI (MADT) for SMP configuration information\n\
         6,101,0,-;IOAPIC[0]: apic_id 2, version 32, address 0xfec00000, GSI 0-119\n SUBSYSTEM=x\n\
         6,102,0,-;IOAPIC[1]: apic_id 3, version 32, address 0xfec10000, GSI 160-167\n",
    );
    assert_eq!(told, (0..120).chain(160..168).collect::<Vec<_>>());
    // What the log has lost: all up to the next one, and 24.
    assert_eq!(pins(""), (0..184).collect::<Vec<_>>());
    assert_eq!(pins("6,1,0,-;IOAPIC[0]: GSI 5-3\n"), (0..184).collect::<Vec<_>>());
    assert_eq!(pins("6,1,0,-;IOAPIC[0]: GSI 160-4294967295\n").len(), 160 + 256);
}
