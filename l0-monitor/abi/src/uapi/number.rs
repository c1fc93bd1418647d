//! How ioctls are numbered (Linux, include/uapi/asm-generic/ioctl.h): direction, size of the argument, type, number.

/// Type of every ioctl of the module.
pub const IOC: u8 = b'L';

const WRITE: u32 = 1;
const READ: u32 = 2;

const fn number(direction: u32, size: usize, nr: u8) -> u32 {
    assert!(size < 1 << 14);
    direction << 30 | (size as u32) << 16 | (IOC as u32) << 8 | nr as u32
}

/// An ioctl without an argument.
pub const fn io(nr: u8) -> u32 {
    number(0, 0, nr)
}

/// An ioctl that reads a `T` from the module.
pub const fn ior<T>(nr: u8) -> u32 {
    number(READ, size_of::<T>(), nr)
}

/// An ioctl that writes a `T` to the module.
pub const fn iow<T>(nr: u8) -> u32 {
    number(WRITE, size_of::<T>(), nr)
}

/// An ioctl that writes a `T` to the module and reads it back.
pub const fn iowr<T>(nr: u8) -> u32 {
    number(READ | WRITE, size_of::<T>(), nr)
}
