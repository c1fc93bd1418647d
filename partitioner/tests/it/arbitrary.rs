//! Machines and wishes of any kind, small enough to run through: memory blocks of 16 pages.

use partitioner::{
    ApicId, Bar, BlockState, BootSize, Cpu, CpuNumber, CpuRequest, Generation, Gsi, Inventory, MemRange, MemoryBlock,
    MemoryRequest, NodeId, PciFunction, Pin, Request, StayingPorts, Unreclaimed,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};

use crate::{
    lab::{mem, pci, ports},
    linux::join,
};

const PAGE: u64 = 4096;
const BLOCK: u64 = 16 * PAGE;

/// What is in a stretch of physical memory as long as a block.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Absent,
    Block { removable: bool, online: bool },
    Holes,
    Left,
    LeftInPart,
    Pool,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => Just(Kind::Absent),
        10 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(removable, online)| Kind::Block { removable, online }),
        2 => Just(Kind::Holes),
        1 => Just(Kind::Left),
        1 => Just(Kind::LeftInPart),
        1 => Just(Kind::Pool),
    ]
}

fn function(n: u8) -> impl Strategy<Value = PciFunction> {
    let gsi = option::of((5u32..12).prop_map(Gsi));
    let driver = option::of(Just("driver".to_owned()));
    let flags = (prop::bool::weighted(0.05), prop::bool::weighted(0.1));
    // Some BARs are smaller than a page and end up beside those of another.
    let memory = option::of((0u64..24, 1u64..6));
    let io = option::of((0u16..12, 1u16..40));
    (gsi, driver, flags, memory, io).prop_map(move |(gsi, driver, (busy, bridge), memory, io)| {
        let memory = memory.map(|(at, len)| (0xfe00_0000 + u64::from(n) * 0x6000 + at * 0x400, len * 0x400));
        let memory = memory
            .and_then(|(at, len)| MemRange::with_len(at, len))
            .map(Bar::Memory);
        let io = io.map(|(at, len)| (0xc000 + u16::from(n) * 0x40 + at * 4, len));
        let io = io.map(|(first, len)| Bar::Ports(ports(first, first + len - 1)));
        PciFunction {
            address: pci(n, 0),
            class: if bridge { 0x06_0000 } else { 0x02_0000 },
            driver,
            busy: busy.then(|| "in use".to_owned()),
            bridge,
            bars: memory.into_iter().chain(io).collect(),
            gsi,
            behind: None,
        }
    })
}

fn functions() -> impl Strategy<Value = Vec<PciFunction>> {
    vec(function(0), 0..5).prop_flat_map(|some| (0..some.len() as u8).map(function).collect::<Vec<_>>())
}

pub fn inventory() -> impl Strategy<Value = Inventory> {
    let cpus = vec((prop::bool::weighted(0.9), 0u32..2), 2..8);
    let memory = vec(kind(), 4..20);
    let pins = vec(prop::bool::weighted(0.05), 12);
    let flags = (any::<bool>(), prop::bool::weighted(0.3));
    (cpus, memory, functions(), pins, 0u64..20, 0u64..4, flags).prop_map(
        |(cpus, memory, functions, pins, spare, generation, (cores, low))| {
            let cpu = |(n, (online, node)): (u32, (bool, u32))| Cpu {
                apic: ApicId(n * 2),
                number: CpuNumber(n),
                online: online || n == 0,
                node: NodeId(node),
                core: cores.then_some(CpuNumber(n - n % 2)),
            };
            let mut inventory = Inventory {
                generation: Generation(generation),
                cpus: (0..).zip(cpus).map(cpu).collect(),
                block_size: BLOCK,
                blocks: vec![],
                ram: vec![],
                spare: spare * BLOCK,
                functions,
                pins: (0..)
                    .zip(pins)
                    .map(|(n, used)| Pin {
                        gsi: Gsi(n),
                        users: used.then(|| "isa".into()).into_iter().collect(),
                    })
                    .collect(),
                staying_ports: vec![StayingPorts {
                    ports: ports(0x3f8, 0x3ff),
                    user: "the console".into(),
                }],
                firmware: vec![],
                unread_firmware: vec![],
                pool: vec![],
                pool_nodes: vec![],
                entry_reach: if low { 8 * BLOCK } else { 4 << 30 },
                never_moves: vec![mem(0, 5 * PAGE)],
                unreclaimed: vec![],
            };
            for (n, kind) in (0..).zip(memory) {
                // L0 makes a hole in the first one, whatever it is.
                put(&mut inventory, n, if n == 0 { Kind::Holes } else { kind });
            }
            inventory.ram = join(&inventory.ram);
            inventory
        },
    )
}

