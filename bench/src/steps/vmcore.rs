//! What a crash kernel of the lab (`bench/image/crash-init`) told of a dump on its console.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{
    LittleEndian,
    elf::{ET_CORE, FileHeader64, NT_PRSTATUS, PT_LOAD},
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use crate::tools;

/// The owner of the note that tells of the kernel that crashed (Documentation/admin-guide/kdump/vmcoreinfo.rst).
const VMCOREINFO: &[u8] = b"VMCOREINFO";

/// A piece is read of so many MiB of the other host's memory.
const PIECE: u32 = 2;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// The beginning of `/proc/vmcore`.
    head: Vec<u8>,
    /// The end of the log of the kernel that crashed.
    log: String,
    /// Bytes of a dump of what was in use.
    bytes: u64,
    /// Pieces of the other host's memory that were read.
    pieces: u64,
    /// Those of them that were not zero.
    others: u64,
}

/// What describes a dump.
#[derive(Debug, Default, PartialEq, Eq)]
struct Core {
    /// Notes with a CPU's registers.
    cpus: u32,
    /// Ranges of memory.
    ranges: u32,
    /// What the kernel that crashed tells of itself.
    info: String,
}

impl Told {
    /// Reads it from the text of the console; the beginning of the dump is left in the file `head`.
    ///
    /// # Errors
    /// Something is missing, or failed there.
    pub(crate) fn parse(console: &str, head: &Path) -> Result<Self> {
        let packed = head.with_extension("packed");
        std::fs::write(&packed, section(console, "core")?)?;
        tools::shell(r#"tr -d "\r" < "$1" | base64 -d | gzip -dc > "$2""#, &[&packed, head])
            .context("unpacking the dump's beginning")?;
        std::fs::remove_file(packed)?;
        for step in ["status of the log", "status of the dump"] {
            let status = number(console, step)?;
            ensure!(status == 0, "{step}: makedumpfile ended with {status}");
        }
        Ok(Self {
            head: std::fs::read(head)?,
            log: section(console, "log")?.to_owned(),
            bytes: number(console, "bytes of the dump")?,
            pieces: number(console, "pieces of the other host's memory")?,
            others: number(console, "pieces of it that are not zero")?,
        })
    }

    /// Makes sure that it was a dump of a host with this kernel and so many CPUs, and that so many MiB of the other host's
    /// memory were zero to it.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn check(&self, release: &str, cpus: u32, foreign: u32) -> Result<()> {
        let core = Core::parse(&self.head)?;
        ensure!(
            core.info
                .lines()
                .any(|line| line.strip_prefix("OSRELEASE=") == Some(release)),
            "VMCOREINFO is not of {release}:\n{}",
            core.info
        );
        ensure!(core.cpus >= cpus, "the dump has {} CPUs, not {cpus}", core.cpus);
        ensure!(core.ranges > 0, "no memory is in the dump");
        for words in [
            "sysrq: Trigger a crash",
            "Kernel panic - not syncing: sysrq triggered crash",
        ] {
            ensure!(
                self.log.contains(words),
                "no `{words}` in the log in the dump:\n{}",
                self.log
            );
        }
        ensure!(
            self.bytes > 1 << 20,
            "the dump of what was in use has {} bytes",
            self.bytes
        );
        ensure!(
            self.pieces == u64::from(foreign / PIECE) && self.others == 0,
            "of {foreign} MiB of the other host's, {} pieces were read, and {} of them were not zero",
            self.pieces,
            self.others
        );
        Ok(())
    }
}

impl Core {
    /// Reads what a dump begins with.
    fn parse(head: &[u8]) -> Result<Self> {
        let endian = LittleEndian;
        let header = FileHeader64::<LittleEndian>::parse(head).context("the dump is no ELF file")?;
        let kind = header.e_type(endian);
        ensure!(
            kind == ET_CORE,
            "the dump is an ELF file of type {kind}, and not a core"
        );
        let mut core = Self::default();
        for part in header.program_headers(endian, head)? {
            core.ranges += u32::from(part.p_type(endian) == PT_LOAD);
            let Some(mut notes) = part.notes(endian, head)? else {
                continue;
            };
            while let Some(note) = notes.next()? {
                if note.name() == VMCOREINFO {
                    core.info = String::from_utf8_lossy(note.desc()).into_owned();
                }
                core.cpus += u32::from(note.n_type(endian) == NT_PRSTATUS);
            }
        }
        Ok(core)
    }
}

