//! Small text files of `/proc` and `/sys` under a root of choice, so that tests can show a machine made of plain files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where `/proc`, `/sys` and `/dev` hang: `/` on a real host, a directory of fixtures in tests.
#[derive(Clone, Debug)]
pub struct SysRoot {
    root: PathBuf,
}

impl Default for SysRoot {
    fn default() -> Self {
        Self::at("/")
    }
}

impl SysRoot {
    /// The tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether it is the root of this very host.
    pub fn is_hosts(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The real path of `path`, which is written without a leading slash.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The file's text without white space at its ends.
    ///
    /// # Errors
    /// As [`fs::read_to_string`], with the path in the message.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let path = self.path(path);
        match fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Err(error) => Err(named(&path, &error)),
        }
    }

    /// The file's text, `None` if it is not there or cannot be read.
    pub fn read_optional(&self, path: impl AsRef<Path>) -> Option<String> {
        self.read(path).ok()
    }

    /// A number as sysfs writes them: decimal, or hexadecimal with `0x`.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn read_number(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        let text = self.read(&path)?;
        parse_number(&text).ok_or_else(|| {
            let path = self.path(&path);
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: `{text}` is no number", path.display()),
            )
        })
    }

    /// Writes `text` to an existing file in one `write`.
    ///
    /// # Errors
    /// As [`fs::write`], with the path in the message.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> io::Result<()> {
        let path = self.path(path);
        let outcome = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        outcome.map_err(|error| named(&path, &error))
    }

    /// Names of the directory's entries, sorted.
    ///
    /// # Errors
    /// As [`fs::read_dir`], with the path in the message.
    pub fn list(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let path = self.path(path);
        let entries = fs::read_dir(&path).map_err(|error| named(&path, &error))?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Whether the path exists.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// Last component of what the symbolic link points to (a driver, for example).
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A decimal number, or a hexadecimal one with `0x`.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A list as the kernel writes sets of CPUs: `0-3,8`. `None` if it is malformed.
pub fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last - first > 0xffff {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_number("0x8000000"), Some(0x800_0000));
        assert_eq!(parse_number("17"), Some(17));
        assert_eq!(parse_number("x"), None);
        assert_eq!(parse_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list(""), Some(vec![]));
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("0-4000000000"), None);
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let error = SysRoot::at("/nowhere").read("sys/thing").unwrap_err();
        assert!(error.to_string().contains("/nowhere/sys/thing"), "{error}");
    }
}
