//! The C header of this crate, `host-hotplug-agent/kmod/locum_abi.h`, is what cbindgen makes of it today.
//!
//! `LOCUM_UPDATE=1 cargo test -p locum-abi` rewrites the header. Two more tests keep C and Rust from drifting apart
//! where cbindgen cannot: no public type or constant may be missing, and the layouts are asserted in C with the offsets
//! that Rust computes.

use std::env;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

mod c_header {
    pub mod generate;
    pub mod layout;
}

fn header_path() -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "..",
        "..",
        "host-hotplug-agent",
        "kmod",
        "locum_abi.h",
    ]
    .iter()
    .collect()
}

#[test]
fn header_is_up_to_date() {
    let path = header_path();
    let made = c_header::generate::header();
    if env::var_os("LOCUM_UPDATE").is_some() {
        fs::write(&path, &made).expect("write the header");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    if let Some(line) = made
        .lines()
        .zip(found.lines().chain(std::iter::repeat("")))
        .position(|(a, b)| a != b)
    {
        panic!(
            "{} differs from the ABI crate at line {}; run LOCUM_UPDATE=1 cargo test -p locum-abi\n made: {}\nfound: {}",
            path.display(),
            line + 1,
            made.lines().nth(line).unwrap_or(""),
            found.lines().nth(line).unwrap_or(""),
        );
    }
    assert_eq!(
        made, found,
        "the checked-in header has lines at its end that the crate does not make"
    );
}

#[test]
fn every_type_and_constant_is_in_the_header() {
    let made = c_header::generate::header();
    let source = [env!("CARGO_MANIFEST_DIR"), "src"].iter().collect::<PathBuf>();
    let mut seen = 0;
    for file in fs::read_dir(source).expect("list the sources") {
        let text = fs::read_to_string(file.expect("a source").path()).expect("read a source");
        for line in text.lines() {
            let item = ["pub struct ", "pub enum ", "pub const "]
                .iter()
                .find_map(|start| line.strip_prefix(start));
            let Some(name) = item.and_then(|rest| rest.split([' ', ':', '(', '<']).next()) else {
                continue;
            };
            if c_header::generate::RUST_ONLY.contains(&name) {
                continue;
            }
            let definition = c_header::generate::definition(name)
                .unwrap_or_else(|| panic!("{name} is missing in the tables of tests/c_header/generate.rs"));
            assert!(
                made.contains(&definition),
                "{name} ({definition}) is missing in the header"
            );
            seen += 1;
        }
    }
    assert!(
        seen >= 40,
        "only {seen} items found: does the scan still match the sources?"
    );
}

#[test]
fn header_compiles_as_c_and_as_assembly() {
    let Ok(compiler) = which_compiler() else {
        eprintln!("no C compiler here (set CC): layout assertions are left to the module's own build");
        return;
    };
    for (language, define) in [("c", "-DLOCUM_C"), ("assembler-with-cpp", "-D__ASSEMBLY__")] {
        let mut child = Command::new(&compiler)
            .args([
                "-std=gnu11",
                "-Wall",
                "-Werror",
                define,
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
        input
            .write_all(c_header::generate::header().as_bytes())
            .expect("write to the compiler");
        drop(input);
        assert!(
            child.wait().expect("wait for the compiler").success(),
            "{compiler} refuses the header as {language}"
        );
    }
}

fn which_compiler() -> Result<String, std::io::Error> {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    Command::new(&compiler).arg("--version").output().map(|_| compiler)
}
