//! What types and constants are called in C.

use std::sync::LazyLock;

use super::source;

/// Names in Rust and in C.
pub type Table = &'static [(&'static str, &'static str)];

/// Types of `locum_abi.h`. All are named to cbindgen, which by itself exports only what a function mentions.
pub const TYPES: Table = &[
    ("SlotInfo", "locum_slot_info"),
    ("PoolPiece", "locum_pool_piece"),
    ("BlankRange", "locum_blank_range"),
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
    ("Will", "locum_will"),
    ("ResourceKind", "locum_resource"),
    ("Slot", "locum_slot"),
    ("Errno", "locum_errno"),
    ("Mailbox", "locum_mailbox"),
    ("ChannelRing", "locum_channel_ring"),
    ("PoolState", "locum_pool_state"),
    ("PoolExtent", "locum_pool_extent"),
    ("TraceKind", "locum_trace_kind"),
    ("TraceRecord", "locum_trace_record"),
    ("TraceRing", "locum_trace_ring"),
    ("KeptRecord", "locum_kept_record"),
    ("KeptRing", "locum_kept_ring"),
    ("LogRing", "locum_log_ring"),
];

/// Constants of `locum_abi.h`, but for those in [`OWN`].
pub const CONSTANTS: Table = &[
    ("FAMILY", "LOCUM_FAMILY"),
    ("FEATURES", "LOCUM_FEATURES"),
    ("HEADER_MIN", "LOCUM_HEADER_MIN"),
    ("FIRST_CPU_STATUS_SIZE", "LOCUM_FIRST_CPU_STATUS_SIZE"),
    ("FIRST_CPU_CAPACITY", "LOCUM_FIRST_CPU_CAPACITY"),
    ("FIRST_HOST_STATUS_SIZE", "LOCUM_FIRST_HOST_STATUS_SIZE"),
    ("FIRST_TRACE_RECORD_SIZE", "LOCUM_FIRST_TRACE_RECORD_SIZE"),
    ("FIRST_CHANNEL_COUNT", "LOCUM_FIRST_CHANNEL_COUNT"),
    ("FIRST_CHANNEL_RING_SIZE", "LOCUM_FIRST_CHANNEL_RING_SIZE"),
    ("FIRST_STATUS_HOSTS", "LOCUM_FIRST_STATUS_HOSTS"),
    ("FIRST_STATUS_CPUS", "LOCUM_FIRST_STATUS_CPUS"),
    ("CHANNEL_DATA", "LOCUM_CHANNEL_DATA"),
    ("MAX_CPUS", "LOCUM_MAX_CPUS"),
    ("POOL_PIECES", "LOCUM_POOL_PIECES"),
    ("BLANK_RANGES", "LOCUM_BLANK_RANGES"),
    ("POOL_EXTENTS", "LOCUM_POOL_EXTENTS"),
    ("POOL_GRAIN", "LOCUM_POOL_GRAIN"),
    ("POOL_NAME", "LOCUM_POOL_NAME"),
    ("POOL_SEEN", "LOCUM_POOL_SEEN"),
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
    ("KEPT_RECORDS", "LOCUM_KEPT_RECORDS"),
    ("BEING_WRITTEN", "LOCUM_BEING_WRITTEN"),
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

/// Constants that cbindgen can't evaluate: lines of our own define them.
pub const OWN: Table = &[
    ("LOCM_SIGNATURE", "LOCUM_ACPI_SIGNATURE"),
    ("MAGIC", "LOCUM_MAGIC"),
    ("FRAME_MAGIC", "LOCUM_FRAME_MAGIC"),
];

/// Types of `locum_uapi.h`.
pub const UAPI_TYPES: Table = &[
    ("Info", "locum_info"),
    ("Switch", "locum_switch"),
    ("Cycle", "locum_cycle"),
    ("Call", "locum_call"),
    ("Range", "locum_range"),
    ("PowerPolicy", "locum_power_policy"),
    ("TextKind", "locum_text_kind"),
    ("Text", "locum_text"),
    ("Request", "locum_request"),
];

/// What is for Rust alone: values that C never holds, only their encodings.
pub const RUST_ONLY: &[&str] = &[
    "PerSlot",
    "Grant",
    "Call",
    "Event",
    "ADDRESS_SPACE_END",
    "GRANTABLE_PINS",
    "GRANTABLE_FUNCTIONS",
    "Need",
    "NEEDS",
    "HeaderError",
    "Array",
    "Layout",
    "KEPT_KINDS",
    "StateWord",
];

fn find(table: Table, rust: &str) -> Option<String> {
    table
        .iter()
        .find(|(name, _)| *name == rust)
        .map(|(_, c)| (*c).to_owned())
}

/// Name of a constant of `locum_uapi.h`.
pub fn uapi_constant(rust: &str) -> String {
    format!("LOCUM_{rust}")
}

/// How its header defines a type or constant; `None` if the tables above lack it.
pub fn definition(rust: &str, in_uapi: bool) -> Option<String> {
    if in_uapi {
        return Some(match find(UAPI_TYPES, rust) {
            Some(c) => format!(" {c} {{"),
            None if rust.contains(char::is_lowercase) => return None,
            None => format!("#define {} ", uapi_constant(rust)),
        });
    }
    let constant = || find(CONSTANTS, rust).or_else(|| find(OWN, rust));
    find(TYPES, rust)
        .map(|c| format!(" {c} {{"))
        .or_else(|| constant().map(|c| format!("#define {c} ")))
}

/// What C calls what a link of the documentation names.
pub fn in_c(link: &str) -> String {
    let parts: Vec<_> = link
        .split("::")
        .filter(|part| !["crate", "super", "Self"].contains(part))
        .collect();
    match *parts.as_slice() {
        [name] => simple(name),
        [module, name] if module.starts_with(char::is_lowercase) => simple(name),
        [name, member] => of_type(name, member),
        _ => None,
    }
    .unwrap_or_else(|| format!("`{}`", parts.join("::")))
}

fn simple(name: &str) -> Option<String> {
    static ITEMS: LazyLock<Vec<source::Item>> = LazyLock::new(|| {
        let files = source::files(&source::root());
        files.iter().flat_map(|file| source::items(file)).collect()
    });
    let constant = || find(CONSTANTS, name).or_else(|| find(OWN, name));
    if let Some(tag) = type_of(name) {
        let item = ITEMS.iter().find(|item| item.name == name && item.kind != "const")?;
        return Some(format!("{} {tag}", item.kind));
    }
    if let Some(c) = constant() {
        return Some(c);
    }
    if source::root().join(name).with_extension("rs").exists() {
        return Some(format!("`{name}.rs` of the crate"));
    }
    ITEMS
        .iter()
        .any(|item| item.name == name && item.kind == "const" && !RUST_ONLY.contains(&name))
        .then(|| uapi_constant(name))
}

fn type_of(rust: &str) -> Option<String> {
    find(TYPES, rust).or_else(|| find(UAPI_TYPES, rust))
}

fn of_type(rust: &str, member: &str) -> Option<String> {
    let tag = type_of(rust)?;
    if member.starts_with(char::is_lowercase) {
        return Some(format!("{tag}.{member}"));
    }
    let mut variant = tag.to_uppercase();
    for letter in member.chars() {
        if letter.is_uppercase() {
            variant.push('_');
        }
        variant.push(letter.to_ascii_uppercase());
    }
    Some(variant)
}
