//! `locum status --long`: every CPU, every counter, and the last refresh, line by line.

use std::fmt;

use super::StatusView;

/// A status to be shown so.
pub struct Long<'a>(pub &'a StatusView);

impl fmt::Display for Long<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.0;
        writeln!(
            f,
            "generation {}, kernel {}, {}",
            view.generation, view.kernel, view.state
        )?;
        if let Some(daemon) = &view.daemon {
            writeln!(f, "{}", daemon.summary)?;
            if let Some(error) = &daemon.last_error {
                writeln!(f, "last error: {error}")?;
            }
        }
        if let Some(error) = &view.no_answer {
            writeln!(f, "{error}")?;
        }
        for cpu in &view.cpus {
            let owner = cpu
                .owner
                .map_or_else(|| "nobody".to_owned(), |slot| format!("slot {}", slot.raw()));
            writeln!(
                f,
                "  APIC {:<3} {:<7} {owner:<7} entered {} left {} exits {} (of guests {})",
                cpu.apic_id, cpu.mode, cpu.enters, cpu.leaves, cpu.exits, cpu.guest_exits
            )?;
        }
        for host in &view.hosts {
            write!(
                f,
                "  slot {}: {}, generation {}",
                host.slot.raw(),
                host.state,
                host.generation
            )?;
            match &host.reason {
                Some(reason) => writeln!(f, ", {reason}")?,
                None => writeln!(f)?,
            }
        }
        write!(
            f,
            "  exits {} (of guests {}), refused requests {}",
            view.exits.total, view.exits.guest, view.refusals
        )?;
        for (reason, count) in &view.exits.by_reason {
            write!(f, "\n    {reason:<26} {count}")?;
        }
        match &view.last_report {
            Some(report) => write!(f, "\n{report}"),
            None => Ok(()),
        }
    }
}
