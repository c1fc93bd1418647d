//! The lab: an emulated Intel server on which Locum is built, run and tested end to end.
//!
//! It gets Debian trees with mmdebstrap ([`roots`]), takes kernels ([`kernel`]) and user space from them, builds the
//! initramfs that every host runs from ([`image`]) and a GRUB CD ([`iso`]), runs Bochs ([`bochs`]) and talks to the
//! hosts on it over serial lines ([`channel`], [`machine`]). [`run`] makes the steps of a refresh of these; the demo
//! ([`demo`]) and the end-to-end tests ([`scenarios`], [`test`](mod@test)) are made of such steps, and leave a
//! [`report`].
//!
//! The lab's only clock is the emulated one, which counts instructions: evidence is in ticks of the time stamp counter,
//! and limits follow the emulator's own count ([`deadline`]). Wall time finds an emulator that stands still, nothing
//! else.

pub mod agent;
pub mod archive;
pub mod bench;
pub mod bochs;
pub mod boot;
pub mod build;
pub mod channel;
pub mod deadline;
pub mod debian;
pub mod demo;
pub mod follow;
pub mod image;
pub mod iso;
pub mod kernel;
pub mod layout;
pub mod machine;
pub mod paths;
pub mod progress;
pub mod qemu;
pub mod report;
pub mod results;
pub mod roots;
pub mod run;
pub mod scenarios;
pub mod shell;
pub mod slots;
pub mod stock_guest;
pub mod successor;
pub mod test;
pub mod tools;

/// Tells the user what the lab is doing, on standard error.
pub fn say(text: &str) {
    eprintln!("lab: {text}");
}
