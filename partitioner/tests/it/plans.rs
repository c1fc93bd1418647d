//! What a plan is made of, and each way in which there is none.

use partitioner::{
    Bar, BlockState, BootSize, CpuNumber, CpuRequest, FirmwareRegion, Generation, Gsi, Inventory, MemRange,
    MemoryRequest, NodeId, Owner, Partition, Pin, PlanError, Request, Resource, Slot, Transfer, TransferError,
    Unreclaimed, Warning, error::Stuck, plan,
};

use crate::lab::{self, BLOCK, MIB, mem, pci, ports};

/// The error of the lab's plan after a change, and that its text names `words`.
fn refused(change: impl FnOnce(&mut Inventory, &mut Request), words: &[&str]) -> PlanError {
    let (mut inventory, mut request) = (lab::inventory(), lab::request());
    change(&mut inventory, &mut request);
    let error = plan(&inventory, &request).expect_err("refused");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    error
}

fn cpus(numbers: &[u32]) -> CpuRequest {
    CpuRequest::List(numbers.iter().copied().map(CpuNumber).collect())
}

#[test]
fn the_labs_plan() {
    let made = plan(&lab::inventory(), &lab::request()).unwrap();
    let numbers = |cpus: &[partitioner::Cpu]| cpus.iter().map(|cpu| cpu.number.0).collect::<Vec<_>>();
    assert_eq!(numbers(&made.cpus), [2, 3]);
    assert_eq!(numbers(&made.kept_cpus), [0, 1]);
    assert_eq!(made.memory, [mem(0x4800_0000, 0x6800_0000)]);
    assert_eq!(made.boot, made.memory[0]);
    assert_eq!(made.blocks.len(), 4);
    assert_eq!(made.to_migrate, 0);
    assert_eq!(made.mmio, [mem(0xfebe_0000, 0xfec0_0000)]);
    assert_eq!(made.ports, [ports(0x2f8, 0x2ff), ports(0xc080, 0xc0bf)]);
    assert_eq!(made.pins, [Gsi(11)]);
    assert_eq!(made.warnings, []);
    assert_eq!(made.unreclaimed_bytes(), 118 * MIB);
    assert_eq!(
        made.reclaim.functions,
        [pci(1, 1), pci(2, 0)],
        "bridges are visible to both"
    );
    assert_eq!(made.reclaim.blocks.len(), 8, "blocks 1 to 8");
}

#[test]
fn a_size_takes_the_highest_blocks_and_a_count_the_highest_cpus() {
    let request = Request {
        cpus: CpuRequest::Count(2),
        memory: MemoryRequest::Size(300 * MIB),
        ..lab::request()
    };
    let made = plan(&lab::inventory(), &request).unwrap();
    assert_eq!(
        made.memory,
        [mem(0x5000_0000, 0x6800_0000)],
        "rounded up to three blocks"
    );
    assert_eq!(made.cpus[0].number, CpuNumber(2));
}

#[test]
fn an_offline_block_costs_nothing() {
    let mut inventory = lab::inventory();
    inventory.spare = 128 * MIB;
    inventory.blocks[12].state = BlockState::Offline;
    let request = Request {
        memory: MemoryRequest::Size(256 * MIB),
        ..lab::request()
    };
    assert_eq!(
        plan(&inventory, &request).unwrap().memory,
        [mem(0x5800_0000, 0x6800_0000)]
    );
}

#[test]
fn where_no_run_is_long_enough_it_takes_pieces_longest_first() {
    let mut inventory = lab::inventory();
    inventory.blocks[10].removable = false; // leaves 8, 9 and 11, 12
    let request = Request {
        memory: MemoryRequest::Size(384 * MIB),
        ..lab::request()
    };
    let made = plan(&inventory, &request).unwrap();
    assert_eq!(made.memory, [mem(9 * BLOCK, 10 * BLOCK), mem(11 * BLOCK, 13 * BLOCK)]);
    assert_eq!(made.boot, made.memory[1]);
}

