//! A refresh as a client sees it, which is outside and has one connection to a server in a guest.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{
    progress::say,
    report::{
        agent::Refresh,
        service::{Service, draw},
    },
    steps::Run,
};

/// The guests: one that is busy, and the one that serves.
const GUESTS: [&str; 2] = ["g1", "g4"];

/// Two refreshes under the client.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&GUESTS.map(str::to_owned))?;
    run.kaslr()?;
    run.client_rests()?;
    let mut refreshes = Vec::new();
    for release in [run.to.clone(), run.report.incumbent.clone()] {
        let successor = run.successor_of(&release)?;
        run.replace_host(&successor)?;
        run.client_rests()?;
        let report = run.status()?.last_report;
        refreshes.push(report.context("the new host's agent knows of no refresh")?);
    }
    run.stop_client()?;
    for (number, refresh) in (1..).zip(&refreshes) {
        tell(run, number, refresh)?;
    }
    run.check("the client had one connection all along, and an answer to each operation");
    run.power_off()
}

fn tell(run: &Run, number: u32, refresh: &Refresh) -> Result<()> {
    let segment = run.machine.segment()?;
    let (operations, _) = segment.operations();
    let service = Service::of(refresh, &operations, &segment.connections()).context("the refresh has no phases")?;
    say(&format!("service: refresh {number}\n{service}"));
    let path = |end: &str| run.machine.dir().join(format!("service-{number}.{end}"));
    fs::write(path("json"), serde_json::to_vec_pretty(&service)?)?;
    let title = format!("Redis in a guest, YCSB workload A, one client outside: refresh {number}");
    fs::write(path("svg"), draw(&service, &title)?)?;
    ensure!(
        service
            .stretches
            .iter()
            .all(|stretch| stretch.operations > 0 || stretch.to - stretch.from < 100_000_000),
        "the client got nothing done in a whole phase:\n{service}"
    );
    Ok(())
}
