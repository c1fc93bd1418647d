//! What systemd is told (`sd_notify(3)`), if it started this program and wants to know.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon answers from now on.
pub fn ready() {
    tell(&NotifyState::Ready);
}

/// How it stands, for `systemctl status`.
pub fn status(line: &str) {
    // A second line would be another variable.
    tell(&NotifyState::Status(&line.replace('\n', " ")));
}

/// The main loop goes round.
pub fn alive() {
    tell(&NotifyState::Watchdog);
}

/// How often systemd is to hear of [`alive`]: twice in the time after which it takes the daemon for hung (`WatchdogSec=`).
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
        .map(|limit| limit / 2)
        .filter(|every| !every.is_zero())
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!("systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    /// Set in the process that this test starts to do the telling: the environment is a whole process's.
    const TELLS: &str = "LOCUM_TEST_TELLS";

    #[test]
    fn systemd_hears_it() {
        if std::env::var_os(TELLS).is_some() {
            assert_eq!(watchdog(), Some(Duration::from_secs(60)));
            ready();
            status("generation 0, Offloaded\nnext");
            alive();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "systemd::tests::systemd_hears_it"])
            .env(TELLS, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "120000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut bytes = [0; 256];
        while let Ok(count) = socket.recv(&mut bytes) {
            heard.push(String::from_utf8(bytes[..count].to_vec()).unwrap());
        }
        assert_eq!(
            heard,
            ["READY=1\n", "STATUS=generation 0, Offloaded next\n", "WATCHDOG=1\n"]
        );
    }
}
