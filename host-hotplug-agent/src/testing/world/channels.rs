//! The channels between the two hosts.

use std::io::Read;
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};
use locum_abi::{CHANNEL_COUNT, PerSlot, Slot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::World;

impl World {
    /// All channels that are open break off.
    pub fn cut_channels(&self) {
        for wire in std::mem::take(&mut self.lock().wires) {
            let _ = wire.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Nothing is to befall the channels any more.
    pub(in crate::testing) fn drop_wires(&self) {
        self.lock().wires.clear();
    }

    /// An end of a channel. Who opens one that it had open before begins a new conversation: the other side sees the end
    /// of the old one.
    pub(in crate::testing) fn open(&self, number: usize, slot: Slot) -> Result<UnixStream> {
        let mut inner = self.lock();
        let Some(ends) = inner.ends.get_mut(number) else {
            bail!("no channel {number}");
        };
        // If the other host has closed it meanwhile, its next one is at the other end of a new pair.
        if let Some(mut end) = ends[slot].take().filter(|end| !hung_up(end)) {
            // Opened anew, a channel is empty; but who said hello meanwhile does not say it again.
            if number != 0 && !inner.opened.insert((number, slot)) {
                let mut stale = [0; 4096];
                while matches!(end.read(&mut stale), Ok(1..)) {}
            }
            return Ok(end);
        }
        let (left, right) = channel();
        let wires = [left.try_clone()?, right.try_clone()?];
        ends[slot.other()] = Some(right);
        if inner.has_plans() {
            inner.wires.extend(wires);
        }
        Ok(left)
    }

    /// New channels, for a successor that starts.
    pub(in crate::testing) fn clear_channels(&self) {
        let pairs: Vec<_> = (0..CHANNEL_COUNT).map(|_| channel()).collect();
        let mut inner = self.lock();
        inner.wires.clear();
        if inner.has_plans() {
            let ends = pairs.iter().flat_map(|(left, right)| [left, right]);
            inner.wires = ends.map(|end| end.try_clone().unwrap()).collect();
        }
        inner.opened.clear();
        inner.ends = pairs
            .into_iter()
            .map(|(left, right)| PerSlot::new(Some(left), Some(right)))
            .collect();
    }
}

fn hung_up(end: &UnixStream) -> bool {
    let mut fds = [PollFd::new(end, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

fn channel() -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    right.set_nonblocking(true).unwrap();
    (left, right)
}
