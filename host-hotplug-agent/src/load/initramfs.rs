//! An initramfs: is it whole, and will the kernel unpack all of it? The kernel finds out too late, when the incumbent
//! has already given up memory, and then it only logs what it does not understand and goes on without it.
//!
//! A file is a row of archives with zeroes between them, each plain cpio or compressed, and perhaps a bootconfig at its
//! end (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`). What is unpacked is decided by
//! `init/initramfs.c`, `unpack_to_rootfs`: a plain entry begins at a multiple of 4, and so does whatever follows plain
//! entries. A compressed archive begins where the one before it ended, or after zeroes. So all places count from the
//! start of the ramdisk, and where a compressed archive ends must be known ([`super::compressed`]).

use super::bootconfig;
use super::compressed::{self, End};

const CPIO_HEADER: usize = 110;
/// Plain entries begin at multiples of this.
const ALIGN: usize = 4;

/// Whether the kernel unpacks the whole file; else what is wrong with it.
///
/// # Errors
/// A sentence without the file's name.
pub fn check(file: &[u8]) -> Result<(), String> {
    let (archives, bootconfig) = bootconfig::split(file)?;
    let count = row(archives).map_err(|problem| match bootconfig_within(archives) {
        Some(end) => format!(
            "it has a bootconfig that ends at byte {end}, but the kernel looks for one at the very end only: append it \
             last"
        ),
        None => problem,
    })?;
    if count == 0 && bootconfig.is_empty() {
        return Err("it is empty".to_owned());
    }
    Ok(())
}

/// Walks from archive to archive; returns how many there are.
fn row(file: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    let mut at = 0;
    // What comes before `at`, but for zeroes, is a plain entry.
    let mut after_plain = false;
    loop {
        let rest = file.get(at..).unwrap_or_default();
        let Some(zeroes) = rest.iter().position(|&byte| byte != 0) else {
            return Ok(count);
        };
        at += zeroes;
        let rest = rest.get(zeroes..).unwrap_or_default();
        let plain = rest.starts_with(b"0");
        if !at.is_multiple_of(ALIGN) && (plain || after_plain) {
            let what = if plain { "a cpio archive" } else { "an archive" };
            return Err(format!(
                "{what} begins at byte {at}, which is no multiple of {ALIGN}, so the kernel does not unpack it: put {} \
                 zero bytes before it",
                ALIGN - at % ALIGN
            ));
        }
        if plain {
            count += usize::from(!after_plain);
            at += entry(rest)?.len;
            after_plain = true;
            continue;
        }
        count += 1;
        at += match compressed::end(rest) {
            Some(end) => match end? {
                End::After(len) => len,
                // It stores nothing as it is, so what looks like a plain entry is one.
                End::Unknown => match plain_within(rest) {
                    Some(len) => len,
                    None => return Ok(count),
                },
            },
            None => return Err(unknown(rest)),
        };
        after_plain = false;
    }
}

/// A file in an archive.
pub struct Entry<'a> {
    /// Its path, without a slash at the start.
    pub name: &'a [u8],
    /// Type and permissions, as `st_mode` has them.
    pub mode: u32,
    /// Its content: of a symbolic link, where it points.
    pub content: &'a [u8],
    /// Bytes to the next entry.
    len: usize,
}

