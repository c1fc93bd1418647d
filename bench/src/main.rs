//! `cargo lab`: see the library for what it is made of.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{
    bench::{self, BenchArgs},
    boot::{self, BootArgs},
    build,
    debian::{
        Archive,
        kernels::{NEWEST, OLDEST},
        trees,
    },
    demo::{self, DemoArgs},
    kernel::{self, Kernel},
    paths,
    roots::Root,
    say,
    shell::{self, ShellArgs},
    test::{self, TestArgs},
    tools,
};

/// An emulated Intel server with Locum on it
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count what Locum costs, under four set-ups
    Bench(BenchArgs),
    /// Boot a host, run commands in it, power off
    Boot(BootArgs),
    /// Replace a host under running guests, and report it
    Demo(DemoArgs),
    /// Run every test; the last line is "N passed, N failed"
    Test(TestArgs),
    /// Open a shell in the incumbent
    Shell(ShellArgs),
    /// Remove what the lab made in target/lab
    Clean {
        /// Remove the cached Debian trees, too
        #[arg(long)]
        all: bool,
    },
    /// Fetch and make everything that depends on Debian only
    Root {
        /// Kernels to get
        #[arg(long, default_values = [OLDEST, NEWEST])]
        kernel: Vec<String>,
        /// Only list the kernels: where they are, what the defaults are; fetch nothing
        #[arg(long)]
        list: bool,
    },
    /// Build locum.ko and print where it is
    Kmod {
        /// Kernels to build for
        #[arg(long, default_values = [OLDEST, NEWEST])]
        kernel: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Bench(args) => bench::bench(&args),
        Command::Boot(args) => boot::boot(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => test::test(&args),
        Command::Shell(args) => shell::shell(&args),
        Command::Clean { all } => clean(all),
        Command::Root { list: true, .. } => {
            println!(
                "kernels that --from, --to and --kernel take (by release, bare version or the name on the right):"
            );
            print!("{}", Archive::today()?.kernels.list());
            println!("trees in the cache, {}:", paths::cache()?.display());
            for tree in trees::all(&paths::cache()?)? {
                println!("  {}", tree.dir.file_name().unwrap_or_default().display());
            }
            Ok(true)
        }
        Command::Root { kernel, .. } => {
            tools::ensure()?;
            let names: Vec<_> = kernel.iter().map(String::as_str).collect();
            boot::announce(&names)?;
            let kernels = kernel::prefetch(&names)?;
            say(&format!("emulator: {}", Root::bochs()?.dir().display()));
            say(&format!("user space: {}", Root::host()?.dir().display()));
            for kernel in kernels {
                say(&format!(
                    "kernel {}: {}",
                    kernel.release(),
                    kernel.root().dir().display()
                ));
            }
            Ok(true)
        }
        Command::Kmod { kernel } => {
            let names: Vec<_> = kernel.iter().map(String::as_str).collect();
            boot::announce(&names)?;
            for version in kernel {
                let kernel = Kernel::get(&version)?;
                match build::module(&kernel)? {
                    Some(module) => println!("{}", module.display()),
                    None => {
                        say("host-hotplug-agent/kmod has no Makefile yet");
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        }
    }
}

/// Removes what the lab made, and with `all` what it fetched; says what that frees.
fn clean(all: bool) -> Result<bool> {
    let cache = all.then(paths::cache).transpose()?;
    let _idle = cache.as_deref().map(trees::lock_all).transpose()?;
    for dir in std::iter::once(paths::out()).chain(cache) {
        if dir.exists() {
            let bytes = tools::disk_usage(&dir);
            say(&format!(
                "removing {}, which frees {} MB",
                dir.display(),
                bytes / 1_000_000
            ));
            tools::remove_tree(&dir)?;
        }
    }
    Ok(true)
}
