//! A guest that nobody here made crosses: Debian with its own kernel, systemd and a web server, its disk on the network.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::pause_limit;
use crate::{
    boot::MachineArgs,
    demo,
    layout::Layout,
    run::{OFF, Run},
    stock_guest::{self, FETCH, NAME},
};

/// States of a refresh in which the incumbent is nested and the successor boots beside it.
const BOOTING: &[&str] = &["nested", "successor_up"];

/// Room for the guest, and the guest.
pub fn machine(args: &mut MachineArgs) {
    args.stock_guest = true;
    args.layout = Layout::LARGE;
}

/// The guest serves before, during and after; its journal then has no error that it had not before.
pub fn all(run: &mut Run) -> Result<()> {
    demo::native(run, &[NAME.to_owned()])?;
    let before = errors(run)?;
    let to = run.to.clone();
    let successor = demo::successor(run, &to)?;
    demo::refresh(run, &successor)?;
    served_all_along(run, successor.generation)?;
    let guest = run.report.guest(NAME);
    let (stopped, limit) = (guest.stopped(), pause_limit(NAME, &run.cpu_model));
    ensure!(
        (1..limit).contains(&stopped),
        "the guest stood still for {stopped} instructions; the limit is {limit}"
    );
    let after = errors(run)?;
    let new: Vec<_> = after.difference(&before).collect();
    ensure!(
        new.is_empty(),
        "the guest's journal has errors since the refresh: {new:#?}"
    );
    run.check(&format!(
        "the guest's journal has {} errors, as before the refresh, and none since",
        after.len()
    ));
    // An error would have been seen.
    run.sh(&format!("{FETCH}complain"))?;
    let complaint = "complaint asked for";
    ensure!(
        errors(run)?.contains(complaint),
        "an error that the guest was asked to log is not in its journal"
    );
    run.host().power_off(OFF)
}

/// Errors in the journal of the guest's boot, each once. Left in the directory of the run, with the warnings.
fn errors(run: &mut Run) -> Result<BTreeSet<String>> {
    let page = run.sh(&format!("{FETCH}journal?warning"))?;
    let file = format!("journal-{}-warning.txt", run.generation);
    std::fs::write(run.machine.dir().join(file), page)?;
    let page = run.sh(&format!("{FETCH}journal?err"))?;
    let file = format!("journal-{}-err.txt", run.generation);
    std::fs::write(run.machine.dir().join(file), &page)?;
    Ok(stock_guest::journal(&page)?.into_iter().collect())
}

/// The guest answered while its host was nested and the successor booted, and in the successor before the refresh was over.
fn served_all_along(run: &mut Run, generation: u32) -> Result<()> {
    let count = |by: &dyn Fn(u32, &str) -> bool| {
        run.visits
            .iter()
            .filter(|(host, state)| by(*host, state))
            .count()
    };
    let (all, nested, over) = (
        count(&|_, _| true),
        count(&|host, state| host != generation && BOOTING.contains(&state)),
        count(&|host, _| host == generation),
    );
    ensure!(
        nested > 0 && over > 0,
        "the guest answered {all} times during the refresh, {nested} of them while nested, {over} in the successor: {:?}",
        run.visits
    );
    run.check(&format!(
        "the guest served {all} times during the refresh, {nested} of them while nested beside a booting successor, {over} in \
         the successor"
    ));
    Ok(())
}
