//! PID 1 of the lab's guests: see `lab_guest::init`.

fn main() {
    if let Err(error) = lab_guest::init::run() {
        println!("lab: the guest cannot run: {error:#}");
    }
    // PID 1 must not return quietly: its end is a kernel panic, which QEMU turns into its own end.
}
