//! The Multiboot2 boot information (Multiboot2 specification 2.0, section 3.6), read from a copy of it.
//!
//! A reader of its own: L0 needs a few tags, as plain values, from bytes that it has copied away. The tag with a copy of
//! the SMBIOS entry point (13) is none of them: Linux finds SMBIOS by itself. Nor is the one that says where the loader put
//! L0 (21): L0 asks the CPU.

/// What EAX holds at the entry.
pub(crate) const BOOTLOADER_MAGIC: u32 = 0x36d7_6289;
/// Fixed part: total size and a reserved word.
const HEADER: usize = 8;
/// Type and size of a tag.
const TAG_HEADER: usize = 8;
/// Tags begin at multiples of this.
const TAG_ALIGN: usize = 8;
/// Fixed part of the memory map tag after its header: entry size and version.
const MAP_HEADER: usize = 8;

const TAG_COMMAND_LINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_FRAMEBUFFER: u32 = 8;
const TAG_EFI32: u32 = 11;
const TAG_EFI64: u32 = 12;
const TAG_RSDP_V1: u32 = 14;
const TAG_RSDP_V2: u32 = 15;
const TAG_EFI_MAP: u32 = 17;
const TAG_BOOT_SERVICES: u32 = 18;

/// `framebuffer_type`: pixels hold their colours.
const RGB: u8 = 1;
/// `framebuffer_type`: EGA text.
const EGA_TEXT: u8 = 2;
/// Where the colours of a pixel are described. The specification counts one reserved byte before it, GRUB's
/// `include/multiboot2.h` has two.
const COLOURS: usize = 24;
/// Fixed part of the EFI memory map tag after its header: descriptor size and version.
const EFI_MAP_HEADER: usize = 8;

/// The boot information.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Information<'a>(&'a [u8]);

/// A module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Module<'a> {
    /// Physical address.
    pub(crate) start: u64,
    /// First byte after it.
    pub(crate) end: u64,
    /// Its command line; without what is not UTF-8.
    pub(crate) line: &'a str,
}

/// The screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Physical address of pixels or characters.
    pub(crate) address: u64,
    /// Bytes from one line to the next.
    pub(crate) pitch: u32,
    /// Pixels or characters of a line.
    pub(crate) width: u32,
    /// Lines.
    pub(crate) height: u32,
    /// Bits per pixel.
    pub(crate) depth: u8,
    /// What is shown there.
    pub(crate) content: Content,
}

/// What a screen shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Characters.
    Text,
    /// Pixels that hold their colours: (lowest bit, bits) of red, green, blue.
    Pixels([(u8, u8); 3]),
    /// Something else: a palette, or a kind that L0 does not know.
    Other,
}

