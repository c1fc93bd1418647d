//! The client on the segment, and the guest that serves it.

use anyhow::{Result, bail, ensure};

use super::run::{LONG, Run};
use crate::machine::{deadline::Span, segment::Progress};

/// The guest of `guest.sh` that serves the client.
pub(super) const NAME: &str = "g4";

/// What Redis says when it is up.
const READY: &str = "Ready to accept connections";
/// Records that the client loads.
const RECORDS: u64 = 200;
/// Where its operations are drawn from.
const SEED: u64 = 1;
/// More operations that show that the guest serves.
const SOME: usize = 50;
/// Long enough to tell how it is without a refresh.
const REST: Span = Span::seconds(6);
/// Between two looks at the client.
const LOOK: Span = Span::seconds(1);

impl Run {
    /// Has the client connect to the guest that was just started, and waits until it does operations; returns how many.
    ///
    /// # Errors
    /// The guest does not serve.
    pub(super) fn connect_client(&mut self) -> Result<usize> {
        // What TCP sends into the void it sends ever more seldom.
        self.sh(&format!(
            "timeout 600 sh -c 'until grep -q {READY:?} /run/{NAME}.log; do sleep 1; done'"
        ))?;
        self.machine.segment()?.begin(RECORDS, SEED);
        self.client_goes_on(0)
    }

    /// Waits until the client has done some operations more than `before`; returns how many.
    ///
    /// # Errors
    /// Its connection ended, an answer was wrong, or it waits in vain.
    pub(super) fn client_goes_on(&mut self, before: usize) -> Result<usize> {
        let end = self.machine.deadline(LONG)?;
        loop {
            match self.machine.segment()?.progress() {
                Progress::Running(count) if count >= before + SOME => return Ok(count),
                Progress::Failed(why) => bail!("the client: {why}"),
                progress if self.machine.now()? > end => bail!("the client waits in vain: {progress:?}"),
                Progress::Idle | Progress::Stopped => bail!("nobody told the client to do anything"),
                Progress::Connecting | Progress::Loading | Progress::Running(_) => self.machine.look(LOOK)?,
            }
        }
    }

    /// Lets the client go on for a while in which nothing else happens.
    ///
    /// # Errors
    /// The machine dies, or the client cannot go on.
    pub(crate) fn client_rests(&mut self) -> Result<()> {
        self.progress.step("letting the client go on");
        self.machine.look(REST)?;
        self.client_goes_on(0).map(drop)
    }

    /// Has the client stop, and makes sure that it had one connection all along.
    ///
    /// # Errors
    /// It had another one, or an operation has no answer.
    pub(crate) fn stop_client(&mut self) -> Result<()> {
        self.machine.segment()?.stop();
        let end = self.machine.deadline(LONG)?;
        loop {
            match self.machine.segment()?.progress() {
                Progress::Stopped => break,
                Progress::Failed(why) => bail!("the client: {why}"),
                progress if self.machine.now()? > end => bail!("the client waits in vain: {progress:?}"),
                _ => self.machine.look(LOOK)?,
            }
        }
        let connections = self.machine.segment()?.connections();
        let ends = connections.ends();
        ensure!(ends.len() == 1, "the client had connections {ends:?}, not one");
        Ok(())
    }
}
