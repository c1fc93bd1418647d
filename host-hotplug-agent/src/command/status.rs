//! `locum status`: once, or again whenever something has changed.

use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::time::Duration;

use anyhow::Result;
use locum_abi::HostState;

use super::{print_json, print_line};
use crate::cli::{Cli, Output};
use crate::daemon::ipc::{self, Question};
use crate::l0::view::is_there;
use crate::l0::{L0View, memory};
use crate::machine::{Access, Device};
use crate::status::around::Around;
use crate::status::{Long, Picture, StatusView};
use crate::sysroot::SysRoot;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Has a terminal begin anew at its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Shows the status.
///
/// # Errors
/// If there is no L0.
pub fn run(sys: &SysRoot, cli: &Cli, long: bool, watch: bool, output: Output) -> Result<()> {
    let text = |view: &StatusView| match long {
        true => Long(view).to_string(),
        false => Picture(view).to_string(),
    };
    if watch {
        let terminal = stdout().is_terminal();
        return watch_it(|| view(sys, cli), text, terminal, &mut stdout().lock());
    }
    let view = view(sys, cli)?;
    match output.json {
        true => print_json(&view),
        false => print_line(&text(&view)),
    }
}

/// What there is to show now.
///
/// # Errors
/// If there is no L0.
pub(super) fn view(sys: &SysRoot, cli: &Cli) -> Result<StatusView> {
    let device = Device::open(sys, Access::Look)?;
    let status = memory::status(&device, device.header())?;
    let states = status.hosts.iter().map(|(_, host)| HostState::from_raw(host.state));
    let there = states.filter(|state| state.is_none_or(is_there)).count();
    let l0 = L0View::new(&status);
    let daemon = ipc::ask(&cli.socket, &Question::Status);
    let kernel = sys.read_optional("proc/sys/kernel/osrelease").unwrap_or_default();
    let around = Around::look(sys, &device, there > 1);
    Ok(StatusView::new(l0, device.header().image_bytes, kernel, daemon, around))
}

/// On a terminal the same place shows it every time; elsewhere a block follows the other where something has changed. Ends when
/// nobody reads any more.
fn watch_it(
    mut look: impl FnMut() -> Result<StatusView>,
    text: impl Fn(&StatusView) -> String,
    terminal: bool,
    to: &mut impl Write,
) -> Result<()> {
    let mut shown = String::new();
    loop {
        let view = look()?;
        let steady = text(&view.steady());
        let block = match (terminal, steady == shown) {
            (true, _) => format!("{CLEAR}{}\n", text(&view)),
            (false, true) => String::new(),
            (false, false) if shown.is_empty() => format!("{}\n", text(&view)),
            (false, false) => format!("\n{}\n", text(&view)),
        };
        match to.write_all(block.as_bytes()).and_then(|()| to.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            outcome => outcome?,
        }
        shown = steady;
        std::thread::sleep(if cfg!(test) { Duration::ZERO } else { LOOK });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DaemonStatus, wait::Wait};
    use crate::testing::l0::FakeRegion;
    use anyhow::bail;

    /// One look for each of the seconds and actions done; then there is no L0 any more.
    fn watched(looks: &[(u64, usize)], terminal: bool) -> String {
        let region = FakeRegion::new(2);
        let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let mut looks = looks.iter();
        let look = || {
            let Some(&(seconds, done)) = looks.next() else {
                bail!("no more");
            };
            let daemon = DaemonStatus {
                running: Some("next".to_owned()),
                done,
                total: 9,
                waits: Some(Wait {
                    what: "it".to_owned(),
                    seconds,
                    limit_seconds: None,
                }),
                ..DaemonStatus::default()
            };
            Ok(StatusView::new(
                l0.clone(),
                0,
                "6.12".to_owned(),
                Ok(daemon),
                Around::default(),
            ))
        };
        let mut shown = Vec::new();
        let text = |view: &StatusView| Picture(view).to_string();
        watch_it(look, text, terminal, &mut shown).unwrap_err();
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn a_pipe_gets_a_block_for_each_change_and_a_terminal_every_second() {
        let looks = [(1, 3), (2, 3), (3, 4), (4, 4)];
        let piped = watched(&looks, false);
        assert_eq!(piped.matches("of 9 actions").count(), 2, "{piped}");
        assert!(!piped.contains('\x1b'));
        let terminal = watched(&looks, true);
        assert_eq!(terminal.matches(CLEAR).count(), 4);
        assert!(terminal.contains("for 4 s so far"), "{terminal}");
    }

    #[test]
    fn it_ends_with_whoever_reads_it() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let region = FakeRegion::new(1);
        let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let look = || {
            Ok(StatusView::new(
                l0.clone(),
                0,
                String::new(),
                Err(anyhow::anyhow!("x")),
                Around::default(),
            ))
        };
        watch_it(look, |_| "text".to_owned(), false, &mut Gone).unwrap();
    }
}
