//! A report as text: what `locum report` and `locum status --long` print.

use std::fmt;

use super::Report;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "refresh to `{}`: {} ({} -> {})",
            self.name, self.outcome, self.incumbent, self.successor
        )?;
        if let Some(error) = &self.error {
            write!(f, "\n  {error}")?;
        }
        for phase in &self.phases {
            let ticks = phase.end.saturating_sub(phase.start);
            write!(
                f,
                "\n  {:<12} {:<10} {ticks:>14} ticks {:>10} exits",
                phase.name, phase.by, phase.l0_exits
            )?;
        }
        for guest in &self.guests {
            let (name, pause, bytes) = (&guest.name, guest.pause_ticks, guest.state_bytes);
            write!(
                f,
                "\n  guest {name}: moved {}, pause {pause} ticks, {bytes} bytes of state",
                guest.moved
            )?;
        }
        for action in &self.taken_up {
            write!(f, "\n  taken up by a daemon that was started anew, at: {action}")?;
        }
        for saved in &self.saved {
            write!(f, "\n  {saved}")?;
        }
        for loss in &self.losses {
            write!(f, "\n  lost: {loss}")?;
        }
        Ok(())
    }
}
