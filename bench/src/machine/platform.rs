//! What the lab's server runs on.

use anyhow::{Result, ensure};

use crate::debian::root::Root;

/// What runs the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Platform {
    /// Bochs, on any machine: it has VMX.
    #[default]
    Bochs,
    /// QEMU's TCG, on any machine: other boards and firmware, no VMX. L0 stays dormant.
    Tcg,
    /// QEMU/KVM with nested VMX; untested.
    Kvm,
}

impl Platform {
    /// Makes sure that it has VMX, without which no host is replaced.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn with_vmx(self) -> Result<()> {
        ensure!(
            self != Self::Tcg,
            "--platform tcg has no VMX, so no CPU can become nested there; leave the option out. \
             `cargo lab test --only bios`, `uefi` and `big` are about that platform, and choose it themselves"
        );
        Ok(())
    }

    /// What gets the Debian trees that a machine takes besides those of its kernels.
    #[must_use]
    pub(crate) fn trees(self) -> &'static [fn() -> Result<Root>] {
        match self {
            Self::Bochs => &[Root::bochs, Root::host],
            Self::Tcg => &[Root::uefi, Root::host],
            Self::Kvm => &[Root::host],
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bochs => "bochs",
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        })
    }
}
