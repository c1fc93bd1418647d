//! Where a compressed archive ends, as the kernel's decompressors see it (`lib/decompress.c` and the files that it
//! names). To know that, nothing is unpacked but gzip, which says nowhere how long it is. And what archives hold, for
//! those who look for something in them.

use std::io::Read;

use lzma_rust2::{LzmaReader, XzReader};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_with_limit, decompress_to_vec_zlib_with_limit};
use ruzstd::decoding::StreamingDecoder;

/// Most bytes of a block that `lz4 -l` writes for its 8 MiB of input (`LZ4_compressBound`).
const LZ4_BLOCK_MAX: usize = (8 << 20) + (8 << 20) / 255 + 16;
const LZ4_LEGACY: u32 = 0x184c_2102;
/// What such a block holds, but for the last one.
const LZ4_UNPACKED: usize = 8 << 20;
/// KiB that unpacking lzma or xz may take: `xz -9` needs 65 MiB.
const LZMA_MEMORY: u32 = 1 << 20;
/// What deflate may look back at.
const WINDOW: usize = 1 << 15;

/// Most bytes that are unpacked: more fits into no successor.
const UNPACKED_MAX: usize = 4 << 30;

/// Where an archive ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After so many bytes.
    After(usize),
    /// The format does not say.
    Unknown,
}

/// The end of the compressed archive at the start of `rest`; `None` if there is none of a format that the kernel knows.
///
/// # Errors
/// Why it is not whole, or not what the kernel takes.
pub fn end(rest: &[u8]) -> Option<Result<End, String>> {
    // The two bytes by which the kernel chooses.
    let end = match rest.first_chunk::<2>()? {
        [0x1f, 0x8b] => gzip(rest),
        [0xfd, b'7'] => xz(rest),
        [0x89, b'L'] => lzo(rest),
        [0x02, 0x21] => lz4(rest),
        [0x28, 0xb5] => zstd(rest),
        b"BZ" | [0x5d, 0x00] => return Some(Ok(End::Unknown)),
        _ => return None,
    };
    Some(end.map(End::After))
}

/// What a whole archive holds; else the name of its format, if it cannot be unpacked here.
///
/// # Errors
/// The name.
pub fn unpack(archive: &[u8]) -> Result<Vec<u8>, &'static str> {
    match archive.first_chunk::<2>() {
        Some([0x1f, 0x8b]) => gunzip(archive).ok_or("gzip"),
        Some([0x28, 0xb5]) => unzstd(archive, UNPACKED_MAX).ok_or("zstd"),
        Some([0xfd, b'7']) => unxz(archive, UNPACKED_MAX).ok_or("xz"),
        Some([0x89, b'L']) => Err("lzo"),
        Some([0x02, 0x21]) => unlz4(archive).ok_or("lz4"),
        Some(b"BZ") => Err("bzip2"),
        _ => unlzma(archive, UNPACKED_MAX).ok_or("lzma"),
    }
}

/// How a block of a file system is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Deflate with zlib's frame (RFC 1950).
    Zlib,
    /// A .lzma file.
    Lzma,
    /// A .xz file.
    Xz,
    /// An lz4 block without a frame.
    Lz4,
    /// A frame of zstd.
    Zstd,
}

/// What a block holds, at most `most` bytes.
///
/// # Errors
/// That it is damaged.
pub fn unpack_block(format: Block, packed: &[u8], most: usize) -> Result<Vec<u8>, String> {
    let plain = match format {
        Block::Zlib => decompress_to_vec_zlib_with_limit(packed, most).ok(),
        Block::Lzma => unlzma(packed, most),
        Block::Xz => unxz(packed, most),
        Block::Lz4 => lz4_flex::block::decompress(packed, most).ok(),
        Block::Zstd => unzstd(packed, most),
    };
    plain.ok_or_else(|| format!("a block compressed by {format:?} that is damaged"))
}

/// All that a decompressor gives, at most `most` bytes.
fn all(from: impl Read, most: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    from.take(most as u64).read_to_end(&mut plain).ok()?;
    Some(plain)
}

fn unzstd(archive: &[u8], most: usize) -> Option<Vec<u8>> {
    all(StreamingDecoder::new(archive).ok()?, most)
}

fn unxz(archive: &[u8], most: usize) -> Option<Vec<u8>> {
    all(XzReader::new_mem_limit(archive, false, LZMA_MEMORY), most)
}

