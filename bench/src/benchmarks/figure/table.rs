//! The figure as a table for people.

use std::fmt::Write as _;

use super::{Entry, PAPER, Spread};
use crate::benchmarks::model::Overhead;

/// The table: a line for each set-up, then where its overhead sits and what was measured of it.
#[must_use]
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = format!(
        "{:<14}|{:^61}|{:^25}|{:^9}\n{:<14}|{:>12} {:>17} {:>12} {:>9} {:>7}|{:>25}|{:>9}\n",
        "",
        "counted, per operation",
        "modelled",
        "paper",
        "set-up",
        "instructions",
        "spread",
        "guest exits",
        "L0 exits",
        "more %",
        "more % (low to high)",
        "more %"
    );
    for entry in entries {
        row(&mut text, entry);
    }
    for entry in entries {
        parts(&mut text, entry);
        measured(&mut text, entry);
    }
    text
}

fn row(text: &mut String, entry: &Entry) {
    let Spread { min, max, .. } = entry.instructions_spread;
    let counted = entry
        .counted_overhead_percent
        .map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2}"));
    let modelled = entry.modelled_overhead_percent.map_or_else(|| "-".to_owned(), shown);
    let paper = PAPER
        .iter()
        .find(|(set_up, _)| *set_up == entry.name)
        .map_or_else(String::new, |(_, percent)| format!("{percent:.1}"));
    let _ = writeln!(
        text,
        "{:<14}|{:>12.0} {:>17} {:>12.2} {:>9.2} {counted:>7}|{modelled:>25}|{paper:>9}",
        entry.name.title(),
        entry.instructions_per_op,
        format!("{min:.0}-{max:.0}"),
        entry.guest_exits_per_op,
        entry.l0_exits_per_op,
    );
}

fn shown(Overhead { low, mid, high }: Overhead) -> String {
    format!("{mid:.2} ({low:.2} to {high:.2})")
}

/// Where the overhead of a set-up with somebody below its host sits.
fn parts(text: &mut String, entry: &Entry) {
    let Some(parts) = entry.modelled_parts_percent else {
        return;
    };
    if entry.l0_exits_per_op == 0.0 {
        return;
    }
    let _ = writeln!(
        text,
        "{:<14} modelled, of KVM's cycles: instructions {:.2} %, transitions {:.2}, VMPTRLD {:.2}, VMREAD {:.2}, \
         VMWRITE {:.2}, paging {:.2}, IBPB {:.2}",
        entry.name.title(),
        parts.instructions,
        parts.transitions,
        parts.vmptrld,
        parts.vmread,
        parts.vmwrite,
        parts.paging,
        parts.ibpb
    );
    if let Some((plain, cleared)) = entry.modelled_without_ibpb_percent.zip(entry.modelled_cleared_percent) {
        let _ = writeln!(
            text,
            "{:<14} modelled, more % otherwise: {} with ibpb=off, {} with shadowing=cleared",
            entry.name.title(),
            shown(plain),
            shown(cleared)
        );
    }
}

/// What was measured where time is real.
fn measured(text: &mut String, entry: &Entry) {
    if let (Some(rate), Some(seconds)) = (entry.operations_per_second, entry.seconds) {
        let _ = writeln!(
            text,
            "{:<14} measured: {:.0} operations/s ({:.0} to {:.0}), {seconds:.2} s in all",
            entry.name.title(),
            rate.median,
            rate.min,
            rate.max
        );
    }
}
