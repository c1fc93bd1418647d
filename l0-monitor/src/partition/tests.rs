//! What the partition decides, on a machine with 4 GiB of RAM, a pool and one IOAPIC.

use firmware_shim::e820::{E820Map, MemoryType as RangeType};
use locum_abi::{Errno, Grant, HostState, PAGE_SIZE, Slot, StopReason};

use super::device::Latches;
use super::first_map::{BIOS, MIB};
use super::*;
use crate::arch::paging::LARGE_PAGE;
use crate::machine::{self, IoApic as FoundIoApic};
use crate::nested::model::Model;

/// A CPU that no other test moves.
const OTHER_CPU: CpuIndex = CpuIndex::new(locum_abi::MAX_CPUS - 1).unwrap();

const EVEN: Slot = Slot::Even;
const ODD: Slot = Slot::Odd;
/// Memory that the tests grant.
const GRANTED: (u64, u64) = (0x4800_0000, 0x5000_0000);
const POOL: [u64; 2] = [0x6000_0000, 0x7000_0000];
const IOAPIC: u64 = 0xfec0_0000;
/// Behind all RAM, where a device could be.
const DEVICE: u64 = 0xe000_0000;

/// Reserved memory with registers of the firmware's.
const BLANK: Span = Span {
    start: 0x8100_0000,
    end: 0x8100_2000,
};

const L0: Place = Place::new(0x20_0000);
const LOW_SLICES: PerSlot<Span> = PerSlot::new(
    Span {
        start: 0x1_0000,
        end: 0x3_0000,
    },
    Span {
        start: 0x5_0000,
        end: 0x7_0000,
    },
);

fn machine() -> Machine {
    let mut machine = Machine::EMPTY;
    machine.l0 = L0;
    machine.low_slices = LOW_SLICES;
    let mut e820 = E820Map::new();
    e820.set(0..0xa_0000, RangeType::Usable).unwrap();
    e820.set(MIB..0x8000_0000, RangeType::Usable).unwrap();
    e820.set(0x8000_0000..0x8200_0000, RangeType::Reserved).unwrap();
    machine.e820 = e820;
    machine.blank.push(BLANK);
    for start in POOL {
        machine.pool.push(Span {
            start,
            end: start + MIB,
        });
    }
    machine.ioapics.push(FoundIoApic {
        address: IOAPIC,
        gsi_base: 0,
        pins: 24,
    });
    machine::publish(machine.clone());
    machine
}

/// The first host alone.
fn alone() -> Partition {
    let partition = Partition::new();
    partition.init(&machine()).unwrap();
    partition
}

/// The even host has granted memory; nobody runs there.
fn preparing() -> Partition {
    let partition = alone();
    let (start, end) = GRANTED;
    assert_eq!(partition.grant(Grant::Memory { start, end }, EVEN), Ok(()));
    partition
}

/// Two hosts run. (The successor has no CPU: that it starts on one of its own is shown below.)
fn two() -> Partition {
    let partition = preparing();
    let mut state = partition.state.lock();
    state.two = true;
    state.set_fixed_memory(ODD).unwrap();
    state.set_host(ODD, HostState::Running);
    drop(state);
    partition
}

#[test]
fn one_host_has_everything_but_l0() {
    let partition = alone();
    assert!(partition.may_touch(EVEN, 0x4800_0000, 4096));
    for start in POOL {
        assert!(partition.may_touch(EVEN, start, 4096));
    }
    for (address, bytes) in [
        (L0.private().start, 8),
        (L0.shared().start, 8),
        (IOAPIC, 4),
        (u64::MAX - 3, 8),
        (1 << 50, 8),
    ] {
        assert!(!partition.may_touch(EVEN, address, bytes), "{address:#x}");
    }
    assert_eq!(partition.violation(EVEN, L0.private().start, false), Violation::Refused);
}

#[test]
fn every_piece_of_the_pool_is_both_hosts() {
    let partition = preparing();
    for host in [EVEN, ODD] {
        for start in POOL {
            assert!(partition.may_touch(host, start, 4096), "{start:#x}");
            assert!(partition.may_touch(host, start + MIB - 8, 8), "{start:#x}");
        }
    }
    assert!(
        !partition.may_touch(ODD, POOL[1] + MIB, 8),
        "what follows it is the first host's"
    );
}

