//! A guest that nobody here made crosses: Debian with its own kernel, systemd and a web server, its disk on the
//! network.

use anyhow::{Result, ensure};

use super::refreshes::{check_pause, pause_limit};
use crate::{
    image::stock_guest::{KEPT, NAME},
    machine::layout::Layout,
    steps::{
        Run,
        prepare::MachineArgs,
        visits::{self, HERE, Journal},
    },
};

/// States of a refresh in which the incumbent is nested and the successor boots beside it.
const BOOTING: &[&str] = &["nested", "successor_up"];

/// Room for the guest, and the guest.
pub(super) fn machine(args: &mut MachineArgs) {
    args.stock_guest = true;
    args.layout = Layout::LARGE;
}

/// The guest serves before, during and after; its journal then has no error that it had not before.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&[NAME.to_owned()])?;
    let before = journal(run)?;
    let (file, read) = run.read_kept(false)?;
    ensure!(
        read == KEPT,
        "the disk read {read} pages of a file that has {KEPT}: {file}"
    );
    is_cached(run, &file)?;
    let successor = run.successor()?;
    // Visits the guest afterwards, too.
    run.replace_host(&successor)?;
    is_cached(run, &file)?;
    let (again, read) = run.read_kept(true)?;
    ensure!(
        (&again, read) == (&file, KEPT),
        "past the page cache, the disk read {read} pages of {KEPT}, and the file is {again:?}, before {file:?}"
    );
    served_all_along(run, successor.generation)?;
    let guest = run.report.guest(NAME);
    // All of q35, and two vCPUs that are not the lab's: twice what others may take.
    check_pause(guest, 2 * pause_limit(NAME, &run.cpu_model))?;
    let after = journal(run)?;
    let new: Vec<_> = after.warnings.difference(&before.warnings).collect();
    run.check(&format!("warnings in the guest's journal since: {new:?}"));
    after.no_error_since(&before)?;
    run.check(&format!(
        "the guest's journal has {} errors, all of them from before the refresh",
        after.errors.len()
    ));
    // An error would have been seen.
    run.sh(&visits::fetch(HERE, "complain"))?;
    ensure!(
        journal(run)?.errors.contains("complaint asked for"),
        "an error that the guest was asked to log is not in its journal"
    );
    run.power_off()
}

/// The guest reads its file, and its disk does not.
fn is_cached(run: &mut Run, file: &str) -> Result<()> {
    let (again, read) = run.read_kept(false)?;
    ensure!(again == file, "the file has changed from {file:?} to {again:?}");
    ensure!(
        read == 0,
        "of a file that the guest has cached, its disk read {read} pages of {KEPT}"
    );
    run.check(&format!(
        "generation {}: the guest has {KEPT} pages of a file cached, of which its disk reads none",
        run.generation
    ));
    Ok(())
}

/// Asks the guest. Its answers are left in the directory of the run.
fn journal(run: &mut Run) -> Result<Journal> {
    Journal::read(|priority| {
        let page = run.sh(&visits::fetch(HERE, &format!("journal?{priority}")))?;
        let file = format!("journal-{}-{priority}.txt", run.generation);
        std::fs::write(run.machine.dir().join(file), &page)?;
        Ok(page)
    })
}

/// The guest answered while its host was nested and the successor booted. That it answers in the successor is seen by
/// whoever checks the guests after the refresh, which may be over before the next visit.
fn served_all_along(run: &mut Run, generation: u32) -> Result<()> {
    let count = |by: &dyn Fn(u32, &str) -> bool| run.visits.iter().filter(|(host, state)| by(*host, state)).count();
    let (all, nested, over) = (
        count(&|_, _| true),
        count(&|host, state| host != generation && BOOTING.contains(&state)),
        count(&|host, _| host == generation),
    );
    ensure!(
        nested > 0,
        "the guest did not answer while nested, of {all} times during the refresh: {:?}",
        run.visits
    );
    run.check(&format!(
        "the guest served {all} times during the refresh, {nested} of them while nested beside a booting successor, {over} \
         already in the successor"
    ));
    Ok(())
}
