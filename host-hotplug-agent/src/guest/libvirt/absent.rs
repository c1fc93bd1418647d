//! Why libvirt's daemon is not there, as far as it told.

use std::fmt;

use crate::sysroot::SysRoot;

/// What daemons that QEMU's driver is in write, where nothing else takes their words (`src/util/virlog.c`).
const LOGS: [&str; 2] = ["var/log/libvirt/libvirtd.log", "var/log/libvirt/virtqemud.log"];

/// No daemon of libvirt's listens on this host.
#[derive(Debug, thiserror::Error)]
pub struct Absent {
    /// What went wrong first when it was last started.
    why: Option<String>,
}

impl Absent {
    /// On that host.
    pub fn on(sys: &SysRoot) -> Self {
        let mut texts = LOGS.iter().filter_map(|log| sys.read_optional(log));
        Self {
            why: texts.find_map(|text| first_error(&text)),
        }
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "this host's libvirt listens nowhere; it has said: {why}"),
            None => f.write_str("this host has no libvirt: its daemon listens nowhere"),
        }
    }
}

/// Of the process that wrote last. Lines are `DATE TIME: PROCESS: error : FUNCTION:LINE : TEXT`.
fn first_error(log: &str) -> Option<String> {
    let errors = log.lines().filter_map(|line| {
        let (head, rest) = line.split_once(": error : ")?;
        let (process, text) = (head.rsplit(' ').next()?, rest.split_once(" : ")?.1);
        Some((process, text))
    });
    let errors: Vec<_> = errors.collect();
    let (last, _) = errors.last()?;
    // A process has a number for each of its threads, and it is the same until it is ready.
    let first = errors.iter().find(|(process, _)| process == last)?;
    Some(first.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn the_first_error_of_the_last_start_is_told() {
        let tree = Tree::lab();
        let sys = tree.sys();
        assert!(Absent::on(&sys).to_string().contains("no libvirt"));
        let log = "2026-11-29 19:00:01.000+0000: 77: error : virFileOpen:1 : an older one\n\
             2026-11-29 20:00:48.331+0000: 3209: info : libvirt version: 11.3.0\n\
             2026-11-29 20:00:48.331+0000: 3209: error : virNetworkLoadDriverConfig:155 : internal error: could not find a \
             usable firewall backend\n\
             2026-11-29 20:00:48.332+0000: 3209: error : daemonRunStateInit:587 : Driver state initialization failed\n";
        tree.put("var/log/libvirt/libvirtd.log", log);
        let told = Absent::on(&sys).to_string();
        assert!(
            told.ends_with("it has said: internal error: could not find a usable firewall backend"),
            "{told}"
        );
    }
}
