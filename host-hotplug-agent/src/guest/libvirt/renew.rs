//! A domain gets the QEMU that is installed now, its RAM in place. libvirt migrates nothing within one host; so it saves the
//! domain without its RAM, and restores it. The guest stands still for as long as a QEMU takes to start.
//!
//! As long as there is a saved state, the domain's piece of the pool stays its own, though it has no QEMU ([`super::hook`]), and
//! the guest has not run since: it is restored stopped, and goes on when the saved state is gone. Both are in `/run`: a machine
//! that is reset meanwhile boots its domains as ever. Whoever dies at whatever point, [`go_on`] ends it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::virsh::answer;
use super::wrapper::{EMULATOR, QEMU};
use super::{DomainState, LOOK, Libvirt};
use crate::deadline::Deadline;
use crate::file;
use crate::guest::Spec;
use crate::guest::qemu;
use crate::guest::renew::Renewed;
use crate::guest::running::{ignore_shared, memory_size};
use crate::sysroot::SysRoot;
use crate::tsc;

/// Where saved states are, and who is about to have one.
const DIR: &str = "run/locum/libvirt";
/// What follows a domain's UUID in the name of its saved state.
const SAVED: &str = ".saved";
/// And of a [`Domain`].
const NOTE: &str = ".renewing";
/// For libvirt to end what it is in the midst of.
const AT_REST: Duration = Duration::from_secs(60);
/// For a QEMU to start and to read a state without RAM. Nobody gives that up: the guest is nowhere else.
const RESTORED: Duration = Duration::from_secs(120);

/// Where libvirt saves a domain whose QEMU is replaced. As long as that file is there, so is the domain's RAM.
pub(super) fn saved(uuid: &str) -> PathBuf {
    PathBuf::from(format!("{DIR}/{uuid}{SAVED}"))
}

/// Whose QEMU is being replaced.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Domain {
    name: String,
    uuid: String,
}

/// How that ends.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// The guest runs in a QEMU of its own that libvirt has just started, since then.
    Restored(u64),
    /// It runs in the QEMU that it had.
    Stays,
}

impl Domain {
    fn saved(&self, sys: &SysRoot) -> PathBuf {
        sys.path(saved(&self.uuid))
    }

    fn note(&self, sys: &SysRoot) -> PathBuf {
        sys.path(format!("{DIR}/{}{NOTE}", self.uuid))
    }

    fn begin(&self, sys: &SysRoot) -> Result<()> {
        file::put_json(&self.note(sys), self)
    }

    fn save(&self, sys: &SysRoot, libvirt: &Libvirt, until: &Deadline<'_>) -> Result<()> {
        ignore_shared(&mut libvirt.monitor(&self.name), true, until)?;
        let saved = self.saved(sys);
        let words = ["save".as_ref(), self.name.as_ref(), saved.as_os_str()];
        libvirt.run(&words, until).map(drop)
    }

    /// What its libvirt does with it, once that is in the midst of nothing.
    fn at_rest(&self, libvirt: &Libvirt) -> Result<DomainState> {
        let state = Deadline::after(AT_REST).find(LOOK, || {
            let state = libvirt.state(&self.name, &answer())?;
            if state == DomainState::Off {
                return anyhow::Ok(Some(state));
            }
            let job = libvirt.run(&["domjobinfo", &self.name], &answer());
            // It may have ended between the two questions.
            Ok(job.is_ok_and(|job| is_none(&job)).then_some(state))
        })?;
        state.with_context(|| format!("libvirt does not end what it does with domain {}", self.name))
    }

    /// Brings it to an end, wherever it stands: the guest runs, in whatever QEMU.
    fn settle(&self, sys: &SysRoot, libvirt: &Libvirt) -> Result<Settled> {
        let saved = self.saved(sys);
        let settled = match self.at_rest(libvirt)? {
            DomainState::Running => Settled::Stays,
            // Restored, and not let go on yet.
            DomainState::Paused => Settled::Restored(self.run_on(sys, libvirt)?),
            DomainState::Off if saved.exists() => {
                let words = ["restore".as_ref(), saved.as_os_str(), "--paused".as_ref()];
                libvirt.run(&words, &Deadline::after(RESTORED)).with_context(|| {
                    format!(
                        "its state is in {}, its RAM in the pool, and the QEMU that is installed does not take them: see \
                         /var/log/libvirt/qemu/{}.log, install one that does, then `locum renew {}`",
                        saved.display(),
                        self.name,
                        self.name
                    )
                })?;
                Settled::Restored(self.run_on(sys, libvirt)?)
            }
            DomainState::Off => {
                remove(&self.note(sys))?;
                bail!("it has ended meanwhile");
            }
        };
        ignore_shared(&mut libvirt.monitor(&self.name), false, &answer())?;
        remove(&saved)?;
        remove(&self.note(sys))?;
        Ok(settled)
    }

    /// Lets it go on: from now on its saved state is worth nothing. Returns the TSC.
    fn run_on(&self, sys: &SysRoot, libvirt: &Libvirt) -> Result<u64> {
        remove(&self.saved(sys))?;
        libvirt.run(&["resume", &self.name], &answer())?;
        Ok(tsc::now())
    }
}

