//! What the firmware lets boot, and the kernel load.

use std::fs;

use crate::sysroot::SysRoot;

/// The variable (UEFI 2.10, 3.3): four bytes of attributes, then one that is 1 if Secure Boot is on.
const VARIABLE: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Secure Boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureBoot {
    /// The firmware is no UEFI.
    Bios,
    /// Off.
    Off,
    /// On.
    On,
    /// The firmware is UEFI and does not tell.
    Unknown,
}

impl SecureBoot {
    /// Reads the variable.
    pub fn read(sys: &SysRoot) -> Self {
        if !sys.exists("sys/firmware/efi") {
            return Self::Bios;
        }
        if !sys.exists("sys/firmware/efi/efivars")
            || sys.list("sys/firmware/efi/efivars").is_ok_and(|all| all.is_empty())
        {
            return Self::Unknown;
        }
        match fs::read(sys.path(VARIABLE)) {
            Ok(bytes) => match bytes.get(4) {
                Some(1) => Self::On,
                Some(_) => Self::Off,
                None => Self::Unknown,
            },
            // A firmware without Secure Boot has no such variable.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::Off,
            Err(_) => Self::Unknown,
        }
    }
}

/// The kernel's lockdown mode: "none", "integrity", "confidentiality".
pub fn lockdown(sys: &SysRoot) -> Option<String> {
    let text = sys.read_optional("sys/kernel/security/lockdown")?;
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    chosen.map(str::to_owned)
}
