//! The host's side of the lab's guests: see `lab_guest`.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lab_guest::map::Shared;
use lab_guest::measure::client::Client;
use lab_guest::watch::{self, Report};
use lab_guest::{echo, instructions, nbd, tsc};
use serde::Serialize;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From one line of `watch --line` to the next.
const LINE: Duration = Duration::from_millis(100);
/// Gaps that `watch --gaps` prints.
const KEEP: usize = 100;

/// Looks after the guests of the lab: sees whether they live, and is their disk and network
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read guests' beat pages from the pool and print them as JSON
    Watch(Watch),
    /// Erase what earlier guests of that name left in the pool, before one starts anew
    Forget {
        #[command(flatten)]
        pool: Pool,
        /// The guest's name
        #[arg(long)]
        name: String,
    },
    /// Serve a range of the pool as a disk, over NBD
    Disk {
        #[command(flatten)]
        pool: Pool,
        /// UNIX socket to listen on
        #[arg(long)]
        socket: PathBuf,
        /// Do what is asked for so many milliseconds late, and say whenever more requests wait than ever before
        #[arg(long, value_name = "MS", default_value_t = 0)]
        late: u64,
    },
    /// Answer the guests' datagrams
    Echo {
        /// Address and port to listen on
        #[arg(long, default_value_t = format!("127.0.0.1:{}", echo::PORT))]
        listen: String,
    },
    /// Print the TSC, and the clock then in nanoseconds since 1970
    Clock,
    /// Execute every instruction that may exit for a host, in user space, and print what came of it
    Instructions {
        /// In the kernel, by lab_probe.ko
        #[arg(long)]
        kernel: bool,
        /// Fail if what is known of an instruction is not so; the CPU is to be in VMX operation
        #[arg(long)]
        check: bool,
    },
    /// Have a guest of measure.sh measure events, and print its answers, one line of JSON each
    Measure {
        /// The socket that is its console
        #[arg(long)]
        socket: PathBuf,
        /// Seconds to wait for the guest's boot and for each answer
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// `EVENT` or `EVENT:COUNT`; none: only wait until the guest has booted
        orders: Vec<String>,
    },
}

#[derive(Args)]
struct Pool {
    /// Memory that holds the guests
    #[arg(long, default_value = "/dev/dax0.0")]
    file: PathBuf,
    /// Where to begin, in bytes (0x for hexadecimal)
    #[arg(long, default_value = "0", value_parser = bytes)]
    offset: u64,
    /// How many bytes (default: all)
    #[arg(long, value_parser = bytes)]
    length: Option<u64>,
}

#[derive(Args)]
struct Watch {
    #[command(flatten)]
    pool: Pool,
    /// Only this guest; of several with this name, the one that started last
    #[arg(long)]
    name: Option<String>,
    /// Seconds to wait for what is asked
    #[arg(long, default_value_t = 60.0)]
    timeout: f64,
    /// With --first-progress: the beat to wait beyond
    #[arg(long, value_name = "BEAT")]
    since_beat: Option<u64>,
    /// End --gaps earlier, as soon as this file exists
    #[arg(long, requires = "gaps", value_name = "FILE")]
    until: Option<PathBuf>,
    #[command(flatten)]
    mode: Mode,
}

#[derive(Args)]
#[group(multiple = false)]
struct Mode {
    /// Wait until the guest runs all its checks
    #[arg(long, requires = "name")]
    running: bool,
    /// Spin until the guest has beaten beyond --since-beat (default: its beat now) and print the host's TSC then
    #[arg(long, requires = "name")]
    first_progress: bool,
    /// Look for so many seconds, before all other threads, and print the longest times without a beat, in the host's TSC
    #[arg(long, requires = "name", value_name = "SECONDS")]
    gaps: Option<f64>,
    /// Print the host's TSC and the guest's beats, ten times a second, for ever
    #[arg(long, requires = "name")]
    line: bool,
    /// Prove that the guest of this earlier report survived: same boot, no fault, all its work going on
    #[arg(long, value_name = "REPORT.json")]
    survived: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Watch(args) => run_watch(&args),
        Command::Forget { pool, name } => {
            let memory = Shared::file(&pool.file, pool.offset, pool.length, true)?;
            watch::forget(&memory, &name);
            Ok(())
        }
        Command::Disk { pool, socket, late } => {
            let memory = Shared::file(&pool.file, pool.offset, pool.length, true)?;
            serve_disk(&memory, &socket, Duration::from_millis(late))
        }
        Command::Echo { listen } => echo::serve(&listen),
        Command::Clock => {
            let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
            println!("{} {}", tsc::read_ordered(), time.as_nanos());
            Ok(())
        }
        Command::Instructions { kernel, check } => {
            let text = if kernel {
                instructions::kernel(check)?
            } else {
                instructions::all(check)?
            };
            print!("{text}");
            Ok(())
        }
        Command::Measure {
            socket,
            timeout,
            orders,
        } => {
            let timeout = Duration::from_secs(timeout);
            let mut guest = Client::connect(&socket, timeout)?;
            orders.iter().try_for_each(|order| print(&guest.order(order, timeout)?))
        }
    }
}

fn run_watch(args: &Watch) -> Result<()> {
    let mode = &args.mode;
    let timeout = Duration::try_from_secs_f64(args.timeout).context("--timeout")?;
    let pool = Shared::file(&args.pool.file, args.pool.offset, args.pool.length, false)?;
    if let Some(path) = &mode.survived {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let before: Report = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a report of `watch --name`", path.display()))?;
        return print(&watch::prove_survival(&pool, &before, timeout)?);
    }
    let Some(name) = &args.name else {
        return print(&watch::all(&pool));
    };
    if mode.running {
        return print(&watch::running(&pool, name, timeout)?);
    }
    let found = watch::find(&pool, name, timeout)?;
    if mode.line {
        loop {
            println!("{} {}", tsc::read_ordered(), found.page.beats());
            std::thread::sleep(LINE);
        }
    }
    if mode.first_progress {
        let since = args.since_beat.unwrap_or_else(|| found.page.beats());
        let progress = watch::first_progress(found.page, since, timeout);
        return print(&progress.with_context(|| format!("{name} did not beat beyond {since}"))?);
    }
    if let Some(seconds) = mode.gaps {
        let duration = Duration::try_from_secs_f64(seconds).context("--gaps")?;
        let end = Instant::now() + duration;
        let enough = || Instant::now() >= end || args.until.as_deref().is_some_and(std::path::Path::exists);
        return print(&watch::gaps(found.page, KEEP, enough).context("it cannot go before other threads")?);
    }
    print(&Report::read(&found))
}

fn serve_disk(memory: &Shared, socket: &std::path::Path, late: Duration) -> Result<()> {
    // A socket left by an earlier server would refuse the new one.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let most = &AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let stream = stream?;
            scope.spawn(move || {
                let served = if late.is_zero() {
                    nbd::serve(stream, memory)
                } else {
                    let seen = move |waiting| {
                        if waiting > most.fetch_max(waiting, Relaxed) {
                            println!("{waiting} requests at once");
                        }
                    };
                    let out = stream.try_clone().map_err(Into::into);
                    out.and_then(|out| nbd::serve_late(stream, out, memory, late, seen))
                };
                if let Err(error) = served {
                    eprintln!("a client was dropped: {error:#}");
                }
            });
        }
        Ok(())
    })
}

fn print(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn bytes(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "give a number of bytes, decimal or 0x...".to_owned())
}
