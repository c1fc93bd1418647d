use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::testing::tables::{self, DSDT as SERVER, SSDT_ACCESS_AS, SSDT_PLAIN};

/// A root with these tables.
fn root(files: &[(&str, &[u8])]) -> (tempfile::TempDir, SysRoot) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(DIR).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let sys = SysRoot::at(dir.path());
    (dir, sys)
}

fn found<'l>(listing: &'l Listing, path: &str) -> &'l Region {
    let region = listing.regions.iter().find(|region| region.path == path);
    region.unwrap_or_else(|| panic!("no {path} in {listing:#?}"))
}

#[test]
fn regions_and_routing_of_all_tables_are_listed() {
    let (_dir, sys) = root(&[("DSDT", SERVER), ("dynamic/SSDT1", SSDT_PLAIN)]);
    let listing = list(&sys);
    assert_eq!(listing.unread, Vec::<String>::new());
    assert_eq!(listing.regions.len(), 14, "{:#?}", listing.regions);
    let isa = found(&listing, r"\_SB_.PCI0.LPCB.PIRQ");
    assert_eq!((isa.space, isa.start, isa.length), (Space::PciConfig, 0x60, 4));
    assert_eq!(isa.device.as_deref(), Some(r"\_SB_.PCI0.LPCB"));
    let cmos = found(&listing, r"\_SB_.PCI0.LPCB.RTC_.CMS0");
    assert_eq!(cmos.space, Space::SystemCmos);
    let own = found(&listing, r"\_SB_.PCI0.RAMR");
    assert_eq!((own.table.as_str(), own.start), ("dynamic/SSDT1", 0x4800_1000));
    assert_eq!(found(&listing, r"\DBG0").device, None);
    assert_eq!(
        found(&listing, r"\_SB_.PCI0.IGDM").start,
        0,
        "computed from what is not read"
    );
    let gsi = |device, pin, gsi| Route {
        device,
        pin,
        wire: Wire::Gsi(gsi),
    };
    let routing = Routing {
        bridge: r"\_SB_.PCI0".to_owned(),
        routes: vec![gsi(2, 1, 9), gsi(3, 1, 11), gsi(31, 2, 17)],
    };
    assert_eq!(listing.routing, [routing], "of IOAPICs, though `_PIC` fails");
}

#[test]
fn damaged_tables_are_named_and_the_rest_is_listed() {
    let mut short = SSDT_PLAIN.to_vec();
    short[4..8].copy_from_slice(&20u32.to_le_bytes());
    let (_dir, sys) = root(&[
        ("DSDT", SERVER),
        ("SSDT1", &[0x10; 40]),
        ("SSDT2", &short),
        ("SSDT3", b"SSDT"),
        ("SSDT10", SSDT_PLAIN),
    ]);
    let listing = list(&sys);
    assert_eq!(found(&listing, r"\_SB_.PCI0.RAMR").table, "SSDT10");
    let named: Vec<&str> = listing
        .unread
        .iter()
        .filter_map(|text| text.split(':').next())
        .collect();
    assert_eq!(
        named,
        ["SSDT1", "SSDT2", "SSDT3"],
        "in Linux's order: {:?}",
        listing.unread
    );
}

#[test]
fn without_tables_it_says_so() {
    let (_dir, sys) = root(&[("SSDT1", SSDT_PLAIN)]);
    let listing = list(&sys);
    assert!(listing.regions.is_empty());
    assert_eq!(listing.unread, ["DSDT: not in /sys/firmware/acpi/tables"]);
}

fn next(step: &str) -> Line {
    Line::Next(step.to_owned())
}

fn region(path: &str) -> Line {
    Line::Region(Region {
        table: "T".to_owned(),
        path: path.to_owned(),
        device: None,
        space: Space::SystemIo,
        start: 1,
        length: 1,
    })
}

