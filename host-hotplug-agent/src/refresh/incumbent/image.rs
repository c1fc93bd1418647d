//! The successor's image put into the memory that the incumbent gave up.

use anyhow::{Context, Result};
use partitioner::{MemRange, Plan};

use super::Incumbent;
use crate::load::{self, Layout, cmdline};

impl Incumbent {
    pub(super) fn load(&mut self) -> Result<()> {
        let files = self
            .files
            .take()
            .context("the successor's files are gone")?;
        let facts = *self.machine.facts();
        let sys = self.machine.sys();
        let (plan, generation) = {
            let inner = self.shared.lock();
            let plan = inner.refresh.plan().cloned().context("there is no plan")?;
            let generation = plan.generation.next().0;
            (plan, generation)
        };
        let (tables, rsdp) = load::tables::acpi(
            sys,
            self.machine.memory(),
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
        let range = removed_part(&plan).context("no block of the plan is in its boot range")?;
        let Layout {
            pieces,
            entry,
            zero_page,
        } = load::layout(files, range, &line, rsdp, &e820)?;
        for piece in tables.iter().chain(&pieces) {
            tracing::debug!(
                "{} at {:#x}, {} bytes",
                piece.what,
                piece.at,
                piece.bytes.len()
            );
            self.machine
                .write(piece.at, &piece.bytes)
                .with_context(|| format!("copying the {} to {:#x}", piece.what, piece.at))?;
        }
        self.layout = Some((entry, zero_page));
        Ok(())
    }
}

/// The longest part of the boot range that this host has removed itself: what was nobody's cannot be written.
fn removed_part(plan: &Plan) -> Option<MemRange> {
    let mut runs: Vec<MemRange> = Vec::new();
    for block in plan
        .blocks
        .iter()
        .filter(|block| plan.boot.contains(block.range))
    {
        match runs.last_mut() {
            Some(run) if run.end() == block.range.start() => {
                *run = MemRange::new(run.start(), block.range.end()).unwrap_or(*run);
            }
            _ => runs.push(block.range),
        }
    }
    runs.into_iter().max_by_key(|run| run.len())
}
