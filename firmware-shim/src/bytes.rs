//! Little-endian fields in byte slices, without any way to panic.

/// The `N` bytes at `offset`; bytes beyond the end read as zero.
///
/// Zero is what every consumer of ACPI tables assumes for a field that an older, shorter table lacks.
pub(crate) fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    core::array::from_fn(|i| offset.checked_add(i).and_then(|at| bytes.get(at)).copied().unwrap_or(0))
}

/// The byte at `offset`, zero beyond the end.
pub(crate) fn u8_at(bytes: &[u8], offset: usize) -> u8 {
    field::<1>(bytes, offset)[0]
}

/// The 16-bit word at `offset`, zero beyond the end.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

/// The 32-bit word at `offset`, zero beyond the end.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

/// The 64-bit word at `offset`, zero beyond the end.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

/// Writes `value` at `offset`; false, and nothing written, if it does not fit.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) -> bool {
    let place = offset
        .checked_add(value.len())
        .and_then(|end| bytes.get_mut(offset..end));
    match place {
        Some(place) => {
            place.copy_from_slice(value);
            true
        }
        None => false,
    }
}

/// The byte that makes the sum of `bytes` and itself zero modulo 256.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b))
}
