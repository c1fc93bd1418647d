//! A report as a drawing: what `locum report --svg` makes of it.

use timeline::{End, Guest, Phase, Timeline, Unit, grouped};

use super::{GuestReport, Report};

const MEASURED: &str = "All times are differences of the time stamp counter, which both hosts share. A guest stood still from its QEMU's stop in \
    the old host to its resume in the new one. Columns are stretched.";

/// An SVG document.
pub fn draw(report: &Report) -> String {
    let unit = match report.tsc_khz {
        0 => Unit::Ticks,
        khz => Unit::Seconds { khz },
    };
    let handover = report.phases.iter().find(|phase| phase.name == "handover");
    let begun = handover.map_or(report.start, |phase| phase.start);
    let phases = report.phases.iter().map(|phase| Phase {
        name: phase.name.clone(),
        ticks: phase.end.saturating_sub(phase.start),
        exits: phase.l0_exits,
    });
    let guests = report.guests.iter().map(|guest| Guest {
        name: guest.name.clone(),
        still: guest
            .moved
            .then(|| (guest.stopped.saturating_sub(begun), guest.pause_ticks)),
        line: line(guest, unit),
    });
    timeline::draw(&Timeline {
        title: format!("Refresh to {}: {}", report.name, report.outcome),
        subtitle: subtitle(report, unit),
        phases: phases.collect(),
        guests: guests.collect(),
        unit,
        end: end(report),
        footnote: MEASURED.to_owned(),
    })
}

fn end(report: &Report) -> End {
    match report.outcome.as_str() {
        "running" => End::Running,
        "aborted" => End::GivenUp(report.error.clone().unwrap_or_else(|| "no reason is known".to_owned())),
        _ => End::Done,
    }
}

fn subtitle(report: &Report, unit: Unit) -> String {
    let from = format!("generation {}, Linux {}", report.from_generation, report.incumbent);
    let to = match report.successor.as_str() {
        "" => "a successor that has not said hello".to_owned(),
        release => format!("Linux {release}"),
    };
    match report.end {
        0 => format!("{from} → {to}"),
        end => format!(
            "{from} → {to}; {} in all",
            unit.figure(end.saturating_sub(report.start))
        ),
    }
}

fn line(guest: &GuestReport, unit: Unit) -> String {
    if !guest.moved {
        return format!("{}: did not cross, or came back", guest.name);
    }
    let step = |from: u64, to: u64| unit.figure(to.saturating_sub(from));
    format!(
        "{}: stood still for {} by QEMU (save {}, cross {}, resume {}); {} bytes of RAM copied, {} of state",
        guest.name,
        unit.figure(guest.pause_ticks),
        step(guest.stopped, guest.saved),
        step(guest.saved, guest.received),
        step(guest.received, guest.resumed),
        grouped(guest.ram_bytes_copied),
        grouped(guest.state_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::phase;
    use crate::report::Phase;

    fn report(outcome: &str, phases: &[&str]) -> Report {
        let phases = (1u64..).zip(phases).map(|(number, name)| Phase {
            name: (*name).to_owned(),
            by: "incumbent".to_owned(),
            start: number * 1_000_000,
            end: (number + 1) * 1_000_000,
            l0_exits: number,
        });
        let guest = GuestReport {
            name: "db".to_owned(),
            moved: true,
            stopped: 6_200_000,
            saved: 6_201_000,
            received: 6_202_000,
            resumed: 6_204_200,
            pause_ticks: 4_200,
            state_bytes: 12_345,
            ..GuestReport::default()
        };
        Report {
            name: "next".to_owned(),
            outcome: outcome.to_owned(),
            incumbent: "6.12.1".to_owned(),
            start: 1_000_000,
            end: 10_000_000,
            tsc_khz: 1000,
            phases: phases.collect(),
            guests: vec![guest],
            ..Report::default()
        }
    }

    fn texts(report: &Report) -> Vec<String> {
        let drawn = draw(report);
        let document = roxmltree::Document::parse(&drawn).unwrap();
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        texts.filter_map(|node| node.text().map(str::to_owned)).collect()
    }

    #[test]
    fn every_phase_and_the_pause_of_each_guest_are_in_it() {
        let texts = texts(&Report {
            successor: "6.12.2".to_owned(),
            ..report("done", &phase::ORDER)
        });
        let has = |text: &str| assert!(texts.iter().any(|known| known == text), "{text}: {texts:#?}");
        phase::ORDER.into_iter().for_each(has);
        has("Refresh to next: done");
        has("generation 0, Linux 6.12.1 → Linux 6.12.2; 9.0 s in all");
        has("stood still 4.2 ms");
        has(
            "db: stood still for 4.2 ms by QEMU (save 1.0 ms, cross 1.0 ms, resume 2.2 ms); 0 bytes of RAM copied, 12,345 of state",
        );
    }

    #[test]
    fn one_that_was_given_up_tells_why_and_draws_what_was() {
        let mut aborted = report("aborted", &["offload", "load", "abort"]);
        aborted.error = Some("memory block 0x0-0x8000000 stays".to_owned());
        aborted.guests[0].moved = false;
        let texts = texts(&aborted);
        for text in [
            "abort",
            "given up: memory block 0x0-0x8000000 stays",
            "db: did not cross, or came back",
        ] {
            assert!(texts.iter().any(|known| known == text), "{text}: {texts:#?}");
        }
    }

    #[test]
    fn the_drawing_knows_the_phases_in_their_order() {
        assert!(timeline::STATES.iter().map(|(name, _)| *name).eq(phase::ORDER));
    }
}
