//! Frames of a real tap are kept, taken and given back: in a network namespace of the test's own, so only root can play it.
#![expect(unsafe_code, reason = "ioctl(2) and unshare(2)")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::packet::Packets;
use super::{Coming, Frame, Held, Kept, Tap};

/// `TUNSETIFF`, and `IFF_TAP | IFF_NO_PI` of linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TAP: libc::c_short = 0x0002 | 0x1000;
/// An ethertype for experiments.
const OURS: [u8; 2] = [0x88, 0xb5];
/// `struct virtio_net_hdr` of a frame that is whole.
const WHOLE: [u8; 10] = [0; 10];
const NAME: &CStr = c"locumtest";

fn request(name: &CStr, flags: libc::c_short) -> libc::ifreq {
    // SAFETY: it is made of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    request
}

fn control(of: BorrowedFd<'_>, code: libc::Ioctl, request: &libc::ifreq) {
    // SAFETY: these two commands read and write no more than an ifreq.
    let done = unsafe { libc::ioctl(of.as_raw_fd(), code, std::ptr::from_ref(request).cast_mut()) };
    assert_eq!(done, 0, "{code:#x}: {}", io::Error::last_os_error());
}

fn up(name: &CStr) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let flags = libc::IFF_UP as libc::c_short;
    control(
        std::os::fd::AsFd::as_fd(&socket),
        libc::SIOCSIFFLAGS,
        &request(name, flags),
    );
}

fn index(name: &CStr) -> u32 {
    // SAFETY: it is a string with its end.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// A tap, as QEMU opens it. It is gone with its file.
fn tap() -> (File, Tap) {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    control(std::os::fd::AsFd::as_fd(&file), TUNSETIFF, &request(NAME, TAP));
    up(NAME);
    rustix::io::ioctl_fionbio(&file, true).unwrap();
    let name = CString::from(NAME).into_string().unwrap();
    let index = index(NAME);
    (file, Tap { name, index })
}

/// A frame with that content, behind its header.
fn frame(first: u8, content: u8) -> Vec<u8> {
    let mut frame = Vec::from(WHOLE);
    frame.extend([first, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2]);
    frame.extend(OURS);
    frame.extend([content; 46]);
    frame
}

/// The contents of all frames of ours that have reached the guest.
fn reached(mut tap: &File) -> Vec<u8> {
    let mut contents = Vec::new();
    let mut frame = [0; 2048];
    loop {
        match tap.read(&mut frame) {
            Ok(_) if frame[12..14] == OURS => contents.push(frame[14]),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return contents,
            Err(error) => panic!("{error}"),
        }
    }
}

/// In a thread of its own, which has a network of its own.
fn alone(test: fn()) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not played: only root has networks of its own");
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: no other thread shares this one's network namespace by a pointer or a descriptor that the test uses.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        up(c"lo");
        test();
    });
    thread.join().unwrap();
}

#[test]
fn what_comes_for_one_is_taken_and_what_comes_for_many_goes_on() {
    alone(|| {
        let (file, tap) = tap();
        let host = Packets::none(tap.index).unwrap();
        host.send(&frame(0x52, 1)).unwrap();
        let kept = Kept::new(tap.clone(), index(c"lo")).unwrap();
        host.send(&frame(0x52, 2)).unwrap();
        host.send(&frame(0xff, 3)).unwrap();
        host.send(&frame(0x52, 4)).unwrap();
        assert_eq!(reached(&file), [1, 3]);
        let mut bytes = 0;
        assert_eq!(
            kept.take(&mut bytes).unwrap(),
            [Frame(frame(0x52, 2)), Frame(frame(0x52, 4))]
        );
        host.send(&frame(0x52, 5)).unwrap();
        assert_eq!(reached(&file), [5]);
    });
}

#[test]
fn a_guest_that_stays_gets_all_in_order() {
    alone(|| {
        let (file, tap) = tap();
        let host = Packets::none(tap.index).unwrap();
        let kept = Kept::new(tap, index(c"lo")).unwrap();
        for content in 1..=3 {
            host.send(&frame(0x52, content)).unwrap();
        }
        assert_eq!(reached(&file), [0; 0]);
        kept.give_back().unwrap();
        host.send(&frame(0x52, 4)).unwrap();
        assert_eq!(reached(&file), [1, 2, 3, 4]);
    });
}

#[test]
fn what_came_in_the_other_host_goes_before_what_waits_here() {
    alone(|| {
        let (file, tap) = tap();
        let host = Packets::none(tap.index).unwrap();
        let held = || Some(Held(vec![Kept::new(tap.clone(), index(c"lo")).unwrap()]));
        let coming = Coming(Arc::new(Mutex::new(held())));
        host.send(&frame(0x52, 3)).unwrap();
        let earlier = |content| {
            Packets::direct(tap.index)?
                .send(&frame(0x52, content))
                .map_err(Into::into)
        };
        coming.follow(|| earlier(1).and_then(|()| earlier(2))).unwrap();
        host.send(&frame(0x52, 4)).unwrap();
        assert_eq!(reached(&file), [1, 2, 3, 4]);
        // Nobody says anything.
        let coming = Coming(Arc::new(Mutex::new(held())));
        host.send(&frame(0x52, 5)).unwrap();
        assert_eq!(reached(&file), [0; 0]);
        coming.end_after(Duration::from_millis(1));
        while coming.lock().is_some() {
            std::thread::yield_now();
        }
        assert_eq!(reached(&file), [5]);
    });
}
