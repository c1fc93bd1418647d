//! L0's boot image; on a hosted target only a pointer to the right command.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "L0 runs on bare metal: build it with --target x86_64-unknown-none, or run `cargo lab demo`."
    );
    std::process::exit(2);
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
