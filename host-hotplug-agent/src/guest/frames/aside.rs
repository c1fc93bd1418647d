//! What is on its way to an interface goes to another one instead, by a program of fifteen instructions (bpf(2), tcx).
#![expect(unsafe_code, reason = "bpf(2), which neither the standard library nor rustix has")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `bpf_cmd`, `bpf_prog_type` and `bpf_attach_type` of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
const TCX_EGRESS: u32 = 47;

/// Offsets in `struct __sk_buff`.
const MARK: i16 = 8;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// `TCX_NEXT`: the frame goes on as if there were no program.
const NEXT: i32 = -1;
/// `bpf_redirect()`.
const REDIRECT: i32 = 23;

/// As long as this lives, frames for one go elsewhere. It does not outlive its process.
#[derive(Debug)]
pub(super) struct Aside {
    _link: OwnedFd,
}

impl Aside {
    /// Frames that the host sends out of interface `from` are marked and go out of `to`. Nothing that was sent before is lost,
    /// and frames for many go on (IEEE 802, bit 0 of the destination's first byte).
    ///
    /// # Errors
    /// The system's: a kernel before 6.6 has no such place for a program.
    pub(super) fn new(from: u32, to: u32, mark: u32) -> io::Result<Self> {
        let program = load(&program(to, mark))?;
        Ok(Self {
            _link: link(&program, from)?,
        })
    }
}

/// An instruction: code, registers, offset, immediate (Documentation/bpf/standardization/instruction-set.rst).
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

fn program(to: u32, mark: u32) -> [u64; 15] {
    let load = |register, offset| instruction(0x61, register, 1, offset, 0);
    let set = |register, value| instruction(0xb7, register, 0, 0, value);
    [
        load(2, DATA),
        load(3, DATA_END),
        set(0, NEXT),
        // r4 = r2 + 1; to the end if that is beyond the data.
        instruction(0xbf, 4, 2, 0, 0),
        instruction(0x07, 4, 0, 0, 1),
        instruction(0x2d, 4, 3, 8, 0),
        // r5 = the first byte & 1; to the end if that is not 0.
        instruction(0x71, 5, 2, 0, 0),
        instruction(0x57, 5, 0, 0, 1),
        instruction(0x55, 5, 0, 5, 0),
        set(2, mark.cast_signed()),
        instruction(0x63, 1, 2, MARK, 0),
        set(1, to.cast_signed()),
        set(2, 0),
        instruction(0x85, 0, 0, 0, REDIRECT),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = Load {
        kind: SCHED_CLS,
        instructions: u32::try_from(program.len()).map_err(io::Error::other)?,
        program: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        name: *b"locum_aside\0\0\0\0\0",
        attach: TCX_EGRESS,
        ..Load::default()
    };
    bpf(PROG_LOAD, &attributes)
}

/// The fields of `union bpf_attr` for `BPF_LINK_CREATE`, with those of tcx.
#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
    relative: u32,
    _padding: u32,
    revision: u64,
}

fn link(program: &OwnedFd, interface: u32) -> io::Result<OwnedFd> {
    let attributes = Link {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach: TCX_EGRESS,
        ..Link::default()
    };
    bpf(LINK_CREATE, &attributes)
}

/// A command that makes a descriptor.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, of which the size is given, and what they point to, which lives on in the caller.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match libc::c_int::try_from(made) {
        // SAFETY: the kernel has just made it, and nobody else has it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_go_to_the_end() {
        let program = program(1, 2);
        let jumps = program
            .iter()
            .enumerate()
            .filter(|(_, word)| matches!(**word & 0xff, 0x2d | 0x55));
        let targets: Vec<_> = jumps
            .map(|(at, word)| at + 1 + usize::from((word >> 16) as u16))
            .collect();
        assert_eq!(targets, [program.len() - 1, program.len() - 1]);
        assert_eq!(program[program.len() - 1], 0x95);
    }
}
