//! The lab's hand inside a host.
//!
//! `labd serve ttyS2` answers the lab on a serial port until the machine goes away; `labd tsc` prints the time stamp
//! counter, which in the lab's emulator counts instructions; `labd hang` makes the host hang as one does that is on its way
//! out: all but one CPU stopped, and that one with interrupts off.

mod hang;
mod jobs;
mod ports;
mod tsc;
mod uart;

use std::{
    fs,
    str::FromStr,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use labd::{Decoder, ToHost, ToLab, encode};

use crate::{jobs::Jobs, uart::Uart};

/// How long the line is watched closely after its last byte.
const ALERT: Duration = Duration::from_millis(3);
/// Longest sleep between two looks at a quiet line, unless `labd.idle_ms=` on the kernel's command line says otherwise:
/// a host that is measured should not look often.
const IDLE: Duration = Duration::from_millis(20);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("serve"), Some(port)) => serve(&port),
        (Some("tsc"), None) => {
            println!("{}", tsc::read());
            Ok(())
        }
        (Some("hang"), None) => hang::hang(),
        _ => bail!("usage: labd serve ttyS0..ttyS3 | labd tsc | labd hang"),
    }
}

fn serve(port: &str) -> Result<()> {
    let uart = Uart::open(port)?;
    let idle = parameter("labd.idle_ms=")?.map_or(IDLE, Duration::from_millis);
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
                Some(Ok(message)) => jobs.handle(message),
                Some(Err(error)) => eprintln!("labd: {error}"),
                None => {}
            }
        }
        if nap.is_zero() && last_byte.elapsed() < ALERT {
            std::thread::yield_now();
        } else {
            nap = (nap * 2).clamp(Duration::from_millis(1), idle);
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
    let generation = parameter("locum.generation=")?.unwrap_or(0);
    Ok(ToLab::Hello {
        generation,
        release: release.trim().to_owned(),
        pid: std::process::id(),
    })
}

/// A number on the kernel's command line.
fn parameter<T: FromStr>(name: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name))
        .map(str::parse)
        .transpose()
        .with_context(|| format!("{name} on the command line is no number"))
}
