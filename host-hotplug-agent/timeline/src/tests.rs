//! Drawings of refreshes that went through, were given up, or run.

use super::*;

fn timeline(phases: &[(&str, u64)], end: End) -> Timeline {
    let phases = phases.iter().map(|(name, ticks)| Phase {
        name: (*name).to_owned(),
        ticks: ticks * 1000,
        exits: *ticks,
    });
    Timeline {
        title: "Refresh <to> \"next\"".to_owned(),
        subtitle: "from & to".to_owned(),
        phases: phases.collect(),
        guests: vec![Guest {
            name: "<g&1>".to_owned(),
            still: Some((1000, 2000)),
            line: "a line".to_owned(),
        }],
        unit: Unit::Seconds { khz: 1000 },
        end,
        footnote: "by the TSC".to_owned(),
    }
}

/// All texts of a document that is one, and its bars by class.
fn read(drawn: &str) -> (Vec<String>, Vec<String>) {
    let document = roxmltree::Document::parse(drawn).unwrap();
    let of = |tag: &str| {
        document
            .descendants()
            .filter(move |node| node.has_tag_name(tag))
            .collect::<Vec<_>>()
    };
    let texts = of("text")
        .iter()
        .filter_map(|node| node.text().map(str::to_owned))
        .collect();
    let bars = of("rect")
        .iter()
        .filter_map(|node| node.attribute("class").map(str::to_owned))
        .collect();
    for bar in of("rect") {
        let width: f64 = bar.attribute("width").unwrap().parse().unwrap();
        assert!(width >= 0.0, "{drawn}");
    }
    (texts, bars)
}

fn has(texts: &[String], text: &str) -> bool {
    texts.iter().any(|known| known == text)
}

#[test]
fn a_report_of_an_earlier_release_has_the_states_of_then() {
    let states = |names: &[&str]| {
        let phases: Vec<_> = names.iter().map(|name| (*name, 5)).collect();
        read(&draw(&timeline(&phases, End::Done))).0
    };
    let then = states(&["retire", "reclaim", "leave"]);
    assert!(
        has(&then, "Retired") && has(&then, "Reclaimed") && !has(&then, "Dormant"),
        "{then:?}"
    );
    let now = states(&["retire", "leave", "reclaim"]);
    assert!(
        has(&now, "Retired") && has(&now, "Dormant") && !has(&now, "Reclaimed"),
        "{now:?}"
    );
}

#[test]
fn every_phase_and_pause_of_a_whole_refresh_is_in_it() {
    let phases = STATES.map(|(name, _)| (name, 5));
    let (texts, bars) = read(&draw(&timeline(&phases, End::Done)));
    for (phase, state) in STATES {
        assert!(has(&texts, phase) && has(&texts, state), "{phase}: {texts:?}");
    }
    for text in [
        "stood still 2.0 ms",
        "guest <g&1>",
        "off",
        "reigns",
        "a line",
        "by the TSC",
        "5.0 ms",
    ] {
        assert!(has(&texts, text), "{text}: {texts:?}");
    }
    assert!(bars.iter().any(|class| class == "still"));
}

#[test]
fn one_that_was_given_up_says_so_and_why() {
    let phases = [
        ("offload", 5),
        ("load", 1),
        ("enter", 1),
        ("start", 1),
        ("boot", 90),
        ("abort", 7),
    ];
    let end = End::GivenUp("the successor died: triple fault".to_owned());
    let (texts, bars) = read(&draw(&timeline(&phases, end)));
    for text in [
        "abort",
        "Aborting",
        "given up",
        "given up: the successor died: triple fault",
    ] {
        assert!(has(&texts, text), "{text}: {texts:?}");
    }
    assert!(!has(&texts, "off") && !has(&texts, "reigns"), "the incumbent goes on");
    assert!(
        !bars.iter().any(|class| class == "still"),
        "no guest crossed: no handover"
    );
}

#[test]
fn what_runs_is_drawn_as_far_as_it_came_and_nothing_at_all_too() {
    for phases in [&[][..], &[("offload", 5)], &[("offload", 5), ("load", 0)]] {
        let (texts, _) = read(&draw(&timeline(phases, End::Running)));
        assert!(has(&texts, "it runs: this is how far it came"), "{texts:?}");
        assert!(phases.iter().all(|(name, _)| has(&texts, name)));
    }
}

#[test]
fn a_successor_that_reclaims_is_native_and_alone() {
    let began = [
        ("offload", 5),
        ("enter", 1),
        ("boot", 9),
        ("handover", 2),
        ("retire", 3),
    ];
    let off = |further: &[(&str, u64)]| {
        let phases = [&began[..], further].concat();
        let svg = draw(&timeline(&phases, End::Running));
        (has(&read(&svg).0, "off"), svg)
    };
    assert!(!off(&[]).0, "it powers off");
    assert!(off(&[("leave", 1)]).0);
    let (is_off, svg) = off(&[("leave", 1), ("reclaim", 4)]);
    assert!(is_off);
    let states = read(&svg).0;
    assert!(has(&states, "Retired") && has(&states, "Dormant"));
}

#[test]
fn columns_fill_their_place_however_many_there_are() {
    for count in [1, 9, 40] {
        let names: Vec<_> = (0..count).map(|number| (format!("p{number}"), number)).collect();
        let phases: Vec<_> = names.iter().map(|(name, ticks)| (name.as_str(), *ticks)).collect();
        let timeline = timeline(&phases, End::Done);
        let columns = columns(&timeline.phases);
        assert!(
            columns
                .windows(2)
                .all(|pair| pair[0].to == pair[1].from && pair[0].from < pair[0].to)
        );
        assert!(columns[0].from == COLUMNS.0 && columns[columns.len() - 1].to <= COLUMNS.1 + 1e-6);
    }
}

#[test]
fn neighbours_of_one_name_are_one() {
    let (texts, _) = read(&draw(&timeline(&[("retire", 2), ("retire", 3)], End::Done)));
    assert_eq!(
        texts.iter().filter(|text| *text == "retire").count(),
        2,
        "a head, and to scale: {texts:?}"
    );
    assert!(has(&texts, "5.0 ms"));
}

#[test]
fn a_drawing_needs_nothing_from_elsewhere() {
    let drawn = draw(&timeline(&[("offload", 5)], End::GivenUp("x".repeat(400))));
    for outside in ["<script", "href", "@import", "@font-face", "url(http"] {
        assert!(!drawn.contains(outside), "{outside}");
    }
    assert!(drawn.contains("prefers-color-scheme:dark"));
    assert!(!drawn.contains(&"x".repeat(LINE + 1)), "a long reason is cut");
}
