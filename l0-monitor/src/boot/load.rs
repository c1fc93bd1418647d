//! Putting the first host's kernel, ramdisk and tables where it will find them, with L0 or without it.
#![expect(unsafe_code, reason = "places things in physical memory")]

use core::ops::Range;

use arrayvec::{ArrayString, ArrayVec};
use firmware_shim::acpi::{self, HostFirmware, HostTables, Locm};
use firmware_shim::e820::{self, E820Map, FirstHostMemory, MemoryType};
use firmware_shim::linux::{E820_REST_LEN, ENTRY_64_OFFSET, KernelImage, ZERO_PAGE_LEN, ZeroPage};
use locum_abi::{FAMILY, MAX_CPUS, POOL_PIECES, Slot};

use super::memory::{Identity, bytes, move_bytes};
use super::multiboot::{Information, Module};
use super::place::{self, Places, Wanted};
use super::{BootError, cmdline, platform};
use crate::arch::{cpuid, paging};
use crate::doors::reset;
use crate::id;
use crate::machine::{Machine, Span};
use crate::shared;
use crate::shared::layout::{self, SlotArea};
use crate::stage;

/// Place of the command line in a slot's tables, after the zero page.
const CMDLINE_OFFSET: u64 = 0x1000;
/// Place of what of the memory map the zero page does not have.
const E820_REST_OFFSET: u64 = 0x2000;
/// Place of the ACPI tables in a slot's tables.
const ACPI_OFFSET: u64 = 0x4000;
/// Alignment of the EFI memory map, which follows them.
const EFI_MAP_ALIGN: u64 = 16;

const _: () = assert!(ZERO_PAGE_LEN as u64 <= CMDLINE_OFFSET);
const _: () = assert!(CMDLINE_OFFSET + (cmdline::HOST_LINE as u64) < E820_REST_OFFSET);
const _: () = assert!(E820_REST_OFFSET + E820_REST_LEN as u64 <= ACPI_OFFSET);
const _: () = assert!(ACPI_OFFSET < layout::TABLES_SIZE as u64);

/// Where the first host begins.
pub(crate) struct Entry {
    /// 64-bit entry point of the kernel.
    pub(crate) rip: u64,
    /// Zero page, for RSI.
    pub(crate) zero_page: u64,
}

/// The first host's memory map.
fn host_map(machine: &Machine) -> Result<E820Map, BootError> {
    let pools: ArrayVec<_, POOL_PIECES> = machine.pool.iter().map(|p| p.start..p.end).collect();
    let [own, other] = Slot::ALL.map(|slot| {
        let Span { start, end } = machine.low_slices[slot];
        start..end
    });
    let mut map = e820::for_first_host(
        &machine.e820,
        &FirstHostMemory {
            l0: machine.l0.all(),
            firmware: machine.l0.shared(),
            pools: &pools,
            other_slice: other,
        },
    )?;
    e820::keep_low_slice(&mut map, &own)?;
    Ok(map)
}

/// Puts kernel, ramdisk, command line, zero page and ACPI tables in place.
pub(crate) fn load(
    machine: &Machine,
    tables: &acpi::Machine<'_, Identity>,
    information: Information<'_>,
    options: &cmdline::Options,
) -> Result<Entry, BootError> {
    let files = Files::of(information)?;
    let map = host_map(machine)?;
    let line = command_line(files.line, options, &map)?;
    let made = host_tables(machine, tables, tables_area() + ACPI_OFFSET)?;
    let told = Told {
        map: &map,
        line: &line,
        rsdp: made.rsdp,
        image_end: place::FIRST_TO_GIVE,
        tables: made.len as u64,
    };
    // SAFETY: L0 needs nothing more outside its own memory.
    unsafe { start(information, &files, &told) }
}

/// What the boot loader loaded for the host.
pub(super) struct Files<'a> {
    kernel: KernelImage<'a>,
    /// Where its file is.
    kernel_file: Range<u64>,
    /// The host's command line as the administrator wrote it.
    pub(super) line: &'a str,
    ramdisk_file: Option<Module<'a>>,
}

impl<'a> Files<'a> {
    /// The first two modules.
    pub(super) fn of(information: Information<'a>) -> Result<Self, BootError> {
        let mut modules = information.modules();
        let Module { start, end, line } = modules.next().ok_or(BootError::NoKernel)?;
        let kernel_file = start..end;
        // SAFETY: GRUB put the module there, below 4 GiB; nothing is written to memory outside L0 before the last use.
        let kernel = KernelImage::parse(unsafe { bytes(&kernel_file) })?;
        Ok(Self {
            kernel,
            kernel_file,
            line,
            ramdisk_file: modules.next(),
        })
    }
}

/// What the host is told, with L0 or without it.
pub(super) struct Told<'a> {
    /// Its memory.
    pub(super) map: &'a E820Map,
    /// Its command line.
    pub(super) line: &'a str,
    /// Where its RSDP is, 0 if there is none.
    pub(super) rsdp: u64,
    /// Its kernel's image stays below this, a multiple of the page size.
    pub(super) image_end: u64,
    /// Bytes of ACPI tables that were made at [`ACPI_OFFSET`].
    pub(super) tables: u64,
}