#[test]
fn a_granted_page_is_the_others_at_once() {
    let partition = preparing();
    let (start, end) = GRANTED;
    assert!(!partition.may_touch(EVEN, start, 8));
    assert!(partition.may_touch(EVEN, end, 8));
    assert!(!partition.may_touch(EVEN, start - 4, 8), "half of it");
    let again = partition.grant(Grant::Memory { start, end }, EVEN);
    assert_eq!(again, Err(Errno::NotOwner));
    assert_eq!(partition.violation(EVEN, start, true), Violation::Refused);
}

#[test]
fn what_a_successors_access_comes_to() {
    let partition = two();
    for (slot, address, write, expected) in [
        (ODD, 0x1000_0000, false, Violation::Fatal),
        (ODD, DEVICE, true, Violation::Refused),
        (ODD, IOAPIC, true, Violation::IoApic),
        (ODD, BIOS, true, Violation::Refused),
        (ODD, L0.slot_area(EVEN).start, true, Violation::Fatal),
        (EVEN, L0.slot_area(ODD).start, true, Violation::Refused),
        (EVEN, GRANTED.0, true, Violation::Refused),
        (EVEN, IOAPIC, false, Violation::IoApic),
    ] {
        assert_eq!(
            partition.violation(slot, address, write),
            expected,
            "{slot:?} {address:#x}"
        );
    }
    assert!(partition.may_touch(ODD, L0.slot_area(ODD).start, 8));
}

/// What the EPT of the host in `slot` has at `address`, made anew.
fn mapped(partition: &Partition, slot: Slot, address: u64) -> u64 {
    let tables: std::vec::Vec<_> = (0..16).map(|_| ept::Table::new()).collect();
    let mut state = partition.state.lock();
    let kept = core::mem::replace(&mut state.epts[slot], Ept::new(tables.leak(), false));
    state
        .map(slot, BLANK.start - LARGE_PAGE, BLANK.end + LARGE_PAGE)
        .unwrap();
    let (entry, _) = state.epts[slot].lookup(address);
    state.epts[slot] = kept;
    entry
}

#[test]
fn the_firmwares_reports_are_the_reigning_hosts() {
    const ALL: u64 = 7;
    const WRITE: u64 = 2;
    let partition = two();
    let page = |entry: u64| entry & crate::arch::paging::ADDRESS;
    for address in [BLANK.start, BLANK.end - PAGE_SIZE] {
        let own = mapped(&partition, EVEN, address);
        assert_eq!((page(own), own & ALL), (address, ALL));
        let blank = mapped(&partition, ODD, address);
        assert_eq!(page(blank), pages::zeroes(), "{address:#x}");
        assert_eq!(blank & WRITE, 0, "what a successor writes there goes nowhere");
        assert_eq!(partition.violation(ODD, address, true), Violation::Refused);
        assert!(partition.may_touch(EVEN, address, 8) && !partition.may_touch(ODD, address, 8));
    }
    for beside in [BLANK.start - PAGE_SIZE, BLANK.end] {
        assert_eq!(mapped(&partition, ODD, beside), 0, "{beside:#x}");
        assert_eq!(mapped(&partition, EVEN, beside) & ALL, ALL, "{beside:#x}");
    }
    // The incumbent has retired.
    {
        let mut state = partition.state.lock();
        state.owners.give_all(ODD);
        state.two = false;
    }
    assert_eq!(page(mapped(&partition, ODD, BLANK.start)), BLANK.start);
    assert!(partition.may_touch(ODD, BLANK.start, 8));
    // The next successor is in the other slot.
    partition.state.lock().two = true;
    assert_eq!(page(mapped(&partition, EVEN, BLANK.start)), pages::zeroes());
}

#[test]
fn a_start_needs_a_cpu_and_memory_of_the_successors() {
    let partition = preparing();
    let latches = Latches::default();
    let cpu = CpuIndex::FIRST;
    let begin = |partition: &Partition, addresses| partition.begin_two(EVEN, cpu, false, addresses, &latches);
    assert_eq!(
        begin(&partition, [GRANTED.0, GRANTED.0]),
        Err(Errno::NotOwner),
        "the CPU"
    );
    partition.state.lock().owners.give(Resource::Cpu(cpu), EVEN).unwrap();
    assert_eq!(
        begin(&partition, [GRANTED.0, 0x1000]),
        Err(Errno::NotOwner),
        "the zero page"
    );
    assert_eq!(
        begin(&partition, [GRANTED.0, GRANTED.0]),
        Err(Errno::NotParked),
        "it was never started"
    );
    let partition = two();
    assert_eq!(begin(&partition, [GRANTED.0; 2]), Err(Errno::State), "two hosts run");
}

