//! The zero page (`struct boot_params`): all that a kernel is told when it starts.

use super::kernel::KernelImage;
use super::memory_map::{self, E820_REST_LEN};
use super::platform::Platform;
use super::screen::ScreenError;
use super::setup_header as at;
use crate::bytes::put;
use crate::e820::{E820Map, MemoryType};
use core::ops::Range;

/// Length of the zero page in bytes.
pub const ZERO_PAGE_LEN: usize = 4096;

/// The kernel cannot be told what it was to be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZeroPageError {
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, the kernel takes {max}; shorten it")]
    CommandLineTooLong {
        /// Its length.
        len: u64,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line has a zero byte inside.
    #[error("the kernel command line has a zero byte at {0}; the kernel would not see the rest")]
    CommandLineZero(usize),
    /// Something is above 4 GiB and the kernel cannot reach it there.
    #[error("{what} ends at {end:#x}, but this kernel takes nothing above 4 GiB; put it lower")]
    Above4G {
        /// What it is.
        what: &'static str,
        /// First byte after it.
        end: u64,
    },
    /// Something that the kernel reads does not lie in its memory.
    #[error("{what} {range:#x?} is not in the host's memory map as it must be; place it in the host's RAM")]
    NotInRam {
        /// What it is.
        what: &'static str,
        /// Where it is.
        range: Range<u64>,
    },
    /// The screen cannot be described.
    #[error(transparent)]
    Screen(#[from] ScreenError),
}

/// What the zero page says.
#[derive(Clone, Debug)]
pub struct ZeroPage<'a> {
    /// The kernel.
    pub kernel: &'a KernelImage<'a>,
    /// Physical address at which its protected-mode code lies.
    pub load: u64,
    /// The command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Physical address at which the caller puts the command line, with one zero byte after it.
    pub cmdline_address: u64,
    /// Physical range of the ramdisk, if there is one.
    pub ramdisk: Option<Range<u64>>,
    /// Physical address of the RSDP.
    pub rsdp: u64,
    /// The host's memory map.
    pub e820: &'a E820Map,
    /// RAM from this physical address on is not for the kernel's image, whatever KASLR would like; `u64::MAX` if all is.
    pub image_end: u64,
    /// Physical address at which the caller puts the rest of the map, where the kernel reads [`E820_REST_LEN`] bytes at
    /// most.
    pub e820_rest: u64,
    /// Screen and EFI.
    pub platform: Platform,
}

impl ZeroPage<'_> {
    /// Fills `out`, overwriting all of it. EDD information stays zero, as do screen and EFI if the host has none. What of
    /// the memory map does not fit goes to `rest`, which is all zero if there is nothing.
    ///
    /// # Errors
    /// [`ZeroPageError`]; `out` and `rest` are unchanged then.
    pub fn write(&self, out: &mut [u8; ZERO_PAGE_LEN], rest: &mut [u8; E820_REST_LEN]) -> Result<(), ZeroPageError> {
        let cmdline = self.command_line()?;
        self.check_placement(&cmdline)?;
        let ramdisk = self.ramdisk.clone().unwrap_or(0..0);
        let screen = self.platform.screen_info()?;

        out.fill(0);
        put(out, at::SCREEN_INFO, &screen);
        if let Some(efi) = self.platform.efi() {
            efi.write(out);
        }
        put(out, at::HEADER_START, self.kernel.setup_header());
        put(out, at::TYPE_OF_LOADER, &[at::LOADER_UNDEFINED]);
        put(out, at::LOADFLAGS, &[at::LOADED_HIGH]);
        let setup_data = if memory_map::put(out, rest, self.e820, self.image_end) {
            self.e820_rest
        } else {
            0
        };
        put(out, at::SETUP_DATA, &setup_data.to_le_bytes());
        if let Ok(load) = u32::try_from(self.load) {
            put(out, at::CODE32_START, &load.to_le_bytes());
        }
        put_split(out, at::CMD_LINE_PTR, at::EXT_CMD_LINE_PTR, cmdline.start);
        put_split(out, at::RAMDISK_IMAGE, at::EXT_RAMDISK_IMAGE, ramdisk.start);
        put_split(
            out,
            at::RAMDISK_SIZE,
            at::EXT_RAMDISK_SIZE,
            ramdisk.end.saturating_sub(ramdisk.start),
        );
        put(out, at::ACPI_RSDP_ADDR, &self.rsdp.to_le_bytes());
        Ok(())
    }

    /// Where the command line lies, its terminating zero included.
    fn command_line(&self) -> Result<Range<u64>, ZeroPageError> {
        if let Some(zero) = self.cmdline.iter().position(|&byte| byte == 0) {
            return Err(ZeroPageError::CommandLineZero(zero));
        }
        let len = self.cmdline.len() as u64;
        let max = self.kernel.cmdline_size();
        if len > max {
            return Err(ZeroPageError::CommandLineTooLong { len, max });
        }
        let start = self.cmdline_address;
        Ok(start..start.saturating_add(len).saturating_add(1))
    }

    fn check_placement(&self, cmdline: &Range<u64>) -> Result<(), ZeroPageError> {
        let kernel = self.load..self.load.saturating_add(self.kernel.init_size());
        let ramdisk = self.ramdisk.as_ref();
        let rest = self.e820_rest..self.e820_rest.saturating_add(E820_REST_LEN as u64);
        let placed = [
            ("the kernel", Some(&kernel)),
            ("the command line", Some(cmdline)),
            ("the rest of the memory map", Some(&rest)),
            ("the ramdisk", ramdisk),
        ];
        for (what, range) in placed {
            let Some(range) = range else { continue };
            if range.end > 1 << 32 && !self.kernel.above_4g() {
                return Err(ZeroPageError::Above4G { what, end: range.end });
            }
            // Linux copies these two early and keeps the originals nowhere, so firmware memory will do for them.
            let copied = range == cmdline || *range == rest;
            let accept = |kind| kind == MemoryType::Usable || (copied && kind != MemoryType::Unusable);
            if !self.e820.covers(range, accept) {
                return Err(ZeroPageError::NotInRam {
                    what,
                    range: range.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Writes a 64-bit value as its low half at `low` and its high half at `high`.
pub(super) fn put_split(out: &mut [u8], low: usize, high: usize, value: u64) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    put(out, low, &[a, b, c, d]);
    put(out, high, &[e, f, g, h]);
}
