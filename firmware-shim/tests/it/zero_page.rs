//! Kernel files and the zero page, read back with `linux-boot-params`.

use crate::fixture::{put, u16_at, u32_at, u64_at};
use firmware_shim::e820::{CAPACITY, E820Map, MemoryType};
use firmware_shim::linux::{
    E820_REST_LEN, ENTRY_64_OFFSET, KernelError, KernelImage, Platform, ZERO_PAGE_LEN, ZeroPage, ZeroPageError,
};
use linux_boot_params::{BootE820Entry, BootParams, E820Type, LINUX_BOOT_HEADER_MAGIC};
use std::mem::offset_of;
use std::ops::Range;

const SETUP_SECTS: usize = 7;
const CODE_LEN: usize = 0x4000;
const HDR: usize = offset_of!(BootParams, hdr);
/// Entries of the zero page (`E820_MAX_ENTRIES_ZEROPAGE` in Linux arch/x86/include/uapi/asm/bootparam.h).
const E820_MAX_ENTRIES_ZEROPAGE: usize = 128;

/// Offset in a kernel file of a field of the setup header.
macro_rules! at {
    ($field:ident) => {
        HDR + offset_of!(linux_boot_params::SetupHeader, $field)
    };
}

/// A bzImage as Debian's 6.12 has it, with other contents.
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0; (SETUP_SECTS + 1) * 512];
    file[..HDR].fill(0xff); // code of the boot sector, sentinel included
    put(&mut file, at!(setup_sects), &[SETUP_SECTS as u8]);
    put(&mut file, at!(root_flags), &1u16.to_le_bytes());
    put(&mut file, at!(syssize), &(CODE_LEN as u32 / 16).to_le_bytes());
    put(&mut file, at!(vid_mode), &0xffffu16.to_le_bytes());
    put(&mut file, at!(boot_flag), &0xaa55u16.to_le_bytes());
    put(&mut file, at!(jump), &[0xeb, 0x6a]);
    put(&mut file, at!(header), &LINUX_BOOT_HEADER_MAGIC.to_le_bytes());
    put(&mut file, at!(version), &0x020fu16.to_le_bytes());
    put(&mut file, at!(loadflags), &[0x83]);
    put(&mut file, at!(code32_start), &0x10_0000u32.to_le_bytes());
    put(&mut file, at!(initrd_addr_max), &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, at!(kernel_alignment), &0x20_0000u32.to_le_bytes());
    put(&mut file, at!(relocatable_kernel), &[1]);
    put(&mut file, at!(min_alignment), &[21]);
    put(&mut file, at!(xloadflags), &0x7fu16.to_le_bytes());
    put(&mut file, at!(cmdline_size), &2047u32.to_le_bytes());
    put(&mut file, at!(payload_offset), &0x300u32.to_le_bytes());
    put(&mut file, at!(payload_length), &0x3000u32.to_le_bytes());
    put(&mut file, at!(setup_data), &[0x77; 8]); // a list that is not there
    put(&mut file, at!(pref_address), &0x100_0000u64.to_le_bytes());
    put(&mut file, at!(init_size), &0x39e_c000u32.to_le_bytes());
    put(&mut file, 0x26c, &[0xee; 4]); // code after the header
    file.extend((0..CODE_LEN).map(|i| (i / 16) as u8));
    file.extend(b"a signature, as Secure Boot wants");
    file
}

fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, at, value);
    file
}

#[test]
fn offsets_are_the_protocols() {
    // Independent of the crate under test and of the fixture: numbers from zero-page.rst.
    assert_eq!(size_of::<BootParams>(), 0x1000);
    assert_eq!((HDR, at!(header), at!(init_size)), (0x1f1, 0x202, 0x260));
}

#[test]
fn reads_a_kernel() {
    let file = bzimage();
    let kernel = KernelImage::parse(&file).unwrap();
    assert_eq!(kernel.code().len(), CODE_LEN);
    assert_eq!(kernel.code()[..17], [&[0; 16], &[1][..]].concat());
    assert_eq!(ENTRY_64_OFFSET, 0x200);
    assert_eq!(kernel.protocol(), 0x020f);
    assert_eq!(kernel.init_size(), 0x39e_c000);
    assert_eq!(kernel.preferred_address(), 0x100_0000);
    assert_eq!(kernel.alignment(), 0x20_0000);
    assert_eq!(kernel.cmdline_size(), 2047);
    assert!(kernel.relocatable() && kernel.above_4g());
}

