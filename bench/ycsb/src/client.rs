//! Does operations and times them, in as many threads as there are clients (YCSB's `threadcount`): each has a
//! connection of its own and does its operations one after the other.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::PathBuf,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use lab_guest::tsc;
use redis::Connection;

use crate::{
    command,
    counters::{self, Counters},
    report::{Latency, Repetition},
    workload::{Operation, Workload},
};

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// Longest latency that is told apart, in ticks. A fixed range, so that nothing is allocated while it counts.
const LONGEST: u64 = 1 << 36;

/// A server that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection to a server.
pub struct Client {
    connection: Connection,
}

/// Something that counts: a name, and where [`counters::read`] finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name in the report.
    pub name: String,
    /// A file or directory.
    pub path: PathBuf,
}

impl Client {
    /// Connects to `HOST:PORT`, trying until `timeout`: a guest takes its time to boot.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub fn connect(address: &str, timeout: Duration) -> Result<Self> {
        let end = Instant::now() + timeout;
        let wait = Duration::from_secs(1);
        let peer = address
            .parse()
            .with_context(|| format!("{address} is no ADDRESS:PORT"))?;
        loop {
            let Err(error) = TcpStream::connect_timeout(&peer, wait) else {
                break;
            };
            if Instant::now() > end {
                return Err(error).with_context(|| format!("connecting to {address}"));
            }
            std::thread::sleep(wait);
        }
        let connection = redis::Client::open(format!("redis://{address}/"))?.get_connection()?;
        // A guest that died does not close its connections.
        connection.set_read_timeout(Some(SILENCE))?;
        Ok(Self { connection })
    }

    /// YCSB's load phase: writes all records anew.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub fn load(&mut self, records: u64, workload: &mut Workload) -> Result<()> {
        for command in command::load(records, workload) {
            command::accept_load(command.query(&mut self.connection)?)?;
        }
        Ok(())
    }

    /// One operation.
    ///
    /// # Errors
    /// The server refuses, is gone, or gives back something else than a record.
    fn perform(&mut self, operation: &Operation) -> Result<()> {
        operation.accept(operation.command().query(&mut self.connection)?)
    }

    /// Does `operations` operations, and times them.
    fn play(&mut self, operations: u64, workload: &mut Workload) -> Result<Times> {
        let mut times = Times::none()?;
        for _ in 0..operations {
            let operation = workload.next_operation();
            let from = tsc::read_ordered();
            self.perform(&operation)?;
            let ticks = tsc::read_ordered() - from;
            match operation {
                Operation::Read { .. } => times.reads.saturating_record(ticks),
                Operation::Update { .. } => times.updates.saturating_record(ticks),
            }
        }
        Ok(times)
    }
}

/// Latencies, in ticks.
struct Times {
    reads: Histogram<u64>,
    updates: Histogram<u64>,
}

impl Times {
    fn none() -> Result<Self> {
        let reads = Histogram::new_with_max(LONGEST, DIGITS)?;
        let updates = reads.clone();
        Ok(Self { reads, updates })
    }
}

/// Does `operations` operations on `records` records, shared out among the clients, and counts. The first client's
/// operations are drawn from `seed`, those of the others from numbers that no other seed leads to.
///
/// # Errors
/// An operation fails, or a counter cannot be read.
pub fn repeat(
    clients: &mut [Client],
    operations: u64,
    (records, seed): (u64, u64),
    sources: &[Source],
) -> Result<Repetition> {
    let count = u64::try_from(clients.len())?;
    ensure!(count > 0, "there is no client");
    let (ready, done) = (Barrier::new(clients.len() + 1), Barrier::new(clients.len() + 1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(clients)
            .map(|(number, client)| {
                let share = operations / count + u64::from(number < operations % count);
                let mut workload = Workload::new(records, seed | number << 32);
                let (ready, done) = (&ready, &done);
                scope.spawn(move || {
                    ready.wait();
                    let times = client.play(share, &mut workload);
                    done.wait();
                    times
                })
            })
            .collect();
        let before = read_all(sources);
        ready.wait();
        let clock = Instant::now();
        let begin = tsc::read_ordered();
        done.wait();
        let ticks = tsc::read_ordered() - begin;
        let elapsed = clock.elapsed();
        let counters = between(sources, &before?, &read_all(sources)?);
        let mut all = Times::none()?;
        for thread in threads {
            let times = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            all.reads.add(&times.reads)?;
            all.updates.add(&times.updates)?;
        }
        Ok(Repetition {
            operations,
            reads: all.reads.len(),
            ticks,
            nanoseconds: u64::try_from(elapsed.as_nanos())?,
            read: Latency::from(&all.reads),
            update: Latency::from(&all.updates),
            counters,
        })
    })
}

