//! The first host's copy of the map, and what the map says that e820 cannot.

use super::descriptor::{Attributes, Descriptor, EFI_PAGE, EfiMemoryType};
use super::map::{EfiMap, EfiMapError};
use crate::e820::{E820Map, MemoryType};
use core::ops::Range;

/// A copy that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapForHost {
    /// Its bytes.
    pub len: usize,
    /// Bytes from one descriptor to the next.
    pub stride: usize,
    /// Version of the descriptors.
    pub version: u32,
}

/// Writes the first host's copy of the machine's map to the start of `out`: of what the firmware calls RAM, only what
/// is usable in `host`, the host's e820 map, stays so; all else becomes `EfiReservedMemoryType`, descriptors split
/// where it begins and ends. Whatever is no RAM stays as it is: runtime services with their attributes, ACPI memory,
/// device registers. Empty and impossible descriptors are left out, as Linux does.
///
/// What is free from `image_end` on, a multiple of [`EFI_PAGE`], becomes `EfiLoaderData`: as usable as the rest, but
/// KASLR puts no image there.
///
/// The pool is reserved here too, not `EfiConventionalMemory` with `EFI_MEMORY_SP`: KASLR heeds that attribute only if
/// Linux is built with `CONFIG_EFI_SOFT_RESERVE` and not told `efi=nosoftreserve`, and a single such descriptor makes
/// Linux take over the whole EFI map into its e820 (`do_efi_soft_reserve()` in `arch/x86/platform/efi/efi.c`). Soft
/// Reserved it becomes by the e820 map; where both maps speak of a range, Linux takes the larger type number, which is
/// that of Soft Reserved (`e820__update_table()`).
///
/// # Errors
/// [`EfiMapError::NoRoom`]; the contents of `out` are then not to be used.
pub fn for_first_host(
    machine: &EfiMap<'_>,
    host: &E820Map,
    image_end: u64,
    out: &mut [u8],
) -> Result<MapForHost, EfiMapError> {
    let room = out.len();
    let mut copy = Copy {
        free: out.chunks_exact_mut(machine.stride()),
        needed: 0,
    };
    for raw in machine.raw() {
        let descriptor = Descriptor::read(raw);
        let Some(range) = descriptor.range() else { continue };
        if !descriptor.kind.is_ram() {
            copy.push(raw, descriptor);
            continue;
        }
        let mut at = range.start;
        for own in usable(host, &range) {
            copy.push_range(raw, at..own.start, not_the_hosts(descriptor));
            at = own.end;
            let free_end = if descriptor.kind == EfiMemoryType::CONVENTIONAL {
                image_end.clamp(own.start, own.end)
            } else {
                own.end
            };
            let kind = EfiMemoryType::LOADER_DATA;
            copy.push_range(raw, own.start..free_end, descriptor);
            copy.push_range(raw, free_end..own.end, Descriptor { kind, ..descriptor });
        }
        copy.push_range(raw, at..range.end, not_the_hosts(descriptor));
    }
    let needed = copy.needed.saturating_mul(machine.stride());
    if needed > room {
        return Err(EfiMapError::NoRoom { needed, room });
    }
    Ok(MapForHost {
        len: needed,
        stride: machine.stride(),
        version: machine.version(),
    })
}

/// What the firmware sets aside for a purpose (`EFI_MEMORY_SP`: CXL, high-bandwidth memory). Boot loaders may tell of
/// it as usable in the e820 map.
pub fn soft_reserved<'a>(machine: &EfiMap<'a>) -> impl Iterator<Item = Range<u64>> + use<'a> {
    machine
        .descriptors()
        .filter(|descriptor| {
            descriptor.kind == EfiMemoryType::CONVENTIONAL
                && descriptor.attributes.contains(Attributes::SPECIFIC_PURPOSE)
        })
        .filter_map(|descriptor| descriptor.range())
}

/// Memory of boot services. It is RAM for a kernel, but tables that are read later lie there (ESRT, memory attributes):
/// Linux sets them aside when it runs, and cannot do so for what its own image or ramdisk lies on
/// (`efi_reserve_boot_services()` in `arch/x86/platform/efi/quirks.c`).
pub fn boot_services<'a>(machine: &EfiMap<'a>) -> impl Iterator<Item = Range<u64>> + Clone + use<'a> {
    machine
        .descriptors()
        .filter(|descriptor| {
            matches!(
                descriptor.kind,
                EfiMemoryType::BOOT_SERVICES_CODE | EfiMemoryType::BOOT_SERVICES_DATA
            )
        })
        .filter_map(|descriptor| descriptor.range())
}

/// Whole pages of `range` that are usable in `host`, in ascending order.
fn usable(host: &E820Map, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    host.entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .filter_map(move |entry| {
            let start = entry.start.max(range.start).checked_next_multiple_of(EFI_PAGE)?;
            let end = entry.end.min(range.end) / EFI_PAGE * EFI_PAGE;
            (start < end).then_some(start..end)
        })
}

/// `descriptor` as memory that the host must leave alone. It counts as nothing else either: not as mirrored, or KASLR
/// would find no mirrored memory that is free; not as set aside for a purpose.
fn not_the_hosts(descriptor: Descriptor) -> Descriptor {
    Descriptor {
        kind: EfiMemoryType::RESERVED,
        attributes: descriptor
            .attributes
            .difference(Attributes::MORE_RELIABLE.union(Attributes::SPECIFIC_PURPOSE)),
        ..descriptor
    }
}

/// Descriptors are counted also when there is no room for them, so that the error can say how much is needed.
struct Copy<I> {
    free: I,
    needed: usize,
}

impl<'a, I: Iterator<Item = &'a mut [u8]>> Copy<I> {
    fn push(&mut self, raw: &[u8], descriptor: Descriptor) {
        self.needed = self.needed.saturating_add(1);
        if let Some(place) = self.free.next() {
            // Both are as long as the distance between descriptors.
            place.copy_from_slice(raw);
            descriptor.write(place);
        }
    }

    fn push_range(&mut self, raw: &[u8], range: Range<u64>, of: Descriptor) {
        let pages = range.end.saturating_sub(range.start) / EFI_PAGE;
        if pages > 0 {
            let start = range.start;
            self.push(raw, Descriptor { start, pages, ..of });
        }
    }
}
