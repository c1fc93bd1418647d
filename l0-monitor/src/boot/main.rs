//! The boot CPU's way through L0.
#![expect(unsafe_code, reason = "sets up the CPU and places things in physical memory")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

use firmware_shim::acpi;
use locum_abi::{Event, PAGE_SIZE, PerSlot};

use super::discover::{find_rsdp, read_machine};
use super::load::{Entry, load};
use super::memory::{Identity, move_bytes};
use super::multiboot::{BOOTLOADER_MAGIC, Information};
use super::publish::publish;
use super::{BootError, cmdline, home, plain};
use crate::arch::{cpuid, gdt, paging, serial, stack};
use crate::doors::{native_host, reset};
use crate::id::{self, CpuIndex};
use crate::machine::Machine;
use crate::partition::{self, PARTITION};
use crate::shared::layout::SlotArea;
use crate::stage::{self, Step};
use crate::{fatal, logger, nested, park, selftest, shared, trap};
use locum_abi::Slot;

/// Most of the boot information that L0 copies: command lines, memory map, modules, ACPI, and what else GRUB adds.
const INFORMATION_MAX: usize = 256 * 1024;

/// Entered from [`super::entry`] in long mode on the boot stack, with what GRUB left in EAX and EBX.
pub(crate) extern "C" fn main(magic: u32, information: u32) -> ! {
    // SAFETY: the first that happens here.
    unsafe { home::settle(magic, information) };
    shared::init_rings();
    logger::init();
    // Any CPU's GDT will do until L0 knows which CPU this is.
    // SAFETY: only this CPU runs; the entry's page tables map L0 where it is.
    unsafe {
        trap::init();
        gdt::load(CpuIndex::FIRST);
        trap::load();
    }
    fatal::set_way_out(Some(plain::give_up));
    match boot(magic, information) {
        Ok(entry) => {
            fatal::set_way_out(None);
            // SAFETY: the host's kernel is there, and L0 has nothing more to do.
            unsafe { native_host::enter(Slot::Even, entry.rip, entry.zero_page) }
        }
        Err(error) => {
            log::error!("cannot start the host: {error}");
            plain::give_up()
        }
    }
}

fn boot(magic: u32, information: u32) -> Result<Entry, BootError> {
    copy_information(magic, information)?;
    let information = self::information().ok_or(BootError::Multiboot("it is damaged"))?;
    let options = cmdline::parse(information.command_line(), |_| {});
    logger::set_port(options.log_port.unwrap_or(serial::DEBUG_PORT));
    cmdline::parse(information.command_line(), |bad| {
        log::warn!("argument `{}` ignored; expected {}", bad.argument, bad.expected);
    });
    park::set_wait(options.wait);
    if options.check {
        nested::fingerprint::enable();
    }
    nested::regions::init();
    nested::shadow::set_use(options.shadowing);
    if options.no_barriers {
        nested::predictors::leave_out();
    }

    // SAFETY: the entry's page tables map the low 4 GiB one to one.
    let memory = unsafe { Identity::new() };
    let (rsdp_address, rsdp) = find_rsdp(&memory, information)?;
    let tables = acpi::Machine::open(&memory, &rsdp)?;
    let machine = read_machine(&memory, information, rsdp_address, &rsdp, &options)?;
    let me = cpuid::current().ok_or(BootError::Multiboot("the boot CPU is not in the MADT"))?;
    let entry_end = prepare(machine, me)?;
    publish(machine, entry_end);
    let trampoline = machine.low_slices[Slot::Odd].start;
    if options.selftest {
        try_cpus(me, trampoline);
    }
    // SAFETY: L0's page tables and descriptor tables are in use, and no host runs.
    let started = unsafe { super::ap::start_all(me, trampoline) };
    PARTITION.init(machine).map_err(|_| BootError::Partition)?;
    log::info!(
        "{} CPUs ({} parked), {} MiB of RAM, a pool of {} MiB, VMX {}",
        id::count(),
        started,
        machine.ram().map(|r| r.end - r.start).sum::<u64>() >> 20,
        machine.pool.iter().map(|p| p.end - p.start).sum::<u64>() >> 20,
        if super::ap::allow_vmx() {
            "on"
        } else {
            "missing or locked off by the firmware: no refresh is possible"
        },
    );
    // Nothing can fail after `load`, which overwrites what the boot loader left.
    stage::take(me, Step::Boot).map_err(|_| BootError::Multiboot("it was booted twice"))?;
    let entry = load(machine, &tables, information, &options)?;
    shared::trace(Event::Boot {
        cpus: id::count() as u32,
    });
    shared::trace(Event::HostStart {
        slot: Slot::Even,
        entry: entry.rip,
        zero_page: entry.zero_page,
    });
    log::info!("starting the host at {:#x}; dormant from here on", entry.rip);
    Ok(entry)
}

