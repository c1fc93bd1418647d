//! The time line of a run's last refresh, drawn as `locum report --svg` draws one.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use timeline::{End, STATES, Timeline, Unit, grouped, millions};

use super::{
    Guest, Phase, Report,
    service::{self, Service},
};

/// Draws the last refresh of a report (`report.json`), or what a client saw of one (`service-N.json`), into an SVG file.
///
/// # Errors
/// There is no report or no refresh in it, or the drawing cannot be written.
pub(crate) fn write(report: &Path, svg: &Path) -> Result<()> {
    let text = fs::read(report).with_context(|| format!("reading {}", report.display()))?;
    let drawn = match serde_json::from_slice::<Service>(&text) {
        Ok(service) => service::draw(&service, "one refresh"),
        Err(_) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report", report.display()))
            .and_then(|read| draw(&read)),
    };
    let drawn = drawn.with_context(|| format!("drawing {}", report.display()))?;
    fs::write(svg, drawn).with_context(|| format!("writing {}", svg.display()))
}

const COUNTED: &str = "Everything here was counted: ticks of the emulated time stamp counter, and VM exits to L0 on all CPUs. Nothing is modelled, \
    and nothing is time on a real server. Columns are stretched.";

/// Draws the last refresh of a report.
fn draw(report: &Report) -> Result<String> {
    let phases = last_refresh(report)?.iter().map(|phase| timeline::Phase {
        name: phase.name.clone(),
        ticks: phase.instructions,
        exits: phase.l0_exits,
    });
    // Guests go over one after the other.
    let mut before = 0;
    let guests = report.guests.iter().map(|guest| {
        let ask = guest.steps.iter().find(|step| step.name == "ask");
        let stop = before + ask.map_or(0, |step| step.instructions);
        before = stop + guest.stopped();
        timeline::Guest {
            name: guest.name.clone(),
            still: Some((stop, guest.pause_instructions)),
            line: stood_still(guest),
        }
    });
    Ok(timeline::draw(&Timeline {
        title: title(report),
        subtitle: subtitle(report),
        phases: phases.collect(),
        guests: guests.collect(),
        unit: Unit::Ticks,
        end: End::Done,
        footnote: COUNTED.to_owned(),
    }))
}

/// The phases of the last refresh that went through.
fn last_refresh(report: &Report) -> Result<&[Phase]> {
    let named = |phases: &[Phase], name| phases.iter().rposition(|phase: &Phase| phase.name == name);
    let [(first, _), .., (last, _)] = STATES;
    let phases = named(&report.phases, last).map(|end| &report.phases[..=end]);
    let phases = phases.and_then(|phases| Some(&phases[named(phases, first)?..]));
    let phases = phases.context("no refresh in it went through")?;
    ensure!(
        phases
            .iter()
            .map(|phase| phase.name.as_str())
            .eq(STATES.iter().map(|(name, _)| *name)),
        "its last refresh has other phases than {first} to {last}"
    );
    Ok(phases)
}

fn title(report: &Report) -> String {
    match report.guests.len() {
        0 => "A host replaced".into(),
        1 => "A host replaced under a running guest".into(),
        2 => "A host replaced under two running guests".into(),
        count => format!("A host replaced under {count} running guests"),
    }
}

fn subtitle(report: &Report) -> String {
    let pair = [report.incumbent.clone(), report.successor.clone()];
    // Reports of earlier labs know the first host and the last.
    let hosts = match report.generation {
        1 if report.hosts.is_empty() => &pair[..],
        _ => &report.hosts[..],
    };
    let host = |generation: u32| match hosts.get(generation as usize) {
        Some(release) => format!("generation {generation}, Linux {release}"),
        None => format!("generation {generation}"),
    };
    let (from, to) = (host(report.generation.saturating_sub(1)), host(report.generation));
    format!("{from} → {to}; {} CPUs, emulated ({})", report.cpus, report.platform)
}

/// A guest's figures, in a line.
fn stood_still(guest: &Guest) -> String {
    let by = match guest.pause_seen_by.as_str() {
        "beats" => "as a watcher outside saw it",
        _ => "by QEMU",
    };
    format!(
        "{}: stood still for {} ticks {by}; from QEMU's stop to its resume {} ({}); {} bytes of RAM copied, {} of state",
        guest.name,
        millions(guest.pause_instructions),
        millions(guest.stopped()),
        guest.told(),
        grouped(guest.ram_bytes_copied),
        grouped(guest.state_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the scenario `three-generations` left, and what was drawn of it.
    const REPORT: &str = include_str!("../../pictures/refresh.json");
    const DRAWN: &str = include_str!("../../pictures/refresh.svg");

    fn report() -> Report {
        serde_json::from_str(REPORT).unwrap()
    }

    #[test]
    fn the_kept_picture_is_what_is_drawn_of_the_kept_report() {
        let drawn = draw(&report()).unwrap();
        assert!(
            drawn == DRAWN,
            "draw it anew: cargo lab picture bench/pictures/refresh.json bench/pictures/refresh.svg"
        );
        assert!(drawn.len() < 12_000, "{} bytes", drawn.len());
    }

    #[test]
    fn states_phases_guests_and_their_figures_are_in_it() {
        let drawn = draw(&report()).unwrap();
        for (phase, state) in STATES {
            assert!(drawn.contains(&format!(">{phase}<")) && drawn.contains(&format!(">{state}<")));
        }
        // Of the last refresh: its boot and exits, not those of the first.
        for figure in [
            "4,234 M",
            "738,692",
            "stood still 5.2 M",
            "stood still 53.0 M",
            "0 bytes of RAM copied",
        ] {
            assert!(drawn.contains(figure), "{figure}");
        }
        assert!(!drawn.contains("648,704"));
        assert!(drawn.contains("generation 1, Linux 6.12.118+deb13-amd64 → generation 2, Linux 6.12.107+deb13-amd64"));
        for outside in ["<script", "href", "@import", "@font-face", "url(http"] {
            assert!(!drawn.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_report_without_a_whole_refresh_is_refused() {
        let mut report = report();
        report.phases.retain(|phase| phase.name != "reclaim");
        assert!(draw(&report).is_err());
        assert!(draw(&Report::default()).is_err());
    }

    #[test]
    fn what_names_bring_along_is_no_markup() {
        let mut report = report();
        report.guests[0].name = "<g&1>".into();
        assert!(draw(&report).unwrap().contains("guest &lt;g&amp;1&gt;"));
    }
}
