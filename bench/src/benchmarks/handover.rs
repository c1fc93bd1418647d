//! How long a guest stands still while it goes over to the next host, against its RAM and its vCPUs; and what L0 itself
//! takes of the machine.
//!
//! Guests are microvms without devices; several of them go over in one refresh, one after the other. Ticks are from
//! QEMU's stop in the incumbent to its resume in the successor.

use std::{fs, iter};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSegment};
use serde::Serialize;

use crate::{
    image::build,
    machine::{layout::Layout, platform::Platform},
    progress::Progress,
    report,
    steps::{Run, prepare::MachineArgs},
};

/// A guest to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    /// RAM in MiB.
    pub ram_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
}

const fn size(ram_mib: u32, vcpus: u32) -> Size {
    Size { ram_mib, vcpus }
}

/// The guests of each refresh; together they fit into the pool of [`Layout::LARGE`].
pub(crate) const REFRESHES: &[&[Size]] = &[
    &[size(128, 1), size(256, 1), size(128, 4)],
    &[size(512, 1)],
    &[size(128, 1); 4],
];

/// What a handover took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// The guest.
    #[serde(flatten)]
    pub size: Size,
    /// Ticks from stop to resume.
    pub stopped_ticks: u64,
    /// The same by step; `ask` comes before the stop.
    pub steps: Vec<report::Step>,
    /// Bytes of device state that crossed.
    pub state_bytes: u64,
    /// Bytes of RAM that were copied.
    pub ram_bytes_copied: u64,
}

/// All handovers of a refresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Whole {
    /// Guests that went over.
    pub guests: usize,
    /// Ticks from the first guest's turn to the end of the last one's.
    pub ticks: u64,
    /// Ticks that the guest stood still that did so longest.
    pub longest: u64,
}

/// All of it: `target/bench/handover.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Table {
    /// What ran the machines.
    pub platform: String,
    /// CPUs of the machine; the successor has half of them then.
    pub cpus: u32,
    /// The table.
    pub handover: Vec<Row>,
    /// The refreshes that the rows are of.
    pub refreshes: Vec<Whole>,
    /// Bytes of L0's file that are loaded.
    pub l0_image_bytes: u64,
    /// Bytes of RAM that L0 keeps, all of it: its image, tables for every CPU, stacks, rings.
    pub l0_memory_bytes: u64,
    /// What could not be measured, and why.
    pub errors: Vec<String>,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>8} {:>6} {:>14} {:>14} {:>12}",
            "RAM MiB", "vCPUs", "stopped ticks", "state bytes", "RAM copied"
        )?;
        for row in &self.handover {
            let Size { ram_mib, vcpus } = row.size;
            write!(
                f,
                "\n{ram_mib:>8} {vcpus:>6} {:>14} {:>14} {:>12}",
                row.stopped_ticks, row.state_bytes, row.ram_bytes_copied
            )?;
        }
        for Whole { guests, ticks, longest } in &self.refreshes {
            write!(f, "\n{guests} guests in {ticks} ticks, the longest pause {longest}")?;
        }
        write!(
            f,
            "\nL0: {} bytes loaded, {} bytes of RAM",
            self.l0_image_bytes, self.l0_memory_bytes
        )?;
        for error in &self.errors {
            write!(f, "\nnot measured: {error}")?;
        }
        Ok(())
    }
}

/// Measures. What fails is noted in the table, and the rest goes on; `save` gets the table after each machine.
///
/// # Errors
/// Those of `save`; or L0 does not build.
pub(crate) fn measure(timeout: u64, platform: Platform, save: impl Fn(&Table) -> Result<()>) -> Result<Table> {
    let machine = MachineArgs {
        timeout,
        platform,
        strict: true,
        layout: Layout::LARGE,
        ..MachineArgs::default()
    };
    let file = fs::read(build::l0()?)?;
    let (l0_image_bytes, l0_memory_bytes) = loaded(&file)?;
    let mut table = Table {
        platform: platform.to_string(),
        cpus: machine.cpus,
        l0_image_bytes,
        l0_memory_bytes,
        ..Table::default()
    };
    for sizes in REFRESHES {
        match refresh(&machine, sizes) {
            Ok((rows, whole)) => {
                table.handover.extend(rows);
                table.refreshes.push(whole);
            }
            Err(error) => table.errors.push(format!("{}: {error:#}", title(sizes))),
        }
        save(&table)?;
    }
    Ok(table)
}

