//! The command `locum`; everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use locum_agent::cli::Cli;
use locum_agent::command;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match command::run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("locum: {error:#}");
            ExitCode::FAILURE
        }
    }
}
