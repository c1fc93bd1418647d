//! Makes the header's text: cbindgen for types and constants, lines of our own for what it can't read.

use std::fmt::Write;

use cbindgen::{Builder, Config, EnumConfig, ExportConfig, Language, LayoutConfig, RenameRule, Style};

use super::layout;

/// Types with their names in C. All are named to cbindgen, which by itself exports only what a function mentions.
const TYPES: &[(&str, &str)] = &[
    ("SlotInfo", "locum_slot_info"),
    ("Header", "locum_header"),
    ("CpuMode", "locum_cpu_mode"),
    ("HostState", "locum_host_state"),
    ("StopReason", "locum_stop_reason"),
    ("HostStatus", "locum_host_status"),
    ("CpuStatus", "locum_cpu_status"),
    ("Status", "locum_status"),
    ("TableRegister", "locum_table_register"),
    ("Frame", "locum_frame"),
    ("Op", "locum_op"),
    ("ResourceKind", "locum_resource"),
    ("Slot", "locum_slot"),
    ("Errno", "locum_errno"),
    ("Mailbox", "locum_mailbox"),
    ("ChannelRing", "locum_channel_ring"),
    ("TraceKind", "locum_trace_kind"),
    ("TraceRecord", "locum_trace_record"),
    ("TraceRing", "locum_trace_ring"),
    ("LogRing", "locum_log_ring"),
];

/// Constants with their names in C, but for those in [`own_constants`].
const CONSTANTS: &[(&str, &str)] = &[
    ("REVISION", "LOCUM_REVISION"),
    ("MAX_CPUS", "LOCUM_MAX_CPUS"),
    ("SLOTS", "LOCUM_SLOTS"),
    ("PAGE_SIZE", "LOCUM_PAGE_SIZE"),
    ("EXIT_REASONS", "LOCUM_EXIT_REASONS"),
    ("NO_OWNER", "LOCUM_NO_OWNER"),
    ("OP_MAGIC", "LOCUM_OP_MAGIC"),
    ("NOOP", "LOCUM_MAILBOX_NOOP"),
    ("WAKEUP", "LOCUM_MAILBOX_WAKEUP"),
    ("TEST", "LOCUM_MAILBOX_TEST"),
    ("CHANNEL_COUNT", "LOCUM_CHANNEL_COUNT"),
    ("RING_DATA", "LOCUM_RING_DATA"),
    ("FLAG_EOF", "LOCUM_FLAG_EOF"),
    ("TRACE_RECORDS", "LOCUM_TRACE_RECORDS"),
    ("LOG_BYTES", "LOCUM_LOG_BYTES"),
    ("ES", "LOCUM_SEL_ES"),
    ("CS", "LOCUM_SEL_CS"),
    ("SS", "LOCUM_SEL_SS"),
    ("DS", "LOCUM_SEL_DS"),
    ("FS", "LOCUM_SEL_FS"),
    ("GS", "LOCUM_SEL_GS"),
    ("LDTR", "LOCUM_SEL_LDTR"),
    ("TR", "LOCUM_SEL_TR"),
];

/// Constants that [`own_constants`] writes.
const OWN: &[(&str, &str)] = &[
    ("LOCM_SIGNATURE", "LOCUM_ACPI_SIGNATURE"),
    ("MAGIC", "LOCUM_MAGIC"),
    ("FRAME_MAGIC", "LOCUM_FRAME_MAGIC"),
];

/// What is for Rust alone: values that C never holds, only their encodings.
pub const RUST_ONLY: &[&str] = &["PerSlot", "Grant", "Call", "Event", "ADDRESS_SPACE_END"];

/// How the header defines the type or constant `rust`; `None` if the tables above lack it.
pub fn definition(rust: &str) -> Option<String> {
    let named = |table: &[(&str, &str)]| table.iter().find(|(name, _)| *name == rust).map(|(_, c)| c.to_string());
    let constant = || named(CONSTANTS).or_else(|| named(OWN)).map(|c| format!("#define {c} "));
    named(TYPES).map(|c| format!(" {c} {{")).or_else(constant)
}