#[test]
fn unreclaimed_memory_is_given_first_and_counts() {
    let mut inventory = lab::inventory();
    inventory.ram = vec![mem(BLOCK, 0x6800_0000)];
    inventory.blocks.remove(0);
    inventory.unreclaimed = vec![Unreclaimed {
        range: mem(10 * MIB, BLOCK),
        node: NodeId(0),
    }];
    let mut request = Request {
        memory: MemoryRequest::Size(118 * MIB),
        ..lab::request()
    };
    let made = plan(&inventory, &request).unwrap();
    assert_eq!((made.blocks.len(), made.boot), (0, mem(10 * MIB, BLOCK)));
    assert_eq!(made.reclaim.unreclaimed, []);
    request.memory = MemoryRequest::Size(118 * MIB + 1);
    assert_eq!(plan(&inventory, &request).unwrap().blocks.len(), 1);
    // What fits nowhere but in the block beside it takes that block, not the highest.
    inventory.blocks.iter_mut().for_each(|block| block.removable = true);
    inventory.spare = BLOCK;
    request.boot = BootSize {
        kernel_init: 200 * MIB,
        ..lab::boot()
    };
    let made = plan(&inventory, &request).unwrap();
    assert_eq!(made.boot, mem(10 * MIB, 2 * BLOCK));
}

#[test]
fn cpus_that_cannot_go() {
    assert_eq!(
        refused(|_, r| r.cpus = cpus(&[3, 0]), &["CPU 0", "leave it out"]),
        PlanError::CpuZero
    );
    assert_eq!(refused(|_, r| r.cpus = cpus(&[]), &["at least one"]), PlanError::NoCpu);
    assert_eq!(
        refused(|_, r| r.cpus = CpuRequest::Count(0), &["at least one"]),
        PlanError::NoCpu
    );
    let last = PlanError::LastCpu { asked: 4, online: 4 };
    assert_eq!(
        refused(|_, r| r.cpus = CpuRequest::Count(4), &["4 of 4", "at most 3"]),
        last
    );
    refused(|_, r| r.cpus = CpuRequest::Count(usize::MAX), &["at most 3"]);
    refused(|i, _| i.cpus.retain(|cpu| cpu.number.0 >= 2), &["2 of 2", "at most 1"]);
    refused(|_, r| r.cpus = cpus(&[7]), &["CPU 7", "could go: 1,2,3"]);
    refused(|i, _| i.cpus[3].online = false, &["CPU 3 is offline", "cpu3/online"]);
    refused(|_, r| r.cpus = cpus(&[2, 2]), &["CPU 2", "twice"]);
}

#[test]
fn memory_that_cannot_go() {
    let asks = |range| move |_: &mut Inventory, r: &mut Request| r.memory = MemoryRequest::Blocks(vec![range]);
    let size = |bytes| move |_: &mut Inventory, r: &mut Request| r.memory = MemoryRequest::Size(bytes);
    refused(
        size(641 * MIB),
        &[
            "641 MiB of memory asked",
            "only 512 MiB can be offlined",
            "640 MiB in removable",
        ],
    );
    refused(size(u64::MAX), &["only 512 MiB"]);
    refused(
        |i, _| i.spare = 511 * MIB,
        &["512 MiB of memory asked", "only 384 MiB", "511 MiB to spare"],
    );
    refused(
        asks(mem(0x4800_0000, 0x6700_0000)),
        &["whole memory blocks", "0x8000000"],
    );
    refused(
        asks(mem(0x6000_0000, 0x7000_0000)),
        &["overlaps the pool 0x68000000-0x7fe00000"],
    );
    refused(asks(mem(0, BLOCK)), &["overlaps 0x0-0xa00000", "never moves"]);
    refused(
        asks(mem(1 << 40, 1 << 50)),
        &["0x10000000000-0x10008000000 is not the incumbent's"],
    );
    refused(
        |i, r| {
            i.blocks[9].kept = Some("memory of the kernel".into());
            r.memory = MemoryRequest::Blocks(vec![i.blocks[9].range]);
        },
        &["0x48000000-0x50000000 cannot be offlined: in it is memory of the kernel; choose another"],
    );
    let why = Stuck::Unmovable;
    let error = refused(asks(mem(BLOCK, 2 * BLOCK)), &["movable zone", "movablecore="]);
    assert_eq!(
        error,
        PlanError::NotRemovable {
            range: mem(BLOCK, 2 * BLOCK),
            why
        }
    );
    let holes = |i: &mut Inventory, _: &mut Request| i.ram = vec![mem(10 * MIB, 0x6700_0000)];
    refused(holes, &["0x60000000-0x68000000 cannot be offlined: it has holes"]);
    let twice = MemoryRequest::Blocks(vec![mem(12 * BLOCK, 13 * BLOCK); 2]);
    refused(|_, r| r.memory = twice, &["0x60000000-0x68000000", "twice"]);
}

