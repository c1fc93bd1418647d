//! MSRs through `/dev/cpu/N/msr`, which the module `msr` gives to root.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sysroot::SysRoot;

/// IA32_FEATURE_CONTROL.
const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_XAPIC_DISABLE_STATUS.
const XAPIC_DISABLE_STATUS: u32 = 0xbd;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_VMX_BASIC.
const VMX_BASIC: u32 = 0x480;
/// Of IA32_ARCH_CAPABILITIES: there is IA32_XAPIC_DISABLE_STATUS (SDM vol. 4, table 2-2).
const HAS_XAPIC_DISABLE_STATUS: u64 = 1 << 21;

/// Of one CPU; `None` if it has no such MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMsrs {
    /// IA32_FEATURE_CONTROL.
    pub feature_control: Option<u64>,
    /// IA32_VMX_BASIC.
    pub vmx_basic: Option<u64>,
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
        let mut all = Vec::new();
        for &number in cpus {
            let path = format!("dev/cpu/{number}/msr");
            let file = match File::open(sys.path(&path)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Self::Unreadable(format!("no /{path}: `modprobe msr`"));
                }
                Err(error) => return Self::Unreadable(format!("/{path}: {error}; run as root")),
            };
            all.push((number, of_cpu(&file)));
        }
        match all.is_empty() {
            true => Self::Unreadable("no CPU is known".to_owned()),
            false => Self::Read(all),
        }
    }
}

fn of_cpu(file: &File) -> CpuMsrs {
    // The offset is the MSR's number; one that the CPU does not have is an I/O error.
    let read = |msr: u32| {
        let mut bytes = [0; 8];
        let read = file.read_exact_at(&mut bytes, u64::from(msr));
        read.ok().map(|()| u64::from_le_bytes(bytes))
    };
    let told = read(ARCH_CAPABILITIES).is_some_and(|told| told & HAS_XAPIC_DISABLE_STATUS != 0);
    CpuMsrs {
        feature_control: read(FEATURE_CONTROL),
        vmx_basic: read(VMX_BASIC),
        xapic_disable_status: read(XAPIC_DISABLE_STATUS).filter(|_| told),
    }
}
