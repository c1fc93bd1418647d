//! A refresh as the lab sees it: begun, followed from both hosts, and its guests watched while they go over.

use anyhow::{Context, Result, bail};

use super::{ANSWER, Guest, LONG, Run, Witness};
use crate::{
    image::stock_guest,
    machine::{channel::JobId, deadline::Span},
    report::agent::{Gap, Status},
    successor::Successor,
};

/// Long enough for a whole refresh, and for the agents to give one up; the machine's own limit may be shorter.
const REFRESH: Span = Span::seconds(1800);
/// How often a refresh is looked at; looking costs the hosts some instructions.
const LOOK: Span = Span::seconds(3);

/// The file that ends the watches of a refresh, in either host.
fn watched(successor: u32) -> String {
    format!("/run/watched-{successor}")
}

/// A guest that is watched while a refresh goes on.
struct Watch {
    guest: Guest,
    generation: u32,
    job: JobId,
}

/// How a refresh ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The successor reigns.
    Done,
    /// `locum refresh` failed with this text; the incumbent reigns.
    Failed(String),
}

impl Run {
    /// Replaces the reigning host. `Ok(Outcome::Failed)` is a refresh that was given up, with the incumbent answering.
    ///
    /// # Errors
    /// Neither end is reached in time, or the machine dies.
    pub fn refresh(&mut self, successor: &Successor) -> Result<Outcome> {
        self.progress.step("configuring the successor");
        for guest in &mut self.report.guests {
            guest.pause_seen_by.clear();
        }
        successor.install(&mut self.host())?;
        // What the incumbent's watches print comes over the line at once, and stays when the host is gone.
        let here = self.watch_pages(self.generation, successor.generation)?;
        let job = self.host().start(&format!("locum refresh {}", successor.name))?;
        let outcome = self.follow(job, successor.generation)?;
        for watch in here {
            let text = self.machine.host(watch.generation).poll(watch.job).0;
            self.take_visits(&watch, &String::from_utf8_lossy(&text))?;
        }
        if outcome == Outcome::Done {
            self.generation = successor.generation;
            self.conclude()?;
        } else {
            let end = format!("touch {}", watched(successor.generation));
            self.sh(&end)?;
        }
        Ok(outcome)
    }

    fn follow(&mut self, job: JobId, generation: u32) -> Result<Outcome> {
        let end = self.machine.deadline(REFRESH)?;
        let mut said = Vec::new();
        let mut watches: Option<Vec<Watch>> = None;
        loop {
            let (text, status) = self.machine.host(self.generation).poll(job);
            said.extend(text);
            if let Some(status) = status.filter(|status| *status != 0) {
                let said = String::from_utf8_lossy(&said);
                return Ok(Outcome::Failed(format!("status {status}: {}", said.trim())));
            }
            if let Some(hello) = self.machine.host(generation).hello() {
                self.report.successor = hello.release;
                if watches.is_none() {
                    watches = Some(self.watch_guests(generation)?);
                }
                // Cheap, for it runs while guests go over.
                let look = "cat /sys/kernel/locum/state /sys/kernel/locum/progress 2>/dev/null";
                // A successor that does not answer is the agents' business: theirs is the outcome.
                let answer = self.machine.host(generation).run(look, ANSWER);
                let words = answer.map(|output| output.text).unwrap_or_default();
                self.progress.step(&format!(
                    "generation {generation}: {}",
                    words.trim().replace('\n', ", ")
                ));
                if words.lines().next() == Some("idle") && self.reigns(generation)? {
                    self.take_watches(generation, &watches.unwrap_or_default())?;
                    return Ok(Outcome::Done);
                }
            } else {
                let last = String::from_utf8_lossy(&said)
                    .lines()
                    .last()
                    .unwrap_or("refreshing")
                    .to_owned();
                self.progress.step(&last);
            }
            if self.machine.now()? > end {
                let said = String::from_utf8_lossy(&said).into_owned();
                return Err(self
                    .machine
                    .failure(&format!("the refresh does not end; locum said:\n{said}")));
            }
            self.machine.look(LOOK)?;
        }
    }

