//! Where kernel, initramfs, command line and zero page go.
//!
//! ```text
//!  boot range:  [zero page][rest of the memory map][command line] ... [kernel, init_size] ...free... [initramfs]
//! ```

use anyhow::{Context, Result};
use firmware_shim::e820::E820Map;
use firmware_shim::linux::{E820_REST_LEN, ENTRY_64_OFFSET, KernelImage, Platform, ZERO_PAGE_LEN, ZeroPage};
use locum_abi::Header;
use partitioner::{BootSize, MemRange};

use super::files::BOOT_PAGES;
use super::{Files, Placed};
use crate::error::Refusal;

const PAGE: u64 = 4096;
/// Places in the boot range, which begins with the zero page.
const E820_REST: u64 = PAGE;
const COMMAND_LINE: u64 = 3 * PAGE;

const _: () = assert!(E820_REST + E820_REST_LEN as u64 <= COMMAND_LINE && COMMAND_LINE < BOOT_PAGES);

/// What the boot range begins with, and where the files are.
#[derive(Clone, Debug)]
pub struct Described {
    /// Load address of the kernel.
    load: u64,
    /// Where the initramfs begins.
    ramdisk: u64,
    zero_page: [u8; ZERO_PAGE_LEN],
    e820_rest: [u8; E820_REST_LEN],
}

/// The image in its places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What to copy.
    pub pieces: Vec<Placed>,
    /// The 64-bit entry point.
    pub entry: u64,
    /// The zero page.
    pub zero_page: u64,
}

/// What every L0 maps for a host at its entry.
const FIRST_REACH: u64 = 4 << 30;

/// End of what this L0 maps for a host at its entry: all of the image lies below.
pub fn reach(header: &Header) -> u64 {
    // 0: an L0 of before there was such a word.
    header.entry_end.max(FIRST_REACH)
}

/// What decides where the image goes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'k> {
    kernel: KernelImage<'k>,
    initramfs: u64,
}

impl<'k> Sizes<'k> {
    /// Of these files.
    ///
    /// # Errors
    /// If the kernel is none.
    pub fn of(kernel: &'k [u8], initramfs: &[u8]) -> Result<Self> {
        Ok(Self {
            kernel: KernelImage::parse(kernel)?,
            initramfs: initramfs.len() as u64,
        })
    }

    /// Where kernel and initramfs begin in `range`, and the zero page that says so.
    ///
    /// # Errors
    /// [`Refusal::TooSmall`], or what the kernel does not accept.
    pub fn describe(&self, range: MemRange, cmdline: &str, rsdp: u64, e820: &E820Map) -> Result<Described> {
        let kernel = &self.kernel;
        let too_small = || Refusal::TooSmall {
            needed: kernel.init_size() + self.initramfs + BOOT_PAGES,
            available: range.len(),
        };
        let lowest = (range.start() + BOOT_PAGES).max(kernel.preferred_address());
        let load = lowest
            .checked_next_multiple_of(kernel.alignment())
            .ok_or_else(too_small)?;
        let ramdisk = range
            .end()
            .checked_sub(self.initramfs)
            .map(|start| start / PAGE * PAGE)
            .filter(|&start| load.checked_add(kernel.init_size()).is_some_and(|end| end <= start))
            .ok_or_else(too_small)?;
        kernel.check_load(load, ramdisk - load)?;
        let (mut zero_page, mut e820_rest) = ([0; ZERO_PAGE_LEN], [0; E820_REST_LEN]);
        ZeroPage {
            kernel,
            load,
            cmdline: cmdline.as_bytes(),
            cmdline_address: range.start() + COMMAND_LINE,
            ramdisk: Some(ramdisk..ramdisk + self.initramfs),
            rsdp,
            e820,
            image_end: u64::MAX,
            e820_rest: range.start() + E820_REST,
            platform: Platform::Successor,
        }
        .write(&mut zero_page, &mut e820_rest)
        .context("describing the successor's machine to its kernel")?;
        Ok(Described {
            load,
            ramdisk,
            zero_page,
            e820_rest,
        })
    }
}

