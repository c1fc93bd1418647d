//! What of the machine's firmware reaches the first host besides memory map and ACPI tables: screen and EFI.
//!
//! Neither is worth a host that does not start: what cannot be passed on is left out with a warning.

use firmware_shim::e820::{E820Error, E820Map, MemoryType};
use firmware_shim::efi::{self, EfiMap, EfiMapError};
use firmware_shim::linux::{Channel, Efi, Framebuffer, Platform, Screen, VideoFirmware};

use super::multiboot::{Content, Information};

/// What the first host is told. `host` is its memory map; its kernel's image stays below `image_end`, a multiple of the
/// page size; its copy of the EFI memory map goes to the start of `room`, which the host sees at `address`.
pub(crate) fn for_first_host(
    information: Information<'_>,
    host: &E820Map,
    image_end: u64,
    address: u64,
    room: &mut [u8],
) -> Platform {
    Platform::FirstHost {
        screen: screen(information),
        efi: efi(information, host, image_end, address, room),
    }
}

/// The machine's memory map as both of the firmware's have it.
///
/// # Errors
/// [`E820Error::Full`].
pub(crate) fn memory_map(information: Information<'_>) -> Result<E820Map, E820Error> {
    let mut map = E820Map::from_firmware(information.memory_map())?;
    for range in soft_reserved(information) {
        map.replace(range, MemoryType::Usable, MemoryType::SoftReserved)?;
    }
    Ok(map)
}

/// What the EFI memory map sets aside, though the loader calls it usable.
fn soft_reserved(information: Information<'_>) -> impl Iterator<Item = core::ops::Range<u64>> {
    machine_map(information)
        .and_then(Result::ok)
        .into_iter()
        .flat_map(|map| efi::soft_reserved(&map))
}

/// Where EFI's boot services were.
pub(crate) fn boot_services(information: Information<'_>) -> impl Iterator<Item = core::ops::Range<u64>> + Clone {
    machine_map(information)
        .and_then(Result::ok)
        .into_iter()
        .flat_map(|map| efi::boot_services(&map))
}

fn screen(information: Information<'_>) -> Screen {
    let Some(told) = information.screen() else {
        return Screen::None;
    };
    let screen = match told.content {
        Content::Pixels(colours) => Screen::Framebuffer(Framebuffer {
            firmware: if information.efi64_system_table().is_some() || information.is_efi32() {
                VideoFirmware::Efi
            } else {
                VideoFirmware::Vesa
            },
            address: told.address,
            pitch: told.pitch,
            width: told.width,
            height: told.height,
            depth: told.depth,
            colours: colours.map(|(position, size)| Channel { position, size }),
        }),
        Content::Text => match (u8::try_from(told.width), u8::try_from(told.height)) {
            (Ok(columns), Ok(rows)) => Screen::Text { columns, rows },
            _ => Screen::None,
        },
        Content::Other => {
            log::warn!(
                "the screen has a palette; the host is not told of it. Choose another mode with GRUB's gfxpayload"
            );
            Screen::None
        }
    };
    match screen.check() {
        Ok(()) => screen,
        Err(error) => {
            log::warn!("{error}; the host is not told of it");
            Screen::None
        }
    }
}

fn efi(information: Information<'_>, host: &E820Map, image_end: u64, address: u64, room: &mut [u8]) -> Option<Efi> {
    const WITHOUT: &str = "the host starts without EFI: no EFI variables, no SMBIOS";
    let Some(system_table) = information.efi64_system_table() else {
        if information.is_efi32() {
            log::warn!("the firmware is 32-bit EFI; {WITHOUT}");
        }
        return None;
    };
    let Some(machine) = machine_map(information) else {
        log::warn!("the boot loader passes no EFI memory map; {WITHOUT}");
        return None;
    };
    match machine.and_then(|machine| efi::for_first_host(&machine, host, image_end, room)) {
        Ok(map) => Some(Efi {
            system_table,
            map_address: address,
            map,
        }),
        Err(error) => {
            log::warn!("{error}; {WITHOUT}");
            None
        }
    }
}