/// The lines between two marks.
fn section<'a>(console: &'a str, name: &str) -> Result<&'a str> {
    let inner = console
        .split_once(&format!("crash: begin of {name}"))
        .and_then(|(_, rest)| rest.split_once(&format!("crash: end of {name}")));
    Ok(inner
        .with_context(|| format!("the crash kernel did not tell of the {name}"))?
        .0)
}

/// The number behind these words.
fn number(console: &str, words: &str) -> Result<u64> {
    let told = console
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("crash: {words}: ")));
    told.and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("the crash kernel did not tell the {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A note: sizes of name and content, its type, and both, each filled up to 4 bytes.
    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len() as u32 + 1, content.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        for part in [[name, &[0]].concat(), content.to_vec()] {
            bytes.extend(&part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// A dump's beginning (System V ABI, chapters 4 and 5): two CPUs' notes, that of the kernel, and a range of memory.
    fn head(kind: u16, release: &str) -> Vec<u8> {
        let info = format!("OSRELEASE={release}\nPAGESIZE=4096\n");
        let notes = [
            note(b"CORE", NT_PRSTATUS.0, &[0; 16]),
            note(b"CORE", NT_PRSTATUS.0, &[0; 16]),
            note(VMCOREINFO, 0, info.as_bytes()),
        ]
        .concat();
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend([kind, 62].map(u16::to_le_bytes).concat());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        for (kind, offset, size) in [(4u32, 64 + 2 * 56, notes.len() as u64), (1, 4096, 4096)] {
            bytes.extend([kind, 4].map(u32::to_le_bytes).concat());
            bytes.extend([offset, 0, 0, size, size, 4].map(u64::to_le_bytes).concat());
        }
        bytes.extend(notes);
        bytes
    }

    fn told() -> Told {
        Told {
            head: head(4, "6.12.107+deb13-amd64"),
            log: "sysrq: Trigger a crash\nKernel panic - not syncing: sysrq triggered crash\n".into(),
            bytes: 50 << 20,
            pieces: 256,
            others: 0,
        }
    }

    #[test]
    fn a_whole_dump_is_told_from_others() {
        let check = |told: &Told| told.check("6.12.107+deb13-amd64", 2, 512);
        check(&told()).unwrap();
        let wrong: [fn(&mut Told); 7] = [
            |told| told.head = head(2, "6.12.107+deb13-amd64"),
            |told| told.head = head(4, "6.12.118+deb13-amd64"),
            |told| told.head.truncate(100),
            |told| told.log.clear(),
            |told| told.bytes = 0,
            |told| told.pieces = 255,
            |told| told.others = 1,
        ];
        for (number, spoil) in wrong.iter().enumerate() {
            let mut told = told();
            spoil(&mut told);
            assert!(check(&told).is_err(), "{number}");
        }
        assert!(
            told().check("6.12.107+deb13-amd64", 3, 512).is_err(),
            "a CPU is missing"
        );
    }

    #[test]
    fn the_console_is_read() {
        let dir = tempfile::tempdir().unwrap();
        // `printf core | gzip | base64`.
        let packed = "H4sIAAAAAAAAA0vOL0oFAE+FjWsEAAAA";
        let console = format!(
            "[ 1.0] x\r\ncrash: begin of core\r\n{packed}\r\ncrash: end of core\r\ncrash: status of the log: 0\r\n\
             crash: begin of log\r\nsysrq\r\ncrash: end of log\r\ncrash: status of the dump: 0\r\n\
             crash: bytes of the dump: 4711\r\ncrash: pieces of the other host's memory: 256\r\n\
             crash: pieces of it that are not zero: 3\r\n"
        );
        assert_eq!(number(&console, "bytes of the dump").unwrap(), 4711);
        assert!(number(&console, "bytes").is_err());
        assert!(section(&console, "log").unwrap().contains("sysrq"));
        assert!(section(&console, "other").is_err());
        let failed = console.replace("status of the dump: 0", "status of the dump: 1");
        assert!(Told::parse(&failed, &dir.path().join("head")).is_err());
        let told = Told::parse(&console, &dir.path().join("head")).unwrap();
        assert_eq!(
            (told.head.as_slice(), told.pieces, told.others),
            (b"core".as_slice(), 256, 3)
        );
    }
}