/// Tries all CPUs in place of starting a host, and resets the machine.
fn try_cpus(me: CpuIndex, trampoline: u64) -> ! {
    // There is to be no host, whatever happens.
    fatal::set_way_out(Some(plain::reset));
    super::ap::allow_vmx();
    selftest::want();
    // SAFETY: L0's page tables and descriptor tables are in use, and no host runs.
    unsafe { super::ap::start_all(me, trampoline) };
    selftest::run(me);
    selftest::report();
    plain::reset()
}

/// Copies the boot information into L0's memory, before anything is written elsewhere.
fn copy_information(magic: u32, address: u32) -> Result<(), BootError> {
    if magic != BOOTLOADER_MAGIC {
        return Err(BootError::Multiboot("there is none"));
    }
    if address == 0 {
        return Err(BootError::Multiboot("its address is 0"));
    }
    let start = u64::from(address);
    // SAFETY: below 4 GiB, so mapped; nobody writes there.
    let size = unsafe { (start as *const u32).read_unaligned() } as usize;
    if size > INFORMATION_MAX {
        return Err(BootError::Multiboot("it is longer than 256 KiB"));
    }
    // SAFETY: as above; the copy has room for `size` bytes, and only the boot CPU, here, ever touches it before it is
    // read-only.
    unsafe {
        move_bytes(COPY.0.get() as u64, start, size as u64);
    }
    COPIED.store(true, Release);
    Ok(())
}

/// What the boot loader said, once it is copied.
pub(crate) fn information() -> Option<Information<'static>> {
    if !COPIED.load(Acquire) {
        return None;
    }
    // SAFETY: the copy is not written any more.
    Information::new(unsafe { &*COPY.0.get() })
}

struct Copy(UnsafeCell<[u8; INFORMATION_MAX]>);

// SAFETY: written once, by the boot CPU, before anybody reads it.
unsafe impl Sync for Copy {}

static COPIED: AtomicBool = AtomicBool::new(false);
static COPY: Copy = Copy(UnsafeCell::new([0; INFORMATION_MAX]));

/// Fills L0's page tables and the shared region's code and tables, and switches to L0's own tables.
/// Returns the end of what a host that starts finds mapped.
fn prepare(machine: &Machine, me: CpuIndex) -> Result<u64, BootError> {
    let stub_pd = PerSlot::from_fn(|slot| shared::slot_field(slot, offset_of!(SlotArea, stub_pd)));
    stack::publish_tops();
    let ram = machine.ram().map(|span| span.start..span.end);
    let guards = id::all().map(stack::guard);
    // SAFETY: only this CPU runs, still on the entry's tables.
    unsafe { paging::init(ram, machine.l0.all().start, guards, stub_pd, cpuid::has_1gib_pages()) }
        .map_err(|unmapped| BootError::Unmapped(unmapped.first_gib))?;
    // SAFETY: L0's tables map all that the entry's do, at the same addresses.
    unsafe {
        paging::load(Slot::Even);
        gdt::load(me);
    }
    let mut entry_end = u64::MAX;
    for slot in Slot::ALL {
        let ram = machine.ram().map(|span| span.start..span.end);
        entry_end = entry_end.min(native_host::install(slot, ram));
        reset::install(slot);
        // SAFETY: the page is the slot's; hosts that see it instead of page 0 expect the BIOS data area there.
        unsafe { move_bytes(shared::page_zero(slot), 0, PAGE_SIZE) };
    }
    partition::keep_page_zero();
    shared::init_cpus(Slot::Even);
    Ok(entry_end)
}
