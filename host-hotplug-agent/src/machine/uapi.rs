//! `kmod/locum_uapi.h` in Rust: structures and numbers of the module's ioctls. Sizes are checked against the header's.

/// Revision of the module's interface that this file was written for.
pub const UAPI_REVISION: u32 = 1;
/// [`Switch::cpu`] that means every online CPU.
pub const ALL_CPUS: i32 = -1;
/// Bytes of a [`Text`] at most.
pub const TEXT_MAX: usize = 1008;
/// Entries of [`Ranges`].
pub const MAX_RANGES: usize = 64;

/// `struct locum_info`: what does not change while the module is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// [`UAPI_REVISION`] of the module.
    pub uapi_revision: u32,
    /// ABI revision of the module.
    pub abi_revision: u32,
    /// Slot of this host.
    pub slot: u32,
    /// CPUs of the machine.
    pub cpu_count: u32,
    /// Physical address of L0's header.
    pub header: u64,
    /// Physical address of the shared region.
    pub shared: u64,
    /// Bytes of the shared region.
    pub shared_size: u64,
    /// Bytes of a memory block.
    pub memory_block: u64,
    /// This kernel's exact `tsc_khz`.
    pub tsc_khz: u64,
    /// Physical address of the RSDP that this kernel booted with, 0 if unknown.
    pub rsdp: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// `struct locum_switch`: enter or leave nested.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Switch {
    /// Linux CPU number or [`ALL_CPUS`].
    pub cpu: i32,
    /// Zero.
    pub flags: u32,
    /// CPUs now in the mode.
    pub done: u32,
    /// L0's errno for the first CPU that failed.
    pub l0_errno: u32,
    /// That CPU, all ones if none.
    pub failed_apic_id: u32,
    /// Zero.
    pub reserved: u32,
    /// L0's detail of the failure.
    pub detail: u64,
    /// TSC ticks of the call.
    pub ticks: u64,
}

/// `struct locum_cycle`: enter and leave many times.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cycle {
    /// Linux CPU number or [`ALL_CPUS`].
    pub cpu: i32,
    /// Times.
    pub count: u32,
    /// Microseconds to stay in each mode.
    pub pause_us: u32,
    /// Whole cycles done.
    pub done: u32,
    /// L0's errno for the first failure.
    pub l0_errno: u32,
    /// CPU that failed, all ones if none.
    pub failed_apic_id: u32,
    /// L0's detail of the failure.
    pub detail: u64,
    /// Ticks spent in entering, summed over cycles and CPUs.
    pub enter_ticks: u64,
    /// Ticks spent in leaving, likewise.
    pub leave_ticks: u64,
    /// Longest single enter in ticks.
    pub enter_max: u64,
    /// Longest single leave in ticks.
    pub leave_max: u64,
}

/// `struct locum_call`: a call of L0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// First argument.
    pub a: u64,
    /// Second argument.
    pub b: u64,
    /// Third argument.
    pub c: u64,
    /// L0's errno.
    pub l0_errno: u32,
    /// Zero.
    pub reserved: u32,
    /// TSC ticks of the call.
    pub ticks: u64,
}

/// `struct locum_range`: a range of physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// NUMA node, -1 for that of the address.
    pub nid: i32,
    /// State, out.
    pub state: u32,
    /// Zero.
    pub reserved: u64,
}

/// `struct locum_ranges`: the module's table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// Entries in use.
    pub count: u32,
    /// Zero.
    pub reserved: [u32; 3],
    /// The entries.
    pub ranges: [Range; MAX_RANGES],
}

/// `enum locum_text_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// `/sys/kernel/locum/state`.
    State = 0,
    /// `/sys/kernel/locum/progress`.
    Progress = 1,
    /// `/sys/kernel/locum/last_error`.
    LastError = 2,
}

/// `struct locum_text`: new content of a file in `/sys/kernel/locum`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// A [`TextKind`].
    pub kind: u32,
    /// Bytes of text.
    pub len: u32,
    /// Zero.
    pub reserved: u64,
    /// UTF-8.
    pub text: [u8; TEXT_MAX],
}

/// `struct locum_request`: a name written to `/sys/kernel/locum/refresh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Terminated by zeroes.
    pub name: [u8; 64],
}