fn unlzma(archive: &[u8], most: usize) -> Option<Vec<u8>> {
    all(LzmaReader::new_mem_limit(archive, LZMA_MEMORY, None).ok()?, most)
}

/// What [`lz4`] has found the end of.
fn unlz4(archive: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut at = 4;
    loop {
        match u32_at(archive, at) {
            Some(LZ4_LEGACY) => at += 4,
            None | Some(0) => return Some(plain),
            Some(size) => {
                let end = (at + 4).checked_add(size as usize)?;
                let block = archive.get(at + 4..end)?;
                plain.extend_from_slice(&lz4_flex::block::decompress(block, LZ4_UNPACKED).ok()?);
                at = end;
            }
        }
        if plain.len() > UNPACKED_MAX {
            return None;
        }
    }
}

fn gunzip(archive: &[u8]) -> Option<Vec<u8>> {
    let (_, body) = gzip_body(archive).ok()?;
    decompress_to_vec_with_limit(body, UNPACKED_MAX).ok()
}

fn truncated(format: &str) -> String {
    format!("its {format} archive is truncated")
}

/// Length of a gzip archive.
fn gzip(rest: &[u8]) -> Result<usize, String> {
    const TRAILER: usize = 8;
    let (header, body) = gzip_body(rest)?;
    let len = header + inflated(body)? + TRAILER;
    if len > rest.len() {
        Err(truncated("gzip"))
    } else {
        Ok(len)
    }
}

/// Length of a gzip archive's header, and what follows it: RFC 1952. The kernel skips a file's name and no other field (`lib/decompress_inflate.c`).
fn gzip_body(rest: &[u8]) -> Result<(usize, &[u8]), String> {
    const NAME: u8 = 8;
    const UNKNOWN_TO_LINUX: u8 = 2 + 4 + 16;
    const HEADER: usize = 10;
    let short = || truncated("gzip");
    let (header, mut body) = rest.split_at_checked(HEADER).ok_or_else(short)?;
    if header.get(2) != Some(&8) {
        return Err("its gzip archive is damaged: it has another method than deflate".to_owned());
    }
    let flags = header.get(3).copied().unwrap_or(0);
    if flags & UNKNOWN_TO_LINUX != 0 {
        return Err(
            "its gzip header has an extra field, a comment or a checksum, which the kernel does not skip: compress it \
             by `gzip -n`"
                .to_owned(),
        );
    }
    if flags & NAME != 0 {
        let name = body.iter().position(|&byte| byte == 0).ok_or_else(short)?;
        body = body.get(name + 1..).ok_or_else(short)?;
    }
    Ok((rest.len() - body.len(), body))
}

/// Bytes of a deflate stream.
fn inflated(body: &[u8]) -> Result<usize, String> {
    let mut state = Box::<DecompressorOxide>::default();
    let mut window = vec![0; WINDOW];
    let (mut read, mut written) = (0, 0);
    loop {
        let input = body.get(read..).unwrap_or_default();
        let (status, more, out) = decompress(&mut state, input, &mut window, written, 0);
        read += more;
        written = (written + out) % WINDOW;
        match status {
            TINFLStatus::Done => return Ok(read),
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => return Err(truncated("gzip")),
            _ => return Err("its gzip archive is damaged".to_owned()),
        }
    }
}

/// The .xz file format, 2.1: a header, blocks whose lengths only the index at the end tells, and a footer which says
/// how long the index is. So the end is where footer and index fit what is before them.
fn xz(rest: &[u8]) -> Result<usize, String> {
    const HEADER: usize = 12;
    const FOOTER: usize = 12;
    const CRC32: u8 = 1;
    let header = rest.get(..HEADER).ok_or_else(|| truncated("xz"))?;
    let flags = header.get(6..8).unwrap_or_default();
    if !header.starts_with(b"\xfd7zXZ\0") || flags.first() != Some(&0) {
        return Err("its xz archive is damaged".to_owned());
    }
    if flags.get(1).is_some_and(|&check| check > CRC32) {
        return Err(
            "its xz archive has a check that the kernel does not know: compress it by `xz --check=crc32`".to_owned(),
        );
    }
    let fits = |end: usize| -> Option<()> {
        let footer = rest.get(end - FOOTER..end)?;
        let (crc, fields) = (u32_at(footer, 0)?, footer.get(4..10)?);
        let index_size = (u32_at(footer, 4)? as usize + 1) * 4;
        let index_at = (end - FOOTER).checked_sub(index_size)?;
        let index = rest.get(index_at..end - FOOTER)?;
        let (list, index_crc) = index.split_at_checked(index_size - 4)?;
        let whole = fields.ends_with(flags)
            && crc32fast::hash(fields) == crc
            && crc32fast::hash(list) == u32_at(index_crc, 0)?
            && HEADER.checked_add(blocks(list)?)? == index_at;
        whole.then_some(())
    };
    // A stream is a multiple of 4 bytes long.
    let mut ends = (HEADER + FOOTER..=rest.len()).step_by(4);
    ends.find(|&end| rest.get(end - 2..end) == Some(b"YZ") && fits(end).is_some())
        .ok_or_else(|| truncated("xz"))
}

