//! Makes the headers' text: cbindgen for types and constants, lines of our own for what it can't read.

use std::fmt::Write;
use std::path::Path;

use cbindgen::{
    Builder, Config, DocumentationStyle, EnumConfig, ExportConfig, Language, LayoutConfig, RenameRule, Style,
};

use super::comments::{comment, convert};
use super::names::{CONSTANTS, RUST_ONLY, TYPES, Table, UAPI_TYPES, uapi_constant};
use super::{layout, source};

const MADE: &str = "/* Made by cbindgen from the crate locum-abi; do not edit. See its tests/c_header.rs. */";

/// A header that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// `locum_abi.h`: memory and calls shared with L0.
    Abi,
    /// `locum_uapi.h`: the module's interface to programs.
    Uapi,
}

impl Header {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Abi, Self::Uapi];

    /// Its name in `host-hotplug-agent/kmod`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Abi => "locum_abi.h",
            Self::Uapi => "locum_uapi.h",
        }
    }

    /// Its text.
    pub fn text(self) -> String {
        let text = match self {
            Self::Abi => abi(),
            Self::Uapi => uapi(),
        };
        let mut text = text.replace("\n\n\n", "\n\n");
        while text.contains("\n\n\n") {
            text = text.replace("\n\n\n", "\n\n");
        }
        text
    }
}

/// What cbindgen can't evaluate: byte strings and calls in constants.
fn own_constants() -> String {
    let mut text = String::new();
    let signature = String::from_utf8(locum_abi::LOCM_SIGNATURE.to_vec()).expect("an ASCII signature");
    let mut define = |what: &str, name: &str, value: &str| {
        writeln!(text, "/* {what} */\n#define {name} {value}").expect("write to a string");
    };
    define(
        "Signature of the ACPI table that leads to the header.",
        "LOCUM_ACPI_SIGNATURE",
        &format!("\"{signature}\""),
    );
    define(
        "First word of struct locum_header.",
        "LOCUM_MAGIC",
        &format!("{:#018x}ULL", locum_abi::MAGIC),
    );
    define(
        "First word of struct locum_frame.",
        "LOCUM_FRAME_MAGIC",
        &format!("{:#018x}ULL", locum_abi::frame::FRAME_MAGIC),
    );
    text
}

fn abi() -> String {
    // All sources but the crate's root, which would lead to `uapi`, where the same names mean other things.
    let skip = ["lib.rs", "uapi.rs", "raw.rs"].map(|name| source::root().join(name));
    let files = source::files(&source::root());
    let files = files
        .iter()
        .filter(|file| file.parent() == Some(&source::root()) && !skip.contains(file));
    let body = files.fold(Builder::new(), |builder, file| builder.with_src(file));
    format!(
        "/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */\n#ifndef LOCUM_ABI_H\n#define LOCUM_ABI_H\n\n{MADE}\n\n\
         #ifndef __ASSEMBLY__\n\n#include <linux/types.h>\n\n#define LOCUM_ALIGNED(n) __attribute__((aligned(n)))\n\n{}\
         /* Bytes of a page. */\n#define LOCUM_PAGE_SIZE {}\n\n{}\n{}\n#endif /* __ASSEMBLY__ */\n\n{}\n#endif /* LOCUM_ABI_H */\n",
        own_constants(),
        locum_abi::PAGE_SIZE,
        without_slots_list(&generate(body, TYPES, CONSTANTS)),
        layout::asserts(&layout::abi()),
        layout::offsets(),
    )
}

fn uapi() -> String {
    let root = source::root().join("uapi.rs");
    let about = source::module_docs(&root);
    let mut text = format!(
        "/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */\n{}#ifndef LOCUM_UAPI_H\n#define LOCUM_UAPI_H\n\n\
         {MADE}\n\n#include <linux/ioctl.h>\n#include <linux/types.h>\n\n/* Type of every ioctl of the module. */\n\
         #define LOCUM_IOC '{}'\n\n",
        comment(&about, 0),
        char::from(locum_abi::uapi::IOC),
    );
    for name in ["info", "switch", "call", "memory", "power", "sysfs", "channel"] {
        text += &section(&source::root().join("uapi").join(name).with_extension("rs"));
    }
    text + "#endif /* LOCUM_UAPI_H */\n"
}

/// The part of `locum_uapi.h` that one source makes: types and constants, then ioctls.
fn section(file: &Path) -> String {
    let docs = source::module_docs(file);
    let title = docs.first().expect("a title");
    let dashes = "-".repeat(109_usize.saturating_sub(title.len()));
    let mut text = format!("/* {dashes} {title} --- */\n\n");
    if let Some(about) = docs.get(2..) {
        text += &comment(about, 0);
        text.push('\n');
    }
    text += &generate(Builder::new().with_src(file), UAPI_TYPES, &[]);
    for item in source::items(file) {
        let Some(arguments) = ioctl(&item.value) else { continue };
        text += &comment(&item.docs, 0);
        writeln!(text, "#define {} {arguments}\n", uapi_constant(&item.name)).expect("write to a string");
    }
    text
}

