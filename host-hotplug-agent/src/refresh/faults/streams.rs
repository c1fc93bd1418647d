//! A guest's state that does not arrive whole: the stream ends, stops or goes wrong after each of its parts.

use locum_abi::Slot;

use super::some_of;
use crate::refresh::kills::{ABORTED, Course, GOOD, each};
use crate::refresh::stage::Stage;
use crate::testing::torn::{Then, Torn};
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

/// In a course of events, the state that is sent from there, after so many others.
const SENT: &[(&Course, Slot, usize)] = &[(&GOOD, INCUMBENT, 0), (&GOOD, INCUMBENT, 1), (&ABORTED, SUCCESSOR, 0)];

const THEN: &[Then] = &[Then::Cut, Then::Silence, Then::Damage, Then::Foreign];

/// Where: in and between the chunk's length and checksum, its 16 bytes, and the last chunk, which is empty.
const AT: &[usize] = &[0, 1, 4, 6, 8, 9, 23, 24, 25, 28, 31, 32];

fn tears(number: usize) -> bool {
    let (then, rest) = (THEN[number % THEN.len()], number / THEN.len());
    let (at, rest) = (AT[rest % AT.len()], rest / AT.len());
    let Some(&(course, slot, spared)) = SENT.get(rest) else {
        return false;
    };
    let stage = Stage::new(Behaviour::Boots);
    // For a stream that stops.
    stage.configure("guest_move = 1");
    (course.faults)(&stage);
    stage.world.tear(Torn { slot, spared, at, then });
    stage.begin();
    stage.ends_with(|_| {});
    let what = format!(
        "{}, {then:?} after {at} bytes of what {slot:?} sends, {spared} spared",
        course.name
    );
    assert!(stage.world.has_torn(), "{what}: it was not sent");
    stage.ended(&what);
    let report = stage.reported(&what);
    // A state without its end is none: its guest has not gone over, for whoever sends it must know whether it may have. (With the
    // channels the whole refresh may go.)
    let whole = at >= 32;
    if course.name == GOOD.name && !(whole && then == Then::Cut) {
        let expected = if whole { "retired" } else { "aborted" };
        assert_eq!(report.outcome, expected, "{what}: {report:?}");
    }
    if at == 9 {
        stage.refreshes(&what);
    }
    true
}

#[test]
fn a_stream_may_end_stop_or_go_wrong_after_each_of_its_parts() {
    let all = SENT.len() * AT.len() * THEN.len();
    // All of what may come, and most of the places, in some.
    let some = some_of(0, 5);
    let least = all / some(1).max(1) - 9;
    each(
        |number| tears(some(number)),
        "a stream that does not arrive whole",
        least,
    );
}
