//! How the running kernel was built.

use std::fs;

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use crate::sysroot::SysRoot;

const GZIP_HEADER: usize = 10;
/// Far more than any configuration has.
const LIMIT: usize = 16 << 20;

/// Its configuration: lines such as `CONFIG_MODULES=y`.
///
/// # Errors
/// Where was looked in vain.
pub fn read(sys: &SysRoot, release: &str) -> Result<String, String> {
    if let Ok(packed) = fs::read(sys.path("proc/config.gz")) {
        return unpack(&packed).ok_or_else(|| "/proc/config.gz cannot be unpacked".to_owned());
    }
    let places = [
        format!("boot/config-{release}"),
        format!("lib/modules/{release}/config"),
        format!("usr/lib/modules/{release}/config"),
    ];
    let found = places.iter().find_map(|place| sys.read_optional(place));
    found.ok_or_else(|| format!("neither /proc/config.gz nor /{} can be read", places.join(" nor /")))
}

/// A gzip file as the kernel makes it: without optional fields.
fn unpack(packed: &[u8]) -> Option<String> {
    let body = packed
        .strip_prefix(&[0x1f, 0x8b, 8, 0])
        .and_then(|_| packed.get(GZIP_HEADER..))?;
    let text = decompress_to_vec_with_limit(body, LIMIT).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
