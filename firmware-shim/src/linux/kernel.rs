//! A kernel file (bzImage): is it whole, can it be started in 64-bit mode, what does it need?

use super::setup_header as at;
use crate::bytes::{field, u8_at, u16_at, u32_at, u64_at};

/// The 64-bit entry point, from the start of the protected-mode code.
pub const ENTRY_64_OFFSET: u64 = 0x200;

/// Oldest boot protocol that has `xloadflags`.
const MIN_VERSION: u16 = 0x020c;

/// The file is no kernel that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The file ends inside the setup header.
    #[error("the kernel file has only {0} bytes and no setup header; it is truncated or no bzImage")]
    TooShort(usize),
    /// The file has no "HdrS" magic.
    #[error("the file is no Linux kernel (bzImage): \"HdrS\" is missing at offset 0x202")]
    NoMagic,
    /// The boot protocol is too old.
    #[error(
        "the kernel speaks boot protocol {}.{:02}, at least 2.12 is needed; use Linux 3.8 or later",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// It has no 64-bit entry point.
    #[error("the kernel has no 64-bit entry point (XLF_KERNEL_64); use a 64-bit kernel")]
    Not64Bit,
    /// The file is shorter than its header says.
    #[error("the kernel file is truncated: its header says {needed} bytes, it has {have}; copy it again")]
    Truncated {
        /// Least length by its header.
        needed: u64,
        /// Its length.
        have: u64,
    },
    /// The header contradicts itself.
    #[error("the kernel's setup header is damaged: {0}; copy the file again")]
    Damaged(&'static str),
    /// The kernel runs at one address only, and that is not where it would be.
    #[error(
        "the kernel is not relocatable (CONFIG_RELOCATABLE), so it runs at {0:#x} only, which is not free for it; use a \
         kernel that is, such as any distribution's"
    )]
    NotRelocatable(u64),
    /// The kernel cannot run at that address.
    #[error("the kernel cannot be loaded at {load:#x}: {why} (it prefers {preferred:#x}, alignment {alignment:#x})")]
    LoadAddress {
        /// The address asked for.
        load: u64,
        /// Why not.
        why: &'static str,
        /// Its preferred address.
        preferred: u64,
        /// Its alignment.
        alignment: u64,
    },
    /// There is too little memory at that address.
    #[error("the kernel needs {needed:#x} bytes from its load address, there are {have:#x}; give the host more memory")]
    Room {
        /// Its `init_size`.
        needed: u64,
        /// Bytes there.
        have: u64,
    },
}

/// A kernel file that can be started.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage<'f> {
    file: &'f [u8],
    code: &'f [u8],
}

