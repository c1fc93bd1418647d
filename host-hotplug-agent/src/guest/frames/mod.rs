//! Frames that come for a guest once it has stopped here: QEMU takes what its tap has and loses it. So they are kept from QEMU, from
//! shortly before the stop on, and go to the other host when the guest runs there.
//!
//! What is on its way to the tap goes to the loopback interface instead ([`aside`]), marked. There nobody takes it, for it has
//! another's address, but a packet socket that wants that mark. Nothing is sent along that the guest has had already. A guest
//! goes without whose QEMU is in another network namespace, or has no tap, and so do all under a kernel before 6.6.

mod aside;
#[cfg(test)]
mod on_this_kernel;
mod packet;

use std::fmt;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::aside::Aside;
use self::packet::Packets;
use crate::sysroot::SysRoot;

/// All has come that is there already.
const NOW: Duration = Duration::ZERO;
/// What frames for a guest are marked with, and in the low half the number of its interface.
const MARK: u32 = 0x4c6f_0000;
/// Most bytes of frames that go along. What a guest of one connection waits for is a few of them.
const MOST: usize = 1 << 20;

/// A frame on its way to a guest, behind a `struct virtio_net_hdr` of ten bytes (`linux/virtio_net.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Serialize for Frame {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frame {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes
            .map(Self)
            .ok_or_else(|| de::Error::custom("a frame is written in pairs of hexadecimal digits"))
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An interface that is the host's end of a guest's cable.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tap {
    name: String,
    index: u32,
}

/// The taps of a QEMU here, in the order of its descriptors: that of its command line. None if it is in another network namespace.
fn taps(sys: &SysRoot, pid: Pid) -> Vec<Tap> {
    let proc = format!("proc/{}", pid.as_raw_nonzero());
    let namespace = |of: &str| fs::read_link(sys.path(format!("{of}/ns/net"))).ok();
    if namespace(&proc) != namespace("proc/self") {
        return Vec::new();
    }
    let descriptors = sys.list(format!("{proc}/fd")).unwrap_or_default();
    let mut numbers: Vec<u32> = descriptors.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut taps: Vec<Tap> = Vec::new();
    for number in numbers {
        // `tun_chr_show_fdinfo()` in Linux' drivers/net/tun.c.
        let info = sys.read_optional(format!("{proc}/fdinfo/{number}")).unwrap_or_default();
        let names = info.lines().filter_map(|line| line.strip_prefix("iff:"));
        for name in names.map(str::trim) {
            let index = sys.read_optional(format!("sys/class/net/{name}/ifindex"));
            let index = index.and_then(|index| index.trim().parse().ok());
            if let Some(index) = index.filter(|_| taps.iter().all(|tap| tap.name != name)) {
                taps.push(Tap {
                    name: name.to_owned(),
                    index,
                });
            }
        }
    }
    taps
}

/// Whether both have a queue of one tap each.
pub fn share_a_tap(sys: &SysRoot, one: Pid, other: Pid) -> bool {
    let others = taps(sys, other);
    taps(sys, one).iter().any(|tap| others.contains(tap))
}

/// The loopback interface, if it is up: what is sent to one that is down is lost.
fn loopback(sys: &SysRoot) -> Option<u32> {
    let read = |name: &str| sys.read_optional(format!("sys/class/net/lo/{name}"));
    let flags = u32::from_str_radix(read("flags")?.trim().trim_start_matches("0x"), 16).ok()?;
    // IFF_UP of linux/if.h.
    let index = read("ifindex")?.trim().parse().ok()?;
    (flags & 1 != 0).then_some(index)
}

/// The taps of a guest that is about to leave, which get nothing any more that is for it alone.
#[derive(Debug)]
pub struct Held(Vec<Kept>);

/// A tap, and what is on its way there.
#[derive(Debug)]
struct Kept {
    tap: Tap,
    packets: Packets,
    aside: Aside,
}

impl Held {
    /// Keeps what comes for the guest of that QEMU from now on; none where that cannot be.
    pub fn of(sys: &SysRoot, pid: Pid) -> Option<Self> {
        let loopback = loopback(sys)?;
        let kept = taps(sys, pid).into_iter().map(|tap| {
            Kept::new(tap.clone(), loopback).inspect_err(|error| {
                tracing::debug!(
                    "frames that {} gets while its guest crosses are not kept: {error}",
                    tap.name
                );
            })
        });
        let kept: Vec<_> = kept.collect::<io::Result<_>>().ok()?;
        (!kept.is_empty()).then_some(Self(kept))
    }

    /// What has come since, for each tap, once QEMU has no use for it any more.
    ///
    /// # Errors
    /// The system's.
    pub fn take(self) -> Result<Vec<Vec<Frame>>> {
        let mut bytes = 0;
        let frames = self.0.into_iter().map(|kept| kept.take(&mut bytes));
        frames.collect()
    }

    /// The guest stays: it gets what has come since, and what comes from now on.
    ///
    /// # Errors
    /// The system's.
    pub fn give_back(self) -> Result<()> {
        self.0.into_iter().try_for_each(Kept::give_back)
    }
}

impl Kept {
    fn new(tap: Tap, loopback: u32) -> io::Result<Self> {
        let mark = MARK | tap.index & 0xffff;
        let packets = Packets::marked(loopback, mark)?;
        let aside = Aside::new(tap.index, loopback, mark)?;
        Ok(Self { tap, packets, aside })
    }

