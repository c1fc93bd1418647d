//! Where an error ends that L0 cannot go on after.
//!
//! While L0 boots, the boot CPU has a way out that [`crate::boot`] sets here: a server must not be left standing. Later,
//! and on any other CPU, the CPU stops: what it ran is lost, and the rest of the machine goes on.

use spin::Mutex;

use crate::arch::{cpuid, registers};

#[derive(Clone, Copy)]
struct WayOut {
    apic_id: u32,
    go: fn() -> !,
}

static WAY_OUT: Mutex<Option<WayOut>> = Mutex::new(None);

/// From now on an error on this CPU leads to `go`; `None`: to a halt.
pub(crate) fn set_way_out(go: Option<fn() -> !>) {
    let way_out = go.map(|go| WayOut {
        apic_id: cpuid::apic_id(),
        go,
    });
    *WAY_OUT.lock() = way_out;
}

/// Ends what this CPU does, for good; the cause has been logged.
pub fn end() -> ! {
    let way_out = *WAY_OUT.lock();
    match way_out {
        Some(WayOut { apic_id, go }) if apic_id == cpuid::apic_id() => go(),
        _ => registers::halt_forever(),
    }
}
