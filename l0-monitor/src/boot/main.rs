//! The boot CPU's way through L0.
#![expect(
    unsafe_code,
    reason = "sets up the CPU and places things in physical memory"
)]

use core::cell::UnsafeCell;

use arrayvec::ArrayString;
use firmware_shim::acpi::{self, HostFirmware, Locm, MadtEntry, Rsdp};
use firmware_shim::e820::{self, E820Map, FirstHostMemory, MemoryType};
use firmware_shim::linux::{ENTRY_64_OFFSET, KernelImage, ZERO_PAGE_LEN, ZeroPage};
use locum_abi::{Header, HostState, MAGIC, MAX_CPUS, REVISION, SlotInfo, TraceKind};

use super::machine::{IoApic, Span};
use super::memory::{Identity, bytes, move_bytes};
use super::mtrr::Mtrrs;
use super::multiboot::{BOOTLOADER_MAGIC, Information};
use super::place::{self, Wanted};
use super::{BootError, MACHINE, Machine, cmdline, host, native_entry, reset};
use crate::arch::{cpuid, gdt, idt, paging, registers};
use crate::cpu::{self, CpuIndex, Slot};
use crate::shared::layout::{self, SlotArea};
use crate::{logger, park, partition, shared};

/// Most of the boot information that L0 copies: command lines, memory map, modules, ACPI, and what else GRUB adds.
const INFORMATION_MAX: usize = 64 * 1024;
/// Place of the command line in a slot's tables, after the zero page.
const CMDLINE_OFFSET: u64 = 0x1000;
/// Place of the ACPI tables in a slot's tables.
const ACPI_OFFSET: u64 = 0x2000;
/// Consoles of the two slots: COM1 and COM2.
const CONSOLES: [u32; 2] = [0x3f8, 0x2f8];

const _: () = assert!(ZERO_PAGE_LEN as u64 <= CMDLINE_OFFSET);
const _: () = assert!(CMDLINE_OFFSET + (cmdline::HOST_LINE as u64) < ACPI_OFFSET);
const _: () = assert!(ACPI_OFFSET < layout::TABLES_SIZE as u64);

/// Where the first host begins.
struct Entry {
    rip: u64,
    zero_page: u64,
}

/// Entered from [`super::entry`] in long mode on the boot stack, with what GRUB left in EAX and EBX.
pub extern "C" fn main(magic: u32, information: u32) -> ! {
    shared::init_rings();
    logger::init();
    // Any CPU's GDT will do until L0 knows which CPU this is.
    if let Some(first) = CpuIndex::new(0) {
        // SAFETY: only this CPU runs; the entry's page tables map L0 where it is.
        unsafe {
            idt::init();
            gdt::load(first);
            idt::load();
        }
    }
    match boot(magic, information) {
        Ok(entry) => {
            // SAFETY: the host's kernel is there, and L0 has nothing more to do.
            unsafe { host::enter_native(Slot::EVEN, entry.rip, entry.zero_page) }
        }
        Err(error) => {
            log::error!("cannot start the host: {error}");
            registers::halt_forever()
        }
    }
}

fn boot(magic: u32, information: u32) -> Result<Entry, BootError> {
    let copy = copy_information(magic, information)?;
    let information = Information::new(copy).ok_or(BootError::Multiboot("it is damaged"))?;
    let options = cmdline::parse(information.command_line(), |_| {});
    logger::set_port(options.log_port.unwrap_or(logger::DEBUG_PORT));
    cmdline::parse(information.command_line(), |bad| {
        log::warn!(
            "argument `{}` ignored; expected {}",
            bad.argument,
            bad.expected
        );
    });
    park::set_wait(options.wait);
    if options.check {
        crate::nested::check::enable();
    }

    // SAFETY: the entry's page tables map the low 4 GiB one to one.
    let memory = unsafe { Identity::new() };
    let (rsdp_address, rsdp) = find_rsdp(&memory, information)?;
    let tables = acpi::Machine::open(&memory, &rsdp)?;
    let machine = read_machine(&memory, information, rsdp_address, &rsdp, &options)?;
    let me = cpu::current().ok_or(BootError::Multiboot("the boot CPU is not in the MADT"))?;
    prepare(machine, me)?;
    publish(machine);
    // SAFETY: L0's page tables and descriptor tables are in use, and no host runs.
    let started = unsafe { super::ap::start_all(me) };
    partition::init(machine).map_err(|_| BootError::Partition)?;
    log::info!(
        "{} CPUs ({} parked), {} MiB of RAM, pool {:#x}-{:#x}, VMX {}",
        cpu::count(),
        started,
        machine.ram().map(|r| r.end - r.start).sum::<u64>() >> 20,
        machine.pool.map_or(0, |p| p.start),
        machine.pool.map_or(0, |p| p.end),
        if super::ap::allow_vmx() {
            "on"
        } else {
            "missing or locked off by the firmware: no refresh is possible"
        },
    );
    let entry = load(machine, &tables, information, &options)?;
    shared::status().host(Slot::EVEN).set_generation(0);
    shared::status()
        .host(Slot::EVEN)
        .set_state(HostState::Running);
    shared::status()
        .cpu(me)
        .set_mode(locum_abi::CpuMode::Native);
    shared::trace(TraceKind::Boot, cpu::count() as u32, 0, 0);
    shared::trace(TraceKind::HostStart, 0, entry.rip, entry.zero_page);
    log::info!(
        "starting the host at {:#x}; dormant from here on",
        entry.rip
    );
    Ok(entry)
}

