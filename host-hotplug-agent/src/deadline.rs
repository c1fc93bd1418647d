//! How long to wait: every wait of this program ends.

use std::convert::Infallible;
use std::fmt;
use std::time::{Duration, Instant};

/// When to stop waiting: at a time, as soon as someone here gives up, or at the first of both.
#[derive(Clone, Copy)]
pub struct Deadline<'a> {
    /// None: the time does not matter.
    at: Option<Instant>,
    given_up: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl Deadline<'static> {
    /// So long from now.
    pub fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now().checked_add(limit),
            given_up: None,
        }
    }
}

impl<'a> Deadline<'a> {
    /// However long it takes, but for `given_up`.
    pub fn when(given_up: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            at: None,
            given_up: Some(given_up),
        }
    }

    /// Then, or earlier if `given_up`. It is asked every so often, which costs what the question costs.
    pub fn or_when(self, given_up: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            given_up: Some(given_up),
            ..self
        }
    }

    /// Time left.
    pub fn left(&self) -> Duration {
        self.at
            .map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether no time is left.
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// Whether someone gave up.
    pub fn given_up(&self) -> bool {
        self.given_up.is_some_and(|given_up| given_up())
    }

    /// Looks until it finds something, `every` so often, and once at least. None: it was not there in time.
    ///
    /// # Errors
    /// As `look`, which ends the search.
    pub fn find<T, E>(&self, every: Duration, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if self.passed() || self.given_up() {
                return Ok(None);
            }
            std::thread::sleep(every.min(self.left()));
        }
    }

    /// Whether `so` comes true in time. It is asked `every` so often, and once at least.
    pub fn comes_true(&self, every: Duration, mut so: impl FnMut() -> bool) -> bool {
        let look = || Ok::<_, Infallible>(so().then_some(()));
        matches!(self.find(every, look), Ok(Some(())))
    }
}

impl fmt::Debug for Deadline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deadline in {:?}", self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const LONG: Duration = Duration::from_secs(3600);
    const NONE: Duration = Duration::ZERO;

    #[test]
    fn time_passes_and_people_give_up() {
        let now = Deadline::after(NONE);
        assert!(now.passed() && now.left().is_zero() && !now.given_up());
        let later = Deadline::after(LONG);
        assert!(!later.passed() && later.left() > LONG / 2 && later.left() <= LONG);
        assert!(later.or_when(&|| true).given_up());
        let whenever = Deadline::when(&|| false);
        assert!(!whenever.passed() && !whenever.given_up());
        assert!(!Deadline::after(Duration::MAX).passed(), "no overflow");
    }

    #[test]
    fn it_looks_once_at_least_and_not_for_ever() {
        let looked = Cell::new(0);
        let nth = |n: u32| {
            looked.set(0);
            let looked = &looked;
            move || {
                looked.set(looked.get() + 1);
                looked.get() == n
            }
        };
        assert!(Deadline::after(NONE).comes_true(NONE, nth(1)));
        assert!(!Deadline::after(NONE).comes_true(NONE, nth(2)));
        assert_eq!(looked.get(), 1);
        assert!(Deadline::after(LONG).comes_true(NONE, nth(3)));
        assert!(!Deadline::when(&|| true).comes_true(NONE, nth(2)));
    }

    #[test]
    fn what_is_found_or_goes_wrong_ends_the_search() {
        let broken = Deadline::after(LONG).find(NONE, || Err::<Option<()>, _>("broken"));
        assert_eq!(broken, Err("broken"));
        let found = Deadline::after(NONE).find(NONE, || Ok::<_, &str>(Some(7)));
        assert_eq!(found, Ok(Some(7)));
    }
}