/// A process that dies in each of `deadly` unless it is to be skipped.
fn mortal(deadly: &'static [&str], steps: &'static [&str]) -> impl FnMut(&[String]) -> Outcome {
    move |skip| {
        let mut lines = Vec::new();
        for step in steps.iter().filter(|step| !skip.iter().any(|other| other == *step)) {
            lines.extend([next(step), region(step)]);
            if deadly.contains(step) {
                lines.push(Line::Failed("not yet implemented".to_owned()));
                let died = Some("killed".to_owned());
                return Outcome { lines, died };
            }
        }
        lines.push(Line::End);
        Outcome { lines, died: None }
    }
}

#[test]
fn what_the_process_dies_of_is_left_out_the_next_time() {
    let steps = &["DSDT", "SSDT1", "SSDT2", "SSDT3", r"\_SB_.PCI0._PRT"];
    let listing = gather(mortal(&["SSDT1", "SSDT3"], steps));
    assert_eq!(listing.regions.len(), 5, "what was told before the end counts");
    assert_eq!(
        listing.unread,
        ["SSDT1: not yet implemented", "SSDT3: not yet implemented"]
    );
}

#[test]
fn a_dsdt_that_cannot_be_read_takes_the_others_with_it() {
    let listing = gather(mortal(&["DSDT"], &["DSDT", "SSDT1"]));
    assert_eq!(listing.regions.len(), 1);
    assert_eq!(listing.unread.len(), 2);
    assert!(listing.unread[1].starts_with("the tables after it"));
}

#[test]
fn it_does_not_try_for_ever() {
    let steps = &["DSDT", "A", "B", "C", "D", "E", "F", "G"];
    let listing = gather(mortal(&steps[1..], steps));
    assert_eq!(listing.unread.len(), TRIES + 1);
    let silent = |_: &[String]| Outcome {
        lines: Vec::new(),
        died: Some("killed".to_owned()),
    };
    assert_eq!(gather(silent).unread, [": killed", "what comes after it: not read"]);
}

/// A shell script in place of `locum`.
fn script(text: &str, limit: Duration) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    // Written by another process: one that another test forks could inherit our handle, and Linux would refuse to run a
    // file that somebody may write.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
    let written = Command::new("sh").arg("-c").arg(write).arg(&path).arg(text).status();
    assert!(written.unwrap().success());
    let sys = SysRoot::at(dir.path());
    child::run(&sys, path.to_str().unwrap(), &["SSDT1".to_owned()], limit)
}

#[test]
fn a_process_that_hangs_dies_or_babbles_is_ended() {
    let next = r#"echo '{"next":"DSDT"}'"#;
    let long = Duration::from_secs(60);
    let hung = script(&format!("{next}; exec sleep 1000"), Duration::from_millis(300));
    assert_eq!(hung.lines, [Line::Next("DSDT".to_owned())]);
    assert_eq!(hung.died.unwrap(), "no end after 0 s");
    let killed = script(&format!("{next}; kill -SEGV $$"), long);
    assert_eq!(killed.died.unwrap(), "the interpreter ended by signal 11");
    let gone = script(&format!("{next}; exit 3"), long);
    assert!(gone.died.unwrap().contains("exit status: 3"));
    let start = Instant::now();
    let babble = script("while true; do echo nonsense; done", long);
    assert!(babble.died.is_some());
    assert!(start.elapsed() < long / 2);
    let stays = script(r#"echo '"end"'; exec sleep 1000"#, long);
    assert_eq!(stays.died, None, "its word is enough, and it is ended");
    let absent = child::run(&SysRoot::at("/"), "/nonexistent/locum", &[], long);
    assert!(absent.died.unwrap().contains("does not start"));
}

#[test]
fn the_fixtures_are_what_they_are_said_to_be() {
    for table in [SERVER, SSDT_PLAIN, SSDT_ACCESS_AS, tables::SSDT_ENDLESS] {
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "{:?}", &table[..4]);
    }
}
