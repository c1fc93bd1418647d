//! The thread that works through the buffer: each page is verified, then written anew.

use super::guest::Guest;
use super::pace::Pace;
use crate::beat::{Fault, PAGE_BYTES, Tally};
use crate::clock::Floor;
use crate::map::Shared;
use crate::pattern::{Damage, Pattern};

/// Never returns.
pub(super) fn work(guest: &Guest<'_>, buffer: &Shared) -> ! {
    let own_tsc = Floor::default();
    let mut pace = Pace::new(guest.params.duty);
    let pattern = |page, generation| Pattern {
        seed: guest.seed,
        page,
        generation,
    };
    // Kept apart from the pages: a page that goes back to an earlier state does not take its expectation along.
    let mut generations = vec![0u32; buffer.pages().len()];
    for (number, page) in (0..).zip(buffer.pages()) {
        pattern(number, 0).fill(page);
        guest.page.beat();
        guest.look(&own_tsc);
    }
    guest.page.set_running();
    loop {
        for ((number, page), generation) in (0..).zip(buffer.pages()).zip(&mut generations) {
            if let Err(damage) = pattern(number, *generation).verify(page) {
                record(guest, number, *generation, damage);
            }
            guest.page.beat();
            *generation = generation.wrapping_add(1);
            pattern(number, *generation).fill(page);
            guest.page.beat();
            guest.page.add(Tally::PagesVerified, 1);
            guest.look(&own_tsc);
            pace.rest(guest);
        }
        guest.page.add(Tally::Passes, 1);
    }
}

fn record(guest: &Guest<'_>, page: u32, generation: u32, damage: Damage) {
    let place = u64::from(page) * PAGE_BYTES as u64;
    match damage {
        Damage::Stale(earlier) => guest.fault(Fault::MemoryStale, place, generation.into(), earlier.into()),
        Damage::Corrupt { word, expected, found } => {
            guest.fault(Fault::MemoryCorrupt, place + 8 * word as u64, expected, found);
        }
    }
}
