//! What an option of QEMU is given: a list of keys and values, or JSON (QEMU `util/keyval.c`, `util/qemu-option.c`).

use serde_json::Value;

/// A key, with dots between nested ones, and its value. The key of a first value without one is empty: each option has its
/// own name for it.
pub type Pair = (String, String);

/// The keys and values of an option's argument.
pub fn pairs(argument: &str) -> Vec<Pair> {
    if argument.starts_with('{')
        && let Some(value) = json(argument)
    {
        let mut out = Vec::new();
        flatten(String::new(), &value, &mut out);
        return out;
    }
    let pair = |(index, part): (usize, &str)| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), plain(value)),
        None if index == 0 => (String::new(), plain(part)),
        // A flag that is on.
        None => (part.to_owned(), "on".to_owned()),
    };
    parts(argument).into_iter().enumerate().map(pair).collect()
}

/// The argument with another value for `key`, if `change` has one.
pub fn with_value(argument: &str, key: &str, change: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    if let (true, Some(Value::Object(mut members))) = (argument.starts_with('{'), json(argument)) {
        let value = members.get_mut(key)?;
        *value = Value::String(change(value.as_str()?)?);
        return Some(Value::Object(members).to_string());
    }
    let mut changed = false;
    let parts = parts(argument).into_iter().map(|part| {
        let value = part
            .split_once('=')
            .filter(|(found, _)| *found == key)
            .map(|(_, value)| plain(value));
        match value.and_then(|value| change(&value)) {
            Some(value) => {
                changed = true;
                format!("{key}={}", value.replace(',', ",,"))
            }
            None => part.to_owned(),
        }
    });
    let argument = parts.collect::<Vec<_>>().join(",");
    changed.then_some(argument)
}

/// A list cut at its commas. Two commas are one in a value, and the parts still have both.
pub fn parts(argument: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut commas = argument.match_indices(',').map(|(at, _)| at).peekable();
    while let Some(comma) = commas.next() {
        if commas.next_if_eq(&(comma + 1)).is_none() {
            parts.push(argument.get(start..comma).unwrap_or_default());
            start = comma + 1;
        }
    }
    parts.push(argument.get(start..).unwrap_or_default());
    parts
}

/// A value of a list as it is meant.
fn plain(value: &str) -> String {
    value.replace(",,", ",")
}

/// QEMU also takes strings in single quotes (`qobject/json-lexer.c`).
fn json(text: &str) -> Option<Value> {
    let strict = serde_json::from_str(text).ok();
    strict.or_else(|| serde_json::from_str(&double_quoted(text)).ok())
}

fn double_quoted(text: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        match (quote, c) {
            (Some('\''), '\'') if escaped => {
                // JSON knows no such escape.
                out.pop();
                out.push(c);
            }
            (Some(_), _) if escaped => out.push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                out.push('"');
            }
            (Some(open), _) if open == c => {
                quote = None;
                out.push('"');
            }
            (Some('\''), '"') => out.push_str("\\\""),
            _ => out.push(c),
        }
        escaped = quote.is_some() && c == '\\' && !escaped;
    }
    out
}

fn flatten(key: String, value: &Value, out: &mut Vec<Pair>) {
    let below = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match value {
        Value::Object(members) => members
            .iter()
            .for_each(|(name, value)| flatten(below(name), value, out)),
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(below(&index.to_string()), value, out);
            }
        }
        Value::String(text) => out.push((key, text.clone())),
        Value::Bool(on) => out.push((key, if *on { "on" } else { "off" }.to_owned())),
        Value::Null => out.push((key, String::new())),
        Value::Number(number) => out.push((key, number.to_string())),
    }
}

/// The groups of a file that `-readconfig` reads, each with the option that it stands for (QEMU `util/qemu-config.c`).
pub fn groups(file: &str) -> Vec<(String, Vec<Pair>)> {
    let mut groups: Vec<(String, Vec<Pair>)> = Vec::new();
    for line in file.lines().map(str::trim) {
        if let Some(group) = line.strip_prefix('[') {
            let name = group.split([' ', '\t', ']']).next().unwrap_or_default();
            groups.push((name.to_owned(), Vec::new()));
        } else if let (Some((key, value)), Some((_, pairs))) = (line.split_once('='), groups.last_mut()) {
            let value = value.trim().trim_matches('"');
            pairs.push((key.trim().to_owned(), value.to_owned()));
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(argument: &str) -> String {
        let pairs = pairs(argument);
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(" ")
    }

    #[test]
    fn lists_are_cut_at_single_commas() {
        assert_eq!(shown("tap,fd=28,vhost=on,id=n0"), "=tap fd=28 vhost=on id=n0");
        assert_eq!(shown("file=/a,,fd=3,if=none"), "file=/a,fd=3 if=none");
        assert_eq!(shown("file=a,,,fd=3"), "file=a, fd=3");
        assert_eq!(shown("a,,b"), "=a,b");
        assert_eq!(shown("socket,id=c,server,path="), "=socket id=c server=on path=");
        assert_eq!(
            shown("stream,addr.type=fd,addr.str=5"),
            "=stream addr.type=fd addr.str=5"
        );
        assert_eq!(shown(""), "=");
    }

    #[test]
    fn a_value_is_changed_where_it_stands() {
        let change = |value: &str| (value == "/a,b").then(|| "/c,d".to_owned());
        let with = |argument: &str| with_value(argument, "mem-path", &change);
        assert_eq!(
            with("file,mem-path=/a,,b,share=on").unwrap(),
            "file,mem-path=/c,,d,share=on"
        );
        assert_eq!(with("{'mem-path':'/a,b'}").unwrap(), r#"{"mem-path":"/c,d"}"#);
        for same in ["file,mem-path=/a,b", "file,path=/a,,b", r#"{"mem-path":1}"#, "{}", ""] {
            assert_eq!(with(same), None, "{same}");
        }
    }

    #[test]
    fn json_is_read_as_qemu_reads_it() {
        assert_eq!(
            shown(r#"{"type":"tap","fds":"34:35","vhost":true}"#),
            "fds=34:35 type=tap vhost=on"
        );
        assert_eq!(
            shown(r#"{"addr":{"type":"fd","str":"5"},"a":[{"b":1},null]}"#),
            "a.0.b=1 a.1= addr.str=5 addr.type=fd"
        );
        assert_eq!(
            shown(r#"{'type':'tap','id':'it\'s "n"','x':"o'k"}"#),
            r#"id=it's "n" type=tap x=o'k"#
        );
        // Not JSON, as for -drive.
        assert_eq!(shown("{a,fd=3"), "={a fd=3");
    }

    #[test]
    fn the_groups_of_a_configuration_file_are_options() {
        let file = "# a guest\n[machine]\n  type = \"q35\"\n\n[netdev \"n0\"]\n  type=\"tap\"\n  fd = \"28\"\n";
        let groups = groups(file);
        assert_eq!(
            groups[0],
            ("machine".to_owned(), vec![("type".to_owned(), "q35".to_owned())])
        );
        assert_eq!((groups[1].0.as_str(), groups[1].1[1].1.as_str()), ("netdev", "28"));
    }
}
