//! Settings of Linux that are others while CPUs of this host are nested, and afterwards as they were.

use locum_abi::CpuMode;

use super::Agent;
use crate::l0::view;

/// One of them.
struct Setting {
    /// Its file. Where there is none, this kernel has not what it is about.
    file: &'static str,
    /// What it is while nested.
    nested: &'static str,
    /// What may come of it if it cannot be set.
    or_else: &'static str,
}

const SETTINGS: [Setting; 2] = [
    // Linux jumps to a crash kernel before it calls panic notifiers, of which the module's tells L0, unless this is set
    // (`panic()` in kernel/panic.c, `kexec_should_crash()` for an oops).
    Setting {
        file: "sys/module/kernel/parameters/crash_kexec_post_notifiers",
        nested: "Y",
        or_else: "a crash dump may be taken for a living host",
    },
    // Microseconds that Linux waits for its CPUs to meet at a machine check; one value for all CPUs, and 0: they do not.
    //
    // Most checks are broadcast: every CPU takes one, whoever runs on it. Linux has its CPUs meet then, and panics if none
    // of them finds an error in a bank (`mce_start()` and `mce_reign()` in arch/x86/kernel/cpu/mce/core.c): without Locum,
    // all CPUs are its own, and there must be one. Here the error may be in a bank of the other host's CPUs; or in one that
    // both share, and the other host has cleared it. So each judges what it finds itself: one that finds nothing goes on,
    // and one that finds what it cannot go on with panics, as ever. That is what `mce=0` says to Linux from 5.18 on; the
    // file says it to every kernel, and at any time.
    Setting {
        file: "sys/devices/system/machinecheck/machinecheck0/monarch_timeout",
        nested: "0",
        or_else: "a machine check of the other host may end this one",
    },
];

impl Agent {
    /// Makes them what they are while nested, from now on until [`Self::settings_as_before`].
    pub fn settings_while_nested(&self) {
        for setting in &SETTINGS {
            let Some(now) = self.machine.sys().read_optional(setting.file) else {
                continue;
            };
            let differs = now != setting.nested;
            let mut inner = self.shared.lock();
            inner.brief.settings.entry(setting.file.to_owned()).or_insert(now);
            drop(inner);
            if differs {
                self.set(setting, setting.nested);
            }
        }
    }

    /// Once the last CPU of this host is native.
    pub fn settings_as_before(&self) {
        if self.is_nested() {
            return;
        }
        let before = self.shared.lock().brief.settings.clone();
        for setting in &SETTINGS {
            if let Some(value) = before.get(setting.file).filter(|value| *value != setting.nested) {
                self.set(setting, value);
            }
        }
    }

    fn set(&self, setting: &Setting, value: &str) {
        let Setting { file, or_else, .. } = setting;
        if let Err(error) = self.machine.sys().write(file, value) {
            tracing::warn!("/{file} cannot be set to {value}: {error}; while CPUs are nested, {or_else}");
        }
    }

    /// Whether a CPU of this host is nested, or L0 does not say.
    fn is_nested(&self) -> bool {
        let slot = self.machine.facts().slot;
        let nested = |status: Box<locum_abi::Status>| {
            let mut own = view::used(&status).iter().filter(|cpu| view::owner(cpu) == Some(slot));
            own.any(|cpu| cpu.mode == CpuMode::Nested as u32)
        };
        self.machine.status().map_or(true, nested)
    }
}
