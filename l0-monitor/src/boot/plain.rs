//! The way out when L0 can't be what it is for: it says so on the screen, then starts the host without itself, or resets
//! the machine. A server is not left standing.
#![expect(unsafe_code, reason = "places things in physical memory and leaves L0 for good")]

use core::fmt::Write;

use arrayvec::ArrayString;
use firmware_shim::acpi::Rsdp;
use firmware_shim::e820::MemoryType;
use firmware_shim::linux::{KernelImage, ZERO_PAGE_LEN, ZeroPage};
use locum_abi::Slot;

use super::display::{self, VGA_TEXT};
use super::load::{self, Entry};
use super::main::information;
use super::memory::{Identity, bytes, move_bytes};
use super::multiboot::Information;
use super::{BootError, cmdline, platform};
use crate::arch::{cpuid, port, registers};
use crate::doors::native_host;
use crate::shared::{self, layout};
use crate::{fatal, logger};

/// How long the screen can be read before anything replaces it, in seconds.
const READING: u64 = 10;
/// Rate of the TSC of CPUs that do not tell it, in Hz: old ones, none of them much slower.
const ASSUMED_TSC_HZ: u64 = 2_000_000_000;
/// Bytes at the end of the log that are shown.
const SHOWN: usize = 2048;

/// L0 has logged why it can't go on. Never returns, and may be called at any time while the boot CPU boots, on the tables
/// of the entry or on L0's, and on any stack: the one for double faults is too small for what follows.
pub(crate) fn give_up() -> ! {
    unsafe extern "C" {
        fn l0_on_boot_stack(go: extern "C" fn() -> !) -> !;
    }
    // SAFETY: nothing that is on the stack is needed again.
    unsafe { l0_on_boot_stack(go_on_without) }
}

extern "C" fn go_on_without() -> ! {
    // Whatever fails from here on, a reset is what is left.
    fatal::set_way_out(Some(reset));
    let entry = match information() {
        Some(information) => {
            let entry = start_plain(information);
            if let Err(error) = &entry {
                log::error!("the host can't be started without Locum either: {error}");
            }
            entry.ok()
        }
        None => None,
    };
    log::error!(
        "in {READING} seconds {}",
        match entry {
            Some(_) =>
                "the host starts without Locum: guests run, but no refresh is possible until the machine boots anew",
            None => "the machine resets; choose an entry without Locum in the boot menu",
        }
    );
    show_log();
    registers::wait_until(READING * cpuid::tsc_hz().unwrap_or(ASSUMED_TSC_HZ), || false);
    match entry {
        // SAFETY: L0 does nothing more on this CPU, and other CPUs are parked or off until the host sends them INIT. The
        // host's kernel is in place.
        Some(Entry { rip, zero_page }) => unsafe { native_host::enter(Slot::Even, rip, zero_page) },
        None => reset(),
    }
}

/// Resets the machine, on which no host was started.
pub(super) fn reset() -> ! {
    // SAFETY: no host was started.
    unsafe { port::reset_machine() }
}

/// Shows the end of the log on the screen, if L0 can write there.
fn show_log() {
    let told = information().and_then(Information::screen);
    let bios = information().is_none_or(|i| i.efi64_system_table().is_none() && !i.is_efi32());
    let Some(screen) = told.or(bios.then_some(VGA_TEXT)) else {
        return;
    };
    let size = u64::from(screen.pitch) * u64::from(screen.height);
    if screen.address == 0
        || screen
            .address
            .checked_add(size)
            .is_none_or(|end| end > super::memory::MAPPED)
    {
        return;
    }
    let mut text = [0; SHOWN];
    let text = shared::log_tail(&mut text);
    display::show(&screen, text, |at, bytes| {
        if at + bytes.len() as u64 <= size {
            for (address, &byte) in (screen.address + at..).zip(bytes) {
                // SAFETY: memory of the screen, which the boot loader named; mapped, since it is below 4 GiB.
                unsafe { (address as *mut u8).write_volatile(byte) };
            }
        }
    });
}

/// Puts the host's kernel where it would be without L0. All memory but L0's own, which has its page tables, zero page and
/// command line, and where other CPUs may be parked, is the host's.
fn start_plain(information: Information<'static>) -> Result<Entry, BootError> {
    if information.boot_services_run() {
        return Err(BootError::Multiboot("EFI boot services still run"));
    }
    let mut modules = information.modules();
    let kernel_file = modules.next().ok_or(BootError::NoKernel)?;
    let ramdisk_file = modules.next();
    let kernel_range = kernel_file.start..kernel_file.end;
    // SAFETY: as in `load::load`: GRUB put it there, and what was written since is in L0's own memory.
    let kernel = KernelImage::parse(unsafe { bytes(&kernel_range) })?;
    let mut map = platform::memory_map(information)?;
    map.set(shared::place().all(), MemoryType::Reserved)?;
    let places = load::choose_places(information, &kernel, &kernel_range, ramdisk_file, &map)?;
    let base = load::tables_area();
    let line = command_line(kernel_file.line)?;
    // SAFETY: the low 4 GiB are mapped one to one, by the entry's tables and by L0's.
    let rsdp =
        super::discover::find_rsdp(&unsafe { Identity::new() }, information).map_or(0, |(at, _): (u64, Rsdp)| at);
    // SAFETY: what follows the command line in the slot's tables, which no host uses.
    let room = unsafe {
        core::slice::from_raw_parts_mut(
            (base + load::ACPI_OFFSET) as *mut u8,
            layout::TABLES_SIZE - load::ACPI_OFFSET as usize,
        )
    };
    let zero_page = ZeroPage {
        kernel: &kernel,
        load: places.kernel,
        cmdline: line.as_bytes(),
        cmdline_address: base + load::CMDLINE_OFFSET,
        ramdisk: places.ramdisk.clone(),
        rsdp,
        e820: &map,
        platform: platform::for_first_host(information, &map, base + load::ACPI_OFFSET, room),
    };
    // SAFETY: the slot's tables, as above; the byte after the command line is its terminating zero.
    unsafe {
        zero_page.write(&mut *(base as *mut [u8; ZERO_PAGE_LEN]))?;
        let at = base + load::CMDLINE_OFFSET;
        move_bytes(at, line.as_ptr() as u64, line.len() as u64);
        ((at + line.len() as u64) as *mut u8).write(0);
    }
    native_host::install(Slot::Even, core::iter::empty());
    // SAFETY: this is the last use of the kernel's file.
    unsafe { load::move_images(&kernel, ramdisk_file, &places) };
    Ok(load::entry(&places, base))
}

/// What the administrator wrote, and, if there is room, why Locum is not there: `/proc/cmdline` is what is left of it.
fn command_line(own: &str) -> Result<ArrayString<{ cmdline::HOST_LINE }>, BootError> {
    let own = own.trim();
    let mut line = ArrayString::new();
    let mut reason = ArrayString::<256>::new();
    let error = logger::last_error();
    // Quotes would end the argument.
    for character in error.chars().map(|c| if c == '"' || c.is_control() { '\'' } else { c }) {
        if reason.try_push(character).is_err() {
            break;
        }
    }
    // In front: what follows an argument `--` is for init.
    if write!(line, "locum.boot_error=\"{reason}\" {own}").is_err() {
        line = ArrayString::from(own).map_err(|_| BootError::CommandLine)?;
    }
    Ok(line)
}
