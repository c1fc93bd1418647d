//! What the machine counts while operations run: files of the kernel's that hold numbers.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// Counters by name.
pub type Counters = BTreeMap<String, u64>;

/// Reads a file with a line `NAME VALUE` for each counter (`/sys/kernel/locum/counters`), or a directory with a file
/// for each, named as the counter (`/sys/kernel/debug/kvm`). What is no number is left out, and so are directories
/// inside.
///
/// # Errors
/// The path cannot be read.
pub fn read(path: &Path) -> Result<Counters> {
    let what = || format!("reading counters from {}", path.display());
    if !path.is_dir() {
        return Ok(parse(&fs::read_to_string(path).with_context(what)?));
    }
    let mut counters = Counters::new();
    for entry in fs::read_dir(path).with_context(what)? {
        let entry = entry.with_context(what)?;
        let number = fs::read_to_string(entry.path())
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(number) = number {
            counters.insert(entry.file_name().to_string_lossy().into_owned(), number);
        }
    }
    Ok(counters)
}

fn parse(text: &str) -> Counters {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// What was counted between two readings; without those that stood still.
#[must_use]
pub fn between(before: &Counters, after: &Counters) -> Counters {
    after
        .iter()
        .map(|(name, value)| {
            let old = before.get(name).copied().unwrap_or_default();
            (name.clone(), value.saturating_sub(old))
        })
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_directories_are_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let expected = Counters::from([("exits".into(), 17), ("nmis".into(), 0)]);
        let file = dir.path().join("counters");
        fs::write(&file, "exits 17\nnmis 0\nname of something\n").unwrap();
        assert_eq!(read(&file).unwrap(), expected);
        let inner = dir.path().join("kvm");
        fs::create_dir_all(inner.join("1234-5")).unwrap();
        fs::write(inner.join("exits"), "17\n").unwrap();
        fs::write(inner.join("nmis"), "0\n").unwrap();
        fs::write(inner.join("text"), "no number\n").unwrap();
        assert_eq!(read(&inner).unwrap(), expected);
        assert!(read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn only_what_moved_is_told() {
        let counters = |exits, nmis| Counters::from([("exits".into(), exits), ("nmis".into(), nmis)]);
        assert_eq!(
            between(&counters(17, 3), &counters(20, 3)),
            Counters::from([("exits".into(), 3)])
        );
    }
}
