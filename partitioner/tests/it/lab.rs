//! The lab's machine: 2 GiB, four CPUs, two NICs to move, and the layout of its first host.

use partitioner::{
    ApicId, Bar, BlockState, BootSize, Cpu, CpuNumber, CpuRequest, Generation, Gsi, Inventory, MemRange, MemoryBlock,
    MemoryRequest, NodeId, PciAddress, PciFunction, Pin, PortRange, Request, StayingPorts,
};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 128 * MIB;

pub fn mem(start: u64, end: u64) -> MemRange {
    MemRange::new(start, end).unwrap()
}

pub fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

pub fn pci(device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, 0, device, function).unwrap()
}

/// COM1 for even generations, COM2 for odd ones.
pub fn console(generation: Generation) -> PortRange {
    if generation.slot().index() == 0 {
        ports(0x3f8, 0x3ff)
    } else {
        ports(0x2f8, 0x2ff)
    }
}

fn function(address: PciAddress, class: u32, driver: Option<&str>, bars: Vec<Bar>, gsi: Option<u32>) -> PciFunction {
    PciFunction {
        address,
        class,
        driver: driver.map(str::to_owned),
        busy: None,
        bridge: class >> 16 == 6,
        bars,
        gsi: gsi.map(Gsi),
        behind: None,
    }
}

/// As generation 0 finds it.
pub fn inventory() -> Inventory {
    let cpu = |n| Cpu {
        apic: ApicId(n),
        number: CpuNumber(n),
        online: true,
        node: NodeId(0),
        core: None,
    };
    let block = |n: u64| MemoryBlock {
        range: MemRange::with_len(n * BLOCK, BLOCK).unwrap(),
        state: BlockState::Online,
        removable: n >= 8, // movablecore=640M
        free: if n >= 8 { BLOCK } else { 0 },
        node: NodeId(0),
        kept: None,
        foreign: None,
    };
    let nic = |device, bar: u64, port, gsi| {
        let bars = vec![
            Bar::Memory(MemRange::with_len(bar, 0x2_0000).unwrap()),
            Bar::Ports(ports(port, port + 0x3f)),
        ];
        function(pci(device, 0), 0x02_0000, Some("e1000"), bars, Some(gsi))
    };
    let users = |n| match n {
        2 => vec!["timer".to_owned()],
        9 => vec!["acpi".to_owned()],
        _ => vec![],
    };
    Inventory {
        generation: Generation(0),
        cpus: (0..4).map(cpu).collect(),
        block_size: BLOCK,
        blocks: (0..13).map(block).collect(),
        ram: vec![mem(0x1000, 0x9_f000), mem(10 * MIB, 0x6800_0000)],
        spare: 600 * MIB,
        functions: vec![
            function(pci(0, 0), 0x06_0000, None, vec![], None),
            function(pci(1, 0), 0x06_0100, None, vec![], None),
            function(
                pci(1, 1),
                0x01_0180,
                Some("ata_piix"),
                vec![Bar::Ports(ports(0xc000, 0xc00f))],
                None,
            ),
            nic(2, 0xfebc_0000, 0xc040, 9),
            nic(3, 0xfebe_0000, 0xc080, 11),
        ],
        pins: (0..24)
            .map(|n| Pin {
                gsi: Gsi(n),
                users: users(n),
            })
            .collect(),
        staying_ports: vec![StayingPorts {
            ports: console(Generation(0)),
            user: "ttyS0, the console".into(),
        }],
        firmware: vec![],
        unread_firmware: vec![],
        pool: vec![mem(0x6800_0000, 0x7fe0_0000)],
        pool_nodes: vec![],
        entry_reach: 4 << 30,
        never_moves: vec![mem(0, 10 * MIB)],
        unreclaimed: vec![],
    }
}

pub fn boot() -> BootSize {
    BootSize {
        kernel_init: 50 * MIB,
        kernel_align: 2 * MIB,
        initramfs: 45 * MIB,
        tables: 64 << 10,
    }
}

/// The successor of generation 1: two CPUs, 512 MiB, the second NIC, COM2.
pub fn request() -> Request {
    Request {
        cpus: CpuRequest::List(vec![CpuNumber(2), CpuNumber(3)]),
        memory: MemoryRequest::Blocks(vec![mem(0x4800_0000, 0x6800_0000)]),
        boot: boot(),
        functions: vec![pci(3, 0)],
        ports: vec![console(Generation(1))],
        pins: vec![],
        guests: vec!["redis".into(), "web".into()],
    }
}
