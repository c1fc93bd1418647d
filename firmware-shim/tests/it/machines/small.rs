//! Desktops, laptops and emulators.

use firmware_shim::e820::MemoryType::{AcpiNvs, AcpiReclaim, Reserved, Usable};

use super::Published;

/// A board with a chip of power regulators.
pub const DESKTOP_57: Published = Published {
    name: "desktop with holes at 0x58000 and 0x9e000",
    source: "kernel mailing list, boot-log of 6.14.0-rc6+ with TPS53685",
    whole: false,
    e820: &[
        (0, 0x5_7fff, Usable),
        (0x5_8000, 0x5_8fff, Reserved),
        (0x5_9000, 0x9_dfff, Usable),
        (0x9_e000, 0x9_efff, Reserved),
        (0x9_f000, 0x9_ffff, Usable),
        (0xa_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0xc70f_afff, Usable),
        (0xc70f_b000, 0xc7c7_efff, Reserved),
        (0xc7c7_f000, 0xc7e7_efff, AcpiNvs),
        (0xc7e7_f000, 0xc7ef_efff, AcpiReclaim),
        (0xc7ef_f000, 0xc7ef_ffff, Usable),
        (0xc7f0_0000, 0xcc7f_ffff, Reserved),
    ],
    nodes: &[],
};

pub const LAPTOP_85: Published = Published {
    name: "laptop whose low memory ends at 0x86000",
    source: "Ubuntu boot log with vt.handoff=7, `0x59000-0x85fff`",
    whole: false,
    e820: &[
        (0, 0x5_7fff, Usable),
        (0x5_8000, 0x5_8fff, Reserved),
        (0x5_9000, 0x8_5fff, Usable),
        (0x8_6000, 0x9_ffff, Reserved),
        (0x10_0000, 0x94db_9fff, Usable),
        (0x94db_a000, 0x956b_9fff, AcpiNvs),
        (0x956b_a000, 0x9c39_efff, Usable),
        (0x9c39_f000, 0x9cd8_efff, Reserved),
        (0x9cd8_f000, 0x9ce8_efff, AcpiNvs),
        (0x9ce8_f000, 0x9cef_efff, AcpiReclaim),
        (0x9cef_f000, 0x9cef_ffff, Usable),
        (0xe000_0000, 0xefff_ffff, Reserved),
        (0xfeb0_0000, 0xfeb0_3fff, Reserved),
    ],
    nodes: &[],
};

pub const SMALL_1G: Published = Published {
    name: "small machine with 1 GiB below 4 GiB and an ACPI NVS page at 0x2d6d9000",
    source: "dmesg with `0x2d6da000-0x2d6dafff reserved`",
    whole: false,
    e820: &[
        (0, 0x5_7fff, Usable),
        (0x5_8000, 0x5_8fff, Reserved),
        (0x5_9000, 0x9_dfff, Usable),
        (0x9_e000, 0xf_ffff, Reserved),
        (0x10_0000, 0x2d6d_8fff, Usable),
        (0x2d6d_9000, 0x2d6d_9fff, AcpiNvs),
        (0x2d6d_a000, 0x2d6d_afff, Reserved),
        (0x2d6d_b000, 0x3ecd_cfff, Usable),
        (0x3ecd_d000, 0x3f09_afff, Reserved),
        (0x3f09_b000, 0x3f0e_7fff, AcpiReclaim),
        (0x3f0e_8000, 0x3f79_ffff, AcpiNvs),
        (0x3f7a_0000, 0x3fff_efff, Reserved),
        (0x3fff_f000, 0x3fff_ffff, Usable),
    ],
    nodes: &[],
};

pub const LAPTOP_PAGE_ZERO: Published = Published {
    name: "laptop whose page 0 is reserved",
    source: "boot log of Ubuntu 3.19.0-80-generic, `0x923e6000-0x923e6fff ACPI NVS`",
    whole: false,
    e820: &[
        (0, 0xfff, Reserved),
        (0x1000, 0x5_7fff, Usable),
        (0x5_8000, 0x5_8fff, Reserved),
        (0x5_9000, 0x9_cfff, Usable),
        (0x9_d000, 0x9_ffff, Reserved),
        (0x10_0000, 0x923e_5fff, Usable),
        (0x923e_6000, 0x923e_6fff, AcpiNvs),
        (0x923e_7000, 0x9241_0fff, Reserved),
        (0x9241_1000, 0x9246_3fff, Usable),
        (0x9246_4000, 0x92bc_4fff, Reserved),
        (0x92bc_5000, 0x96e8_5fff, Usable),
        (0x96e8_6000, 0x971e_8fff, Reserved),
        (0x971e_9000, 0x9721_8fff, AcpiReclaim),
        (0x9721_9000, 0x979e_5fff, AcpiNvs),
    ],
    nodes: &[],
};

