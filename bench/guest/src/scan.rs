//! Finds beat pages in memory that a host maps.

use crate::beat::{BeatPage, PAGE_BYTES, PageWords};

/// A beat page and where it lies.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// Offset of the page into the scanned memory, in bytes.
    pub offset: u64,
    /// The page.
    pub page: BeatPage<'a>,
}

/// All beat pages in `pages`, in order of their offset. Pages of guests long gone are among them as long as nobody has
/// overwritten them.
#[must_use]
pub(crate) fn scan(pages: &[PageWords]) -> Vec<Found<'_>> {
    let mut found = Vec::new();
    let mut offset = 0;
    for words in pages {
        if let Some(page) = BeatPage::recognise(words) {
            found.push(Found { offset, page });
        }
        offset += PAGE_BYTES as u64;
    }
    found
}

/// The page of the guest `name`; of several, that of the latest start.
#[must_use]
pub(crate) fn newest<'a>(found: &[Found<'a>], name: &str) -> Option<Found<'a>> {
    found
        .iter()
        .map(|f| (f.page.identity(), f))
        .filter(|(identity, _)| identity.name == name)
        .max_by_key(|(identity, _)| identity.started_ns)
        .map(|(_, f)| *f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::{Identity, PAGE_WORDS};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn pool() -> Vec<PageWords> {
        (0..8).map(|_| [const { AtomicU64::new(0) }; PAGE_WORDS]).collect()
    }

    fn guest(name: &str, started_ns: u64) -> Identity {
        Identity {
            name: name.into(),
            gpa: 0,
            boot_id: 1,
            started_ns,
            buffer_bytes: 0,
        }
    }

    #[test]
    fn pages_are_found_where_they_lie() {
        let pool = pool();
        assert!(scan(&pool).is_empty());
        let _ = BeatPage::create(&pool[2], &guest("g1", 1));
        let _ = BeatPage::create(&pool[7], &guest("g2", 2));
        let found = scan(&pool);
        assert_eq!(found.iter().map(|f| f.offset).collect::<Vec<_>>(), [2 * 4096, 7 * 4096]);
        assert!(newest(&found, "g3").is_none());
    }

    #[test]
    fn of_two_pages_of_one_name_the_later_start_wins() {
        let pool = pool();
        let _ = BeatPage::create(&pool[1], &guest("g1", 5));
        let _ = BeatPage::create(&pool[3], &guest("g1", 4));
        assert_eq!(newest(&scan(&pool), "g1").expect("two exist").offset, 4096);
    }

    #[test]
    fn a_page_torn_apart_is_not_found() {
        let pool = pool();
        let _ = BeatPage::create(&pool[1], &guest("g1", 5));
        pool[1][5].store(99, Ordering::Relaxed);
        assert!(scan(&pool).is_empty());
    }
}