#[test]
fn memory_in_which_the_kernel_does_not_fit() {
    let change = |_: &mut Inventory, r: &mut Request| r.boot.initramfs = 470 * MIB;
    let error = refused(change, &["contiguous", "smaller initramfs"]);
    let needed = 520 * MIB + (64 << 10);
    assert_eq!(
        error,
        PlanError::TooSmallToBoot {
            needed,
            longest: 512 * MIB
        }
    );
    refused(
        |_, r| r.memory = MemoryRequest::Size(0),
        &["longest range of the successor has 0"],
    );
    refused(|_, r| r.boot.kernel_init = u64::MAX, &["contiguous"]);
}

#[test]
fn functions_that_cannot_go() {
    refused(|_, r| r.functions = vec![pci(9, 0)], &["0000:00:09.0 does not exist"]);
    refused(
        |_, r| r.functions = vec![pci(1, 0)],
        &["0000:00:01.0 is a bridge", "behind it"],
    );
    refused(
        |i, _| i.functions[4].busy = Some("eth1 is up".into()),
        &["0000:00:03.0 is busy: eth1 is up; stop"],
    );
    refused(|_, r| r.functions = vec![pci(3, 0); 2], &["0000:00:03.0", "twice"]);
    let shared = |i: &mut Inventory, _: &mut Request| i.functions[3].gsi = Some(Gsi(11));
    refused(shared, &["GSI) 11", "shared with 0000:00:02.0 (e1000)", "elsewhere"]);
    refused(|_, r| r.functions = vec![pci(2, 0)], &["GSI) 9", "shared with acpi"]);
    refused(
        |_, r| r.pins = vec![Gsi(2)],
        &["GSI) 2, asked for with the request, is shared with timer"],
    );
    refused(|_, r| r.pins = vec![Gsi(99)], &["GSI) 99 does not exist"]);
    let high = |i: &mut Inventory, gsi| {
        let users = Vec::new();
        i.pins.push(Pin { gsi: Gsi(gsi), users });
        i.functions[4].gsi = Some(Gsi(gsi));
    };
    refused(
        move |i, _| high(i, 1024),
        &[
            "GSI) 1024, asked for with 0000:00:03.0",
            "below 1024",
            "leave 0000:00:03.0",
        ],
    );
    let mut machine = lab::inventory();
    high(&mut machine, 1023);
    assert_eq!(plan(&machine, &lab::request()).unwrap().pins, [Gsi(1023)]);
    let many = |count: u8| {
        let functions = (0..count).map(|n| pci(n / 8, n % 8)).collect();
        move |_: &mut Inventory, r: &mut Request| r.functions = functions
    };
    refused(many(65), &["65 PCI functions", "64 at most"]);
    refused(many(64), &["0000:00:00.0"]);
    let bar = Bar::Memory(MemRange::with_len(0xfebe_1800, 16).unwrap());
    refused(
        move |i, _| i.functions[3].bars[0] = bar,
        &["0xfebe0000-0xfec00000", "0000:00:02.0, which stays"],
    );
    refused(
        |_, r| r.ports = vec![lab::console(Generation(0))],
        &["0x3f8-0x3ff", "ttyS0, the console"],
    );
    refused(
        |_, r| r.ports = vec![ports(0xc07f, 0xc07f)],
        &["0xc07f are in use by 0000:00:02.0 (e1000)"],
    );
}

