//! Links the bare-metal binary: position independent, since the boot loader chooses the place, with its relocations in
//! the packed form (RELR) that `boot/entry.rs` applies.

fn main() {
    println!("cargo::rerun-if-changed=l0.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [
            &format!("-T{dir}/l0.ld"),
            "-pie",
            "--pack-dyn-relocs=relr",
            "-zmax-page-size=4096",
            "--no-dynamic-linker",
            "--build-id=none",
        ] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}
