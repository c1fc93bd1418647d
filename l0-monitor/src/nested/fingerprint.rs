//! The check that a host's VMCS is the same after L0 as before (L0's argument `check=vmcs`).
//!
//! A fingerprint over every field is taken before a VMCS is adopted and again when it was given back. Where neither the
//! host wrote to it nor its guest ran in between, they must be equal; what was found goes to the trace ring.

use core::num::NonZero;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::vmx::Hardware;
use crate::vmx::field::{self, Field, PerField};

static ENABLED: AtomicBool = AtomicBool::new(false);
/// The fields that this machine's CPUs have.
static SUPPORTED: PerField<AtomicBool> = PerField([const { AtomicBool::new(false) }; _]);

/// Whether [`SUPPORTED`] is known.
static PROBED: AtomicBool = AtomicBool::new(false);

/// Turns the check on, for the life of L0.
pub(crate) fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether it is on.
pub(crate) fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Finds out which fields the CPU has, by reading the current VMCS, which must be L0's own: a read that fails leaves an
/// error number in it. Once only, since an emulator may log each failure; CPUs that come at the same time find the same.
pub(crate) fn probe(hw: &mut impl Hardware) {
    if PROBED.load(Ordering::Acquire) {
        return;
    }
    for field in Field::all() {
        if hw.vmread(field).is_ok() {
            SUPPORTED[field].store(true, Ordering::Relaxed);
        }
    }
    PROBED.store(true, Ordering::Release);
}

/// A prime, so that two fields never have the same multiple of one difference.
const PRIME: u64 = 0xffff_fffb;

/// A fingerprint of a VMCS: two sums over its fields, modulo [`PRIME`], so that the difference of two tells which field
/// it was. Small, since there is one for each VMCS that may be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Of all values.
    sum: u32,
    /// The same, each value times the [`weight`] of its field; and 1, so that [`Option`] takes no room.
    weighted: NonZero<u32>,
}

impl Fingerprint {
    /// That of the current VMCS.
    pub(crate) fn take(hw: &mut impl Hardware) -> Self {
        let (sum, weighted) = fields().fold((0, 0), |(sum, weighted), field| {
            let value = hw.get(field) % PRIME;
            ((sum + value) % PRIME, (weighted + value * weight(field)) % PRIME)
        });
        Self {
            sum: sum as u32,
            weighted: NonZero::<u32>::MIN.saturating_add(weighted as u32),
        }
    }

    /// How much the sum of all values is above that of `before`, modulo [`PRIME`]: if one field differs, how much more it
    /// holds.
    pub(crate) const fn above(self, before: Self) -> u64 {
        (self.sum as u64 + PRIME - before.sum as u64) % PRIME
    }

    /// The field that differs from `before`, if it is one alone.
    pub(crate) fn field_that_differs(self, before: Self) -> Option<Field> {
        let above = self.above(before);
        let weighted = (u64::from(self.weighted.get()) + PRIME - u64::from(before.weighted.get())) % PRIME;
        if above == 0 {
            return None;
        }
        fields().find(|field| above * weight(*field) % PRIME == weighted)
    }
}

/// The fields that are compared: the CPU's, but for the VM-instruction error, which every VMX instruction may set.
fn fields() -> impl Iterator<Item = Field> {
    Field::all().filter(|field| *field != field::INSTRUCTION_ERROR && SUPPORTED[*field].load(Ordering::Relaxed))
}

/// A number below [`PRIME`] for each field that no other has.
const fn weight(field: Field) -> u64 {
    field.0 as u64 + 1
}
