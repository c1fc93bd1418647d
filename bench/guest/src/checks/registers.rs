//! The thread of each vCPU that holds registers and beats.

use super::guest::Guest;
use super::pace::Pace;
use crate::beat::{Fault, Tally};
use crate::clock::Floor;
use crate::registers::{Features, Image, hold};

/// Beats per round: ~130,000 instructions, so that most of the time passes with the registers held, and yet the clocks
/// are published often.
const BEATS: u64 = 128;

/// Never returns. `publishes`: this thread publishes the clocks.
pub(super) fn work(guest: &Guest<'_>, cpu: u64, publishes: bool) -> ! {
    let features = Features::detect();
    let own_tsc = Floor::default();
    let mut pace = Pace::new(guest.params.duty);
    let mut round = cpu << 48;
    loop {
        let want = Image::draw(guest.seed ^ round, features);
        let got = hold(&want, features, guest.page.beat_counter(), BEATS);
        if let Err(changed) = want.compare(&got) {
            guest.fault(
                Fault::Registers,
                cpu << 32 | changed.register,
                changed.expected,
                changed.found,
            );
        }
        guest.page.add(Tally::RegisterRounds, 1);
        if publishes {
            guest.publish(&own_tsc);
        } else {
            guest.look(&own_tsc);
        }
        round += 1;
        pace.rest(guest);
    }
}
