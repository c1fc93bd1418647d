//! The shared region: all that hosts see of L0.
//!
//! Hosts may write to any of it at any time, so L0 never makes references to its contents: it reads and writes single
//! words, atomically, and trusts none of them for anything but reporting. The exceptions are mailboxes and the command
//! they carry, which are checked where CPUs park (`park.rs`).
#![expect(unsafe_code, reason = "memory that hosts write too is reached through raw pointers")]

pub(crate) mod layout;
mod trace;

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use locum_abi::channel::{CHANNEL_COUNT, RING_DATA};
use locum_abi::status::{EXIT_REASONS, NO_OWNER};
use locum_abi::trace::{LOG_BYTES, TRACE_RECORDS};
use locum_abi::{ChannelRing, CpuMode, Event, Header, HostState, Mailbox, PAGE_SIZE, StopReason};

use crate::id::{self, APIC_IDS, CpuIndex};
use layout::{Place, Region, Shared, SlotArea};
use locum_abi::{PerSlot, Slot};

// SAFETY: every access goes through raw pointers, by atomic or volatile words, or happens at boot on one CPU.
unsafe impl Sync for Shared {}

/// The last 2 MiB of L0's image: see the linker script.
// SAFETY: the section is zero-initialised memory like .bss, only its place differs.
#[unsafe(link_section = ".bss..shared")]
#[cfg_attr(test, expect(dead_code, reason = "tests have their own"))]
static REGION: Shared = Shared(UnsafeCell::new(layout::Filled {
    bytes: [0; layout::SIZE as usize],
}));

#[cfg(not(test))]
fn region() -> *mut Region {
    REGION.0.get().cast()
}

/// Each test has a region of its own.
#[cfg(test)]
fn region() -> *mut Region {
    use std::alloc::{Layout, alloc_zeroed};
    std::thread_local! {
        // SAFETY: the layout has a size.
        static OWN: *mut Region = unsafe { alloc_zeroed(Layout::new::<layout::Filled>()) }.cast();
    }
    OWN.with(|own| *own)
}

/// Pointer to a field of the region.
macro_rules! field {
    ($($path:tt)+) => {{
        // SAFETY: only an address inside the static is computed.
        unsafe { &raw mut (*region()).$($path)+ }
    }};
}

fn word32(pointer: *mut u32) -> &'static AtomicU32 {
    // SAFETY: every caller passes an aligned word inside the static region; words there are only accessed atomically.
    unsafe { AtomicU32::from_ptr(pointer) }
}

fn word64(pointer: *mut u64) -> &'static AtomicU64 {
    // SAFETY: as for `word32`.
    unsafe { AtomicU64::from_ptr(pointer) }
}

/// Adds one to a counter with a single writer.
fn count(pointer: *mut u64) {
    let word = word64(pointer);
    word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Publishes the header. Called once at boot.
pub(crate) fn set_header(header: Header) {
    let place = field!(header.0);
    // SAFETY: inside the static, and only the boot CPU runs.
    unsafe { place.write_volatile(header) };
}

/// Where L0's memory is.
pub(crate) fn place() -> Place {
    Place::new((region() as u64).wrapping_sub(layout::PRIVATE_SIZE))
}

/// Physical address of the header.
pub(crate) fn header_address() -> u64 {
    field!(header) as u64
}

/// Physical addresses of the parts that the header and the page tables name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// Status.
    pub(crate) status: u64,
    /// Trace ring.
    pub(crate) trace: u64,
    /// What is kept of each kind of its records.
    pub(crate) kept: u64,
    /// Log ring.
    pub(crate) log: u64,
    /// Copy of the machine's RSDP.
    pub(crate) machine_rsdp: u64,
    /// First channel ring.
    pub(crate) channels: u64,
    /// The pool's table.
    pub(crate) pool_table: u64,
}

/// Where the parts are.
pub(crate) fn addresses() -> Addresses {
    Addresses {
        status: field!(status) as u64,
        trace: field!(trace) as u64,
        kept: field!(kept) as u64,
        log: field!(log) as u64,
        machine_rsdp: field!(machine_rsdp) as u64,
        channels: field!(channels) as u64,
        pool_table: field!(pool_table) as u64,
    }
}