impl<'f> KernelImage<'f> {
    /// Checks the whole file.
    ///
    /// # Errors
    /// [`KernelError`], the first fault found.
    pub fn parse(file: &'f [u8]) -> Result<Self, KernelError> {
        if file.len() < at::HEADER_ROOM_END {
            return Err(KernelError::TooShort(file.len()));
        }
        if field(file, at::MAGIC) != *b"HdrS" {
            return Err(KernelError::NoMagic);
        }
        if u16_at(file, at::BOOT_FLAG) != 0xaa55 {
            return Err(KernelError::Damaged("no 0xAA55 at offset 0x1fe"));
        }
        let version = u16_at(file, at::VERSION);
        if version < MIN_VERSION {
            return Err(KernelError::OldProtocol(version));
        }
        if u16_at(file, at::XLOADFLAGS) & at::XLF_KERNEL_64 == 0 {
            return Err(KernelError::Not64Bit);
        }
        if header_end(file) > at::HEADER_ROOM_END || header_end(file) < at::INIT_SIZE + 4 {
            return Err(KernelError::Damaged("impossible header length"));
        }
        let setup_sects = match u8_at(file, at::SETUP_SECTS) {
            0 => 4,
            sects => u64::from(sects),
        };
        let start = (setup_sects + 1) * 512;
        let length = u64::from(u32_at(file, at::SYSSIZE)) * 16;
        let end = start + length;
        if length <= ENTRY_64_OFFSET {
            return Err(KernelError::Damaged("no protected-mode code"));
        }
        let code = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| file.get(start..end))
            .ok_or(KernelError::Truncated {
                needed: end,
                have: file.len() as u64,
            })?;
        let image = Self { file, code };
        image.check_fields()?;
        Ok(image)
    }

    fn check_fields(&self) -> Result<(), KernelError> {
        let payload =
            u64::from(u32_at(self.file, at::PAYLOAD_OFFSET)) + u64::from(u32_at(self.file, at::PAYLOAD_LENGTH));
        if payload > self.code.len() as u64 {
            return Err(KernelError::Damaged("payload beyond the code"));
        }
        if !self.alignment().is_power_of_two() {
            return Err(KernelError::Damaged("kernel_alignment is no power of two"));
        }
        if self.init_size() < self.code.len() as u64 {
            return Err(KernelError::Damaged("init_size below the code's length"));
        }
        Ok(())
    }

    /// The protected-mode code, to be copied to the load address. Enter it in 64-bit mode at [`ENTRY_64_OFFSET`].
    #[must_use]
    pub fn code(&self) -> &'f [u8] {
        self.code
    }

    /// Boot protocol, major in the high byte: 0x020f is 2.15.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        u16_at(self.file, at::VERSION)
    }

    /// Bytes of contiguous memory that it needs from its load address while it unpacks itself.
    #[must_use]
    pub fn init_size(&self) -> u64 {
        u64::from(u32_at(self.file, at::INIT_SIZE))
    }

    /// Address that it prefers, and must have if it is not relocatable.
    #[must_use]
    pub fn preferred_address(&self) -> u64 {
        u64_at(self.file, at::PREF_ADDRESS)
    }

    /// Alignment in bytes of its load address.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        u64::from(u32_at(self.file, at::KERNEL_ALIGNMENT))
    }

    /// Whether it runs elsewhere than at its preferred address.
    #[must_use]
    pub fn relocatable(&self) -> bool {
        u8_at(self.file, at::RELOCATABLE_KERNEL) != 0
    }

    /// Whether it, its zero page, command line and ramdisk may lie above 4 GiB.
    #[must_use]
    pub fn above_4g(&self) -> bool {
        u16_at(self.file, at::XLOADFLAGS) & at::XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Longest command line in bytes, without its terminating zero.
    #[must_use]
    pub fn cmdline_size(&self) -> u64 {
        u64::from(u32_at(self.file, at::CMDLINE_SIZE))
    }

    /// Checks that the kernel can run at `load` with `room` bytes of RAM from there.
    ///
    /// # Errors
    /// [`KernelError::NotRelocatable`], [`KernelError::LoadAddress`] or [`KernelError::Room`].
    pub fn check_load(&self, load: u64, room: u64) -> Result<(), KernelError> {
        let refuse = |why| {
            Err(KernelError::LoadAddress {
                load,
                why,
                preferred: self.preferred_address(),
                alignment: self.alignment(),
            })
        };
        if !self.relocatable() && load != self.preferred_address() {
            return Err(KernelError::NotRelocatable(self.preferred_address()));
        }
        if !load.is_multiple_of(self.alignment()) {
            return refuse("the address is not aligned");
        }
        // A relocatable kernel below its preferred address moves itself up to that (boot.rst, "init_size").
        if load < self.preferred_address() {
            return refuse("the address is below the preferred one");
        }
        let end = load.checked_add(room);
        if end.is_none_or(|end| end > 1 << 32) && !self.above_4g() {
            return refuse("it cannot be loaded above 4 GiB");
        }
        if room < self.init_size() {
            return Err(KernelError::Room {
                needed: self.init_size(),
                have: room,
            });
        }
        Ok(())
    }

    /// The setup header, from [`at::HEADER_START`] on, for the zero page.
    pub(super) fn setup_header(&self) -> &'f [u8] {
        self.file
            .get(at::HEADER_START..header_end(self.file))
            .unwrap_or_default()
    }
}

/// First byte after the setup header (boot.rst, "64-bit Boot Protocol").
fn header_end(file: &[u8]) -> usize {
    at::HEADER_BASE + usize::from(u8_at(file, at::HEADER_LEN_BYTE))
}
