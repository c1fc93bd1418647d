//! The BIOS data area, through `/dev/mem`: the kernel lets root read the first MiB there but for what it uses itself, and
//! it uses nothing of the first page (`devmem_is_allowed()` and `trim_bios_range()` in `arch/x86`). A kernel that is locked
//! down opens that file for nobody.

use std::fs::File;
use std::os::unix::fs::FileExt;

use firmware_shim::e820;

use crate::sysroot::SysRoot;

/// Where Linux, and so L0, takes the BIOS' memory below 1 MiB to begin.
///
/// # Errors
/// Why that cannot be told.
pub fn bios_area(sys: &SysRoot) -> Result<u64, String> {
    let read = || {
        let file = File::open(sys.path("dev/mem"))?;
        let word = |at| {
            let mut word = [0; 2];
            file.read_exact_at(&mut word, at).map(|()| u16::from_le_bytes(word))
        };
        e820::bios_area(word)
    };
    read().map_err(|error: std::io::Error| format!("/dev/mem: {error}"))
}
