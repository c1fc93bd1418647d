//! The client outside: workload A of YCSB on one TCP connection that is never opened anew, and datagrams beside it.
//!
//! Its time is the server's. What it does itself takes none: an answer that leaves the server is followed by the next
//! request in the same tick, and the wire's time after that it enters the server. So what passes from request to answer is the
//! server's alone.

use std::collections::VecDeque;

use lab_ycsb::session::{Kind, Session};
use serde::Serialize;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    socket::tcp,
    time::{Duration, Instant},
    wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address},
};

use super::{
    LATENCY, NS_PER_TICK,
    datagrams::{Datagrams, Stream},
};

/// Where the client is.
const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 9, 1);
/// Where the server is (`service.sh`).
const SERVER: (Ipv4Address, u16) = (Ipv4Address::new(10, 0, 9, 2), super::SERVER);
/// Its card's address: locally administered.
const CARD: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 9, 1]);
/// The first port that it connects from.
const PORT: u16 = 40000;
/// Ticks after which a server that refused a connection is tried anew.
const AGAIN: u64 = 20_000_000;
/// Room for what is sent and received, in bytes: several records.
const BUFFER: usize = 1 << 16;

/// An operation that has its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Operation {
    /// Whether it wrote.
    pub update: bool,
    /// The tick at which the request entered the server.
    pub asked: u64,
    /// The tick at which the last of the answer left it.
    pub answered: u64,
}

impl Operation {
    /// What it took in the server.
    #[must_use]
    pub(crate) fn ticks(&self) -> u64 {
        self.answered.saturating_sub(self.asked)
    }
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has not begun.
    Idle,
    /// The server does not answer yet.
    Connecting,
    /// Records are written.
    Loading,
    /// It does operations: so many until now.
    Running(usize),
    /// It was told to stop, and has all answers.
    Stopped,
    /// Why it cannot go on.
    Failed(String),
}

/// The client.
pub(super) struct Client {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    datagrams: Stream,
    session: Option<Session>,
    connected: bool,
    tries: u16,
    again: u64,
    asked: Option<u64>,
    stop: bool,
    operations: Vec<Operation>,
    failed: Option<String>,
    now: u64,
}

impl Client {
    /// One that waits to be told.
    #[must_use]
    pub(super) fn new() -> Self {
        let mut device = Device::default();
        let mut interface = Interface::new(Config::new(CARD.into()), &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // A new interface has room for some.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 24));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        let datagrams = Stream::new(&mut sockets);
        Self {
            device,
            interface,
            sockets,
            socket,
            datagrams,
            session: None,
            connected: false,
            tries: 0,
            again: 0,
            asked: None,
            stop: false,
            operations: Vec::new(),
            failed: None,
            now: 0,
        }
    }

    /// Has it connect, load so many records, and do operations drawn from `seed`.
    pub(super) fn begin(&mut self, records: u64, seed: u64) {
        self.session = Some(Session::new(records, seed));
    }

    /// Has it ask nothing more, until it is to go on.
    pub(super) fn stop(&mut self) {
        self.stop = true;
    }

    /// Has it ask again.
    pub(super) fn go_on(&mut self) {
        self.stop = false;
    }

    /// Operations that have their answers, in their order.
    #[must_use]
    pub(super) fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// What became of its datagrams.
    #[must_use]
    pub(super) fn datagrams(&self) -> Datagrams {
        self.datagrams.told()
    }

    /// How far it is.
    #[must_use]
    pub(super) fn progress(&self) -> Progress {
        match (&self.session, &self.failed) {
            (_, Some(why)) => Progress::Failed(why.clone()),
            (None, _) => Progress::Idle,
            (Some(_), _) if !self.connected => Progress::Connecting,
            (Some(session), _) if !session.is_loaded() => Progress::Loading,
            _ if self.stop && self.asked.is_none() => Progress::Stopped,
            _ => Progress::Running(self.operations.len()),
        }
    }

    /// A frame for it.
    pub(super) fn receive(&mut self, frame: Vec<u8>) {
        self.device.received.push_back(frame);
    }

    /// Does what is to be done at that tick; returns the frames that it sends.
    pub(super) fn poll(&mut self, tick: u64) -> Vec<Vec<u8>> {
        // What is inside one instruction of the server's may be told in another order.
        self.now = self.now.max(tick);
        loop {
            self.interface
                .poll(instant(self.now), &mut self.device, &mut self.sockets);
            let to = self.has_begun().then_some(SERVER.0);
            let sent = self.datagrams.step(&mut self.sockets, self.now, to);
            if !self.step() && !sent {
                break;
            }
        }
        std::mem::take(&mut self.device.sent)
    }

    /// The tick at which it has to be polled again, if nothing comes before.
    pub(super) fn wake(&mut self) -> Option<u64> {
        let timers = self.interface.poll_at(instant(self.now), &self.sockets).map(tick);
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.socket);
        let tries = !self.connected && self.session.is_some() && socket.state() == tcp::State::Closed;
        let again = tries.then_some(self.again);
        let datagram = self.has_begun().then(|| self.datagrams.wake());
        [timers, again, datagram]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(self.now + 1))
    }

    /// Whether it does operations, and was not told to stop.
    fn has_begun(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_loaded) && !self.stop
    }

    /// Takes what has come and says the next thing; whether there was anything to be said.
    fn step(&mut self) -> bool {
        let (Some(session), None) = (&mut self.session, &self.failed) else {
            return false;
        };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        if self.connected && !socket.may_send() {
            self.failed = Some("the connection ended".to_owned());
            return false;
        }
        if !self.connected {
            if socket.may_send() {
                self.connected = true;
            } else if socket.state() == tcp::State::Closed && self.now >= self.again {
                self.again = self.now + AGAIN;
                let from = PORT + self.tries;
                self.tries += 1;
                let connecting = socket.connect(self.interface.context(), SERVER, from);
                self.failed = connecting.err().map(|error| format!("connecting: {error}"));
                return self.failed.is_none();
            } else {
                return false;
            }
        }
        if socket.can_recv() {
            let taken = socket.recv(|bytes| (bytes.len(), session.take(bytes)));
            match taken.map_err(anyhow::Error::from).flatten() {
                Ok(None) => return true,
                Ok(Some(kind)) => {
                    let asked = self.asked.take().unwrap_or_default();
                    if kind != Kind::Load {
                        self.operations.push(Operation {
                            update: kind == Kind::Update,
                            asked,
                            answered: self.now,
                        });
                    }
                }
                Err(error) => self.failed = Some(format!("{error:#}")),
            }
        }
        if self.stop && session.is_loaded() {
            return false;
        }
        let Some(request) = session.request() else {
            return false;
        };
        match socket.send_slice(&request) {
            Ok(sent) if sent == request.len() => self.asked = Some(self.now + LATENCY),
            other => self.failed = Some(format!("sending {} bytes: {other:?}", request.len())),
        }
        true
    }
}

pub(super) fn instant(tick: u64) -> Instant {
    Instant::ZERO + Duration::from_micros(tick * NS_PER_TICK / 1000)
}

/// The first tick that is not before.
fn tick(instant: Instant) -> u64 {
    let us = u64::try_from(instant.total_micros()).unwrap_or_default();
    us * 1000 / NS_PER_TICK
}

/// The client's card.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) received: VecDeque<Vec<u8>>,
    pub(super) sent: Vec<Vec<u8>>,
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Sent<'d>(&'d mut Vec<Vec<u8>>);

impl phy::Device for Device {
    type RxToken<'d> = Received;
    type TxToken<'d> = Sent<'d>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.push(frame);
        result
    }
}
