//! Counters and states for Prometheus, in its text format: what `locum metrics` prints, and node-exporter's textfile collector
//! reads. Names and labels are an interface: README lists them.

mod family;
mod file;

use anyhow::Result;
use strum::VariantArray;

use crate::clock::Clock;
use crate::report::Report;
use crate::status::around::Place;
use crate::status::{DaemonStatus, StatusView};
use crate::units::seconds;
use family::Families;
pub use file::write;

/// Outcomes of a refresh; each is a sample, and one of them is 1.
const OUTCOMES: [&str; 4] = ["running", "done", "aborted", "retired"];

/// What there is to tell of.
pub struct Seen {
    /// The status; none without L0.
    pub view: Option<StatusView>,
    /// Whether the daemon answers.
    pub daemon: bool,
}

/// The metrics. `clock` tells the time at a value of the TSC.
///
/// # Errors
/// If two of them have one name, which is a fault of the program.
pub fn text(seen: &Seen, clock: Option<&Clock>) -> Result<String> {
    let mut all = Families::default();
    all.one(
        "locum_up",
        "Whether there is an L0 below this host.",
        flag(seen.view.is_some()),
    )?;
    all.one("locum_daemon_up", "Whether locum's daemon answers.", flag(seen.daemon))?;
    all.gauge(
        "locum_build_info",
        "The release of the program that wrote this.",
        &["version"],
        [([env!("CARGO_PKG_VERSION")], 1.0)],
    )?;
    if let Some(view) = &seen.view {
        machine(&mut all, view)?;
        if let Some(daemon) = &view.daemon {
            refresh(&mut all, daemon)?;
        }
        if let Some(report) = &view.last_report {
            last_refresh(&mut all, report, clock)?;
        }
    }
    all.text()
}

fn machine(all: &mut Families, view: &StatusView) -> Result<()> {
    all.one(
        "locum_generation",
        "Generation of the reigning host.",
        f64::from(view.generation),
    )?;
    let own = view.own();
    let owner = |slot| match slot {
        Some(slot) if slot == own => "this",
        Some(_) => "other",
        None => "nobody",
    };
    let kinds = ["this", "other", "nobody"]
        .into_iter()
        .flat_map(|owner| ["native", "nested", "parked"].map(|mode| [owner, mode]));
    let counted = kinds.map(|kind| {
        let of_kind = view
            .cpus
            .iter()
            .filter(|cpu| [owner(cpu.owner), cpu.mode.as_str()] == kind);
        (kind, of_kind.count() as f64)
    });
    all.gauge(
        "locum_cpus",
        "CPUs by the host that owns them, and by mode.",
        &["owner", "mode"],
        counted,
    )?;
    let memory = &view.around.memory;
    let owners = [
        ("this", memory.this),
        ("other", memory.other),
        ("pool", memory.pool),
        ("nobody", memory.nobody),
    ];
    let known = owners
        .into_iter()
        .filter_map(|(owner, bytes)| Some(([owner], bytes? as f64)));
    all.gauge("locum_memory_bytes", "Memory by owner.", &["owner"], known)?;
    if let Some(guests) = &view.around.guests {
        let count = |place| guests.iter().filter(|guest| guest.place == place).count() as f64;
        all.gauge(
            "locum_guests",
            "Guests with RAM in the pool by where they are.",
            &["place"],
            Place::VARIANTS
                .iter()
                .map(|place| ([<&str>::from(*place)], count(*place))),
        )?;
    }
    all.counter(
        "locum_l0_exits_total",
        "VM exits that L0 took since boot.",
        view.exits.total,
    )?;
    all.counter(
        "locum_l0_guest_exits_total",
        "Of these, exits of guests, passed on to KVM.",
        view.exits.guest,
    )?;
    all.counter(
        "locum_l0_refusals_total",
        "Requests that L0 refused since boot.",
        view.refusals,
    )
}

fn refresh(all: &mut Families, daemon: &DaemonStatus) -> Result<()> {
    all.one(
        "locum_unreclaimed_bytes",
        "Memory that belongs to nobody after a refresh.",
        daemon.unreclaimed_bytes as f64,
    )?;
    all.one(
        "locum_refresh_running",
        "Whether a refresh runs.",
        flag(daemon.running.is_some()),
    )?;
    all.one(
        "locum_refresh_stuck",
        "Whether a refresh waits for an operator.",
        flag(daemon.course == "stuck"),
    )?;
    if daemon.running.is_none() {
        return Ok(());
    }
    all.one(
        "locum_refresh_actions",
        "Actions of the refresh that runs.",
        daemon.total as f64,
    )?;
    all.one(
        "locum_refresh_actions_done",
        "Actions behind of the refresh that runs.",
        daemon.done as f64,
    )
}

fn last_refresh(all: &mut Families, report: &Report, clock: Option<&Clock>) -> Result<()> {
    all.gauge(
        "locum_last_refresh_outcome",
        "How the last refresh ended, or that it runs: one of these is 1.",
        &["outcome"],
        OUTCOMES.map(|outcome| ([outcome], flag(report.outcome == outcome))),
    )?;
    if report.tsc_khz == 0 {
        return Ok(());
    }
    let times = [
        (
            "locum_last_refresh_start_timestamp_seconds",
            "When it began.",
            report.start,
        ),
        ("locum_last_refresh_end_timestamp_seconds", "When it ended.", report.end),
    ];
    for (name, help, tsc) in times.into_iter().filter(|(.., tsc)| *tsc != 0) {
        if let Some(clock) = clock {
            all.one(name, help, clock.seconds_at(tsc))?;
        }
    }
    let took = |start: u64, end: u64| seconds(end.saturating_sub(start), report.tsc_khz);
    if report.end != 0 {
        all.one(
            "locum_last_refresh_duration_seconds",
            "How long it took.",
            took(report.start, report.end),
        )?;
    }
    let phases = report.phases.iter();
    all.gauge(
        "locum_last_refresh_phase_seconds",
        "How long its phases took.",
        &["phase", "by"],
        phases.map(|phase| ([phase.name.as_str(), &phase.by], took(phase.start, phase.end))),
    )?;
    let moved = report.guests.iter().filter(|guest| guest.moved);
    all.gauge(
        "locum_guest_pause_seconds",
        "How long a guest stood still as it crossed.",
        &["guest"],
        moved.map(|guest| ([guest.name.as_str()], seconds(guest.pause_ticks, report.tsc_khz))),
    )?;
    all.one(
        "locum_last_refresh_losses",
        "Things that did not come back: `locum status` names them.",
        report.losses.len() as f64,
    )
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests;
