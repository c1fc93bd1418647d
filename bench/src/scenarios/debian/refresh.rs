//! A refresh of a whole Debian to an installed kernel: guests cross while the next host runs from its initramfs, one by
//! itself and one by libvirt's own migration, and then the machine's own root takes over.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::Host;
use crate::{
    machine::{channel, deadline::Span},
    progress::say,
    report::agent::Beat,
    tools,
};

/// Long enough for a refresh, with both hosts' systemd in it.
const REFRESH: Span = Span::seconds(1800);
/// Long enough for a guest to boot, or to show that it lives.
const GUEST: Span = Span::seconds(700);

/// The guests, of 128 MiB each: a microvm, and a domain of libvirt's.
const GUESTS: [&str; 2] = ["g1", DOMAIN];
const DOMAIN: &str = "d1";
/// What is written to the root before, between and after refreshes.
const WITNESSES: [&str; 3] = ["/etc/before", "/etc/between", "/etc/after"];

/// All of it.
pub(in super::super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    fs::create_dir_all(dir)?;
    let mut host = Host::new("debian-refresh", dir)?;
    host.up("Debian boots from its disk")?;
    let mut beats = [host.start_guest()?, host.start_domain()?];
    for witness in WITNESSES.iter().take(2) {
        host.write(witness)?;
        host.refresh()?;
        for (name, beat) in GUESTS.iter().zip(&mut beats) {
            *beat = host.guest_lives(name, beat)?;
        }
        host.libvirt_has_it()?;
    }
    let [_, beat] = &beats;
    host.renew_domain(beat)?;
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
        let [name, _] = GUESTS;
        self.progress.step(&format!("starting guest {name}"));
        self.sh("modprobe kvm_intel || { dmesg | tail -n 20; exit 1; }")?;
        self.sh(&format!(
            "GUEST=/srv/guest setsid /srv/guest/guest.sh {name} >/run/{name}.qemu 2>&1 </dev/null &"
        ))?;
        let words = format!("cat /run/{name}.qemu /run/{name}.log; ls -l /dev/kvm /dev/dax*");
        self.sh(&format!("sleep 10; pidof qemu-system-x86_64 || {{ {words}; exit 1; }}"))
            .context("QEMU does not start")?;
        self.first_word(name, &words)
    }

    /// Likewise, one of libvirt's.
    fn start_domain(&mut self) -> Result<String> {
        self.progress.step(&format!("starting domain {DOMAIN}"));
        self.sh(&format!("virsh define /srv/guest/{DOMAIN}.xml && virsh start {DOMAIN}"))
            .context("libvirt does not start its domain")?;
        let pool = self.sh("locum pool")?;
        say(&format!("debian-refresh: {}", pool.trim()));
        ensure!(
            pool.contains(DOMAIN),
            "domain {DOMAIN} has nothing of the pool:\n{pool}"
        );
        let words =
            format!("cat /run/{DOMAIN}.log /var/log/libvirt/qemu/{DOMAIN}.log; dmesg | grep -i apparmor | tail");
        let word = self.first_word(DOMAIN, &words)?;
        self.on_its_network()?;
        self.is_confined()?;
        Ok(word)
    }

    /// AppArmor keeps the domain's QEMU to what it needs.
    fn is_confined(&mut self) -> Result<()> {
        let label = self.sh(&format!("cat /proc/$(cat /run/libvirt/qemu/{DOMAIN}.pid)/attr/current"))?;
        ensure!(
            label.starts_with("libvirt-") && label.contains("enforce"),
            "AppArmor has domain {DOMAIN} as {}",
            label.trim()
        );
        say(&format!(
            "debian-refresh: AppArmor has domain {DOMAIN} as {}",
            label.trim()
        ));
        Ok(())
    }

    /// The domain gets a QEMU of the machine's own root, which is confined again.
    fn renew_domain(&mut self, before: &str) -> Result<()> {
        self.progress.step(&format!("renewing domain {DOMAIN}"));
        let said = self.sh(&format!("locum renew {DOMAIN}"))?;
        say(&format!("debian-refresh: {}", said.trim()));
        self.guest_lives(DOMAIN, before)?;
        self.libvirt_has_it()?;
        self.is_confined()
    }

    fn first_word(&mut self, name: &str, words: &str) -> Result<String> {
        let watch = format!("lab-guest watch --name {name} --running --timeout 300");
        let sign = self.here().run(&watch, GUEST)?.ok();
        if sign.is_err() {
            let told = self.sh(words)?;
            return sign.with_context(|| format!("guest {name} does not come up:\n{told}"));
        }
        sign
    }

    /// The libvirt of the host that reigns owns the domain.
    fn libvirt_has_it(&mut self) -> Result<()> {
        let said = self.sh(&format!(
            "virsh domstate {DOMAIN}; virsh list --all; virsh suspend {DOMAIN} && virsh domstate {DOMAIN}; \
             virsh resume {DOMAIN}; virsh domstate {DOMAIN}; \
             virsh qemu-monitor-command {DOMAIN} '{{\"execute\":\"query-migrate-capabilities\"}}'"
        ))?;
        let states: Vec<&str> = said
            .lines()
            .filter(|line| ["running", "paused"].contains(line))
            .collect();
        ensure!(
            states == ["running", "paused", "running"],
            "libvirt does not have its domain in hand:\n{said}"
        );
        ensure!(
            said.contains(r#"{"state":false,"capability":"x-ignore-shared"}"#),
            "its RAM would be left out of a migration:\n{said}"
        );
        self.on_its_network()
    }

    /// libvirt of the host that reigns has the domain's network, and the domain is on it.
    fn on_its_network(&mut self) -> Result<()> {
        let said = self.sh(&format!(
            "virsh net-list --name; virsh domiflist {DOMAIN}; ls /sys/class/net/virbr0/brif; ip -brief address show virbr0; \
             pidof dnsmasq >/dev/null && echo 'dnsmasq serves'"
        ))?;
        let taps: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("vnet") && !line.contains(' '))
            .collect();
        let on_it = |line: &str| taps.iter().any(|tap| line.trim_start().starts_with(tap)) && line.contains("default");
        ensure!(
            taps.len() == 1
                && said.lines().any(|line| line == "default")
                && said.lines().any(on_it)
                && said.contains("192.168.122.1")
                && said.contains("dnsmasq serves"),
            "domain {DOMAIN} is not on its network:\n{said}"
        );
        say(&format!(
            "debian-refresh: domain {DOMAIN} is on its network by {}",
            taps.join(", ")
        ));
        Ok(())
    }

    fn write(&mut self, path: &str) -> Result<()> {
        self.sh(&format!("echo {path} > {path}")).map(drop)
    }

    /// Refreshes to the kernel that runs, and waits until the next host's own systemd has come up.
    fn refresh(&mut self) -> Result<()> {
        let (release, generation) = (self.release.clone(), self.generation);
        self.progress.step(&format!("refreshing generation {generation}"));
        // The lab's line must be there as Linux boots; its pin is the console's, COM2 and COM4 or COM1 and COM3.
        let ports = channel::ports(generation + 1);
        // It changes nothing in the image, which would take the emulator ten minutes to make anew.
        self.sh(&format!(
            "touch -r /etc/default/locum /run/before && sed -i '/^LOCUM_REFRESH_PORTS/d' /etc/default/locum && \
             echo LOCUM_REFRESH_PORTS={ports} >>/etc/default/locum && touch -r /run/before /etc/default/locum"
        ))?;
        self.machine
            .host(generation)
            .start(&format!("locum refresh --kernel {release} >/run/refresh.log 2>&1"))?;
        self.generation += 1;
        let came = self.machine.host(self.generation).wait_ready(REFRESH);
        if came.is_err() {
            // The machine may be gone; then the error says so.
            let look = "cat /run/refresh.log; locum status --long; locum trace -n 30";
            let told = self.machine.host(generation).run(look, GUEST);
            came.with_context(|| told.map(|output| output.text).unwrap_or_default())?;
        }
        self.booted()?;
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
            roots.lines().all(|root| root == "/run/locum/host") && roots.lines().count() == GUESTS.len(),
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
    fn guest_lives(&mut self, name: &str, before: &str) -> Result<String> {
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
