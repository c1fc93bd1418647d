//! Why L0 cannot start a host.

use core::fmt;

use firmware_shim::acpi::{AcpiError, BuildError};
use firmware_shim::e820::E820Error;
use firmware_shim::linux::{KernelError, ZeroPageError};

use super::place::NoRoom;

/// What went wrong. Its text names the cause and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BootError {
    /// Not loaded by a Multiboot2 loader, or its information is unusable.
    Multiboot(&'static str),
    /// There is no first module.
    NoKernel,
    /// The machine's ACPI tables are unusable.
    Acpi(AcpiError),
    /// LAPICs can't leave x2APIC mode, for which a host needs the interrupt remapping that L0 hides.
    LockedX2Apic,
    /// The memory map does not allow what L0 was told.
    Memory(E820Error),
    /// RAM beyond what L0's page tables map, from this GiB on.
    Unmapped(u64),
    /// L0's table of owners does not hold the machine's ranges.
    Partition,
    /// The kernel is not one that L0 can start.
    Kernel(KernelError),
    /// No memory for the kernel or the ramdisk.
    NoRoom(NoRoom),
    /// The command line is too long.
    CommandLine,
    /// The zero page can't be made.
    ZeroPage(ZeroPageError),
    /// The host's ACPI tables can't be made.
    Tables(BuildError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Multiboot(why) => write!(
                f,
                "boot information of the loader: {why}; load L0 with GRUB's multiboot2"
            ),
            Self::NoKernel => write!(
                f,
                "no kernel was loaded; add a line `module2 /boot/vmlinuz ARGUMENTS` after multiboot2"
            ),
            Self::Acpi(error) => write!(f, "the machine's ACPI tables: {error}"),
            Self::LockedX2Apic => write!(
                f,
                "the firmware has locked the CPUs into x2APIC mode, for which Linux wants interrupt remapping; L0 hides \
                 that (DMAR). Turn x2APIC off in the firmware's set-up, or the switch that locks it"
            ),
            Self::Memory(error) => write!(f, "memory map: {error}"),
            Self::Unmapped(gib) => write!(
                f,
                "RAM above {gib} GiB is beyond L0's page tables; use a CPU with 1 GiB pages or less RAM"
            ),
            Self::Partition => write!(f, "the memory map has too many ranges for L0's table of owners"),
            Self::Kernel(error) => write!(f, "{error}"),
            Self::NoRoom(NoRoom { what, bytes }) => write!(
                f,
                "no {bytes} bytes of usable memory between 16 MiB and 4 GiB for {what}; make the pool or the ramdisk smaller"
            ),
            Self::CommandLine => write!(
                f,
                "the host's command line is longer than {} bytes; shorten it",
                super::cmdline::HOST_LINE
            ),
            Self::ZeroPage(error) => write!(f, "{error}"),
            Self::Tables(error) => write!(f, "{error}"),
        }
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident),* $(,)?) => {
        $(impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    AcpiError => Acpi,
    E820Error => Memory,
    KernelError => Kernel,
    NoRoom => NoRoom,
    ZeroPageError => ZeroPage,
    BuildError => Tables,
}