#[test]
fn functions_that_share_a_line_can_go_together() {
    let (mut inventory, mut request) = (lab::inventory(), lab::request());
    inventory.functions[3].gsi = Some(Gsi(11));
    request.functions = vec![pci(3, 0), pci(2, 0)];
    assert_eq!(plan(&inventory, &request).unwrap().pins, [Gsi(11)]);
    // A function without a driver raises no interrupt, but will miss its pin later.
    inventory.functions[3].driver = None;
    request.functions = vec![pci(3, 0)];
    let warnings = plan(&inventory, &request).unwrap().warnings;
    assert_eq!(
        warnings,
        [Warning::IdleFunctionLosesPin {
            address: pci(2, 0),
            gsi: Gsi(11)
        }]
    );
}

#[test]
fn a_bridge_shares_a_line_only_if_a_driver_listens() {
    let mut inventory = lab::inventory();
    inventory.functions[1].gsi = Some(Gsi(11));
    assert_eq!(plan(&inventory, &lab::request()).unwrap().warnings, []);
    inventory.functions[1].driver = Some("pcieport".into());
    let error = plan(&inventory, &lab::request()).unwrap_err().to_string();
    assert!(error.contains("shared with 0000:00:01.0 (pcieport)"), "{error}");
}

fn uses(resource: Resource) -> FirmwareRegion {
    FirmwareRegion {
        resource,
        name: r"\_SB_.PCI0.REGN of DSDT".into(),
    }
}

#[test]
fn what_the_firmwares_code_uses_stays() {
    let with = |resource| move |inventory: &mut Inventory, _: &mut Request| inventory.firmware.push(uses(resource));
    let words = [r"firmware's code uses it (\_SB_.PCI0.REGN of DSDT)", "no filter"];
    for (resource, asked) in [
        (Resource::Function(pci(3, 0)), "PCI function 0000:00:03.0 cannot go"),
        (
            Resource::Memory(mem(0xfebf_ffff, 0xfec0_0000)),
            "PCI function 0000:00:03.0 cannot go",
        ),
        (
            Resource::Ports(ports(0xc0bf, 0xc0c0)),
            "PCI function 0000:00:03.0 cannot go",
        ),
        (Resource::Ports(ports(0x2ff, 0x300)), "I/O ports 0x2f8-0x2ff cannot go"),
        (
            Resource::Memory(mem(0x5000_0000, 0x5000_0010)),
            "memory 0x50000000-0x58000000 cannot go",
        ),
    ] {
        let error = refused(with(resource), &words);
        assert!(error.to_string().starts_with(asked), "{error}");
    }
    let mut inventory = lab::inventory();
    inventory.firmware = vec![
        uses(Resource::Function(pci(2, 0))),
        uses(Resource::Memory(mem(0xfebc_0000, 0xfebc_1000))),
        uses(Resource::Ports(ports(0xc040, 0xc07f))),
        uses(Resource::Memory(mem(0x4000_0000, 0x4000_0010))),
    ];
    let plain = plan(&lab::inventory(), &lab::request());
    assert_eq!(
        plan(&inventory, &lab::request()),
        plain,
        "what does not move is its own"
    );
}

#[test]
fn a_size_takes_blocks_that_the_firmwares_code_leaves_alone() {
    let mut inventory = lab::inventory();
    inventory.firmware = vec![uses(Resource::Memory(mem(0x6000_0000, 0x6000_0010)))];
    let request = Request {
        memory: MemoryRequest::Size(256 * MIB),
        ..lab::request()
    };
    assert_eq!(
        plan(&inventory, &request).unwrap().memory,
        [mem(0x5000_0000, 0x6000_0000)]
    );
}

