//! One network segment: the cards of the emulated server, and a client outside it, on a [`switch`].
//!
//! It is in step with the emulated time: at each frame that a card sends the emulator stands still until the segment has
//! answered ([`wire`]), so the client's own time, and how busy this machine is, are no part of what is measured. Each frame
//! has a tick, at which it leaves a card or enters one, and is kept in a [`capture`].

mod capture;
mod client;
mod connections;
mod datagrams;
mod switch;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    fs::File,
    io::{self, BufReader, BufWriter},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

pub(crate) use client::{Operation, Progress};
pub(crate) use connections::Connections;
pub(crate) use datagrams::Datagrams;

use self::{
    capture::Capture,
    client::Client,
    switch::{Port, Switch},
    wire::{Call, Cause, Delivery},
};
use super::bochs::IPS;

/// A tick of the emulated clock, in nanoseconds.
const NS_PER_TICK: u64 = 1_000_000_000 / IPS;
/// How long a frame is on its way to the server, in ticks: 20 us. The other way takes none.
const LATENCY: u64 = 20_000 / NS_PER_TICK;
/// The port of the client's server.
pub(crate) const SERVER: u16 = 6379;
/// The emulator calls that often at least, in ticks, so that the client hears what it is told.
const BEAT: u64 = 1_000_000;
/// File of a machine with all frames.
const CAPTURE: &str = "segment.pcap";

/// A segment.
pub(crate) struct Segment {
    name: String,
    state: Arc<Mutex<State>>,
}

/// What the thread that answers the emulator has.
struct State {
    switch: Switch,
    client: Client,
    capture: Capture<BufWriter<File>>,
    connections: Connections,
    failed: Option<String>,
}

impl Segment {
    /// One for a machine with that many cards; its capture goes to `dir`.
    ///
    /// # Errors
    /// There is no socket, or no file.
    pub(crate) fn listen(dir: &Path, cards: u32) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("locum-lab-{}-{number}", process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address).context("listening for the emulator's cards")?;
        let path = dir.join(CAPTURE);
        let capture = Capture::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let state = Arc::new(Mutex::new(State {
            switch: Switch::new(cards),
            client: Client::new(),
            capture,
            connections: Connections::default(),
            failed: None,
        }));
        let shared = Arc::clone(&state);
        // It ends with the emulator.
        thread::spawn(move || {
            let served = listener.accept().and_then(|(stream, _)| serve(&shared, stream));
            if let Err(error) = served {
                lock(&shared).failed = Some(format!("the segment: {error}"));
            }
        });
        Ok(Self { name, state })
    }

    /// What Bochs' cards are told to be connected to.
    #[must_use]
    pub(super) fn device(&self) -> String {
        format!("@{}", self.name)
    }

    /// Has the client connect, load so many records, and do operations drawn from `seed`, one after the other.
    pub(crate) fn begin(&self, records: u64, seed: u64) {
        lock(&self.state).client.begin(records, seed);
    }

    /// Has the client ask nothing more, until it is to go on.
    pub(crate) fn stop(&self) {
        lock(&self.state).client.stop();
    }

    /// Has the client ask again.
    pub(crate) fn go_on(&self) {
        lock(&self.state).client.go_on();
    }

    /// How far the client is.
    #[must_use]
    pub(crate) fn progress(&self) -> Progress {
        let state = lock(&self.state);
        match &state.failed {
            Some(why) => Progress::Failed(why.clone()),
            None => state.client.progress(),
        }
    }

    /// Operations that have their answers, in their order.
    #[must_use]
    pub(crate) fn operations(&self) -> Vec<Operation> {
        lock(&self.state).client.operations().to_vec()
    }

    /// What became of the client's datagrams.
    pub(crate) fn datagrams(&self) -> Datagrams {
        lock(&self.state).client.datagrams()
    }

    /// What was seen of TCP.
    #[must_use]
    pub(crate) fn connections(&self) -> Connections {
        lock(&self.state).connections.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(state: &Mutex<State>, stream: UnixStream) -> io::Result<()> {
    let mut calls = BufReader::new(stream.try_clone()?);
    let mut answers = stream;
    while let Some(call) = Call::read(&mut calls)? {
        let (wake, deliveries) = lock(state).handle(call)?;
        wire::answer(&mut answers, wake, &deliveries)?;
    }
    lock(state).capture.flush()
}

impl State {
    fn handle(&mut self, Call { tick, cause }: Call) -> io::Result<(u64, Vec<Delivery>)> {
        let mut deliveries = Vec::new();
        match cause {
            Cause::Sent(card, frame) => {
                self.capture.frame(tick, &frame)?;
                self.connections.frame(tick, &frame);
                self.forward(Port::Card(card), tick, frame, &mut deliveries);
            }
            Cause::Woken => {}
            Cause::Dropped(card, frame) => self.connections.dropped(tick, card, &frame),
        }
        for frame in self.client.poll(tick) {
            self.capture.frame(tick + LATENCY, &frame)?;
            self.connections.frame(tick + LATENCY, &frame);
            self.forward(Port::Client, tick, frame, &mut deliveries);
        }
        let wake = self.client.wake().unwrap_or(u64::MAX);
        Ok((wake.clamp(tick + 1, tick + BEAT), deliveries))
    }

    fn forward(&mut self, from: Port, tick: u64, frame: Vec<u8>, deliveries: &mut Vec<Delivery>) {
        for to in self.switch.forward(from, &frame) {
            match to {
                Port::Client => self.client.receive(frame.clone()),
                Port::Card(card) => deliveries.push(Delivery {
                    due: tick + LATENCY,
                    card,
                    frame: frame.clone(),
                }),
            }
        }
    }
}
