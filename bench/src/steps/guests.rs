//! Guests: started in the reigning host, and proven to have survived whatever was done to their host.

use anyhow::{Context, Result, bail};

use super::{
    client,
    run::{ANSWER, LONG, Run},
    visits::{self, Visit},
    witness::{Guest, Witness},
};
use crate::{
    image::stock_guest,
    machine::{bochs, deadline::length},
    report::agent::Beat,
};

/// Visits, some 15 emulated seconds apart, after which the stock guest should have booted.
const PATIENCE: u32 = 60;

impl Run {
    /// Starts a guest of `/guest/guest.sh` and waits until it runs all its checks, or serves its page.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) fn start_guest(&mut self, name: &str) -> Result<()> {
        self.progress.step(&format!("starting guest {name}"));
        if name == stock_guest::NAME {
            let disk = self.disk.as_ref().context("the machine has no disk for it")?;
            let port = disk.port().to_string();
            let file = format!("/etc/locum/{name}.disk");
            self.host().push(&file, port.as_bytes(), LONG)?;
        }
        self.sh(&format!(
            "setsid /guest/guest.sh {name} >/run/{name}.qemu 2>&1 </dev/null &"
        ))?;
        let witness = self
            .first_sign(name)
            .with_context(|| format!("guest {name} does not come up"));
        let witness = match witness {
            Ok(witness) => witness,
            Err(error) => {
                // The machine may be gone; then the error says so.
                let words = format!("cat /run/{name}.qemu /run/{name}.log");
                let log = self.host().run(&words, ANSWER).map(|output| output.text);
                let log = log.unwrap_or_default();
                return Err(error.context(format!("what QEMU and the guest said:\n{log}")));
            }
        };
        self.guests.push(Guest {
            name: name.to_owned(),
            witness,
        });
        self.report.guest(name);
        Ok(())
    }

    fn first_sign(&mut self, name: &str) -> Result<Witness> {
        if name == client::NAME {
            return self.connect_client().map(Witness::Client);
        }
        if name != stock_guest::NAME {
            let watch = format!("lab-guest watch --name {name} --running --timeout 600");
            return Ok(Witness::Beats(self.sh(&watch)?));
        }
        // QEMU takes a connection long before the guest answers. Each look ends in emulated time, however slow this
        // machine is.
        let look = format!(
            "sleep 5; [ -S /run/{name}.qmp ] || exit 1; timeout 10 {} 2>/dev/null || echo",
            visits::fetch(visits::HERE, "visit")
        );
        for _ in 0..PATIENCE {
            let page = self.sh(&look).context("its QEMU is gone")?;
            if let Ok(visit) = Visit::parse(&page) {
                return Ok(Witness::Page(visit));
            }
        }
        bail!("it does not answer after {PATIENCE} visits")
    }

    /// Names of the guests.
    #[must_use]
    pub(crate) fn guest_names(&self) -> Vec<String> {
        self.guests.iter().map(|guest| guest.name.clone()).collect()
    }

    /// A guest is gone with its host.
    pub(crate) fn lose_guest(&mut self, name: &str) {
        self.guests.retain(|guest| guest.name != name);
        self.report.guests.retain(|guest| guest.name != name);
    }

    /// Proves, from the reigning host, that every guest is still in the boot it was started with and finds no fault.
    ///
    /// # Errors
    /// One did not survive.
    pub(crate) fn check_guests(&mut self) -> Result<()> {
        for (number, Guest { name, witness }) in self.guests.clone().into_iter().enumerate() {
            self.progress.step(&format!("checking guest {name}"));
            self.report.guest(&name).alive = false;
            self.report.guest(&name).checksum_ok = false;
            let served = match witness {
                Witness::Beats(_) => None,
                Witness::Client(before) => Some(Witness::Client(self.client_goes_on(before)?)),
                Witness::Page(ref before) => {
                    let now = self.visit()?;
                    now.follows(before)?;
                    Some(Witness::Page(now))
                }
            };
            if let Some(now) = served {
                self.guests[number].witness = now;
                let entry = self.report.guest(&name);
                (entry.alive, entry.checksum_ok) = (true, true);
            }
            let Witness::Beats(before) = witness else {
                continue;
            };
            let file = format!("/run/{name}.before.json");
            self.host().push(&file, before.as_bytes(), LONG)?;
            let after: Beat = self.json(&format!(
                "lab-guest watch --name {name} --survived {file} --timeout 600"
            ))?;
            // Only Bochs' TSC has a rate that is known beforehand.
            let lag = bochs::tsc_hz(&self.cpu_model)
                .filter(|_| self.report.platform == "bochs")
                .and_then(|hz| clock_lag(&before, &after, hz));
            let entry = self.report.guest(&name);
            entry.alive = true;
            entry.checksum_ok = after.faults == 0;
            entry.clock_lag_ns = lag;
            entry.vdso_fell_ns = after.work.get("vdso_fell_ns").copied().unwrap_or(0);
        }
        self.check("the guests live and their checks find nothing");
        Ok(())
    }

    /// Has the stock guest read its file of so many pages, past its page cache or not: what it says of it, and how many of them
    /// its disk has read for that.
    ///
    /// # Errors
    /// It does not answer, or there is none.
    pub(crate) fn read_kept(&mut self, direct: bool) -> Result<(String, u64)> {
        let page = if direct { "kept?direct" } else { "kept" };
        let before = self.kept_pages_read()?;
        let sum = self.sh(&visits::fetch(visits::HERE, page))?;
        Ok((sum, self.kept_pages_read()? - before))
    }

    fn kept_pages_read(&self) -> Result<u64> {
        let disk = self.disk.as_ref().context("the machine has no disk for it")?;
        Ok(disk.kept_pages_read())
    }

    /// Has the stock guest serve its page, in the reigning host.
    fn visit(&mut self) -> Result<Visit> {
        Visit::parse(&self.sh(&visits::fetch(visits::HERE, "visit"))?)
    }
}

/// How far the guest's monotonic clock fell behind the host's TSC of this rate, by which both reports are dated.
fn clock_lag(before: &str, after: &Beat, tsc_hz: u64) -> Option<i64> {
    let before: Beat = serde_json::from_str(before).ok()?;
    let (from, to) = (before.clock?.monotonic_ns, after.clock.as_ref()?.monotonic_ns);
    let ticks = after.host_tsc.checked_sub(before.host_tsc)?;
    let host_ns = i64::try_from(length(ticks, tsc_hz).as_nanos()).ok()?;
    Some(host_ns - i64::try_from(to.checked_sub(from)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_host_time_less_guest_time() {
        let beat = |tsc: u64, ns: u64| {
            format!(r#"{{"name":"g","beats":1,"host_tsc":{tsc},"faults":0,"clock":{{"tsc":0,"monotonic_ns":{ns}}}}}"#)
        };
        let after = serde_json::from_str(&beat(1_000_100, 1_000_900)).unwrap();
        // A million ticks are ten million ns; the guest counted a thousandth of them.
        assert_eq!(
            clock_lag(&beat(100, 900), &after, 100_000_000),
            Some(10_000_000 - 1_000_000)
        );
        assert_eq!(
            clock_lag(&beat(100, 900), &after, 2_000_000_000),
            Some(500_000 - 1_000_000)
        );
    }
}
