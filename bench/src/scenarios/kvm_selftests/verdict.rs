//! What a test came to, read from its exit status and what it wrote.

use std::fmt;

/// Exit status of a test that cannot run here (`KSFT_SKIP` in Linux `tools/testing/selftests/kselftest.h`).
const SKIP: i32 = 4;
/// What a shell makes of SIGKILL, with which a test ends that is out of time.
const KILLED: i32 = 128 + 9;
/// What comes before an assertion that does not hold (Linux `tools/testing/selftests/kvm/lib/assert.c`).
const ASSERTION: &str = "==== Test Assertion Failure ====";

/// What a test came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that it looks at is so.
    Pass(Parts),
    /// Something that it needs is not there.
    Skip,
    /// Something is not so.
    Fail {
        /// Its exit status; 128 + signal number if a signal ended it.
        status: i32,
        /// `FILE:LINE` of the assertion that does not hold, if it told one.
        place: Option<String>,
        /// Its parts.
        parts: Parts,
    },
    /// It was killed when its time was up.
    OutOfTime,
}

/// Lines `ok ...` and `not ok ...` (the Test Anything Protocol) of a test that is made of several.
pub(super) type Parts = Vec<String>;

impl Verdict {
    /// From the exit status that a shell saw, and the text.
    #[must_use]
    pub(super) fn of(status: i32, text: &str) -> Self {
        match status {
            0 => Self::Pass(parts(text)),
            SKIP => Self::Skip,
            KILLED => Self::OutOfTime,
            status => Self::Fail {
                status,
                place: place(text),
                parts: parts(text),
            },
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(_) => write!(f, "pass"),
            Self::Skip => write!(f, "skip"),
            Self::OutOfTime => write!(f, "out of time"),
            Self::Fail { status, place, .. } => {
                write!(f, "fail, status {status}")?;
                place.iter().try_for_each(|place| write!(f, ", {place}"))
            }
        }
    }
}

fn parts(text: &str) -> Parts {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "))
        .map(str::to_owned)
        .collect()
}

fn place(text: &str) -> Option<String> {
    let (_, after) = text.split_once(ASSERTION)?;
    let line = after.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.splitn(3, ':').take(2).collect::<Vec<_>>().join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSERTED: &str = "Random seed: 0x6b8b4567\n==== Test Assertion Failure ====\n  x86_64/state_test.c:88: a == b\n  \
                            pid=9 tid=9 errno=0 - Success\n";

    #[test]
    fn a_status_is_a_verdict() {
        assert_eq!(Verdict::of(0, "fine\n"), Verdict::Pass(vec![]));
        assert_eq!(Verdict::of(4, "1..0 # SKIP - no AMX\n"), Verdict::Skip);
        assert_eq!(Verdict::of(137, ""), Verdict::OutOfTime);
        let failed = Verdict::of(254, ASSERTED);
        assert_eq!(failed.to_string(), "fail, status 254, x86_64/state_test.c:88");
        assert_eq!(Verdict::of(139, "").to_string(), "fail, status 139");
    }

    #[test]
    fn another_place_status_or_part_is_another_verdict() {
        let failed = Verdict::of(254, ASSERTED);
        assert_eq!(
            failed,
            Verdict::of(254, &ASSERTED.replace("pid=9 tid=9", "pid=12 tid=13"))
        );
        assert_ne!(failed, Verdict::of(254, &ASSERTED.replace(":88:", ":90:")));
        assert_ne!(failed, Verdict::of(1, ASSERTED));
        let parts = |second| Verdict::of(1, &format!("TAP version 13\n1..2\nok 1 a\n{second} 2 b\n"));
        assert_eq!(parts("ok"), parts("ok"));
        assert_ne!(parts("ok"), parts("not ok"));
        assert_ne!(Verdict::of(0, "ok 1 a"), Verdict::of(0, "ok 1 a # SKIP"));
    }
}
