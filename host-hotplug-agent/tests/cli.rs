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
fn every_command_without_l0_says_so_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    for args in [
        &["status"] as &[&str],
        &["status", "--json"],
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
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn what_needs_the_daemon_says_how_to_start_it() {
    let root = tempfile::tempdir().unwrap();
    for args in [&["refresh", "next"] as &[&str], &["abort"], &["retry"]] {
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