/// Copies the boot information into L0's memory, before anything is written elsewhere.
fn copy_information(magic: u32, address: u32) -> Result<&'static [u8], BootError> {
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
        return Err(BootError::Multiboot("it is longer than 64 KiB"));
    }
    // SAFETY: as above; the copy has room for `size` bytes, and only the boot CPU, here, ever touches it before it is
    // read-only.
    unsafe {
        move_bytes(COPY.0.get() as u64, start, size as u64);
        Ok(&*COPY.0.get())
    }
}

struct Copy(UnsafeCell<[u8; INFORMATION_MAX]>);

// SAFETY: written once, by the boot CPU, before anybody reads it.
unsafe impl Sync for Copy {}

static COPY: Copy = Copy(UnsafeCell::new([0; INFORMATION_MAX]));

/// The machine's RSDP: what GRUB copied, put where it stays, or what is in the BIOS area.
fn find_rsdp(memory: &Identity, information: Information<'_>) -> Result<(u64, Rsdp), BootError> {
    let Some(copy) = information.rsdp() else {
        return Ok(Rsdp::find_in_bios_area(memory)?);
    };
    let rsdp = Rsdp::parse(copy)?;
    let address = shared::addresses().machine_rsdp;
    let len = copy.len().min(layout::RSDP_MAX);
    // SAFETY: the place in the shared region has room for it.
    unsafe { move_bytes(address, copy.as_ptr() as u64, len as u64) };
    Ok((address, rsdp))
}

/// Collects what is known of the machine, and registers its CPUs.
fn read_machine(
    memory: &Identity,
    information: Information<'_>,
    rsdp_address: u64,
    rsdp: &Rsdp,
    options: &cmdline::Options,
) -> Result<&'static Machine, BootError> {
    let tables = acpi::Machine::open(memory, rsdp)?;
    let madt = tables.madt()?;
    let fadt = tables.fadt()?;
    let enabled = madt
        .cpus()
        .filter_map(Result::ok)
        .filter(acpi::Cpu::enabled);
    let total = madt
        .cpus()
        .filter_map(Result::ok)
        .filter(acpi::Cpu::enabled)
        .count();
    if total > MAX_CPUS {
        return Err(BootError::TooManyCpus(total));
    }
    cpu::register(enabled.map(|cpu| cpu.apic_id));
    let max_phys_bits = cpuid::max_phys_bits();
    let mut machine = Machine {
        e820: E820Map::from_firmware(information.memory_map())?,
        mtrrs: Mtrrs::read(max_phys_bits),
        max_phys_bits,
        pool: options.pool.as_ref().map(|p| Span {
            start: p.start,
            end: p.end,
        }),
        pm1_control: [fadt.pm1a_control(), fadt.pm1b_control()]
            .map(|register| register.and_then(|r| r.port()).unwrap_or(0)),
        rsdp: rsdp_address,
        boot_apic_id: cpuid::apic_id(),
        ..Machine::EMPTY
    };
    for entry in madt.entries().filter_map(Result::ok) {
        if let MadtEntry::IoApic {
            address, gsi_base, ..
        } = entry
        {
            let address = u64::from(address);
            let ioapic = IoApic {
                address,
                gsi_base,
                pins: ioapic_pins(address),
            };
            if machine.ioapics.try_push(ioapic).is_err() {
                log::warn!("IOAPIC at {address:#x} is one too many; it is left unfiltered");
            }
        }
    }
    if let Some(mcfg) = tables.mcfg()? {
        for region in mcfg.regions().filter_map(Result::ok) {
            if machine.ecam.try_push(region).is_err() {
                log::warn!(
                    "PCI configuration window at {:#x} is one too many",
                    region.base
                );
            }
        }
    }
    if tables.has_dmar()? {
        log::warn!("DMA remapping (DMAR) is hidden from hosts: no device passthrough to guests");
    }
    Ok(MACHINE.call_once(|| machine))
}