/// `_IOWR(LOCUM_IOC, 0x10, struct locum_switch)` for `iowr::<Switch>(0x10)`.
fn ioctl(value: &str) -> Option<String> {
    let (call, number) = value.strip_suffix(')')?.split_once('(')?;
    let (name, argument) = call.split_once("::<").unwrap_or((call, ""));
    let name = match name {
        "io" => return Some(format!("_IO(LOCUM_IOC, {number})")),
        "ior" => "_IOR",
        "iow" => "_IOW",
        "iowr" => "_IOWR",
        _ => return None,
    };
    let argument = argument.trim_end_matches('>');
    let argument = match UAPI_TYPES.iter().find(|(rust, _)| *rust == argument) {
        Some((_, c)) => format!("struct {c}"),
        None => "__u32".to_owned(),
    };
    Some(format!("{name}(LOCUM_IOC, {number}, {argument})"))
}

fn config(types: Table, constants: Table) -> Config {
    let mut rename: std::collections::HashMap<_, _> = types
        .iter()
        .chain(constants)
        .map(|(rust, c)| (rust.to_string(), c.to_string()))
        .collect();
    if types == UAPI_TYPES {
        let files = source::files(&source::root().join("uapi"));
        let constants = files.iter().flat_map(|file| source::items(file));
        rename.extend(constants.filter(|item| item.kind == "const").map(|item| {
            let c = uapi_constant(&item.name);
            (item.name, c)
        }));
    }
    Config {
        language: Language::C,
        style: Style::Tag,
        no_includes: true,
        tab_width: 8,
        line_length: 120,
        documentation_style: DocumentationStyle::C99,
        layout: LayoutConfig {
            aligned_n: Some("LOCUM_ALIGNED".into()),
            ..LayoutConfig::default()
        },
        enumeration: EnumConfig {
            rename_variants: RenameRule::QualifiedScreamingSnakeCase,
            ..EnumConfig::default()
        },
        export: ExportConfig {
            include: types.iter().map(|(rust, _)| rust.to_string()).collect(),
            exclude: RUST_ONLY
                .iter()
                .filter(|name| !types.iter().any(|(rust, _)| rust == *name))
                .map(|name| (*name).to_owned())
                .collect(),
            rename,
            ..ExportConfig::default()
        },
        ..Config::default()
    }
}

/// Types and constants as kernel sources have them.
fn generate(builder: Builder, types: Table, constants: Table) -> String {
    let bindings = builder
        .with_config(config(types, constants))
        .generate()
        .expect("cbindgen reads the sources");
    let mut bytes = Vec::new();
    bindings.write(&mut bytes);
    let text = String::from_utf8(bytes).expect("cbindgen writes UTF-8");
    let mut kernel = String::new();
    let mut conditional = false;
    for line in text.lines() {
        // An enum of fixed width is C23; the kernel is C11 and stores enums in fields of plain integer type.
        conditional |= line.starts_with("#if __STDC_VERSION__");
        if !conditional {
            kernel.push_str(&tabs(line));
            kernel.push('\n');
        }
        conditional &= !line.starts_with("#endif");
    }
    kernel = convert(&without_per_slot(&kernel));
    for (from, to) in [
        ("\n {\n", " {\n"),
        ("uint8_t", "__u8"),
        ("uint16_t", "__u16"),
        ("uint32_t", "__u32"),
        ("uint64_t", "__u64"),
        ("int32_t", "__s32"),
        ("int64_t", "__s64"),
        (" -1\n", " (-1)\n"),
    ] {
        kernel = kernel.replace(from, to);
    }
    kernel
}

/// cbindgen makes a type definition, which kernel sources avoid, of each use of [`locum_abi::PerSlot`]: its members become
/// plain arrays.
fn without_per_slot(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut arrays = Vec::new();
    for line in text.lines() {
        let definition = line
            .strip_prefix("typedef ")
            .and_then(|rest| rest.split_once(" PerSlot_"));
        if let Some((element, rest)) = definition {
            let (name, length) = rest.split_once('[').expect("an array");
            arrays.push((format!("PerSlot_{name} "), format!("{element} "), format!("[{length}")));
            while lines.last().is_some_and(|line| line.starts_with("//")) {
                lines.pop();
            }
            continue;
        }
        let member = arrays
            .iter()
            .find(|(name, ..)| line.trim_start().starts_with(name.as_str()));
        lines.push(match member {
            Some((name, element, length)) => line.replace(name.as_str(), element).replace(';', length),
            None => line.to_owned(),
        });
    }
    lines.join("\n") + "\n"
}

/// Without the list of slots, which is for Rust.
fn without_slots_list(text: &str) -> String {
    let (before, list) = text
        .split_once("/* Both. */\n#define locum_slot_ALL")
        .expect("the list of slots");
    before.to_owned() + list.split_once('\n').map_or("", |(_, after)| after)
}

/// The line with its indentation as tabs of 8, as kernel sources have it.
fn tabs(line: &str) -> String {
    let body = line.trim_start_matches(' ');
    let depth = line.len() - body.len();
    format!("{}{}{body}", "\t".repeat(depth / 8), " ".repeat(depth % 8))
}
