//! Which VMCS fields a host's VMREADs and VMWRITEs exit for: what VMCS shadowing would have to cover.
//!
//! Every field has two counters; a count that is a power of two goes to the trace ring, so that a host which runs for
//! days leaves a few dozen records.

use core::sync::atomic::{AtomicU32, Ordering};

use locum_abi::Event;

use crate::vmx::field::Field;

static COUNTS: [[AtomicU32; Field::NUMBERS]; 2] = [const { [const { AtomicU32::new(0) }; Field::NUMBERS] }; 2];

/// Counts an access that exited. An event, if it is one of those that leave a record.
pub(crate) fn count(field: Field, write: bool) -> Option<Event> {
    let counts = &COUNTS[usize::from(write)];
    let counter = counts.get(field.number())?;
    let times = counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    times.is_power_of_two().then_some(Event::FieldTrapped {
        field: field.0,
        write,
        times: times.into(),
    })
}
