//! From the command line of a guest's QEMU here to the one on the other host.

/// Options with an argument that do not go along.
const DROPPED: [&str; 3] = ["incoming", "loadvm", "pidfile"];
/// Options without one.
const DROPPED_FLAGS: [&str; 3] = ["S", "daemonize", "only-migratable"];

/// `command` made to wait for a guest's state.
pub fn incoming(command: &[String]) -> Vec<String> {
    let mut words = command.iter();
    let mut out: Vec<String> = words.next().cloned().into_iter().collect();
    while let Some(word) = words.next() {
        let name = word
            .strip_prefix("--")
            .or_else(|| word.strip_prefix('-'))
            .unwrap_or_default();
        if DROPPED.contains(&name) {
            words.next();
        } else if !DROPPED_FLAGS.contains(&name) {
            out.push(word.clone());
        }
    }
    out.extend(["-incoming".to_owned(), "defer".to_owned()]);
    out
}

/// The words of `/proc/PID/cmdline`.
pub fn split(cmdline: &[u8]) -> Vec<String> {
    let words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline).split(|&byte| byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_generation_command_line_does_not_grow() {
        let words =
            split(b"qemu-system-x86_64\0-M\0q35\0-append\0a b\0-S\0-qmp\0unix:/run/one.qmp,server=on\0-daemonize\0");
        assert_eq!(words.len(), 9);
        let once = incoming(&words);
        assert_eq!(
            once.join(" "),
            "qemu-system-x86_64 -M q35 -append a b -qmp unix:/run/one.qmp,server=on -incoming defer"
        );
        assert_eq!(incoming(&once), once);
    }
}