#[test]
fn nobody_leaves_or_grants_beside_another_host() {
    for partition in [preparing(), two()] {
        assert_eq!(partition.leave(CpuIndex::FIRST, EVEN), Err(Errno::State));
    }
    let pin = Grant::Pin { gsi: 9 };
    assert_eq!(two().grant(pin, EVEN), Err(Errno::State));
    assert_eq!(preparing().grant(pin, EVEN), Ok(()));
}

/// IOAPICs of a server with four sockets (addresses and GSI of pin 0 as its boot log has them).
const FOUR_SOCKETS: [(u64, u32); 17] = [
    (0xfec0_0000, 0),
    (0xfec0_1000, 24),
    (0xfec0_8000, 32),
    (0xfec1_0000, 40),
    (0xfec1_8000, 48),
    (0xfec2_0000, 72),
    (0xfec2_8000, 80),
    (0xfec3_0000, 88),
    (0xfec3_8000, 96),
    (0xfec4_0000, 120),
    (0xfec4_8000, 128),
    (0xfec5_0000, 136),
    (0xfec5_8000, 144),
    (0xfec6_0000, 168),
    (0xfec6_8000, 176),
    (0xfec7_0000, 184),
    (0xfec7_8000, 192),
];

#[test]
fn every_ioapic_of_a_large_machine_is_served() {
    let mut machine = machine();
    machine.ioapics = FOUR_SOCKETS
        .into_iter()
        .map(|(address, gsi_base)| FoundIoApic {
            address,
            gsi_base,
            pins: 8,
        })
        .collect();
    let partition = Partition::new();
    partition.init(&machine).unwrap();
    partition.state.lock().two = true;
    let mut hw = Model::new(0, 0);
    for (address, gsi) in FOUR_SOCKETS {
        assert_eq!(
            partition.violation(ODD, address, true),
            Violation::IoApic,
            "{address:#x}"
        );
        for (slot, index) in [(EVEN, 0x12), (ODD, 0x14)] {
            partition.ioapic(&mut hw, slot, address, Some(index));
        }
        assert_eq!(partition.ioapic(&mut hw, EVEN, address, None), 0x12, "{address:#x}");
        assert_eq!(partition.state.lock().owners.pin(gsi + 7), EVEN);
    }
}

#[test]
fn more_ioapics_than_can_be_filtered_refuse_a_second_host() {
    let partition = preparing();
    partition.state.lock().too_many_ioapics = true;
    partition
        .state
        .lock()
        .owners
        .give(Resource::Cpu(OTHER_CPU), EVEN)
        .unwrap();
    stage::take(OTHER_CPU, Step::ComeUp).unwrap();
    stage::take(OTHER_CPU, Step::Settle).unwrap();
    let latches = Latches::default();
    let begun = partition.begin_two(EVEN, OTHER_CPU, false, [GRANTED.0; 2], &latches);
    assert_eq!(begun, Err(Errno::NoSpace));
}

#[test]
fn nobody_leaves_before_a_stopped_host_is_cleared_away() {
    let partition = preparing();
    assert_eq!(partition.condemn(EVEN), Ok(()));
    assert_eq!(partition.leave(CpuIndex::FIRST, EVEN), Err(Errno::State));
}

#[test]
fn who_may_stop_whom() {
    assert_eq!(alone().condemn(EVEN), Err(Errno::State), "there is nobody");
    let partition = two();
    assert_eq!(partition.condemn(ODD), Err(Errno::State), "the incumbent lives");
    let died = |partition: &Partition, slot| partition.declare_dead(slot, StopReason::TripleFault, [0; 3], 0);
    assert_eq!(died(&partition, EVEN), Some(Survivor::Other));
    assert_eq!(died(&partition, EVEN), None, "once");
    assert_eq!(partition.condemn(ODD), Ok(()));
    let partition = two();
    assert_eq!(partition.condemn(EVEN), Ok(()));
    assert_eq!(
        partition.start_mode(CpuIndex::FIRST, ODD),
        None,
        "a dead host starts no CPU"
    );
}