/// A slot's area; reached by raw pointer only.
pub(crate) fn slot_area(slot: Slot) -> *mut SlotArea {
    field!(slots).cast::<SlotArea>().wrapping_add(slot.index())
}

/// Physical address of a field of a slot's area, by its offset in [`SlotArea`].
pub(crate) fn slot_field(slot: Slot, offset: usize) -> u64 {
    slot_area(slot) as u64 + offset as u64
}

/// Physical address of the page that the host of `slot` sees at address 0 while nested.
pub(crate) fn page_zero(slot: Slot) -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw mut (*slot_area(slot)).page_zero as u64 }
}

/// Physical address of the page tables on which a CPU is handed to the host of `slot`.
pub(crate) fn firmware_cr3(slot: Slot) -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw mut (*slot_area(slot)).firmware_tables as u64 }
}

/// The same for a CPU with five-level paging.
pub(crate) fn firmware_cr3_five(slot: Slot) -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw mut (*slot_area(slot)).firmware_tables.pml5 as u64 }
}

/// Physical address of the GDT with which a CPU is handed to the host of `slot`.
pub(crate) fn firmware_gdt(slot: Slot) -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw mut (*slot_area(slot)).gdt as u64 }
}

/// Says how the CPU with `apic_id` comes back when a host gives it up. Ids above 255 are ignored.
pub(crate) fn set_reset_mode(apic_id: u32, nested: bool) {
    for slot in Slot::ALL {
        // SAFETY: only an address is computed.
        let modes = unsafe { &raw mut (*slot_area(slot)).reset_vector.data.nested }.cast::<u8>();
        if (apic_id as usize) < APIC_IDS {
            // SAFETY: inside the table, a byte that is only accessed atomically once a CPU may use it.
            let mode = unsafe { AtomicU8::from_ptr(modes.add(apic_id as usize)) };
            mode.store(u8::from(nested), Release);
        }
    }
}

/// The status.
pub(crate) const fn status() -> StatusView {
    StatusView(())
}

/// Access to the status, word by word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusView(());

impl StatusView {
    /// Sets the generation of the reigning host.
    pub(crate) fn set_generation(self, generation: u32) {
        word32(field!(status.0.generation)).store(generation, Release);
    }

    /// Sets the number of CPUs.
    pub(crate) fn set_cpu_count(self, count: u32) {
        word32(field!(status.0.cpu_count)).store(count, Relaxed);
    }

    /// Counts a refused request.
    pub(crate) fn count_refusal(self) {
        word64(field!(status.0.refusals)).fetch_add(1, Relaxed);
    }

    /// Sets what L0 uses of its tables: stretches of memory, and EPT tables per slot.
    pub(crate) fn set_usage(self, stretches: usize, ept_tables: PerSlot<usize>) {
        let clamp = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        word32(field!(status.0.memory_stretches)).store(clamp(stretches), Relaxed);
        for slot in Slot::ALL {
            let place = field!(status.0.ept_tables).cast::<u32>().wrapping_add(slot.index());
            word32(place).store(clamp(ept_tables[slot]), Relaxed);
        }
    }

    /// What [`Self::set_usage`] was told last.
    #[cfg(test)]
    pub(crate) fn usage(self) -> (u32, PerSlot<u32>) {
        let tables = field!(status.0.ept_tables).cast::<u32>();
        (
            word32(field!(status.0.memory_stretches)).load(Relaxed),
            PerSlot::from_fn(|slot| word32(tables.wrapping_add(slot.index())).load(Relaxed)),
        )
    }

    /// The host of a slot.
    pub(crate) const fn host(self, slot: Slot) -> HostView {
        HostView(slot)
    }

    /// A CPU.
    pub(crate) const fn cpu(self, cpu: CpuIndex) -> CpuView {
        CpuView(cpu)
    }
}

/// Access to [`locum_abi::HostStatus`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostView(Slot);

impl HostView {
    fn pointer(self) -> *mut locum_abi::HostStatus {
        field!(status.0.hosts)
            .cast::<locum_abi::HostStatus>()
            .wrapping_add(self.0.index())
    }