/// What cbindgen can't evaluate: byte strings and calls in constants.
fn own_constants() -> String {
    let mut text = String::new();
    let signature = String::from_utf8(locum_abi::LOCM_SIGNATURE.to_vec()).expect("an ASCII signature");
    writeln!(text, "/* Signature of the ACPI table that leads to the header. */").expect("write to a string");
    writeln!(text, "#define LOCUM_ACPI_SIGNATURE \"{signature}\"").expect("write to a string");
    writeln!(text, "/* First word of struct locum_header. */").expect("write to a string");
    writeln!(text, "#define LOCUM_MAGIC {:#018x}ULL", locum_abi::MAGIC).expect("write to a string");
    writeln!(text, "/* First word of struct locum_frame. */").expect("write to a string");
    writeln!(
        text,
        "#define LOCUM_FRAME_MAGIC {:#018x}ULL",
        locum_abi::frame::FRAME_MAGIC
    )
    .expect("write to a string");
    text
}

fn config() -> Config {
    let rename = TYPES
        .iter()
        .chain(CONSTANTS)
        .map(|(rust, c)| (rust.to_string(), c.to_string()));
    Config {
        language: Language::C,
        style: Style::Tag,
        header: Some(
            "/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */\n#ifndef LOCUM_ABI_H\n#define LOCUM_ABI_H"
                .into(),
        ),
        autogen_warning: Some(
            "/* Made by cbindgen from the crate locum-abi; do not edit. See its tests/c_header.rs. */".into(),
        ),
        no_includes: true,
        after_includes: Some(format!(
            "#ifndef __ASSEMBLY__\n\n#include <linux/types.h>\n\n\
             #define LOCUM_ALIGNED(n) __attribute__((aligned(n)))\n\n{}",
            own_constants()
        )),
        trailer: Some(format!(
            "{}\n#endif /* __ASSEMBLY__ */\n\n{}\n#endif /* LOCUM_ABI_H */",
            layout::asserts(),
            layout::offsets()
        )),
        tab_width: 8,
        line_length: 120,
        layout: LayoutConfig {
            aligned_n: Some("LOCUM_ALIGNED".into()),
            ..LayoutConfig::default()
        },
        enumeration: EnumConfig {
            rename_variants: RenameRule::QualifiedScreamingSnakeCase,
            ..EnumConfig::default()
        },
        export: ExportConfig {
            include: TYPES.iter().map(|(rust, _)| rust.to_string()).collect(),
            rename: rename.collect(),
            ..ExportConfig::default()
        },
        ..Config::default()
    }
}

/// The whole header.
pub fn header() -> String {
    let bindings = Builder::new()
        .with_crate(env!("CARGO_MANIFEST_DIR"))
        .with_config(config())
        .generate()
        .expect("cbindgen reads the crate");
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
    kernel = without_per_slot(&kernel);
    for (from, to) in [
        ("\n {\n", " {\n"),
        ("uint8_t", "__u8"),
        ("uint16_t", "__u16"),
        ("uint32_t", "__u32"),
        ("uint64_t", "__u64"),
        ("int64_t", "__s64"),
    ] {
        kernel = kernel.replace(from, to);
    }
    while kernel.contains("\n\n\n") {
        kernel = kernel.replace("\n\n\n", "\n\n");
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
            let comment = lines.iter().rposition(|l| l == "/**").expect("a comment");
            lines.truncate(comment);
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

/// The line with its indentation as tabs of 8, as kernel sources have it.
fn tabs(line: &str) -> String {
    let body = line.trim_start_matches(' ');
    let depth = line.len() - body.len();
    format!("{}{}{body}", "\t".repeat(depth / 8), " ".repeat(depth % 8))
}
