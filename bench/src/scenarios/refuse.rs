//! What `locum` must refuse, with one clear error, changing nothing.

use anyhow::{Context, Result, ensure};

use crate::{machine::deadline::Span, steps::Run};

/// A change to a good configuration, and a word that the error must contain.
const CASES: &[(&str, &str, &str)] = &[
    ("CPU 0", "s/^cpus = .*/cpus = [0]/", "CPU 0"),
    ("all CPUs", "s/^cpus = .*/cpus = 4/", "CPU"),
    (
        "more memory than can be offlined",
        "s/^memory = .*/memory = \"1900M\"/",
        "memory",
    ),
    (
        "an unknown PCI function",
        "s/^devices = .*/devices = [\"0000:00:1f.7\"]/",
        "0000:00:1f.7",
    ),
    (
        "a missing kernel",
        "s|^kernel = .*|kernel = \"/boot/nothing\"|",
        "/boot/nothing",
    ),
    (
        "a truncated kernel",
        "s|^kernel = .*|kernel = \"/tmp/short\"|",
        "/tmp/short",
    ),
    (
        "a missing initramfs",
        "s|^initramfs = .*|initramfs = \"/boot/nothing\"|",
        "/boot/nothing",
    ),
    ("a malformed file", "s/^cpus = .*/cpus = [2,/", "line"),
    ("an unknown key", "s/^cpus = .*/cpu = 2/", "cpu"),
];

/// All of it, on a host that runs the guest g1.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.progress.step("asking for what must be refused");
    let good = run.successor()?;
    good.install(&mut run.host())?;
    run.sh(&format!("head -c 100000 /boot/vmlinuz-{} > /tmp/short", good.release))?;
    let online =
        run.sh("cat /sys/devices/system/cpu/online /sys/devices/system/memory/memory*/state; ls /sys/bus/pci/devices")?;
    for (what, change, word) in CASES {
        run.sh(&format!(
            "sed '{change}' /etc/locum/{}.toml > /etc/locum/bad.toml",
            good.name
        ))?;
        refused(run, "locum refresh bad", word).with_context(|| format!("a configuration with {what}"))?;
    }
    refused(run, "locum refresh nothing", "nothing").context("a name without a file")?;
    run.sh("sed 's/g1/g9/g' /etc/locum/gen1.toml > /etc/locum/bad.toml")?;
    refused(run, "locum refresh bad", "g9").context("a guest that does not run")?;
    run.sh("setsid qemu-system-x86_64 -name g9 -m 16 -nodefaults -display none -pidfile /run/g9.pid -qmp unix:/run/g9.qmp,server=on,wait=off </dev/null >/dev/null 2>&1 & \
            while [ ! -S /run/g9.qmp ]; do sleep 0.2; done")?;
    refused(run, "locum refresh bad", "not in the pool").context("a guest with RAM elsewhere")?;
    stays_behind(run, &good.name)?;
    let card = good.device.as_deref().context("the plan moves no card")?;
    let link = format!("ip link set $(ls /sys/bus/pci/devices/{card}/net)");
    run.sh(&format!("{link} up"))?;
    // All else is looked at before a guest is shut down.
    let leaving = format!("locum refresh {} --leave g9", good.name);
    refused(run, &leaving, card).context("a network card whose link is up")?;
    run.sh(&format!("{link} down && kill $(cat /run/g9.pid)"))?;
    let after =
        run.sh("cat /sys/devices/system/cpu/online /sys/devices/system/memory/memory*/state; ls /sys/bus/pci/devices")?;
    ensure!(
        online == after,
        "a refused refresh changed something:\nbefore\n{online}\nafter\n{after}"
    );
    run.check_dormant()
}

/// The guest g9, which no configuration names, would end with this host. It has no system that heard a power button.
fn stays_behind(run: &mut Run, good: &str) -> Result<()> {
    let untold = format!("locum refresh {good}");
    refused(run, &untold, "--leave 'g9'").context("a guest that would end with this host")?;
    run.sh(&format!(
        "sed 's/^boot = .*/&\\nshutdown = 2/' /etc/locum/{good}.toml > /etc/locum/bad.toml"
    ))?;
    refused(run, "locum refresh bad --leave g9", "does not shut down").context("a guest that does not shut down")
}

/// One line of error that holds `word`, and a status that is not zero.
fn refused(run: &mut Run, command: &str, word: &str) -> Result<()> {
    let output = run.host().run(command, Span::seconds(600))?;
    ensure!(output.status != 0, "{command} was not refused:\n{}", output.text);
    ensure!(
        output.text.to_lowercase().contains(&word.to_lowercase()),
        "the error of {command} does not name {word:?}:\n{}",
        output.text
    );
    run.check(&format!("refused: {}", output.text.trim()));
    Ok(())
}
