//! The segment with a server in memory that goes from one card to the other.

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::tcp,
    wire::{EthernetAddress, IpAddress, IpCidr},
};

use super::{
    client::{Device, instant},
    *,
};

const CARD: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 9, 2]);
/// Ticks that the server takes for a request.
const WORK: u64 = 50_000;

struct Server {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// Where it sends.
    card: u32,
    /// Where it hears.
    hears: Vec<u32>,
}

impl Server {
    fn new() -> Self {
        let mut device = Device::default();
        let mut interface = Interface::new(Config::new(CARD.into()), &mut device, instant(0));
        interface.update_ip_addrs(|all| all.push(IpCidr::new(IpAddress::v4(10, 0, 9, 2), 24)).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self {
            device,
            interface,
            sockets,
            socket,
            card: 0,
            hears: vec![0],
        }
    }

    fn listen(&mut self) {
        self.sockets
            .get_mut::<tcp::Socket<'_>>(self.socket)
            .listen(6379)
            .unwrap();
    }

    /// What it sends at that tick.
    fn poll(&mut self, tick: u64) -> Vec<Vec<u8>> {
        for _ in 0..3 {
            self.interface.poll(instant(tick), &mut self.device, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
            if socket.can_recv() {
                let answer = socket.recv(|bytes| (bytes.len(), answer(bytes))).unwrap();
                socket.send_slice(&answer).unwrap();
            }
        }
        std::mem::take(&mut self.device.sent)
    }
}

fn answer(request: &[u8]) -> Vec<u8> {
    let words = String::from_utf8_lossy(request);
    if words.contains("HGETALL") {
        let value = "v".repeat(100);
        let pair = format!("$1\r\nf\r\n$100\r\n{value}\r\n");
        format!("*20\r\n{}", pair.repeat(10)).into_bytes()
    } else if words.contains("ZADD") {
        b":1\r\n".to_vec()
    } else {
        b"+OK\r\n".to_vec()
    }
}

struct Bench {
    state: State,
    server: Server,
    /// What is on its way to cards.
    due: Vec<Delivery>,
    tick: u64,
    wake: u64,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State {
            switch: Switch::new(2),
            client: Client::new(),
            capture: Capture::create(&dir.path().join(CAPTURE)).unwrap(),
            connections: Connections::default(),
            failed: None,
        };
        Self {
            state,
            server: Server::new(),
            due: Vec::new(),
            tick: 0,
            wake: 0,
            _dir: dir,
        }
    }

    fn call(&mut self, tick: u64, cause: Cause) {
        let (wake, deliveries) = self.state.handle(Call { tick, cause }).unwrap();
        assert!(wake > tick && deliveries.iter().all(|frame| frame.due > tick));
        self.wake = wake;
        self.due.extend(deliveries);
    }

    /// As the emulator does it, until `done`.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let end = self.tick + 100 * BEAT * 10;
        while !done(self) {
            assert!(self.tick < end, "{:?}", self.state.client.progress());
            let first = self.due.iter().map(|frame| frame.due).min().unwrap_or(u64::MAX);
            self.tick = first.min(self.wake).max(self.tick + 1);
            let (now, later) = self.due.drain(..).partition(|frame: &Delivery| frame.due <= self.tick);
            self.due = later;
            for Delivery { card, frame, .. } in now {
                if self.server.hears.contains(&card) {
                    self.server.device.received.push_back(frame);
                } else {
                    self.call(self.tick, Cause::Dropped(card, frame));
                }
            }
            for frame in self.server.poll(self.tick) {
                self.call(self.tick + WORK, Cause::Sent(self.server.card, frame));
            }
            if self.wake <= self.tick {
                self.call(self.tick, Cause::Woken);
            }
        }
    }

    fn operations(&self) -> usize {
        self.state.client.operations().len()
    }

    fn goes_on(&mut self) {
        let before = self.operations();
        self.until(|bench| bench.operations() >= before + 20);
    }

