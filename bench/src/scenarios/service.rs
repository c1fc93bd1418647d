//! A refresh as a client sees it, which is outside and has one connection to a server in a guest.

use std::fs;

use anyhow::{Result, ensure};

use crate::{
    machine::segment::Datagrams,
    progress::say,
    report::service::{Service, Stretch, draw},
    steps::Run,
};

/// A stretch may pass without an operation, but not one so long.
const LONG: u64 = 100_000_000;

/// Two refreshes under the client.
pub(super) fn all(run: &mut Run) -> Result<()> {
    for (number, service) in (1..).zip(run.refresh_under_client(2)?) {
        tell(run, number, &service)?;
        check(&service)?;
    }
    let datagrams = run.machine.segment()?.datagrams();
    let Datagrams {
        sent,
        lost,
        doubled,
        overtaken,
    } = &datagrams;
    ensure!(
        *sent > 0 && [lost, doubled, overtaken].iter().all(|numbers| numbers.is_empty()),
        "not every datagram was answered once, and in order: {datagrams:?}"
    );
    run.check(&format!("each of {sent} datagrams was answered, once, and in order"));
    run.check("the client had one connection all along, an answer to each operation, and sent nothing again");
    run.power_off()
}

fn tell(run: &Run, number: u32, service: &Service) -> Result<()> {
    say(&format!("service: refresh {number}\n{service}"));
    let path = |end: &str| run.machine.dir().join(format!("service-{number}.{end}"));
    fs::write(path("json"), serde_json::to_vec_pretty(service)?)?;
    fs::write(path("svg"), draw(service, &format!("refresh {number}"))?)?;
    Ok(())
}

fn check(service: &Service) -> Result<()> {
    let again = &service.again_by_client;
    ensure!(again.is_empty(), "what the client sent was lost:\n{service}");
    let idle = |stretch: &&Stretch| stretch.operations == 0 && stretch.to - stretch.from > LONG;
    let idle = service.stretches.iter().find(idle);
    ensure!(
        idle.is_none(),
        "the client got nothing done in a whole phase:\n{service}"
    );
    Ok(())
}