/// Number of an IOAPIC's pins (82093AA data sheet, 3.2.2: version register, bits 16-23, is one less).
fn ioapic_pins(address: u64) -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: the MADT names this address as an IOAPIC's, and no host uses it yet.
    let version = unsafe {
        (address as *mut u32).write_volatile(VERSION);
        ((address + 0x10) as *const u32).read_volatile()
    };
    (version >> 16 & 0xff) + 1
}

/// Fills L0's page tables and the shared region's code and tables, and switches to L0's own tables.
fn prepare(machine: &Machine, me: CpuIndex) -> Result<(), BootError> {
    let stub_pd = Slot::ALL.map(|slot| slot_field(slot, core::mem::offset_of!(SlotArea, stub_pd)));
    let ram = machine.ram().map(|span| span.start..span.end);
    let guards = cpu::all().map(cpu::stack_guard);
    // SAFETY: only this CPU runs, still on the entry's tables.
    unsafe { paging::init(ram, guards, stub_pd, cpuid::has_1gib_pages()) }
        .map_err(|unmapped| BootError::Unmapped(unmapped.first_gib))?;
    // SAFETY: L0's tables map all that the entry's do, at the same addresses.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) paging::l0_cr3(Slot::EVEN), options(nostack, preserves_flags));
        gdt::load(me);
    }
    for slot in Slot::ALL {
        host::install(slot);
        reset::install(slot);
        // SAFETY: the page is the slot's; hosts that see it instead of page 0 expect the BIOS data area there.
        unsafe { move_bytes(shared::page_zero(slot), 0, 4096) };
    }
    shared::init_cpus(Slot::EVEN);
    Ok(())
}

fn slot_field(slot: Slot, offset: usize) -> u64 {
    shared::slot_area(slot) as u64 + offset as u64
}

/// Writes the header.
fn publish(machine: &Machine) {
    let at = shared::addresses();
    let slots = Slot::ALL.map(|slot| {
        let (low_slice, low_slice_size) = shared::low_slice(slot);
        let field = |offset| slot_field(slot, offset);
        SlotInfo {
            mailbox: field(core::mem::offset_of!(SlotArea, mailbox)),
            reset_vector: reset::address(slot),
            l0_cr3: paging::l0_cr3(slot),
            l0_entry: native_entry(),
            stub_pd: field(core::mem::offset_of!(SlotArea, stub_pd)),
            stub_pt: field(core::mem::offset_of!(SlotArea, stub_pt)),
            stub_pt_pages: layout::STUB_PT_PAGES as u32,
            console_port: CONSOLES[slot.get()],
            low_slice,
            low_slice_size,
            page_zero: shared::page_zero(slot),
            tables: field(core::mem::offset_of!(SlotArea, tables)),
            tables_size: layout::TABLES_SIZE as u64,
        }
    });
    let [pm1a_cnt, pm1b_cnt] = machine.pm1_control;
    shared::set_header(Header {
        magic: MAGIC,
        revision: REVISION,
        size: size_of::<Header>() as u32,
        shared: layout::BASE,
        shared_size: layout::SIZE,
        private: layout::PRIVATE_BASE,
        private_size: layout::PRIVATE_SIZE,
        pool: machine.pool.map_or(0, |p| p.start),
        pool_size: machine.pool.map_or(0, |p| p.end - p.start),
        status: at.status,
        status_size: size_of::<locum_abi::Status>() as u64,
        trace: at.trace,
        trace_size: size_of::<locum_abi::TraceRing>() as u64,
        log: at.log,
        log_size: size_of::<locum_abi::LogRing>() as u64,
        channels: at.channels,
        channels_size: size_of::<[[locum_abi::ChannelRing; 2]; locum_abi::CHANNEL_COUNT]>() as u64,
        slots,
        machine_rsdp: machine.rsdp,
        image_bytes: image_bytes(),
        cpu_count: cpu::count() as u32,
        pm1a_cnt,
        pm1b_cnt,
        reserved: [0; 8],
    });
}

#[cfg(target_os = "none")]
fn image_bytes() -> u64 {
    unsafe extern "C" {
        safe static l0_image_end: u8;
    }
    (&raw const l0_image_end).addr() as u64 - layout::PRIVATE_BASE
}

/// The first host's memory map.
fn host_map(machine: &Machine) -> Result<E820Map, BootError> {
    let pools: arrayvec::ArrayVec<_, 1> = machine.pool.iter().map(|p| p.start..p.end).collect();
    let (other, other_size) = shared::low_slice(Slot::ODD);
    let mut map = e820::for_first_host(
        &machine.e820,
        &FirstHostMemory {
            l0: layout::PRIVATE_BASE..layout::BASE + layout::SIZE,
            firmware: layout::BASE..layout::BASE + layout::SIZE,
            pools: &pools,
            other_slice: other..other + other_size,
        },
    )?;
    map.replace(
        layout::LOW_END..layout::PRIVATE_BASE,
        MemoryType::Usable,
        MemoryType::Reserved,
    )?;
    Ok(map)
}