/// Replaces the QEMU of a domain that runs, or ends what was begun with one whose state is saved.
///
/// # Errors
/// Why not. The guest runs on in its QEMU, unless the error says otherwise.
pub(in crate::guest) fn renew(sys: &SysRoot, libvirt: &Libvirt, spec: &Spec, until: &Deadline<'_>) -> Result<Renewed> {
    let domain = Domain {
        name: spec.libvirt.clone().context("it is no guest of libvirt's")?,
        uuid: spec.uuid.clone().context("its domain has no UUID")?,
    };
    let mut monitor = libvirt.monitor(&domain.name);
    let ram = memory_size(&mut monitor, until)?;
    look_anew(sys)?;
    let stop = libvirt.watch(&domain.name, "STOP")?;
    domain.begin(sys)?;
    let begun = tsc::now();
    let outcome = domain.save(sys, libvirt, until);
    let stopped = stop.last().unwrap_or(begun);
    let state_bytes = fs::metadata(domain.saved(sys)).map_or(0, |saved| saved.len());
    let settled = match (domain.settle(sys, libvirt), &outcome) {
        (Err(error), Err(saving)) => return Err(error.context(format!("{saving:#}"))),
        (settled, _) => settled?,
    };
    let Settled::Restored(resumed) = settled else {
        outcome?;
        bail!("libvirt says that it has saved the guest, which runs on");
    };
    if let Err(error) = outcome {
        tracing::warn!("domain {} was saved, but: {error:#}", domain.name);
    }
    Ok(Renewed {
        guest: spec.name.clone(),
        from: spec.release,
        to: qemu::release(&mut monitor, &answer()).unwrap_or_default(),
        stopped_ticks: resumed.saturating_sub(stopped),
        state_bytes,
        ram_bytes_copied: if state_bytes >= ram { state_bytes } else { 0 },
    })
}

/// Ends what a daemon that is no more had begun. Returns what could not be ended, in words.
pub(in crate::guest) fn go_on(sys: &SysRoot) -> Vec<String> {
    let names = sys.list(DIR).unwrap_or_default();
    let notes = names.iter().filter(|name| name.ends_with(NOTE));
    let ended = notes.filter_map(|name| {
        let note = sys.read(format!("{DIR}/{name}")).map_err(anyhow::Error::from);
        let found = note.and_then(|text| Ok(serde_json::from_str(&text)?));
        let outcome = found.and_then(|domain| found_again(sys, &domain));
        let problem = outcome.err()?;
        Some(format!(
            "the QEMU of a domain was being replaced (/{DIR}/{name}): {problem:#}"
        ))
    });
    ended.collect()
}

fn found_again(sys: &SysRoot, domain: &Domain) -> Result<()> {
    let libvirt = Libvirt::needed(sys)?;
    let settled = domain
        .settle(sys, &libvirt)
        .with_context(|| format!("domain {}", domain.name))?;
    let which = match settled {
        Settled::Restored(_) => "its new QEMU",
        Settled::Stays => "the QEMU that libvirt has of it",
    };
    tracing::info!("domain {}: it runs in {which}", domain.name);
    Ok(())
}

/// `virsh domjobinfo` knows of nothing that is under way.
fn is_none(job: &str) -> bool {
    job.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words == ["Job", "type:", "None"]
    })
}

/// libvirt knows what a QEMU can do as of when its file changed ([`EMULATOR`], which is ours): so that must be later than QEMU's.
fn look_anew(sys: &SysRoot) -> Result<()> {
    let paths = [EMULATOR, QEMU].map(|path| sys.path(path.trim_start_matches('/')));
    let changed = |path: &PathBuf| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).map(|file| (file.ctime(), file.ctime_nsec()))
    };
    let [ours, qemu] = &paths;
    if changed(ours)? > changed(qemu)? {
        return Ok(());
    }
    let mode = fs::metadata(ours)?.permissions();
    fs::set_permissions(ours, mode).with_context(|| ours.display().to_string())
}

fn remove(path: &Path) -> Result<()> {
    file::remove(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn a_job_is_under_way_or_not() {
        assert!(is_none("Job type:         None        \n"));
        for job in ["Job type:         Unbounded   \nOperation:        Save\n", "", "None"] {
            assert!(!is_none(job), "{job}");
        }
    }

    #[test]
    fn what_was_begun_is_found_again_and_not_forgotten() {
        let tree = Tree::lab();
        let sys = tree.sys();
        assert_eq!(go_on(&sys), [] as [&str; 0]);
        let domain = Domain {
            name: "web".to_owned(),
            uuid: "11111111-2222-4333-8444-555555555555".to_owned(),
        };
        domain.begin(&sys).unwrap();
        tree.put(format!("{DIR}/damaged{NOTE}"), "{");
        let problems = go_on(&sys);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("this host has no libvirt") && problems[0].contains(&domain.uuid));
        assert!(problems[1].contains("damaged.renewing"), "{problems:?}");
        assert!(domain.note(&sys).exists(), "the next daemon tries again");
    }

    #[test]
    fn libvirt_is_made_to_look_anew_at_a_qemu_that_has_changed() {
        use std::os::unix::fs::MetadataExt;
        let tree = Tree::lab();
        let ours = tree.put(EMULATOR.trim_start_matches('/'), "wrapper");
        let changed = || {
            let file = fs::metadata(&ours).unwrap();
            (file.ctime(), file.ctime_nsec())
        };
        let first = changed();
        // The kernel's clock for files goes by ticks.
        std::thread::sleep(Duration::from_millis(20));
        tree.put(QEMU.trim_start_matches('/'), "qemu");
        std::thread::sleep(Duration::from_millis(20));
        look_anew(&tree.sys()).unwrap();
        let second = changed();
        assert!(second > first);
        look_anew(&tree.sys()).unwrap();
        assert_eq!(changed(), second, "it was looked at since");
    }
}