#[test]
fn unread_tables_are_warned_of() {
    let mut inventory = lab::inventory();
    inventory.unread_firmware = vec!["SSDT3: not implemented".into()];
    let warnings = plan(&inventory, &lab::request()).unwrap().warnings;
    assert_eq!(warnings, [Warning::UnreadFirmware("SSDT3: not implemented".into())]);
    assert!(warnings[0].to_string().contains("(SSDT3: not implemented)"));
}

#[test]
fn guests_need_a_pool_and_one_name_each() {
    refused(|i, _| i.pool.clear(), &["no pool", "pool="]);
    refused(|_, r| r.guests = vec!["a".into(), "a".into()], &["guest a", "twice"]);
}

#[test]
fn an_inventory_that_contradicts_itself() {
    refused(|i, _| i.block_size = 0, &["inconsistent", "0x0"]);
    refused(|i, _| i.block_size = 3, &["inconsistent"]);
    refused(
        |i, _| i.blocks[5].range = mem(5 * BLOCK, 6 * BLOCK - 1),
        &["inconsistent", "aligned"],
    );
    refused(|i, _| i.blocks[5].range = i.blocks[6].range, &["listed twice"]);
    refused(|i, _| i.cpus[1].apic = i.cpus[2].apic, &["APIC 2 is listed twice"]);
    refused(|i, _| i.cpus[1].number = i.cpus[2].number, &["CPU 2 is listed twice"]);
    refused(|i, _| i.functions[3].address = pci(3, 0), &["listed twice"]);
    refused(|i, _| i.pins[3].gsi = Gsi(4), &["listed twice"]);
    refused(
        |i, _| i.ram.push(mem(0x6800_0000, 0x7000_0000)),
        &["the pool", "dax_hmem.region_idle=1"],
    );
    let range = mem(0x2000_0000, 0x2100_0000);
    refused(
        |i, _| i.unreclaimed.push(Unreclaimed { range, node: NodeId(0) }),
        &["also belongs to", "report"],
    );
}

#[test]
fn nodes_without_memory_are_warned_of() {
    let mut inventory = lab::inventory();
    inventory.cpus[3].node = NodeId(1);
    let made = plan(&inventory, &lab::request()).unwrap();
    assert_eq!(made.warnings, [Warning::SuccessorNodeWithoutMemory(NodeId(1))]);
    inventory.blocks[12].node = NodeId(1);
    assert_eq!(plan(&inventory, &lab::request()).unwrap().warnings, []);
    inventory.cpus[1].node = NodeId(1);
    let made = plan(&inventory, &lab::request()).unwrap();
    assert_eq!(made.warnings, [Warning::IncumbentNodeWithoutMemory(NodeId(1))]);
    assert!(made.warnings[0].to_string().contains("node 1"));
}

