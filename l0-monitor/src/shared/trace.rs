//! Writing trace records: to the ring, and to what is kept of each kind.
//!
//! Any number of CPUs write at once, and none waits for another. Two meet in one place only if one of them is overtaken
//! by a whole ring: that garbles this record and nothing else.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Release},
    fence,
};

use locum_abi::trace::{BEING_WRITTEN, KEPT_KINDS, KEPT_RECORDS, TRACE_RECORDS};
use locum_abi::{Event, KeptRecord, KeptRing, TraceRecord, TraceRing};

/// Where records go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rings {
    ring: *mut TraceRing,
    kept: *mut [KeptRing; KEPT_KINDS],
}

impl Rings {
    /// # Safety
    /// Both are valid as long as the value is, aligned, and written through values of this type only; whoever reads them
    /// meanwhile does so through raw pointers.
    pub(super) const unsafe fn new(ring: *mut TraceRing, kept: *mut [KeptRing; KEPT_KINDS]) -> Self {
        Self { ring, kept }
    }

    /// Appends a record of this time and CPU.
    pub(super) fn write(self, event: Event, (tsc, cpu): (u64, u16)) {
        let (kind, a, b, c) = event.encode();
        let record = TraceRecord {
            tsc,
            kind: kind as u16,
            cpu,
            a,
            b,
            c,
        };
        // SAFETY: the places are inside the rings, by the remainders and since every kind has a ring; words are accessed
        // atomically, records by `write_volatile`. Only these rings' writers are there, see the module.
        unsafe {
            let number = next(&raw mut (*self.ring).written);
            let place = (&raw mut (*self.ring).records).cast::<TraceRecord>();
            place
                .add((number % TRACE_RECORDS as u64) as usize)
                .write_volatile(record);

            let kept = self.kept.cast::<KeptRing>().add(kind as usize);
            let of_kind = next(&raw mut (*kept).written);
            let place = (&raw mut (*kept).records).cast::<KeptRecord>();
            let place = place.add((of_kind % KEPT_RECORDS as u64) as usize);
            let name = AtomicU64::from_ptr(&raw mut (*place).number);
            name.store(BEING_WRITTEN, Release);
            fence(Release);
            (&raw mut (*place).record).write_volatile(record);
            name.store(number, Release);
        }
    }
}

/// Number of the next record of a ring.
///
/// # Safety
/// The word is valid and only accessed atomically.
unsafe fn next(written: *mut u64) -> u64 {
    // SAFETY: the caller vouches for it.
    unsafe { AtomicU64::from_ptr(written) }.fetch_add(1, AcqRel)
}

#[cfg(test)]
mod tests {
    use std::alloc::{Layout, alloc_zeroed};
    use std::vec::Vec;

    use locum_abi::{Errno, Grant, Op, Slot, StopReason, TraceKind, Will};

    use super::*;

    /// Rings on the heap, never freed: they are zeroed where they are, since they are too large for a stack.
    struct Bed {
        rings: Rings,
        clock: u64,
    }

    fn zeroed<T>() -> *mut T {
        // SAFETY: the layout has a size.
        unsafe { alloc_zeroed(Layout::new::<T>()) }.cast()
    }

    impl Bed {
        fn new() -> Self {
            // SAFETY: fresh memory, never freed.
            let rings = unsafe { Rings::new(zeroed(), zeroed()) };
            Self { rings, clock: 0 }
        }

        fn write(&mut self, event: Event) {
            self.rings.write(event, (self.clock, 0));
            self.clock += 1;
        }

        /// What is kept, in order.
        fn kept(&self) -> Vec<(u64, Event)> {
            // SAFETY: nobody writes meanwhile.
            let kept = unsafe { &*self.rings.kept };
            let all = kept.iter().flat_map(|ring| &ring.records);
            let mut all: Vec<_> = all
                .filter_map(|kept| Some((kept.number, Event::decode(&kept.record)?)))
                .collect();
            all.sort_by_key(|(number, _)| *number);
            all
        }

        fn ring_kinds(&self) -> Vec<TraceKind> {
            // SAFETY: nobody writes meanwhile.
            let ring = unsafe { &*self.rings.ring };
            let kinds = ring
                .records
                .iter()
                .filter_map(|record| TraceKind::from_raw(record.kind));
            kinds.collect()
        }
    }