fn machine_map(information: Information<'_>) -> Option<Result<EfiMap<'_>, EfiMapError>> {
    let map = information.efi_map()?;
    Some(EfiMap::new(map.bytes, map.stride, map.version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::multiboot::tests::{build, framebuffer, words};
    use firmware_shim::e820::MemoryType;
    use std::vec::Vec;

    const ADDRESS: u64 = 0x80_9000;
    const IMAGE_END: u64 = 0x8_0000;
    const TAG_EFI32: u32 = 11;
    const TAG_EFI64: u32 = 12;
    const TAG_EFI_MAP: u32 = 17;

    fn efi_map(stride: u32) -> (u32, Vec<u8>) {
        let mut body = words(&[stride, 1]);
        // EfiConventionalMemory, write-back, of 2 MiB; then as much set aside (EFI_MEMORY_SP).
        body.extend(words(&[7, 0, 0, 0, 0, 0, 512, 0, 8, 0, 0, 0]));
        body.extend(words(&[7, 0, 0x20_0000, 0, 0, 0, 512, 0, 0x4_0008, 0, 0, 0]));
        // What boot services had, code and data, of a page each.
        body.extend(words(&[3, 0, 0x40_0000, 0, 0, 0, 1, 0, 8, 0, 0, 0]));
        body.extend(words(&[4, 0, 0x50_0000, 0, 0, 0, 1, 0, 8, 0, 0, 0]));
        (TAG_EFI_MAP, body)
    }

    fn told(tags: &[(u32, Vec<u8>)], room: &mut [u8]) -> (Screen, Option<Efi>) {
        let raw = build(tags);
        let mut host = E820Map::new();
        host.set(0..0x10_0000, MemoryType::Usable).unwrap();
        match for_first_host(Information::new(&raw).unwrap(), &host, IMAGE_END, ADDRESS, room) {
            Platform::FirstHost { screen, efi } => (screen, efi),
            Platform::Successor => panic!("no first host"),
        }
    }

    #[test]
    fn a_machine_with_efi() {
        let tags = [
            framebuffer(1, &[16, 8, 8, 8, 0, 8]),
            (TAG_EFI64, words(&[0x7e9e_c018, 0])),
            efi_map(48),
        ];
        let mut room = [0xaa; 300];
        let (screen, efi) = told(&tags, &mut room);
        assert!(matches!(screen, Screen::Framebuffer(f) if f.firmware == VideoFirmware::Efi && f.width == 1280));
        let efi = efi.unwrap();
        assert_eq!((efi.system_table, efi.map_address), (0x7e9e_c018, ADDRESS));
        assert_eq!(
            (efi.map.len, efi.map.stride),
            (6 * 48, 48),
            "split where its image must end, and where its memory ends"
        );
        let kinds: Vec<_> = room[..6 * 48].chunks(48).map(|d| d[0]).collect();
        assert_eq!(kinds, [7, 2, 0, 0, 0, 0]);
        assert_eq!(room[6 * 48..], [0xaa; 300 - 6 * 48]);

        let raw = build(&tags);
        let mut aside = soft_reserved(Information::new(&raw).unwrap());
        assert_eq!(aside.next(), Some(0x20_0000..0x40_0000));
        assert_eq!(aside.next(), None);
        let services: Vec<_> = boot_services(Information::new(&raw).unwrap()).collect();
        assert_eq!(services, [0x40_0000..0x40_1000, 0x50_0000..0x50_1000]);
    }

    #[test]
    fn efi_that_cannot_be_passed_on_is_left_out() {
        let table = (TAG_EFI64, words(&[0x7e9e_c018, 0]));
        let screen = framebuffer(1, &[16, 8, 8, 8, 0, 8]);
        for tags in [
            std::vec![screen.clone(), table.clone()],
            std::vec![screen.clone(), efi_map(48)],
            std::vec![screen.clone(), table.clone(), efi_map(44)],
            std::vec![screen.clone(), (TAG_EFI32, words(&[0x1000])), efi_map(48)],
        ] {
            let (screen, efi) = told(&tags, &mut [0; 300]);
            assert!(
                matches!(screen, Screen::Framebuffer(_)),
                "the screen is passed on all the same"
            );
            assert_eq!(efi, None);
        }
        assert_eq!(told(&[table, efi_map(48)], &mut [0; 6 * 48 - 1]).1, None, "no room");
        let raw = build(&[efi_map(44)]);
        assert_eq!(soft_reserved(Information::new(&raw).unwrap()).count(), 0);
    }

    #[test]
    fn screens_of_a_bios() {
        let screen = |tags: &[(u32, Vec<u8>)]| told(tags, &mut []).0;
        assert_eq!(screen(&[]), Screen::None);
        let vesa = screen(&[framebuffer(1, &[16, 8, 8, 8, 0, 8])]);
        assert!(matches!(vesa, Screen::Framebuffer(f) if f.firmware == VideoFirmware::Vesa));
        assert_eq!(screen(&[framebuffer(0, &[0, 1])]), Screen::None, "a palette");

        let mut text = words(&[0xb_8000, 0, 160, 80, 25]);
        text.extend([16, 2, 0, 0]);
        assert_eq!(screen(&[(8, text)]), Screen::Text { columns: 80, rows: 25 });
        let mut wide = words(&[0x8000_0000, 0, 0x4_0000, 0x1_0000, 1024]);
        wide.extend([32, 1, 0, 0, 16, 8, 8, 8, 0, 8]);
        assert_eq!(screen(&[(8, wide)]), Screen::None, "too wide for screen_info");
    }
}