/// Bytes of all blocks, by an index (4.3).
fn blocks(mut list: &[u8]) -> Option<usize> {
    let mut number = || {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let (&byte, after) = list.split_first()?;
            list = after;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    };
    if number()? != 0 {
        return None;
    }
    let count = number()?;
    let mut total = 0_usize;
    for _ in 0..count {
        let (unpadded, _uncompressed) = (number()?, number()?);
        total = total.checked_add(unpadded.checked_next_multiple_of(4)?)?;
    }
    Some(total)
}

/// lzop's format as `lib/decompress_unlzo.c` reads it: a header with a name in it, blocks with their lengths, a length
/// of zero.
fn lzo(rest: &[u8]) -> Result<usize, String> {
    const HAS_EXTRA_FIELDS: u32 = 0x940;
    const HAS_FILTER: u32 = 0x800;
    const BLOCK_MAX: u32 = 256 << 10;
    let short = || truncated("lzo");
    let number = |at: usize| -> Result<u32, String> {
        let bytes = rest.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        Ok(u32::from_be_bytes(*bytes))
    };
    if !rest.starts_with(b"\x89LZO\0\r\n\x1a\n") {
        return Err("its lzo archive is damaged".to_owned());
    }
    let newer = number(9)? >> 16 >= HAS_EXTRA_FIELDS;
    let mut at = 16 + usize::from(newer);
    at += if number(at)? & HAS_FILTER != 0 { 8 } else { 4 };
    // Mode and the time, then the name with its length, then a checksum.
    at += if newer { 12 } else { 8 };
    at += 1 + usize::from(*rest.get(at).ok_or_else(short)?) + 4;
    loop {
        let unpacked = number(at)?;
        at += 4;
        if unpacked == 0 {
            return Ok(at);
        }
        let packed = number(at)?;
        if packed == 0 || packed > unpacked || unpacked > BLOCK_MAX {
            return Err("its lzo archive is damaged: a block has an impossible length".to_owned());
        }
        // Its own length and one checksum come before a block.
        at += 8 + packed as usize;
    }
}

/// Frames of `lz4 -l` (lz4 frame format, "Legacy frame"): blocks with their lengths, and no end mark. The kernel takes
/// whatever follows for a block, but for zeroes (`lib/decompress_unlz4.c`).
fn lz4(rest: &[u8]) -> Result<usize, String> {
    if u32_at(rest, 0) != Some(LZ4_LEGACY) {
        return Err("its lz4 archive is damaged".to_owned());
    }
    let mut at = 4;
    loop {
        match u32_at(rest, at) {
            Some(LZ4_LEGACY) => at += 4,
            None | Some(0) if at <= rest.len() => return Ok(at),
            Some(size) if size as usize > LZ4_BLOCK_MAX => {
                return Err(
                    "the kernel takes what follows its lz4 archive for a part of that: put four zero bytes between them"
                        .to_owned(),
                );
            }
            Some(size) => at += 4 + size as usize,
            None => return Err(truncated("lz4")),
        }
    }
}

/// A frame of zstd (RFC 8878, 3.1.1): a header, blocks with their lengths, the last one marked.
fn zstd(rest: &[u8]) -> Result<usize, String> {
    let short = || truncated("zstd");
    if !rest.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err("its zstd archive is damaged".to_owned());
    }
    let descriptor = *rest.get(4).ok_or_else(short)?;
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
        let Some(&[a, b, c]) = rest.get(at..).and_then(<[u8]>::first_chunk) else {
            return Err(short());
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
            return if at > rest.len() { Err(short()) } else { Ok(at) };
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
