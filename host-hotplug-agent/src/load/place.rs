//! Where kernel, initramfs, command line and zero page go.
//!
//! ```text
//!  boot range:  [zero page][command line] ... [kernel, init_size] ...free... [initramfs]
//! ```

use anyhow::{Context, Result};
use firmware_shim::e820::E820Map;
use firmware_shim::linux::{ENTRY_64_OFFSET, KernelImage, Platform, ZERO_PAGE_LEN, ZeroPage};
use partitioner::MemRange;

use super::files::BOOT_PAGES;
use super::{Files, Placed};
use crate::error::Refusal;

const PAGE: u64 = 4096;

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

/// Places the image in `range`, which is all the successor's.
///
/// # Errors
/// [`Refusal::TooSmall`], or what the kernel does not accept.
pub fn layout(files: Files, range: MemRange, cmdline: &str, rsdp: u64, e820: &E820Map) -> Result<Layout> {
    let Files {
        kernel: file,
        initramfs,
    } = files;
    let kernel = KernelImage::parse(&file)?;
    let too_small = || Refusal::TooSmall {
        needed: kernel.init_size() + initramfs.len() as u64 + BOOT_PAGES,
        available: range.len(),
    };
    let zero_page_at = range.start();
    let cmdline_at = zero_page_at + PAGE;
    let lowest = (range.start() + BOOT_PAGES).max(kernel.preferred_address());
    let load = lowest
        .checked_next_multiple_of(kernel.alignment())
        .ok_or_else(too_small)?;
    let ramdisk_at = range
        .end()
        .checked_sub(initramfs.len() as u64)
        .map(|start| start / PAGE * PAGE)
        .filter(|&start| load.checked_add(kernel.init_size()).is_some_and(|end| end <= start))
        .ok_or_else(too_small)?;
    kernel.check_load(load, ramdisk_at - load)?;
    let mut zero_page = [0; ZERO_PAGE_LEN];
    ZeroPage {
        kernel: &kernel,
        load,
        cmdline: cmdline.as_bytes(),
        cmdline_address: cmdline_at,
        ramdisk: Some(ramdisk_at..ramdisk_at + initramfs.len() as u64),
        rsdp,
        e820,
        platform: Platform::Successor,
    }
    .write(&mut zero_page)
    .context("describing the successor's machine to its kernel")?;
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    let code = kernel.code().to_vec();
    Ok(Layout {
        entry: load + ENTRY_64_OFFSET,
        zero_page: zero_page_at,
        pieces: vec![
            Placed::bytes("kernel", load, code),
            Placed::bytes("initramfs", ramdisk_at, initramfs),
            Placed::bytes("command line", cmdline_at, line),
            Placed::bytes("zero page", zero_page_at, zero_page.to_vec()),
        ],
    })
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
}