#[test]
fn a_living_incumbent_is_taken_only_if_it_yields() {
    let partition = two();
    assert_eq!(
        partition.set_will(ODD, Will::Yield),
        Err(Errno::State),
        "not the other's"
    );
    assert_eq!(partition.set_will(EVEN, Will::Pass), Ok(()));
    assert_eq!(partition.condemn(ODD), Err(Errno::State));
    assert_eq!(partition.set_will(EVEN, Will::Yield), Ok(()));
    // It is on its way out at this very moment.
    assert_eq!(partition.begin_retiring(EVEN), Ok(()));
    assert_eq!(partition.condemn(ODD), Err(Errno::State));
    partition.cancel_retiring();
    assert_eq!(partition.condemn(ODD), Ok(()));
    assert_eq!(
        partition.start_mode(CpuIndex::FIRST, EVEN),
        None,
        "what is taken starts no CPU"
    );
    assert_eq!(partition.begin_retiring(EVEN), Err(Errno::State));
    let mut hw = Model::new(0, 0);
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Absent), Ok(()));
    let state = partition.state.lock();
    assert_eq!((state.owners.reigning(), state.generation), (ODD, 1));
    assert_eq!(state.will, Will::Pass, "the next host has not said anything yet");
    drop(state);
    assert_eq!(partition.set_will(EVEN, Will::Reset), Err(Errno::State), "it is gone");
    assert_eq!(
        partition.set_will(ODD, Will::Yield),
        Err(Errno::State),
        "nobody is there to take it"
    );
}

#[test]
fn of_two_hosts_that_want_each_other_stopped_one_lives() {
    for first in [EVEN, ODD] {
        let partition = two();
        assert_eq!(partition.set_will(EVEN, Will::Yield), Ok(()));
        assert_eq!(partition.condemn(first), Ok(()));
        assert_eq!(partition.condemn(first.other()), Err(Errno::State), "it is dead");
        assert_eq!(partition.state.lock().hosts[first], HostState::Running);
    }
}

/// An OUT that resets the machine.
const RESET: IoAccess = IoAccess {
    port: 0xcf9,
    size: 1,
    input: false,
    string: false,
};

#[test]
fn what_an_incumbents_end_means_is_its_will() {
    let mut hw = Model::new(0, 0);
    let died = |partition: &Partition, slot| partition.declare_dead(slot, StopReason::TripleFault, [0; 3], 0);
    for (will, survivor, reset) in [
        (None, Survivor::Other, Verdict::Power),
        (Some(Will::Pass), Survivor::Other, Verdict::Power),
        (Some(Will::Reset), Survivor::None, Verdict::Done),
    ] {
        let partition = two();
        if let Some(will) = will {
            assert_eq!(partition.set_will(EVEN, will), Ok(()));
        }
        assert_eq!(partition.port(&mut hw, EVEN, RESET, 6), reset, "{will:?}");
        assert_eq!(
            partition.port(&mut hw, ODD, RESET, 6),
            Verdict::Power,
            "never of a successor"
        );
        assert_eq!(died(&partition, EVEN), Some(survivor), "{will:?}");
        let partition = two();
        if let Some(will) = will {
            assert_eq!(partition.set_will(EVEN, will), Ok(()));
        }
        assert_eq!(died(&partition, ODD), Some(Survivor::Other), "it has no will");
    }
    // Said before there is a successor, for from its first moment on it holds.
    let partition = preparing();
    assert_eq!(partition.set_will(EVEN, Will::Reset), Ok(()));
    assert_eq!(died(&partition, EVEN), Some(Survivor::None));
}

