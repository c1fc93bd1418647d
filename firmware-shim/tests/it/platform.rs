//! Screen and EFI in the zero page. Read back with offsets and types of `linux-boot-params`.

use crate::zero_page::{boot_params, bzimage, memory, page};
use firmware_shim::efi::MapForHost;
use firmware_shim::linux::{
    Channel, E820_REST_LEN, Efi, Framebuffer, KernelImage, Platform, Screen, VideoFirmware, ZERO_PAGE_LEN, ZeroPage,
    ZeroPageError,
};
use linux_boot_params::BootParams;

fn zero_page(platform: Platform) -> (BootParams, [u8; ZERO_PAGE_LEN]) {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    boot_params(&ZeroPage {
        platform,
        ..page(&kernel, &e820)
    })
}

fn first_host(screen: Screen) -> Platform {
    Platform::FirstHost { screen, efi: None }
}

/// 1280 x 1024, blue in the lowest byte, as OVMF has it.
const OVMF: Framebuffer = Framebuffer {
    firmware: VideoFirmware::Efi,
    address: 0x8000_0000,
    pitch: 5120,
    width: 1280,
    height: 1024,
    depth: 32,
    colours: [
        Channel { position: 16, size: 8 },
        Channel { position: 8, size: 8 },
        Channel { position: 0, size: 8 },
    ],
};

#[test]
fn an_efi_framebuffer() {
    let (params, raw) = zero_page(first_host(Screen::Framebuffer(OVMF)));
    let si = params.screen_info;
    assert_eq!(si.orig_video_is_vga, 0x70, "VIDEO_TYPE_EFI");
    assert_eq!(
        ({ si.lfb_width }, { si.lfb_height }, { si.lfb_depth }),
        (1280, 1024, 32)
    );
    assert_eq!(({ si.lfb_base }, { si.lfb_size }), (0x8000_0000, 5120 * 1024));
    assert_eq!({ si.lfb_linelength }, 5120);
    let bits = |size, position| (size, position);
    assert_eq!(bits(si.red_size, si.red_pos), (8, 16));
    assert_eq!(bits(si.green_size, si.green_pos), (8, 8));
    assert_eq!(bits(si.blue_size, si.blue_pos), (8, 0));
    assert_eq!(bits(si.rsvd_size, si.rsvd_pos), (8, 24), "what is left of a pixel");
    assert_eq!(({ si.capabilities }, { si.ext_lfb_base }), (0, 0));
    assert_eq!(raw[0x1c0..0x1e0], [0; 0x20], "no EFI without its map");
}

#[test]
fn a_framebuffer_above_4_gib_has_a_64_bit_base() {
    let (params, _) = zero_page(first_host(Screen::Framebuffer(Framebuffer {
        address: 0x38_0012_0000_0000,
        ..OVMF
    })));
    let si = params.screen_info;
    assert_eq!(({ si.lfb_base }, { si.ext_lfb_base }), (0, 0x38_0012));
    assert_eq!({ si.capabilities }, 2, "VIDEO_CAPABILITY_64BIT_BASE");
}

#[test]
fn a_vesa_framebuffer_counts_its_size_in_64_kib() {
    let (params, _) = zero_page(first_host(Screen::Framebuffer(Framebuffer {
        firmware: VideoFirmware::Vesa,
        pitch: 2048,
        width: 1024,
        height: 769,
        depth: 16,
        colours: [
            Channel { position: 11, size: 5 },
            Channel { position: 5, size: 6 },
            Channel { position: 0, size: 5 },
        ],
        ..OVMF
    })));
    let si = params.screen_info;
    assert_eq!(si.orig_video_is_vga, 0x23, "VIDEO_TYPE_VLFB");
    assert_eq!({ si.lfb_size }, 25, "the last unit is not full");
    assert_eq!((si.rsvd_size, si.rsvd_pos), (0, 0), "every bit is a colour's");
}

#[test]
fn unused_bits_may_be_the_lowest() {
    let (params, _) = zero_page(first_host(Screen::Framebuffer(Framebuffer {
        colours: [24, 16, 8].map(|position| Channel { position, size: 8 }),
        ..OVMF
    })));
    let si = params.screen_info;
    assert_eq!((si.rsvd_size, si.rsvd_pos), (8, 0));
}

#[test]
fn a_text_screen() {
    let (params, _) = zero_page(first_host(Screen::Text { columns: 80, rows: 25 }));
    let si = params.screen_info;
    assert_eq!((si.orig_video_is_vga, si.orig_video_mode), (1, 3));
    assert_eq!((si.orig_video_cols, si.orig_video_lines), (80, 25));
    assert_eq!(({ si.orig_video_points }, { si.lfb_base }), (16, 0));
    assert_eq!((si.orig_x, si.orig_y), (0, 24), "below what is there");
}

#[test]
fn a_screen_that_has_no_room_is_refused() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    for framebuffer in [
        Framebuffer {
            width: 0x1_0000,
            ..OVMF
        },
        Framebuffer {
            height: 0x1_0000,
            ..OVMF
        },
        Framebuffer {
            pitch: 0x1_0000,
            ..OVMF
        },
    ] {
        let mut raw = [0xaa; ZERO_PAGE_LEN];
        let error = ZeroPage {
            platform: first_host(Screen::Framebuffer(framebuffer)),
            ..page(&kernel, &e820)
        }
        .write(&mut raw, &mut [0; E820_REST_LEN])
        .unwrap_err();
        assert!(matches!(error, ZeroPageError::Screen(_)), "{error}");
        assert!(error.to_string().contains("gfxpayload"), "{error}");
        assert_eq!(raw, [0xaa; ZERO_PAGE_LEN], "nothing written");
    }
}

#[test]
fn efi_as_linux_looks_for_it() {
    let (params, raw) = zero_page(Platform::FirstHost {
        screen: Screen::None,
        efi: Some(Efi {
            system_table: 0x1_7e9e_c018,
            map_address: 0x2_0080_9000,
            map: MapForHost {
                len: 96 * 48,
                stride: 48,
                version: 1,
            },
        }),
    });
    assert_eq!(raw[..0x40], [0; 0x40], "no screen");
    let efi = params.efi_info;
    assert_eq!({ efi.efi_loader_signature }, u32::from_le_bytes(*b"EL64"));
    assert_eq!(({ efi.efi_systab }, { efi.efi_systab_hi }), (0x7e9e_c018, 1));
    assert_eq!(({ efi.efi_memmap }, { efi.efi_memmap_hi }), (0x80_9000, 2));
    assert_eq!({ efi.efi_memmap_size }, 96 * 48);
    assert_eq!(({ efi.efi_memdesc_size }, { efi.efi_memdesc_version }), (48, 1));
}

#[test]
fn a_successor_gets_neither_screen_nor_efi() {
    let (_, raw) = zero_page(Platform::Successor);
    assert_eq!(raw[..0x40], [0; 0x40]);
    assert_eq!(raw[0x1c0..0x1e0], [0; 0x20]);
}
