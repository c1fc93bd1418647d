//! A squashfs image, as far as it takes to find files by their names in it: initramfs of servers that run from memory
//! hold one. Read only, and never beyond its bytes; what cannot be understood is an error.
//!
//! Layout: version 4.0, Linux `fs/squashfs/squashfs_fs.h`.

use std::collections::BTreeMap;

use super::compressed::{self, Block};

const MAGIC: &[u8] = b"hsqs";
/// Bytes of a metadata block, unpacked.
const METADATA: usize = 8192;
/// Most bytes that are unpacked of tables, and of one file.
const TABLE_MAX: usize = 256 << 20;
const FILE_MAX: usize = 1 << 30;
/// Directories below each other.
const DEPTH_MAX: usize = 64;
/// A file without a fragment at its end.
const NO_FRAGMENT: u32 = !0;

/// A file in it.
pub struct Found {
    /// Its path, without a slash at the start.
    pub path: Vec<u8>,
    /// Of a regular file, what is in it; of a symbolic link, where it points.
    pub content: Vec<u8>,
    /// It is a symbolic link.
    pub link: bool,
}

/// Shows the regular files and symbolic links whose names, without directories, are `wanted`.
///
/// # Errors
/// What cannot be read of it, in words. `None` if `image` is none.
pub fn each_file(
    image: &[u8],
    wanted: &dyn Fn(&[u8]) -> bool,
    visit: &mut dyn FnMut(&Found),
) -> Option<Result<(), String>> {
    image.starts_with(MAGIC).then(|| {
        let reader = Reader::new(image)?;
        reader.directory(reader.root, &[], 0, wanted, visit)
    })
}

/// A table of metadata, unpacked, with the places where its blocks begin: packed, counted from the table, and unpacked.
struct Table {
    bytes: Vec<u8>,
    blocks: BTreeMap<usize, usize>,
}

impl Table {
    /// What lies `offset` bytes into the unpacked block that begins at `block`.
    fn at(&self, block: usize, offset: usize) -> Result<&[u8], String> {
        let start = self.blocks.get(&block).and_then(|start| start.checked_add(offset));
        start.and_then(|start| self.bytes.get(start..)).ok_or_else(damaged)
    }
}

struct Reader<'i> {
    image: &'i [u8],
    format: Block,
    block_size: usize,
    root: u64,
    inodes: Table,
    directories: Table,
    fragments: u64,
    fragment_count: u32,
}

impl<'i> Reader<'i> {
    fn new(image: &'i [u8]) -> Result<Self, String> {
        let format = match u16_at(image, 20)? {
            1 => Block::Zlib,
            2 => Block::Lzma,
            4 => Block::Xz,
            5 => Block::Lz4,
            6 => Block::Zstd,
            3 => return Err("a squashfs compressed by lzo".to_owned()),
            _ => return Err("a squashfs of unknown compression".to_owned()),
        };
        if u16_at(image, 28)? != 4 {
            return Err("a squashfs of another version than 4".to_owned());
        }
        let block_size = u32_at(image, 12)? as usize;
        if !(4096..=1 << 20).contains(&block_size) {
            return Err(damaged());
        }
        let [inodes, directories] = [u64_at(image, 64)?, u64_at(image, 72)?];
        let fragments = u64_at(image, 80)?;
        // The table that follows tells where the directories end: of fragments, of exports, of ids.
        let fragment_count = u32_at(image, 16)?;
        let first = |at| u64_at(image, usize::try_from(at).map_err(|_| damaged())?);
        let mut ends = vec![first(u64_at(image, 48)?)?];
        if fragment_count > 0 {
            ends.push(first(fragments)?);
        }
        let end = ends.into_iter().min().unwrap_or(0);
        Ok(Self {
            image,
            format,
            block_size,
            root: u64_at(image, 32)?,
            inodes: table(image, format, inodes, directories)?,
            directories: table(image, format, directories, end)?,
            fragments,
            fragment_count,
        })
    }

    /// The inode that a reference names: block << 16 | offset.
    fn inode(&self, reference: u64) -> Result<&[u8], String> {
        let block = usize::try_from(reference >> 16).map_err(|_| damaged())?;
        self.inodes.at(block, (reference & 0xffff) as usize)
    }

