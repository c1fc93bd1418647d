//! The picture of machines that are made up, line by line.

use locum_abi::Slot;

use super::around::{Around, GuestView, Memory, Place};
use super::wait::Wait;
use super::{DaemonStatus, Picture, StatusView};
use crate::l0::view::{CpuView, ExitView, HostView, L0View, TablesView};
use crate::report::{GuestReport, Report};

const GIB: u64 = 1 << 30;

fn cpus(modes: &[(&str, Option<Slot>, usize)]) -> Vec<CpuView> {
    let all = modes
        .iter()
        .flat_map(|&(mode, owner, count)| (0..count).map(move |_| (mode, owner)));
    let view = |(apic_id, (mode, owner)): (u32, (&str, Option<Slot>))| CpuView {
        apic_id,
        mode: mode.to_owned(),
        owner,
        enters: 0,
        leaves: 0,
        exits: 0,
        guest_exits: 0,
    };
    (0..).zip(all).map(view).collect()
}

fn host(slot: Slot, state: &str, generation: u32) -> HostView {
    HostView {
        slot,
        state: state.to_owned(),
        generation,
        reason: None,
    }
}

fn guest(name: &str, place: Place) -> GuestView {
    GuestView {
        name: name.to_owned(),
        place,
    }
}

/// A server in whose refresh the guests are crossing.
fn split() -> StatusView {
    let l0 = L0View {
        generation: 2,
        cpus: cpus(&[("nested", Some(Slot::Even), 6), ("nested", Some(Slot::Odd), 2)]),
        hosts: vec![host(Slot::Even, "running", 2), host(Slot::Odd, "running", 3)],
        exits: ExitView::default(),
        refusals: 0,
        tables: TablesView::default(),
    };
    let daemon = DaemonStatus {
        state: "successor_up".to_owned(),
        course: "running".to_owned(),
        running: Some("next".to_owned()),
        done: 42,
        total: 118,
        phase: Some("handover".to_owned()),
        waits: Some(Wait {
            what: "guest www to cross".to_owned(),
            seconds: 2,
            limit_seconds: Some(60),
        }),
        left_seconds: Some(200),
        other_memory_bytes: Some(8 * GIB),
        unreclaimed_bytes: 128 << 20,
        ..DaemonStatus::default()
    };
    let around = Around {
        slot: Some(0),
        memory: Memory {
            this: Some(24 * GIB),
            pool: Some(32 * GIB),
            ..Memory::default()
        },
        guests: Some(vec![
            guest("db", Place::Here),
            guest("mail", Place::There),
            guest("old", Place::Off),
            guest("web", Place::Here),
            guest("www", Place::Crossing),
        ]),
    };
    StatusView::new(l0, 0, "6.12.57+deb13-amd64".to_owned(), Ok(daemon), around)
}

#[test]
fn a_refresh_that_runs_is_one_picture() {
    let text = Picture(&split()).to_string();
    let expected = "\
generation 2, Linux 6.12.57+deb13-amd64, L0 below; beside it generation 3,
    running

            CPUs █ native ▒ nested              memory
this host   ▒▒▒▒▒▒▒▒▒▒▒▒     6 nested           ████████████      24.0 GiB
other host  ▒▒▒▒             2 nested           ████               8.0 GiB
nobody                                          █                  128 MiB
pool                                            ████████████████  32.0 GiB

guests here db  web
there       mail
crossing    www
off         old

refresh     to next, phase handover
            ██████████████·························· 42 of 118 actions
waits for   guest www to cross, for 2 s so far (60 s at most)
time left   about 3 min 20 s, as the last refresh took";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn a_server_at_rest_tells_of_its_last_refresh() {
    let mut view = split();
    view.cpus = cpus(&[("native", Some(Slot::Odd), 8)]);
    view.hosts = vec![host(Slot::Even, "retired", 2), host(Slot::Odd, "running", 3)];
    view.around.slot = Some(1);
    view.around.memory.other = None;
    view.around.guests = Some(vec![guest("db", Place::Here)]);
    let pause = GuestReport {
        name: "db".to_owned(),
        moved: true,
        pause_ticks: 4_200_000,
        ..GuestReport::default()
    };
    view.last_report = Some(Report {
        name: "next".to_owned(),
        outcome: "done".to_owned(),
        start: 1,
        end: 200_000_000 + 1,
        tsc_khz: 1000,
        guests: vec![pause],
        losses: vec!["the CPU with APIC 3 is offline: bring it online by hand".to_owned()],
        ..Report::default()
    });
    view.daemon = Some(DaemonStatus::default());
    let text = Picture(&view).to_string();
    let expected = "\
generation 3, Linux 6.12.57+deb13-amd64, L0 dormant

            CPUs █ native ▒ nested              memory
this host   ████████████████ 8 native           ████████████      24.0 GiB
nobody                                          █                  128 MiB
pool                                            ████████████████  32.0 GiB

guests here db

last refresh to next: done after 3 min 20 s
crossed     guest db, which stood still for 4.20 s
lost        the CPU with APIC 3 is offline: bring it online by hand";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn no_line_is_wider_than_a_terminal_or_steers_it() {
    let mut view = split();
    view.kernel = "6.12.57-with-a-name-that-goes-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on-and-on".to_owned();
    let many = (0..200).map(|number| guest(&format!("\x1b[2Jguest-number-{number}"), Place::Here));
    view.around.guests = Some(many.collect());
    view.cpus = cpus(&[
        ("native", Some(Slot::Even), 100),
        ("nested", Some(Slot::Even), 100),
        ("nested", Some(Slot::Odd), 54),
        ("parked", None, 1),
    ]);
    view.no_answer = Some("the daemon at /run/locum.sock does not answer within 10 s: it hangs".repeat(3));
    if let Some(daemon) = &mut view.daemon {
        daemon.waits = None;
        daemon.course = "stuck".to_owned();
        daemon.summary = "generation 2, Handover, stuck (why): remove the cause, then retry".repeat(3);
        daemon.last_error = Some("x".repeat(300));
    }
    let text = Picture(&view).to_string();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(!text.contains('\x1b'));
    assert!(
        text.contains("200 in all") && text.contains("200, 100 nested") && text.contains("1 parked"),
        "{text}"
    );
    assert!(text.contains("stands at   generation 2, Handover, stuck"), "{text}");
}

#[test]
fn what_goes_on_by_itself_is_no_change() {
    let (mut early, mut late) = (split(), split());
    for (view, seconds) in [(&mut early, 2), (&mut late, 9)] {
        let daemon = view.daemon.as_mut().unwrap();
        daemon.left_seconds = Some(100 - seconds);
        daemon.waits.as_mut().unwrap().seconds = seconds;
    }
    assert_ne!(Picture(&early).to_string(), Picture(&late).to_string());
    assert_eq!(
        Picture(&early.steady()).to_string(),
        Picture(&late.steady()).to_string()
    );
}
