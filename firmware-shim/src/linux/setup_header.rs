//! Offsets of the setup header and of `struct boot_params`.
//!
//! Sources: `Documentation/arch/x86/boot.rst` ("The Real-Mode Kernel Header"), `Documentation/arch/x86/zero-page.rst`
//! and
//! `arch/x86/include/uapi/asm/bootparam.h`. The header has the same offsets in a kernel file and in the zero page.

/// `setup_sects`, u8: 512-byte sectors of the setup code, less the boot sector. 0 means 4.
pub const SETUP_SECTS: usize = 0x1f1;
/// First byte of the setup header.
pub const HEADER_START: usize = SETUP_SECTS;
/// `syssize`, u32: length of the protected-mode code in 16-byte units.
pub const SYSSIZE: usize = 0x1f4;
/// `boot_flag`, u16: 0xAA55.
pub const BOOT_FLAG: usize = 0x1fe;
/// Offset of the byte that, added to [`HEADER_BASE`], gives the end of the setup header.
pub const HEADER_LEN_BYTE: usize = 0x201;
/// What the byte at [`HEADER_LEN_BYTE`] counts from.
pub const HEADER_BASE: usize = 0x202;
/// `header`, 4 bytes: "HdrS".
pub const MAGIC: usize = 0x202;
/// `version`, u16: boot protocol, major in the high byte.
pub const VERSION: usize = 0x206;
/// `type_of_loader`, u8.
pub const TYPE_OF_LOADER: usize = 0x210;
/// `loadflags`, u8.
pub const LOADFLAGS: usize = 0x211;
/// `code32_start`, u32.
pub const CODE32_START: usize = 0x214;
/// `ramdisk_image`, u32: low half of the address.
pub const RAMDISK_IMAGE: usize = 0x218;
/// `ramdisk_size`, u32: low half of the size.
pub const RAMDISK_SIZE: usize = 0x21c;
/// `cmd_line_ptr`, u32: low half of the address.
pub const CMD_LINE_PTR: usize = 0x228;
/// `kernel_alignment`, u32.
pub const KERNEL_ALIGNMENT: usize = 0x230;
/// `relocatable_kernel`, u8.
pub const RELOCATABLE_KERNEL: usize = 0x234;
/// `xloadflags`, u16.
pub const XLOADFLAGS: usize = 0x236;
/// `cmdline_size`, u32: longest command line, without its terminating zero.
pub const CMDLINE_SIZE: usize = 0x238;
/// `payload_offset`, u32: of the compressed kernel, from the start of the protected-mode code.
pub const PAYLOAD_OFFSET: usize = 0x248;
/// `payload_length`, u32.
pub const PAYLOAD_LENGTH: usize = 0x24c;
/// `setup_data`, u64: physical address of a list.
pub const SETUP_DATA: usize = 0x250;
/// `pref_address`, u64.
pub const PREF_ADDRESS: usize = 0x258;
/// `init_size`, u32: contiguous memory that the kernel needs from its load address.
pub const INIT_SIZE: usize = 0x260;
/// First byte after the room for the setup header.
pub const HEADER_ROOM_END: usize = 0x290;

/// `screen_info`.
pub const SCREEN_INFO: usize = 0x000;
/// `acpi_rsdp_addr`, u64.
pub const ACPI_RSDP_ADDR: usize = 0x070;
/// `ext_ramdisk_image`, u32: high half of the address.
pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
/// `ext_ramdisk_size`, u32: high half of the size.
pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
/// `ext_cmd_line_ptr`, u32: high half of the address.
pub const EXT_CMD_LINE_PTR: usize = 0x0c8;
/// `efi_info.efi_loader_signature`.
pub const EFI_LOADER_SIGNATURE: usize = 0x1c0;
/// `efi_info.efi_systab`, u32: low half of the address.
pub const EFI_SYSTAB: usize = 0x1c4;
/// `efi_info.efi_memdesc_size`, u32.
pub const EFI_MEMDESC_SIZE: usize = 0x1c8;
/// `efi_info.efi_memdesc_version`, u32.
pub const EFI_MEMDESC_VERSION: usize = 0x1cc;
/// `efi_info.efi_memmap`, u32: low half of the address.
pub const EFI_MEMMAP: usize = 0x1d0;
/// `efi_info.efi_memmap_size`, u32, bytes.
pub const EFI_MEMMAP_SIZE: usize = 0x1d4;
/// `efi_info.efi_systab_hi`, u32.
pub const EFI_SYSTAB_HI: usize = 0x1d8;
/// `efi_info.efi_memmap_hi`, u32.
pub const EFI_MEMMAP_HI: usize = 0x1dc;
/// `e820_entries`, u8.
pub const E820_ENTRIES: usize = 0x1e8;
/// `e820_table`: entries of address u64, size u64, type u32.
pub const E820_TABLE: usize = 0x2d0;
/// Length of an e820 entry in bytes.
pub const E820_ENTRY_LEN: usize = 20;
/// Entries that there is room for (Linux `E820_MAX_ENTRIES_ZEROPAGE`).
pub const E820_ENTRIES_MAX: usize = 128;
/// Bytes before the data of a node of the list at [`SETUP_DATA`] (`struct setup_data`): next u64, type u32, length of the
/// data u32.
pub const SETUP_NODE_LEN: usize = 16;
/// Offset of the node's type.
pub const SETUP_NODE_TYPE: usize = 8;
/// Offset of the length of the node's data.
pub const SETUP_NODE_DATA_LEN: usize = 12;
/// Type of a node with further e820 entries.
pub const SETUP_E820_EXT: u32 = 1;

/// `xloadflags`: the kernel has the 64-bit entry point.
pub const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel, zero page, command line and ramdisk may lie above 4 GiB.
pub const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// `loadflags`: the protected-mode code is not at 0x10000.
pub const LOADED_HIGH: u8 = 1 << 0;
/// `type_of_loader`: a boot loader without an assigned id.
pub const LOADER_UNDEFINED: u8 = 0xff;