    fn directory(
        &self,
        reference: u64,
        path: &[u8],
        depth: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
        visit: &mut dyn FnMut(&Found),
    ) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(damaged());
        }
        let inode = self.inode(reference)?;
        let (size, block, offset) = match u16_at(inode, 0)? {
            1 => (u16_at(inode, 24)?.into(), u32_at(inode, 16)?, u16_at(inode, 26)?),
            8 => (u32_at(inode, 20)?, u32_at(inode, 24)?, u16_at(inode, 34)?),
            _ => return Err(damaged()),
        };
        // Three bytes stand for `.` and `..`.
        let Some(size) = (size as usize).checked_sub(3).filter(|&size| size > 0) else {
            return Ok(());
        };
        let listing = self.directories.at(block as usize, offset.into())?;
        let mut rest = listing.get(..size).ok_or_else(damaged)?;
        while !rest.is_empty() {
            let (count, block) = (u32_at(rest, 0)?, u32_at(rest, 4)?);
            rest = rest.get(12..).ok_or_else(damaged)?;
            for _ in 0..=count {
                let (offset, kind) = (u16_at(rest, 0)?, u16_at(rest, 4)?);
                let end = 8 + usize::from(u16_at(rest, 6)?) + 1;
                let name = rest.get(8..end).ok_or_else(damaged)?;
                rest = rest.get(end..).unwrap_or_default();
                let reference = u64::from(block) << 16 | u64::from(offset);
                let mut below = path.to_vec();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name);
                match kind {
                    1 => self.directory(reference, &below, depth + 1, wanted, visit)?,
                    2 | 3 if wanted(name) => visit(&Found {
                        path: below,
                        content: self.content(reference)?,
                        link: kind == 3,
                    }),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What a regular file holds, or where a symbolic link points.
    fn content(&self, reference: u64) -> Result<Vec<u8>, String> {
        let inode = self.inode(reference)?;
        let (start, size, fragment, offset, sizes) = match u16_at(inode, 0)? {
            2 => {
                let (start, size) = (u32_at(inode, 16)?.into(), u32_at(inode, 28)?.into());
                (start, size, u32_at(inode, 20)?, u32_at(inode, 24)?, 32)
            }
            9 => {
                let (start, size) = (u64_at(inode, 16)?, u64_at(inode, 24)?);
                (start, size, u32_at(inode, 44)?, u32_at(inode, 48)?, 56)
            }
            3 | 10 => {
                let end = 24 + u32_at(inode, 20)? as usize;
                return inode.get(24..end).map(<[u8]>::to_vec).ok_or_else(damaged);
            }
            _ => return Err(damaged()),
        };
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= FILE_MAX)
            .ok_or_else(damaged)?;
        let blocks = match fragment {
            NO_FRAGMENT => size.div_ceil(self.block_size),
            _ => size / self.block_size,
        };
        let mut content = Vec::new();
        let mut at = usize::try_from(start).map_err(|_| damaged())?;
        for index in 0..blocks {
            let word = u32_at(inode, sizes + 4 * index)?;
            let wanted = self.block_size.min(size - content.len());
            let (block, len) = self.data(at, word, wanted)?;
            content.extend_from_slice(&block);
            at += len;
        }
        if fragment != NO_FRAGMENT {
            let tail = self.fragment(fragment)?;
            let start = offset as usize;
            let tail = start
                .checked_add(size - content.len())
                .and_then(|end| tail.get(start..end));
            content.extend_from_slice(tail.ok_or_else(damaged)?);
        }
        match content.len() == size {
            true => Ok(content),
            false => Err(damaged()),
        }
    }

    /// A block of data at `at`, whose size `word` has: unpacked, at most `most` bytes, and its length as it lies there.
    fn data(&self, at: usize, word: u32, most: usize) -> Result<(Vec<u8>, usize), String> {
        const AS_IT_IS: u32 = 1 << 24;
        let len = (word & (AS_IT_IS - 1)) as usize;
        if len == 0 {
            return Ok((vec![0; most], 0));
        }
        let packed = at
            .checked_add(len)
            .and_then(|end| self.image.get(at..end))
            .ok_or_else(damaged)?;
        let block = match word & AS_IT_IS {
            0 => compressed::unpack_block(self.format, packed, self.block_size)?,
            _ => packed.to_vec(),
        };
        Ok((block, len))
    }

    fn fragment(&self, index: u32) -> Result<Vec<u8>, String> {
        const ENTRY: usize = 16;
        const PER_BLOCK: usize = METADATA / ENTRY;
        if index >= self.fragment_count {
            return Err(damaged());
        }
        let list = usize::try_from(self.fragments).map_err(|_| damaged())?;
        let index = index as usize;
        let block = usize::try_from(u64_at(self.image, list + index / PER_BLOCK * 8)?).map_err(|_| damaged())?;
        let (entries, _) = metadata(self.image, self.format, block)?;
        let entry = entries.get(index % PER_BLOCK * ENTRY..).ok_or_else(damaged)?;
        let at = usize::try_from(u64_at(entry, 0)?).map_err(|_| damaged())?;
        self.data(at, u32_at(entry, 8)?, 0).map(|(block, _)| block)
    }
}