    /// Watches the guests from the successor while they come over.
    fn watch_guests(&mut self, generation: u32) -> Result<Vec<Watch>> {
        let mut watches = self.watch_pages(generation, generation)?;
        watches.extend(self.watch_gaps(generation)?);
        Ok(watches)
    }

    /// Visits the stock guest from a host again and again until the refresh is over, for it is to serve throughout.
    fn watch_pages(&mut self, generation: u32, successor: u32) -> Result<Vec<Watch>> {
        let until = watched(successor);
        self.watch(generation, &stock_guest::watch(&until), |witness| {
            matches!(witness, Witness::Page(_))
        })
    }

    /// Watches the beats of the lab's guests from the successor; both hosts map the same pool. Not where that host has
    /// one CPU: a watcher that waits for the CPU sees nothing but that, and QEMU's word stands.
    fn watch_gaps(&mut self, generation: u32) -> Result<Vec<Watch>> {
        if self.report.cpus < 4 {
            return Ok(Vec::new());
        }
        let wait = "until (: </dev/dax0.0) 2>/dev/null; do sleep 0.2; done";
        let until = watched(generation);
        let watch = format!("{wait}; lab-guest watch --name NAME --gaps 120 --until {until}");
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

    fn take_watches(&mut self, generation: u32, watches: &[Watch]) -> Result<()> {
        self.machine
            .host(generation)
            .run(&format!("touch {}", watched(generation)), ANSWER)?
            .ok()?;
        let status: Option<Status> = self.successor_state(generation)?;
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
                self.report.guest(name).pause_instructions = gap.to_tsc - gap.from_tsc;
                self.report.guest(name).pause_seen_by = "beats".into();
            }
        }
        Ok(())
    }

    /// Keeps the visits that a watch made; the guest has to be the same all along.
    fn take_visits(&mut self, watch: &Watch, text: &str) -> Result<()> {
        let file = format!("visits-{}-{}.txt", watch.generation, watch.guest.name);
        std::fs::write(self.machine.dir().join(file), text)?;
        let Witness::Page(mut last) = watch.guest.witness.clone() else {
            return Ok(());
        };
        for (state, visit) in stock_guest::visits(text) {
            visit.follows(&last)?;
            last = visit;
            self.visits.push((watch.generation, state));
        }
        Ok(())
    }

    fn reigns(&mut self, generation: u32) -> Result<bool> {
        let status = self.successor_state(generation)?;
        Ok(status.is_some_and(|status| status.generation == generation && status.all_native()))
    }

    fn successor_state(&mut self, generation: u32) -> Result<Option<Status>> {
        let output = self.machine.host(generation).run("locum status --json", ANSWER)?;
        // Until its agent and module are up it cannot answer.
        Ok(serde_json::from_str(&output.text).ok())
    }

    /// Takes the refresh over into the report.
    fn conclude(&mut self) -> Result<()> {
        let status = self.status()?;
        let refresh = status.last_report.context("the new host's agent knows of no refresh")?;
        let seen: Vec<_> = self
            .report
            .guests
            .iter()
            .filter(|guest| guest.pause_seen_by == "beats")
            .map(|guest| (guest.name.clone(), guest.pause_instructions))
            .collect();
        self.report.add_refresh(&refresh);
        for (name, pause) in seen {
            self.report.guest(&name).pause_instructions = pause;
            self.report.guest(&name).pause_seen_by = "beats".into();
        }
        self.report.generation = status.generation;
        self.report.unreclaimed_bytes = status.unreclaimed_bytes.max(refresh.unreclaimed_bytes);
        self.phase_begin = self.host().tsc()?;
        self.phase_exits = status.exits.total;
        if let Some(error) = refresh.error {
            bail!("the refresh went through, but: {error}");
        }
        Ok(())
    }
}
