//! Guests watched from both hosts while they go over.

use anyhow::{Context, Result};

use super::{
    client::BUSY,
    run::{ANSWER, LONG, Run},
    visits,
    witness::{Guest, Witness},
};
use crate::{
    machine::channel::JobId,
    report::{agent::Gap, service::Beats},
};

/// Waits for the pool to be there.
const WAIT: &str = "until (: </dev/dax0.0) 2>/dev/null; do sleep 0.2; done";

/// The file that ends the watches of a refresh, in either host.
pub(super) fn watched(successor: u32) -> String {
    format!("/run/watched-{successor}")
}

/// A guest that is watched while a refresh goes on.
pub(super) struct Watch {
    guest: Guest,
    pub(super) generation: u32,
    pub(super) job: JobId,
}

impl Run {
    /// Watches the guests from the successor while they come over.
    pub(super) fn watch_guests(&mut self, generation: u32) -> Result<Vec<Watch>> {
        let mut watches = self.watch_pages(generation, generation)?;
        watches.extend(self.watch_gaps(generation)?);
        if !self.lines.is_empty() {
            self.watch_line(generation)?;
        }
        Ok(watches)
    }

    /// Has a host tell, for as long as it lives, how the busy guest beside the client's gets on; so do its successors then.
    pub(super) fn watch_line(&mut self, generation: u32) -> Result<()> {
        let watch = format!("{WAIT}; lab-guest watch --name {BUSY} --line");
        let job = self.machine.host(generation).start(&watch)?;
        self.lines.push((generation, job));
        Ok(())
    }

    /// What was told so far.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn busy(&mut self) -> Result<Beats> {
        let mut text = String::new();
        for (generation, job) in std::mem::take(&mut self.lines) {
            let said = self.machine.host(generation).poll(job).0;
            // The last line of a host that is gone may be cut off.
            let end = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            text += &String::from_utf8_lossy(&said[..end]);
        }
        text.parse()
    }

    /// Visits the stock guest from a host again and again until the refresh is over, for it is to serve throughout.
    pub(super) fn watch_pages(&mut self, generation: u32, successor: u32) -> Result<Vec<Watch>> {
        let until = watched(successor);
        self.watch(generation, &visits::watch(&until), |witness| {
            matches!(witness, Witness::Page(_))
        })
    }

    /// Watches the beats of the lab's guests from the successor; both hosts map the same pool.
    fn watch_gaps(&mut self, generation: u32) -> Result<Vec<Watch>> {
        let until = watched(generation);
        let watch = format!("{WAIT}; lab-guest watch --name NAME --gaps 120 --until {until}");
        self.watch(generation, &watch, |witness| matches!(witness, Witness::Beats(_)))
    }

    /// Starts `command` in a host for each guest of that kind; NAME in it is the guest's.
    fn watch(&mut self, generation: u32, command: &str, kind: fn(&Witness) -> bool) -> Result<Vec<Watch>> {
        let mut watches = Vec::new();
        for guest in self.guests.clone() {
            if kind(&guest.witness) {
                let command = command.replace("NAME", &guest.name);
                let job = self.machine.host(generation).start(&command)?;
                watches.push(Watch { guest, generation, job });
            }
        }
        Ok(watches)
    }

    pub(super) fn take_watches(&mut self, generation: u32, watches: &[Watch]) -> Result<()> {
        self.machine
            .host(generation)
            .run(&format!("touch {}", watched(generation)), ANSWER)?
            .ok()?;
        let status = self.status_of(generation)?;
        let moved = status
            .and_then(|status| status.last_report)
            .map(|report| report.guests)
            .unwrap_or_default();
        for watch in watches {
            let output = self.machine.host(generation).finish(watch.job, LONG)?;
            if matches!(watch.guest.witness, Witness::Page(_)) {
                self.take_visits(watch, &output.text)?;
                continue;
            }
            let name = &watch.guest.name;
            let file = self.machine.dir().join(format!("gaps-{generation}-{name}.json"));
            std::fs::write(file, &output.text)?;
            let gaps: Vec<Gap> = serde_json::from_str(&output.text)
                .with_context(|| format!("the watch of guest {name} said: {}", output.text))?;
            let Some(guest) = moved.iter().find(|guest| guest.name == *name) else {
                continue;
            };
            // The beats that stood still around the resume; without such a gap QEMU's word stands.
            if let Some(gap) = gaps
                .iter()
                .find(|gap| (gap.from_tsc..gap.to_tsc).contains(&guest.resumed))
            {
                self.report.see_pause(name, gap);
            }
        }
        Ok(())
    }

    /// Keeps the visits that a watch made; the guest has to be the same all along.
    pub(super) fn take_visits(&mut self, watch: &Watch, text: &str) -> Result<()> {
        let file = format!("visits-{}-{}.txt", watch.generation, watch.guest.name);
        std::fs::write(self.machine.dir().join(file), text)?;
        let Witness::Page(mut last) = watch.guest.witness.clone() else {
            return Ok(());
        };
        for (state, visit) in visits::visits(text) {
            visit.follows(&last)?;
            last = visit;
            self.visits.push((watch.generation, state));
        }
        Ok(())
    }
}