#[test]
fn a_dead_incumbents_things_are_the_successors() {
    let partition = two();
    assert_eq!(
        partition.declare_dead(EVEN, StopReason::PoweredOff, [0; 3], 0),
        Some(Survivor::Other)
    );
    assert_eq!(partition.condemn(EVEN), Err(Errno::State), "the dead stop nobody");
    assert_eq!(partition.condemn(ODD), Ok(()));
    let mut hw = Model::new(0, 0);
    // A card of the incumbent's.
    let [vendor, command] = [0, 4].map(|register| 0x8000_0000 | 0x30 << 8 | register);
    hw.pci.insert(vendor, 0x1234_8086);
    hw.pci.insert(command, 7);
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Absent), Ok(()));
    assert_eq!(hw.pci[&command], 0x403, "it writes to nobody's memory any more");
    assert!(partition.may_touch(ODD, 0x1000_0000, 8) && !partition.may_touch(EVEN, 0x1000_0000, 8));
    let state = partition.state.lock();
    assert_eq!((state.owners.reigning(), state.generation), (ODD, 1));
    assert_eq!(state.hosts, PerSlot::new(HostState::Absent, HostState::Running));
}

#[test]
fn a_dump_is_a_state_of_its_own() {
    let mut hw = Model::new(0, 0);
    let died = |partition: &Partition, slot| partition.declare_dead(slot, StopReason::TripleFault, [0; 3], 0);
    let state = |partition: &Partition, slot: Slot| partition.state.lock().hosts[slot];
    assert_eq!(alone().begin_dump(EVEN), Err(Errno::State), "as without L0");
    assert_eq!(preparing().begin_dump(EVEN), Err(Errno::State));
    for slot in [EVEN, ODD] {
        let other = slot.other();
        let partition = two();
        assert_eq!(partition.begin_dump(slot), Ok(()));
        assert_eq!(state(&partition, slot), HostState::Dumping);
        assert_eq!(partition.begin_dump(slot), Err(Errno::State), "once");
        assert_eq!(
            partition.begin_retiring(EVEN),
            Err(Errno::State),
            "nobody is there who could"
        );
        assert_eq!(partition.condemn(slot), Err(Errno::State), "it stops nobody");
        // Its reset ends it, and not the machine.
        assert_eq!(partition.port(&mut hw, slot, RESET, 6), Verdict::Power);
        assert_eq!(died(&partition, slot), Some(Survivor::Other));
        assert_eq!(partition.condemn(other), Ok(()));
        // Taken by force, dump or not.
        let partition = two();
        assert_eq!(partition.begin_dump(slot), Ok(()));
        assert_eq!(partition.condemn(other), Ok(()));
        assert_eq!(state(&partition, slot), HostState::Dead);
        // The other one dies meanwhile: the dump goes on, and then nobody is left.
        let partition = two();
        assert_eq!(partition.begin_dump(slot), Ok(()));
        assert_eq!(died(&partition, other), Some(Survivor::Other));
        assert_eq!(died(&partition, slot), Some(Survivor::None));
    }
}

#[test]
fn a_dump_reads_zeroes_where_memory_is_anothers() {
    let theirs = 0x1000_0000;
    let partition = two();
    assert_eq!(partition.violation(ODD, theirs, false), Violation::Fatal);
    // The root, one for each level down to large pages, and one that all zeroes share.
    let tables: std::vec::Vec<_> = (0..4).map(|_| ept::Table::new()).collect();
    {
        let mut state = partition.state.lock();
        state.epts[ODD] = Ept::new(tables.leak(), true);
        state.map(ODD, theirs, theirs + LARGE_PAGE).unwrap();
        assert!(!state.epts[ODD].maps(theirs), "a host that lives does not see it");
    }
    assert_eq!(partition.begin_dump(ODD), Ok(()));
    assert_eq!(partition.violation(ODD, theirs + 0x5000, false), Violation::Retry);
    let (entry, _) = partition.state.lock().epts[ODD].lookup(theirs + 0x5000);
    assert_eq!(entry & crate::arch::paging::ADDRESS, pages::zeroes());
    assert_eq!(entry & 7, 5, "to be read only");
    assert!(
        !partition.state.lock().epts[ODD].maps(theirs + LARGE_PAGE),
        "no more than was asked for"
    );
    assert_eq!(partition.violation(ODD, theirs, true), Violation::Refused);
    assert_eq!(partition.violation(ODD, DEVICE, false), Violation::Refused);
    assert_eq!(
        partition.violation(ODD, L0.private().start, false),
        Violation::Retry,
        "zeroes, and not L0's"
    );
    // One table serves all that is another's as a whole, however much of it is read.
    for n in 0..64 {
        let address = theirs + n * LARGE_PAGE;
        assert_eq!(
            partition.violation(ODD, address, false),
            Violation::Retry,
            "{address:#x}"
        );
    }
    // When none is left, as for another GiB, an access is refused as any other.
    assert_eq!(partition.violation(ODD, 0x5800_0000, false), Violation::Refused);
    // What the host has itself stays as it is.
    assert_eq!(
        partition.violation(ODD, GRANTED.0, true),
        Violation::Refused,
        "the tables are used up"
    );
}

