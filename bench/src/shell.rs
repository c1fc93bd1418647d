//! `lab shell`: a shell in the incumbent.

use std::{
    io::{BufRead, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use crate::{
    image::kernel::announce,
    progress::{Progress, say},
    steps::{Run, prepare::MachineArgs},
};

/// Boot a machine and open a shell in its host; end of file powers off.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShellArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Boots, passes lines to a shell in the host until end of file, powers off.
///
/// # Errors
/// The machine does not boot, or dies.
pub(crate) fn shell(args: &ShellArgs) -> Result<bool> {
    // Nobody waits for a person's machine; one that idles gets through hours in minutes.
    let machine = MachineArgs {
        timeout: args.machine.timeout.max(365 * 24 * 3600),
        ..args.machine.clone()
    };
    announce(&[&machine.kernel, &machine.to])?;
    let mut run = Run::boot(&machine, Progress::new(""))?;
    say(&format!(
        "{} is up, logs in {}; `/own/begin` brings up KVM, the pool and the agent; end of file powers off",
        run.report.incumbent,
        run.machine.dir().display()
    ));
    let (lines, typed) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut host = run.host();
    let job = host.open("sh -i")?;
    loop {
        let (output, status) = host.poll(job);
        std::io::stdout().write_all(&output)?;
        std::io::stdout().flush()?;
        if status.is_some() {
            break;
        }
        match typed.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => host.type_line(job, &line)?,
            Err(mpsc::RecvTimeoutError::Timeout) => host.alive()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    say("powering off");
    host.power_off()?;
    Ok(true)
}
