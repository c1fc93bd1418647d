//! The command itself: what it prints and how it exits on a machine that has nothing of Locum.

use std::process::{Command, Output};

fn locum(root: &std::path::Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_locum"))
        .arg("--root")
        .arg(root)
        .arg("--socket")
        .arg(root.join("locum.sock"))
        .arg("--config-dir")
        .arg(root.join("etc"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn doctor_prints_every_check_as_json_and_fails() {
    let root = tempfile::tempdir().unwrap();
    let output = locum(root.path(), &["doctor", "--json"]);
    assert!(!output.status.success());
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checks.len() >= 10);
    for check in &checks {
        assert_eq!(check["verdict"] == "ok", check["remedy"].is_null(), "{check}");
    }
}

#[test]
fn preflight_needs_no_l0_and_fails_where_something_refuses() {
    let root = tempfile::tempdir().unwrap();
    let json = locum(root.path(), &["preflight", "--json"]);
    assert_eq!(json.status.code(), Some(1), "an empty machine");
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert!(
        findings.iter().any(|finding| finding["level"] == "refuses"),
        "{findings:?}"
    );
    for finding in &findings {
        assert_eq!(finding["level"] == "fine", finding["remedy"].is_null(), "{finding}");
    }
    let human = locum(root.path(), &["preflight"]);
    assert_eq!(human.status.code(), Some(1));
    let text = String::from_utf8(human.stdout).unwrap();
    assert_eq!(text.lines().count(), findings.len(), "one line each: {text}");
    assert!(text.starts_with("refuses  CPU: "), "{text}");
}

#[test]
fn every_command_without_l0_says_so_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    for args in [
        &["status"] as &[&str],
        &["status", "--long"],
        &["status", "--watch"],
        &["trace"],
        &["log"],
        &["plan", "next"],
        &["enter"],
        &["cycle", "3"],
        &["daemon"],
    ] {
        let output = locum(root.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("locum: there is no L0"), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.ends_with("[no-l0]\n"), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn an_error_is_json_where_json_is_wanted() {
    let root = tempfile::tempdir().unwrap();
    for (args, name) in [
        (&["status", "--json"] as &[&str], "no-l0"),
        (&["abort", "--json"], "no-daemon"),
        (&["pool", "free", "vm1", "--json"], "no-l0"),
    ] {
        let output = locum(root.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["error"]["name"], name, "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains(value["error"]["text"].as_str().unwrap()),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn metrics_of_a_machine_without_l0_say_so() {
    let root = tempfile::tempdir().unwrap();
    let output = locum(root.path(), &["metrics"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line == "locum_up 0"), "{text}");
    let file = root.path().join("locum.prom");
    assert!(
        locum(root.path(), &["metrics", "--output", file.to_str().unwrap()])
            .status
            .success()
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn what_needs_the_daemon_says_how_to_start_it() {
    let root = tempfile::tempdir().unwrap();
    for args in [&["refresh", "next"] as &[&str], &["abort"], &["retry"], &["report"]] {
        let output = locum(root.path(), args);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("systemctl start locum"), "{args:?}: {text}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_status_2() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(locum(root.path(), &["refresh"]).status.code(), Some(2));
    assert_eq!(locum(root.path(), &["no-such-command"]).status.code(), Some(2));
}

/// A root with these tables from `tests/fixtures/aml`.
fn with_tables(tables: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("sys/firmware/acpi/tables");
    std::fs::create_dir_all(&to).unwrap();
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/aml");
    for (name, fixture) in tables {
        std::fs::copy(from.join(fixture), to.join(name)).unwrap();
    }
    root
}

fn doctor(root: &std::path::Path) -> Vec<serde_json::Value> {
    serde_json::from_slice(&locum(root, &["doctor", "--json"]).stdout).unwrap()
}

#[test]
fn tables_on_which_the_interpreter_dies_or_hangs_are_one_advice_and_the_rest_is_told() {
    let root = with_tables(&[
        ("DSDT", "dsdt.aml"),
        ("SSDT1", "ssdt-access-as.aml"),
        ("SSDT2", "ssdt-endless.aml"),
        ("SSDT3", "ssdt-plain.aml"),
    ]);
    let checks = doctor(root.path());
    let advice: Vec<_> = checks.iter().filter(|check| check["name"] == "AML").collect();
    assert_eq!(advice.len(), 1, "{checks:#?}");
    let (verdict, found) = (&advice[0]["verdict"], advice[0]["found"].as_str().unwrap());
    assert_eq!(verdict, "advice");
    for cause in [
        "SSDT1: the interpreter gave up (not yet implemented)",
        "SSDT2: no end after 10 s",
    ] {
        assert!(found.contains(cause), "{found}");
    }
    let class = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["details"].to_string();
    assert!(
        class("AML SystemIO").contains("FRST of SSDT1: 0x3000-0x3003"),
        "said before it died"
    );
    assert!(class("AML SystemMemory").contains("RAMR of SSDT3: 0x48001000-0x4800100f"));
}

#[test]
fn the_list_of_what_aml_uses_is_lines_of_json() {
    let root = with_tables(&[("DSDT", "dsdt.aml"), ("SSDT1", "ssdt-plain.aml")]);
    let output = locum(root.path(), &["__aml", "--skip", "SSDT1"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.first().unwrap()["next"], "DSDT");
    assert_eq!(lines.last().unwrap(), "end");
    assert_eq!(lines.iter().filter(|line| line["region"].is_object()).count(), 13);
    assert!(!text.contains("SSDT1"));
}
