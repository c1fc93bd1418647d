//! What the lab tells its user while it works, on standard error: single words, and the live line of a run.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells what the lab is doing.
pub(crate) fn say(text: &str) {
    eprintln!("lab: {text}");
}

/// What a run waits for, and for how long: one line that is rewritten on a terminal; elsewhere, one line per step.
pub(crate) struct Progress {
    label: String,
    begin: Instant,
    bar: Option<ProgressBar>,
    last: Mutex<String>,
}

impl Progress {
    /// Starts a line. `label` stands before every step; empty where only one run goes on.
    #[must_use]
    pub(crate) fn new(label: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            label: if label.is_empty() {
                String::new()
            } else {
                format!("{label}: ")
            },
            begin: Instant::now(),
            bar,
            last: Mutex::default(),
        }
    }

    /// Tells the present step. The same step again prints nothing.
    pub(crate) fn step(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == text {
            return;
        }
        text.clone_into(&mut last);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}{text}", self.label)),
            None => eprintln!("lab: {}{:>4} s  {text}", self.label, self.begin.elapsed().as_secs()),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
