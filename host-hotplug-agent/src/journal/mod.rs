//! What a daemon needs to know to go on with a refresh where another one stood: written down before each action.
//!
//! The journal proposes, L0 decides. An [`Entry`] says which action comes next; whether that had been begun, or even done,
//! when the daemon died is found out from L0 and Linux ([`crate::refresh::found`]). So one entry between two actions says
//! both that the one is done and that the other is about to begin.
//!
//! It lies in `/run/locum`: it must outlive the daemon, and must not outlive the host.

pub mod file;
pub mod keep;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use partitioner::Refresh;
use serde::{Deserialize, Serialize};

pub use file::Journal;

use crate::guest::Spec;
use crate::machine::Start;
use crate::report::Report;

/// What is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The boot of this host in which it was written: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// This host's own generation.
    pub generation: u64,
    /// Name of the refresh.
    pub name: String,
    /// How it stands; its next action is the one that may be half done.
    pub refresh: Refresh,
    /// What else is needed to go on.
    pub brief: Brief,
    /// What happened so far.
    pub report: Option<Report>,
    /// Why the operator wants to stop, if that has not been heeded yet.
    pub abort: Option<String>,
}

/// What performing actions needs beside the state of the refresh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Brief {
    /// Incumbent: the configuration, as it was when the refresh began.
    pub config: Option<ConfigText>,
    /// Incumbent: guests in order of handover. Successor: those whose QEMUs were started.
    pub guests: Vec<Spec>,
    /// Incumbent: how the successor starts, once its image is loaded.
    pub start: Option<Start>,
    /// Of an older release, which kept them here: settings of Linux that are others while nested, by file, and what it said when
    /// the refresh began.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Successor: what it goes on with if the incumbent dies before it puts this host in charge.
    pub inheritance: Option<Inheritance>,
    /// Incumbent: whether it was started, or about to be.
    pub started: bool,
    /// Incumbent: guests that do not run on, for their QEMUs have ended, or may have ended, in the other host.
    pub dead: BTreeSet<String>,
    /// Successor: seconds that the incumbent has to power off, once it has put this host in charge.
    pub retire_seconds: Option<u64>,
}

/// Where the incumbent's agent said that it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inheritance {
    /// The refresh.
    pub refresh: Refresh,
    /// What happened so far.
    pub report: Report,
    /// Seconds that a host that panicked has to write its dump.
    pub dump_seconds: u64,
}

/// A configuration file, kept as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// Where it was read.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}