fn read_all(sources: &[Source]) -> Result<Vec<Counters>> {
    sources.iter().map(|source| counters::read(&source.path)).collect()
}

/// What each source counted between two readings, by its name.
fn between(sources: &[Source], before: &[Counters], after: &[Counters]) -> BTreeMap<String, Counters> {
    sources
        .iter()
        .zip(before.iter().zip(after))
        .map(|(source, (before, after))| (source.name.clone(), counters::between(before, after)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::workload::{FIELD_BYTES, FIELDS};

    /// A server that has every record and keeps nothing; commands are counted for each connection, by name.
    fn server() -> (String, Arc<Mutex<Vec<Vec<String>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&log);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                all.lock().unwrap().push(Vec::new());
                let all = Arc::clone(&all);
                thread::spawn(move || serve(&stream.unwrap(), |name| all.lock().unwrap()[number].push(name)));
            }
        });
        (address, log)
    }

    /// Commands are arrays of bulk strings (the Redis serialization protocol, version 2).
    fn serve(stream: &TcpStream, mut note: impl FnMut(String)) -> Option<()> {
        let (mut input, mut output) = (BufReader::new(stream), stream);
        let line = |sign: char, input: &mut BufReader<_>| {
            let mut line = String::new();
            input.read_line(&mut line).ok()?;
            line.trim_end().strip_prefix(sign)?.parse::<usize>().ok()
        };
        loop {
            let mut words = Vec::new();
            for _ in 0..line('*', &mut input)? {
                let mut word = vec![0; line('$', &mut input)? + 2];
                input.read_exact(&mut word).ok()?;
                words.push(String::from_utf8_lossy(&word).trim_end().to_owned());
            }
            let answer = match words[0].as_str() {
                "HGETALL" => {
                    let value = "v".repeat(FIELD_BYTES);
                    let pair = format!("$1\r\nf\r\n${FIELD_BYTES}\r\n{value}\r\n");
                    format!("*{}\r\n{}", 2 * FIELDS, pair.repeat(FIELDS))
                }
                _ => "+OK\r\n".to_owned(),
            };
            note(words.swap_remove(0));
            output.write_all(answer.as_bytes()).ok()?;
        }
    }

    #[test]
    fn operations_are_shared_out_among_the_clients() {
        let (address, log) = server();
        let mut clients: Vec<_> = (0..3)
            .map(|_| Client::connect(&address, Duration::from_secs(180)).unwrap())
            .collect();
        let repetition = repeat(&mut clients, 100, (50, 1), &[]).unwrap();
        let done: Vec<_> = log
            .lock()
            .unwrap()
            .iter()
            .map(|names| names.iter().filter(|name| name.starts_with('H')).count())
            .filter(|count| *count > 0)
            .collect();
        assert_eq!(done.iter().sum::<usize>(), 100);
        assert_eq!(done.len(), 3, "{done:?}");
        assert!(done.iter().all(|count| (33..=34).contains(count)), "{done:?}");
        assert_eq!(repetition.operations, 100);
        assert!((20..80).contains(&repetition.reads));
        assert!(repetition.read.p50 > 0 && repetition.update.p50 > 0);
        // The same seed draws the same.
        let again = repeat(&mut clients, 100, (50, 1), &[]).unwrap();
        assert_eq!(again.reads, repetition.reads);
    }

    #[test]
    fn a_counter_that_is_not_there_is_an_error() {
        let (address, _) = server();
        let mut clients = [Client::connect(&address, Duration::from_secs(180)).unwrap()];
        let nowhere = Source {
            name: "l0".into(),
            path: "/nowhere".into(),
        };
        assert!(repeat(&mut clients, 10, (50, 1), &[nowhere]).is_err());
        assert!(repeat(&mut [], 10, (50, 1), &[]).is_err());
    }
}