    /// Sets the state. Whoever sees it also sees what was written before.
    pub(crate) fn set_state(self, state: HostState) {
        // SAFETY: only an address is computed.
        word32(unsafe { &raw mut (*self.pointer()).state }).store(state as u32, Release);
    }

    /// Sets why the host is dead and on which CPU (APIC id) it died; [`Self::set_state`] comes after it.
    pub(crate) fn set_reason(self, reason: StopReason, detail: [u64; 3], apic_id: u32) {
        let host = self.pointer();
        // SAFETY: only addresses are computed.
        unsafe {
            word32(&raw mut (*host).reason).store(reason as u32, Relaxed);
            for (i, value) in detail.into_iter().enumerate() {
                word64((&raw mut (*host).detail).cast::<u64>().wrapping_add(i)).store(value, Relaxed);
            }
            word32(&raw mut (*host).cpu).store(apic_id, Relaxed);
        }
    }

    /// Sets the host's generation.
    pub(crate) fn set_generation(self, generation: u32) {
        // SAFETY: only an address is computed.
        word32(unsafe { &raw mut (*self.pointer()).generation }).store(generation, Relaxed);
    }
}

/// Access to [`locum_abi::CpuStatus`]. Counters are written by that CPU only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuView(CpuIndex);

/// Counters of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Native to nested.
    Enters,
    /// Nested to native.
    Leaves,
    /// VM exits.
    Exits,
    /// Exits of guests.
    GuestExits,
    /// NMIs passed on.
    Nmis,
}

impl CpuView {
    fn pointer(self) -> *mut locum_abi::CpuStatus {
        field!(status.0.cpus)
            .cast::<locum_abi::CpuStatus>()
            .wrapping_add(self.0.get())
    }

    /// Sets the mode.
    pub(crate) fn set_mode(self, mode: CpuMode) {
        // SAFETY: only an address is computed.
        word32(unsafe { &raw mut (*self.pointer()).mode }).store(mode as u32, Release);
    }

    /// Sets the owner, for hosts to see.
    pub(crate) fn set_owner(self, owner: Option<Slot>) {
        let raw = owner.map_or(NO_OWNER, Slot::raw);
        // SAFETY: only an address is computed.
        word32(unsafe { &raw mut (*self.pointer()).owner }).store(raw, Release);
    }

    /// Sets the APIC id.
    pub(crate) fn set_apic_id(self, apic_id: u32) {
        // SAFETY: only an address is computed.
        word32(unsafe { &raw mut (*self.pointer()).apic_id }).store(apic_id, Relaxed);
    }

    /// Adds one to a counter.
    pub(crate) fn count(self, counter: Counter) {
        let cpu = self.pointer();
        // SAFETY: only an address is computed.
        count(unsafe {
            match counter {
                Counter::Enters => &raw mut (*cpu).enters,
                Counter::Leaves => &raw mut (*cpu).leaves,
                Counter::Exits => &raw mut (*cpu).exits,
                Counter::GuestExits => &raw mut (*cpu).guest_exits,
                Counter::Nmis => &raw mut (*cpu).nmis,
            }
        });
    }

    /// Counts an exit of the host by its basic reason.
    pub(crate) fn count_reason(self, basic_reason: u16) {
        let index = usize::from(basic_reason).min(EXIT_REASONS - 1);
        // SAFETY: only an address inside the array is computed.
        count(unsafe { (&raw mut (*self.pointer()).exits_by_reason).cast::<u64>().add(index) });
    }
}

/// Appends a record to the trace ring, and to what is kept of its kind.
pub(crate) fn trace(event: Event) {
    let (ring, kept) = (field!(trace.0), field!(kept.0));
    // SAFETY: inside the static; L0 writes records here and nowhere else, and hosts may only read them.
    let rings = unsafe { trace::Rings::new(ring, kept) };
    rings.write(event, stamp());
}

#[cfg(target_os = "none")]
fn stamp() -> (u64, u16) {
    (crate::arch::registers::tsc(), crate::arch::cpuid::apic_id() as u16)
}

#[cfg(not(target_os = "none"))]
fn stamp() -> (u64, u16) {
    (0, 0)
}

