//! The check that a host's VMCS is the same after L0 as before (L0's argument `check=vmcs`).
//!
//! A fingerprint over every field is taken before a VMCS is adopted and again when it was given back. Where neither the
//! host wrote to it nor its guest ran in between, they must be equal; what was found goes to the trace ring.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::vmx::Hardware;
use crate::vmx::field::{self, Field, PerField};

static ENABLED: AtomicBool = AtomicBool::new(false);
/// The fields that this machine's CPUs have.
static SUPPORTED: PerField<AtomicBool> = PerField([const { AtomicBool::new(false) }; _]);

/// Turns the check on, for the life of L0.
pub(crate) fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether it is on.
pub(crate) fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Finds out which fields the CPU has, by reading the current VMCS, which must be L0's own: a read that fails leaves an
/// error number in it.
pub(crate) fn probe(hw: &mut impl Hardware) {
    for field in Field::all() {
        if hw.vmread(field).is_ok() {
            SUPPORTED[field].store(true, Ordering::Relaxed);
        }
    }
}

/// A fingerprint of the current VMCS (FNV-1a over encodings and values), never 0.
pub(crate) fn fingerprint(hw: &mut impl Hardware) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for field in Field::all().filter(|field| SUPPORTED[*field].load(Ordering::Relaxed)) {
        if field == field::INSTRUCTION_ERROR {
            continue;
        }
        for word in [u64::from(field.0), hw.get(field)] {
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash | 1
}
