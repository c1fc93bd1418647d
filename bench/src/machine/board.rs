//! The second board: what of it can be chosen, in QEMU's words.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::ValueEnum;

/// A board of QEMU's, with a chipset, a firmware, and a layout of CPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "With --platform tcg")]
pub(crate) struct Board {
    /// Chipset
    #[arg(long, value_enum, default_value_t)]
    pub chipset: Chipset,
    /// Firmware
    #[arg(long, value_enum, default_value_t)]
    pub firmware: Firmware,
    /// Model of the CPUs, as QEMU calls it
    #[arg(long, default_value = SKYLAKE)]
    pub tcg_cpu: String,
    /// RAM in MiB. What the machine never touches takes none of yours
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub memory: u32,
    /// Sockets that the CPUs are in
    #[arg(long, default_value_t = 1)]
    pub sockets: u32,
    /// Threads of a core
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// NUMA nodes, each of whole sockets
    #[arg(long, default_value_t = 1)]
    pub nodes: u32,
    /// Command for GRUB before it loads anything, such as "cutmem 0x40000 0x50000"; may be repeated
    #[arg(long, value_name = "COMMAND")]
    pub grub: Vec<String>,
}

/// A server's CPU of family 6, so that machine checks are broadcast; without VMX, as all of TCG's, and without what TCG
/// complains that it lacks.
pub(crate) const SKYLAKE: &str = "Skylake-Server,-pcid,-tsc-deadline,-hle,-rtm,-invpcid,-avx512f,-avx512dq,-avx512cd,\
                                  -avx512bw,-avx512vl,-xsavec";

/// GRUB's command that switches the boot CPU's x2APIC on: enable, x2APIC mode and boot CPU in IA32_APIC_BASE (SDM
/// vol. 3A, 10.12.1).
pub(crate) const X2APIC: &str = "wrmsr 0x1b 0xfee00d00";

/// A chipset that QEMU has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Chipset {
    /// Q35 with ICH9: PCI Express.
    #[default]
    Q35,
    /// I440FX with PIIX3.
    Pc,
}

/// A firmware that Debian has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF on a board that can't suspend: it keeps no memory for that.
    UefiNoS3,
    /// OVMF with SMM and Secure Boot, no key of which is enrolled.
    UefiSmm,
}

impl Firmware {
    /// OVMF's files, code and variables; `None` for SeaBIOS, which QEMU finds itself.
    #[must_use]
    pub(crate) fn ovmf(self) -> Option<[&'static str; 2]> {
        const VARIABLES: &str = "OVMF_VARS_4M.fd";
        match self {
            Self::Bios => None,
            Self::Uefi | Self::UefiNoS3 => Some(["OVMF_CODE_4M.fd", VARIABLES]),
            Self::UefiSmm => Some(["OVMF_CODE_4M.secboot.fd", VARIABLES]),
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self {
            chipset: Chipset::default(),
            firmware: Firmware::default(),
            tcg_cpu: SKYLAKE.into(),
            memory: 2048,
            sockets: 1,
            threads: 1,
            nodes: 1,
            grub: Vec::new(),
        }
    }
}

impl Board {
    /// Makes sure that there is such a board with so many CPUs.
    ///
    /// # Errors
    /// There is none, and why.
    pub(crate) fn check(&self, cpus: u32) -> Result<()> {
        let Self {
            sockets,
            threads,
            nodes,
            memory,
            ..
        } = *self;
        ensure!(
            sockets > 0 && threads > 0 && cpus.is_multiple_of(sockets * threads),
            "{cpus} CPUs cannot be dealt to {sockets} sockets with {threads} threads a core; choose a multiple"
        );
        ensure!(
            nodes > 0 && sockets.is_multiple_of(nodes),
            "{nodes} NUMA nodes cannot be made of {sockets} whole sockets; choose a multiple"
        );
        ensure!(
            memory > 0 && memory.is_multiple_of(nodes * 128),
            "{memory} MiB cannot be dealt to {nodes} NUMA nodes in blocks of 128 MiB; choose a multiple"
        );
        ensure!(
            self.firmware != Firmware::UefiSmm || self.chipset == Chipset::Q35,
            "the firmware uefi-smm needs --chipset q35"
        );
        Ok(())
    }

