//! A guest of libvirt's crosses to another host, back, and there again, its RAM in place, and each libvirt has it in hand
//! then. No machine is booted: namespaces of this kernel stand for two hosts, a file for the pool, and a socket for the
//! channel.

mod guest;
mod host;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use self::{
    guest::{DOMAIN, NAME, OFFSET, Pool, RAM, UUID},
    host::Host,
};
use crate::{debian::root::Root, image::build, machine::turns, paths, progress::say, suite::Skipped, tools};

/// What only a test that hangs takes, on the busiest machine.
const HANG: Duration = Duration::from_secs(300);
/// Between two looks.
const OFTEN: Duration = Duration::from_millis(20);
/// Where hosts have the directory that they share.
const SHARED: &str = "/shared";
/// The socket in it that stands for the channel.
const CHANNEL: &str = "channel";
/// More than the guest's state is, and far less than its RAM.
const STATE: u64 = RAM / 16;
/// With it, QEMU leaves RAM that is shared out of a migration.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// A device that needs nothing of the guest to come or to go.
const TABLET: &str = include_str!("../../libvirt/tablet.xml");
/// How QEMU's monitor names it.
const TABLET_THERE: &str = "Product QEMU USB Tablet";

/// All of it.
pub(super) fn all(dir: &Path) -> Result<()> {
    if !tools::is_root() {
        bail!(Skipped("libvirt's daemon needs root, and you are not root".into()));
    }
    tools::ensure()?;
    let tree = Root::libvirt()?;
    let shared = dir.join("shared");
    fill(&shared)?;
    // The hosts end with it, and what they have mounted.
    let played = play(&tree, dir, &shared);
    if played.is_ok() {
        return tools::remove_tree(dir);
    }
    // It is large, and nothing to read.
    fs::remove_file(shared.join(guest::POOL))?;
    played.with_context(|| format!("logs are in {}", dir.display()))
}

/// What both hosts see.
fn fill(shared: &Path) -> Result<()> {
    fs::create_dir_all(shared)?;
    let commands = paths::workspace().join("host-hotplug-agent/debian/incoming.qmp");
    let virsh = paths::workspace().join("bench/libvirt/virsh.sh");
    for (file, name, mode) in [
        (build::emulator()?, "qemu", 0o755),
        (build::lab_domain()?, "lab-domain", 0o755),
        (commands, "incoming.qmp", 0o644),
        (virsh, "virsh", 0o755),
    ] {
        let to = shared.join(name);
        fs::copy(&file, &to).with_context(|| format!("copying {}", file.display()))?;
        fs::set_permissions(to, Permissions::from_mode(mode))?;
    }
    fs::write(shared.join("domain.xml"), DOMAIN)?;
    fs::write(shared.join("tablet.xml"), TABLET)?;
    Ok(fs::write(shared.join("floppy"), guest::floppy())?)
}

fn play(tree: &Root, dir: &Path, shared: &Path) -> Result<()> {
    let _turn = turns::take()?;
    let pool = Pool::new(&shared.join(guest::POOL))?;
    let mut a = Host::boot("a", tree, dir.join("a"), shared)?;
    let mut b = Host::boot("b", tree, dir.join("b"), shared)?;
    a.up()?;
    b.up()?;
    let bed = Bed {
        pool,
        channel: shared.join(CHANNEL),
    };
    bed.start(&a)?;
    bed.cannot_cross(&a, &b)
        .context("crossing to a host where it has ordinary RAM")?;
    for (from, to, plug) in [(&a, &b, Some("attach")), (&b, &a, Some("detach")), (&a, &b, None)] {
        bed.cross(from, to)
            .with_context(|| format!("crossing from host {} to host {}", from.name(), to.name()))?;
        // What was attached on one host has crossed to the other.
        if let Some(what) = plug {
            Bed::plug(to, what).with_context(|| format!("{what}ing a device in host {}", to.name()))?;
        }
    }
    bed.pause(&b).context("pausing the guest that has crossed")?;
    bed.renew(&b)
        .context("giving the guest that has crossed another QEMU")?;
    bed.renew_badly(&b)
        .context("ending what was begun to give it another QEMU")?;
    bed.save(&b).context("saving the guest that has crossed")
}

/// What is between the hosts.
struct Bed {
    pool: Pool,
    /// As seen from outside.
    channel: PathBuf,
}

/// How a program ended, and what it said.
type Ended = (Option<i32>, String);

impl Bed {
    fn start(&self, host: &Host) -> Result<()> {
        host.virsh(&["define", &format!("{SHARED}/domain.xml")])?;
        host.give(false)?;
        host.virsh(&["start", NAME])?;
        self.lives(host)?;
        say("libvirt: the guest counts in its piece of the pool");
        Ok(())
    }

