//! The way out when L0 can't be what it is for: it says so on the screen, then starts the host without itself, or resets
//! the machine. A server is not left standing.
#![expect(unsafe_code, reason = "places things in physical memory and leaves L0 for good")]

use core::fmt::Write;

use arrayvec::ArrayString;
use firmware_shim::acpi::Rsdp;
use firmware_shim::e820::MemoryType;
use locum_abi::Slot;

use super::display::{self, VGA_TEXT};
use super::load::{self, Entry, Files, Told};
use super::main::information;
use super::memory::Identity;
use super::multiboot::Information;
use super::{BootError, cmdline, platform};
use crate::arch::{cpuid, port, registers};
use crate::doors::native_host;
use crate::shared;
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
    let files = Files::of(information)?;
    let mut map = platform::memory_map(information)?;
    map.set(shared::place().all(), MemoryType::Reserved)?;
    let line = command_line(files.line)?;
    // SAFETY: the low 4 GiB are mapped one to one, by the entry's tables and by L0's.
    let rsdp =
        super::discover::find_rsdp(&unsafe { Identity::new() }, information).map_or(0, |(at, _): (u64, Rsdp)| at);
    native_host::install(Slot::Even, core::iter::empty());
    let told = Told {
        map: &map,
        line: &line,
        rsdp,
        image_end: u64::MAX,
        tables: 0,
    };
    // SAFETY: what was written since the boot loader ended is in L0's own memory, and L0 does nothing more.
    unsafe { load::start(information, &files, &told) }
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