/// The metadata from `start` to `end`.
fn table(image: &[u8], format: Block, start: u64, end: u64) -> Result<Table, String> {
    let place = |at: u64| usize::try_from(at).map_err(|_| damaged());
    let (start, end) = (place(start)?, place(end)?);
    let mut made = Table {
        bytes: Vec::new(),
        blocks: BTreeMap::new(),
    };
    let mut at = start;
    while at < end && made.bytes.len() < TABLE_MAX {
        let (block, len) = metadata(image, format, at)?;
        made.blocks.insert(at - start, made.bytes.len());
        made.bytes.extend_from_slice(&block);
        at += len;
    }
    Ok(made)
}

/// The metadata block at `at`, unpacked, and its length as it lies there.
fn metadata(image: &[u8], format: Block, at: usize) -> Result<(Vec<u8>, usize), String> {
    const AS_IT_IS: u16 = 1 << 15;
    let header = image.get(at..).ok_or_else(damaged).and_then(|rest| u16_at(rest, 0))?;
    let len = usize::from(header & !AS_IT_IS);
    let packed = image.get(at + 2..at + 2 + len).ok_or_else(damaged)?;
    let block = match header & AS_IT_IS {
        0 => compressed::unpack_block(format, packed, METADATA)?,
        _ => packed.to_vec(),
    };
    Ok((block, len + 2))
}

fn damaged() -> String {
    "a squashfs that is damaged".to_owned()
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(damaged)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Files of a tree: many small ones, one of several blocks and a tail, one that is all zeroes, a link.
    fn image(compressor: &str) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("tree/usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for number in 0..600 {
            std::fs::write(bin.join(format!("small-{number}")), format!("this is {number}")).unwrap();
        }
        std::fs::write(bin.join("large"), large()).unwrap();
        std::fs::write(bin.join("zeroes"), vec![0; 300_000]).unwrap();
        std::os::unix::fs::symlink("../lib/large", bin.join("link")).unwrap();
        let made = Command::new("mksquashfs")
            .args([dir.path().join("tree"), dir.path().join("image")])
            .args(["-quiet", "-no-progress", "-comp", compressor])
            .output();
        made.ok().filter(|made| made.status.success())?;
        std::fs::read(dir.path().join("image")).ok()
    }

    fn large() -> Vec<u8> {
        let mut noise = 7_u32;
        let mut next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        (0..700_000)
            .map(|at| if at % 300_000 < 150_000 { next() } else { 5 })
            .collect()
    }

    fn found(image: &[u8], names: &[&str]) -> Result<BTreeMap<String, (Vec<u8>, bool)>, String> {
        let mut all = BTreeMap::new();
        let wanted = |name: &[u8]| names.iter().any(|wanted| wanted.as_bytes() == name);
        let outcome = each_file(image, &wanted, &mut |found| {
            let path = String::from_utf8(found.path.clone()).unwrap();
            all.insert(path, (found.content.clone(), found.link));
        });
        outcome.unwrap().map(|()| all)
    }

    #[test]
    fn files_are_found_in_every_compression() {
        assert!(each_file(b"070701", &|_| true, &mut |_| ()).is_none());
        let mut tried = 0;
        for compressor in ["gzip", "xz", "lz4", "zstd", "lzma"] {
            let Some(image) = image(compressor) else { continue };
            tried += 1;
            let names = ["small-3", "small-599", "large", "zeroes", "link"];
            let all = found(&image, &names).unwrap_or_else(|error| panic!("{compressor}: {error}"));
            assert_eq!(all.len(), names.len(), "{compressor}");
            assert_eq!(all["usr/bin/small-3"].0, b"this is 3");
            assert_eq!(all["usr/bin/small-599"].0, b"this is 599");
            assert!(all["usr/bin/large"].0 == large(), "{compressor}");
            assert_eq!(all["usr/bin/zeroes"].0, vec![0; 300_000]);
            assert_eq!(all["usr/bin/link"], (b"../lib/large".to_vec(), true));
            // Cut off or wrong anywhere: an error, or what is right, and no panic.
            for end in (0..image.len()).step_by(image.len() / 50 + 1) {
                let _ = each_file(&image[..end], &|_| true, &mut |_| ());
                let mut wrong = image.clone();
                wrong[end] ^= 0x5a;
                let _ = each_file(&wrong, &|name| name == b"large", &mut |_| ());
            }
            let mut header = image.clone();
            for at in 4..96 {
                header[at] ^= 0xff;
                let _ = each_file(&header, &|name| name == b"large", &mut |_| ());
                header[at] ^= 0xff;
            }
        }
        if tried == 0 {
            eprintln!("no mksquashfs on this machine");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let mut image = vec![0; 96];
        image[..4].copy_from_slice(MAGIC);
        image[20] = 3;
        assert_eq!(found(&image, &[]).unwrap_err(), "a squashfs compressed by lzo");
        image[20] = 1;
        assert!(found(&image, &[]).unwrap_err().contains("another version"));
        image[28] = 4;
        assert_eq!(found(&image, &[]).unwrap_err(), "a squashfs that is damaged");
    }
}