/// Places the image in `range`, which is all the successor's and below [`reach`].
///
/// # Errors
/// [`Refusal::TooSmall`], or what the kernel does not accept.
pub fn layout(files: Files, range: MemRange, cmdline: &str, rsdp: u64, e820: &E820Map) -> Result<Layout> {
    let Files {
        kernel: file,
        initramfs,
    } = files;
    let sizes = Sizes::of(&file, &initramfs)?;
    let Described {
        load,
        ramdisk,
        zero_page,
        e820_rest,
    } = sizes.describe(range, cmdline, rsdp, e820)?;
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    let code = sizes.kernel.code().to_vec();
    Ok(Layout {
        entry: load + ENTRY_64_OFFSET,
        zero_page: range.start(),
        pieces: vec![
            Placed::bytes("kernel", load, code),
            Placed::bytes("initramfs", ramdisk, initramfs),
            Placed::bytes("command line", range.start() + COMMAND_LINE, line),
            Placed::bytes("rest of the memory map", range.start() + E820_REST, e820_rest.to_vec()),
            Placed::bytes("zero page", range.start(), zero_page.to_vec()),
        ],
    })
}

/// Where the image goes: a row of blocks that this host removes itself, since memory that was nobody's cannot be written
/// through the module. One in the plan's boot range is preferred if the image fits there. What is beyond `reach`
/// does not count.
pub fn row(blocks: &[MemRange], boot: MemRange, size: BootSize, reach: u64) -> Option<MemRange> {
    let mut rows: Vec<MemRange> = Vec::new();
    for block in blocks {
        let Some(block) = MemRange::new(block.start(), block.end().min(reach)) else {
            continue;
        };
        match rows.last_mut() {
            Some(row) if row.end() == block.start() => {
                *row = MemRange::new(row.start(), block.end()).unwrap_or(*row);
            }
            _ => rows.push(block),
        }
    }
    rows.into_iter()
        .max_by_key(|row| (size.fits(*row), row.overlaps(boot), row.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::kernel::bzimage;
    use firmware_shim::e820::MemoryType;

    fn place(len: u64, initramfs: usize) -> Result<Layout> {
        let range = MemRange::with_len(0x4800_0000, len).unwrap();
        let mut e820 = E820Map::new();
        e820.set(range.start()..range.end(), MemoryType::Usable).unwrap();
        let files = Files {
            kernel: bzimage(1 << 20),
            initramfs: vec![1; initramfs],
        };
        layout(files, range, "console=ttyS1", 0x90_0000, &e820)
    }

    #[test]
    fn nothing_overlaps_and_all_lies_in_the_range() {
        let layout = place(128 << 20, 5_000_001).unwrap();
        assert_eq!(layout.entry, 0x4820_0000 + 0x200);
        let mut ranges: Vec<_> = layout
            .pieces
            .iter()
            .map(|p| (p.at, p.at + p.bytes.len() as u64))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
        assert!(ranges[0].0 >= 0x4800_0000 && ranges.last().unwrap().1 <= 0x5000_0000);
    }

    #[test]
    fn too_small_a_range_is_refused() {
        let error = place(40 << 20, 16 << 20).unwrap_err();
        assert!(error.to_string().contains("raise `memory`"), "{error}");
        assert!(place(8 << 20, 16 << 20).is_err());
    }

    #[test]
    fn the_image_goes_where_it_fits_and_can_be_written() {
        const MIB: u64 = 1 << 20;
        let range = |start, end| MemRange::new(start * MIB, end * MIB).unwrap();
        let size = BootSize {
            kernel_init: 64 * MIB,
            kernel_align: 2 * MIB,
            initramfs: 70 * MIB,
            tables: 0,
        };
        let blocks = [range(128, 256), range(1024, 1152), range(1152, 1280)];
        // The boot range is nobody's memory and one block after it: too small without the former.
        assert_eq!(row(&blocks, range(10, 256), size, FIRST_REACH), Some(range(1024, 1280)));
        let small = BootSize {
            initramfs: 20 * MIB,
            ..size
        };
        assert_eq!(row(&blocks, range(10, 256), small, FIRST_REACH), Some(range(128, 256)));
        assert_eq!(
            row(&blocks, range(10, 100), small, FIRST_REACH),
            Some(range(1024, 1280))
        );
        assert_eq!(row(&[], range(10, 100), small, FIRST_REACH), None);
        // Across 4 GiB, and beyond.
        let high = [range(3968, 4224), range(8192, 8448)];
        assert_eq!(row(&high, high[1], small, FIRST_REACH), Some(range(3968, 4096)));
        assert_eq!(row(&high[1..], high[1], small, FIRST_REACH), None);
        assert_eq!(row(&high[1..], high[1], small, 9 << 30), Some(high[1]), "L0 maps more");
        let mut header = Header::of_this_release();
        assert_eq!(reach(&header), FIRST_REACH);
        header.entry_end = 64 << 30;
        assert_eq!(reach(&header), 64 << 30);
    }
}
