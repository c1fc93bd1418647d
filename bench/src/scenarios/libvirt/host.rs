//! What stands for a host: namespaces of its own on this machine's kernel, and Debian's libvirt in them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    HANG, OFTEN,
    guest::{self, NAME, UUID},
};
use crate::{debian::root::Root, tools};

/// Its first process.
const FIRST: &str = include_str!("../../../libvirt/host.sh");
/// Where Debian has programs. Nothing else of the developer's environment goes into a host: libvirt looks at variables, too.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A host. It ends with this, and so does all that runs in it.
pub(super) struct Host {
    name: &'static str,
    dir: PathBuf,
    namespaces: Child,
}

impl Host {
    /// Begins to boot one of that name in `dir`, which shares the directory `shared` with others.
    pub(super) fn boot(name: &'static str, tree: &Root, dir: PathBuf, shared: &Path) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let namespaces = Command::new("unshare")
            .args(["--mount", "--uts", "--ipc", "--pid", "--net"])
            .args(["--fork", "--kill-child", "sh", "-c", FIRST, "sh"])
            .args([tree.dir(), &dir, Path::new(name), shared])
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("boot.log"))?)
            .spawn()
            .context("starting unshare")?;
        Ok(Self { name, dir, namespaces })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until its libvirt answers.
    pub(super) fn up(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            // Its programs cannot be reached before.
            if let Ok((Some(0), _)) = self.run(&["virsh", "version"]) {
                return Ok(());
            }
            if self.namespaces.try_wait()?.is_some() || begin.elapsed() > HANG {
                let log = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
                let words = [log("boot.log"), log("log/libvirtd.log")].concat();
                bail!(
                    "libvirt of host {} does not come up:\n{}",
                    self.name,
                    tools::last_lines(&words, 20)
                );
            }
            thread::sleep(OFTEN);
        }
    }

    /// The process outside that is the first one inside.
    fn first(&self) -> Result<u32> {
        let text = fs::read_to_string(self.dir.join("pid"))?;
        text.trim().parse().with_context(|| format!("`{text}` is no process"))
    }

    /// A file of its, `inner` given without the leading slash.
    fn path(&self, inner: &str) -> Result<PathBuf> {
        let namespace = Path::new("/proc").join(self.first()?.to_string()).join("root");
        let root = self.dir.join("root");
        Ok(namespace.join(root.strip_prefix("/").unwrap_or(&root)).join(inner))
    }

    /// Has a program run in it to its end; returns its exit status and all that it wrote.
    pub(super) fn run(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        tools::status(
            Command::new("nsenter")
                .arg(format!("--target={}", self.first()?))
                .args(["--mount", "--uts", "--ipc", "--pid", "--net", "chroot"])
                .arg(self.dir.join("root"))
                .args(["timeout", "--kill-after=10", &(2 * HANG).as_secs().to_string()])
                .args(words)
                .env_clear()
                .env("PATH", PATH),
        )
    }

    /// Has its libvirt do that.
    pub(super) fn virsh(&self, words: &[&str]) -> Result<String> {
        let (status, text) = self.run(&[&["virsh", "--quiet"], words].concat())?;
        ensure!(
            status == Some(0),
            "`virsh {}` ended with {status:?} in host {}:\n{text}",
            words.join(" "),
            self.name
        );
        Ok(text.trim().to_owned())
    }

    /// What the domain does here. A guest that comes for the first time brings its domain along.
    pub(super) fn state(&self) -> Result<String> {
        let domains = self.virsh(&["list", "--all", "--name"])?;
        if !domains.lines().any(|name| name.trim() == NAME) {
            return Ok("unknown".to_owned());
        }
        self.virsh(&["domstate", NAME])
    }

    /// What the domain says on its console, as one sees it who opens that now.
    pub(super) fn console(&self) -> Result<String> {
        let console = self.virsh(&["ttyconsole", NAME])?;
        let (status, text) = self.run(&["head", "-c", "4", &console])?;
        ensure!(
            status == Some(0),
            "{console} cannot be read in host {}: {text}",
            self.name
        );
        Ok(text)
    }

    /// The domain's QEMU does that.
    pub(super) fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        let words = json!({ "execute": command, "arguments": arguments }).to_string();
        let text = self.virsh(&["qemu-monitor-command", NAME, &words])?;
        let mut answer: Value = serde_json::from_str(&text).with_context(|| format!("{text} is no JSON"))?;
        answer
            .get_mut("return")
            .map(Value::take)
            .with_context(|| format!("{command}: {text}"))
    }

    /// What its QEMUs wrote.
    pub(super) fn log(&self) -> Result<String> {
        let path = self.dir.join(format!("log/qemu/{NAME}.log"));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// The process of its QEMU, as its libvirt has it.
    pub(super) fn qemu(&self) -> Result<String> {
        let path = self.path(&format!("run/libvirt/qemu/{NAME}.pid"))?;
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// What an agent has left that gave the domain another QEMU.
    pub(super) fn left(&self) -> Result<String> {
        let (_, names) = self.run(&["ls", "/run/locum/libvirt"])?;
        let names = names
            .lines()
            .filter(|name| !name.ends_with(".json") && *name != "sockets");
        Ok(names.collect::<Vec<_>>().join(" "))
    }

    /// An agent saves the domain, and dies.
    pub(super) fn begins_to_renew(&self) -> Result<()> {
        let note = self.path(&format!("run/locum/libvirt/{UUID}.renewing"))?;
        fs::write(note, json!({ "name": NAME, "uuid": UUID }).to_string())?;
        self.virsh(&["save", NAME, &format!("/run/locum/libvirt/{UUID}.saved")])
            .map(drop)
    }

    /// As libvirt's hook gives the domain its piece of the pool.
    pub(super) fn give(&self, crossing: bool) -> Result<()> {
        let path = self.path(&guest::given_path())?;
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, guest::given(crossing).to_string()).with_context(|| path.display().to_string())
    }

    /// As the hook takes it back.
    pub(super) fn take(&self) -> Result<()> {
        fs::remove_file(self.path(&guest::given_path())?).with_context(|| format!("in host {}", self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its first process reads this to its end, and the kernel ends all others before it says that the first one is
        // gone: nothing of it is mounted or open then.
        drop(self.namespaces.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < HANG && matches!(self.namespaces.try_wait(), Ok(None)) {
            thread::sleep(OFTEN);
        }
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
    }
}
