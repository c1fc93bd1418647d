//! The bootconfig at the end of an initramfs (Linux `Documentation/admin-guide/bootconfig.rst`, `tools/bootconfig`):
//!
//! ```text
//!  [archives][text, padded][size, le32][checksum, le32]["#BOOTCONFIG\n"]
//! ```
//!
//! The kernel looks for the mark at the end of all that it gets as ramdisk, and nowhere else. It cuts the bootconfig
//! off before it unpacks the archives, whether it uses it or not (`init/main.c`, `get_boot_config_from_initrd`).

/// What a bootconfig ends with.
pub const MARK: &[u8] = b"#BOOTCONFIG\n";
/// Size and checksum.
const NUMBERS: usize = 8;
/// Bytes after the mark at which the kernel still finds it: GRUB may pad a file to a multiple of 4.
const PADDING: usize = 3;

/// The archives of a file, and its bootconfig from the text to the mark: empty if it has none.
///
/// # Errors
/// What is wrong with the bootconfig, without the file's name.
pub fn split(file: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let end = (0..=PADDING).find_map(|padding| {
        let end = file.len().checked_sub(padding)?;
        file.get(..end)?.ends_with(MARK).then_some(end)
    });
    let Some(end) = end else {
        return Ok((file, &[]));
    };
    let cut = |at: usize| file.get(..end).and_then(|file| file.split_at_checked(at));
    let damaged =
        |why: String| format!("its bootconfig is damaged, for {why}: make it anew (`bootconfig -d`, then `-a`)");
    let short = || damaged("nothing is before its mark".to_owned());
    let numbers = (end - MARK.len()).checked_sub(NUMBERS).ok_or_else(short)?;
    let (before, tail) = cut(numbers).ok_or_else(short)?;
    let [size, checksum] = [0, 4].map(|at| tail.get(at..).and_then(<[u8]>::first_chunk).copied());
    let size = u32::from_le_bytes(size.ok_or_else(short)?) as usize;
    let checksum = u32::from_le_bytes(checksum.ok_or_else(short)?);
    let text_at = before.len().checked_sub(size).ok_or_else(|| {
        damaged(format!(
            "it is said to have {size} bytes, and only {} are there",
            before.len()
        ))
    })?;
    let text = before.get(text_at..).unwrap_or_default();
    let sum = text.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    if sum != checksum {
        return Err(damaged(format!("its checksum is {sum:#x} and not {checksum:#x}")));
    }
    cut(text_at).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tools/bootconfig -a` after a zstd archive of 90 bytes.
    const REAL: &[u8] = include_bytes!("../../tests/inputs/initramfs-bootconfig/bootconfig.img");

    #[test]
    fn the_text_and_its_padding_belong_to_the_bootconfig() {
        let (archives, bootconfig) = split(REAL).unwrap();
        assert_eq!(archives.len(), 90);
        assert!(bootconfig.starts_with(b"kernel.loglevel = 7\n\0\0"));
        assert_eq!([archives, bootconfig].concat(), REAL);
        assert_eq!(split(b"070701"), Ok((&b"070701"[..], &[][..])));
        assert_eq!(split(bootconfig), Ok((&[][..], bootconfig)), "a file of its own");
    }

    #[test]
    fn the_kernel_finds_the_mark_before_three_bytes_and_not_before_four() {
        let mut padded = REAL.to_vec();
        for padding in 1..=3 {
            padded.push(0);
            let (archives, bootconfig) = split(&padded).unwrap();
            assert_eq!(archives.len(), 90);
            assert!(bootconfig.ends_with(MARK), "without the {padding} bytes after it");
        }
        padded.push(0);
        assert_eq!(split(&padded), Ok((&padded[..], &[][..])));
    }

    #[test]
    fn what_the_kernel_would_not_cut_off_is_damaged() {
        let numbers = REAL.len() - MARK.len() - NUMBERS;
        let with = |at: usize, byte: u8| {
            let mut file = REAL.to_vec();
            file[at] = byte;
            split(&file).unwrap_err()
        };
        assert!(with(numbers + 1, 0xff).contains("only 112 are there"));
        assert!(with(numbers, 0x15).contains("checksum"));
        assert!(with(95, b'K').contains("checksum"));
        for file in [MARK, &b"1234567#BOOTCONFIG\n"[..]] {
            assert!(split(file).unwrap_err().contains("damaged"));
        }
    }
}
