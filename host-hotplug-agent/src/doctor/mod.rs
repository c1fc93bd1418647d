//! `locum doctor`: is this machine and kernel fit for a refresh, and what is missing?

mod check;
mod firmware;
mod kernel;

use locum_abi::POOL_PIECES;

use crate::config::Config;
use crate::error::{Refusal, listed};
use crate::machine::{Access, CarriedOver, Device};
use crate::preflight::{self, facts::SecureBoot};
use crate::sysroot::{SysRoot, parse_list};
use check::{Check, Verdict};

/// L0's table.
const LOCM: &str = "sys/firmware/acpi/tables/LOCM";

/// All checks.
pub fn examine(sys: &SysRoot, config_dir: &std::path::Path) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(preflight::for_refresh(sys).into_iter().map(Check::from));
    checks.extend(boot_error(sys));
    checks.extend(secure_boot(sys));
    checks.extend(monitor(sys));
    checks.extend(control_registers(sys));
    checks.extend(nodes_without_pool(sys));
    checks.extend(kernel::checks(sys));
    checks.extend(firmware::checks(sys));
    checks.push(configurations(config_dir));
    checks
}

/// Whether nothing is missing.
pub fn fit(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Missing)
}

/// Why L0 started this host without itself, if it did: L0 writes that to the kernel's command line.
fn boot_error(sys: &SysRoot) -> Option<Check> {
    let line = sys.read_optional("proc/cmdline")?;
    let (_, told) = line.split_once("locum.boot_error=\"")?;
    let (told, _) = told.split_once('"').unwrap_or((told, ""));
    Some(Check::bad(
        "boot",
        Verdict::Missing,
        format!("L0 gave up: {told}"),
        "correct what it names, and boot the entry with Locum again",
    ))
}

/// Whether the firmware keeps GRUB from starting L0.
fn secure_boot(sys: &SysRoot) -> Option<Check> {
    let keeps_out = SecureBoot::read(sys) == SecureBoot::On && !sys.exists(LOCM);
    keeps_out.then(|| {
        Check::bad(
            "Secure Boot",
            Verdict::Missing,
            "it is on, and nobody has signed L0: GRUB does not start it",
            "switch it off in the firmware's set-up",
        )
    })
}

fn monitor(sys: &SysRoot) -> Vec<Check> {
    let device = match Device::open(sys, Access::Look) {
        Ok(device) => device,
        Err(refusal) => {
            let name = match refusal {
                Refusal::NoModule | Refusal::NoAccess(_) | Refusal::ModuleFamily { .. } => "module",
                _ => "L0",
            };
            let text = refusal.to_string();
            let (cause, remedy) = text.split_once(": ").unwrap_or((&text, "see `dmesg`"));
            return vec![Check::bad(name, Verdict::Missing, cause, remedy)];
        }
    };
    let (info, header) = (device.info(), device.header());
    let pool: Vec<String> = header
        .pool()
        .map(|piece| format!("{} MiB at {:#x}", piece.size >> 20, piece.start))
        .collect();
    vec![
        Check::ok(
            "module",
            format!("interface family {}, features {:#x}", info.family, info.features),
        ),
        Check::ok(
            "L0",
            format!(
                "family {}, features {:#x}, {} CPUs, image of {} bytes",
                header.family, header.features, header.cpu_count, header.image_bytes
            ),
        ),
        Check::need(
            "pool",
            !pool.is_empty(),
            listed(&pool),
            "give L0 an argument such as pool=25% in the boot loader's entry, and see its log if it has one",
        ),
        Check::need(
            "TSC rate",
            info.tsc_khz > 0,
            format!("{} kHz", info.tsc_khz),
            "the kernel does not know its TSC rate: do not boot with `notsc`",
        ),
    ]
}

/// What only the module can read, for root.
fn control_registers(sys: &SysRoot) -> Option<Check> {
    match Device::open(sys, Access::Control) {
        Ok(device) => Some(preflight::carried_over(&device.carried_over()).into()),
        Err(Refusal::NoAccess(_)) => {
            let why = "run as root, with the locum.ko of this package".to_owned();
            Some(preflight::carried_over(&Ok(CarriedOver::Unknown(why))).into())
        }
        // Told by `monitor`.
        Err(_) => None,
    }
}