#[test]
fn a_partition_refuses_wrong_moves() {
    let mut partition = Partition::of(&lab::inventory()).unwrap();
    let before = partition.clone();
    let (even, odd) = (Owner::Host(Slot::Even), Owner::Host(Slot::Odd));
    let cpu = Resource::Cpu(partitioner::ApicId(1));
    let ram = Resource::Memory(mem(0x4800_0000, 0x6800_0000));
    let forbidden = [
        (cpu, even, even),
        (cpu, even, Owner::Nobody),
        (cpu, even, Owner::Monitor),
        (ram, even, Owner::Pool),
        (Resource::Memory(mem(0, MIB)), Owner::Monitor, even),
        (Resource::Memory(mem(0x6800_0000, 0x6900_0000)), Owner::Pool, odd),
    ];
    for (resource, from, to) in forbidden {
        let transfer = Transfer { resource, from, to };
        assert_eq!(partition.transfer(transfer), Err(TransferError::Forbidden(transfer)));
    }
    let foreign = [
        (cpu, odd, even),
        (Resource::Cpu(partitioner::ApicId(9)), even, odd),
        (Resource::Memory(mem(0x6000_0000, 0x6900_0000)), even, odd), // part of it is the pool's
        (Resource::Memory(mem(1 << 40, 2 << 40)), even, odd),
        (ram, Owner::Nobody, odd),
    ];
    for (resource, from, to) in foreign {
        let refused = partition.transfer(Transfer { resource, from, to });
        assert_eq!(refused, Err(TransferError::NotOwned { resource, from }));
    }
    assert_eq!(partition, before);
    let there = Transfer {
        resource: ram,
        from: even,
        to: odd,
    };
    partition.transfer(there).unwrap();
    assert_eq!(partition.owner(ram), Some(odd));
    assert_eq!(
        partition.owner(Resource::Memory(mem(0x4700_0000, 0x4900_0000))),
        None,
        "two owners"
    );
    partition.transfer(there.reversed()).unwrap();
    assert_eq!(partition, before);
}

/// Two nodes with cores of two threads, as Linux numbers them: first threads 0 to 3 (node 0) and 4 to 7 (node 1), then
/// the second ones. 2 GiB below 4 GiB on node 0, then blocks of 1 GiB: 4 to 8 GiB on node 0, 8 to 12 on node 1.
fn two_nodes() -> Inventory {
    const GIB: u64 = 1 << 30;
    let mut inventory = lab::inventory();
    let cpu = |n: u32| partitioner::Cpu {
        apic: partitioner::ApicId(n % 8 * 2 + n / 8),
        number: CpuNumber(n),
        online: true,
        node: NodeId(n % 8 / 4),
        core: Some(CpuNumber(n % 8)),
    };
    inventory.cpus = (0..16).map(cpu).collect();
    inventory.block_size = GIB;
    inventory.blocks = (0..12)
        .filter(|n| !(2..4).contains(n))
        .map(|n| partitioner::MemoryBlock {
            range: mem(n * GIB, (n + 1) * GIB),
            state: BlockState::Online,
            removable: n > 0,
            free: 0,
            node: NodeId((n / 8) as u32),
            kept: None,
            foreign: None,
        })
        .collect();
    inventory.ram = vec![mem(MIB, 2 * GIB), mem(4 * GIB, 12 * GIB)];
    inventory.spare = 8 * GIB;
    inventory.pool = vec![mem(12 * GIB, 13 * GIB)];
    inventory.entry_reach = 64 * GIB;
    inventory
}

fn sized(cpus: CpuRequest, gib: u64) -> Request {
    Request {
        cpus,
        memory: MemoryRequest::Size(gib << 30),
        functions: vec![],
        guests: vec!["guest".into()],
        ..lab::request()
    }
}

fn numbers(plan: &partitioner::Plan) -> Vec<u32> {
    plan.cpus.iter().map(|cpu| cpu.number.0).collect()
}

#[test]
fn a_count_takes_whole_cores_of_one_node() {
    let inventory = two_nodes();
    let chosen = |count| numbers(&plan(&inventory, &sized(CpuRequest::Count(count), 2)).unwrap());
    assert_eq!(chosen(2), [7, 15]);
    assert_eq!(chosen(4), [6, 7, 14, 15]);
    assert_eq!(chosen(8), [4, 5, 6, 7, 12, 13, 14, 15]);
    assert_eq!(
        chosen(10),
        [3, 4, 5, 6, 7, 11, 12, 13, 14, 15],
        "whole cores of two nodes"
    );
    for count in 1..=15 {
        let made = plan(&inventory, &sized(CpuRequest::Count(count), 2)).unwrap();
        assert_eq!(made.cpus.len(), count);
        let split = made
            .warnings
            .iter()
            .filter(|w| matches!(w, Warning::SplitCore { .. }))
            .count();
        assert_eq!(split, count % 2, "{count} CPUs");
    }
    // Threads that are offline run no host.
    let mut inventory = two_nodes();
    inventory.cpus[15].online = false;
    let made = plan(&inventory, &sized(CpuRequest::Count(1), 2)).unwrap();
    assert_eq!(numbers(&made), [7]);
    assert!(
        made.warnings.iter().all(|w| !matches!(w, Warning::SplitCore { .. })),
        "{:?}",
        made.warnings
    );
}