    /// The server is behind the other card. If it says so, what is on its way to it still comes.
    fn moves(&mut self, announces: bool) {
        self.server.card = 1;
        self.server.hears.push(1);
        if !announces {
            self.server.hears.remove(0);
        } else {
            let mut frame = vec![0xff; 60];
            frame[6..12].copy_from_slice(&CARD.0);
            // RARP, as QEMU has it.
            frame[12..14].copy_from_slice(&[0x80, 0x35]);
            self.call(self.tick, Cause::Sent(1, frame));
        }
    }
}

#[test]
fn a_client_follows_its_server_from_card_to_card() {
    let mut bench = Bench::new();
    bench.until(|bench| bench.tick > 3 * BEAT);
    assert_eq!(bench.state.client.progress(), Progress::Idle);
    bench.state.client.begin(5, 1);
    // Nobody listens yet: the client tries anew.
    bench.until(|bench| bench.tick > 30 * BEAT);
    assert_eq!(bench.state.client.progress(), Progress::Connecting);
    bench.server.listen();
    bench.goes_on();
    bench.moves(true);
    bench.goes_on();
    bench.state.client.stop();
    bench.until(|bench| bench.state.client.progress() == Progress::Stopped);
    let stopped = bench.tick;
    bench.until(|bench| bench.tick > stopped + BEAT);
    let datagrams = bench.state.client.datagrams();
    assert!(datagrams.sent > 1, "{datagrams:?}");
    assert_eq!(
        (datagrams.lost, datagrams.doubled, datagrams.overtaken),
        (vec![], vec![], vec![])
    );
    for operation in bench.state.client.operations() {
        let took = operation.answered - operation.asked;
        assert!((WORK..2 * WORK + LATENCY).contains(&took), "{operation:?}");
    }
    let seen = &bench.state.connections;
    assert!(seen.retransmitted.is_empty(), "{seen:?}");
    let ends = seen.ends();
    let last = ends.iter().max_by_key(|[client, _]| client.port()).unwrap();
    assert_eq!(last[1].to_string(), "10.0.9.2:6379");
    let done = bench.state.client.operations().len();
    bench.state.client.go_on();
    bench.until(|bench| bench.state.client.operations().len() > done);
    assert_eq!(bench.state.connections.ends(), ends, "by the same connection");
}

#[test]
fn a_server_that_does_not_say_where_it_is_loses_a_request() {
    let mut bench = Bench::new();
    bench.server.listen();
    bench.state.client.begin(5, 1);
    bench.goes_on();
    bench.moves(false);
    bench.goes_on();
    let seen = &bench.state.connections;
    assert_eq!(seen.ends().len(), 1);
    assert!(!seen.dropped.is_empty() && !seen.retransmitted.is_empty(), "{seen:?}");
    let datagrams = bench.state.client.datagrams();
    assert!(datagrams.lost.len() > 1, "{datagrams:?}");
    let longest = bench
        .state
        .client
        .operations()
        .iter()
        .map(|op| op.answered - op.asked)
        .max();
    assert!(longest > Some(50 * BEAT), "{longest:?}: that is TCP's to mend");
}

#[test]
fn a_client_that_nobody_hears_is_woken_seldom() {
    let mut bench = Bench::new();
    bench.server.hears.clear();
    bench.state.client.begin(5, 1);
    let mut woken = 0;
    while bench.tick < 1000 * BEAT {
        bench.tick = bench.wake.max(bench.tick + 1);
        bench.call(bench.tick, Cause::Woken);
        woken += 1;
    }
    assert_eq!(bench.state.client.progress(), Progress::Connecting);
    assert!(woken < 1100, "woken {woken} times");
}

#[test]
fn a_connection_that_ends_is_told() {
    let mut bench = Bench::new();
    bench.server.listen();
    bench.state.client.begin(5, 1);
    bench.goes_on();
    bench
        .server
        .sockets
        .get_mut::<tcp::Socket<'_>>(bench.server.socket)
        .abort();
    bench.until(|bench| matches!(bench.state.client.progress(), Progress::Failed(_)));
}
