//! The log: every line goes to the ring in the shared region, and to one port while L0 boots and whenever it reports
//! an error.

use core::fmt::{self, Write};
use core::sync::atomic::{
    AtomicBool, AtomicU16,
    Ordering::{Acquire, Relaxed, Release},
};

use arrayvec::ArrayString;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::arch::serial;
use crate::shared;

pub(crate) use serial::DEBUG_PORT;

/// How long a CPU waits for the lock. Then it writes all the same: a garbled line is better than none, and the CPU
/// that holds the lock may have stopped.
const LOCK_SPINS: u32 = 1_000_000;

/// Bytes of an error that are kept.
pub(crate) const ERROR_MAX: usize = 256;

static LOGGER: Logger = Logger {
    port: AtomicU16::new(0),
    busy: AtomicBool::new(false),
    last_error: Mutex::new(ArrayString::new_const()),
};

struct Logger {
    /// Base port of a UART, [`DEBUG_PORT`], or 0 for none.
    port: AtomicU16,
    busy: AtomicBool,
    /// The beginning of the last error.
    last_error: Mutex<ArrayString<ERROR_MAX>>,
}

/// The beginning of the last error, without line ends; empty if there was none.
pub(crate) fn last_error() -> ArrayString<ERROR_MAX> {
    LOGGER.last_error.try_lock().map_or_else(ArrayString::new, |last| *last)
}

/// Installs the logger.
pub(crate) fn init() {
    // A second call would find a logger already there, which is as good.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Sends the log to a port as well: a UART's base, or [`DEBUG_PORT`].
pub(crate) fn set_port(port: u16) {
    LOGGER.port.store(port, Relaxed);
}

struct Line {
    port: u16,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        shared::log_bytes(text.as_bytes());
        match self.port {
            0 => {}
            DEBUG_PORT => text.bytes().for_each(serial::debug_port),
            base => text.bytes().for_each(|byte| serial::uart(base, byte)),
        }
        Ok(())
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut spins = 0;
        while self.busy.swap(true, Acquire) && spins < LOCK_SPINS {
            spins += 1;
            core::hint::spin_loop();
        }
        let mut line = Line {
            port: self.port.load(Relaxed),
        };
        // `Line` never fails.
        let _ = writeln!(line, "l0: {}: {}", name(record.level()), record.args());
        self.busy.store(false, Release);
        if record.level() == Level::Error {
            // Another CPU's error at the same time will do as well.
            if let Some(mut last) = self.last_error.try_lock() {
                last.clear();
                // What does not fit is left out.
                let _ = write!(last, "{}", record.args());
            }
        }
    }

    fn flush(&self) {}
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}