/// The EFI memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EfiMap<'a> {
    /// Bytes from one descriptor to the next.
    pub(crate) stride: u32,
    /// Version of the descriptors.
    pub(crate) version: u32,
    /// The descriptors.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Information<'a> {
    /// From a copy of the whole, whose first word is its size. `None` if that size is impossible or larger than the
    /// copy.
    pub(crate) fn new(copy: &'a [u8]) -> Option<Self> {
        let size = u32_at(copy, 0)? as usize;
        copy.get(..size).filter(|all| all.len() >= HEADER).map(Self)
    }

    /// Contents of all tags of a type, in order.
    fn tags(self, wanted: u32) -> impl Iterator<Item = &'a [u8]> + Clone {
        let mut rest = self.0.get(HEADER..).unwrap_or_default();
        core::iter::from_fn(move || {
            let (kind, size) = (u32_at(rest, 0)?, u32_at(rest, 4)? as usize);
            let body = rest.get(TAG_HEADER..size)?;
            rest = rest.get(size.next_multiple_of(TAG_ALIGN)..).unwrap_or_default();
            Some((kind, body))
        })
        .filter(move |&(kind, _)| kind == wanted)
        .map(|(_, body)| body)
    }

    /// L0's command line.
    pub(crate) fn command_line(self) -> &'a str {
        self.tags(TAG_COMMAND_LINE).next().map_or("", text)
    }

    /// The modules, in the order of the boot loader's configuration.
    pub(crate) fn modules(self) -> impl Iterator<Item = Module<'a>> + Clone {
        self.tags(TAG_MODULE).filter_map(|body| {
            let module = Module {
                start: u32_at(body, 0)?.into(),
                end: u32_at(body, 4)?.into(),
                line: text(body.get(8..)?),
            };
            (module.start < module.end).then_some(module)
        })
    }

    /// The memory map: (start, bytes, e820 type).
    pub(crate) fn memory_map(self) -> impl Iterator<Item = (u64, u64, u32)> + Clone + use<'a> {
        let body = self.tags(TAG_MEMORY_MAP).next().unwrap_or_default();
        let entry = u32_at(body, 0).map_or(0, |size| size as usize).max(24);
        body.get(MAP_HEADER..)
            .unwrap_or_default()
            .chunks_exact(entry)
            .filter_map(|e| Some((u64_at(e, 0)?, u64_at(e, 8)?, u32_at(e, 16)?)))
    }

    /// Copy of the machine's RSDP, the newer kind if there are both.
    pub(crate) fn rsdp(self) -> Option<&'a [u8]> {
        self.tags(TAG_RSDP_V2).next().or_else(|| self.tags(TAG_RSDP_V1).next())
    }

    /// The screen as the loader left it.
    pub(crate) fn screen(self) -> Option<Screen> {
        let body = self.tags(TAG_FRAMEBUFFER).next()?;
        let colour = |nth: usize| {
            let at = COLOURS + 2 * nth;
            Some((*body.get(at)?, *body.get(at + 1)?))
        };
        Some(Screen {
            address: u64_at(body, 0)?,
            pitch: u32_at(body, 8)?,
            width: u32_at(body, 12)?,
            height: u32_at(body, 16)?,
            depth: *body.get(20)?,
            content: match *body.get(21)? {
                RGB => Content::Pixels([colour(0)?, colour(1)?, colour(2)?]),
                EGA_TEXT => Content::Text,
                _ => Content::Other,
            },
        })
    }

    /// Physical address of the system table of 64-bit EFI.
    pub(crate) fn efi64_system_table(self) -> Option<u64> {
        u64_at(self.tags(TAG_EFI64).next()?, 0)
    }

    /// Whether the firmware is 32-bit EFI.
    pub(crate) fn is_efi32(self) -> bool {
        self.tags(TAG_EFI32).next().is_some()
    }

    /// The EFI memory map, as the firmware left it when boot services ended.
    pub(crate) fn efi_map(self) -> Option<EfiMap<'a>> {
        let body = self.tags(TAG_EFI_MAP).next()?;
        Some(EfiMap {
            stride: u32_at(body, 0)?,
            version: u32_at(body, 4)?,
            bytes: body.get(EFI_MAP_HEADER..)?,
        })
    }

    /// Whether the loader did not end EFI's boot services: then memory is still the firmware's.
    pub(crate) fn boot_services_run(self) -> bool {
        self.tags(TAG_BOOT_SERVICES).next().is_some()
    }
}

