//! The command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};

use crate::config;
use crate::l0::trace;

/// Replaces this machine's Linux/KVM host under its running guests.
#[derive(Debug, Parser)]
#[command(name = "locum", version, about)]
pub struct Cli {
    /// Directory of the successors' configurations
    #[arg(long, global = true, default_value = "/etc/locum", value_name = "DIR")]
    pub config_dir: PathBuf,
    /// Socket of the daemon
    #[arg(long, global = true, default_value = "/run/locum.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// Root of /proc, /sys and /dev (for tests)
    #[arg(long, global = true, default_value = "/", value_name = "DIR", hide = true)]
    pub root: PathBuf,
    /// Log more, to stderr
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell whether this machine and kernel are fit for Locum, and what is missing
    Doctor(Output),
    /// Tell what of this machine Locum cannot do with, or only at a loss; needs neither L0 nor the module
    Preflight(Output),
    /// Have the next boot go by way of Locum, once; a boot that ends well has the one after it go that way, too
    Setup {
        /// Only tell whether it can
        #[arg(long, conflicts_with = "confirm")]
        check: bool,
        /// This boot has ended well: run by locum-confirm.service
        #[arg(long, hide = true)]
        confirm: bool,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Make the initramfs that a successor with an installed kernel starts from
    Image {
        /// The kernel's version, as `uname -r` has it; without it, the one that runs
        version: Option<String>,
    },
    /// Show what a refresh to NAME would move; changes nothing
    Plan {
        /// Successor: NAME.toml in the configuration directory
        #[arg(required_unless_present = "kernel")]
        name: Option<String>,
        /// Instead of NAME: the installed kernel of this version, all else as `/etc/default/locum` and this host have it
        #[arg(long, value_name = "VERSION", conflicts_with = "name")]
        kernel: Option<String>,
        /// The successor has all of this guest's disks, whatever is found of them; may be given more than once
        #[arg(long, value_name = "GUEST")]
        trust_storage: Vec<String>,
        /// This guest does not go over, and is shut down first; may be given more than once
        #[arg(long, value_name = "GUEST")]
        leave: Vec<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Replace this host by NAME, and wait for the outcome
    Refresh {
        /// Successor: NAME.toml in the configuration directory
        #[arg(required_unless_present_any = ["follow", "kernel"])]
        name: Option<String>,
        /// Instead of NAME: the installed kernel of this version, all else as `/etc/default/locum` and this host have it
        #[arg(long, value_name = "VERSION", conflicts_with_all = ["name", "follow"])]
        kernel: Option<String>,
        /// The successor has all of this guest's disks, whatever is found of them; may be given more than once
        #[arg(long, value_name = "GUEST", conflicts_with = "follow")]
        trust_storage: Vec<String>,
        /// This guest does not go over, and is shut down first; may be given more than once
        #[arg(long, value_name = "GUEST", conflicts_with = "follow")]
        leave: Vec<String>,
        /// Do not wait
        #[arg(long, conflicts_with = "follow")]
        detach: bool,
        /// Begin nothing: show the refresh that runs, and wait for its outcome
        #[arg(long, conflicts_with = "name")]
        follow: bool,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Give a guest the QEMU that is installed now, its RAM in place; the guest stands still for a moment
    Renew {
        /// The guest, as `locum pool` and its command line call it
        guest: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Show who has what, where guests are, and how a refresh stands
    Status {
        /// Every CPU, every counter and the last refresh, line by line
        #[arg(long)]
        long: bool,
        /// Show it anew when something has changed, until Ctrl-C
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Tell what the last refresh did, or the one that runs
    Report {
        /// Draw its time line, to FILE or to the standard output
        #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with = "json")]
        svg: Option<Option<PathBuf>>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Print counters and states for Prometheus (the textfile collector of node-exporter)
    Metrics {
        /// Write them to FILE, which is replaced as a whole
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Stop a running refresh, or give back what one left behind; the incumbent and its guests go on
    Abort {
        /// Stop a successor of which nothing is known any more, and lose the guests that may run there
        #[arg(long)]
        force: bool,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Try again what a refresh is stuck on
    Retry(Output),
    /// Show which guest's RAM lies where in the pool; give a guest a piece of it, or take that back
    #[command(args_conflicts_with_subcommands = true)]
    Pool {
        /// What to do; without it, the pool is shown
        #[command(subcommand)]
        command: Option<PoolCommand>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Show L0's trace records
    Trace {
        /// Only the newest COUNT records
        #[arg(long, short = 'n', default_value_t = usize::MAX, hide_default_value = true, value_name = "COUNT")]
        newest: usize,
        /// Only records of this kind; may be given more than once
        #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(trace::kinds()))]
        kinds: Vec<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Show L0's log
    Log(Output),
    /// Enter and leave nested mode COUNT times on every CPU, without a successor (a test)
    Cycle {
        /// How often
        count: u32,
        /// Microseconds to stay in each mode
        #[arg(long, default_value_t = 0)]
        pause_us: u32,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Make every CPU of this host nested (for tests and debugging)
    Enter,
    /// Make every CPU of this host native again (for tests and debugging)
    Leave,
    /// Serve requests: run by systemd
    Daemon {
        /// End once this host reigns alone, and has all that it was to get: run in a successor's initramfs
        #[arg(long)]
        until_reigning: bool,
    },
    /// Give a domain of libvirt's its piece of the pool, or take that back: run by libvirt
    #[command(name = "__libvirt-hook", hide = true)]
    LibvirtHook {
        /// The domain
        domain: String,
        /// What libvirt does
        operation: String,
        /// Before or after it
        part: String,
        /// What else libvirt says
        rest: Vec<String>,
    },
    /// List what the firmware's AML uses, line by line: run by `doctor`, `plan` and the daemon, as a process that may die
    #[command(name = "__aml", hide = true)]
    Aml {
        /// Leave out this table or method
        #[arg(long, value_name = "NAME")]
        skip: Vec<String>,
    },
}

impl Command {
    /// Whether it is to print JSON.
    pub fn json(&self) -> bool {
        match self {
            Self::Doctor(output) | Self::Preflight(output) | Self::Retry(output) | Self::Log(output) => output.json,
            Self::Setup { output, .. }
            | Self::Plan { output, .. }
            | Self::Refresh { output, .. }
            | Self::Renew { output, .. }
            | Self::Status { output, .. }
            | Self::Report { output, .. }
            | Self::Abort { output, .. }
            | Self::Trace { output, .. }
            | Self::Cycle { output, .. } => output.json,
            Self::Pool { command, output } => command.as_ref().map_or(output, PoolCommand::output).json,
            Self::Image { .. }
            | Self::Metrics { .. }
            | Self::Enter
            | Self::Leave
            | Self::Daemon { .. }
            | Self::LibvirtHook { .. }
            | Self::Aml { .. } => false,
        }
    }
}

impl PoolCommand {
    fn output(&self) -> &Output {
        match self {
            Self::Alloc { output, .. } | Self::Up { output } | Self::Free { output, .. } => output,
        }
    }
}

/// What to do with the pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Give a guest a piece of the pool, cleared, and print how QEMU is told of it
    Alloc {
        /// The guest: 1 to 63 bytes
        name: String,
        /// Its RAM, with the unit K, M or G. Whole pages of 2 MiB are given
        #[arg(long, value_parser = |text: &str| config::Size::try_from(text.to_owned()))]
        size: config::Size,
        /// NUMA node of its RAM
        #[arg(long)]
        node: Option<u32>,
        /// The guest's UUID; without it, one is made
        #[arg(long)]
        uuid: Option<String>,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Make the pool devices of this host, which QEMU maps; may be called again. For a unit that comes before all guests
    Up {
        /// How to print
        #[command(flatten)]
        output: Output,
    },
    /// Take back what a guest has; its bytes are cleared before another guest gets them
    Free {
        /// The guest's name or UUID
        name: String,
        /// How to print
        #[command(flatten)]
        output: Output,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_refresh_has_a_name_or_is_followed() {
        let fits = |line: &[&str]| Cli::try_parse_from([&["locum", "refresh"], line].concat()).is_ok();
        assert!(fits(&["next"]) && fits(&["--follow"]) && fits(&["next", "--detach"]));
        assert!(fits(&["--kernel", "6.12.1"]));
        assert!(!fits(&["next", "--kernel", "6.12.1"]) && !fits(&["--follow", "--kernel", "6.12.1"]));
        assert!(fits(&["next", "--trust-storage", "a", "--trust-storage", "b"]));
        assert!(fits(&["--kernel", "6.12.1", "--leave", "a"]) && !fits(&["--follow", "--leave", "a"]));
        assert!(!fits(&["--follow", "--trust-storage", "a"]));
        assert!(!fits(&[]) && !fits(&["next", "--follow"]) && !fits(&["--follow", "--detach"]));
    }

    #[test]
    fn a_picture_goes_to_a_file_or_to_the_output() {
        let svg = |line: &[&str]| match Cli::try_parse_from([&["locum", "report"], line].concat())
            .unwrap()
            .command
        {
            Command::Report { svg, .. } => svg,
            other => panic!("{other:?}"),
        };
        assert_eq!(svg(&[]), None);
        assert_eq!(svg(&["--svg"]), Some(None));
        assert_eq!(svg(&["--svg", "a.svg"]), Some(Some("a.svg".into())));
        assert!(Cli::try_parse_from(["locum", "status", "--watch", "--json"]).is_err());
        assert!(Cli::parse_from(["locum", "pool", "free", "a", "--json"]).command.json());
        assert!(!Cli::parse_from(["locum", "pool"]).command.json());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
