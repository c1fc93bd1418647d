//! `g3`: a guest that nobody here made. Debian as it is installed in a virtual machine, with its own kernel and
//! initramfs, systemd and a web server; `bench/guest/stock/setup.sh` has all that was set in it.
//!
//! Its disk is what a data centre has: storage on the network. The lab serves a copy of it over NBD, and a host reaches
//! the lab through its network card, which the emulator connects to this machine.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, ensure};
use lab_guest::{map::Shared, nbd};

use crate::{
    debian::{roots::Root, trees},
    paths,
    progress::say,
    tools,
};

/// Its name.
pub const NAME: &str = "g3";
/// What a host's shell runs to look at one of its pages, which follows: the guest's port 80 is the host's port 8080.
pub const FETCH: &str = "wget -q -T 20 -O - http://127.0.0.1:8080/cgi-bin/";
/// Size of its disk in MiB: what is in it, and half of it free.
const DISK: u64 = 640;
/// What the page `journal` ends with.
const JOURNAL_END: &str = "end of journal";

/// The guest as it was installed.
#[derive(Debug, Clone)]
pub struct StockGuest {
    root: Root,
    disk: PathBuf,
}

impl StockGuest {
    /// Installs it, unless it is cached.
    ///
    /// # Errors
    /// It cannot be fetched, or its disk cannot be made.
    pub fn get() -> Result<Self> {
        let root = Root::guest()?;
        let name = root.dir().file_name().context("root without a name")?;
        let disk = paths::cache()?.join(format!("{}.ext4", name.display()));
        let _lock = trees::lock(&disk)?;
        if !disk.exists() {
            say("making the stock guest's disk");
            make_disk(&root, &disk)?;
        }
        Ok(Self { root, disk })
    }

    /// Its kernel.
    ///
    /// # Errors
    /// It has none, or several.
    pub fn kernel(&self) -> Result<PathBuf> {
        self.boot_file("vmlinuz-")
    }

    /// Its initramfs.
    ///
    /// # Errors
    /// As [`StockGuest::kernel`].
    pub fn initrd(&self) -> Result<PathBuf> {
        self.boot_file("initrd.img-")
    }

    fn boot_file(&self, prefix: &str) -> Result<PathBuf> {
        let dir = self.root.path("boot");
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with(prefix) {
                files.push(path);
            }
        }
        match files.as_slice() {
            [file] => Ok(file.clone()),
            _ => anyhow::bail!("{} has not one {prefix}*: {files:?}", dir.display()),
        }
    }
}

/// An ext4 image of the tree, its owners as they are there.
fn make_disk(root: &Root, disk: &Path) -> Result<()> {
    let part = trees::part(disk);
    fs::File::create(&part)?.set_len(DISK << 20)?;
    let mke2fs = root.program("usr/sbin/mke2fs");
    let mut command = Command::new(mke2fs.get_program());
    if !tools::is_root() {
        // Where mmdebstrap made the tree, its owners are this user's subordinates.
        command = Command::new("unshare");
        command
            .args(["--map-auto", "--map-root-user"])
            .arg(mke2fs.get_program());
    }
    command
        .args(mke2fs.get_args())
        .args(["-q", "-F", "-t", "ext4", "-L", NAME, "-d"])
        .arg(root.dir())
        .arg(&part)
        .env("MKE2FS_CONFIG", root.path("etc/mke2fs.conf"));
    tools::run(&mut command)?;
    fs::rename(&part, disk)?;
    Ok(())
}

/// A copy of the guest's disk, served over NBD to whoever connects for as long as the lab runs.
#[derive(Debug)]
pub struct Disk {
    port: u16,
    file: PathBuf,
}

impl Disk {
    /// Serves a fresh copy in `dir`; connections are noted in `disk.log` there.
    ///
    /// # Errors
    /// The copy or the listening socket cannot be made.
    pub fn serve(guest: &StockGuest, dir: &Path) -> Result<Self> {
        let file = dir.join("disk.ext4");
        fs::copy(&guest.disk, &file).context("copying the stock guest's disk")?;
        let store = Arc::new(Shared::file(&file, 0, None, true)?);
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let log = Arc::new(fs::File::create(dir.join("disk.log"))?);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let (store, log) = (Arc::clone(&store), Arc::clone(&log));
                thread::spawn(move || {
                    // Nobody reads the log but in the search for a fault.
                    let _ = writeln!(&*log, "connection {number} begins");
                    let _ = stream.set_nodelay(true);
                    let end = nbd::serve(stream, &*store);
                    let _ = writeln!(&*log, "connection {number} ends: {end:?}");
                });
            }
        });
        Ok(Self { port, file })
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Large, and made anew each time.
        let _ = fs::remove_file(&self.file);
    }
}