    /// The agent's part, on both sides: what came of it at the sender, and at the receiver.
    fn carry(&self, from: &Host, to: &Host) -> Result<(Ended, Ended)> {
        let inside = format!("{SHARED}/{CHANNEL}");
        let agent = |host: &Host, role: &str| Self::agent(host, &[role, NAME, UUID, &inside]);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| agent(to, "receive"));
            while !self.channel.exists() && !receiver.is_finished() {
                thread::sleep(OFTEN);
            }
            let sent = agent(from, "send");
            let received = receiver.join().map_err(|_| anyhow!("the receiver has panicked"))?;
            if self.channel.exists() {
                fs::remove_file(&self.channel)?;
            }
            Ok((sent?, received?))
        })
    }

    fn cross(&self, from: &Host, to: &Host) -> Result<()> {
        to.give(true)?;
        let (carried, still) = self.pool.watched(|| self.carry(from, to))?;
        let ((sender, sent), (receiver, received)) = carried?;
        ensure!(
            (sender, receiver) == (Some(0), Some(0)),
            "the sender ended with {sender:?}:\n{sent}\nthe receiver ended with {receiver:?}:\n{received}"
        );
        let sent = Sent::parse(&sent)?;
        ensure!(sent.ram == 0, "{} bytes of RAM were copied", sent.ram);
        ensure!(
            (1..STATE).contains(&sent.state),
            "its state takes {} bytes of a stream",
            sent.state
        );
        // As the hook does.
        from.take()?;
        self.lives(to)?;
        let left = from.state()?;
        ensure!(left == "shut off", "it is {left} in host {}", from.name());
        say(&format!(
            "libvirt: from {} to {} with {} bytes of state, {still:.1?} between two ticks at most",
            from.name(),
            to.name(),
            sent.state,
        ));
        Ok(())
    }

    /// The other libvirt knows nothing of the pool, as where the hook has failed: the guest stays where it is.
    fn cannot_cross(&self, from: &Host, to: &Host) -> Result<()> {
        let (carried, _) = self.pool.watched(|| self.carry(from, to))?;
        let ((sender, sent), (receiver, received)) = carried?;
        let words = format!("{sent}\n{received}");
        ensure!(
            sender == Some(1) && receiver == Some(1),
            "the sender ended with {sender:?}, the receiver with {receiver:?}:\n{words}"
        );
        // What libvirt hears from the other one. QEMU's own word for it is in the log there.
        ensure!(
            sent.contains("it runs on here") && sent.contains("load of migration failed"),
            "the sender does not say why:\n{words}"
        );
        let log = to.log()?;
        ensure!(
            log.contains(IGNORE_SHARED),
            "QEMU failed for another reason in host {}:\n{log}",
            to.name()
        );
        self.lives(from)?;
        let left = to.state()?;
        ensure!(
            ["unknown", "shut off"].contains(&left.as_str()),
            "it is {left} in host {}",
            to.name()
        );
        say("libvirt: it stays where it is if its RAM is nowhere else");
        Ok(())
    }

    /// The guest runs there, in its piece of the pool, and a migration that libvirt may begin would take its RAM along.
    fn lives(&self, host: &Host) -> Result<()> {
        let state = host.state()?;
        ensure!(state == "running", "it is {state} in host {}", host.name());
        self.pool.counts()?;
        self.pool.is_marked()?;
        for (property, right) in [
            ("type", json!("memory-backend-file")),
            ("mem-path", json!(format!("{SHARED}/{}", guest::POOL))),
            ("offset", json!(OFFSET)),
        ] {
            let of = json!({ "path": "/objects/pc.ram", "property": property });
            let told = host.qmp("qom-get", &of)?;
            ensure!(told == right, "{property} of its RAM is {told}, not {right}");
        }
        let capabilities = host.qmp("query-migrate-capabilities", &json!({}))?;
        ensure!(
            capability(&capabilities, IGNORE_SHARED) == Some(false),
            "{IGNORE_SHARED} is left on"
        );
        let said = host.console()?;
        ensure!(
            said.bytes().all(|byte| byte == guest::SAYS),
            "its console says {said:?} in host {}",
            host.name()
        );
        Ok(())
    }

    /// A device is attached, or detached: `what`.
    fn plug(host: &Host, what: &str) -> Result<()> {
        let there = || -> Result<bool> {
            let command = json!({ "command-line": "info usb" });
            let devices = host.qmp("human-monitor-command", &command)?;
            Ok(devices.as_str().is_some_and(|devices| devices.contains(TABLET_THERE)))
        };
        let before = there()?;
        ensure!(before == (what == "detach"), "before, the device is there: {before}");
        host.virsh(&[
            &format!("{what}-device"),
            NAME,
            &format!("{SHARED}/tablet.xml"),
            "--live",
        ])?;
        let after = there()?;
        ensure!(after != before, "afterwards, the device is there: {after}");
        say(&format!("libvirt: a device is {what}ed in host {}", host.name()));
        Ok(())
    }

    fn pause(&self, host: &Host) -> Result<()> {
        host.virsh(&["suspend", NAME])?;
        let state = host.state()?;
        ensure!(state == "paused", "it is {state}");
        let before = self.pool.counter()?;
        // Some ticks of its timer.
        thread::sleep(Duration::from_millis(500));
        let after = self.pool.counter()?;
        ensure!(before == after, "it counts from {before} to {after} while it is paused");
        host.virsh(&["resume", NAME])?;
        self.lives(host)?;
        say("libvirt: it pauses the guest and resumes it");
        Ok(())
    }

    /// The agent's part, within a host.
    fn agent(host: &Host, words: &[&str]) -> Result<Ended> {
        let program = format!("{SHARED}/lab-domain");
        host.run(&[&[program.as_str()], words].concat())
    }

    fn renew(&self, host: &Host) -> Result<()> {
        let before = host.qemu()?;
        // As the hook does when it sees the state.
        host.give(true)?;
        let (renewed, still) = self.pool.watched(|| Self::agent(host, &["renew", NAME, UUID]))?;
        let (status, told) = renewed?;
        ensure!(status == Some(0), "the agent ended with {status:?}:\n{told}");
        let sent = Sent::parse(&told)?;
        ensure!(sent.ram == 0, "{} bytes of RAM were copied", sent.ram);
        ensure!(
            (1..STATE).contains(&sent.state),
            "its state takes {} bytes of a file",
            sent.state
        );
        self.lives(host)?;
        ensure!(host.qemu()? != before, "it has the QEMU that it had");
        let left = host.left()?;
        ensure!(left.is_empty(), "the agent leaves {left}");
        say(&format!(
            "libvirt: another QEMU with {} bytes of state, {still:.1?} between two ticks at most",
            sent.state
        ));
        Ok(())
    }

    /// The agent dies when the domain is saved, and the next one finds a QEMU that does not take its state; then one that does.
    fn renew_badly(&self, host: &Host) -> Result<()> {
        let on = json!({ "capabilities": [{ "capability": IGNORE_SHARED, "state": true }] });
        host.qmp("migrate-set-capabilities", &on)?;
        host.begins_to_renew()?;
        let before = self.pool.counter()?;
        // Into ordinary RAM, of which there is nothing in the state.
        host.take()?;
        let (status, told) = Self::agent(host, &["go-on"])?;
        ensure!(
            status == Some(1) && told.contains("the QEMU that is installed does not take them"),
            "the agent ended with {status:?}:\n{told}"
        );
        ensure!(!host.left()?.is_empty(), "the agent has lost the domain's state");
        let state = host.state()?;
        ensure!(state == "shut off", "it is {state}");
        host.give(true)?;
        let (status, told) = Self::agent(host, &["go-on"])?;
        ensure!(status == Some(0), "the agent ended with {status:?}:\n{told}");
        self.lives(host)?;
        let after = self.pool.counter()?;
        ensure!(after >= before, "it goes on at {after}, and had come to {before}");
        let left = host.left()?;
        ensure!(left.is_empty(), "the agent leaves {left}");
        say("libvirt: what an agent that died had begun is ended by the next");
        Ok(())
    }

    /// What libvirt saves has the RAM in it: of that in the pool, nothing is left.
    fn save(&self, host: &Host) -> Result<()> {
        host.virsh(&["managedsave", NAME])?;
        let before = self.pool.counter()?;
        self.pool.wipe()?;
        host.give(false)?;
        host.virsh(&["start", NAME])?;
        self.lives(host)?;
        let after = self.pool.counter()?;
        ensure!(after > before, "it goes on at {after}, and was saved at {before}");
        say("libvirt: it saves the guest with its RAM and starts it again");
        Ok(())
    }
}