/// Shows every file of an initramfs that [`check`] accepts, as far as its archives can be unpacked here. Returns the
/// compressions that could not.
pub fn each_file(file: &[u8], visit: &mut dyn FnMut(&Entry<'_>)) -> Vec<&'static str> {
    let mut opaque = Vec::new();
    let (archives, _) = bootconfig::split(file).unwrap_or((file, &[]));
    let mut rest = archives;
    loop {
        rest = entries(rest, visit);
        let Some(Ok(end)) = compressed::end(rest) else {
            return opaque;
        };
        let len = match end {
            End::After(len) => len,
            End::Unknown => plain_within(rest).unwrap_or(rest.len()),
        };
        let (archive, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        match compressed::unpack(archive) {
            Ok(plain) => drop(entries(&plain, visit)),
            Err(format) => opaque.push(format),
        }
        rest = after;
    }
}

/// Shows plain entries and the zeroes between them to `visit`; returns what follows.
fn entries<'a>(mut rest: &'a [u8], visit: &mut dyn FnMut(&Entry<'_>)) -> &'a [u8] {
    loop {
        let zeroes = rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len());
        rest = rest.get(zeroes..).unwrap_or_default();
        let Ok(found) = entry(rest) else { return rest };
        visit(&found);
        rest = rest.get(found.len..).unwrap_or_default();
    }
}

/// The plain entry at the start of `rest`.
fn entry(rest: &[u8]) -> Result<Entry<'_>, String> {
    let truncated = || "its cpio archive is truncated".to_owned();
    let damaged = |what: &str| format!("its cpio archive is damaged: {what}");
    let (header, after) = rest.split_at_checked(CPIO_HEADER).ok_or_else(truncated)?;
    if header.starts_with(b"070707") {
        return Err("its cpio archive is of the old format: make it by `cpio -H newc`".to_owned());
    }
    if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
        return Err(damaged("an entry has no magic number"));
    }
    let number = |at: usize| {
        let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
        usize::from_str_radix(digits, 16).ok()
    };
    let no_number = || damaged("a header holds no number");
    let (size, name_size) = (number(54).ok_or_else(no_number)?, number(94).ok_or_else(no_number)?);
    let name = after.get(..name_size).ok_or_else(truncated)?;
    if name.last().is_some_and(|&byte| byte != 0) {
        return Err(damaged("a name has no end"));
    }
    let end = (CPIO_HEADER + name_size).next_multiple_of(ALIGN) + size;
    if end > rest.len() && size > 0 {
        return Err(truncated());
    }
    let content = (CPIO_HEADER + name_size).next_multiple_of(ALIGN);
    Ok(Entry {
        name: plain_name(name),
        mode: number(14).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0),
        content: rest.get(content..end).unwrap_or_default(),
        // Nothing need follow the last entry.
        len: end.next_multiple_of(ALIGN).min(rest.len()),
    })
}

/// Without the zero at its end, and the `./` that some tools begin it with.
fn plain_name(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    name.strip_prefix(b"./").unwrap_or(name)
}

/// Where the first plain entry is within something else.
fn plain_within(rest: &[u8]) -> Option<usize> {
    rest.windows(CPIO_HEADER).position(|header| {
        let digits = header.strip_prefix(b"07070");
        digits.is_some_and(
            |digits| matches!(digits, [b'1' | b'2', fields @ ..] if fields.iter().all(u8::is_ascii_hexdigit)),
        )
    })
}

/// Where a bootconfig ends that is not the last thing in the file.
fn bootconfig_within(file: &[u8]) -> Option<usize> {
    let ends = bootconfig::MARK.len()..=file.len();
    ends.into_iter().find(|&end| {
        let before = file.get(..end).unwrap_or_default();
        // A program that knows the mark is no bootconfig: its sum is wrong.
        before.ends_with(bootconfig::MARK) && bootconfig::split(before).is_ok()
    })
}

