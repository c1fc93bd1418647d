//! The C compiler of this machine.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};

/// Compiles a text.
///
/// # Panics
/// The compiler refuses it.
pub fn check(language: &str, text: &str) {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("no C compiler here (set CC): the assertions are left to the module's own build");
        return;
    }
    let mut child = Command::new(&compiler)
        .args([
            "-std=gnu11",
            "-Wall",
            "-Werror",
            "-c",
            "-o",
            "/dev/null",
            "-x",
            language,
            "-",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start the compiler");
    let mut input = child.stdin.take().expect("a pipe to the compiler");
    input.write_all(text.as_bytes()).expect("write to the compiler");
    drop(input);
    let status = child.wait().expect("wait for the compiler");
    assert!(status.success(), "{compiler} refuses the text as {language}");
}
