//! What is printed, line by line.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::l0::{L0View, memory};
use crate::report::{GuestReport, Phase};
use crate::status::around::{Around, Memory};
use crate::testing::l0::FakeRegion;

/// Families and samples, read as Prometheus does; panics where it would not.
fn read(text: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(helps.insert(help.split_once(' ').unwrap().0.to_owned()), "{line}");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(matches!(kind, "gauge" | "counter") && helps.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        assert!(name.starts_with("locum_") && types.contains_key(name), "{line}");
        let fits = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '_';
        assert!(name.chars().all(fits), "{line}");
        assert!(
            samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(),
            "{line}"
        );
    }
    (types, samples)
}

fn seen() -> Seen {
    let region = FakeRegion::new(3);
    region.update(|status| {
        status.cpus[1].exits = 120;
        status.cpus[2].mode = locum_abi::CpuMode::Nested as u32;
        status.cpus[2].owner = locum_abi::Slot::Odd.raw();
    });
    let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
    let guest = |name: &str, moved| GuestReport {
        name: name.to_owned(),
        moved,
        pause_ticks: 50_000,
        ..GuestReport::default()
    };
    let report = Report {
        name: "next".to_owned(),
        outcome: "done".to_owned(),
        start: 1_000_000,
        end: 9_000_000,
        tsc_khz: 1000,
        phases: vec![Phase {
            name: "boot".to_owned(),
            by: "incumbent".to_owned(),
            start: 2_000_000,
            end: 5_000_000,
            l0_exits: 3,
        }],
        guests: vec![guest("a \"b\"\\\n", true), guest("stays", false)],
        ..Report::default()
    };
    let daemon = DaemonStatus {
        report: Some(report),
        unreclaimed_bytes: 77,
        ..DaemonStatus::default()
    };
    let around = Around {
        slot: Some(0),
        memory: Memory {
            this: Some(4096),
            ..Memory::default()
        },
        guests: None,
    };
    Seen {
        view: Some(StatusView::new(l0, 1, "6.12".to_owned(), Ok(daemon), around)),
        daemon: true,
    }
}

#[test]
fn every_line_is_one_that_prometheus_reads() {
    let clock = Clock {
        nanos: 1_000_000_000_000,
        tsc: 10_000_000,
        tsc_khz: 1000,
    };
    let text = text(&seen(), Some(&clock)).unwrap();
    let (types, samples) = read(&text);
    assert_eq!(types["locum_l0_exits_total"], "counter");
    for (sample, value) in [
        ("locum_up", 1.0),
        ("locum_daemon_up", 1.0),
        ("locum_generation", 0.0),
        ("locum_cpus{mode=\"native\",owner=\"this\"}", 2.0),
        ("locum_cpus{mode=\"nested\",owner=\"other\"}", 1.0),
        ("locum_cpus{mode=\"parked\",owner=\"nobody\"}", 0.0),
        ("locum_memory_bytes{owner=\"this\"}", 4096.0),
        ("locum_memory_bytes{owner=\"nobody\"}", 77.0),
        ("locum_unreclaimed_bytes", 77.0),
        ("locum_l0_exits_total", 120.0),
        ("locum_refresh_running", 0.0),
        ("locum_last_refresh_outcome{outcome=\"done\"}", 1.0),
        ("locum_last_refresh_outcome{outcome=\"aborted\"}", 0.0),
        ("locum_last_refresh_start_timestamp_seconds", 991.0),
        ("locum_last_refresh_end_timestamp_seconds", 999.0),
        ("locum_last_refresh_duration_seconds", 8.0),
        ("locum_last_refresh_phase_seconds{by=\"incumbent\",phase=\"boot\"}", 3.0),
        // Quotes, backslashes and line ends of a name are escaped.
        ("locum_guest_pause_seconds{guest=\"a \\\"b\\\"\\\\\\n\"}", 0.05),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample} in\n{text}");
    }
    assert!(
        !text.contains("stays") && !text.contains("locum_refresh_actions "),
        "{text}"
    );
}

#[test]
fn a_machine_without_l0_says_so() {
    let none = Seen {
        view: None,
        daemon: false,
    };
    let (_, samples) = read(&text(&none, None).unwrap());
    assert_eq!(samples["locum_up"], 0.0);
    assert_eq!(samples["locum_daemon_up"], 0.0);
    assert_eq!(samples.len(), 3, "{samples:?}");
}