/// `enum locum_power_policy`: RETIRE.
pub const POWER_RETIRE: u32 = 1;
/// `enum locum_power_policy`: EXIT.
pub const POWER_EXIT: u32 = 0;

/// Numbers of the ioctls, as the header's comments give them.
pub mod nr {
    /// `LOCUM_IOC_INFO`
    pub const INFO: u32 = 0x8060_4c01;
    /// `LOCUM_IOC_ENTER`
    pub const ENTER: u32 = 0xc028_4c10;
    /// `LOCUM_IOC_LEAVE`
    pub const LEAVE: u32 = 0xc028_4c11;
    /// `LOCUM_IOC_CYCLE`
    pub const CYCLE: u32 = 0xc040_4c12;
    /// `LOCUM_IOC_PING`
    pub const PING: u32 = 0xc028_4c20;
    /// `LOCUM_IOC_GRANT`
    pub const GRANT: u32 = 0xc028_4c21;
    /// `LOCUM_IOC_START`
    pub const START: u32 = 0xc028_4c22;
    /// `LOCUM_IOC_ABORT`
    pub const ABORT: u32 = 0xc028_4c23;
    /// `LOCUM_IOC_MEM_REMOVE`
    pub const MEM_REMOVE: u32 = 0xc020_4c30;
    /// `LOCUM_IOC_MEM_ADD`
    pub const MEM_ADD: u32 = 0xc020_4c31;
    /// `LOCUM_IOC_MEM_WIPE`
    pub const MEM_WIPE: u32 = 0xc020_4c32;
    /// `LOCUM_IOC_MEM_LIST`
    pub const MEM_LIST: u32 = 0x8810_4c33;
    /// `LOCUM_IOC_POWER_POLICY`
    pub const POWER_POLICY: u32 = 0x4004_4c40;
    /// `LOCUM_IOC_TEXT`
    pub const TEXT: u32 = 0x4400_4c50;
    /// `LOCUM_IOC_LISTEN`
    pub const LISTEN: u32 = 0x4c51;
    /// `LOCUM_IOC_NEXT_REQUEST`
    pub const NEXT_REQUEST: u32 = 0x8040_4c52;
    /// `LOCUM_IOC_BUSY`
    pub const BUSY: u32 = 0x4004_4c53;
    /// `LOCUM_CHAN_SHUTDOWN`
    pub const SHUTDOWN: u32 = 0x4004_4c60;
}

/// The size that an ioctl's number carries (`_IOC_SIZE`).
const fn size_in(number: u32) -> usize {
    ((number >> 16) & 0x3fff) as usize
}

const _: () = assert!(size_of::<Info>() == size_in(nr::INFO));
const _: () = assert!(size_of::<Switch>() == size_in(nr::ENTER));
const _: () = assert!(size_of::<Cycle>() == size_in(nr::CYCLE));
const _: () = assert!(size_of::<Call>() == size_in(nr::GRANT));
const _: () = assert!(size_of::<Range>() == size_in(nr::MEM_ADD));
const _: () = assert!(size_of::<Ranges>() == size_in(nr::MEM_LIST));
const _: () = assert!(size_of::<Text>() == size_in(nr::TEXT));
const _: () = assert!(size_of::<Request>() == size_in(nr::NEXT_REQUEST));

#[cfg(test)]
mod tests {
    /// Every number in the header's comments appears here, and its revision is ours.
    #[test]
    fn the_header_says_the_same() {
        let header = include_str!("../../kmod/locum_uapi.h");
        let revision = format!("#define LOCUM_UAPI_REVISION {}", super::UAPI_REVISION);
        assert!(header.contains(&revision));
        for number in [
            super::nr::INFO,
            super::nr::ENTER,
            super::nr::LEAVE,
            super::nr::CYCLE,
            super::nr::PING,
            super::nr::GRANT,
            super::nr::START,
            super::nr::ABORT,
            super::nr::MEM_REMOVE,
            super::nr::MEM_ADD,
            super::nr::MEM_WIPE,
            super::nr::MEM_LIST,
            super::nr::POWER_POLICY,
            super::nr::TEXT,
            super::nr::LISTEN,
            super::nr::NEXT_REQUEST,
            super::nr::BUSY,
            super::nr::SHUTDOWN,
        ] {
            assert!(
                header.contains(&format!("0x{number:x}")),
                "{number:#x} is not in locum_uapi.h"
            );
        }
    }
}