/// Bytes of an ELF file that are loaded, and bytes of RAM that they need.
fn loaded(file: &[u8]) -> Result<(u64, u64)> {
    let file = object::File::parse(file).context("L0's file")?;
    let segments = file.segments();
    Ok(segments.fold((0, 0), |(bytes, memory), segment| {
        (bytes + segment.file_range().1, memory + segment.size())
    }))
}

fn title(sizes: &[Size]) -> String {
    let guests: Vec<_> = sizes
        .iter()
        .map(|size| format!("{} MiB, {} vCPUs", size.ram_mib, size.vcpus))
        .collect();
    guests.join("; ")
}

/// The names by which `guest.sh` knows guests of these sizes, one behind the other in the pool.
fn names(sizes: &[Size]) -> Vec<String> {
    let offsets = iter::once(0).chain(sizes.iter().scan(0, |end, size| {
        *end += size.ram_mib;
        Some(*end)
    }));
    sizes
        .iter()
        .zip(offsets)
        .map(|(size, offset)| format!("m{}c{}o{offset}", size.ram_mib, size.vcpus))
        .collect()
}

fn refresh(machine: &MachineArgs, sizes: &[Size]) -> Result<(Vec<Row>, Whole)> {
    let mut run = Run::boot(machine, Progress::new("handover"))?;
    let names = names(sizes);
    run.start_native(&names)?;
    let successor = run.successor()?;
    run.replace_host(&successor)?;
    let mut rows = Vec::new();
    for (size, name) in sizes.iter().zip(&names) {
        let guest = run.report.guest(name);
        ensure!(guest.alive && guest.checksum_ok, "{name} did not survive");
        rows.push(Row {
            size: *size,
            stopped_ticks: guest.stopped(),
            steps: guest.steps.clone(),
            state_bytes: guest.state_bytes,
            ram_bytes_copied: guest.ram_bytes_copied,
        });
    }
    let phase = run.report.phases.iter().find(|phase| phase.name == "handover");
    let whole = Whole {
        guests: rows.len(),
        ticks: phase.context("the report has no handover")?.instructions,
        longest: rows.iter().map(|row| row.stopped_ticks).max().unwrap_or_default(),
    };
    run.progress.step("powering off");
    run.power_off()?;
    Ok((rows, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_of_a_refresh_lie_one_behind_the_other_in_the_pool() {
        assert_eq!(
            names(&[size(128, 1), size(256, 1), size(128, 4)]),
            ["m128c1o0", "m256c1o128", "m128c4o384"]
        );
        for sizes in REFRESHES {
            let all: u32 = sizes.iter().map(|size| size.ram_mib).sum();
            assert!(all <= Layout::LARGE.pool_end - Layout::LARGE.pool);
        }
    }

    #[test]
    fn of_an_elf_file_what_is_loaded_counts() {
        let exe = fs::read(std::env::current_exe().unwrap()).unwrap();
        let (bytes, memory) = loaded(&exe).unwrap();
        assert!(0 < bytes && bytes <= memory && bytes < exe.len() as u64);
        assert!(loaded(b"text").is_err());
    }

    #[test]
    fn the_table_tells_sizes_and_failures() {
        let row = Row {
            size: size(256, 1),
            stopped_ticks: 1_700_000,
            steps: Vec::new(),
            state_bytes: 69_635,
            ram_bytes_copied: 0,
        };
        let table = Table {
            handover: vec![row],
            refreshes: vec![Whole {
                guests: 8,
                ticks: 60_000_000,
                longest: 2_000_000,
            }],
            errors: vec![format!("{}: gone", title(REFRESHES[1]))],
            ..Table::default()
        };
        let text = table.to_string();
        assert!(text.contains("     256      1        1700000"), "{text}");
        assert!(text.contains("512 MiB, 1 vCPUs: gone"), "{text}");
        assert!(
            text.contains("8 guests in 60000000 ticks, the longest pause 2000000"),
            "{text}"
        );
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["handover"][0]["ram_mib"], 256);
    }
}
