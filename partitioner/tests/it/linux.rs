//! One Linux of the modelled machine: what it uses, and what it would refuse.

use std::collections::BTreeSet;

use partitioner::{
    ApicId, BlockState, Cpu, CpuNumber, Inventory, MemRange, MemoryBlock, NodeId, PciAddress, PciFunction, Plan, Slot,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Linux {
    pub sees: Inventory,
    /// What it had before it gave it away, so that it finds it again as it was.
    past: Inventory,
    pub nested: BTreeSet<ApicId>,
    pub guests: BTreeSet<String>,
}

impl Linux {
    pub fn native(sees: Inventory, guests: &[String]) -> Self {
        Self {
            past: sees.clone(),
            sees,
            nested: BTreeSet::new(),
            guests: guests.iter().cloned().collect(),
        }
    }

    /// The successor as it comes up on the machine `all`: on what the plan gives it, and what both hosts see.
    pub fn booted(all: &Inventory, plan: &Plan) -> Self {
        let others = all
            .cpus
            .iter()
            .filter(|cpu| !plan.cpus.iter().any(|own| own.apic == cpu.apic));
        let cpus = plan
            .cpus
            .iter()
            .map(|cpu| (cpu, true))
            .chain(others.map(|cpu| (cpu, false)));
        let cpu = |((cpu, online), n): ((&Cpu, bool), u32)| Cpu {
            number: CpuNumber(n),
            online,
            ..cpu.clone()
        };
        let size = all.block_size;
        let starts: BTreeSet<u64> = plan
            .memory
            .iter()
            .flat_map(|r| (r.start() / size * size..r.end()).step_by(size as usize))
            .collect();
        let block = |range| MemoryBlock {
            removable: false,
            ..fresh_block(range, BlockState::Online)
        };
        let functions = all
            .functions
            .iter()
            .filter(|function| function.bridge || plan.functions.contains(function));
        let sees = Inventory {
            generation: plan.generation.next(),
            cpus: cpus.zip(0..).map(cpu).collect(),
            blocks: starts
                .iter()
                .filter_map(|&start| MemRange::with_len(start, size))
                .map(block)
                .collect(),
            ram: plan.memory.clone(),
            spare: 0,
            functions: functions.cloned().collect(),
            unreclaimed: Vec::new(),
            ..all.clone()
        };
        let past = Inventory {
            blocks: Vec::new(),
            ..sees.clone()
        };
        let nested = plan.cpus.iter().map(|cpu| cpu.apic).collect();
        Self {
            sees,
            past,
            nested,
            guests: BTreeSet::new(),
        }
    }

    pub fn slot(&self) -> Slot {
        self.sees.generation.slot()
    }

    pub fn remove_memory(&mut self, range: MemRange, online: bool) {
        let sees = &mut self.sees;
        let block = sees
            .blocks
            .iter()
            .find(|block| block.range == range)
            .expect("the block is there");
        assert!(block.removable);
        assert_eq!(block.is_online(), online);
        if online {
            sees.spare = sees
                .spare
                .checked_sub(range.len())
                .expect("more than it can do without");
        }
        sees.blocks.retain(|block| block.range != range);
        sees.ram = cut(&sees.ram, range);
    }

    pub fn add_memory(&mut self, range: MemRange, online: bool) {
        let sees = &mut self.sees;
        assert_eq!(range.len(), sees.block_size);
        assert!(
            sees.blocks.iter().all(|block| !block.range.overlaps(range)),
            "{range} is there already"
        );
        let state = if online {
            BlockState::Online
        } else {
            BlockState::Offline
        };
        let known = self.past.blocks.iter().find(|block| block.range == range).cloned();
        let block = known.unwrap_or(fresh_block(range, state));
        assert_eq!(block.state, state);
        if online {
            sees.spare += range.len();
        }
        sees.blocks.push(block);
        sees.blocks.sort_by_key(|block| block.range);
        sees.ram.push(range);
        sees.ram = join(&sees.ram);
    }

    pub fn switch_cpu(&mut self, apic: ApicId, online: bool) {
        let cpu = self
            .sees
            .cpus
            .iter_mut()
            .find(|cpu| cpu.apic == apic)
            .expect("Linux knows the CPU");
        assert_ne!(cpu.number, CpuNumber(0), "the boot CPU");
        assert_ne!(cpu.online, online);
        cpu.online = online;
        // A CPU that comes up in a host that is being watched comes up nested.
        if online && !self.nested.is_empty() {
            self.nested.insert(apic);
        }
    }

    pub fn remove_function(&mut self, address: PciAddress) {
        let function = self
            .sees
            .functions
            .iter()
            .find(|f| f.address == address)
            .expect("the function is there");
        assert!(function.busy.is_none() && !function.bridge);
        self.sees.functions.retain(|f| f.address != address);
    }

    pub fn find_function(&mut self, function: PciFunction) {
        let address = function.address;
        assert!(
            self.sees.functions.iter().all(|f| f.address != address),
            "{address} is there already"
        );
        self.sees.functions.push(function);
        self.sees.functions.sort_by_key(|f| f.address);
    }

    pub fn runs_on(&self, apic: ApicId) -> bool {
        self.sees.cpu(apic).is_some_and(|cpu| cpu.online)
    }

    /// Whether L0 watches all that it does.
    pub fn all_nested(&self) -> bool {
        self.sees.online_cpus().all(|cpu| self.nested.contains(&cpu.apic))
    }
}

fn fresh_block(range: MemRange, state: BlockState) -> MemoryBlock {
    MemoryBlock {
        range,
        state,
        removable: true,
        free: 0,
        node: NodeId(0),
        kept: None,
        foreign: None,
    }
}

/// The ranges without what is in `out`.
pub fn cut(ranges: &[MemRange], out: MemRange) -> Vec<MemRange> {
    let pieces = |range: &MemRange| {
        let below = MemRange::new(range.start(), range.end().min(out.start()));
        [below, MemRange::new(range.start().max(out.end()), range.end())]
    };
    ranges.iter().flat_map(pieces).flatten().collect()
}

/// Adjacent ranges joined, as `/proc/iomem` shows RAM.
pub fn join(ranges: &[MemRange]) -> Vec<MemRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort();
    let mut joined: Vec<MemRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.end() == range.start() => *last = MemRange::new(last.start(), range.end()).unwrap(),
            _ => joined.push(range),
        }
    }
    joined
}
