//! The successor's image put into the memory that the incumbent gave up.

use anyhow::{Context, Result};
use partitioner::{BootSize, MemRange};

use super::Incumbent;
use crate::load::{self, Layout, cmdline};
use crate::machine::Start;

impl Incumbent {
    pub(super) fn load(&mut self) -> Result<()> {
        let files = self.files.take().context("the successor's files are gone")?;
        let facts = *self.agent.machine.facts();
        let sys = self.agent.machine.sys();
        let (plan, generation) = {
            let inner = self.agent.shared.lock();
            let plan = inner.refresh.plan().cloned().context("there is no plan")?;
            let generation = plan.generation.next().0;
            (plan, generation)
        };
        let boot_cpu = plan.cpus.first().context("the plan has no boot CPU")?.apic;
        let (tables, rsdp) = load::tables::acpi(
            sys,
            self.agent.machine.memory(),
            &facts.header,
            facts.header_address,
            &plan,
        )?;
        let e820 = load::tables::memory_map(sys, &facts.header, &plan)?;
        let line = cmdline::complete(
            &self.config.cmdline,
            cmdline::Facts {
                cpus: plan.cpus.len(),
                tsc_khz: facts.tsc_khz,
                generation,
            },
        );
        tracing::info!("successor's command line: {line}");
        let range = {
            let blocks: Vec<MemRange> = plan.blocks.iter().map(|block| block.range).collect();
            place(&blocks, plan.boot, files.boot_size())
                .context("the plan takes no memory block that the image could be written to: ask for more memory")?
        };
        let Layout {
            pieces,
            entry,
            zero_page,
        } = load::layout(files, range, &line, rsdp, &e820)?;
        for piece in tables.iter().chain(&pieces) {
            tracing::debug!("{} at {:#x}, {} bytes", piece.what, piece.at, piece.bytes.len());
            self.agent
                .machine
                .write(piece.at, &piece.bytes)
                .with_context(|| format!("copying the {} to {:#x}", piece.what, piece.at))?;
        }
        self.start = Some(Start {
            entry,
            zero_page,
            boot_cpu,
        });
        Ok(())
    }
}

/// Where the image goes: a row of blocks that this host has removed itself, since memory that was nobody's cannot be
/// written through the module. One in the plan's boot range is preferred if the image fits there.
fn place(blocks: &[MemRange], boot: MemRange, size: BootSize) -> Option<MemRange> {
    let mut rows: Vec<MemRange> = Vec::new();
    for block in blocks {
        match rows.last_mut() {
            Some(row) if row.end() == block.start() => {
                *row = MemRange::new(row.start(), block.end()).unwrap_or(*row);
            }
            _ => rows.push(*block),
        }
    }
    rows.into_iter()
        .max_by_key(|row| (size.fits(*row), boot.contains(*row), row.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(place(&blocks, range(10, 256), size), Some(range(1024, 1280)));
        let small = BootSize {
            initramfs: 20 * MIB,
            ..size
        };
        assert_eq!(place(&blocks, range(10, 256), small), Some(range(128, 256)));
        assert_eq!(place(&blocks, range(10, 100), small), Some(range(1024, 1280)));
        assert_eq!(place(&[], range(10, 100), small), None);
    }
}