#[test]
fn no_setup_sectors_means_four() {
    let mut file = with(at!(setup_sects), &[0]);
    file.drain(5 * 512..(SETUP_SECTS + 1) * 512);
    let whole = bzimage();
    let wanted = KernelImage::parse(&whole).unwrap();
    assert_eq!(KernelImage::parse(&file).unwrap().code(), wanted.code());
}

#[test]
fn protocol_2_12_is_enough() {
    let file = with(at!(version), &0x020cu16.to_le_bytes());
    assert_eq!(KernelImage::parse(&file).unwrap().protocol(), 0x020c);
}

#[test]
fn each_fault_has_its_error() {
    let refused = |file: &[u8]| KernelImage::parse(file).unwrap_err();
    assert_eq!(refused(&[]), KernelError::TooShort(0));
    assert_eq!(refused(&vec![0; 8192]), KernelError::NoMagic);
    assert_eq!(
        refused(b"\x1f\x8b\x08 no kernel".repeat(80).as_slice()),
        KernelError::NoMagic
    );
    assert!(matches!(refused(&with(at!(boot_flag), &[0])), KernelError::Damaged(_)));
    let old = refused(&with(at!(version), &0x020bu16.to_le_bytes()));
    assert_eq!(old, KernelError::OldProtocol(0x020b));
    assert!(old.to_string().contains("2.11"), "{old}");
    assert_eq!(refused(&with(at!(xloadflags), &[0x7e])), KernelError::Not64Bit);
    for header_len in [0, 0x40, 0x8f, 0xff] {
        assert!(matches!(refused(&with(0x201, &[header_len])), KernelError::Damaged(_)));
    }
    assert!(matches!(refused(&with(at!(syssize), &[0; 4])), KernelError::Damaged(_)));
    let payload = with(at!(payload_length), &0x3d01u32.to_le_bytes());
    assert!(matches!(refused(&payload), KernelError::Damaged(_)));
    let payload = with(at!(payload_length), &u32::MAX.to_le_bytes());
    assert!(matches!(refused(&payload), KernelError::Damaged(_)));
    let alignment = with(at!(kernel_alignment), &[0; 4]);
    assert!(matches!(refused(&alignment), KernelError::Damaged(_)));
    let init_size = with(at!(init_size), &[0; 4]);
    assert!(matches!(refused(&init_size), KernelError::Damaged(_)));
}

#[test]
fn a_truncated_kernel_is_told_from_a_whole_one_at_every_length() {
    let file = bzimage();
    let whole = (SETUP_SECTS + 1) * 512 + CODE_LEN;
    let step = if cfg!(miri) { 997 } else { 1 };
    for len in (0x290..whole).step_by(step) {
        let wanted = KernelError::Truncated {
            needed: whole as u64,
            have: len as u64,
        };
        assert_eq!(KernelImage::parse(&file[..len]).unwrap_err(), wanted);
    }
    for len in 0..0x290 {
        assert_eq!(
            KernelImage::parse(&file[..len]).unwrap_err(),
            KernelError::TooShort(len)
        );
    }
    KernelImage::parse(&file[..whole]).unwrap();
}

#[test]
fn load_addresses_are_checked() {
    let file = bzimage();
    let kernel = KernelImage::parse(&file).unwrap();
    let room = kernel.init_size();
    kernel.check_load(0x100_0000, room).unwrap();
    kernel.check_load(0x4800_0000, room).unwrap();
    kernel.check_load(0x1_0000_0000, room).unwrap();
    let why = |load, room| kernel.check_load(load, room).unwrap_err().to_string();
    assert!(why(0x110_0000, room).contains("not aligned"));
    assert!(why(0x80_0000, room).contains("below the preferred"));
    assert_eq!(
        kernel.check_load(0x100_0000, room - 1),
        Err(KernelError::Room {
            needed: room,
            have: room - 1
        })
    );
    let fixed = with(at!(relocatable_kernel), &[0]);
    let fixed = KernelImage::parse(&fixed).unwrap();
    fixed.check_load(0x100_0000, room).unwrap();
    let error = fixed.check_load(0x120_0000, room).unwrap_err();
    assert_eq!(error, KernelError::NotRelocatable(0x100_0000));
    let told = error.to_string();
    assert!(
        told.contains("0x1000000 only") && told.contains("CONFIG_RELOCATABLE"),
        "{told}"
    );
    let low = with(at!(xloadflags), &[1]);
    let low = KernelImage::parse(&low).unwrap();
    assert!(low.check_load(0x1_0000_0000, room).is_err());
    low.check_load(0xf000_0000, 0x1000_0000).unwrap();
}

