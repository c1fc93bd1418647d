//! A refresh as the lab sees it: begun, followed from both hosts, and its guests watched while they go over.

use anyhow::{Context, Result, bail};

use super::{
    run::{ANSWER, Run},
    successor::Successor,
    watches::{Watch, watched},
};
use crate::machine::{channel::JobId, deadline::Span};

/// Long enough for a whole refresh, and for the agents to give one up; the machine's own limit may be shorter.
const REFRESH: Span = Span::seconds(1800);
/// How often a refresh is looked at; looking costs the hosts some instructions.
const LOOK: Span = Span::seconds(3);

/// How a refresh ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
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
    pub(crate) fn refresh(&mut self, successor: &Successor) -> Result<Outcome> {
        self.refresh_by(successor, &successor.refresh_command())
    }

    /// As [`Run::refresh`], asked for by this command.
    ///
    /// # Errors
    /// As [`Run::refresh`].
    pub(super) fn refresh_by(&mut self, successor: &Successor, command: &str) -> Result<Outcome> {
        self.progress.step("configuring the successor");
        for guest in &mut self.report.guests {
            guest.pause_seen_by.clear();
        }
        successor.install(&mut self.host())?;
        // What the incumbent's watches print comes over the line at once, and stays when the host is gone.
        let here = self.watch_pages(self.generation, successor.generation)?;
        let job = self.host().start(command)?;
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
            let words = String::from_utf8_lossy(&said);
            if let Some(status) = status.filter(|status| *status != 0) {
                return Ok(Outcome::Failed(format!("status {status}: {}", words.trim())));
            }
            if let Some(hello) = self.machine.host(generation).hello() {
                self.report.successor = hello.release;
                if watches.is_none() {
                    watches = Some(self.watch_guests(generation)?);
                }
                if self.is_idle(generation) && self.reigns(generation)? {
                    self.take_watches(generation, &watches.unwrap_or_default())?;
                    return Ok(Outcome::Done);
                }
            } else {
                self.progress.step(words.lines().last().unwrap_or("refreshing"));
            }
            if self.machine.now()? > end {
                let what = format!("the refresh does not end; locum said:\n{words}");
                return Err(self.machine.failure(&what));
            }
            self.machine.look(LOOK)?;
        }
    }

    /// Tells how far the successor says it is. Returns whether it has no more to do.
    fn is_idle(&mut self, generation: u32) -> bool {
        // Cheap, for it runs while guests go over.
        let look = "cat /sys/kernel/locum/state /sys/kernel/locum/progress 2>/dev/null";
        // A successor that does not answer is the agents' business: theirs is the outcome.
        let answer = self.machine.host(generation).run(look, ANSWER);
        let words = answer.map(|output| output.text).unwrap_or_default();
        let told = words.trim().replace('\n', ", ");
        self.progress.step(&format!("generation {generation}: {told}"));
        words.lines().next() == Some("idle")
    }

    fn reigns(&mut self, generation: u32) -> Result<bool> {
        let status = self.status_of(generation)?;
        Ok(status.is_some_and(|status| status.generation == generation && status.all_native()))
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
            .cloned()
            .collect();
        self.report.add_refresh(&refresh);
        for guest in seen {
            let entry = self.report.guest(&guest.name);
            entry.pause_instructions = guest.pause_instructions;
            entry.pause_seen_by = guest.pause_seen_by;
            entry.watcher_absent = guest.watcher_absent;
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
