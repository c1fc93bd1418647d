//! Memory of real machines, as their published boot logs print it: figures only, ends inclusive.
//!
//! Where a log does not show a part of the map, that part is left out here; `whole` says whether nothing is. Found in
//! mailing lists' and bug trackers' archives by the strings in `source`.

use firmware_shim::e820::{E820Map, MemoryType};
use std::ops::Range;

use MemoryType::{AcpiNvs, AcpiReclaim, Persistent, Reserved, Unusable, Usable};

/// A machine.
pub struct Published {
    /// Maker and model.
    pub name: &'static str,
    /// Where the figures are from.
    pub source: &'static str,
    /// Whether the log shows all of the map.
    pub whole: bool,
    /// The firmware's memory map.
    pub e820: &'static [(u64, u64, MemoryType)],
    /// Memory affinity: domain and range. Non-volatile memory and what is not enabled is left out.
    pub nodes: &'static [(u32, u64, u64)],
}

impl Published {
    pub fn map(&self) -> E820Map {
        let ranges = self
            .e820
            .iter()
            .map(|&(start, last, kind)| (start, last - start + 1, kind.raw()));
        E820Map::from_firmware(ranges).unwrap()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (u32, Range<u64>)> + Clone {
        self.nodes
            .iter()
            .map(|&(domain, start, last)| (domain, start..last + 1))
    }
}

pub const X11DAI: Published = Published {
    name: "Supermicro SYS-7049A-T/X11DAi-N, BIOS 3.8b, 2 sockets, UEFI",
    source: "kernel mailing list, dmesg of 6.6.0-00004-gec9aedb2aa1a",
    whole: true,
    e820: &[
        (0, 0x9_ffff, Usable),
        (0xa_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x687f_bfff, Usable),
        (0x687f_c000, 0x6a8f_bfff, Reserved),
        (0x6a8f_c000, 0x6aed_7fff, AcpiReclaim),
        (0x6aed_8000, 0x6c0f_9fff, AcpiNvs),
        (0x6c0f_a000, 0x6fb3_3fff, Reserved),
        (0x6fb3_4000, 0x6fff_ffff, Usable),
        (0x7000_0000, 0x8fff_ffff, Reserved),
        (0xfd00_0000, 0xfe7f_ffff, Reserved),
        (0xfed2_0000, 0xfed4_4fff, Reserved),
        (0xff00_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x30_3fff_ffff, Usable),
    ],
    nodes: &[
        (0, 0, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x18_3fff_ffff),
        (1, 0x18_4000_0000, 0x30_3fff_ffff),
    ],
};

pub const X10DRT: Published = Published {
    name: "Supermicro SYS-1028TR-TF/X10DRT-LIBF, BIOS 2.0, 2 sockets, legacy boot",
    source: "kernel mailing list, dmesg of 4.3.0-scaleos+",
    whole: true,
    e820: &[
        (0, 0x9_abff, Usable),
        (0x9_ac00, 0x9_ffff, Reserved),
        (0xe_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x78f3_efff, Usable),
        (0x78f3_f000, 0x7985_ffff, Reserved),
        (0x7986_0000, 0x79d4_ffff, AcpiNvs),
        (0x79d5_0000, 0x8fff_ffff, Reserved),
        (0xfed1_c000, 0xfed4_4fff, Reserved),
        (0xff00_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x10_7fff_ffff, Usable),
    ],
    nodes: &[
        (0, 0, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x8_7fff_ffff),
        (1, 0x8_8000_0000, 0x10_7fff_ffff),
    ],
};

pub const QSSC_S4R: Published = Published {
    name: "QCI QSSC-S4R, 4 sockets, legacy boot, room for memory hot-plug",
    source: "kernel test robot, dmesg of 3.14.0-rc6-next-20140317 on lkp-wsx02",
    whole: true,
    e820: &[
        (0x100, 0x9_b3ff, Usable),
        (0x9_b400, 0x9_ffff, Reserved),
        (0xe_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x7b43_dfff, Usable),
        (0x7b43_e000, 0x7b44_0fff, Reserved),
        (0x7b44_1000, 0x7b67_cfff, AcpiNvs),
        (0x7b67_d000, 0x7b68_bfff, AcpiReclaim),
        (0x7b68_c000, 0x7b68_efff, Reserved),
        (0x7b68_f000, 0x7b69_3fff, AcpiReclaim),
        (0x7b69_4000, 0x7b7b_cfff, Reserved),
        (0x7b7b_d000, 0x7ba3_cfff, AcpiNvs),
        (0x7ba3_d000, 0x7baa_7fff, Reserved),
        (0x7baa_8000, 0x7bcf_ffff, AcpiReclaim),
        (0x7bd0_0000, 0x7bd1_6fff, Reserved),
        (0x7bd1_7000, 0x7bd1_9fff, AcpiReclaim),
        (0x7bd1_a000, 0x7bd4_9fff, Reserved),
        (0x7bd4_a000, 0x7bd5_efff, AcpiReclaim),
        (0x7bd5_f000, 0x7bdf_efff, Reserved),
        (0x7bdf_f000, 0x7bdf_ffff, AcpiReclaim),
        (0x7be0_0000, 0x7be4_efff, Reserved),
        (0x7be4_f000, 0x7bf7_0fff, AcpiReclaim),
        (0x7bf7_1000, 0x7bfc_efff, AcpiNvs),
        (0x7bfc_f000, 0x7bff_efff, AcpiReclaim),
        (0x7bff_f000, 0x8fff_ffff, Reserved),
        (0xfc00_0000, 0xfcff_ffff, Reserved),
        (0xfed1_c000, 0xfed1_ffff, Reserved),
        (0xff00_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x20_7fff_ffff, Usable),
    ],
    nodes: &[
        (0, 0, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x8_7fff_ffff),
        (1, 0x8_8000_0000, 0x10_7fff_ffff),
        (2, 0x10_8000_0000, 0x18_7fff_ffff),
        (3, 0x18_8000_0000, 0x20_7fff_ffff),
        (0, 0x21_0000_0000, 0x40_ffff_ffff),
        (0, 0x41_0000_0000, 0x60_ffff_ffff),
        (1, 0x61_0000_0000, 0x80_ffff_ffff),
        (1, 0x81_0000_0000, 0xa0_ffff_ffff),
        (2, 0xa1_0000_0000, 0xc0_ffff_ffff),
        (2, 0xc1_0000_0000, 0xe0_ffff_ffff),
        (3, 0xe1_0000_0000, 0x100_ffff_ffff),
        (3, 0x101_0000_0000, 0x120_ffff_ffff),
    ],
};

/// Its nodes beyond the twentieth are not in the log's excerpt.
pub const R7625: Published = Published {
    name: "Dell PowerEdge R7625, BIOS 1.8.3, 2 sockets, a node for each group of cores, UEFI",
    source: "kernel mailing list, boot of 6.12.0-rc2+ on r7625",
    whole: true,
    e820: &[
        (0, 0x8_efff, Usable),
        (0x8_f000, 0x8_ffff, AcpiNvs),
        (0x9_0000, 0x9_ffff, Usable),
        (0x10_0000, 0x59cc_cfff, Usable),
        (0x59cc_d000, 0x59cc_ffff, Reserved),
        (0x59cd_0000, 0x677c_efff, Usable),
        (0x677c_f000, 0x6dfc_efff, Reserved),
        (0x6dfc_f000, 0x6edf_efff, AcpiNvs),
        (0x6edf_f000, 0x6eff_efff, AcpiReclaim),
        (0x6eff_f000, 0x6eff_ffff, Usable),
        (0x6f00_0000, 0x6fff_ffff, AcpiNvs),
        (0x7000_0000, 0x8fff_ffff, Reserved),
        (0x9c00_0000, 0x9cff_ffff, Reserved),
        (0xa900_0000, 0xa9ff_ffff, Reserved),
        (0xb600_0000, 0xb6ff_ffff, Reserved),
        (0xc300_0000, 0xc3ff_ffff, Reserved),
        (0xd000_0000, 0xd0ff_ffff, Reserved),
        (0xdd00_0000, 0xddff_ffff, Reserved),
        (0xea00_0000, 0xeaff_ffff, Reserved),
        (0xfd00_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x18_7fdf_ffff, Usable),
        (0x18_7fe0_0000, 0x18_7fff_ffff, Reserved),
        (0x18_8000_0000, 0x30_7fdf_ffff, Usable),
        (0x30_7fe0_0000, 0x30_7fff_ffff, Reserved),
        (0x30_8000_0000, 0x48_7fdf_ffff, Usable),
        (0x48_7fe0_0000, 0x48_7fff_ffff, Reserved),
        (0x48_8000_0000, 0x60_7edf_ffff, Usable),
        (0x60_7ee0_0000, 0x60_7fff_ffff, Reserved),
        (0x60_8000_0000, 0x78_7fdf_ffff, Usable),
        (0x78_7fe0_0000, 0x78_7fff_ffff, Reserved),
        (0x78_8000_0000, 0x90_7fdf_ffff, Usable),
        (0x90_7fe0_0000, 0x90_7fff_ffff, Reserved),
        (0x90_8000_0000, 0xa8_7fdf_ffff, Usable),
        (0xa8_7fe0_0000, 0xa8_7fff_ffff, Reserved),
        (0xa8_8000_0000, 0xc0_7e7b_ffff, Usable),
        (0xc0_7e7c_0000, 0xc0_7fbf_ffff, Reserved),
        (0xc0_7fc0_0000, 0xc0_7fcf_ffff, Usable),
        (0xc0_7fd0_0000, 0xc0_7fff_ffff, Reserved),
        (0x100_0000_0000, 0x100_201f_ffff, Reserved),
        (0x1df_a000_0000, 0x1df_c01f_ffff, Reserved),
        (0x2bf_4000_0000, 0x2bf_601f_ffff, Reserved),
        (0x39e_e000_0000, 0x39f_001f_ffff, Reserved),
        (0x47e_8000_0000, 0x47e_a01f_ffff, Reserved),
        (0x55e_2000_0000, 0x55e_401f_ffff, Reserved),
        (0x63d_c000_0000, 0x63d_e01f_ffff, Reserved),
        (0x71d_6000_0000, 0x71d_801f_ffff, Reserved),
    ],
    nodes: &[
        (0, 0, 0x9_ffff),
        (0, 0xc_0000, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x6_7fff_ffff),
        (1, 0x6_8000_0000, 0xc_7fff_ffff),
        (8, 0xc_8000_0000, 0x12_7fff_ffff),
        (4, 0x18_8000_0000, 0x1e_7fff_ffff),
        (9, 0x12_8000_0000, 0x18_7fff_ffff),
        (5, 0x1e_8000_0000, 0x24_7fff_ffff),
        (12, 0x24_8000_0000, 0x2a_7fff_ffff),
        (6, 0x30_8000_0000, 0x36_7fff_ffff),
        (13, 0x2a_8000_0000, 0x30_7fff_ffff),
        (7, 0x36_8000_0000, 0x3c_7fff_ffff),
        (14, 0x3c_8000_0000, 0x42_7fff_ffff),
        (2, 0x48_8000_0000, 0x4e_7fff_ffff),
        (15, 0x42_8000_0000, 0x48_7fff_ffff),
        (3, 0x4e_8000_0000, 0x54_7fff_ffff),
        (10, 0x54_8000_0000, 0x5a_7fff_ffff),
        (11, 0x5a_8000_0000, 0x60_7fff_ffff),
        (16, 0x60_8000_0000, 0x66_7fff_ffff),
        (17, 0x66_8000_0000, 0x6c_7fff_ffff),
        (24, 0x6c_8000_0000, 0x72_7fff_ffff),
        (20, 0x78_8000_0000, 0x7e_7fff_ffff),
    ],
};

pub const DL325: Published = Published {
    name: "HPE ProLiant DL325 Gen10, BIOS A41, UEFI; four domains, two of them without memory",
    source: "metztli.blog, dmesg of 5.0.0-1+reiser4.0.2-amd64",
    whole: true,
    e820: &[
        (0, 0x9_ffff, Usable),
        (0xf_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x64f4_ffff, Usable),
        (0x64f5_0000, 0x64f5_2fff, Reserved),
        (0x64f5_3000, 0x6547_8fff, Usable),
        (0x6547_9000, 0x6548_9fff, AcpiReclaim),
        (0x6548_a000, 0x654a_1fff, Usable),
        (0x654a_2000, 0x654a_5fff, AcpiReclaim),
        (0x654a_6000, 0x654e_efff, Usable),
        (0x654e_f000, 0x654f_1fff, Reserved),
        (0x654f_2000, 0x6550_9fff, Usable),
        (0x6550_a000, 0x6550_afff, Reserved),
        (0x6550_b000, 0x6df6_efff, Usable),
        (0x6df6_f000, 0x6e79_6fff, Reserved),
        (0x6e79_7000, 0x6e79_7fff, Usable),
        (0x6e79_8000, 0x6e79_cfff, Reserved),
        (0x6e79_d000, 0x6e79_dfff, Usable),
        (0x6e79_e000, 0x6edc_efff, Reserved),
        (0x6edc_f000, 0x76ec_efff, Usable),
        (0x76ec_f000, 0x77fd_efff, Reserved),
        (0x77fd_f000, 0x77fe_efff, AcpiNvs),
        (0x77fe_f000, 0x77ff_efff, AcpiReclaim),
        (0x77ff_f000, 0x77ff_ffff, Usable),
        (0x7800_0000, 0x8fff_ffff, Reserved),
        (0xfed8_0000, 0xfed8_0fff, Reserved),
        (0x1_0000_0000, 0x10_7f1f_ffff, Usable),
        (0x10_7f20_0000, 0x10_7fff_ffff, Reserved),
    ],
    nodes: &[
        (0, 0, 0x9_ffff),
        (0, 0x10_0000, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x8_7fff_ffff),
        (2, 0x8_8000_0000, 0x10_7fff_ffff),
    ],
};

pub const SUPERDOME2: Published = Published {
    name: "HP Superdome2 16s x86, SFW 015.099.000, 16 sockets, UEFI",
    source: "kernel mailing list, dmesg with efi=debug",
    whole: true,
    e820: &[
        (0, 0x8_dfff, Usable),
        (0x8_e000, 0x8_ffff, Reserved),
        (0x9_0000, 0x9_ffff, Usable),
        (0x10_0000, 0x6d00_bfff, Usable),
        (0x6d00_c000, 0x6d01_7fff, Reserved),
        (0x6d01_8000, 0x6f3f_bfff, Usable),
        (0x6f3f_c000, 0x6f3f_efff, Reserved),
        (0x6f3f_f000, 0x78bf_efff, Usable),
        (0x78bf_f000, 0x790f_efff, Reserved),
        (0x790f_f000, 0x798f_efff, Unusable),
        (0x798f_f000, 0x799f_efff, Reserved),
        (0x799f_f000, 0x7bdf_efff, AcpiNvs),
        (0x7bdf_f000, 0x7bff_efff, AcpiReclaim),
        (0x7bff_f000, 0x7bff_ffff, Usable),
        (0x8000_0000, 0x8fff_ffff, Reserved),
        (0xfed1_c000, 0xfed1_ffff, Reserved),
        (0xff00_0000, 0xff1f_ffff, Reserved),
        (0x1_0000_0000, 0x1_0000_0fff, AcpiNvs),
        (0x1_0000_1000, 0xc0_7fff_ffff, Usable),
        (0xe0_0000_0000, 0xe0_0000_0fff, AcpiNvs),
        (0xe0_0000_1000, 0xc1f_ffff_ffff, Usable),
        (0xfdf_e000_0000, 0xfdf_ffff_ffff, Reserved),
        (0xfe0_6000_0000, 0xfe0_7fff_ffff, Reserved),
        (0xfe0_e000_0000, 0xfe0_ffff_ffff, Reserved),
        (0xfe1_6000_0000, 0xfe1_7fff_ffff, Reserved),
        (0xfe1_e000_0000, 0xfe1_ffff_ffff, Reserved),
        (0xfe2_6000_0000, 0xfe2_7fff_ffff, Reserved),
        (0xfe2_e000_0000, 0xfe2_ffff_ffff, Reserved),
        (0xfe3_6000_0000, 0xfe3_7fff_ffff, Reserved),
        (0xfe3_e000_0000, 0xfe3_ffff_ffff, Reserved),
        (0xfe4_6000_0000, 0xfe4_7fff_ffff, Reserved),
        (0xfe4_e000_0000, 0xfe4_ffff_ffff, Reserved),
        (0xfe5_6000_0000, 0xfe5_7fff_ffff, Reserved),
        (0xfe5_e000_0000, 0xfe5_ffff_ffff, Reserved),
        (0xfe6_6000_0000, 0xfe6_7fff_ffff, Reserved),
        (0xfe6_e000_0000, 0xfe6_ffff_ffff, Reserved),
        (0xfe7_6000_0000, 0xfe7_7fff_ffff, Reserved),
        (0xfe7_e000_0000, 0xfe7_ffff_ffff, Reserved),
    ],
    nodes: &[],
};

/// Write-back, write-through, write-combining and uncachable.
const WB: u64 = 0xf;
/// Uncachable only.
const UC: u64 = 1;
/// Needed by runtime services.
const RUNTIME: u64 = 1 << 63;

/// The EFI memory map of [`SUPERDOME2`]: type, first byte, first byte after it, attributes.
pub const SUPERDOME2_EFI: [(u32, u64, u64, u64); 70] = [
    (3, 0, 0x1000, WB),
    (7, 0x1000, 0x8_e000, WB),
    (0, 0x8_e000, 0x9_0000, WB),
    (7, 0x9_0000, 0xa_0000, WB),
    (2, 0x10_0000, 0x90_0000, WB),
    (7, 0x90_0000, 0x5c80_0000, WB),
    (4, 0x5c80_0000, 0x5cc0_0000, WB),
    (7, 0x5cc0_0000, 0x6b30_9000, WB),
    (2, 0x6b30_9000, 0x6d00_c000, WB),
    (0, 0x6d00_c000, 0x6d01_8000, WB),
    (4, 0x6d01_8000, 0x6f3f_c000, WB),
    (0, 0x6f3f_c000, 0x6f3f_f000, WB),
    (7, 0x6f3f_f000, 0x7249_6000, WB),
    (4, 0x7249_6000, 0x729d_3000, WB),
    (7, 0x729d_3000, 0x729e_2000, WB),
    (4, 0x729e_2000, 0x729e_5000, WB),
    (7, 0x729e_5000, 0x729e_6000, WB),
    (4, 0x729e_6000, 0x729f_2000, WB),
    (7, 0x729f_2000, 0x729f_3000, WB),
    (4, 0x729f_3000, 0x7322_1000, WB),
    (7, 0x7322_1000, 0x7322_3000, WB),
    (4, 0x7322_3000, 0x73e7_2000, WB),
    (7, 0x73e7_2000, 0x73eb_3000, WB),
    (4, 0x73eb_3000, 0x73ee_2000, WB),
    (7, 0x73ee_2000, 0x73ef_c000, WB),
    (4, 0x73ef_c000, 0x73f2_3000, WB),
    (7, 0x73f2_3000, 0x73f2_f000, WB),
    (4, 0x73f2_f000, 0x73f3_0000, WB),
    (7, 0x73f3_0000, 0x73f3_3000, WB),
    (4, 0x73f3_3000, 0x73f5_2000, WB),
    (7, 0x73f5_2000, 0x73f6_a000, WB),
    (4, 0x73f6_a000, 0x7415_a000, WB),
    (7, 0x7415_a000, 0x7416_e000, WB),
    (4, 0x7416_e000, 0x773f_f000, WB),
    (7, 0x773f_f000, 0x777d_e000, WB),
    (2, 0x777d_e000, 0x777f_f000, WB),
    (7, 0x777f_f000, 0x77bb_f000, WB),
    (1, 0x77bb_f000, 0x77bf_f000, WB),
    (7, 0x77bf_f000, 0x7823_c000, WB),
    (3, 0x7823_c000, 0x78bf_f000, WB),
    (6, 0x78bf_f000, 0x790f_f000, WB | RUNTIME),
    (5, 0x790f_f000, 0x798f_f000, WB | RUNTIME),
    (0, 0x798f_f000, 0x799f_f000, WB),
    (10, 0x799f_f000, 0x7bdf_f000, WB),
    (9, 0x7bdf_f000, 0x7bff_f000, WB),
    (4, 0x7bff_f000, 0x7c00_0000, WB),
    (10, 0x1_0000_0000, 0x1_0000_1000, WB),
    (7, 0x1_0000_1000, 0xc0_8000_0000, WB),
    (10, 0xe0_0000_0000, 0xe0_0000_1000, WB),
    (7, 0xe0_0000_1000, 0xc20_0000_0000, WB),
    (11, 0x8000_0000, 0x9000_0000, UC | RUNTIME),
    (11, 0xfed1_c000, 0xfed2_0000, UC | RUNTIME),
    (11, 0xff00_0000, 0xff20_0000, UC | RUNTIME),
    (11, 0xfdf_e000_0000, 0xfe0_0000_0000, UC | RUNTIME),
    (11, 0xfe0_6000_0000, 0xfe0_8000_0000, UC | RUNTIME),
    (11, 0xfe0_e000_0000, 0xfe1_0000_0000, UC | RUNTIME),
    (11, 0xfe1_6000_0000, 0xfe1_8000_0000, UC | RUNTIME),
    (11, 0xfe1_e000_0000, 0xfe2_0000_0000, UC | RUNTIME),
    (11, 0xfe2_6000_0000, 0xfe2_8000_0000, UC | RUNTIME),
    (11, 0xfe2_e000_0000, 0xfe3_0000_0000, UC | RUNTIME),
    (11, 0xfe3_6000_0000, 0xfe3_8000_0000, UC | RUNTIME),
    (11, 0xfe3_e000_0000, 0xfe4_0000_0000, UC | RUNTIME),
    (11, 0xfe4_6000_0000, 0xfe4_8000_0000, UC | RUNTIME),
    (11, 0xfe4_e000_0000, 0xfe5_0000_0000, UC | RUNTIME),
    (11, 0xfe5_6000_0000, 0xfe5_8000_0000, UC | RUNTIME),
    (11, 0xfe5_e000_0000, 0xfe6_0000_0000, UC | RUNTIME),
    (11, 0xfe6_6000_0000, 0xfe6_8000_0000, UC | RUNTIME),
    (11, 0xfe6_e000_0000, 0xfe7_0000_0000, UC | RUNTIME),
    (11, 0xfe7_6000_0000, 0xfe7_8000_0000, UC | RUNTIME),
    (11, 0xfe7_e000_0000, 0xfe8_0000_0000, UC | RUNTIME),
];

/// RAM below 4 GiB only as far as the log's excerpt shows it.
pub const S2600WFT: Published = Published {
    name: "Intel S2600WF, 2 sockets, Optane between the nodes' RAM, UEFI",
    source: "kernel test robot, dmesg with `non-volatile` SRAT ranges",
    whole: false,
    e820: &[
        (0, 0x9_ffff, Usable),
        (0x10_0000, 0x5a81_7fff, Usable),
        (0x5a8b_5000, 0x5c71_3fff, Usable),
        (0x5c9a_6000, 0x5ca1_0fff, Usable),
        (0x5cc3_8000, 0x6077_5fff, Usable),
        (0x607d_1000, 0x6083_8fff, Usable),
        (0x6086_7000, 0x6464_9fff, Usable),
        (0x646f_9000, 0x648a_6fff, Usable),
        (0x1_0000_0000, 0x10_7fff_ffff, Usable),
        (0x10_8000_0000, 0x4f_7fff_ffff, Persistent),
        (0x4f_8000_0000, 0x5f_7fff_ffff, Usable),
        (0x5f_8000_0000, 0x9e_7fff_ffff, Persistent),
    ],
    nodes: &[
        (0, 0, 0x7fff_ffff),
        (0, 0x1_0000_0000, 0x10_7fff_ffff),
        (1, 0x4f_8000_0000, 0x5f_7fff_ffff),
    ],
};

pub const S2600WTT: Published = Published {
    name: "Intel S2600WTT, BIOS SE5C610.86B.01.01.6024, legacy boot; SRAT not shown",
    source: "kernel mailing list, dmesg with this BIOS",
    whole: true,
    e820: &[
        (0, 0x9_b3ff, Usable),
        (0x9_b400, 0x9_ffff, Reserved),
        (0xe_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x79f9_ffff, Usable),
        (0x79fa_0000, 0x7ac4_ffff, Reserved),
        (0x7ac5_0000, 0x7b67_ffff, AcpiNvs),
        (0x7b68_0000, 0x7b7c_cfff, AcpiReclaim),
        (0x7b7c_d000, 0x7b7f_ffff, Usable),
        (0x7b80_0000, 0x8fff_ffff, Reserved),
        (0xfed1_c000, 0xfed1_ffff, Reserved),
        (0xff40_0000, 0xffff_ffff, Reserved),
        (0x1_0000_0000, 0x10_7fff_ffff, Usable),
    ],
    nodes: &[],
};

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

pub const X11DAI_HOLE: Published = Published {
    name: "Supermicro X11DAi-N, an older BIOS, UEFI",
    source: "kernel mailing list",
    whole: false,
    e820: &[
        (0, 0x3_dfff, Usable),
        (0x3_e000, 0x3_ffff, Reserved),
        (0x4_0000, 0x9_ffff, Usable),
        (0xa_0000, 0xf_ffff, Reserved),
        (0x10_0000, 0x69eb_5fff, Usable),
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

/// All of them.
pub const ALL: [&Published; 18] = [
    &X11DAI,
    &X10DRT,
    &QSSC_S4R,
    &R7625,
    &DL325,
    &SUPERDOME2,
    &S2600WFT,
    &S2600WTT,
    &DESKTOP_57,
    &LAPTOP_85,
    &SMALL_1G,
    &LAPTOP_PAGE_ZERO,
    &DESKTOP_3F,
    &X11DAI_HOLE,
    &NVMEVIRT,
    &BUMBLEBEE,
    &BOCHS,
    &OVMF_SMM,
];