/// Puts kernel, ramdisk, command line, zero page and ACPI tables in place.
fn load(
    machine: &Machine,
    tables: &acpi::Machine<'_, Identity>,
    information: Information<'_>,
    options: &cmdline::Options,
) -> Result<Entry, BootError> {
    let mut modules = information.modules();
    let kernel_file = modules.next().ok_or(BootError::NoKernel)?;
    let ramdisk_file = modules.next();
    let kernel_range = kernel_file.start..kernel_file.end;
    // SAFETY: GRUB put the module there, below 4 GiB; nothing is written to memory outside L0 before the last use.
    let kernel = KernelImage::parse(unsafe { bytes(&kernel_range) })?;
    let map = host_map(machine)?;
    let usable = map
        .entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .map(|entry| entry.start..entry.end);
    let preferred = kernel.preferred_address();
    let places = place::choose(
        usable,
        &kernel_range,
        &Wanted {
            kernel_room: kernel.init_size(),
            kernel_align: kernel.alignment().max(paging::LARGE),
            kernel_lowest: preferred,
            ramdisk: ramdisk_file.map_or(0, |file| file.end - file.start),
        },
    )?;
    kernel.check_load(places.kernel, kernel.init_size())?;

    let base = slot_field(Slot::EVEN, core::mem::offset_of!(SlotArea, tables));
    let maxcpus = options.host_cpus.filter(|&n| (n as usize) < cpu::count());
    let line: ArrayString<{ cmdline::HOST_LINE }> =
        cmdline::for_first_host(kernel_file.line, maxcpus, cpuid::has_la57())
            .map_err(|_| BootError::CommandLine)?;
    let rsdp = host_tables(machine, tables, base + ACPI_OFFSET)?;
    let zero_page = ZeroPage {
        kernel: &kernel,
        load: places.kernel,
        cmdline: line.as_bytes(),
        cmdline_address: base + CMDLINE_OFFSET,
        ramdisk: places.ramdisk.clone(),
        rsdp,
        e820: &map,
    };
    // SAFETY: the slot's tables, which nobody else uses yet; the three parts do not overlap (asserted above). The command
    // line's end is zero like all of the region.
    unsafe {
        zero_page.write(&mut *(base as *mut [u8; ZERO_PAGE_LEN]))?;
        move_bytes(
            base + CMDLINE_OFFSET,
            line.as_ptr() as u64,
            line.len() as u64,
        );
    }
    let ramdisk = places.ramdisk.clone().unwrap_or(0..0);
    log::info!(
        "kernel at {:#x} (file at {:#x}), ramdisk at {:#x}-{:#x} (file at {:#x}), command line: {line}",
        places.kernel,
        kernel_file.start,
        ramdisk.start,
        ramdisk.end,
        ramdisk_file.map_or(0, |file| file.start),
    );
    let code = kernel.code().as_ptr_range();
    let (from, len) = (code.start as u64, kernel.code().len() as u64);
    if let (Some(file), Some(place)) = (ramdisk_file, &places.ramdisk) {
        // SAFETY: usable memory of the host; the place avoids the kernel's file, which is still needed.
        unsafe { move_bytes(place.start, file.start, file.end - file.start) };
    }
    // SAFETY: usable memory of the host, clear of the ramdisk. The kernel's file is not used after this.
    unsafe { move_bytes(places.kernel, from, len) };
    Ok(Entry {
        rip: places.kernel + ENTRY_64_OFFSET,
        zero_page: base,
    })
}

/// Makes the first host's ACPI tables at `at`; returns the address of their RSDP.
fn host_tables(
    machine: &Machine,
    tables: &acpi::Machine<'_, Identity>,
    at: u64,
) -> Result<u64, BootError> {
    let host = HostFirmware {
        cpus: &[machine.boot_apic_id],
        mailbox: slot_field(Slot::EVEN, core::mem::offset_of!(SlotArea, mailbox)),
        reset_vector: reset::address(Slot::EVEN),
        locm: Locm {
            header_page: shared::header_address(),
            abi_revision: REVISION,
        },
    };
    let room = layout::TABLES_SIZE as u64 - ACPI_OFFSET;
    // SAFETY: the rest of the slot's tables, which nobody else uses yet.
    let out = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, room as usize) };
    Ok(acpi::first_host_tables(tables, &host, at, out)?.rsdp)
}
