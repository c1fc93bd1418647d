//! The C headers of this crate, `locum_abi.h` and `locum_uapi.h` in `host-hotplug-agent/kmod`, are what cbindgen makes of
//! it today.
//!
//! `LOCUM_UPDATE=1 cargo test -p locum-abi` rewrites them. More tests keep C and Rust from drifting apart where cbindgen
//! cannot: no public type or constant may be missing, layouts are asserted in C with the offsets that Rust computes, and
//! so are the numbers of ioctls.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use c_header::compiler;
use c_header::generate::Header;
use c_header::{layout, names, source};
use locum_abi::uapi;

mod c_header {
    pub mod comments;
    pub mod compiler;
    pub mod generate;
    pub mod layout;
    pub mod names;
    mod releases;
    pub mod source;
}

fn path(header: Header) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../host-hotplug-agent/kmod")
        .join(header.file())
}

#[test]
fn headers_are_up_to_date() {
    for header in Header::ALL {
        let path = path(header);
        let made = header.text();
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
            made,
            found,
            "{} has lines at its end that the crate does not make",
            path.display()
        );
    }
}

#[test]
fn every_type_and_constant_is_in_a_header() {
    let texts = Header::ALL.map(|header| (header, header.text()));
    let mut seen = 0;
    for file in source::files(&source::root()) {
        let in_uapi = file.starts_with(source::root().join("uapi"));
        let wanted = if in_uapi { Header::Uapi } else { Header::Abi };
        for source::Item { name, .. } in source::items(&file) {
            if !in_uapi && names::RUST_ONLY.contains(&name.as_str()) {
                continue;
            }
            let definition = names::definition(&name, in_uapi)
                .unwrap_or_else(|| panic!("{name} is missing in the tables of tests/c_header/names.rs"));
            assert!(
                texts
                    .iter()
                    .any(|(header, text)| *header == wanted && text.contains(&definition)),
                "{name} ({definition}) is missing in {}",
                wanted.file()
            );
            seen += 1;
        }
    }
    assert!(
        seen >= 80,
        "only {seen} items found: does the scan still match the sources?"
    );
}

#[test]
fn headers_compile_as_c_and_as_assembly() {
    compiler::check("c", &Header::Abi.text());
    let uapi = Header::Uapi.text() + &layout::asserts(&layout::uapi());
    compiler::check("c", &uapi);
    compiler::check(
        "assembler-with-cpp",
        &format!("#define __ASSEMBLY__\n{}", Header::Abi.text()),
    );
}

#[test]
fn c_computes_the_numbers_of_ioctls_that_rust_computes() {
    let numbers = [
        ("IOC_INFO", uapi::IOC_INFO),
        ("IOC_ENTER", uapi::IOC_ENTER),
        ("IOC_LEAVE", uapi::IOC_LEAVE),
        ("IOC_CYCLE", uapi::IOC_CYCLE),
        ("IOC_PING", uapi::IOC_PING),
        ("IOC_GRANT", uapi::IOC_GRANT),
        ("IOC_START", uapi::IOC_START),
        ("IOC_ABORT", uapi::IOC_ABORT),
        ("IOC_WILL", uapi::IOC_WILL),
        ("IOC_MEM_REMOVE", uapi::IOC_MEM_REMOVE),
        ("IOC_MEM_ADD", uapi::IOC_MEM_ADD),
        ("IOC_MEM_WIPE", uapi::IOC_MEM_WIPE),
        ("IOC_POWER_POLICY", uapi::IOC_POWER_POLICY),
        ("IOC_TEXT", uapi::IOC_TEXT),
        ("IOC_LISTEN", uapi::IOC_LISTEN),
        ("IOC_NEXT_REQUEST", uapi::IOC_NEXT_REQUEST),
        ("IOC_BUSY", uapi::IOC_BUSY),
        ("CHAN_SHUTDOWN", uapi::CHAN_SHUTDOWN),
    ];
    let mut c = Header::Uapi.text();
    for (name, number) in numbers {
        writeln!(
            c,
            "_Static_assert({} == {number:#x}, \"{name}\");",
            names::uapi_constant(name)
        )
        .expect("write to a string");
    }
    compiler::check("c", &c);
    let files = source::files(&source::root().join("uapi"));
    let items = files.iter().flat_map(|file| source::items(file));
    for item in items.filter(|item| item.value.starts_with("io")) {
        assert!(
            numbers.iter().any(|(name, _)| *name == item.name),
            "{} is not compared",
            item.name
        );
    }
}
