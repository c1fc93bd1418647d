//! The lab's hand inside a host.
//!
//! `labd serve ttyS2` answers the lab on a serial port until the machine goes away; `labd tsc` prints the time stamp
//! counter, which in the lab's emulator counts instructions.

mod jobs;
mod tsc;
mod uart;

use std::{
    fs,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use labd::{Decoder, ToHost, ToLab, encode};

use crate::{jobs::Jobs, uart::Uart};

/// How long the line is watched closely after its last byte.
const ALERT: Duration = Duration::from_millis(3);
/// Longest sleep between two looks at a quiet line.
const IDLE: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("serve"), Some(port)) => serve(&port),
        (Some("tsc"), None) => {
            println!("{}", tsc::read());
            Ok(())
        }
        _ => bail!("usage: labd serve ttyS0..ttyS3 | labd tsc"),
    }
}

fn serve(port: &str) -> Result<()> {
    let uart = Uart::open(port)?;
    let (sender, events) = mpsc::channel();
    let mut jobs = Jobs::new(sender);
    let mut decoder = Decoder::default();
    uart.send(&encode(&hello()?)?)?;
    let mut last_byte = Instant::now();
    let mut nap = Duration::ZERO;
    loop {
        while let Some(byte) = uart.receive()? {
            last_byte = Instant::now();
            nap = Duration::ZERO;
            match decoder.push::<ToHost>(byte) {
                Some(Ok(ToHost::Ping)) => uart.send(&encode(&hello()?)?)?,
                Some(Ok(message)) => jobs.handle(message),
                Some(Err(error)) => eprintln!("labd: {error}"),
                None => {}
            }
        }
        if nap.is_zero() && last_byte.elapsed() < ALERT {
            std::thread::yield_now();
        } else {
            nap = (nap * 2).clamp(Duration::from_millis(1), IDLE);
        }
        match events.recv_timeout(nap) {
            Ok(message) => {
                uart.send(&encode(&message)?)?;
                if let ToLab::Exit { job, .. } = message {
                    jobs.forget(job);
                }
                nap = Duration::ZERO;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("every sender of events is gone"),
        }
    }
}

fn hello() -> Result<ToLab> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("reading /proc/sys/kernel/osrelease (is /proc mounted?)")?;
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let generation = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix("locum.generation="))
        .map_or(Ok(0), str::parse)
        .context("locum.generation= on the command line is no number")?;
    Ok(ToLab::Hello {
        generation,
        release: release.trim().to_owned(),
        pid: std::process::id(),
    })
}