fn put(inventory: &mut Inventory, n: u64, kind: Kind) {
    let range = MemRange::with_len(n * BLOCK, BLOCK).unwrap();
    let half = mem(range.start() + BLOCK / 2, range.end());
    let node = NodeId((n / 8) as u32);
    let block = |online, removable| MemoryBlock {
        range,
        state: if online {
            BlockState::Online
        } else {
            BlockState::Offline
        },
        removable,
        free: if online { BLOCK / 4 } else { BLOCK },
        node,
        kept: None,
        foreign: None,
    };
    match kind {
        Kind::Absent => {}
        Kind::Block { removable, online } => {
            inventory.blocks.push(block(online, removable));
            inventory.ram.push(range);
        }
        Kind::Holes => {
            inventory.blocks.push(block(true, true));
            inventory.ram.push(half);
        }
        Kind::Left => inventory.unreclaimed.push(Unreclaimed { range, node }),
        Kind::LeftInPart => inventory.unreclaimed.push(Unreclaimed { range: half, node }),
        Kind::Pool => inventory.pool.push(range),
    }
}

fn cpus(inventory: &Inventory) -> impl Strategy<Value = CpuRequest> + use<> {
    let numbers = inventory.cpus.len() as u32;
    let list = vec(0..=numbers, 0..4).prop_map(|list| CpuRequest::List(list.into_iter().map(CpuNumber).collect()));
    let one = (1..=numbers).prop_map(|n| CpuRequest::List(vec![CpuNumber(n)]));
    prop_oneof![1 => list, 2 => one, 8 => (0usize..4).prop_map(CpuRequest::Count)]
}

fn memory() -> impl Strategy<Value = MemoryRequest> {
    let pages = (0u64..6 * 16).prop_map(|pages| MemoryRequest::Size(pages * PAGE));
    let blocks = vec((1u64..16, 1u64..3), 1..3);
    let blocks = blocks.prop_map(|list| {
        list.into_iter()
            .map(|(at, n)| mem(at * BLOCK, (at + n) * BLOCK))
            .collect()
    });
    prop_oneof![5 => pages, 1 => blocks.prop_map(MemoryRequest::Blocks)]
}

pub fn request(inventory: &Inventory) -> impl Strategy<Value = Request> + use<> {
    let there: Vec<_> = inventory.functions.iter().map(|function| function.address).collect();
    let functions = vec(any::<Index>(), 0..=2).prop_map(move |list| {
        let mut list: Vec<_> = list
            .iter()
            .filter(|_| !there.is_empty())
            .map(|i| *i.get(&there))
            .collect();
        list.dedup();
        list
    });
    let guests = if inventory.pool.is_empty() { 0..1 } else { 0..3usize };
    let boot = (0u64..12).prop_map(|pages| BootSize {
        kernel_init: pages * PAGE,
        kernel_align: 2 * PAGE,
        initramfs: 1,
        tables: 1,
    });
    (
        cpus(inventory),
        memory(),
        functions,
        boot,
        guests,
        prop::bool::weighted(0.05),
        option::weighted(0.1, 0u32..12),
    )
        .prop_map(|(cpus, memory, functions, boot, guests, com1, pin)| Request {
            cpus,
            memory,
            boot,
            functions,
            ports: vec![if com1 { ports(0x3f8, 0x3ff) } else { ports(0x2f8, 0x2ff) }],
            pins: pin.map(Gsi).into_iter().collect(),
            guests: (0..guests).map(|n| format!("guest{n}")).collect(),
        })
}

pub fn both() -> impl Strategy<Value = (Inventory, Request)> {
    inventory().prop_flat_map(|inventory| (request(&inventory), Just(inventory)).prop_map(|(r, i)| (i, r)))
}