/// Appends bytes to the log ring. The logger's lock makes sure that there is one writer at a time.
pub(crate) fn log_bytes(bytes: &[u8]) {
    let written = word64(field!(log.0.written));
    let mut at = written.load(Relaxed);
    let text = field!(log.0.text).cast::<u8>();
    for &byte in bytes {
        // SAFETY: the index is inside the text.
        unsafe { text.add((at % LOG_BYTES as u64) as usize).write_volatile(byte) };
        at = at.wrapping_add(1);
    }
    written.store(at, Release);
}

/// The end of the log, as much of it as fits `buffer`.
pub(crate) fn log_tail(buffer: &mut [u8]) -> &[u8] {
    let written = word64(field!(log.0.written)).load(Acquire);
    let text = field!(log.0.text).cast::<u8>();
    let len = (buffer.len() as u64).min(written).min(LOG_BYTES as u64);
    for (at, byte) in (written - len..written).zip(buffer.iter_mut()) {
        // SAFETY: the index is inside the text.
        *byte = unsafe { text.add((at % LOG_BYTES as u64) as usize).read_volatile() };
    }
    buffer.get(..len as usize).unwrap_or_default()
}

/// Empties all channel rings, in both directions.
pub(crate) fn clear_channels() {
    let rings = field!(channels).cast::<ChannelRing>();
    for i in 0..2 * CHANNEL_COUNT {
        let ring = rings.wrapping_add(i);
        // SAFETY: only addresses inside the ring are computed.
        unsafe {
            for word in [
                &raw mut (*ring).head,
                &raw mut (*ring).flags,
                &raw mut (*ring).tail,
                &raw mut (*ring).closed,
            ] {
                word32(word).store(0, Release);
            }
        }
    }
}

/// Overwrites the bytes in all channel rings with zeroes. The positions stay: a module may be reading them.
pub(crate) fn wipe_channels() {
    let rings = field!(channels).cast::<ChannelRing>();
    for i in 0..2 * CHANNEL_COUNT {
        // SAFETY: only an address inside the ring is computed.
        let data = unsafe { &raw mut (*rings.wrapping_add(i)).data };
        fill(data.cast(), RING_DATA, |_| 0);
    }
}

/// Overwrites what the host of a slot had in its area: mailbox, tables (with its command line), and its page 0, which
/// becomes `page_zero` again. What only L0 and its module need, and says nothing of a host, stays.
pub(crate) fn wipe_slot(slot: Slot, page_zero: impl Fn(usize) -> u64) {
    let area = slot_area(slot);
    // SAFETY: only addresses inside the area are computed.
    let (mailbox, tables, zero) = unsafe {
        (
            &raw mut (*area).mailbox,
            &raw mut (*area).tables,
            &raw mut (*area).page_zero,
        )
    };
    fill(mailbox.cast(), size_of::<Mailbox>(), |_| 0);
    fill(tables.cast(), layout::TABLES_SIZE, |_| 0);
    fill(zero.cast(), PAGE_SIZE as usize, page_zero);
}

/// A word of the page that the host of `slot` sees at address 0.
pub(crate) fn page_zero_word(slot: Slot, index: usize) -> u64 {
    debug_assert!(index < PAGE_SIZE as usize / 8);
    word64((page_zero(slot) as *mut u64).wrapping_add(index)).load(Relaxed)
}

/// Stores a value for each word of `bytes` bytes inside the region.
fn fill(start: *mut u64, bytes: usize, value: impl Fn(usize) -> u64) {
    for index in 0..bytes / 8 {
        word64(start.wrapping_add(index)).store(value(index), Relaxed);
    }
}

/// What a mailbox says, in one read of its first 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MailboxWords {
    /// Command, reserved, APIC id: the first eight bytes.
    pub(crate) head: u64,
    /// Wakeup vector.
    pub(crate) vector: u64,
}

/// Reads a mailbox: the command first, so that the rest is what the host wrote before it.
pub(crate) fn mailbox(slot: Slot) -> MailboxWords {
    let mailbox = slot_area(slot).cast::<u64>();
    let head = word64(mailbox).load(Acquire);
    MailboxWords {
        head,
        vector: word64(mailbox.wrapping_add(1)).load(Relaxed),
    }
}

