//! Writes the manual pages and the shells' completions of `locum` into a directory; the package has them.

mod errors;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use locum_agent::cli::Cli;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: pages DIRECTORY");
        return ExitCode::FAILURE;
    };
    match write(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &PathBuf) -> Result<()> {
    fs::create_dir_all(dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "locum", dir)?;
    }
    let command = Cli::command();
    // A command of the administrator's: section 8.
    let man = clap_mangen::Man::new(command.clone()).section("8");
    man.generate_to(dir)?;
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        // A command's name lives as long as the program, which ends soon.
        let name: &'static str = format!("locum-{}", part.get_name()).leak();
        let part = part.clone().display_name(name).name(name);
        clap_mangen::Man::new(part).section("8").generate_to(dir)?;
    }
    fs::write(dir.join("locum-errors.7"), errors::page()?)?;
    Ok(())
}