pub fn memory() -> E820Map {
    let mut map = E820Map::new();
    map.set(0x1_0000..0x5_0000, MemoryType::Usable).unwrap();
    map.set(0x80_0000..0xa0_0000, MemoryType::AcpiNvs).unwrap();
    map.set(0x100_0000..0x6800_0000, MemoryType::Usable).unwrap();
    map.set(0x6800_0000..0x7fe0_0000, MemoryType::SoftReserved).unwrap();
    map.set(0x1_0000_0000..0x3_0000_0000, MemoryType::Usable).unwrap();
    map
}

pub fn page<'a>(kernel: &'a KernelImage<'a>, e820: &'a E820Map) -> ZeroPage<'a> {
    ZeroPage {
        kernel,
        load: 0x200_0000,
        cmdline: b"console=ttyS0 maxcpus=2",
        cmdline_address: 0x1_f000,
        ramdisk: Some(0x800_0000..0x923_4567),
        rsdp: 0x80_1000,
        e820,
        e820_rest: 0x80_4000,
        image_end: u64::MAX,
        platform: Platform::Successor,
    }
}

pub fn boot_params(page: &ZeroPage<'_>) -> (BootParams, [u8; ZERO_PAGE_LEN]) {
    let (params, raw, rest) = with_rest(page);
    assert_eq!(rest, [0; E820_REST_LEN], "all fits");
    (params, raw)
}

fn with_rest(page: &ZeroPage<'_>) -> (BootParams, [u8; ZERO_PAGE_LEN], [u8; E820_REST_LEN]) {
    let (mut raw, mut rest) = ([0xaa; ZERO_PAGE_LEN], [0xaa; E820_REST_LEN]);
    page.write(&mut raw, &mut rest).unwrap();
    // The kinds of memory are an enumeration, to which 0 does not belong: entries that are not used say RAM.
    let mut known = raw;
    let unused = usize::from(raw[offset_of!(BootParams, e820_entries)])..E820_MAX_ENTRIES_ZEROPAGE;
    for entry in unused {
        let kind =
            offset_of!(BootParams, e820_table) + entry * size_of::<BootE820Entry>() + offset_of!(BootE820Entry, typ);
        known[kind..kind + 4].copy_from_slice(&(E820Type::Ram as u32).to_le_bytes());
    }
    #[expect(unsafe_code, reason = "plain old data read from bytes")]
    // SAFETY: the structure is packed integers, of the array's size as a test above pins, and kinds of memory that there are.
    let params = unsafe { known.as_ptr().cast::<BootParams>().read_unaligned() };
    (params, raw, rest)
}

#[test]
fn the_zero_page_says_what_it_was_told() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    let (params, raw) = boot_params(&page(&kernel, &e820));
    let hdr = params.hdr;
    assert_eq!({ params.acpi_rsdp_addr }, 0x80_1000);
    assert_eq!((hdr.type_of_loader, hdr.loadflags), (0xff, 1));
    assert_eq!(({ hdr.cmd_line_ptr }, { params.ext_cmd_line_ptr }), (0x1_f000, 0));
    assert_eq!(({ hdr.ramdisk_image }, { params.ext_ramdisk_image }), (0x800_0000, 0));
    assert_eq!(({ hdr.ramdisk_size }, { params.ext_ramdisk_size }), (0x123_4567, 0));
    assert_eq!({ hdr.code32_start }, 0x200_0000);
    assert_eq!({ hdr.header }, LINUX_BOOT_HEADER_MAGIC);
    assert_eq!(({ hdr.version }, { hdr.init_size }), (0x020f, 0x39e_c000));
    assert_eq!(({ hdr.setup_data }, { hdr.pref_address }), (0, 0x100_0000));
    assert_eq!(params.sentinel, 0, "or the kernel takes the page for copied blindly");
    assert_eq!(raw[..0x70], [0; 0x70], "no screen");
    assert_eq!(raw[0x26c..0x290], [0; 0x24], "nothing after the header");
    assert_eq!(params.edd_mbr_sig_buf_entries, 0);

    assert_eq!(params.e820_entries, 5);
    let table = params.e820_table;
    let read: Vec<(u64, u64, u32)> = table[..5]
        .iter()
        .map(|entry| (entry.addr, entry.size, entry.typ as u32))
        .collect();
    let wanted: Vec<(u64, u64, u32)> = e820
        .entries()
        .iter()
        .map(|entry| (entry.start, entry.end - entry.start, entry.kind.raw()))
        .collect();
    assert_eq!(read, wanted);
}

