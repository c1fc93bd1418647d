//! /sys/kernel/locum/

use super::number::{io, ior, iow};

/// Files whose content the daemon sets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// `state`, at first "idle".
    State = 0,
    /// `progress`, at first empty.
    Progress = 1,
    /// `last_error`, at first empty.
    LastError = 2,
}

/// Bytes of a text at most, without terminator.
pub const TEXT_MAX: usize = 1008;

/// New content of a file in sysfs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// In: a [`TextKind`].
    pub kind: u32,
    /// In: bytes of text, at most [`TEXT_MAX`], no newline at the end (the file shows one).
    pub len: u32,
    /// In: 0.
    pub reserved: u64,
    /// In: UTF-8.
    pub text: [u8; TEXT_MAX],
}

impl Text {
    /// One line of text; newlines become spaces, and a longer text is cut at a character's border.
    #[must_use]
    pub fn new(kind: TextKind, text: &str) -> Self {
        let len = text.floor_char_boundary(TEXT_MAX);
        let mut made = Self {
            kind: kind as u32,
            len: len as u32,
            reserved: 0,
            text: [0; TEXT_MAX],
        };
        for (to, from) in made.text.iter_mut().zip(text.bytes().take(len)) {
            *to = if from == b'\n' { b' ' } else { from };
        }
        made
    }
}

/// Sets the text and wakes those who poll(2) the file. Errors: -EINVAL.
pub const IOC_TEXT: u32 = iow::<Text>(0x50);

/// This file becomes the daemon's: names written to /sys/kernel/locum/refresh are queued for it, and poll(2) reports
/// POLLIN while one waits. Ends with close(2). Errors: -EBUSY (another file is the daemon's).
pub const IOC_LISTEN: u32 = io(0x51);

/// A name written to `refresh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Out: the successor's name, terminated by zeroes, without newline, `[A-Za-z0-9._-]+`.
    pub name: [u8; 64],
}

impl Default for Request {
    fn default() -> Self {
        Self { name: [0; 64] }
    }
}

impl Request {
    /// The name; `None` if it is none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let name = self.name.split(|byte| *byte == 0).next()?;
        core::str::from_utf8(name).ok().filter(|name| !name.is_empty())
    }
}

/// Takes the waiting name. The module is busy from the write until [`IOC_BUSY`] 0.
/// Errors: -EAGAIN (none waits), -EPERM (not the daemon's file).
pub const IOC_NEXT_REQUEST: u32 = ior::<Request>(0x52);

/// 1: a refresh runs (one that did not come through sysfs, say): writes to `refresh` get -EBUSY. 0: none runs. Takes 32
/// bits by pointer. Errors: -EPERM (not the daemon's file), -EINVAL.
pub const IOC_BUSY: u32 = iow::<u32>(0x53);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_line_that_fits() {
        let text = Text::new(TextKind::Progress, "42\noffload");
        assert_eq!((text.kind, text.len), (1, 10));
        assert_eq!(text.text[..11], *b"42 offload\0");
        let mut long = [b'x'; TEXT_MAX + 1];
        // Two bytes of one character across the end.
        long[TEXT_MAX - 1..].copy_from_slice("é".as_bytes());
        let text = Text::new(TextKind::State, core::str::from_utf8(&long).unwrap());
        assert_eq!((text.len, text.text[TEXT_MAX - 1]), (1007, 0));
    }

    #[test]
    fn a_request_names_a_successor() {
        let mut request = Request::default();
        assert_eq!(request.name(), None);
        request.name[..4].copy_from_slice(b"next");
        assert_eq!(request.name(), Some("next"));
        assert_eq!(Request { name: [b'n'; 64] }.name().map(str::len), Some(64));
        assert_eq!(Request { name: [0xff; 64] }.name(), None);
    }
}