/// Writes zero page, command line and copy of the EFI map into the slot's tables, and moves kernel and ramdisk to their
/// places. What fails, fails before anything is moved.
///
/// # Safety
/// Nothing is needed any more that lies in the host's usable memory, but `files`.
pub(super) unsafe fn start(
    information: Information<'_>,
    files: &Files<'_>,
    told: &Told<'_>,
) -> Result<Entry, BootError> {
    let places = choose_places(information, files, told.map)?;
    let base = tables_area();
    let efi_map = (base + ACPI_OFFSET + told.tables).next_multiple_of(EFI_MAP_ALIGN);
    let room = base + layout::TABLES_SIZE as u64 - efi_map;
    // SAFETY: what is left of the slot's tables, which nobody else uses yet.
    let room = unsafe { core::slice::from_raw_parts_mut(efi_map as *mut u8, room as usize) };
    let zero_page = ZeroPage {
        kernel: &files.kernel,
        load: places.kernel,
        cmdline: told.line.as_bytes(),
        cmdline_address: base + CMDLINE_OFFSET,
        ramdisk: places.ramdisk.clone(),
        rsdp: told.rsdp,
        e820: told.map,
        image_end: told.image_end,
        e820_rest: base + E820_REST_OFFSET,
        platform: platform::for_first_host(information, told.map, told.image_end, efi_map, room),
    };
    // SAFETY: the slot's tables, which nobody else uses yet; the parts do not overlap (asserted above). The byte after
    // the command line is its terminating zero: an earlier attempt may have left a longer one.
    unsafe {
        zero_page.write(
            &mut *(base as *mut [u8; ZERO_PAGE_LEN]),
            &mut *((base + E820_REST_OFFSET) as *mut [u8; E820_REST_LEN]),
        )?;
        let (at, len) = (base + CMDLINE_OFFSET, told.line.len() as u64);
        move_bytes(at, told.line.as_ptr() as u64, len);
        ((at + len) as *mut u8).write(0);
    }
    let ramdisk = places.ramdisk.clone().unwrap_or(0..0);
    log::info!(
        "kernel at {:#x} (file at {:#x}), ramdisk at {:#x}-{:#x} (file at {:#x}), command line: {}",
        places.kernel,
        files.kernel_file.start,
        ramdisk.start,
        ramdisk.end,
        files.ramdisk_file.map_or(0, |file| file.start),
        told.line,
    );
    // SAFETY: the caller's word; this is the last use of the kernel's file.
    unsafe { move_images(files, &places) };
    Ok(Entry {
        rip: places.kernel + ENTRY_64_OFFSET,
        zero_page: base,
    })
}

/// Physical address of the first host's zero page, command line and tables.
fn tables_area() -> u64 {
    shared::slot_field(Slot::Even, core::mem::offset_of!(SlotArea, tables))
}

/// Chooses where kernel and ramdisk go.
fn choose_places(information: Information<'_>, files: &Files<'_>, map: &E820Map) -> Result<Places, BootError> {
    let kernel = &files.kernel;
    let usable = map
        .entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .map(|entry| entry.start..entry.end);
    let wanted = Wanted {
        kernel_room: kernel.init_size(),
        kernel_align: kernel.alignment().max(paging::LARGE_PAGE),
        kernel_lowest: kernel.preferred_address(),
        ramdisk: files.ramdisk_file.map_or(0, |file| file.end - file.start),
    };
    // A kernel that is not relocatable has one place.
    let spared = platform::boot_services(information).filter(|_| kernel.relocatable());
    let places = place::choose(usable, spared, &files.kernel_file, &wanted)?;
    kernel.check_load(places.kernel, kernel.init_size())?;
    Ok(places)
}

/// The command line of the first host; `own` is what the administrator wrote.
fn command_line(
    own: &str,
    options: &cmdline::Options,
    map: &E820Map,
) -> Result<ArrayString<{ cmdline::HOST_LINE }>, BootError> {
    let maxcpus = options.host_cpus.filter(|&n| (n as usize) < id::count());
    // Without VMX no refresh asks for it.
    let five_levels_in_the_way = cpuid::has_la57() && super::ap::allow_vmx();
    cmdline::for_first_host(own, maxcpus, five_levels_in_the_way, e820::needs_small_pages(map))
        .map_err(|_| BootError::CommandLine)
}

/// Moves ramdisk and kernel from where the boot loader left them to their places.
///
/// # Safety
/// The places were chosen by [`choose_places`] for these files, which are not used any more afterwards; what lay in those
/// places is not needed.
unsafe fn move_images(files: &Files<'_>, places: &Places) {
    let code = files.kernel.code();
    let (from, len) = (code.as_ptr() as u64, code.len() as u64);
    if let (Some(file), Some(place)) = (files.ramdisk_file, &places.ramdisk) {
        // SAFETY: usable memory of the host; the place avoids the kernel's file, which is still needed.
        unsafe { move_bytes(place.start, file.start, file.end - file.start) };
    }
    // SAFETY: usable memory of the host, clear of the ramdisk.
    unsafe { move_bytes(places.kernel, from, len) };
}

/// Makes the first host's ACPI tables at `at`.
fn host_tables(machine: &Machine, tables: &acpi::Machine<'_, Identity>, at: u64) -> Result<HostTables, BootError> {
    let managed: ArrayVec<u32, MAX_CPUS> = id::all()
        .filter(|&cpu| id::apic_id(cpu) == machine.boot_apic_id || stage::is_parked(cpu))
        .map(id::apic_id)
        .collect();
    let host = HostFirmware {
        cpus: &[machine.boot_apic_id],
        managed: &managed,
        mailbox: shared::slot_field(Slot::Even, core::mem::offset_of!(SlotArea, mailbox)),
        reset_vector: reset::address(Slot::Even),
        locm: Locm {
            header_page: shared::header_address(),
            abi_revision: FAMILY,
        },
        blank: None,
    };
    let room = layout::TABLES_SIZE as u64 - ACPI_OFFSET;
    // SAFETY: the rest of the slot's tables, which nobody else uses yet.
    let out = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, room as usize) };
    Ok(acpi::first_host_tables(tables, &host, at, out)?)
}