pub const DESKTOP_3F: Published = Published {
    name: "desktop with a page reserved at 0x3f000",
    source: "github.com/xCuri0/ReBarUEFI, issue 11, dmesg of 7.0.0-29-generic",
    whole: false,
    e820: &[
        (0, 0x3_efff, Usable),
        (0x3_f000, 0x3_ffff, Reserved),
        (0x4_0000, 0x9_ffff, Usable),
        (0x10_0000, 0xc4b7_2fff, Usable),
        (0xc4b7_3000, 0xc58d_5fff, Reserved),
        (0xc58d_6000, 0xc58e_5fff, AcpiReclaim),
    ],
    nodes: &[],
};

pub const NVMEVIRT: Published = Published {
    name: "machine with two pages reserved at 0x5d000",
    source: "github.com/snu-csl/nvmevirt, issue 60",
    whole: false,
    e820: &[
        (0, 0x5_cfff, Usable),
        (0x5_d000, 0x5_efff, Reserved),
        (0x5_f000, 0x9_ffff, Usable),
        (0xa_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x6879_2fff, Usable),
    ],
    nodes: &[],
};

pub const BUMBLEBEE: Published = Published {
    name: "laptop with a page reserved at 0x58000",
    source: "github.com/Bumblebee-Project/Bumblebee, issue 654",
    whole: false,
    e820: &[
        (0, 0x5_7fff, Usable),
        (0x5_8000, 0x5_8fff, Reserved),
        (0x5_9000, 0x9_dfff, Usable),
        (0x9_e000, 0x9_ffff, Reserved),
        (0x10_0000, 0xad85_2fff, Usable),
        (0xad85_3000, 0xad85_9fff, AcpiNvs),
        (0xad85_a000, 0xae0d_2fff, Usable),
        (0xae0d_3000, 0xae37_3fff, Reserved),
        (0xae37_4000, 0xbd8c_5fff, Usable),
        (0xbd8c_6000, 0xbdac_efff, Reserved),
        (0xbdac_f000, 0xbde0_0fff, Usable),
        (0xbde0_1000, 0xbeb0_5fff, AcpiNvs),
        (0xbeb0_6000, 0xbeff_efff, Reserved),
        (0xbeff_f000, 0xbeff_ffff, Usable),
    ],
    nodes: &[],
};

/// Bochs with 2 GiB, as the lab runs it.
pub const BOCHS: Published = Published {
    name: "Bochs, 2 GiB, BIOS",
    source: "the lab",
    whole: true,
    e820: &[
        (0, 0x9_fbff, Usable),
        (0x9_fc00, 0x9_ffff, Reserved),
        (0xe_8000, 0xf_ffff, Reserved),
        (0x10_0000, 0x7ffe_ffff, Usable),
        (0x7fff_0000, 0x7fff_ffff, AcpiReclaim),
        (0xfffc_0000, 0xffff_ffff, Reserved),
    ],
    nodes: &[],
};

/// QEMU q35 with 6 GiB in two nodes and OVMF built with SMM, which keeps SMBASE of its first CPU.
pub const OVMF_SMM: Published = Published {
    name: "QEMU q35, 6 GiB, 2 nodes, OVMF with SMM",
    source: "the lab",
    whole: true,
    e820: &[
        (0, 0x2_ffff, Usable),
        (0x3_0000, 0x4_ffff, Reserved),
        (0x5_0000, 0x9_ffff, Usable),
        (0x10_0000, 0x7f8e_cfff, Usable),
        (0x7f8e_d000, 0x7fb6_cfff, Reserved),
        (0x7fb6_d000, 0x7fb7_efff, AcpiReclaim),
        (0x7fb7_f000, 0x7fbf_efff, AcpiNvs),
        (0x7fbf_f000, 0x7fff_ffff, Reserved),
        (0xe000_0000, 0xefff_ffff, Reserved),
        (0xffc0_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x1_ffff_ffff, Usable),
        (0xfd_0000_0000, 0xff_ffff_ffff, Reserved),
    ],
    nodes: &[
        (0, 0, 0x9_ffff),
        (0, 0x10_0000, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x1_3fff_ffff),
        (1, 0x1_4000_0000, 0x1_ffff_ffff),
    ],
};