/// What the sender says of a crossing.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    /// Bytes of the guest's state.
    state: u64,
    /// Bytes of RAM that were copied.
    ram: u64,
}

impl Sent {
    fn parse(text: &str) -> Result<Self> {
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[state, ram]) => Ok(Self { state, ram }),
            _ => bail!("the sender says {text:?}, not how many bytes it has sent"),
        }
    }
}

/// Whether QEMU has that capability on; `None` if it does not know it.
fn capability(capabilities: &Value, name: &str) -> Option<bool> {
    let mut capabilities = capabilities.as_array()?.iter();
    capabilities.find(|capability| capability["capability"] == name)?["state"].as_bool()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_says_two_numbers() {
        let sent = Sent { state: 4096, ram: 0 };
        assert_eq!(Sent::parse("4096 0\n").unwrap(), sent);
        for bad in ["", "4096", "4096 0 1", "it runs on here"] {
            assert!(Sent::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_capability_is_on_or_off_or_unknown() {
        let told = json!([{ "state": false, "capability": "xbzrle" }, { "state": true, "capability": IGNORE_SHARED }]);
        assert_eq!(capability(&told, IGNORE_SHARED), Some(true));
        assert_eq!(capability(&told, "xbzrle"), Some(false));
        assert_eq!(capability(&told, "multifd"), None);
        assert_eq!(capability(&json!({}), IGNORE_SHARED), None);
    }
}
