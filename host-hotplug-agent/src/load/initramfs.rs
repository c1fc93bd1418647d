//! An initramfs: is it whole? The kernel finds out too late, when the incumbent has already given up memory.
//!
//! A file is a row of archives with zeroes between them, each plain cpio or compressed. Plain ones and the compressions
//! whose blocks carry their lengths (lz4, zstd) are walked from end to end without unpacking; of gzip, xz and the
//! others only the last bytes show whether they are there, as far as the format has a mark there.

use std::ops::ControlFlow;

const CPIO_HEADER: usize = 110;
const LZ4_LEGACY: u32 = 0x184c_2102;
const ZSTD: u32 = 0xfd2f_b528;
/// Most bytes of a compressed block that `lz4 -l` writes for its 8 MiB of input.
const LZ4_BLOCK_MAX: usize = (8 << 20) + (8 << 20) / 255 + 16;

/// Whether the file is whole; else what is wrong with it.
///
/// # Errors
/// A sentence without the file's name.
pub fn check(file: &[u8]) -> Result<(), String> {
    let mut rest = file;
    let mut archives = 0;
    loop {
        let zeroes = rest.iter().take_while(|&&byte| byte == 0).count();
        rest = rest.split_at(zeroes).1;
        if rest.is_empty() {
            return if archives > 0 {
                Ok(())
            } else {
                Err("it is empty".to_owned())
            };
        }
        archives += 1;
        match archive(rest)? {
            ControlFlow::Continue(after) => rest = after,
            ControlFlow::Break(()) => return Ok(()),
        }
    }
}

/// What follows the first archive, or `Break` if that cannot be known.
fn archive(rest: &[u8]) -> Result<ControlFlow<(), &[u8]>, String> {
    let magic = u32_at(rest, 0);
    if rest.starts_with(b"070701") || rest.starts_with(b"070702") {
        return cpio(rest).map(ControlFlow::Continue);
    }
    if magic == Some(LZ4_LEGACY) {
        return lz4(rest).map(ControlFlow::Continue);
    }
    if magic == Some(ZSTD) {
        return zstd(rest).map(ControlFlow::Continue);
    }
    if rest.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let end = rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let whole = rest.get(..end).is_some_and(|archive| archive.ends_with(b"YZ"));
        return if whole {
            Ok(ControlFlow::Break(()))
        } else {
            Err("its xz archive is truncated".to_owned())
        };
    }
    let known: [&[u8]; 4] = [&[0x1f, 0x8b, 8], b"BZh", &[0x5d, 0, 0], &[0x89, b'L', b'Z', b'O']];
    if known.iter().any(|magic| rest.starts_with(magic)) {
        return Ok(ControlFlow::Break(()));
    }
    Err("it is neither a cpio archive (newc) nor compressed by gzip, bzip2, lzma, xz, lzo, lz4 or zstd".to_owned())
}

fn cpio(mut rest: &[u8]) -> Result<&[u8], String> {
    let truncated = || "its cpio archive is truncated".to_owned();
    loop {
        let (header, after) = rest.split_at_checked(CPIO_HEADER).ok_or_else(truncated)?;
        if !header.starts_with(b"07070") {
            return Err("its cpio archive is damaged: an entry has no magic number".to_owned());
        }
        let number = |at: usize| {
            let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let damaged = || "its cpio archive is damaged: a header holds no number".to_owned();
        let (size, name_size) = (number(54).ok_or_else(damaged)?, number(94).ok_or_else(damaged)?);
        let name = after.get(..name_size.saturating_sub(1)).ok_or_else(truncated)?;
        if name == super::cpio::TRAILER.as_bytes() {
            return after.get(name_size..).ok_or_else(truncated);
        }
        let body = (CPIO_HEADER + name_size).next_multiple_of(4);
        let end = body.checked_add(size).ok_or_else(damaged)?.next_multiple_of(4);
        rest = rest.get(end..).ok_or_else(truncated)?;
    }
}

/// Frames of `lz4 -l` (lz4 frame format, "Legacy frame"): blocks of which each is preceded by its length, no end mark.
fn lz4(rest: &[u8]) -> Result<&[u8], String> {
    let mut rest = rest.get(4..).unwrap_or_default();
    loop {
        match u32_at(rest, 0) {
            // Another frame follows.
            Some(LZ4_LEGACY) => rest = rest.get(4..).unwrap_or_default(),
            // Padding, or the next archive.
            None | Some(0) => return Ok(rest),
            Some(size) if size as usize > LZ4_BLOCK_MAX => return Ok(rest),
            Some(size) => {
                rest = rest
                    .get(4 + size as usize..)
                    .ok_or_else(|| "its lz4 archive is truncated".to_owned())?;
            }
        }
    }
}

/// Frames of zstd (RFC 8878, 3.1.1): a header, blocks with their lengths, the last one marked.
fn zstd(rest: &[u8]) -> Result<&[u8], String> {
    let truncated = || "its zstd archive is truncated".to_owned();
    let descriptor = *rest.get(4).ok_or_else(truncated)?;
    let single_segment = descriptor & 0x20 != 0;
    let content_size = match descriptor >> 6 {
        0 => usize::from(single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let mut at = 5 + usize::from(!single_segment) + dictionary + content_size;
    loop {
        let (Some(&[a, b, c]), true) = (
            rest.get(at..at + 3).and_then(|b| b.first_chunk::<3>()),
            at <= rest.len(),
        ) else {
            return Err(truncated());
        };
        let header = u32::from_le_bytes([a, b, c, 0]);
        let size = match (header >> 1) & 3 {
            1 => 1,
            3 => return Err("its zstd archive is damaged: a block of a reserved type".to_owned()),
            _ => (header >> 3) as usize,
        };
        at += 3 + size;
        if header & 1 != 0 {
            at += if descriptor & 4 != 0 { 4 } else { 0 };
            return rest.get(at..).ok_or_else(truncated);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn plain() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), vec![7; 300_000]).unwrap();
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

    #[test]
    fn whole_files_pass_and_truncated_ones_do_not() {
        let plain = plain();
        let mut all = vec![plain.clone()];
        all.extend(compressed("lz4", &["-l", "-9"], &plain));
        all.extend(compressed("zstd", &["-19"], &plain));
        all.extend(compressed("xz", &["--check=crc32"], &plain));
        for archive in all {
            assert_eq!(check(&archive), Ok(()));
            let mut row = plain.clone();
            row.resize(row.len().next_multiple_of(512) + 512, 0);
            row.extend_from_slice(&archive);
            assert_eq!(check(&row), Ok(()), "after another archive");
            row.resize(row.len() + 512, 0);
            assert_eq!(check(&row), Ok(()), "padded");
            for cut in [4, 5, archive.len() / 2] {
                assert!(check(&archive[..archive.len() - cut]).is_err(), "cut by {cut}");
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
        for len in 0..40 {
            let mut zstd = ZSTD.to_le_bytes().to_vec();
            zstd.resize(4 + len, 0xff);
            assert!(check(&zstd).is_err());
        }
    }
}
