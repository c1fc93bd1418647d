//! Settings of Linux that are others while CPUs of this host are nested, and afterwards as they were.

use std::collections::BTreeMap;

use locum_abi::CpuMode;

use super::Agent;
use crate::file;

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

/// What they were before, in a file: neither a daemon's death nor the loss of its journal may leave them as they are while nested.
const BEFORE: &str = "run/locum/settings.json";

impl Agent {
    /// Makes them what they are while nested, from now on until [`Self::settings_as_before`].
    pub fn settings_while_nested(&self) {
        let mut before = self.settings_before();
        let sys = self.machine.sys();
        let there = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting, sys.read_optional(setting.file)?)));
        let there: Vec<_> = there.collect();
        for (setting, now) in &there {
            before.entry(setting.file.to_owned()).or_insert_with(|| now.clone());
        }
        if let Err(error) = file::put_json(&sys.path(BEFORE), &before) {
            tracing::warn!("{error:#}: some of Linux's settings may stay as they are while CPUs are nested");
        }
        for (setting, now) in there {
            if now != setting.nested {
                self.set(setting, setting.nested);
            }
        }
    }

    /// Once the last CPU of this host is native.
    pub fn settings_as_before(&self) {
        if self.is_nested() {
            return;
        }
        let before = self.settings_before();
        for setting in &SETTINGS {
            if let Some(value) = before.get(setting.file).filter(|value| *value != setting.nested) {
                self.set(setting, value);
            }
        }
        if let Err(error) = file::remove(&self.machine.sys().path(BEFORE)) {
            tracing::warn!("removing /{BEFORE}: {error}");
        }
    }

    /// None of them if they are now as they were.
    fn settings_before(&self) -> BTreeMap<String, String> {
        let text = self.machine.sys().read_optional(BEFORE);
        let kept = text.and_then(|text| serde_json::from_str(&text).ok());
        // What a daemon of an older release has in its journal.
        kept.unwrap_or_else(|| self.shared.lock().brief.settings.clone())
    }

    fn set(&self, setting: &Setting, value: &str) {
        let Setting { file, or_else, .. } = setting;
        if let Err(error) = self.machine.sys().write(file, value) {
            tracing::warn!("/{file} cannot be set to {value}: {error}; while CPUs are nested, {or_else}");
        }
    }

    /// Whether a CPU of this host is nested, or L0 does not say.
    pub fn is_nested(&self) -> bool {
        self.cpus_in(CpuMode::Nested).map_or(true, |nested| !nested.is_empty())
    }
}