/// The string up to its terminating zero; up to the first byte that is not UTF-8, if there is one.
fn text(bytes: &[u8]) -> &str {
    let bytes = bytes.split(|&b| b == 0).next().unwrap_or_default();
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => bytes
            .get(..error.valid_up_to())
            .and_then(|valid| core::str::from_utf8(valid).ok())
            .unwrap_or(""),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::vec::Vec;

    pub(crate) fn build(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = std::vec![0; 8];
        for (kind, body) in tags {
            out.extend(kind.to_le_bytes());
            out.extend((body.len() as u32 + 8).to_le_bytes());
            out.extend(body);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        let size = out.len() as u32;
        out[..4].copy_from_slice(&size.to_le_bytes());
        out
    }

    fn module(start: u32, end: u32, line: &[u8]) -> (u32, Vec<u8>) {
        let mut body = Vec::from(start.to_le_bytes());
        body.extend(end.to_le_bytes());
        body.extend(line);
        body.push(0);
        (TAG_MODULE, body)
    }

    #[test]
    fn reads_what_grub_writes() {
        let mut map = Vec::from(24u32.to_le_bytes());
        map.extend(0u32.to_le_bytes());
        for (start, len, kind) in [(0u64, 0x9fc00u64, 1u32), (0x10_0000, 1 << 30, 1)] {
            map.extend(start.to_le_bytes());
            map.extend(len.to_le_bytes());
            map.extend(kind.to_le_bytes());
            map.extend([0; 4]);
        }
        let raw = build(&[
            (TAG_COMMAND_LINE, b"log=e9\0".to_vec()),
            module(0x1000, 0x2000, b"console=ttyS0"),
            module(0x3000, 0x3000, b"empty"),
            (TAG_MEMORY_MAP, map),
            module(0x4000, 0x5001, b"\xffx"),
            (TAG_RSDP_V1, b"RSD PTR one".to_vec()),
            (0, Vec::new()),
        ]);
        let info = Information::new(&raw).unwrap();
        assert_eq!(info.command_line(), "log=e9");
        let modules: Vec<_> = info.modules().collect();
        assert_eq!(modules.len(), 2);
        assert_eq!(modules[0].line, "console=ttyS0");
        assert_eq!(
            (modules[1].start, modules[1].end, modules[1].line),
            (0x4000, 0x5001, "")
        );
        assert_eq!(info.memory_map().count(), 2);
        assert_eq!(info.memory_map().nth(1), Some((0x10_0000, 1 << 30, 1)));
        assert_eq!(info.rsdp(), Some(&b"RSD PTR one"[..]));
    }

    /// Little-endian words one after the other.
    pub(crate) fn words(list: &[u32]) -> Vec<u8> {
        list.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(crate) fn framebuffer(kind: u8, colours: &[u8]) -> (u32, Vec<u8>) {
        let mut body = words(&[0x8000_0000, 1, 5120, 1280, 1024]);
        body.extend([32, kind, 0, 0]);
        body.extend(colours);
        (TAG_FRAMEBUFFER, body)
    }

    #[test]
    fn reads_what_grub_writes_on_efi() {
        let mut map = words(&[48, 1]);
        map.extend([7; 96]);
        let raw = build(&[
            (13, b"\x03\x02\0\0\0\0\0\0_SM3_".to_vec()),
            framebuffer(RGB, &[16, 8, 8, 8, 0, 8]),
            (TAG_EFI64, words(&[0x7e9e_c018, 2])),
            (TAG_EFI_MAP, map),
        ]);
        let info = Information::new(&raw).unwrap();
        assert_eq!(
            info.screen(),
            Some(Screen {
                address: 0x1_8000_0000,
                pitch: 5120,
                width: 1280,
                height: 1024,
                depth: 32,
                content: Content::Pixels([(16, 8), (8, 8), (0, 8)]),
            })
        );
        assert_eq!(info.efi64_system_table(), Some(0x2_7e9e_c018));
        assert_eq!(
            info.efi_map(),
            Some(EfiMap {
                stride: 48,
                version: 1,
                bytes: &[7; 96],
            })
        );
        assert!(!info.boot_services_run() && !info.is_efi32());
    }

    #[test]
    fn what_is_missing_is_none() {
        let raw = build(&[(TAG_BOOT_SERVICES, Vec::new()), (TAG_EFI32, words(&[0x1000]))]);
        let info = Information::new(&raw).unwrap();
        assert!(info.boot_services_run() && info.is_efi32());
        assert_eq!(info.screen(), None);
        assert_eq!(info.efi64_system_table(), None);
        assert_eq!(info.efi_map(), None);
    }

    #[test]
    fn screens_of_other_kinds() {
        let content = |kind, colours: &[u8]| {
            let raw = build(&[framebuffer(kind, colours)]);
            Information::new(&raw).unwrap().screen().map(|screen| screen.content)
        };
        assert_eq!(content(EGA_TEXT, &[]), Some(Content::Text));
        assert_eq!(content(0, &[0, 1]), Some(Content::Other));
        assert_eq!(content(9, &[]), Some(Content::Other));
        assert_eq!(content(RGB, &[16, 8, 8, 8, 0]), None, "cut off");
    }

    #[test]
    fn tags_cut_off_anywhere_are_none() {
        let (_, screen) = framebuffer(RGB, &[16, 8, 8, 8, 0, 8]);
        for len in 0..screen.len() {
            let raw = build(&[
                (TAG_FRAMEBUFFER, screen[..len].to_vec()),
                (TAG_EFI64, words(&[1, 2])[..len.min(7)].to_vec()),
                (TAG_EFI_MAP, words(&[48, 1])[..len.min(7)].to_vec()),
            ]);
            let info = Information::new(&raw).unwrap();
            assert_eq!(info.screen(), None, "{len} bytes");
            assert_eq!(info.efi64_system_table(), None);
            assert_eq!(info.efi_map(), None);
        }
    }

    #[test]
    fn damaged_information_ends_early_and_never_panics() {
        assert!(Information::new(&[]).is_none());
        assert!(Information::new(&100u32.to_le_bytes()).is_none());
        let raw = build(&[module(1, 2, b"a"), module(3, 4, b"b")]);
        for size in 0..raw.len() {
            let mut cut = raw.clone();
            cut[..4].copy_from_slice(&(size as u32).to_le_bytes());
            if let Some(info) = Information::new(&cut) {
                assert!(info.modules().count() <= 2);
            }
        }
        let mut zero_size = raw;
        zero_size[12..16].fill(0);
        assert_eq!(Information::new(&zero_size).unwrap().modules().count(), 0);
    }
}
