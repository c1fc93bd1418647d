//! A refresh to an installed kernel, without a configuration: all that a file of `/etc/locum` would say is made of this
//! host and of `/etc/default/locum`.
//!
//! It is made as the text of such a file: what a refresh writes down and a restarted daemon reads, and what an operator
//! begins with who wants another one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::prepare::console_port;
use crate::config::{self, Config, Size};
use crate::error::Refusal;
use crate::guest::Hypervisor;
use crate::image;
use crate::journal::ConfigText;
use crate::machine::Machine;
use crate::setup::defaults::{self, Defaults};
use crate::sysroot::{SysRoot, parse_list};

/// CPUs of a successor, if nobody says how many.
const CPUS: &str = "LOCUM_REFRESH_CPUS";
/// Its memory, with a unit or in per cent of this host's.
const MEMORY: &str = "LOCUM_REFRESH_MEMORY";
/// Its kernel's command line.
const CMDLINE: &str = "LOCUM_REFRESH_CMDLINE";
/// PCI functions that it has from the start, such as a network card.
const DEVICES: &str = "LOCUM_REFRESH_DEVICES";
/// I/O ports and IOAPIC pins likewise.
const PORTS: &str = "LOCUM_REFRESH_PORTS";
const PINS: &str = "LOCUM_REFRESH_PINS";
/// Of this host's memory, if nobody says how much.
const USUAL_MEMORY: &str = "25%";
/// What the successor finds as it is here, if it is here.
const CARRY: [&str; 2] = ["etc/locum", "etc/machine-id"];
/// Seconds for a host to power off that stops whatever a distribution runs.
const RETIRE: u64 = 300;

/// Words of this host's command line that the next one does without: they say how this host was booted.
const DROPPED: [&str; 6] = [
    "BOOT_IMAGE",
    "initrd",
    "movablecore",
    "kernelcore",
    "movable_node",
    "locum.boot_error",
];

/// The file.
#[derive(Serialize)]
struct File {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
    cpus: usize,
    memory: String,
    devices: Vec<String>,
    ports: Vec<String>,
    pins: Vec<u32>,
    carry: Vec<PathBuf>,
    guests: Vec<Guest>,
    timeouts: Timeouts,
}

#[derive(Serialize)]
struct Guest {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qmp: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    libvirt: Option<String>,
}

#[derive(Serialize)]
struct Timeouts {
    retire: u64,
}

/// The configuration for the kernel of that version, and its text.
///
/// # Errors
/// If `/etc/default/locum` holds a value that is none, or a guest cannot be found out about.
pub fn config(machine: &dyn Machine, hypervisor: &dyn Hypervisor, version: &str) -> Result<(Config, ConfigText)> {
    image::check_name(version)?;
    let sys = machine.sys();
    if !sys.exists(format!("boot/vmlinuz-{version}")) {
        return Err(image::not_installed(sys, version).into());
    }
    if !image::is_fresh(sys, version) {
        return Err(Refusal::NoImage(version.to_owned()).into());
    }
    let defaults = Defaults::read(sys);
    let given = defaults.get(CMDLINE).map(str::to_owned);
    let running = || cmdline(&sys.read_optional("proc/cmdline").unwrap_or_default(), console(machine));
    let file = File {
        kernel: sys.path(format!("boot/vmlinuz-{version}")),
        initramfs: sys.path(image::path(version)),
        cmdline: given.unwrap_or_else(running),
        cpus: cpus(sys, defaults.get(CPUS))?,
        memory: memory(sys, defaults.get(MEMORY).unwrap_or(USUAL_MEMORY))?,
        devices: words(defaults.get(DEVICES)),
        ports: words(defaults.get(PORTS)),
        pins: pins(defaults.get(PINS))?,
        carry: CARRY
            .into_iter()
            .filter(|path| sys.exists(path))
            .map(|path| sys.path(path))
            .collect(),
        guests: hypervisor.guests_here()?.into_iter().map(guest).collect(),
        timeouts: Timeouts { retire: RETIRE },
    };
    let text = toml::to_string(&file)?;
    // What an error names: the lines are of a text that is no file.
    let path = PathBuf::from(format!("the configuration for {version}"));
    let config = Config::parse(&path, &text)?;
    Ok((config, ConfigText { path, text }))
}

fn pins(text: Option<&str>) -> Result<Vec<u32>> {
    let pins = words(text).into_iter().map(|pin| {
        let number = pin.parse();
        number.with_context(|| format!("`{pin}`, of {PINS} in /{}, is no number of a pin (GSI)", defaults::FILE))
    });
    pins.collect()
}

fn words(text: Option<&str>) -> Vec<String> {
    let words = text.unwrap_or_default().split_whitespace();
    words.map(str::to_owned).collect()
}

fn guest(guest: config::Guest) -> Guest {
    Guest {
        name: guest.name,
        qmp: guest.libvirt.is_none().then_some(guest.qmp),
        libvirt: guest.libvirt,
    }
}

