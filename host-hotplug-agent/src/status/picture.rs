//! `locum status`: who has what, where guests are and how a refresh stands, in lines of 80 columns at most.

use std::fmt;

use locum_abi::Slot;
use strum::VariantArray;
use textwrap::{Options, wrap};

use super::around::{GuestView, Place};
use super::{DaemonStatus, StatusView};
use crate::l0::view::CpuView;
use crate::report::Report;
use crate::units::{moment, seconds, size, span};

/// Columns of a terminal that nobody made wider.
const WIDTH: usize = 80;
/// Columns of the names on the left.
const NAMES: usize = 12;
/// Columns of a bar in the table.
const BAR: usize = 16;
/// Columns of the words behind the bar of CPUs.
const WORDS: usize = 18;
/// Columns of the bar of a refresh.
const LONG_BAR: usize = 40;
/// Lines of guests' names of one place.
const GUESTS: usize = 3;

/// What has VMX root itself, and what L0 is below of.
const NATIVE: &str = "█";
const NESTED: &str = "▒";
const NEITHER: &str = "·";

/// A status to be shown so.
pub struct Picture<'a>(pub &'a StatusView);

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl Picture<'_> {
    fn lines(&self) -> Vec<String> {
        let view = self.0;
        let mut lines = vec![self.heading(), String::new()];
        lines.extend(self.table());
        if let Some(guests) = &view.around.guests {
            lines.push(String::new());
            lines.extend(Place::VARIANTS.iter().flat_map(|place| in_place(guests, *place)));
            if guests.is_empty() {
                lines.extend(named("guests", "none with RAM in the pool"));
            }
        }
        let refresh = match (view.running(), &view.last_report) {
            (Some(daemon), _) => running(daemon),
            (None, Some(report)) => ended(report),
            (None, None) => Vec::new(),
        };
        if !refresh.is_empty() {
            lines.push(String::new());
            lines.extend(refresh);
        }
        let told = view.daemon.as_ref().and_then(|daemon| daemon.last_error.as_deref());
        let reported = view.last_report.as_ref().and_then(|report| report.error.as_deref());
        if let Some(error) = told.filter(|error| Some(*error) != reported || view.running().is_some()) {
            lines.extend(named("last error", error));
        }
        if let Some(error) = &view.no_answer {
            lines.push(String::new());
            lines.extend(named("daemon", error));
        }
        lines
    }

    fn heading(&self) -> String {
        let view = self.0;
        let host = |slot| view.hosts.iter().find(|host| host.slot == slot);
        let own = host(self.0.own()).map_or(view.generation, |host| host.generation);
        let l0 = match view.cpus.iter().any(|cpu| cpu.mode == "nested") {
            true => "L0 below",
            false => "L0 dormant",
        };
        let other = host(self.0.own().other()).filter(|host| !matches!(host.state.as_str(), "absent" | "retired"));
        let other = other.map(|host| {
            let why = host.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            format!("; beside it generation {}, {}{why}", host.generation, host.state)
        });
        let text = format!(
            "generation {own}, Linux {}, {l0}{}",
            view.kernel,
            other.unwrap_or_default()
        );
        wrapped(&text, "", "    ").join("\n")
    }

    /// CPUs and memory by owner.
    fn table(&self) -> Vec<String> {
        let memory = &self.0.around.memory;
        let (own, most) = (self.0.own(), self.most());
        let cpus = |owner: Option<Slot>| self.cpus(owner);
        let rows = [
            ("this host", cpus(Some(own)), memory.this),
            ("other host", cpus(Some(own.other())), memory.other),
            ("nobody", cpus(None), memory.nobody),
            ("pool", Vec::new(), memory.pool),
        ];
        let mut lines = vec![format!(
            "{:NAMES$}CPUs {NATIVE} native {NESTED} nested{:width$}memory",
            "",
            "",
            width = BAR + WORDS + 2 - "CPUs x native x nested".chars().count()
        )];
        for (name, cpus, bytes) in rows {
            let shown = name == "this host" || !cpus.is_empty() || bytes.is_some_and(|bytes| bytes > 0);
            if !shown {
                continue;
            }
            let bytes = bytes.filter(|bytes| *bytes > 0 || name == "this host");
            let bar = bytes.map_or_else(String::new, |bytes| NATIVE.repeat(cells(bytes, most, BAR)));
            let line = format!(
                "{name:NAMES$}{:BAR$} {:<WORDS$} {bar:BAR$} {:>9}",
                self.bar(&cpus),
                words(&cpus),
                bytes.map_or_else(String::new, size)
            );
            lines.push(line.trim_end().to_owned());
        }
        lines
    }

    /// The longest bar of memory stands for so much.
    fn most(&self) -> u64 {
        let memory = &self.0.around.memory;
        let all = [memory.this, memory.other, memory.nobody, memory.pool];
        all.into_iter().flatten().max().unwrap_or(0)
    }

    /// CPUs that are there, of one owner.
    fn cpus(&self, owner: Option<Slot>) -> Vec<&CpuView> {
        let cpus = self
            .0
            .cpus
            .iter()
            .filter(|cpu| cpu.owner == owner && cpu.mode != "absent");
        cpus.collect()
    }

    fn bar(&self, cpus: &[&CpuView]) -> String {
        let all = self.0.cpus.iter().filter(|cpu| cpu.mode != "absent").count() as u64;
        let of = |mode: &[&str], sign: &str| {
            let count = cpus.iter().filter(|cpu| mode.contains(&cpu.mode.as_str())).count() as u64;
            sign.repeat(cells(count, all, BAR))
        };
        // Rounding up may make each a cell longer than there is room for.
        let bar = of(&["native"], NATIVE) + &of(&["nested"], NESTED) + &of(&["parked"], NEITHER);
        bar.chars().take(BAR).collect()
    }
}

