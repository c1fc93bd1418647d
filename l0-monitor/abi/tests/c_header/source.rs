//! What the crate's sources define at their top level, with its documentation: what cbindgen can't tell.

use std::fs;
use std::path::{Path, PathBuf};

/// A public type or constant.
pub struct Item {
    /// `struct`, `enum` or `const`.
    pub kind: &'static str,
    /// In Rust.
    pub name: String,
    /// Lines of its documentation.
    pub docs: Vec<String>,
    /// What a constant is, up to the semicolon.
    pub value: String,
}

/// The crate's sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All sources below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list the sources") {
        let path = entry.expect("a source").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Documentation of a source itself (`//!`).
pub fn module_docs(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("read a source");
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines
        .map(|line| line.strip_prefix(' ').unwrap_or(line).into())
        .collect()
}

/// Public types and constants of a source, in its order.
pub fn items(file: &Path) -> Vec<Item> {
    let text = fs::read_to_string(file).expect("read a source");
    let mut docs = Vec::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.strip_prefix(' ').unwrap_or(doc).to_owned());
            continue;
        }
        let kind = ["struct", "enum", "const"].into_iter().find_map(|kind| {
            let rest = line.strip_prefix("pub ")?.strip_prefix(kind)?.strip_prefix(' ')?;
            Some((kind, rest)).filter(|_| !rest.starts_with("fn "))
        });
        if let Some((kind, rest)) = kind {
            let name = rest.split([' ', ':', '(', '<']).next().unwrap_or_default();
            let value = rest.split_once(" = ").map_or("", |(_, value)| value);
            found.push(Item {
                kind,
                name: name.to_owned(),
                docs: std::mem::take(&mut docs),
                value: value.trim_end_matches(';').to_owned(),
            });
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    found
}