/// Nodes of which L0 takes nothing for its pool, since it has no more pieces.
fn nodes_without_pool(sys: &SysRoot) -> Option<Check> {
    let nodes = parse_list(&sys.read_optional("sys/devices/system/node/has_memory")?)?.len();
    (nodes > POOL_PIECES).then(|| {
        Check::bad(
            "NUMA nodes",
            Verdict::Advice,
            format!("{nodes} have memory, and a pool has {POOL_PIECES} pieces at most, one of a node"),
            "keep guests on CPUs of nodes that have a piece (target_node of the pool's devices), or have the firmware \
             make fewer nodes (sub-NUMA clustering off)",
        )
    })
}

fn configurations(dir: &std::path::Path) -> Check {
    const NAME: &str = "configuration";
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        .collect();
    let mut faults = names.iter().filter_map(|name| Config::read(dir, name).err());
    match faults.next() {
        Some(fault) => Check::bad(
            NAME,
            Verdict::Advice,
            fault.to_string(),
            "correct the file before `locum refresh`",
        ),
        None if names.is_empty() => Check::bad(
            NAME,
            Verdict::Advice,
            format!("no successor in {}", dir.display()),
            "`locum refresh --kernel VERSION` needs none; or write NAME.toml: kernel, initramfs, cmdline, cpus, memory, devices, \
             guests",
        ),
        None => Check::ok(NAME, names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_l0_gave_up_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let sys = SysRoot::at(dir.path());
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let line = |text: &str| std::fs::write(dir.path().join("proc/cmdline"), text).unwrap();
        line("root=/dev/sda1 ro\n");
        assert_eq!(boot_error(&sys).map(|check| check.to_string()), None);
        line("locum.boot_error=\"cannot start the host: no room\" root=/dev/sda1 ro\n");
        let check = boot_error(&sys).unwrap();
        assert_eq!(check.verdict, Verdict::Missing);
        assert!(
            check.to_string().contains("L0 gave up: cannot start the host: no room"),
            "{check}"
        );
        assert!(!check.to_string().contains("sda1"), "{check}");
    }

    #[test]
    fn secure_boot_is_told_where_l0_is_missing() {
        let tree = crate::testing::tree::Tree::lab();
        let variable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        tree.put(variable, [6, 0, 0, 0, 0]);
        assert!(secure_boot(&tree.sys()).is_none());
        tree.put(variable, [6, 0, 0, 0, 1]);
        let check = secure_boot(&tree.sys()).unwrap();
        assert_eq!(check.verdict, Verdict::Missing);
        assert!(check.to_string().contains("switch it off"), "{check}");
        // Somebody has signed it.
        tree.put(LOCM, "");
        assert!(secure_boot(&tree.sys()).is_none());
    }

    #[test]
    fn more_nodes_than_pieces_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let sys = SysRoot::at(dir.path());
        let nodes = dir.path().join("sys/devices/system/node");
        std::fs::create_dir_all(&nodes).unwrap();
        let told = |list: &str| {
            std::fs::write(nodes.join("has_memory"), list).unwrap();
            nodes_without_pool(&sys)
        };
        assert!(told("0-15\n").is_none());
        let check = told("0-15,17\n").unwrap();
        assert_eq!(check.verdict, Verdict::Advice);
        assert!(check.to_string().contains("17 have memory"), "{check}");
    }

    #[test]
    fn a_machine_without_anything_gets_a_remedy_for_everything() {
        let dir = tempfile::tempdir().unwrap();
        let checks = examine(&SysRoot::at(dir.path()), dir.path());
        assert!(!fit(&checks));
        let monitor = checks.iter().find(|check| check.name == "L0").unwrap();
        assert_eq!(monitor.verdict, Verdict::Missing);
        assert!(monitor.to_string().contains("multiboot2 /boot/locum-l0"), "{monitor}");
        assert!(
            checks
                .iter()
                .all(|check| (check.verdict == Verdict::Ok) == check.remedy.is_none())
        );
    }
}
