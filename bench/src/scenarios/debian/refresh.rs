//! A refresh of a whole Debian to another installed kernel, and one back: guests cross while the next host runs from its initramfs, one by
//! itself and one by libvirt's own migration ([`Domain`]), and then the machine's own root takes over.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

use super::{Host, domain::Domain};
use crate::{
    machine::{
        channel::{self, JobId},
        deadline::Span,
    },
    progress::say,
    report::agent::Beat,
    tools,
};

/// Long enough for a refresh, with both hosts' systemd in it.
const REFRESH: Span = Span::seconds(1800);
/// Between two looks at a refresh.
const LOOK: Span = Span::seconds(10);
/// Long enough for a guest to boot, or to show that it lives.
const GUEST: Span = Span::seconds(700);

/// The guest that crosses by itself: a microvm.
const GUEST_NAME: &str = "g1";
/// QEMUs: that, and the domain's.
const QEMUS: usize = 2;
/// Names the PCI function of a network card that is not up, in `card`.
const CARD_THAT_IS_DOWN: &str = "for c in /sys/class/net/eth*; do case $(cat $c/flags) in *[13579bdf]) ;; \
     *) card=$(basename $(readlink -f $c/device)) ;; esac; done";
/// What is written to the root before, between and after refreshes.
const WITNESSES: [&str; 3] = ["/etc/before", "/etc/between", "/etc/after"];

/// All of it.
pub(in super::super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    fs::create_dir_all(dir)?;
    let mut host = Host::new("debian-refresh", dir)?;
    host.up("Debian boots from its disk")?;
    let mut beat = host.start_guest()?;
    let mut domain = Domain::start(&mut host)?;
    for witness in WITNESSES.iter().take(2) {
        host.write(witness)?;
        host.refresh()?;
        beat = host.guest_lives(&beat)?;
        domain.lives(&mut host)?;
    }
    domain.renew(&mut host)?;
    domain.end(&mut host)?;
    host.write(WITNESSES[2])?;
    host.install_a_package()?;
    host.reboot()?;
    for witness in WITNESSES {
        host.sh(&format!("cat {witness}"))
            .with_context(|| format!("{witness} is lost"))?;
    }
    host.sh("dpkg --status lab-witness && cat /usr/share/lab-witness")
        .context("the package that was installed after the refreshes is lost")?;
    say("debian-refresh: what was written and installed is on the disk after a reset");
    host.off()
}

impl Host {
    /// As an operator starts one; returns its first word.
    fn start_guest(&mut self) -> Result<String> {
        let name = GUEST_NAME;
        self.progress.step(&format!("starting guest {name}"));
        self.sh("modprobe kvm_intel || { dmesg | tail -n 20; exit 1; }")?;
        self.sh(&format!(
            "GUEST=/srv/guest setsid /srv/guest/guest.sh {name} >/run/{name}.qemu 2>&1 </dev/null &"
        ))?;
        let words = format!("cat /run/{name}.qemu /run/{name}.log; ls -l /dev/kvm /dev/dax*");
        self.sh(&format!("sleep 10; pidof qemu-system-x86_64 || {{ {words}; exit 1; }}"))
            .context("QEMU does not start")?;
        let watch = format!("lab-guest watch --name {name} --running --timeout 300");
        let sign = self.here().run(&watch, GUEST)?.ok();
        if sign.is_err() {
            let told = self.sh(&words)?;
            return sign.with_context(|| format!("guest {name} does not come up:\n{told}"));
        }
        sign
    }

    fn write(&mut self, path: &str) -> Result<()> {
        self.sh(&format!("echo {path} > {path}")).map(drop)
    }

