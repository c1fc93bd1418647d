//! The successor's image put into the memory that the incumbent gave up.

use anyhow::{Context, Result};
use firmware_shim::e820::{E820Map, needs_small_pages};
use partitioner::{MemRange, Plan};

use super::Incumbent;
use crate::config::Config;
use crate::error::Refusal;
use crate::load::{self, Files, Layout, Placed, Sizes, cmdline};
use crate::machine::{Machine, Start};

/// All that the successor boots with but its files.
struct Surroundings {
    /// Where the files go.
    range: MemRange,
    /// The kernel's command line.
    line: String,
    /// Its ACPI tables.
    tables: Vec<Placed>,
    /// Where their RSDP is.
    rsdp: u64,
    /// Its memory map.
    e820: E820Map,
}

impl Surroundings {
    fn new(machine: &dyn Machine, config: &Config, files: &Files, plan: &Plan) -> Result<Self> {
        let facts = machine.facts();
        let (tables, rsdp) = load::tables::acpi(
            machine.sys(),
            machine.memory(),
            &facts.header,
            facts.header_address,
            plan,
        )?;
        let e820 = load::tables::memory_map(machine.sys(), &facts.header, plan)?;
        let line = cmdline::complete(
            &config.cmdline,
            cmdline::Facts {
                cpus: plan.cpus.len(),
                tsc_khz: facts.tsc_khz,
                generation: plan.generation.next().0,
                small_pages: needs_small_pages(&e820),
            },
        );
        let blocks: Vec<MemRange> = plan.blocks.iter().map(|block| block.range).collect();
        let size = files.boot_size();
        let range = load::row(&blocks, plan.boot, size, load::reach(&facts.header));
        let range = range.ok_or(Refusal::NoBlockForImage {
            needed: size.needed_at(0),
        })?;
        Ok(Self {
            range,
            line,
            tables,
            rsdp,
            e820,
        })
    }
}

/// Makes all that [`Incumbent::load`] will make, and throws it away: what is refused then is refused before anything is
/// taken.
///
/// # Errors
/// Why the image could not be loaded.
pub fn rehearse(machine: &dyn Machine, config: &Config, files: &Files, plan: &Plan) -> Result<()> {
    let around = Surroundings::new(machine, config, files, plan)?;
    let sizes = Sizes::of(&files.kernel, &files.initramfs)?;
    sizes
        .describe(around.range, &around.line, around.rsdp, &around.e820)
        .map(drop)
}

impl Incumbent {
    pub(super) fn load(&mut self) -> Result<()> {
        let files = match self.files.take() {
            Some(files) => files,
            // Another daemon had read them.
            None => Files::read(&self.config, &self.path)?,
        };
        let machine = &*self.agent.machine;
        let plan = {
            let inner = self.agent.shared.lock();
            inner.refresh.plan().cloned().context("there is no plan")?
        };
        let boot_cpu = plan.cpus.first().context("the plan has no boot CPU")?.apic;
        let around = Surroundings::new(machine, &self.config, &files, &plan)?;
        tracing::info!("successor's command line: {}", around.line);
        let Layout {
            pieces,
            entry,
            zero_page,
        } = load::layout(files, around.range, &around.line, around.rsdp, &around.e820)?;
        // What an earlier host left, and nobody could add. Once the first of it is given, none of it can be cleared.
        for left in &plan.unreclaimed {
            machine.wipe(left.range)?;
        }
        for piece in around.tables.iter().chain(&pieces) {
            tracing::debug!("{} at {:#x}, {} bytes", piece.what, piece.at, piece.bytes.len());
            machine
                .write(piece.at, &piece.bytes)
                .with_context(|| format!("copying the {} to {:#x}", piece.what, piece.at))?;
        }
        self.start = Some(Start {
            entry,
            zero_page,
            boot_cpu,
        });
        self.agent.shared.lock().brief.start = self.start;
        Ok(())
    }
}
