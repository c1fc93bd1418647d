//! Documentation as comments of C: links named as C names them, lines filled anew, no more lines than needed.

use super::names;

/// Columns of a line at most.
const WIDTH: usize = 120;

/// A comment, indented by as many tabs.
pub fn comment(docs: &[String], tabs: usize) -> String {
    let indent = "\t".repeat(tabs);
    let lines = fill(docs, WIDTH - 8 * tabs - 3);
    match lines.as_slice() {
        [] => String::new(),
        [line] if line.len() <= WIDTH - 8 * tabs - 6 => format!("{indent}/* {line} */\n"),
        lines => {
            let body: String = lines
                .iter()
                .map(|line| format!("{indent} * {line}").trim_end().to_owned() + "\n")
                .collect();
            format!("{indent}/*\n{body}{indent} */\n")
        }
    }
}

/// Makes comments of cbindgen's `//` lines.
pub fn convert(text: &str) -> String {
    let mut made = String::new();
    let mut docs = Vec::new();
    let mut tabs = 0;
    for line in text.lines() {
        let body = line.trim_start();
        if let Some(doc) = body.strip_prefix("//") {
            tabs = line.len() - body.len();
            docs.push(doc.strip_prefix(' ').unwrap_or(doc).to_owned());
            continue;
        }
        made += &comment(&std::mem::take(&mut docs), tabs);
        made += line;
        made.push('\n');
    }
    made
}

/// Paragraphs filled to a width. A line that starts with "Errors:" starts anew.
fn fill(docs: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut fresh = true;
    for doc in docs {
        let doc = translate(doc);
        if doc.is_empty() {
            lines.push(String::new());
            fresh = true;
            continue;
        }
        fresh |= doc.starts_with("Errors:");
        for word in doc.split(' ') {
            match lines.last_mut() {
                Some(line) if !fresh && line.len() + 1 + word.len() <= width => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
            fresh = false;
        }
    }
    lines
}

/// Links of rustdoc, with or without their target, as names of C.
fn translate(line: &str) -> String {
    let mut made = String::new();
    let mut rest = line;
    while let Some((before, link)) = rest.split_once("[`") {
        made += before;
        let Some((name, after)) = link.split_once("`]") else {
            rest = link;
            continue;
        };
        let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
        let (name, after) = target.unwrap_or((name, after));
        made += &names::in_c(name);
        rest = after;
    }
    made += rest;
    let made = made.replace(" a enum ", " an enum ");
    match made.strip_prefix("A enum ") {
        Some(rest) => format!("An enum {rest}"),
        None => made,
    }
}
