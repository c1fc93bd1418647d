//! An apt of the lab's own: the machine's may be of another release, and needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{index::Index, pocket::Pocket};
use crate::{paths, tools};

/// apt with its state in the cache.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// That in `CACHE/apt`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn new(cache: &Path) -> Result<Self> {
        let dir = cache.join("apt");
        for inner in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(inner)).with_context(|| format!("creating {}", dir.display()))?;
        }
        Ok(Self { dir })
    }

    /// Fetches the package lists (15 MB the first time) and reads them.
    ///
    /// # Errors
    /// The archive can't be reached, or its signature is not Debian's; with apt's first error.
    pub(crate) fn update(&self) -> Result<Index> {
        let _lock = paths::lock(&self.dir, "update")?;
        let sources: Vec<_> = Pocket::ALL.iter().map(|pocket| pocket.source("deb")).collect();
        fs::write(self.dir.join("sources.list"), sources.join("\n") + "\n")?;
        let output = self
            .command("apt-get")
            .args(["update", "-q"])
            .output()
            .context("starting apt-get")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let error = said.lines().find(|line| line.starts_with("E:"));
            bail!("{}", error.unwrap_or("nothing").trim_start_matches("E: "));
        }
        let mut index = Index::default();
        for pocket in Pocket::ALL {
            let listed = tools::output(self.command("apt-get").args([
                "indextargets",
                "--format",
                "$(FILENAME)",
                "Created-By: Packages",
                &format!("Codename: {}", pocket.suite()),
            ]))?;
            let file = listed
                .lines()
                .next()
                .with_context(|| format!("apt has no package list of {}", pocket.suite()))?;
            let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
            index.add(pocket, &text);
        }
        Ok(index)
    }

    /// Bytes and number of the packages that have to be fetched for a new tree with `packages`.
    ///
    /// # Errors
    /// apt finds no way to install them; with its words.
    pub(crate) fn to_fetch(&self, packages: &[String]) -> Result<(u64, usize)> {
        let _lock = paths::lock(&self.dir, "update")?;
        let text = tools::output(
            self.command("apt-get")
                .args(["install", "--print-uris", "-qq", "--yes"])
                .arg("--no-install-recommends")
                .args(packages),
        )?;
        // 'URI' FILE SIZE HASH
        let sizes: Vec<u64> = text
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split_whitespace().nth(2)?.parse().ok())
            .collect();
        Ok((sizes.iter().sum(), sizes.len()))
    }

    /// Fetches the files of packages, and not what they depend on, into `dir`.
    ///
    /// # Errors
    /// One cannot be fetched.
    pub(crate) fn download(&self, packages: &[String], dir: &Path) -> Result<()> {
        let _lock = paths::lock(&self.dir, "update")?;
        tools::run(
            self.command("apt-get")
                .args(["download", "-q"])
                .args(packages)
                .current_dir(dir),
        )
    }

    /// Fetches the files of packages, and of all that they need and a system with that `status` of dpkg's lacks, into `dir`.
    /// What is in `suite` is taken from there.
    ///
    /// # Errors
    /// apt finds no way to install them, with its words; or one cannot be fetched.
    pub(crate) fn download_beside(&self, status: &Path, suite: &str, packages: &[String], dir: &Path) -> Result<()> {
        let _lock = paths::lock(&self.dir, "update")?;
        let partial = dir.join("partial");
        fs::create_dir_all(&partial)?;
        tools::run(
            self.command("apt-get")
                .args(["install", "--download-only", "--yes", "-q", "--no-install-recommends"])
                .args([
                    "-o",
                    "Debug::NoLocking=1",
                    "-o",
                    &format!("APT::Default-Release={suite}"),
                ])
                .arg("-o")
                .arg(format!("Dir::State::status={}", status.display()))
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", dir.display()))
                .args(packages),
        )?;
        Ok(fs::remove_dir_all(partial)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::State={dir}/state"),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            // Else apt takes old lists when it cannot have new ones.
            "APT::Update::Error-Mode=any".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::GzipIndexes=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=1".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.stdin(std::process::Stdio::null());
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}