/// Writes a mailbox as its host does.
#[cfg(feature = "fuzz")]
pub(crate) fn set_mailbox(slot: Slot, words: MailboxWords) {
    let mailbox = slot_area(slot).cast::<u64>();
    word64(mailbox.wrapping_add(1)).store(words.vector, Relaxed);
    word64(mailbox).store(words.head, Release);
}

/// Clears the command if the mailbox still says `head`; another command is not touched.
pub(crate) fn clear_mailbox(slot: Slot, head: u64) -> bool {
    word64(slot_area(slot).cast::<u64>())
        .compare_exchange(head, head & !0xffff, AcqRel, Relaxed)
        .is_ok()
}

/// Marks where each CPU is at boot: absent, with its owner.
pub(crate) fn init_cpus(owner: Slot) {
    let status = status();
    status.set_cpu_count(id::count() as u32);
    for index in id::all() {
        status.cpu(index).set_apic_id(id::apic_id(index));
        status.cpu(index).set_owner(Some(owner));
    }
}

/// Writes the constants of the rings.
pub(crate) fn init_rings() {
    word64(field!(trace.0.capacity)).store(TRACE_RECORDS as u64, Relaxed);
    word64(field!(log.0.capacity)).store(LOG_BYTES as u64, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_is_cleared_only_if_it_did_not_change() {
        let head = 1 | 3 << 32;
        word64(slot_area(Slot::Odd).cast()).store(head, Release);
        assert!(!clear_mailbox(Slot::Odd, 1 | 2 << 32));
        assert_eq!(mailbox(Slot::Odd).head, head);
        assert!(clear_mailbox(Slot::Odd, head));
        assert_eq!(mailbox(Slot::Odd).head, 3 << 32);
    }

    /// All of a structure's words.
    fn all<T>(start: *mut T) -> impl Iterator<Item = &'static AtomicU64> {
        (0..size_of::<T>() / 8).map(move |index| word64(start.cast::<u64>().wrapping_add(index)))
    }

    #[test]
    fn nothing_of_a_host_is_left_in_its_area_nor_in_the_channels() {
        for slot in Slot::ALL {
            all(slot_area(slot)).for_each(|word| word.store(!0, Relaxed));
        }
        all(field!(channels)).for_each(|word| word.store(!0, Relaxed));
        wipe_slot(Slot::Odd, |index| index as u64);
        wipe_channels();
        let area = slot_area(Slot::Odd);
        // SAFETY: only addresses are computed.
        let (mailbox, tables, reset) = unsafe {
            (
                &raw mut (*area).mailbox,
                &raw mut (*area).tables,
                &raw mut (*area).reset_vector,
            )
        };
        let zero = |word: &AtomicU64| word.load(Relaxed) == 0;
        assert!(all(mailbox).all(zero) && all(tables).all(zero));
        let page = (0..512).map(|index| page_zero_word(Slot::Odd, index));
        assert!(page.eq(0..512), "page 0 is the firmware's again");
        assert!(!all(reset).any(zero), "the reset vector stays");
        assert!(!all(slot_area(Slot::Even)).any(zero), "so does the other host's");
        for index in 0..2 * CHANNEL_COUNT {
            let ring = field!(channels).cast::<ChannelRing>().wrapping_add(index);
            // SAFETY: only addresses are computed.
            let (data, head) = unsafe { (&raw mut (*ring).data, &raw mut (*ring).head) };
            assert!(all(data).all(zero));
            assert_eq!(word32(head).load(Relaxed), !0, "a reader may be at it");
        }
    }

    #[test]
    fn the_trace_ring_wraps() {
        let before = word64(field!(trace.0.written)).load(Relaxed);
        for n in 0..TRACE_RECORDS as u64 + 1 {
            trace(Event::Boot { cpus: n as u32 });
        }
        assert_eq!(
            word64(field!(trace.0.written)).load(Relaxed),
            before + TRACE_RECORDS as u64 + 1
        );
    }

    #[test]
    fn exit_reasons_beyond_the_table_share_its_last_counter() {
        let cpu = CpuIndex::new(63).unwrap();
        status().cpu(cpu).count_reason(u16::MAX);
        status().cpu(cpu).count_reason(79);
        let last = field!(status.0.cpus[63].exits_by_reason[79]);
        assert_eq!(word64(last).load(Relaxed), 2);
    }
}
