//! What the running kernel must have and how it must have been booted.

use super::check::{Check, Verdict};
use crate::inventory::{indivisible, inside, memory};
use crate::sysroot::SysRoot;
use partitioner::MemoryBlock;

/// Checks of the kernel: hotplug, command line, KVM, pool.
pub fn checks(sys: &SysRoot) -> Vec<Check> {
    let cmdline = sys.read_optional("proc/cmdline").unwrap_or_default();
    vec![
        Check::need(
            "CPU hotplug",
            hotpluggable_cpus(sys) > 0,
            format!("{} CPUs can go offline", hotpluggable_cpus(sys)),
            "use a kernel with CONFIG_HOTPLUG_CPU on a machine with at least two CPUs",
        ),
        Check::need(
            "memory hotplug",
            sys.exists("sys/devices/system/memory/block_size_bytes"),
            if sys.exists("sys/devices/system/memory/block_size_bytes") {
                "there"
            } else {
                "not there"
            },
            "use a kernel with CONFIG_MEMORY_HOTPLUG and CONFIG_MEMORY_HOTREMOVE",
        ),
        movable(sys),
        kernel_place(sys),
        word(
            &cmdline,
            "no_ipi_broadcast=1",
            "an IPI to all CPUs would reach the other host's",
        ),
        word(
            &cmdline,
            "acpi_irq_nobalance",
            "interrupt links would be moved under the other host",
        ),
        kvm(sys),
        dax(sys),
        iommu(sys),
    ]
}

fn hotpluggable_cpus(sys: &SysRoot) -> usize {
    let names = sys.list("sys/devices/system/cpu").unwrap_or_default();
    names
        .iter()
        .filter(|name| sys.exists(format!("sys/devices/system/cpu/{name}/online")))
        .count()
}

fn movable(sys: &SysRoot) -> Check {
    let indivisible = indivisible(sys).unwrap_or_default();
    let blocks = memory::blocks(sys).unwrap_or_default();
    let can_go = |block: &&MemoryBlock| block.removable && !inside(&indivisible, block.range);
    let count = blocks.iter().filter(can_go).count();
    Check::need(
        "movable memory",
        count > 0,
        format!("{count} blocks"),
        "boot with movablecore=SIZE (at least a successor's memory) or movable_node",
    )
}

/// No block goes that Linux would have to cut out below its own image, or below a crash kernel.
fn kernel_place(sys: &SysRoot) -> Check {
    const NAME: &str = "kernel's place";
    let (Ok(indivisible), Ok(blocks)) = (indivisible(sys), memory::blocks(sys)) else {
        return Check::bad(NAME, Verdict::Advice, "not known", "run as root to see /proc/iomem");
    };
    let stuck = blocks
        .iter()
        .filter(|block| block.removable && inside(&indivisible, block.range))
        .count();
    if stuck == 0 {
        return Check::ok(NAME, "below the movable memory");
    }
    Check::bad(
        NAME,
        Verdict::Advice,
        format!("{stuck} movable blocks, below the kernel's image or crash kernel, that stay"),
        "update L0, which keeps the image below 1 GiB; boot without crashkernel=",
    )
}

fn word(cmdline: &str, word: &'static str, why: &str) -> Check {
    let there = cmdline.split_whitespace().any(|candidate| candidate == word);
    let found = if there {
        "on the command line".to_owned()
    } else {
        format!("not on the command line; {why}")
    };
    Check::need(word, there, found, &format!("boot with {word}"))
}

fn kvm(sys: &SysRoot) -> Check {
    if sys.exists("sys/module/kvm_intel") {
        Check::ok("KVM", "kvm_intel is loaded")
    } else {
        Check::bad(
            "KVM",
            Verdict::Advice,
            "kvm_intel is not loaded",
            "`modprobe kvm_intel` before guests are started",
        )
    }
}

fn dax(sys: &SysRoot) -> Check {
    let names = sys.list("sys/bus/dax/devices").unwrap_or_default();
    let sized = names.iter().filter(|name| {
        sys.read_number(format!("sys/bus/dax/devices/{name}/size"))
            .is_ok_and(|size| size > 0)
            && sys.link_name(format!("sys/bus/dax/devices/{name}/driver")).as_deref() == Some("device_dax")
    });
    let ready: Vec<&str> = sized.map(String::as_str).collect();
    if !ready.is_empty() {
        return Check::ok("pool device", ready.join(", "));
    }
    Check::bad(
        "pool device",
        Verdict::Advice,
        "no device-DAX device of a size",
        "boot with dax_hmem.region_idle=1, then `locum pool up` (the unit locum-pool.service does it)",
    )
}

fn iommu(sys: &SysRoot) -> Check {
    let units = sys.list("sys/class/iommu").unwrap_or_default();
    Check::need(
        "IOMMU",
        units.is_empty(),
        if units.is_empty() {
            "not in use".to_owned()
        } else {
            format!("in use: {}", units.join(", "))
        },
        "boot with intel_iommu=off intremap=off: remapping units cannot be split between two hosts yet",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn check<'c>(checks: &'c [Check], name: &str) -> &'c Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_fit_kernel_passes_and_one_that_was_booted_otherwise_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "proc/cmdline",
            "BOOT_IMAGE=/vmlinuz no_ipi_broadcast=1 acpi_irq_nobalance movablecore=640M\n",
        );
        put("sys/devices/system/memory/block_size_bytes", "8000000\n");
        put("sys/devices/system/memory/memory9/valid_zones", "Movable\n");
        put("sys/devices/system/memory/memory9/state", "online\n");
        put(
            "proc/iomem",
            "00a00000-67ffffff : System RAM\n  01000000-023fffff : Kernel code\n",
        );
        put("sys/devices/system/cpu/cpu1/online", "1\n");
        let sys = SysRoot::at(dir.path());
        let good = checks(&sys);
        assert!(super::super::fit(&good), "{good:#?}");
        assert_eq!(check(&good, "KVM").verdict, Verdict::Advice);

        put(
            "proc/iomem",
            "00a00000-67ffffff : System RAM\n  49000000-4a3fffff : Kernel code\n",
        );
        let high = checks(&sys);
        assert_eq!(check(&high, "kernel's place").verdict, Verdict::Advice);
        assert!(check(&high, "kernel's place").found.starts_with("1 movable block"));
        assert_eq!(check(&high, "movable memory").verdict, Verdict::Missing);
        put("proc/cmdline", "quiet no_ipi_broadcast=0\n");
        put("sys/devices/system/memory/memory9/valid_zones", "Normal Movable\n");
        put("sys/class/iommu/dmar0/x", "");
        let bad = checks(&sys);
        for name in ["no_ipi_broadcast=1", "acpi_irq_nobalance", "movable memory", "IOMMU"] {
            assert_eq!(check(&bad, name).verdict, Verdict::Missing, "{name}");
            assert!(check(&bad, name).remedy.is_some());
        }
    }
}
