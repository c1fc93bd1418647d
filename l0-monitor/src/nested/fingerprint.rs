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

/// A fingerprint of a VMCS: two sums over its fields, so that the difference of two tells which field it was. Small,
/// since there is one for each VMCS that may be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Of all values, each [`folded`] (modulo 2^32).
    sum: u32,
    /// The same, each value times the [`weight`] of its field. One for a sum of 0, so that [`Option`] takes no room.
    weighted: NonZero<u32>,
}

impl Fingerprint {
    /// That of the current VMCS.
    pub(crate) fn take(hw: &mut impl Hardware) -> Self {
        let (sum, weighted) = fields().fold((0_u32, 0_u32), |(sum, weighted), field| {
            let value = folded(hw.get(field));
            (
                sum.wrapping_add(value),
                weighted.wrapping_add(value.wrapping_mul(weight(field))),
            )
        });
        Self {
            sum,
            weighted: NonZero::new(weighted).unwrap_or(NonZero::<u32>::MIN),
        }
    }

    /// How much the sum of all values is above that of `before` (modulo 2^32). If it is one field of 32 bits or fewer
    /// that differs, how much more it holds.
    pub(crate) const fn above(self, before: Self) -> u32 {
        self.sum.wrapping_sub(before.sum)
    }

    /// The field that differs from `before`, if it is one alone.
    pub(crate) fn field_that_differs(self, before: Self) -> Option<Field> {
        let weighted = self.weighted.get().wrapping_sub(before.weighted.get());
        let above = self.above(before);
        if above == 0 {
            return None;
        }
        fields().find(|field| above.wrapping_mul(weight(*field)) == weighted)
    }
}

/// The fields that are compared: the CPU's, but for the VM-instruction error, which every VMX instruction may set.
fn fields() -> impl Iterator<Item = Field> {
    Field::all().filter(|field| *field != field::INSTRUCTION_ERROR && SUPPORTED[*field].load(Ordering::Relaxed))
}

/// A value in 32 bits: the value itself if it has no more, and linear, so that differences stay differences.
const fn folded(value: u64) -> u32 {
    const UPPER: u32 = 0x9e37_79b1;
    (value as u32).wrapping_add(UPPER.wrapping_mul((value >> 32) as u32))
}

/// An odd number for each field, far from those of others (the encoding through the finalizer of MurmurHash3).
const fn weight(field: Field) -> u32 {
    let a = field.0 + 1;
    let b = (a ^ a >> 16).wrapping_mul(0x85eb_ca6b);
    let c = (b ^ b >> 13).wrapping_mul(0xc2b2_ae35);
    c ^ c >> 16 | 1
}
