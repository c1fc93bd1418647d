//! The client on the segment, and the guest that serves it.

use anyhow::{Context, Result, bail, ensure};

use super::run::{LONG, Run};
use crate::{
    machine::{
        deadline::Span,
        segment::{Connections, Progress},
    },
    report::service::{Beats, Service, Stretch},
};

/// The guest of `guest.sh` that serves the client.
pub(super) const NAME: &str = "g4";

/// One that is busy.
pub(super) const BUSY: &str = "g1";
/// Both.
const GUESTS: [&str; 2] = [BUSY, NAME];

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

    /// Waits until the client, which may have been stopped, has done some operations more than `before`; returns how many.
    ///
    /// # Errors
    /// Its connection ended, an answer was wrong, or it waits in vain.
    pub(super) fn client_goes_on(&mut self, before: usize) -> Result<usize> {
        self.machine.segment()?.go_on();
        self.client_comes_to(|progress| match progress {
            Progress::Running(count) if *count >= before + SOME => Some(*count),
            _ => None,
        })
    }

    /// Waits until the client has come so far.
    fn client_comes_to<T>(&mut self, far: impl Fn(&Progress) -> Option<T>) -> Result<T> {
        let end = self.machine.deadline(LONG)?;
        loop {
            let progress = self.machine.segment()?.progress();
            if let Some(found) = far(&progress) {
                return Ok(found);
            }
            match progress {
                Progress::Failed(why) => bail!("the client: {why}"),
                progress if self.machine.now()? > end => bail!("the client waits in vain: {progress:?}"),
                Progress::Idle | Progress::Stopped => bail!("nobody told the client to do anything"),
                Progress::Connecting | Progress::Loading | Progress::Running(_) => self.machine.look(LOOK)?,
            }
        }
    }

    /// Replaces the host so many times under the client, the kernels taking turns; returns what it saw of each refresh.
    ///
    /// # Errors
    /// A refresh does not go through, or the client's connection ended.
    pub(crate) fn refresh_under_client(&mut self, count: usize) -> Result<Vec<Service>> {
        self.begin_service()?;
        let mut refreshes = Vec::new();
        let releases = [self.to.clone(), self.report.incumbent.clone()];
        for release in releases.iter().cycle().take(count) {
            let successor = self.successor_of(release)?;
            self.replace_host(&successor)?;
            self.client_rests()?;
            let report = self.status()?.last_report;
            refreshes.push(report.context("the new host's agent knows of no refresh")?);
        }
        self.end_client()?;
        let busy = self.busy()?;
        let segment = self.machine.segment()?;
        let (operations, seen) = (segment.operations(), segment.connections());
        let services = refreshes
            .iter()
            .map(|refresh| Service::of(refresh, &operations, &seen, &busy).context("a refresh without phases"));
        services.collect()
    }

    fn begin_service(&mut self) -> Result<()> {
        self.start_native(&GUESTS.map(str::to_owned))?;
        self.watch_line(self.generation)?;
        self.client_rests()
    }

    /// Lets the client go on for a while in which nothing else happens.
    ///
    /// # Errors
    /// The machine dies, or the client cannot go on.
    fn client_rests(&mut self) -> Result<()> {
        self.progress.step("letting the client go on");
        self.machine.look(REST)?;
        self.client_goes_on(0).map(drop)
    }

    /// Replaces the host once, as [`Run::refresh_under_client`] does, while the client says nothing; returns how long its phases took.
    ///
    /// # Errors
    /// The refresh does not go through, or the client cannot go on afterwards.
    pub(crate) fn refresh_beside_client(&mut self) -> Result<Vec<Stretch>> {
        self.begin_service()?;
        self.stop_client()?;
        let successor = self.successor()?;
        self.replace_host(&successor)?;
        let report = self.status()?.last_report;
        self.end_client()?;
        let seen = report.and_then(|refresh| Service::of(&refresh, &[], &Connections::default(), &Beats::default()));
        Ok(seen.context("the new host's agent knows of no refresh")?.stretches)
    }

    fn stop_client(&mut self) -> Result<()> {
        self.machine.segment()?.stop();
        self.client_comes_to(|progress| (*progress == Progress::Stopped).then_some(()))
    }

    /// Has the client stop, and makes sure that it had one connection all along.
    ///
    /// # Errors
    /// It had another one, or an operation has no answer.
    fn end_client(&mut self) -> Result<()> {
        self.stop_client()?;
        // For the answers to its last datagrams.
        self.machine.look(LOOK)?;
        let connections = self.machine.segment()?.connections();
        let ends = connections.ends();
        ensure!(ends.len() == 1, "the client had connections {ends:?}, not one");
        Ok(())
    }
}
