//! `/usr/lib/locum/qemu`: the emulator of a libvirt domain that is to cross. It gives the domain's RAM its place in the
//! pool, and becomes QEMU. That name is a link to `/usr/sbin/locum-qemu`: AppArmor's rules for libvirtd let it start what is in
//! `/usr/sbin`.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow};
use locum_agent::guest::libvirt::wrapper::{self, Given, QEMU};

fn main() -> ExitCode {
    let outcome = command().map(|(program, rest)| Command::new(&program).args(rest).exec());
    let error = match outcome {
        Ok(error) => anyhow!(error).context(QEMU),
        Err(error) => error,
    };
    // libvirt shows this to whoever starts the domain.
    eprintln!("locum: {error:#}");
    ExitCode::FAILURE
}

/// QEMU, and what it is to be told.
fn command() -> Result<(String, Vec<String>)> {
    let words = env::args_os().map(|word| {
        word.into_string()
            .map_err(|word| anyhow!("{} is no UTF-8", word.display()))
    });
    let mut command: Vec<String> = words.collect::<Result<_>>()?;
    if let Some(given) = wrapper::uuid(&command).map(given).transpose()?.flatten() {
        command = wrapper::rewrite(&command, &given)?;
    }
    let rest = command.split_off(command.len().min(1));
    Ok((QEMU.to_owned(), rest))
}

/// What the domain has of the pool; `None` where there is none, as without L0.
fn given(uuid: &str) -> Result<Option<Given>> {
    let path = Path::new("/").join(wrapper::given_path(uuid));
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| path.display().to_string())?,
    };
    let given = serde_json::from_slice(&text);
    given
        .map(Some)
        .with_context(|| format!("{}: it is damaged", path.display()))
}