#[test]
fn a_dead_host_is_nobodys_survivor() {
    let partition = two();
    let died = |slot| partition.declare_dead(slot, StopReason::TripleFault, [0; 3], 0);
    assert_eq!(died(ODD), Some(Survivor::Other));
    assert_eq!(partition.leave_to_heir(EVEN, [0; 3], 0), Err(Errno::State));
    assert_eq!(
        partition.begin_retiring(EVEN),
        Err(Errno::State),
        "there is nobody to take over"
    );
    let mut hw = Model::new(0, 0);
    assert_eq!(
        partition.port(&mut hw, EVEN, RESET, 6),
        Verdict::Done,
        "it may reset the machine"
    );
    assert_eq!(died(EVEN), Some(Survivor::None), "the machine is reset");
}

#[test]
fn a_host_that_ends_by_itself_leaves_all_to_its_heir() {
    let partition = two();
    assert_eq!(partition.leave_to_heir(EVEN, [7, 8, 9], 0), Ok(true));
    assert_eq!(partition.state.lock().hosts[EVEN], HostState::Dead);
    assert_eq!(
        partition.leave_to_heir(EVEN, [0; 3], 0),
        Ok(false),
        "another CPU of it was first"
    );
    assert_eq!(partition.leave_to_heir(ODD, [0; 3], 0), Err(Errno::State));
    assert_eq!(partition.state.lock().hosts[ODD], HostState::Running);
}

#[test]
fn nothing_goes_to_a_host_that_died_meanwhile() {
    let partition = two();
    assert_eq!(partition.begin_retiring(EVEN), Ok(()));
    let _ = partition.declare_dead(ODD, StopReason::TripleFault, [0; 3], 0);
    let mut hw = Model::new(0, 0);
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Retired), Err(Errno::State));
    partition.cancel_retiring();
    assert!(partition.may_touch(EVEN, 0x1000_0000, 8));
    assert_eq!(partition.state.lock().hosts[EVEN], HostState::Running);
}

#[test]
fn an_aborted_hosts_things_go_back() {
    let partition = two();
    assert_eq!(partition.condemn(EVEN), Ok(()));
    let mut hw = Model::new(0, 0);
    assert_eq!(partition.end_two(&mut hw, EVEN, HostState::Absent), Ok(()));
    assert!(partition.may_touch(EVEN, GRANTED.0, 8));
    assert!(!partition.state.lock().two);
    let state = partition.state.lock();
    assert_eq!((state.owners.reigning(), state.generation), (EVEN, 0));
    drop(state);
    assert_eq!(partition.condemn(EVEN), Err(Errno::State));
}

/// What each word of a slot's slice is; none if they differ.
fn slice_word(hw: &mut Model, slot: Slot) -> Option<u64> {
    let Span { start, end } = LOW_SLICES[slot];
    let word = hw.read_phys(start, 8);
    (start..end)
        .step_by(8)
        .all(|at| hw.read_phys(at, 8) == word)
        .then_some(word)
}

