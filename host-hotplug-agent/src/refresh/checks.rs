//! Machine checks while two hosts share the machine.
//!
//! Most are broadcast: every CPU takes one, whoever runs on it. Linux has its CPUs meet then, and panics if none of them
//! finds an error in a bank (`mce_start()` and `mce_reign()` in arch/x86/kernel/cpu/mce/core.c): without Locum, all CPUs
//! are its own, and there must be one. Here the error may be in a bank of the other host's CPUs; or in one that both share,
//! and the other host has cleared it. So while CPUs of this host are nested each judges what it finds itself: one that
//! finds nothing goes on, and one that finds what it cannot go on with panics, as ever. That is what
//! `mce=0` says to Linux from 5.18 on; the file in sysfs says it to every kernel, and at any time.

use super::Agent;

/// Microseconds that Linux waits for its CPUs to meet; 0: they do not. One value for all CPUs.
const MEETING: &str = "sys/devices/system/machinecheck/machinecheck0/monarch_timeout";

impl Agent {
    /// Has each CPU judge machine checks by itself, from now on until [`Self::checks_as_before`].
    pub fn checks_apart(&self) {
        // Without it, Linux takes no machine checks.
        let Some(now) = self.machine.sys().read_optional(MEETING) else {
            return;
        };
        if now != "0" {
            self.set_meeting("0");
        }
        self.shared.lock().brief.check_meeting.get_or_insert(now);
    }

    /// Once the last CPU of this host is native.
    pub fn checks_as_before(&self) {
        let before = self.shared.lock().brief.check_meeting.clone();
        if let Some(before) = before.filter(|before| before != "0" && !self.is_nested()) {
            self.set_meeting(&before);
        }
    }

    fn set_meeting(&self, value: &str) {
        if let Err(error) = self.machine.sys().write(MEETING, value) {
            tracing::warn!(
                "/{MEETING} cannot be set to {value}: {error}; beside another host, 0 keeps this one from a panic over a \
                 machine check of the other's"
            );
        }
    }
}