/// Cells of a bar of `width` for `part` of `all`; at least one if there is any.
fn cells(part: u64, all: u64, width: usize) -> usize {
    match (part, all) {
        (0, _) | (_, 0) => 0,
        _ => ((part as f64 / all as f64 * width as f64).round() as usize).clamp(1, width),
    }
}

fn words(cpus: &[&CpuView]) -> String {
    let count = |mode: &str| cpus.iter().filter(|cpu| cpu.mode == mode).count();
    let modes = ["native", "nested", "parked"].map(|mode| (count(mode), mode));
    match modes
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => String::new(),
        [(count, mode)] => format!("{count} {mode}"),
        [_, rest @ ..] => {
            let rest: Vec<_> = rest.iter().map(|(count, mode)| format!("{count} {mode}")).collect();
            format!("{}, {}", cpus.len(), rest.join(", "))
        }
    }
}

fn in_place(guests: &[GuestView], place: Place) -> Vec<String> {
    let names = guests.iter().filter(|guest| guest.place == place);
    let names: Vec<_> = names.map(|guest| plain(&guest.name)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let label = match place {
        Place::Here => "guests here",
        Place::There => "there",
        Place::Crossing => "crossing",
        Place::Off => "off",
    };
    let mut lines = named(label, &names.join("  "));
    if lines.len() > GUESTS {
        lines.truncate(GUESTS - 1);
        lines.push(format!("{:NAMES$}... {} in all: `locum pool`", "", names.len()));
    }
    lines
}

/// How the refresh that runs stands.
fn running(daemon: &DaemonStatus) -> Vec<String> {
    let name = daemon.running.as_deref().unwrap_or_default();
    let phase = daemon
        .phase
        .as_deref()
        .map(|phase| format!(", phase {phase}"))
        .unwrap_or_default();
    let mut lines = named("refresh", &format!("to {}{phase}", plain(name)));
    if daemon.total > 0 {
        let done = cells(daemon.done as u64, daemon.total as u64, LONG_BAR);
        lines.push(format!(
            "{:NAMES$}{}{} {} of {} actions",
            "",
            NATIVE.repeat(done),
            NEITHER.repeat(LONG_BAR - done),
            daemon.done,
            daemon.total
        ));
    }
    match &daemon.waits {
        Some(wait) if daemon.course != "aborting" => lines.extend(named("waits for", &wait.to_string())),
        Some(wait) => {
            lines.extend(named("gives back", &daemon.summary));
            lines.extend(named("waits for", &wait.to_string()));
        }
        None => lines.extend(named("stands at", &daemon.summary)),
    }
    if let Some(left) = daemon.left_seconds {
        lines.extend(named(
            "time left",
            &format!("about {}, as the last refresh took", span(left)),
        ));
    }
    lines
}

/// How the last one ended.
fn ended(report: &Report) -> Vec<String> {
    let took = seconds(report.end.saturating_sub(report.start), report.tsc_khz);
    let took = if report.end == 0 || report.tsc_khz == 0 {
        String::new()
    } else {
        format!(" after {}", moment(took))
    };
    let mut lines = named(
        "last refresh",
        &format!("to {}: {}{took}", plain(&report.name), report.outcome),
    );
    let crossed: Vec<_> = report.guests.iter().filter(|guest| guest.moved).collect();
    let longest = crossed.iter().max_by_key(|guest| guest.pause_ticks);
    if let Some(guest) = longest.filter(|_| report.tsc_khz != 0) {
        let still = moment(seconds(guest.pause_ticks, report.tsc_khz));
        let text = match crossed.len() {
            1 => format!("guest {}, which stood still for {still}", guest.name),
            count => format!("{count} guests; the longest stood still for {still} ({})", guest.name),
        };
        lines.extend(named("crossed", &text));
    }
    if let Some(error) = &report.error {
        lines.extend(named("because", error));
    }
    for loss in &report.losses {
        lines.extend(named("lost", loss));
    }
    lines
}

/// A name on the left, and what belongs to it; further lines begin below that.
fn named(name: &str, text: &str) -> Vec<String> {
    wrapped(
        text,
        &format!("{name:NAMES$}{}", if name.len() < NAMES { "" } else { " " }),
        &" ".repeat(NAMES),
    )
}

fn wrapped(text: &str, first: &str, then: &str) -> Vec<String> {
    let options = Options::new(WIDTH).initial_indent(first).subsequent_indent(then);
    let text = plain(text);
    wrap(&text, options).into_iter().map(|line| line.into_owned()).collect()
}

/// What a name brings along does not steer the terminal.
fn plain(text: &str) -> String {
    let shown = |sign: char| if sign.is_control() { ' ' } else { sign };
    text.chars().map(shown).collect()
}
