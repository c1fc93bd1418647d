//! MSRs through `/dev/cpu/N/msr`, which the module `msr` gives to root. It is loaded if it is not there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;

use locum_abi::vmx::NEEDS;
use rustix::io::Errno;

use super::boot;
use crate::sysroot::SysRoot;

/// IA32_FEATURE_CONTROL.
const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_XAPIC_DISABLE_STATUS.
const XAPIC_DISABLE_STATUS: u32 = 0xbd;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// Of IA32_ARCH_CAPABILITIES: there is IA32_XAPIC_DISABLE_STATUS (SDM vol. 4, table 2-2).
const HAS_XAPIC_DISABLE_STATUS: u64 = 1 << 21;

/// Of one CPU; `None` if it has no such MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMsrs {
    /// IA32_FEATURE_CONTROL.
    pub feature_control: Option<u64>,
    /// Those of [`NEEDS`], in their order.
    pub vmx: [Option<u64>; NEEDS.len()],
    /// IA32_XAPIC_DISABLE_STATUS.
    pub xapic_disable_status: Option<u64>,
}

/// Of all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Msrs {
    /// By Linux's number of the CPU.
    Read(Vec<(u32, CpuMsrs)>),
    /// They cannot be read, for this reason.
    Unreadable(String),
}

impl Msrs {
    /// Reads those of the CPUs with these numbers.
    pub fn read(sys: &SysRoot, cpus: &[u32]) -> Self {
        Self::after(sys, cpus, || load(sys))
    }

    /// As [`Self::read`]; `load` is to load the module if it is not there.
    fn after(sys: &SysRoot, cpus: &[u32], load: impl FnOnce() -> Result<(), String>) -> Self {
        let Some(first) = cpus.first() else {
            return Self::Unreadable("no CPU is known".to_owned());
        };
        let first = format!("dev/cpu/{first}/msr");
        if !sys.exists(&first)
            && let Err(why) = load()
        {
            return Self::Unreadable(format!("no /{first}: {why}"));
        }
        let read = cpus.iter().map(|&number| {
            let path = format!("dev/cpu/{number}/msr");
            let msrs = File::open(sys.path(&path)).and_then(|file| of_cpu(&file));
            msrs.map(|msrs| (number, msrs))
                .map_err(|error| why_not(sys, &path, &error))
        });
        read.collect::<Result<_, _>>().map_or_else(Self::Unreadable, Self::Read)
    }
}

/// Loads the module into the kernel that runs.
fn load(sys: &SysRoot) -> Result<(), String> {
    const BY_HAND: &str = "`modprobe msr`";
    if !sys.is_hosts() || !rustix::process::geteuid().is_root() {
        return Err(BY_HAND.to_owned());
    }
    let output = Command::new("modprobe").arg("msr").output();
    let output = output.map_err(|error| format!("modprobe cannot be run ({error}); {BY_HAND}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or("no word").to_owned();
    Err(format!("{BY_HAND} failed ({said}{})", locked_down(sys)))
}

fn why_not(sys: &SysRoot, path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("no /{path}, though the module msr is there: mount /dev as devtmpfs"),
        _ => format!("/{path}: {error}{}; run as root", locked_down(sys)),
    }
}

/// A kernel that Secure Boot has locked down may be why.
fn locked_down(sys: &SysRoot) -> String {
    match boot::lockdown(sys).filter(|mode| mode != "none") {
        Some(mode) => format!("; the kernel is locked down ({mode}), as by Secure Boot"),
        None => String::new(),
    }
}

fn of_cpu(file: &File) -> io::Result<CpuMsrs> {
    // The offset is the MSR's number; one that the CPU does not have is an I/O error.
    let read = |msr: u32| {
        let mut bytes = [0; 8];
        match file.read_exact_at(&mut bytes, u64::from(msr)) {
            Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let told = read(ARCH_CAPABILITIES)?.is_some_and(|told| told & HAS_XAPIC_DISABLE_STATUS != 0);
    let mut vmx = [None; NEEDS.len()];
    for (place, need) in vmx.iter_mut().zip(NEEDS) {
        *place = read(need.msr)?;
    }
    Ok(CpuMsrs {
        feature_control: read(FEATURE_CONTROL)?,
        vmx,
        xapic_disable_status: if told { read(XAPIC_DISABLE_STATUS)? } else { None },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn the_module_is_loaded_where_it_is_not_and_why_not_is_told() {
        let tree = Tree::lab();
        let (sys, put) = (tree.sys(), || tree.put("dev/cpu/0/msr", vec![0; 0x600]));
        let Msrs::Unreadable(why) = Msrs::after(&sys, &[0], || Err("`modprobe msr` failed (no such module)".into()))
        else {
            panic!("there is no file")
        };
        assert_eq!(why, "no /dev/cpu/0/msr: `modprobe msr` failed (no such module)");
        let loaded = Msrs::after(&sys, &[0], || {
            put();
            Ok(())
        });
        assert!(matches!(&loaded, Msrs::Read(all) if all.len() == 1), "{loaded:?}");
        let read = Msrs::after(&sys, &[0], || panic!("it is there"));
        assert_eq!(read, loaded);
        let Msrs::Unreadable(why) = Msrs::read(&sys, &[0, 1]) else {
            panic!("there is no second file")
        };
        assert!(why.contains("dev/cpu/1/msr") && why.contains("devtmpfs"), "{why}");
        // Nothing is loaded for a tree that is not the host's.
        let bare = Tree::lab();
        assert_eq!(
            Msrs::read(&bare.sys(), &[0]),
            Msrs::Unreadable("no /dev/cpu/0/msr: `modprobe msr`".into())
        );
    }

    #[test]
    fn lockdown_is_named() {
        let tree = Tree::lab();
        let denied = || why_not(&tree.sys(), "dev/cpu/0/msr", &io::ErrorKind::PermissionDenied.into());
        assert!(!denied().contains("locked down"));
        tree.put("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        assert!(
            denied().contains("locked down (integrity), as by Secure Boot"),
            "{}",
            denied()
        );
    }
}
