//! `locum image`: the initramfs of a successor.

use anyhow::Result;

use super::print_line;
use crate::image;
use crate::sysroot::SysRoot;

pub fn run(sys: &SysRoot, version: Option<&str>) -> Result<()> {
    let running = || sys.read("proc/sys/kernel/osrelease");
    let version = version.map_or_else(running, |version| Ok(version.to_owned()))?;
    let image = image::make(sys, &version)?;
    let bytes = std::fs::metadata(&image)?.len();
    print_line(&format!("{}: {} MiB", image.display(), bytes.div_ceil(1 << 20)))
}
