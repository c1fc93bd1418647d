//! The stock guest as a domain of libvirt's: a Debian that nobody here made, with its own kernel, its disk at a server on the
//! network, and a card on a network of libvirt's, by which it serves pages.

use anyhow::{Context, Result, ensure};

use super::Host;
use crate::{
    image::stock_guest::{Disk, StockGuest},
    machine::deadline::Span,
    progress::say,
    steps::visits::{self, Journal, Visit},
};

/// Its name in libvirt.
const NAME: &str = "d1";
/// Long enough for it to answer.
const ANSWER: Span = Span::seconds(700);
/// Looks, some ten emulated seconds apart, after which it should have booted.
const PATIENCE: u32 = 90;

/// The domain, as it was last seen.
pub(super) struct Domain {
    /// Its address on libvirt's network.
    address: String,
    visit: Visit,
    /// From before the first refresh.
    journal: Journal,
    /// Serves until this ends.
    _disk: Disk,
}

impl Domain {
    /// As an operator starts it.
    pub(super) fn start(host: &mut Host) -> Result<Self> {
        host.progress.step(&format!("starting domain {NAME}"));
        let disk = Disk::serve(&StockGuest::get()?, host.machine.dir())?;
        host.sh(&format!(
            "sed -i s/@PORT@/{}/ /srv/guest/{NAME}.xml && virsh define /srv/guest/{NAME}.xml && virsh start {NAME}",
            disk.port()
        ))
        .context("libvirt does not start its domain")?;
        let pool = host.sh("locum pool")?;
        say(&format!("debian-refresh: {}", pool.trim()));
        ensure!(pool.contains(NAME), "domain {NAME} has nothing of the pool:\n{pool}");
        let Some((address, visit)) = first_visit(host)? else {
            let look = format!(
                "cat /run/{NAME}.log /var/log/libvirt/qemu/{NAME}.log; dmesg | grep -i apparmor | tail; virsh net-dhcp-leases default"
            );
            anyhow::bail!("domain {NAME} does not come up:\n{}", host.sh(&look)?);
        };
        on_its_network(host)?;
        is_confined(host)?;
        let journal = journal(host, &address)?;
        say(&format!(
            "debian-refresh: domain {NAME} serves at {address} and has {} errors in its journal",
            journal.errors.len()
        ));
        Ok(Self {
            address,
            visit,
            journal,
            _disk: disk,
        })
    }

    /// It is in the boot it was started in, has all that it wrote to its disk, and is in the hands of the libvirt of the host
    /// that reigns.
    pub(super) fn lives(&mut self, host: &mut Host) -> Result<()> {
        host.progress.step(&format!("checking domain {NAME}"));
        let visit = visit(host, &self.address)?;
        visit.follows(&self.visit)?;
        self.visit = visit;
        in_hand(host)
    }

    /// It gets a QEMU of the machine's own root, which is confined again.
    pub(super) fn renew(&mut self, host: &mut Host) -> Result<()> {
        host.progress.step(&format!("renewing domain {NAME}"));
        let said = host.sh(&format!("locum renew {NAME}"))?;
        say(&format!("debian-refresh: {}", said.trim()));
        self.lives(host)?;
        is_confined(host)
    }

    /// It has found no fault in all that time.
    pub(super) fn end(&self, host: &mut Host) -> Result<()> {
        let after = journal(host, &self.address)?;
        let new: Vec<_> = after.warnings.difference(&self.journal.warnings).collect();
        say(&format!(
            "debian-refresh: warnings in the journal of {NAME} since: {new:?}"
        ));
        after.no_error_since(&self.journal)
    }
}

/// Its address and its page, once it serves; none if it does not.
fn first_visit(host: &mut Host) -> Result<Option<(String, Visit)>> {
    for _ in 0..PATIENCE {
        let leases = host.sh(&format!("sleep 10; virsh --quiet domifaddr {NAME}"))?;
        let address = leases.split_whitespace().find_map(|word| Some(word.split_once('/')?.0));
        if let Some(address) = address
            && let Ok(page) = host.here().run(&visits::fetch(address, "visit"), ANSWER)?.ok()
        {
            return Ok(Some((address.to_owned(), Visit::parse(&page)?)));
        }
    }
    Ok(None)
}

fn visit(host: &mut Host, address: &str) -> Result<Visit> {
    Visit::parse(&host.sh(&visits::fetch(address, "visit"))?)
}

fn journal(host: &mut Host, address: &str) -> Result<Journal> {
    Journal::read(|priority| host.sh(&visits::fetch(address, &format!("journal?{priority}"))))
}

/// AppArmor keeps its QEMU to what it needs.
fn is_confined(host: &mut Host) -> Result<()> {
    let label = host.sh(&format!("cat /proc/$(cat /run/libvirt/qemu/{NAME}.pid)/attr/current"))?;
    let label = label.trim();
    ensure!(
        label.starts_with("libvirt-") && label.contains("enforce"),
        "AppArmor has domain {NAME} as {label}"
    );
    say(&format!("debian-refresh: AppArmor has domain {NAME} as {label}"));
    Ok(())
}

/// The libvirt of the host that reigns owns it.
fn in_hand(host: &mut Host) -> Result<()> {
    let said = host.sh(&format!(
        "virsh domstate {NAME}; virsh list --all; virsh suspend {NAME} && virsh domstate {NAME}; \
         virsh resume {NAME}; virsh domstate {NAME}; \
         virsh qemu-monitor-command {NAME} '{{\"execute\":\"query-migrate-capabilities\"}}'"
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
    on_its_network(host)
}

/// libvirt of the host that reigns has its network, and it is on that.
fn on_its_network(host: &mut Host) -> Result<()> {
    let said = host.sh(&format!(
        "virsh net-list --name; virsh domiflist {NAME}; ls /sys/class/net/virbr0/brif; ip -brief address show virbr0; \
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
        "domain {NAME} is not on its network:\n{said}"
    );
    say(&format!(
        "debian-refresh: domain {NAME} is on its network by {}",
        taps.join(", ")
    ));
    Ok(())
}