    fn take(self, bytes: &mut usize) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.packets.next_sent(NOW)? {
            *bytes += frame.len();
            if *bytes > MOST {
                tracing::warn!(
                    "{} got more for its guest than can go along: the rest is lost",
                    self.tap.name
                );
                break;
            }
            frames.push(Frame(frame));
        }
        Ok(frames)
    }

    fn give_back(self) -> Result<()> {
        let tap = Packets::direct(self.tap.index)?;
        let pass = |packets: &Packets| -> io::Result<()> {
            while let Some(frame) = packets.next_sent(NOW)? {
                tap.send(&frame)?;
            }
            Ok(())
        };
        pass(&self.packets)?;
        drop(self.aside);
        // What came between the two.
        pass(&self.packets).with_context(|| format!("sending to {}", self.tap.name))
    }
}

/// What comes for a guest that is about to run in a QEMU here waits for what came for it earlier, in the other host.
#[derive(Debug, Default)]
pub struct Coming(Arc<Mutex<Option<Held>>>);

impl Coming {
    /// From now on.
    pub fn of(sys: &SysRoot, pid: Pid) -> Self {
        Self(Arc::new(Mutex::new(Held::of(sys, pid))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It waits no longer than this, whatever becomes of the other host.
    pub fn end_after(&self, limit: Duration) {
        if self.lock().is_some() {
            let coming = Self(Arc::clone(&self.0));
            std::thread::spawn(move || {
                std::thread::sleep(limit);
                end(&mut coming.lock());
            });
        }
    }

    /// What came earlier goes first, by `give`; then the guest has what has come here.
    ///
    /// # Errors
    /// That of `give`.
    pub fn follow(&self, give: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut held = self.lock();
        let given = give();
        end(&mut held);
        given
    }
}

fn end(held: &mut Option<Held>) {
    if let Some(Err(error)) = held.take().map(Held::give_back) {
        tracing::warn!("what its network had for a guest that has just come is lost: {error:#}");
    }
}

/// Gives a guest of that QEMU what came for it in the other host, tap by tap, before all that waits for it here.
///
/// # Errors
/// It has other taps, or the system's.
pub fn give(sys: &SysRoot, pid: Pid, frames: &[Vec<Frame>]) -> Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    let taps = taps(sys, pid);
    anyhow::ensure!(
        taps.len() == frames.len(),
        "its QEMU has {} taps here, and had {} there",
        taps.len(),
        frames.len()
    );
    for (tap, frames) in taps.iter().zip(frames).filter(|(_, frames)| !frames.is_empty()) {
        let packets = Packets::direct(tap.index).with_context(|| format!("sending to {}", tap.name))?;
        for Frame(bytes) in frames {
            packets
                .send(bytes)
                .with_context(|| format!("sending to {}", tap.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn a_frame_is_written_in_digits() {
        let frame = Frame(vec![0x00, 0x1f, 0xf0, 0xff]);
        let json = serde_json::to_string(&frame).unwrap();
        assert_eq!(json, "\"001ff0ff\"");
        assert_eq!(serde_json::from_str::<Frame>(&json).unwrap(), frame);
        for bad in ["\"0\"", "\"0g\"", "\"\u{e9}\"", "\"+1\"", "5"] {
            assert!(serde_json::from_str::<Frame>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_loopback_interface_that_is_down_takes_nothing() {
        let tree = Tree::lab();
        assert_eq!(loopback(&tree.sys()), None);
        tree.put("sys/class/net/lo/ifindex", "1\n");
        tree.put("sys/class/net/lo/flags", "0x8\n");
        assert_eq!(loopback(&tree.sys()), None);
        tree.put("sys/class/net/lo/flags", "0x9\n");
        assert_eq!(loopback(&tree.sys()), Some(1));
    }

    #[test]
    fn taps_are_in_the_order_of_the_descriptors_and_each_is_once() {
        let tree = Tree::lab();
        let pid = Pid::from_raw(77).unwrap();
        for (number, info) in [
            (3, "pos:\t0\n"),
            (10, "pos:\t0\niff:\ttap1\n"),
            (9, "pos:\t0\niff:\tvnet0\n"),
            // Of a second queue.
            (11, "iff:\ttap1\n"),
            (12, "iff:\tgone\n"),
        ] {
            tree.put(format!("proc/77/fd/{number}"), "");
            tree.put(format!("proc/77/fdinfo/{number}"), info);
        }
        tree.put("sys/class/net/vnet0/ifindex", "5\n");
        tree.put("sys/class/net/tap1/ifindex", "7\n");
        let found = taps(&tree.sys(), pid);
        let found: Vec<_> = found.iter().map(|tap| (tap.name.as_str(), tap.index)).collect();
        assert_eq!(found, [("vnet0", 5), ("tap1", 7)]);
        // In a namespace of its own those names are other interfaces.
        let ns = tree.path().join("proc/77/ns");
        fs::create_dir_all(&ns).unwrap();
        std::os::unix::fs::symlink("net:[4026531999]", ns.join("net")).unwrap();
        assert_eq!(taps(&tree.sys(), pid), []);
    }
}