    /// QEMU's arguments for it: with `code` and `variables`, the files of its firmware, if it is OVMF.
    #[must_use]
    pub(crate) fn arguments(&self, cpus: u32, ovmf: Option<[&Path; 2]>) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        let smm = if self.firmware == Firmware::UefiSmm {
            "on"
        } else {
            "off"
        };
        let chipset = match self.chipset {
            Chipset::Q35 => "q35",
            Chipset::Pc => "pc",
        };
        // One node is the machine's own memory; more are given one by one.
        let own = if self.nodes == 1 { ",memory-backend=m0" } else { "" };
        add("-machine", format!("{chipset},accel=tcg,smm={smm}{own}"));
        // Linux has 128 MiB memory blocks on whatever says that it is a virtual machine.
        add("-cpu", format!("{},-hypervisor,+x2apic", self.tcg_cpu));
        let cores = cpus / (self.sockets * self.threads);
        add(
            "-smp",
            format!("{cpus},sockets={},cores={cores},threads={}", self.sockets, self.threads),
        );
        add("-m", format!("{}M", self.memory));
        for node in 0..self.nodes {
            let size = self.memory / self.nodes;
            // Not reserved: more than this machine has.
            add(
                "-object",
                format!("memory-backend-ram,id=m{node},size={size}M,share=off,reserve=off"),
            );
            if self.nodes > 1 {
                add("-numa", format!("node,nodeid={node},memdev=m{node}"));
            }
        }
        if self.nodes > 1 {
            for socket in 0..self.sockets {
                let node = socket / (self.sockets / self.nodes);
                add("-numa", format!("cpu,node-id={node},socket-id={socket}"));
            }
        }
        for (unit, file) in ovmf.into_iter().flatten().enumerate() {
            let readonly = if unit == 0 { ",readonly=on" } else { "" };
            add(
                "-drive",
                format!("if=pflash,unit={unit},format=raw,file={}{readonly}", file.display()),
            );
        }
        match (self.firmware, self.chipset) {
            (Firmware::UefiNoS3, Chipset::Q35) => add("-global", "ICH9-LPC.disable_s3=1".into()),
            (Firmware::UefiNoS3, Chipset::Pc) => add("-global", "PIIX4_PM.disable_s3=1".into()),
            // Only SMM may write variables.
            (Firmware::UefiSmm, _) => add("-global", "driver=cfi.pflash01,property=secure,value=on".into()),
            (Firmware::Bios | Firmware::Uefi, _) => {}
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(board: &Board, cpus: u32) -> String {
        board.check(cpus).unwrap();
        let ovmf = board.firmware.ovmf().map(|files| files.map(Path::new));
        board.arguments(cpus, ovmf).join(" ")
    }

    #[test]
    fn a_plain_board_is_one_node_and_one_socket() {
        let line = line(&Board::default(), 4);
        assert!(
            line.starts_with("-machine q35,accel=tcg,smm=off,memory-backend=m0 "),
            "{line}"
        );
        assert!(line.contains(" -smp 4,sockets=1,cores=4,threads=1 -m 2048M "), "{line}");
        assert!(line.contains("id=m0,size=2048M,share=off,reserve=off"), "{line}");
        assert!(!line.contains("-numa") && !line.contains("pflash"), "{line}");
    }

    #[test]
    fn sockets_and_memory_are_dealt_to_nodes() {
        let board = Board {
            firmware: Firmware::UefiSmm,
            memory: 6144,
            sockets: 4,
            threads: 2,
            nodes: 2,
            ..Board::default()
        };
        let line = line(&board, 8);
        assert!(line.contains("-smp 8,sockets=4,cores=1,threads=2 "), "{line}");
        assert!(!line.contains("memory-backend=m0"), "{line}");
        for part in [
            "id=m1,size=3072M",
            "node,nodeid=1,memdev=m1",
            "cpu,node-id=0,socket-id=1",
            "cpu,node-id=1,socket-id=2",
            "unit=0,format=raw,file=OVMF_CODE_4M.secboot.fd,readonly=on",
            "unit=1,format=raw,file=OVMF_VARS_4M.fd ",
            "smm=on",
            "property=secure",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn s3_goes_on_each_chipset() {
        for (chipset, property) in [
            (Chipset::Q35, "ICH9-LPC.disable_s3=1"),
            (Chipset::Pc, "PIIX4_PM.disable_s3=1"),
        ] {
            let board = Board {
                chipset,
                firmware: Firmware::UefiNoS3,
                ..Board::default()
            };
            assert!(line(&board, 1).contains(property));
        }
        assert!(!line(&Board::default(), 1).contains("disable_s3"));
    }

    #[test]
    fn boards_that_there_are_not_are_told() {
        type Change = fn(&mut Board);
        let cases: [(Change, &str); 5] = [
            (|board| board.sockets = 3, "4 CPUs cannot be dealt to 3 sockets"),
            (|board| board.sockets = 0, "sockets"),
            (
                |board| board.nodes = 2,
                "2 NUMA nodes cannot be made of 1 whole sockets",
            ),
            (|board| board.memory = 100, "100 MiB"),
            (
                |board| {
                    board.firmware = Firmware::UefiSmm;
                    board.chipset = Chipset::Pc;
                },
                "--chipset q35",
            ),
        ];
        for (change, word) in cases {
            let mut board = Board::default();
            change(&mut board);
            let error = board.check(4).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