fn unknown(rest: &[u8]) -> String {
    if rest.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
        return "its lz4 archive is of the newer format, which the kernel does not know: compress it by `lz4 -l`"
            .to_owned();
    }
    "it is neither a cpio archive (newc) nor compressed by gzip, bzip2, lzma, xz, lzo, lz4 or zstd".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// A zstd frame of 90 bytes, then a bootconfig.
    const BOOTCONFIG: &[u8] = include_bytes!("../../tests/inputs/initramfs-bootconfig/bootconfig.img");
    /// The same frame, then a plain archive.
    const UNALIGNED: &[u8] = include_bytes!("../../tests/inputs/initramfs-unaligned-cpio/zstd-unaligned-cpio.img");
    const FRAME: usize = 90;

    /// Compressions that a machine may have tools for.
    const TOOLS: [(&str, &[&str]); 8] = [
        ("gzip", &["-9"]),
        ("gzip", &["-1n"]),
        ("bzip2", &[]),
        ("xz", &["--check=crc32"]),
        ("xz", &["--format=lzma"]),
        ("lzop", &["-9"]),
        ("lz4", &["-l", "-9"]),
        ("zstd", &["-19"]),
    ];

    fn plain() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        // Half of it is for nobody to compress.
        let mut noise = 1_u32;
        let content: Vec<u8> = (0..200_000)
            .map(|at| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at < 100_000 { (noise >> 24) as u8 } else { 7 }
            })
            .collect();
        std::fs::write(dir.path().join("file"), content).unwrap();
        super::super::cpio::pack(&[dir.path().join("file")]).unwrap()
    }

    fn compressed(program: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut stdin = child.stdin.take()?;
        let input = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().ok()?;
        let _ = writer.join();
        output.status.success().then_some(output.stdout)
    }

    /// What lzop writes of blocks that do not become smaller.
    fn lzo(input: &[u8]) -> Vec<u8> {
        let mut file = b"\x89LZO\0\r\n\x1a\n\x10\x40\x20\xa0\x09\x40\x01\x05\x03\0\0\x01".to_vec();
        // Mode, both halves of the time, the name "file", the header's checksum.
        file.extend_from_slice(&[0; 12]);
        file.extend_from_slice(b"\x04file\0\0\0\0");
        for block in input.chunks(100_001) {
            let len = u32::try_from(block.len()).unwrap().to_be_bytes();
            file.extend_from_slice(&[&len[..], &len, &[0; 4], block].concat());
        }
        file.extend_from_slice(&[0; 4]);
        file
    }

    /// `archive` by every tool that is here, with the tool's name.
    fn by_all_tools(archive: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let tried = TOOLS
            .iter()
            .map(|(program, args)| (*program, compressed(program, args, archive)));
        let mut all: Vec<_> = tried.filter_map(|(program, output)| Some((program, output?))).collect();
        all.push(("lzop by hand", lzo(archive)));
        all
    }

    #[test]
    fn files_are_shown_whatever_can_be_unpacked() {
        let plain = plain();
        for (tool, archive) in by_all_tools(&plain) {
            // What follows lz4 needs zeroes before it.
            let file = [&plain[..], &padded(archive, 4), &[0; 4], &plain].concat();
            let mut seen = 0;
            let opaque = each_file(&file, &mut |entry| {
                seen += usize::from(entry.name.ends_with(b"/file") && entry.content.len() == 200_000);
            });
            let unpacked = ["gzip", "zstd", "xz", "lz4"].contains(&tool);
            assert_eq!(opaque.len(), usize::from(!unpacked), "{tool}");
            // The plain archives on both sides of it are seen in any case.
            assert_eq!(seen, 2 + usize::from(unpacked), "{tool}");
        }
        let mut first = None;
        each_file(&plain, &mut |entry| first = first.take().or(Some(entry.mode)));
        assert_eq!(first.unwrap() & 0o170_000, 0o040_000, "the directory");
    }

    fn padded(mut file: Vec<u8>, align: usize) -> Vec<u8> {
        file.resize(file.len().next_multiple_of(align), 0);
        file
    }

    #[test]
    fn whole_files_pass_and_truncated_ones_do_not() {
        let plain = plain();
        let mut all = by_all_tools(&plain);
        all.push(("plain", plain.clone()));
        for (tool, archive) in all {
            assert_eq!(check(&archive), Ok(()), "{tool}");
            let row = padded([&plain[..], &[0; 512], &archive].concat(), 512);
            assert_eq!(check(&row), Ok(()), "{tool} after another archive, and padded");
            // Where nothing says how long it is, nobody sees that it is cut.
            if tool == "bzip2" || archive.starts_with(&[0x5d]) {
                continue;
            }
            for cut in [4, 5, archive.len() / 2] {
                let problem = check(&archive[..archive.len() - cut]).unwrap_err();
                assert!(problem.contains("truncated"), "{tool} cut by {cut}: {problem}");
            }
        }
    }

    #[test]
    fn garbage_is_no_initramfs() {
        assert!(check(&[]).is_err());
        assert!(check(&[0; 4096]).is_err());
        assert!(check(b"hello, world").is_err());
        assert!(check(b"070701").is_err());
        let mut wild = plain();
        wild[54..62].copy_from_slice(b"ffffffff");
        assert!(check(&wild).is_err());
        for magic in [
            &[0x28, 0xb5, 0x2f, 0xfd][..],
            &[0x1f, 0x8b, 8],
            b"\xfd7zXZ\0",
            b"\x89LZO\0\r\n\x1a\n",
        ] {
            for len in 0..40 {
                for filler in [0x01, 0xff] {
                    let mut file = magic.to_vec();
                    file.resize(magic.len() + len, filler);
                    assert!(check(&file).is_err(), "{file:x?}");
                }
            }
        }
    }

    #[test]
    fn a_plain_archive_that_does_not_begin_at_a_multiple_of_four_is_refused() {
        let problem = check(UNALIGNED).unwrap_err();
        assert!(
            problem.contains("byte 90") && problem.contains("put 2 zero bytes"),
            "{problem}"
        );
        let (frame, cpio) = UNALIGNED.split_at(FRAME);
        for zeroes in 0..9 {
            let file = [frame, &vec![0; zeroes], cpio].concat();
            assert_eq!(
                check(&file).is_ok(),
                (FRAME + zeroes).is_multiple_of(4),
                "{zeroes} zeroes between"
            );
        }
        assert_eq!(check(&[cpio, frame].concat()), Ok(()), "plain first");
    }

    #[test]
    fn after_every_compression_a_plain_archive_must_begin_at_a_multiple_of_four() {
        let plain = plain();
        for (tool, archive) in by_all_tools(&plain) {
            // lz4 needs zeroes before anything else.
            let archive = if tool == "lz4" {
                [&archive[..], &[0; 4]].concat()
            } else {
                archive
            };
            for zeroes in 0..4 {
                let at = archive.len() + zeroes;
                let file = [&archive[..], &vec![0; zeroes], &plain].concat();
                let outcome = check(&file);
                assert_eq!(
                    outcome.is_ok(),
                    at.is_multiple_of(4),
                    "{tool}, a plain archive at {at}: {outcome:?}"
                );
            }
            let twice = [&archive[..], &archive].concat();
            assert_eq!(check(&twice), Ok(()), "{tool}: compressed ones may begin anywhere");
        }
    }

    #[test]
    fn after_plain_entries_a_compressed_archive_must_begin_at_a_multiple_of_four() {
        let plain = plain();
        for zeroes in 0..5 {
            let file = [&plain[..], &vec![0; zeroes], &UNALIGNED[..FRAME]].concat();
            assert_eq!(check(&file).is_ok(), zeroes.is_multiple_of(4), "{zeroes} zeroes");
        }
        // The padding of the last name is skipped, whatever it is: the archive after it lacks its beginning.
        let end = plain.iter().rposition(|&byte| byte != 0).unwrap() + 2;
        assert!(check(&[&plain[..end], &UNALIGNED[..FRAME]].concat()).is_err());
        assert_eq!(check(&plain[..end]), Ok(()), "nothing need follow");
    }

    #[test]
    fn entries_may_have_zeroes_between_them_and_no_end_mark() {
        let plain = plain();
        let trailer = plain.len() - 124;
        let spaced = [&plain[..trailer], &[0; 4096], &plain[trailer..]].concat();
        assert_eq!(check(&spaced), Ok(()));
        assert_eq!(check(&padded(plain[..trailer].to_vec(), 4096)), Ok(()));
        let mut nameless = plain.clone();
        let name_end = CPIO_HEADER + 3;
        assert_eq!(&nameless[CPIO_HEADER..=name_end], b"tmp\0");
        nameless[name_end] = b'x';
        assert!(check(&nameless).unwrap_err().contains("name"));
        let mut old = plain;
        old[..6].copy_from_slice(b"070707");
        assert!(check(&old).unwrap_err().contains("-H newc"));
    }

    #[test]
    fn formats_that_the_kernel_does_not_take_are_refused_with_what_makes_them_right() {
        let plain = plain();
        let refused = |program: &str, args: &[&str], remedy: &str| {
            let Some(archive) = compressed(program, args, &plain) else {
                return;
            };
            let problem = check(&archive).unwrap_err();
            assert!(problem.contains(remedy), "{program}: {problem}");
        };
        refused("xz", &["--check=crc64"], "--check=crc32");
        refused("lz4", &[], "lz4 -l");
        if let Some(mut gzip) = compressed("gzip", &["-n"], &plain) {
            gzip[3] = 16;
            gzip.splice(10..10, *b"a comment\0");
            assert!(check(&gzip).unwrap_err().contains("gzip -n"));
        }
        if let Some(lz4) = compressed("lz4", &["-l"], &plain) {
            let problem = check(&[&lz4[..], &plain].concat()).unwrap_err();
            assert!(problem.contains("four zero bytes"), "{problem}");
            assert_eq!(check(&padded([&lz4[..], &[0; 4]].concat(), 4)), Ok(()));
        }
    }

    #[test]
    fn a_bootconfig_at_the_end_is_no_archive() {
        assert_eq!(check(BOOTCONFIG), Ok(()));
        let bootconfig = &BOOTCONFIG[FRAME..];
        let plain = plain();
        let mut all = by_all_tools(&plain);
        all.push(("plain", plain.clone()));
        for (tool, archive) in all {
            assert_eq!(check(&[&archive[..], bootconfig].concat()), Ok(()), "after {tool}");
            assert_eq!(
                check(&[&padded(archive, 4)[..], bootconfig].concat()),
                Ok(()),
                "after {tool}"
            );
        }
        assert_eq!(check(bootconfig), Ok(()), "a file of its own");
    }

    #[test]
    fn a_bootconfig_elsewhere_is_refused() {
        let plain = plain();
        for after in [&[0; 4][..], &plain] {
            let problem = check(&[BOOTCONFIG, after].concat()).unwrap_err();
            assert!(problem.contains("bootconfig") && problem.contains("last"), "{problem}");
        }
        let twice = [BOOTCONFIG, &BOOTCONFIG[FRAME..]].concat();
        assert!(check(&twice).unwrap_err().contains("bootconfig"));
        // A program that looks for bootconfigs holds the mark, too.
        let program = [&plain[..], b"#BOOTCONFIG\n", &[0; 4]].concat();
        assert!(check(&program).unwrap_err().contains("neither"));
    }
}
