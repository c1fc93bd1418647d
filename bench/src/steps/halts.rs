//! A refresh that halts where something is to be tried on both hosts: before the successor's agent begins, and before the
//! incumbent powers off.

use anyhow::{Context, Result, ensure};

use super::{
    run::{LONG, Run},
    successor::Successor,
};

impl Run {
    /// The next successor, with which a refresh halts.
    ///
    /// # Errors
    /// As [`Run::successor`].
    pub(crate) fn successor_that_halts(&mut self) -> Result<Successor> {
        Ok(Successor {
            // What it does by itself waits for the lab.
            cmdline: "lab.wait".into(),
            poweroff: &[
                "/bin/sh",
                "-c",
                "until [ -e /run/go ]; do sleep 0.1; done; exec poweroff -f",
            ],
            retire_timeout: 3600,
            ..self.successor()?
        })
    }

    /// From the first halt to the second: all guests cross, and the successor is in charge.
    ///
    /// # Errors
    /// It does not come to that.
    pub(crate) fn let_guests_cross(&mut self, successor: &Successor) -> Result<()> {
        const LOOK: &str = "for i in $(seq 600); do \
             grep -q 'until the incumbent is gone' /sys/kernel/locum/progress && exit 0; sleep 1; done; \
             cat /sys/kernel/locum/state /sys/kernel/locum/progress; exit 1";
        let generation = successor.generation;
        self.machine.host(generation).run("/own/begin", LONG)?.ok()?;
        self.progress.step("waiting for the guests to cross");
        let waited = self.machine.host(generation).run(LOOK, LONG)?.ok();
        waited.context("the successor is not in charge").map(drop)
    }

    /// From the second halt to the end: the incumbent powers off, and the successor has all of the machine.
    ///
    /// # Errors
    /// It does not come to that, or not without losses.
    pub(crate) fn let_incumbent_go(&mut self, successor: &Successor) -> Result<()> {
        self.sh("touch /run/go")?;
        let report = self.succeeded_by(successor)?;
        ensure!(report.losses.is_empty(), "it cost {:?}", report.losses);
        self.check_whole(successor)
    }
}
