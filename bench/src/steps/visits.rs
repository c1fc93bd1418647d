//! The pages of the stock guest, by which the lab sees that it lives: `bench/guest/stock/setup.sh` has what serves them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

/// Where it serves, if it is the lab's own: its port 80 is the host's port 8080.
pub(crate) const HERE: &str = "127.0.0.1:8080";
/// What the page `journal` ends with.
const JOURNAL_END: &str = "end of journal";

/// What the page `visit` says: it has also left a line on the guest's disk, and read back how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visit {
    /// Which boot of the guest it is.
    pub boot: String,
    /// Hundredths of a second that the guest has been up.
    pub uptime: u64,
    /// Lines of this boot on its disk.
    pub lines: u64,
}

impl Visit {
    /// Reads the page.
    ///
    /// # Errors
    /// It is another page.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let visit = match *words.as_slice() {
            [boot, uptime, lines] if boot.len() == 36 => {
                let uptime = uptime.replace('.', "").parse();
                uptime.ok().zip(lines.parse().ok()).map(|(uptime, lines)| Self {
                    boot: boot.to_owned(),
                    uptime,
                    lines,
                })
            }
            _ => None,
        };
        visit.with_context(|| format!("not what the guest's page says: {text:?}"))
    }

    /// Whether this can be said after `earlier`.
    ///
    /// # Errors
    /// The guest was booted anew, its clock fell back, or its disk lost what was on it.
    pub(crate) fn follows(&self, earlier: &Self) -> Result<()> {
        ensure!(
            self.boot == earlier.boot,
            "the guest is in boot {}, no longer in {}",
            self.boot,
            earlier.boot
        );
        ensure!(
            self.uptime >= earlier.uptime && self.lines > earlier.lines,
            "the guest or its disk fell back: {self:?} after {earlier:?}"
        );
        Ok(())
    }
}

/// What a host's shell runs to look at a page of the guest that serves there (address, or address and port).
#[must_use]
pub(crate) fn fetch(server: &str, page: &str) -> String {
    format!("busybox wget -q -T 20 -O - http://{server}/cgi-bin/{page}")
}

/// A shell command that visits the guest again and again, until the file `until` is there, and prints a line each time:
/// the state of the refresh as this host sees it, and the page or the error.
#[must_use]
pub(crate) fn watch(until: &str) -> String {
    format!(
        "rm -f {until}; while [ ! -e {until} ]; do s=$(cat /sys/kernel/locum/state 2>/dev/null); \
         echo \"${{s:-none}} $({} 2>&1 | head -n 1)\"; sleep 1; done",
        fetch(HERE, "visit")
    )
}

/// The visits that succeeded, in order, each with the state of the refresh in which it began, of what [`watch`]
/// printed.
#[must_use]
pub(crate) fn visits(text: &str) -> Vec<(String, Visit)> {
    text.lines()
        .filter_map(|line| {
            let (state, page) = line.split_once(' ')?;
            Some((state.to_owned(), Visit::parse(page).ok()?))
        })
        .collect()
}

/// The journal of the guest's boot, each text once.
#[derive(Debug)]
pub(crate) struct Journal {
    /// What has priority `err` or above.
    pub errors: BTreeSet<String>,
    /// The errors, and what has priority `warning`.
    pub warnings: BTreeSet<String>,
}

impl Journal {
    /// Of its pages, which `page` gets for a priority.
    ///
    /// # Errors
    /// One is not to be had, or does not end as it should.
    pub(crate) fn read(mut page: impl FnMut(&str) -> Result<String>) -> Result<Self> {
        let mut at = |priority| anyhow::Ok(journal(&page(priority)?)?.into_iter().collect());
        Ok(Self {
            errors: at("err")?,
            warnings: at("warning")?,
        })
    }

    /// Makes sure that no error has come.
    ///
    /// # Errors
    /// It names those that have.
    pub(crate) fn no_error_since(&self, before: &Self) -> Result<()> {
        let new: Vec<_> = self.errors.difference(&before.errors).collect();
        ensure!(
            new.is_empty(),
            "the guest's journal has errors since the refresh: {new:#?}"
        );
        Ok(())
    }
}

fn journal(text: &str) -> Result<Vec<String>> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let end = lines.pop();
    ensure!(
        end.as_deref() == Some(JOURNAL_END),
        "the guest's journal cannot be read:\n{text}"
    );
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn visits_are_told_from_errors() {
        let text = format!(
            "idle {BOOT} 12.34 1\nnested {BOOT} 56.78 2\nhandover wget: can't connect\nnone\nidle {BOOT} 57.00"
        );
        let visits = visits(&text);
        assert_eq!(visits.len(), 2);
        assert_eq!(visits[1].0, "nested");
        assert_eq!((visits[1].1.uptime, visits[1].1.lines), (5678, 2));
        assert!(visits[1].1.follows(&visits[0].1).is_ok());
        assert!(visits[0].1.follows(&visits[1].1).is_err());
    }

    #[test]
    fn another_boot_does_not_follow() {
        let one = Visit::parse(&format!("{BOOT} 12.34 1")).unwrap();
        let other = Visit::parse(&format!("1{} 99.00 9", &BOOT[1..])).unwrap();
        assert!(other.follows(&one).is_err());
        assert!(Visit::parse("404 Not Found").is_err());
    }

    #[test]
    fn a_journal_has_an_end() {
        assert_eq!(journal("a\nb\nend of journal\n").unwrap(), ["a", "b"]);
        assert!(journal("a\n").is_err() && journal("").is_err());
    }
}
