//! Nothing grows: many refreshes in one boot, and guests that come and go while the host is nested now and then.

use anyhow::{Context, Result, ensure};

use super::refreshes;
use crate::{
    machine::deadline::Span,
    report::agent::Tables,
    steps::{DAEMON, Run, refresh::Outcome},
};

/// Refreshes in a row.
const REFRESHES: u32 = 20;
/// Times in and out of nested while guests start and die.
const CYCLES: u32 = 1000;
/// The daemon's memory may differ by so many KiB: it depends on what its threads did last.
const SLACK_KIB: u64 = 1024;

/// Starts guests one after the other, each in the place of the last, and kills them: half of them while they boot.
const COME_AND_GO: &str = r#"n=0
while [ ! -e /run/enough ]; do
    /guest/guest.sh m64c1o144 >/dev/null 2>&1 </dev/null &
    pid=$!
    sleep $((n % 2 * 6 + 1))
    kill -9 $pid
    wait $pid 2>/dev/null
    n=$((n + 1))
    echo $n >/run/died
done
rm /run/enough
"#;

/// What a host and L0 use, that must not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Footprint {
    tables: Tables,
    unreclaimed: u64,
    /// Resident memory of the daemon, in KiB.
    daemon_kib: u64,
    /// Files that the daemon has open.
    daemon_files: u64,
    /// Threads of the daemon.
    daemon_threads: u64,
    /// `/dev/locum` and the pool's device, opened by anybody.
    handles: u64,
}

impl Footprint {
    fn of(run: &mut Run) -> Result<Self> {
        let status = run.status()?;
        let words = run.sh(&format!(
            "{DAEMON}; d=/proc/$(daemon); \
             awk '/^VmRSS/ {{ print $2 }} /^Threads/ {{ print $2 }}' $d/status; ls $d/fd | wc -l; \
             ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c -e '-> /dev/locum' -e '-> /dev/dax'"
        ))?;
        let numbers: Vec<u64> = words.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [daemon_kib, daemon_threads, daemon_files, handles] = *numbers.as_slice() else {
            anyhow::bail!("the daemon's figures are not four: {words}");
        };
        Ok(Self {
            tables: status.tables.context("`locum status` tells nothing of L0's tables")?,
            unreclaimed: status.unreclaimed_bytes,
            daemon_kib,
            daemon_files,
            daemon_threads,
            handles,
        })
    }

    /// What is more than it was.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let pairs = [
            (
                "stretches of memory",
                self.tables.memory_stretches.into(),
                before.tables.memory_stretches.into(),
            ),
            (
                "EPT tables",
                self.tables.ept.iter().copied().map(u64::from).sum(),
                before.tables.ept.iter().copied().map(u64::from).sum(),
            ),
            ("unreclaimed bytes", self.unreclaimed, before.unreclaimed),
            ("KiB of the daemon", self.daemon_kib, before.daemon_kib + SLACK_KIB),
            ("files of the daemon", self.daemon_files, before.daemon_files),
            ("threads of the daemon", self.daemon_threads, before.daemon_threads),
            ("open devices", self.handles, before.handles),
        ];
        pairs
            .into_iter()
            .filter(|(_, now, then): &(_, u64, u64)| now > then)
            .map(|(what, now, then)| format!("{what}: {now}, {then} before"))
            .collect()
    }
}

/// Twenty refreshes under a guest: the last hosts use no more than the first of the same parity that came by a refresh.
pub(super) fn refreshes(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    let releases = [run.to.clone(), run.report.incumbent.clone()];
    let mut seen: Vec<Footprint> = Vec::new();
    for release in releases.iter().cycle().take(REFRESHES as usize) {
        let successor = run.successor_of(release)?;
        if let Outcome::Failed(words) = run.refresh(&successor)? {
            anyhow::bail!("refresh {} failed: {words}", seen.len() + 1);
        }
        run.check_dormant()?;
        let now = Footprint::of(run)?;
        run.check(&format!("generation {}: {now:?}", run.generation));
        if let [.., before, _] = seen.as_slice() {
            let grown = now.beyond(before);
            // The first two hosts that came by a refresh differ from the machine's first, and from each other.
            ensure!(
                seen.len() < 3 || grown.is_empty(),
                "generation {}: {}",
                run.generation,
                grown.join("; ")
            );
        }
        for guest in &run.report.guests {
            let limit = refreshes::pause_limit(&guest.name, &run.cpu_model);
            refreshes::check_pause(guest, limit).with_context(|| format!("refresh {}", seen.len() + 1))?;
        }
        seen.push(now);
    }
    run.power_off()
}

/// A thousand times in and out of nested while guests start and die beside one that lives.
pub(super) fn cycles(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    run.host()
        .push("/run/come-and-go.sh", COME_AND_GO.as_bytes(), Span::seconds(300))?;
    // Once in and out, for what is made the first time.
    run.sh("locum cycle 1")?;
    let before = Footprint::of(run)?;
    run.sh("setsid sh /run/come-and-go.sh </dev/null >/run/come-and-go.log 2>&1 & echo 0 >/run/died")?;
    let mut done = 0;
    let died = loop {
        let died: u32 = run.sh("cat /run/died")?.trim().parse()?;
        if done >= CYCLES && died >= 20 {
            break died;
        }
        // A stay of 20 ms each, for guests to run nested and native.
        run.sh("locum cycle 50 --pause-us 20000")?;
        done += 50;
        run.progress
            .step(&format!("{done} times in and out, {died} guests died"));
        run.check_guests()?;
    };
    run.sh("touch /run/enough; while [ -e /run/enough ]; do sleep 1; done")?;
    run.check_dormant()?;
    let after = Footprint::of(run)?;
    let grown = after.beyond(&before);
    ensure!(grown.is_empty(), "it grew: {}", grown.join("; "));
    run.check(&format!(
        "{done} times in and out of nested while {died} guests died: nothing grew"
    ));
    run.power_off()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint() -> Footprint {
        Footprint {
            tables: Tables {
                memory_stretches: 40,
                ept: vec![9, 8],
            },
            unreclaimed: 1 << 20,
            daemon_kib: 9000,
            daemon_files: 12,
            daemon_threads: 4,
            handles: 3,
        }
    }

    #[test]
    fn whatever_grows_is_named_and_what_shrinks_is_not() {
        let before = footprint();
        assert_eq!(before.beyond(&before), [""; 0]);
        let mut now = footprint();
        now.tables.ept = vec![9, 9];
        now.daemon_files = 13;
        now.unreclaimed = 0;
        now.daemon_kib += SLACK_KIB;
        assert_eq!(
            now.beyond(&before),
            ["EPT tables: 18, 17 before", "files of the daemon: 13, 12 before"]
        );
    }
}
