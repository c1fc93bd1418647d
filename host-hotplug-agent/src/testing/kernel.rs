//! A kernel file that passes every check and would crash at once.

/// A bzImage of `code` bytes of protected-mode code.
pub fn bzimage(code: usize) -> Vec<u8> {
    let mut file = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[3]);
    put(0x1f4, &(code as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x20e, &0x300u16.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &0x7fu16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    put(0x500, b"6.12.2-fake (test)\0");
    file.resize(2048 + code, 0x90);
    file
}