#[test]
fn what_a_host_leaves_in_l0s_memory_and_its_slice_is_wiped() {
    let filled = || {
        let mut hw = Model::new(0, 0);
        for slot in Slot::ALL {
            let Span { start, end } = LOW_SLICES[slot];
            (start..end).step_by(0x1000).for_each(|page| hw.fill(page, !0));
            shared::wipe_slot(slot, |_| !0);
        }
        hw
    };
    let word = |slot| shared::page_zero_word(slot, 5);
    // Retired.
    let (partition, mut hw) = (two(), filled());
    assert_eq!(partition.begin_retiring(EVEN), Ok(()));
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Retired), Ok(()));
    assert_eq!((slice_word(&mut hw, EVEN), word(EVEN)), (Some(0), 0));
    assert_eq!((slice_word(&mut hw, ODD), word(ODD)), (Some(!0), !0));
    // Aborted.
    let (partition, mut hw) = (two(), filled());
    assert_eq!(partition.condemn(EVEN), Ok(()));
    assert_eq!(partition.end_two(&mut hw, EVEN, HostState::Absent), Ok(()));
    assert_eq!((slice_word(&mut hw, ODD), word(ODD)), (Some(0), 0));
    assert_eq!((slice_word(&mut hw, EVEN), word(EVEN)), (Some(!0), !0));
    // Prepared and never started: what was loaded for it may be given once more.
    let (partition, mut hw) = (preparing(), filled());
    assert_eq!(partition.condemn(EVEN), Ok(()));
    assert_eq!(partition.end_two(&mut hw, EVEN, HostState::Absent), Ok(()));
    assert_eq!((slice_word(&mut hw, ODD), word(ODD)), (Some(!0), !0));
    // Not after all.
    let (partition, mut hw) = (two(), filled());
    assert_eq!(partition.begin_retiring(EVEN), Ok(()));
    let _ = partition.declare_dead(ODD, StopReason::TripleFault, [0; 3], 0);
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Retired), Err(Errno::State));
    assert_eq!((slice_word(&mut hw, EVEN), word(EVEN)), (Some(!0), !0));
}

#[test]
fn a_retired_hosts_things_are_the_successors() {
    let partition = two();
    assert_eq!(partition.begin_retiring(ODD), Err(Errno::State));
    assert_eq!(partition.begin_retiring(EVEN), Ok(()));
    assert_eq!(
        partition.start_mode(CpuIndex::FIRST, EVEN),
        None,
        "it starts no CPU any more"
    );
    let mut hw = Model::new(0, 0);
    assert_eq!(partition.end_two(&mut hw, ODD, HostState::Retired), Ok(()));
    assert!(partition.may_touch(ODD, 0x1000_0000, 8));
    assert!(!partition.may_touch(EVEN, 0x1000_0000, 8));
    let state = partition.state.lock();
    assert_eq!((state.owners.reigning(), state.generation), (ODD, 1));
    assert_eq!(state.hosts[EVEN], HostState::Retired);
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter, and each is in other tests")]
fn nothing_grows_from_refresh_to_refresh() {
    let partition = alone();
    for slot in Slot::ALL {
        let tables: std::vec::Vec<_> = (0..64).map(|_| ept::Table::new()).collect();
        partition.state.lock().epts[slot] = Ept::new(tables.leak(), false);
    }
    let mut hw = Model::new(0, 0);
    let mut seen = std::vec::Vec::new();
    for generation in 0..20 {
        let from = Slot::of_generation(generation);
        let to = from.other();
        // The first try is aborted each time.
        for aborted in [true, false] {
            for block in [0x2000_0000, 0x4800_0000] {
                let (start, end) = (block, block + 0x800_0000);
                assert_eq!(partition.grant(Grant::Memory { start, end }, from), Ok(()));
            }
            {
                let mut guard = partition.state.lock();
                let state = &mut *guard;
                state.two = true;
                state.set_fixed_memory(to).unwrap();
                state.epts[to].clear();
                state.rebuild(from).unwrap();
                state.rebuild(to).unwrap();
                state.set_host(to, HostState::Running);
            }
            if aborted {
                assert_eq!(partition.condemn(from), Ok(()));
                assert_eq!(partition.end_two(&mut hw, from, HostState::Absent), Ok(()));
            } else {
                assert_eq!(partition.begin_retiring(from), Ok(()));
                assert_eq!(partition.end_two(&mut hw, to, HostState::Retired), Ok(()));
            }
        }
        let state = partition.state.lock();
        seen.push((
            state.owners.memory.stretches(),
            PerSlot::from_fn(|slot| state.epts[slot].tables_below()),
        ));
    }
    let told = shared::status().usage();
    assert!(told.0 > 1 && told.1.iter().any(|(_, tables)| *tables > 0), "{told:?}");
    for (generation, pair) in seen.windows(3).enumerate().skip(1) {
        assert_eq!(pair[0], pair[2], "generation {generation} and two later");
    }
}
