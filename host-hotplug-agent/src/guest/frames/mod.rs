//! Frames that come for a guest once it has stopped here: QEMU takes what its tap has and loses it. So they are kept from QEMU, and
//! go to the other host when the guest runs there.
//!
//! A queueing discipline that holds all it gets (`net/sched/sch_plug.c`) is put between the bridge and the tap, and opened again
//! when the guest runs in the other host: what passes then is read from the tap and sent along. Nothing is sent that
//! the guest has had already. A guest whose tap has a discipline that somebody chose goes without, and so does one whose QEMU is
//! in another network namespace, or has no tap.

mod netlink;
mod packet;

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::netlink::{Netlink, Plug};
use self::packet::Packets;
use crate::sysroot::SysRoot;

/// Longer than what was held takes to pass, once it may: the kernel sends it before it returns.
const QUIET: Duration = Duration::from_millis(2);
/// Most bytes of frames that go along. What a guest of one connection waits for is a few of them.
const MOST: usize = 1 << 20;

/// Bytes of `struct virtio_net_hdr`.
const HEADER: usize = 10;

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

/// The taps of a guest that is about to stop.
#[derive(Debug)]
pub struct Held {
    netlink: Netlink,
    taps: Vec<Tap>,
}

impl Held {
    /// Those of that QEMU, from which frames can be kept when it comes to that; none where they cannot be.
    pub fn ready(sys: &SysRoot, pid: Pid) -> Option<Self> {
        let mut held = Self {
            netlink: Netlink::open().ok()?,
            taps: Vec::new(),
        };
        for tap in taps(sys, pid) {
            let plugged = held.netlink.add(tap.index).and_then(|()| {
                held.taps.push(tap.clone());
                held.netlink.set(tap.index, Plug::Open)
            });
            if let Err(error) = plugged {
                tracing::debug!(
                    "frames that {} gets while its guest crosses are not kept: {error}",
                    tap.name
                );
                return None;
            }
        }
        (!held.taps.is_empty()).then_some(held)
    }

    /// Keeps what comes from now on.
    pub fn hold(&self) {
        for tap in &self.taps {
            if let Err(error) = self.netlink.set(tap.index, Plug::Hold) {
                tracing::warn!(
                    "frames that {} gets while its guest crosses are lost: {error}",
                    tap.name
                );
            }
        }
    }

    /// What has come since, for each tap, once QEMU has no use for it any more.
    ///
    /// # Errors
    /// The system's.
    pub fn take(self) -> Result<Vec<Vec<Frame>>> {
        let mut all = Vec::new();
        let mut bytes = 0;
        for tap in &self.taps {
            let packets = Packets::all(tap.index).with_context(|| format!("listening on {}", tap.name))?;
            self.netlink.set(tap.index, Plug::Open)?;
            let mut frames = Vec::new();
            while let Some(frame) = packets.next_to_guest(QUIET)? {
                if !is_for_one(&frame) {
                    continue;
                }
                bytes += frame.len();
                if bytes > MOST {
                    tracing::warn!(
                        "{} got more for its guest than can go along: the rest is lost",
                        tap.name
                    );
                    break;
                }
                frames.push(Frame(frame));
            }
            all.push(frames);
        }
        Ok(all)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for tap in &self.taps {
            // It is gone with its QEMU, or has what it had before.
            if let Err(error) = self.netlink.unplug(tap.index) {
                tracing::debug!("{}: {error}", tap.name);
            }
        }
    }
}

/// Lets a guest that runs in that QEMU have all that comes, whatever a daemon that is no more had begun.
pub fn let_through(sys: &SysRoot, pid: Pid) {
    let taps = taps(sys, pid);
    let Some(netlink) = Netlink::open().ok().filter(|_| !taps.is_empty()) else {
        return;
    };
    for tap in taps {
        // Nearly always there is none.
        if netlink.unplug(tap.index).is_ok() {
            tracing::info!("{} was held for its guest, and is no more", tap.name);
        }
    }
}

/// What goes to many has come to the other host as well, which is on the same network: its QEMU has it (IEEE 802, bit 0 of the
/// destination's first byte).
fn is_for_one(frame: &[u8]) -> bool {
    frame.get(HEADER).is_some_and(|first| first & 1 == 0)
}

/// Gives a guest of that QEMU what came for it in the other host, tap by tap.
///
/// # Errors
/// It has other taps, or the system's.
pub fn give(sys: &SysRoot, pid: Pid, frames: &[Vec<Frame>]) -> Result<()> {
    let taps = taps(sys, pid);
    anyhow::ensure!(
        taps.len() == frames.len(),
        "its QEMU has {} taps here, and had {} there",
        taps.len(),
        frames.len()
    );
    for (tap, frames) in taps.iter().zip(frames).filter(|(_, frames)| !frames.is_empty()) {
        let packets = Packets::none(tap.index).with_context(|| format!("sending to {}", tap.name))?;
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