#[test]
fn a_core_that_need_not_be_split_comes_before_the_better_node() {
    let mut inventory = two_nodes();
    inventory.cpus[11].online = false;
    let made = plan(&inventory, &sized(CpuRequest::Count(1), 2)).unwrap();
    assert_eq!(numbers(&made), [3]);
    assert_eq!(made.warnings, []);
}

#[test]
fn functions_of_other_segments_are_nobodys_to_give() {
    let mut inventory = lab::inventory();
    let elsewhere = partitioner::PciAddress::new(0x1_0000, 0, 3, 0).unwrap();
    let mut function = inventory.functions[4].clone();
    function.address = elsewhere;
    function.bars.clear();
    function.gsi = None;
    inventory.functions.push(function);
    let partition = Partition::of(&inventory).unwrap();
    assert_eq!(partition.owner(Resource::Function(elsewhere)), None);
    let made = plan(&inventory, &lab::request()).unwrap();
    let claimed = made.claims(&partition);
    assert!(
        claimed
            .iter()
            .all(|claim| claim.resource != Resource::Function(elsewhere))
    );
    assert!(
        claimed
            .iter()
            .any(|claim| claim.resource == Resource::Function(pci(2, 0)))
    );
    assert!(!made.reclaim.functions.contains(&elsewhere));
    assert_eq!(inventory.immovable().count(), 1);
}

#[test]
fn warnings_stay_with_the_operator() {
    let mut inventory = lab::inventory();
    inventory.unread_firmware = vec!["SSDT3: not implemented".into()];
    let mut refresh = partitioner::Refresh::idle(inventory.generation, vec![]);
    refresh.plan_for(&inventory, &lab::request()).unwrap();
    assert_eq!(refresh.plan().unwrap().warnings.len(), 1);
    let sent = refresh.to_send();
    let mut plan = refresh.plan().unwrap().clone();
    plan.warnings.clear();
    assert_eq!((sent.plan(), sent.partition()), (Some(&plan), refresh.partition()));
}

#[test]
fn cpus_go_where_memory_and_pool_are() {
    let mut inventory = two_nodes();
    let count = || sized(CpuRequest::Count(4), 3);
    for block in &mut inventory.blocks[8..] {
        block.removable = false;
    }
    let made = plan(&inventory, &count()).unwrap();
    assert_eq!(numbers(&made), [2, 3, 10, 11], "node 1 has too little memory to give");
    assert_eq!(made.memory, [mem(1 << 30, 2 << 30), mem(6 << 30, 8 << 30)]);
    let mut inventory = two_nodes();
    inventory.pool_nodes = vec![NodeId(0)];
    assert_eq!(numbers(&plan(&inventory, &count()).unwrap()), [2, 3, 10, 11]);
    // Memory that is asked for by address decides, too.
    let by_address = Request {
        memory: MemoryRequest::Blocks(vec![mem(8 << 30, 10 << 30)]),
        ..count()
    };
    let made = plan(&inventory, &by_address).unwrap();
    assert_eq!(numbers(&made), [6, 7, 14, 15]);
    let far = Warning::PoolFarAway { pool: vec![NodeId(0)] };
    assert!(made.warnings.contains(&far), "{:?}", made.warnings);
    let without_guests = Request {
        guests: vec![],
        ..by_address
    };
    assert!(!plan(&inventory, &without_guests).unwrap().warnings.contains(&far));
}

