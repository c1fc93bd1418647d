//! L0's boot image; on a hosted target only a pointer to the right command.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("L0 runs on bare metal: build it with --target x86_64-unknown-none, or run `cargo lab demo`.");
    std::process::exit(2);
}

// The image's entry point is in the library: this keeps it linked.
#[cfg(target_os = "none")]
use l0_monitor as _;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    log::error!("{info}: this CPU ends here");
    l0_monitor::end()
}