/// The serial console of the host in the other slot, as Linux calls it.
fn console(machine: &dyn Machine) -> Option<&'static str> {
    // Linux arch/x86/include/asm/serial.h.
    match console_port(machine) {
        0x3f8 => Some("ttyS0"),
        0x2f8 => Some("ttyS1"),
        0x3e8 => Some("ttyS2"),
        0x2e8 => Some("ttyS3"),
        _ => None,
    }
}

/// The next host's command line, of this one's. A serial console becomes the one of the slot that it gets.
fn cmdline(running: &str, console: Option<&str>) -> String {
    let words = running.split_whitespace().filter_map(|word| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if DROPPED.contains(&key) {
            return None;
        }
        match value.strip_prefix("ttyS") {
            Some(rest) if key == "console" => {
                let options = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                Some(format!("console={}{options}", console?))
            }
            _ => Some(word.to_owned()),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Half of the CPUs, in whole cores where that leaves any.
fn cpus(sys: &SysRoot, given: Option<&str>) -> Result<usize> {
    if let Some(given) = given {
        return given
            .parse()
            .with_context(|| format!("{CPUS}={given} in /{} is no number of CPUs", defaults::FILE));
    }
    let list = |path: &str| Ok::<_, anyhow::Error>(parse_list(&sys.read(path)?).unwrap_or_default().len());
    let online = list("sys/devices/system/cpu/online")?;
    let threads = list("sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
        .unwrap_or(1)
        .max(1);
    let half = online / 2;
    let whole = half - half % threads;
    Ok(if whole > 0 { whole } else { half.max(1) })
}

fn memory(sys: &SysRoot, wanted: &str) -> Result<String> {
    let wrong = || {
        format!(
            "{MEMORY}={wanted} in /{} is neither a size, such as 8G, nor a part of this host's memory, such as {USUAL_MEMORY}",
            defaults::FILE
        )
    };
    let Some(percent) = wanted.strip_suffix('%') else {
        Size::try_from(wanted.to_owned()).map_err(|_| anyhow::Error::msg(wrong()))?;
        return Ok(wanted.to_owned());
    };
    let percent: u64 = percent.parse().with_context(wrong)?;
    if percent == 0 || percent > 100 {
        bail!(wrong());
    }
    let info = sys.read("proc/meminfo")?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let kilobytes = total.context("/proc/meminfo does not tell how much memory there is")?;
    Ok(format!("{}M", (kilobytes / 100 * percent) >> 10))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use partitioner::{CpuRequest, MemoryRequest};

    use super::super::stage::{Stage, kept};
    use super::super::{Choice, Prepared};
    use super::*;
    use crate::load::cpio;
    use crate::refresh::Wishes;
    use crate::testing::kernel::bzimage;
    use crate::testing::tree::Tree;
    use crate::testing::vm::FakeHypervisor;
    use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

    const VERSION: &str = "6.12.2+deb13-amd64";

    /// A host with two guests, that kernel, and its image.
    fn with_kernel() -> Stage {
        let stage = Stage::new(Behaviour::Boots);
        let tree = stage.machine.tree();
        let kernel = tree.put(format!("boot/vmlinuz-{VERSION}"), bzimage(256 << 10));
        tree.put(format!("lib/modules/{VERSION}/modules.dep"), "");
        let image = tree.put(image::path(VERSION), cpio::pack(&[kernel]).unwrap());
        // Whatever a test puts there afterwards, it is newer.
        let image = fs::File::options().append(true).open(image).unwrap();
        let made = image.metadata().and_then(|image| image.modified()).unwrap();
        image.set_modified(made + Duration::from_secs(3600)).unwrap();
        tree.put(
            "proc/cmdline",
            "root=LABEL=root ro console=ttyS0,115200 movablecore=50%\n",
        );
        tree.put("etc/machine-id", "0123\n");
        tree.put(
            "etc/default/locum",
            "LOCUM_REFRESH_MEMORY=512M\nLOCUM_REFRESH_DEVICES=\"0000:00:03.0\"\nLOCUM_REFRESH_PINS=3\n",
        );
        stage
    }

    #[test]
    fn a_host_goes_to_an_installed_kernel_with_all_its_guests() {
        let stage = with_kernel();
        stage.worker.begin(Choice::Kernel(VERSION)).unwrap();
        let report = stage.wait();
        assert_eq!(
            (report.outcome.as_str(), report.name.as_str()),
            ("retired", VERSION),
            "{report:#?}"
        );
        assert_eq!(kept(&stage.reigns()).outcome, "done");
        for guest in ["one", "two"] {
            assert_eq!(stage.world.runs_in(guest), [SUCCESSOR]);
        }
    }

    #[test]
    fn what_a_file_would_say_is_made_of_this_host() {
        let stage = with_kernel();
        let hypervisor = FakeHypervisor::new(&stage.world, INCUMBENT);
        let (config, text) = config(&*stage.machine, &hypervisor, VERSION).unwrap();
        assert_eq!(config.cmdline, "root=LABEL=root ro console=ttyS1,115200");
        assert_eq!(config.cpus.request(), CpuRequest::Count(2));
        assert_eq!(config.memory.request(), MemoryRequest::Size(512 << 20));
        let devices: Vec<String> = config.devices.iter().map(ToString::to_string).collect();
        assert_eq!(devices, ["0000:00:03.0"]);
        assert_eq!(config.ports, []);
        assert_eq!(config.pins, [partitioner::Gsi(3)]);
        let names: Vec<&str> = config.guests.iter().map(|guest| guest.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(config.carry.iter().any(|path| path.ends_with("etc/machine-id")));
        assert_eq!(config.timeouts.retire.as_secs(), RETIRE);
        // What a daemon reads that is started anew.
        assert_eq!(Config::parse(&text.path, &text.text).unwrap(), config);
    }

    #[test]
    fn a_kernel_or_an_image_that_is_missing_is_told_before_anything_is_done() {
        let refused = |change: &dyn Fn(&Tree)| {
            let stage = with_kernel();
            change(stage.machine.tree());
            let error = stage.worker.begin(Choice::Kernel(VERSION)).unwrap_err();
            stage.intact();
            format!("{error:#}")
        };
        let remove = |tree: &Tree, path: PathBuf| fs::remove_file(tree.path().join(path)).unwrap();
        let told = refused(&|tree| remove(tree, format!("boot/vmlinuz-{VERSION}").into()));
        assert!(told.contains("not installed"), "{told}");
        let told = refused(&|tree| remove(tree, image::path(VERSION)));
        assert!(told.contains(&format!("locum image {VERSION}")), "{told}");
        let told = refused(&|tree| {
            tree.put("etc/default/locum", "LOCUM_REFRESH_MEMORY=half\n");
        });
        assert!(told.contains("such as 8G"), "{told}");
        let told = refused(&|tree| {
            tree.put("etc/default/locum", "LOCUM_REFRESH_DEVICES=eth0\n");
        });
        assert!(told.contains("no PCI address"), "{told}");
        let told = refused(&|tree| {
            tree.put("etc/default/locum", "LOCUM_REFRESH_PINS=ttyS1\n");
        });
        assert!(told.contains("`ttyS1`, of LOCUM_REFRESH_PINS"), "{told}");
        let stage = with_kernel();
        let told = stage.worker.begin(Choice::Kernel("../6")).unwrap_err().to_string();
        assert!(told.contains("no kernel's version"), "{told}");
        let hypervisor = FakeHypervisor::new(&stage.world, INCUMBENT);
        let dir = stage.machine.tree().path().join("etc/locum");
        let plan = Prepared::new(
            &*stage.machine,
            &hypervisor,
            &dir,
            Choice::Kernel(VERSION),
            Wishes::default(),
            vec![],
        );
        assert_eq!(plan.unwrap().name, VERSION);
    }

    #[test]
    fn the_next_hosts_command_line_is_of_this_ones() {
        let line = "BOOT_IMAGE=/vmlinuz root=UUID=1-2 ro console=tty0 console=ttyS0,115200n8 movablecore=50% quiet \
                    locum.generation=1";
        assert_eq!(
            cmdline(line, Some("ttyS1")),
            "root=UUID=1-2 ro console=tty0 console=ttyS1,115200n8 quiet locum.generation=1"
        );
        assert_eq!(cmdline("console=ttyS0 quiet", None), "quiet", "its port is no PC's");
    }

    #[test]
    fn cpus_are_half_of_them_in_whole_cores() {
        let tree = Tree::lab();
        let cpus = |online: &str, siblings: &str, given| {
            tree.put("sys/devices/system/cpu/online", online);
            tree.put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", siblings);
            cpus(&tree.sys(), given).map_err(|error| error.to_string())
        };
        assert_eq!(cpus("0-3", "0", None), Ok(2));
        assert_eq!(cpus("0-9", "0,5", None), Ok(4));
        assert_eq!(cpus("0-1", "0-1", None), Ok(1), "half of a core is better than none");
        assert_eq!(cpus("0", "0", None), Ok(1), "the plan refuses it");
        assert_eq!(cpus("0-3", "0", Some("3")), Ok(3));
        assert!(
            cpus("0-3", "0", Some("all"))
                .unwrap_err()
                .contains("LOCUM_REFRESH_CPUS=all")
        );
    }

    #[test]
    fn memory_is_a_size_or_a_part() {
        let tree = Tree::lab();
        tree.put("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n");
        let memory = |wanted| memory(&tree.sys(), wanted).map_err(|error| error.to_string());
        assert_eq!(memory("25%"), Ok("4000M".to_owned()));
        assert_eq!(memory("8G"), Ok("8G".to_owned()));
        for wrong in ["8", "0%", "101%", "x%", "half"] {
            assert!(memory(wrong).unwrap_err().contains("such as 8G"), "{wrong}");
        }
    }
}