#[test]
fn addresses_above_4_gib_are_split() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    let (params, _) = boot_params(&ZeroPage {
        load: 0x1_4000_0000,
        cmdline_address: 0x1_0000_1000,
        ramdisk: Some(0x1_8000_0000..0x2_9000_0000),
        ..page(&kernel, &e820)
    });
    let hdr = params.hdr;
    assert_eq!(({ hdr.cmd_line_ptr }, { params.ext_cmd_line_ptr }), (0x1000, 1));
    assert_eq!(({ hdr.ramdisk_image }, { params.ext_ramdisk_image }), (0x8000_0000, 1));
    assert_eq!(({ hdr.ramdisk_size }, { params.ext_ramdisk_size }), (0x1000_0000, 1));
}

#[test]
fn no_ramdisk_is_all_zero() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    let (params, _) = boot_params(&ZeroPage {
        ramdisk: None,
        ..page(&kernel, &e820)
    });
    assert_eq!(({ params.hdr.ramdisk_image }, { params.hdr.ramdisk_size }), (0, 0));
}

#[test]
fn a_full_map_fits_the_table() {
    let (file, mut e820) = (bzimage(), memory());
    let mut at = 0x100_0000_0000;
    while e820.entries().len() < 128 {
        e820.set(at..at + 0x1000, MemoryType::Reserved).unwrap();
        at += 0x2000;
    }
    let kernel = KernelImage::parse(&file).unwrap();
    let (params, raw) = boot_params(&page(&kernel, &e820));
    assert_eq!(params.e820_entries, 128);
    let last = 0x2d0 + 127 * 20;
    assert_eq!((u32_at(&raw, last + 16), u16_at(&raw, last + 20)), (2, 0));
    assert_eq!(raw[last + 20..], [0; ZERO_PAGE_LEN - 0x2d0 - 128 * 20]);
}

/// Figures of `Documentation/arch/x86/boot.rst` (setup_data) and of Linux' `SETUP_E820_EXT`.
#[test]
fn what_does_not_fit_the_table_follows_in_a_list() {
    let (file, mut e820) = (bzimage(), memory());
    let mut at = 0x100_0000_0000;
    let kernel = KernelImage::parse(&file).unwrap();
    while e820.set(at..at + 0x1000, MemoryType::AcpiNvs).is_ok() {
        at += 0x2000;
        let count = e820.entries().len();
        if ![129, 200, CAPACITY].contains(&count) {
            continue;
        }
        let (params, raw, rest) = with_rest(&page(&kernel, &e820));
        assert_eq!((params.e820_entries, { params.hdr.setup_data }), (128, 0x80_4000));
        assert_eq!(
            raw[0x2d0 + 128 * 20..],
            [0; ZERO_PAGE_LEN - 0x2d0 - 128 * 20],
            "as with a full table"
        );
        let data = (count - 128) * 20;
        assert_eq!(
            (u64_at(&rest, 0), u32_at(&rest, 8), u32_at(&rest, 12)),
            (0, 1, data as u32)
        );
        let told: Vec<_> = [&raw[0x2d0..0x2d0 + 128 * 20], &rest[16..16 + data]]
            .concat()
            .chunks(20)
            .map(|entry| (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)))
            .collect();
        let wanted: Vec<_> = e820
            .entries()
            .iter()
            .map(|entry| (entry.start, entry.end - entry.start, entry.kind.raw()))
            .collect();
        assert_eq!(told, wanted);
        assert!(rest[16 + data..].iter().all(|byte| *byte == 0));
    }
    assert_eq!(e820.entries().len(), CAPACITY);
}

/// (first byte, length, type number) of `count` entries.
fn entries(raw: &[u8], count: usize) -> Vec<(u64, u64, u32)> {
    raw.chunks(20)
        .take(count)
        .map(|entry| (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)))
        .collect()
}

