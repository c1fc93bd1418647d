//! Links the bare-metal binary at its fixed address.

fn main() {
    println!("cargo::rerun-if-changed=l0.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for arg in [
            &format!("-T{dir}/l0.ld"),
            "--no-pie",
            "-zmax-page-size=4096",
            "--no-dynamic-linker",
            "--build-id=none",
        ] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}
