//! Which VMCS fields a host's VMREADs and VMWRITEs exit for: what VMCS shadowing would have to cover.
//!
//! Every field has two counters; a count that is a power of two goes to the trace ring, so that a host which runs for
//! days leaves a few dozen records.

use core::sync::atomic::{AtomicU32, Ordering};

use locum_abi::Event;

use crate::vmx::field::{Field, PerField};

static READS: PerField<AtomicU32> = PerField([const { AtomicU32::new(0) }; _]);
static WRITES: PerField<AtomicU32> = PerField([const { AtomicU32::new(0) }; _]);

/// Counts an access that exited. An event, if it is one of those that leave a record.
pub(crate) fn count(field: Field, write: bool) -> Option<Event> {
    let counts = if write { &WRITES } else { &READS };
    let times = counts[field].fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    times.is_power_of_two().then_some(Event::FieldTrapped {
        field: field.0,
        write,
        times: times.into(),
    })
}