    /// Refreshes to the other kernel, and waits until the next host's own systemd has come up.
    fn refresh(&mut self) -> Result<()> {
        std::mem::swap(&mut self.release, &mut self.next);
        let (release, generation) = (self.release.clone(), self.generation);
        self.progress.step(&format!("refreshing generation {generation}"));
        // The lab's line must be there as Linux boots; its pin is the console's, COM2 and COM4 or COM1 and COM3.
        let ports = channel::ports(generation + 1);
        // It changes nothing in the image, which would take the emulator ten minutes to make anew.
        self.sh(&format!(
            "touch -r /etc/default/locum /run/before && sed -i '/^LOCUM_REFRESH_[PD]/d' /etc/default/locum && \
             {CARD_THAT_IS_DOWN}; echo LOCUM_REFRESH_DEVICES=$card >>/etc/default/locum && \
             echo LOCUM_REFRESH_PORTS={ports} >>/etc/default/locum && touch -r /run/before /etc/default/locum"
        ))?;
        let refresh = self
            .machine
            .host(generation)
            .start(&format!("locum refresh --kernel {release} 2>&1"))?;
        self.generation += 1;
        self.comes_up(generation, refresh)?;
        self.booted()?;
        let runs = self.sh("uname -r")?;
        ensure!(
            runs.trim() == release,
            "the next host runs {}, not {release}",
            runs.trim()
        );
        let status = self.status()?;
        ensure!(
            status.generation == self.generation,
            "generation {} reigns",
            status.generation
        );
        ensure!(status.state == "idle", "the daemon is {}", status.state);
        ensure!(status.all_native(), "not every CPU is native: {:?}", status.cpus);
        let report = status
            .last_report
            .context("the daemon of the root knows nothing of the refresh")?;
        ensure!(
            report.outcome == "done" && report.losses.is_empty(),
            "the refresh is not done: {report:?}"
        );
        self.console_came(generation)?;
        let root = self.sh("findmnt -no SOURCE,FSTYPE,OPTIONS /")?;
        ensure!(root.contains("ext4") && root.contains("rw"), "the root is {root}");
        let roots = self.sh("for qemu in $(pidof qemu-system-x86_64); do readlink /proc/$qemu/root; done")?;
        ensure!(
            roots.lines().all(|root| root == "/run/locum/host") && roots.lines().count() == QEMUS,
            "the roots of QEMUs are {roots}"
        );
        say(&format!(
            "debian-refresh: generation {} has the root {}, {} bytes are unreclaimed",
            self.generation,
            root.trim(),
            status.unreclaimed_bytes
        ));
        Ok(())
    }

    /// Waits until the next host's own root is up, as long as the refresh that the one before it was asked for goes on.
    fn comes_up(&mut self, before: u32, refresh: JobId) -> Result<()> {
        let end = self.machine.deadline(REFRESH)?;
        let mut said = Vec::new();
        while self.machine.host(self.generation).hello().is_none() {
            let (text, status) = self.machine.host(before).poll(refresh);
            said.extend(text);
            let words = String::from_utf8_lossy(&said).into_owned();
            self.progress.step(words.lines().last().unwrap_or("refreshing"));
            if status.is_some_and(|status| status != 0) || self.machine.now()? > end {
                // The machine may be gone; then the error says so.
                let told = self
                    .machine
                    .host(before)
                    .run("locum status --long; locum trace -n 30", GUEST);
                let told = told.map(|output| output.text).unwrap_or_default();
                bail!("the refresh does not go through; locum said:\n{words}\n{told}");
            }
            self.machine.look(LOOK)?;
        }
        self.machine.host(self.generation).wait_ready(GUEST).map(drop)
    }

    /// The interrupt of the next host's console went with its ports, though Linux has other numbers in each host.
    fn console_came(&mut self, before: u32) -> Result<()> {
        let pin = if before.is_multiple_of(2) { 3 } else { 4 };
        let granted = self.sh("locum trace --kind owner")?;
        ensure!(
            granted.contains(&format!("IOAPIC pin {pin}")),
            "IOAPIC pin {pin} was not given:\n{granted}"
        );
        Ok(())
    }

    /// The guest is in the boot it was started with, and finds no fault; returns what it says now.
    fn guest_lives(&mut self, before: &str) -> Result<String> {
        let name = GUEST_NAME;
        self.progress.step(&format!("checking guest {name}"));
        let file = format!("/run/{name}.before.json");
        self.here().push(&file, before.as_bytes(), GUEST)?;
        let watch = format!("lab-guest watch --name {name} --survived {file} --timeout 600");
        let after = self.here().run(&watch, GUEST)?.ok()?;
        let beat: Beat = serde_json::from_str(&after).with_context(|| format!("lab-guest printed {after}"))?;
        ensure!(beat.faults == 0, "guest {name} found {} faults", beat.faults);
        Ok(after)
    }

    /// As an operator does it, from a file.
    fn install_a_package(&mut self) -> Result<()> {
        self.sh("dpkg --install /srv/lab-witness.deb").map(drop)
    }
}
