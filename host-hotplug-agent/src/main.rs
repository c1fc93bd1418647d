//! The command `locum`; everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use locum_agent::cli::Cli;
use locum_agent::command;
use locum_agent::error::Told;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = if cli.verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match command::run(&cli) {
        Ok(code) => code,
        Err(error) => {
            let told = Told::of(&error);
            eprintln!("locum: {}", told.in_line());
            if cli.command.json() {
                println!("{}", told.json());
            }
            ExitCode::FAILURE
        }
    }
}
