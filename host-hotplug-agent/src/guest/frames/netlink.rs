//! Queueing disciplines, over rtnetlink (`linux/rtnetlink.h`, `linux/pkt_sched.h`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// `RTM_NEWQDISC` and `RTM_DELQDISC`.
const NEW: u16 = 36;
const DELETE: u16 = 37;
/// `NLMSG_ERROR`: the answer, of which 0 is no error.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_CREATE | NLM_F_EXCL`: fails where there is one that somebody chose.
const REQUEST: u16 = 1 | 4;
const ANEW: u16 = 0x400 | 0x200;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// `TCA_KIND` and `TCA_OPTIONS`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// Bytes that a plug holds at most; more is dropped.
const LIMIT: u32 = 4 << 20;

/// What a plug does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plug {
    /// `TCQ_PLUG_BUFFER`.
    Hold = 0,
    /// `TCQ_PLUG_RELEASE_INDEFINITE`.
    Open = 2,
}

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// Puts a plug before an interface, which holds.
    pub(super) fn add(&self, index: u32) -> io::Result<()> {
        self.ask(&message(NEW, REQUEST | ANEW, index, Some(Plug::Hold)))
    }

    /// Changes the plug of [`Self::add`].
    pub(super) fn set(&self, index: u32, plug: Plug) -> io::Result<()> {
        self.ask(&message(NEW, REQUEST, index, Some(plug)))
    }

    /// Takes it away, with what it holds; nothing else that is in its place.
    fn remove(&self, index: u32) -> io::Result<()> {
        self.ask(&message(DELETE, REQUEST, index, None))
    }

    /// Lets through what a plug holds, and takes the plug away.
    pub(super) fn unplug(&self, index: u32) -> io::Result<()> {
        self.set(index, Plug::Open).and_then(|()| self.remove(index))
    }

    fn ask(&self, message: &[u8]) -> io::Result<()> {
        sendto(&self.0, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 1024];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        outcome(answer.get(..length).unwrap_or_default())
    }
}

fn message(kind: u16, flags: u16, index: u32, plug: Option<Plug>) -> Vec<u8> {
    let mut body = Vec::new();
    // struct tcmsg: family, padding, interface, handle, parent, info.
    for word in [0, index, 0, ROOT, 0] {
        body.extend(word.to_ne_bytes());
    }
    // One of another kind is refused, when it is to be deleted, too (`tc_get_qdisc()`).
    attribute(&mut body, KIND, b"plug\0");
    if let Some(plug) = plug {
        let mut options = Vec::from((plug as u32).to_ne_bytes());
        options.extend(LIMIT.to_ne_bytes());
        attribute(&mut body, OPTIONS, &options);
    }
    // struct nlmsghdr: length, type, flags, sequence, port.
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// What an answer says: `struct nlmsghdr`, then the negative of an error's number.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let strange = || io::Error::other("the kernel's answer is none");
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind: [u8; 2] = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(strange)?;
    if u16::from_ne_bytes(kind) != ERROR {
        return Err(strange());
    }
    match i32::from_ne_bytes(word(16).ok_or_else(strange)?) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_attributes_at_words() {
        let bytes = message(NEW, REQUEST | ANEW, 7, Some(Plug::Open));
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, bytes.len());
        // Header, tcmsg, kind with its padding, options.
        assert_eq!(bytes.len(), 16 + 20 + 12 + 12);
        assert_eq!((word(20), word(28)), (7, ROOT));
        assert_eq!(&bytes[40..45], b"plug\0");
        assert_eq!((word(52), word(56)), (2, LIMIT));
        assert_eq!(message(DELETE, REQUEST, 7, None).len(), 48);
    }

    #[test]
    fn an_answer_is_an_error_or_none() {
        let answer = |kind: u16, error: i32| {
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(error.to_ne_bytes());
            outcome(&bytes)
        };
        answer(ERROR, 0).unwrap();
        let refused = answer(ERROR, -17).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(answer(3, 0).is_err() && outcome(&[0; 6]).is_err() && outcome(&[]).is_err());
    }

    #[test]
    fn the_kernel_refuses_an_interface_that_is_none() {
        let netlink = Netlink::open().unwrap();
        assert!(netlink.remove(u32::MAX >> 1).is_err());
    }
}