    /// One event of each kind. What a host can have L0 write at will comes last.
    fn one_of_each() -> [Event; KEPT_KINDS - 1] {
        let slot = Slot::Odd;
        let memory = Grant::Memory {
            start: 0x1000,
            end: 0x2000,
        };
        let [rip, vmcs, address, value] = [1, 2, 3, 4];
        [
            Event::Boot { cpus: 4 },
            Event::Park { from_nested: true },
            Event::Wake {
                nested: true,
                entry: rip,
                zero_page: 0,
            },
            Event::Enter {
                in_vmx: true,
                vmcs: Some(vmcs),
            },
            Event::Leave {
                in_vmx: true,
                vmcs: None,
                given_back: 1,
            },
            Event::Owner {
                grant: memory,
                to: slot,
            },
            Event::HostStart {
                slot,
                entry: rip,
                zero_page: address,
            },
            Event::HostDead {
                slot,
                reason: StopReason::WildAccess,
                detail: [rip, address],
            },
            Event::HostRetired { slot },
            Event::CpuTaken { slot },
            Event::VmxFail {
                instruction: 23,
                rflags: 1,
                field: 2,
            },
            Event::Fault {
                vector: 14,
                rip,
                detail: address,
            },
            Event::VmcsChecked {
                same: true,
                field: None,
                vmcs,
                difference: 0,
            },
            Event::MachineCheck {
                to_host: true,
                status: 5,
            },
            Event::MachineCheckBank {
                bank: 1,
                status: 1 << 63,
                address,
            },
            Event::CallRefused {
                errno: Errno::State,
                op: Some(Op::Leave),
                argument: 0,
            },
            Event::MailboxRefused {
                command: 9,
                apic_id: 1,
                vector: rip,
            },
            Event::PortDenied {
                port: 0x2f8,
                size: 1,
                write: None,
            },
            Event::PinDenied { gsi: 9, value: 0x31 },
            Event::PciDenied {
                address: 0x8000_0000,
                offset: 0,
                write: None,
            },
            Event::Inject {
                vector: 6,
                error: 0,
                rip,
            },
            Event::MemoryDenied {
                qualification: 1,
                address,
                rip,
            },
            Event::PowerFiltered {
                port: 0x604,
                value: value as u32,
            },
            Event::FieldTrapped {
                field: 0x6800,
                write: true,
                times: 1,
            },
            Event::Will {
                slot,
                will: Will::Yield,
            },
            Event::HostDumps { slot },
        ]
    }

    /// Too many for the ring many times over; a few under an interpreter.
    const FLOOD: usize = if cfg!(miri) { 2 * TRACE_RECORDS } else { 1_000_000 };

    #[test]
    fn a_flood_of_one_kind_leaves_all_others() {
        let events = one_of_each();
        let floods = if cfg!(miri) { 1 } else { events.len() };
        for (i, flood) in events.into_iter().enumerate().rev().take(floods) {
            let mut bed = Bed::new();
            for event in events {
                bed.write(event);
            }
            for _ in 0..FLOOD {
                bed.write(flood);
            }
            let (kind, ..) = flood.encode();
            assert!(bed.ring_kinds().iter().all(|in_ring| *in_ring == kind), "{kind:?}");
            let kept = bed.kept();
            let expected = (0..).zip(events).filter(|(number, _)| *number != i as u64);
            assert!(kept.iter().copied().take(events.len() - 1).eq(expected), "{kind:?}");
            let last = events.len() as u64 + FLOOD as u64;
            let flooded = kept[events.len() - 1..].iter().map(|(number, _)| *number);
            assert!(flooded.eq(last - KEPT_RECORDS as u64..last), "{kind:?}: its newest");
        }
    }

    #[test]
    fn all_floods_at_once_leave_what_is_rare() {
        let events = one_of_each();
        let (rare, common) = events.split_at(15);
        let mut bed = Bed::new();
        for event in rare {
            bed.write(*event);
        }
        for event in common.iter().cycle().take(FLOOD) {
            bed.write(*event);
        }
        let kept = bed.kept();
        assert!(
            kept.iter()
                .copied()
                .take(rare.len())
                .eq((0..).zip(rare.iter().copied()))
        );
        assert_eq!(kept.len(), rare.len() + common.len() * KEPT_RECORDS);
    }

    #[test]
    fn a_round_of_all_cpus_is_whole() {
        let mut bed = Bed::new();
        for cpu in 0..locum_abi::MAX_CPUS as u64 {
            bed.write(Event::Enter {
                in_vmx: true,
                vmcs: Some(cpu << 12),
            });
            bed.write(Event::Wake {
                nested: true,
                entry: cpu,
                zero_page: 0,
            });
        }
        assert_eq!(bed.kept().len(), 2 * locum_abi::MAX_CPUS);
    }

    #[test]
    fn cpus_that_write_at_once_lose_nothing() {
        const EACH: u64 = KEPT_RECORDS as u64 / 4;
        struct Everywhere(Rings);
        // SAFETY: writing is what may be done on any CPU at any time.
        unsafe impl Sync for Everywhere {}
        let bed = Bed::new();
        let rings = &Everywhere(bed.rings);
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                scope.spawn(move || {
                    let Everywhere(rings) = *rings;
                    for n in 0..EACH {
                        let rip = u64::from(cpu) << 32 | n;
                        let event = Event::Inject {
                            vector: 6,
                            error: 0,
                            rip,
                        };
                        rings.write(event, (0, cpu));
                    }
                });
            }
        });
        let kept = bed.kept();
        assert!(kept.iter().map(|(number, _)| *number).eq(0..4 * EACH));
        for cpu in 0..4 {
            let rips = kept.iter().filter_map(|(_, event)| match event {
                Event::Inject { rip, .. } if rip >> 32 == cpu => Some(*rip & 0xffff_ffff),
                _ => None,
            });
            assert!(rips.eq(0..EACH), "each CPU's own order");
        }
    }
}