#[test]
fn memory_comes_from_the_nodes_of_the_cpus() {
    let inventory = two_nodes();
    let list = |numbers: &[u32], gib| plan(&inventory, &sized(cpus(numbers), gib)).unwrap();
    assert_eq!(list(&[2, 10], 3).memory, [mem(1 << 30, 2 << 30), mem(6 << 30, 8 << 30)]);
    let below = mem(1 << 30, 2 << 30);
    assert_eq!(
        list(&[7, 15], 3).memory,
        [below, mem(10 << 30, 12 << 30)],
        "the zone DMA32"
    );
    assert_eq!(
        list(&[7, 15], 6).memory,
        [below, mem(7 << 30, 12 << 30)],
        "the rest is remote"
    );
    let split = list(&[2, 3, 11], 2).warnings;
    assert!(
        split.contains(&Warning::SplitCore {
            goes: CpuNumber(2),
            stays: CpuNumber(10)
        }),
        "{split:?}"
    );
    assert_eq!(
        split.iter().filter(|w| matches!(w, Warning::SplitCore { .. })).count(),
        1
    );
}

#[test]
fn the_image_lies_where_l0_can_enter_it() {
    let mut inventory = two_nodes();
    let low = Warning::LittleLowMemory { spare: 0 };
    let on_node_1 = sized(cpus(&[7, 15]), 3);
    let down_there = inventory.blocks[1].clone();
    inventory.blocks[1].removable = false;
    let high = plan(&inventory, &on_node_1).unwrap();
    assert_eq!(high.memory, [mem(9 << 30, 12 << 30)]);
    assert!(high.warnings.contains(&low), "no zone DMA32: {:?}", high.warnings);
    inventory.entry_reach = 4 << 30;
    assert!(matches!(
        plan(&inventory, &on_node_1),
        Err(PlanError::OutOfReach { longest: 0, .. })
    ));
    inventory.blocks[1] = down_there;
    let made = plan(&inventory, &on_node_1).unwrap();
    assert_eq!(made.memory, [mem(1 << 30, 2 << 30), mem(10 << 30, 12 << 30)]);
    assert_eq!(made.boot, mem(1 << 30, 2 << 30));
    assert!(!made.warnings.contains(&low), "{:?}", made.warnings);
    // In part beyond it: only what is below counts.
    inventory.entry_reach = (1 << 30) + (512 << 20);
    assert_eq!(
        plan(&inventory, &on_node_1).unwrap_err(),
        PlanError::OutOfReach {
            needed: on_node_1.boot.needed_at(0),
            longest: 0,
            reach: inventory.entry_reach,
        }
    );
    let by_address = Request {
        memory: MemoryRequest::Blocks(vec![mem(1 << 30, 2 << 30)]),
        ..on_node_1.clone()
    };
    assert_eq!(
        plan(&inventory, &by_address).unwrap().boot,
        mem(1 << 30, inventory.entry_reach)
    );
    inventory.entry_reach = 1 << 30;
    let error = plan(&inventory, &by_address).unwrap_err().to_string();
    assert!(error.contains("below 0x40000000, which is all that L0 maps"), "{error}");
    // The image fits into what nobody owns above, but that is none for DMA.
    let mut above = two_nodes();
    above.unreclaimed = vec![Unreclaimed {
        range: mem(16 << 30, 17 << 30),
        node: NodeId(1),
    }];
    let made = plan(&above, &on_node_1).unwrap();
    assert_eq!(made.memory[0], mem(1 << 30, 2 << 30), "{:?}", made.memory);
    // What nobody owns is below, and is enough.
    inventory.entry_reach = 4 << 30;
    inventory.ram[0] = mem(1 << 30, 2 << 30);
    inventory.unreclaimed = vec![Unreclaimed {
        range: mem(16 * MIB, 1 << 30),
        node: NodeId(0),
    }];
    let made = plan(&inventory, &on_node_1).unwrap();
    assert_eq!(made.memory, [mem(16 * MIB, 1 << 30), mem(9 << 30, 12 << 30)]);
}