#[test]
fn ram_that_the_image_must_not_get_is_in_the_list() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    let told = |image_end| {
        let (params, raw, rest) = with_rest(&ZeroPage {
            image_end,
            ..page(&kernel, &e820)
        });
        // struct setup_data: next, type (SETUP_E820_EXT), len.
        let len = u32_at(&rest, 12) as usize;
        assert_eq!((u64_at(&rest, 0), u32_at(&rest, 8)), (0, u32::from(len > 0)));
        assert!(rest[16 + len..].iter().all(|&byte| byte == 0));
        (
            { params.hdr.setup_data },
            entries(&raw[0x2d0..], params.e820_entries.into()),
            entries(&rest[16..], len / 20),
        )
    };
    let low = [(0x1_0000, 0x4_0000, 1), (0x80_0000, 0x20_0000, 4)];
    let pool = (0x6800_0000, 0x17e0_0000, 0xefff_ffff);
    let high = (0x1_0000_0000, 0x2_0000_0000, 1);
    assert_eq!(
        told(0x4000_0000),
        (
            0x80_4000,
            [&low[..], &[(0x100_0000, 0x3f00_0000, 1), pool]].concat(),
            vec![(0x4000_0000, 0x2800_0000, 1), high],
        ),
        "cut in two; what is no RAM stays"
    );
    let whole = [&low[..], &[(0x100_0000, 0x6700_0000, 1), pool]].concat();
    assert_eq!(told(0x1_0000_0000), (0x80_4000, whole.clone(), vec![high]));
    let all = [&whole[..], &[high]].concat();
    assert_eq!(told(0x3_0000_0000), (0, all, vec![]), "nothing to tell");
}

#[test]
fn what_the_kernel_would_not_find_is_refused() {
    let (file, e820) = (bzimage(), memory());
    let kernel = KernelImage::parse(&file).unwrap();
    let refused = |page: ZeroPage<'_>| {
        let mut raw = [0xaa; ZERO_PAGE_LEN];
        let mut rest = [0xaa; E820_REST_LEN];
        let error = page.write(&mut raw, &mut rest).unwrap_err();
        assert_eq!(raw, [0xaa; ZERO_PAGE_LEN], "nothing written");
        assert_eq!(rest, [0xaa; E820_REST_LEN], "nothing written");
        error
    };
    let page = || page(&kernel, &e820);

    let long = vec![b'x'; 2048];
    let error = refused(ZeroPage {
        cmdline: &long,
        ..page()
    });
    assert_eq!(error, ZeroPageError::CommandLineTooLong { len: 2048, max: 2047 });
    let fits = ZeroPage {
        cmdline: &long[..2047],
        ..page()
    };
    boot_params(&fits);
    let error = refused(ZeroPage {
        cmdline: b"quiet\0init=/bin/sh",
        ..page()
    });
    assert_eq!(error, ZeroPageError::CommandLineZero(5));

    let what = |page: ZeroPage<'_>| match refused(page) {
        ZeroPageError::NotInRam { what, .. } | ZeroPageError::Above4G { what, .. } => what,
        other => panic!("{other}"),
    };
    let ramdisk = |range: Range<u64>| ZeroPage {
        ramdisk: Some(range),
        ..page()
    };
    assert_eq!(what(ramdisk(0x6700_0000..0x6800_1000)), "the ramdisk", "in the pool");
    assert_eq!(what(ramdisk(0x800_0000..0x800_0000)), "the ramdisk", "empty");
    let load = |load| ZeroPage { load, ..page() };
    assert_eq!(what(load(0x6600_0000)), "the kernel");
    let cmdline = |cmdline_address| ZeroPage {
        cmdline_address,
        ..page()
    };
    assert_eq!(what(cmdline(0xc_0000)), "the command line");
    assert_eq!(what(cmdline(u64::MAX)), "the command line");
    boot_params(&cmdline(0x80_8000));
    let rest = |e820_rest| ZeroPage { e820_rest, ..page() };
    assert_eq!(what(rest(0xc_0000)), "the rest of the memory map");
    boot_params(&rest(0x200_0000));

    let low = with(at!(xloadflags), &[1]);
    let low = KernelImage::parse(&low).unwrap();
    assert_eq!(
        what(ZeroPage {
            kernel: &low,
            ramdisk: Some(0x1_0000_0000..0x1_0100_0000),
            ..page()
        }),
        "the ramdisk"
    );
}