/// What the page `visit` says: it has also left a line on the guest's disk, and read back how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// Which boot of the guest it is.
    pub boot: String,
    /// Hundredths of a second that the guest has been up.
    pub uptime: u64,
    /// Lines of this boot on its disk.
    pub lines: u64,
}

impl Visit {
    /// Reads the page.
    ///
    /// # Errors
    /// It is another page.
    pub fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let visit = match *words.as_slice() {
            [boot, uptime, lines] if boot.len() == 36 => {
                let uptime = uptime.replace('.', "").parse();
                uptime.ok().zip(lines.parse().ok()).map(|(uptime, lines)| Self {
                    boot: boot.to_owned(),
                    uptime,
                    lines,
                })
            }
            _ => None,
        };
        visit.with_context(|| format!("not what the guest's page says: {text:?}"))
    }

    /// Whether this can be said after `earlier`.
    ///
    /// # Errors
    /// The guest was booted anew, its clock fell back, or its disk lost what was on it.
    pub fn follows(&self, earlier: &Self) -> Result<()> {
        ensure!(
            self.boot == earlier.boot,
            "the guest is in boot {}, no longer in {}",
            self.boot,
            earlier.boot
        );
        ensure!(
            self.uptime >= earlier.uptime && self.lines > earlier.lines,
            "the guest or its disk fell back: {self:?} after {earlier:?}"
        );
        Ok(())
    }
}

/// A shell command that visits the guest again and again, until the file `until` is there, and prints a line each time:
/// the state of the refresh as this host sees it, and the page or the error.
#[must_use]
pub fn watch(until: &str) -> String {
    format!(
        "rm -f {until}; while [ ! -e {until} ]; do s=$(cat /sys/kernel/locum/state 2>/dev/null); \
         echo \"${{s:-none}} $({FETCH}visit 2>&1 | head -n 1)\"; sleep 1; done"
    )
}

/// The visits that succeeded, in order, each with the state of the refresh in which it began, of what [`watch`]
/// printed.
#[must_use]
pub fn visits(text: &str) -> Vec<(String, Visit)> {
    text.lines()
        .filter_map(|line| {
            let (state, page) = line.split_once(' ')?;
            Some((state.to_owned(), Visit::parse(page).ok()?))
        })
        .collect()
}

/// The entries of the page `journal`.
///
/// # Errors
/// It does not end as it should.
pub fn journal(text: &str) -> Result<Vec<String>> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let end = lines.pop();
    ensure!(
        end.as_deref() == Some(JOURNAL_END),
        "the guest's journal cannot be read:\n{text}"
    );
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn visits_are_told_from_errors() {
        let text = format!(
            "idle {BOOT} 12.34 1\nnested {BOOT} 56.78 2\nhandover wget: can't connect\nnone\nidle {BOOT} 57.00"
        );
        let visits = visits(&text);
        assert_eq!(visits.len(), 2);
        assert_eq!(visits[1].0, "nested");
        assert_eq!((visits[1].1.uptime, visits[1].1.lines), (5678, 2));
        assert!(visits[1].1.follows(&visits[0].1).is_ok());
        assert!(visits[0].1.follows(&visits[1].1).is_err());
    }

    #[test]
    fn another_boot_does_not_follow() {
        let one = Visit::parse(&format!("{BOOT} 12.34 1")).unwrap();
        let other = Visit::parse(&format!("1{} 99.00 9", &BOOT[1..])).unwrap();
        assert!(other.follows(&one).is_err());
        assert!(Visit::parse("404 Not Found").is_err());
    }

    #[test]
    fn a_journal_has_an_end() {
        assert_eq!(journal("a\nb\nend of journal\n").unwrap(), ["a", "b"]);
        assert!(journal("a\n").is_err() && journal("").is_err());
    }
}
