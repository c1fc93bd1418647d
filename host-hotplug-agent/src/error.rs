//! Why a request is refused before anything has changed. Each text names the cause, then the remedy.

use std::borrow::Borrow;
use std::path::PathBuf;

use locum_abi::{FAMILY, HeaderError};
use partitioner::PlanError;

mod failure;
mod name;

pub use failure::Failure;
pub use name::{Told, name_of, names};

/// A refusal: nothing was changed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[non_exhaustive]
pub enum Refusal {
    /// No module.
    #[error(
        "/dev/locum is not there: the module locum.ko is not loaded; `modprobe locum`, and see `dmesg` if it refuses"
    )]
    NoModule,
    /// The device cannot be opened.
    #[error(
        "/dev/locum cannot be opened ({0}): run as root; under a kernel that is locked down (Secure Boot) not even root may"
    )]
    NoAccess(std::io::Error),
    /// No L0 below this host.
    #[error(
        "there is no L0 below this host: boot the machine through GRUB's Locum entry (`multiboot2 /boot/locum-l0`), see `dmesg | grep -i locum`"
    )]
    NoL0,
    /// An L0 whose fields are elsewhere.
    #[error(
        "L0 is of family {found}, this `locum` of family {expected}: install the package of the L0 that runs, or reboot into the L0 of this one"
    )]
    L0Family {
        /// L0's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// An L0 that contradicts itself.
    #[error("L0's {0} is not what its header says: L0 is damaged, reboot the machine")]
    DamagedL0(&'static str),
    /// A module whose fields are elsewhere.
    #[error("locum.ko is of family {found}, this `locum` of family {expected}: load the module of the same package")]
    ModuleFamily {
        /// The module's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A slot that no L0 has.
    #[error(
        "locum.ko puts this host into slot {0}, but there are slots 0 and 1 only: load the module of the same package"
    )]
    NoSlot(u32),
    /// A machine on which no refresh goes well, see [`crate::preflight`].
    #[error("{cause}: {remedy}")]
    Unfit {
        /// What was looked at, and found.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// There is no configuration of that name.
    #[error("{path} cannot be read ({error}): write it, or choose one of: {known}")]
    NoConfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
        /// Names that exist.
        known: String,
    },
    /// A name that is none.
    #[error(
        "`{0}` is no successor's name: use letters, digits, `.`, `_` and `-`, at most 63 of them, and no `.` first"
    )]
    BadName(String),
    /// A version that is none.
    #[error("`{0}` is no kernel's version: write it as `uname -r` does, such as 6.12.57+deb13-amd64")]
    BadVersion(String),
    /// A kernel that is not installed.
    #[error("kernel {version} is not installed: install its package, or choose one of: {known}")]
    NoKernel {
        /// Its version.
        version: String,
        /// Those that are.
        known: String,
    },
    /// A successor's initramfs that is to be made.
    #[error("the image of a successor with kernel {0} is missing, or older than what it is made of: `locum image {0}`")]
    NoImage(String),
    /// A configuration that is wrong.
    #[error("{path}, line {line}: {problem}")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A file of the successor that is not there.
    #[error("{what} {path} cannot be read ({error}): install it, or correct the path in {config}")]
    NoFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
        /// The configuration's path.
        config: PathBuf,
    },
    /// A file of the successor that is incomplete or no such file.
    #[error("{what} {path} is not usable: {problem}; mend it, or install it anew")]
    BadFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A file to carry along that cannot be.
    #[error("{path}, named in `carry`, cannot be read ({error}): create it, or take it off the list")]
    NoCarry {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The successor's memory is too small for its files.
    #[error(
        "kernel and initramfs need {needed} bytes, the successor's largest range of memory has {available}: raise `memory` or use smaller files"
    )]
    TooSmall {
        /// Bytes needed in one range.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// No memory block to write the image to.
    #[error(
        "no memory block of the plan has room for the {needed} bytes of kernel, initramfs and tables, and memory that an earlier refresh left over cannot be written to: ask for more memory"
    )]
    NoBlockForImage {
        /// Bytes needed in one range.
        needed: u64,
    },
    /// The successor's kernel would allow too few threads, see [`crate::load::threads`].
    #[error(
        "with {ram} MiB of memory the successor's kernel would allow next to no threads, for it takes the pool off its memory: give it at least {at_least} MiB, or less than {less_than} MiB"
    )]
    FewThreads {
        /// MiB it is to get.
        ram: u64,
        /// MiB that are enough.
        at_least: u64,
        /// MiB below which Linux' reckoning wraps around.
        less_than: u64,
    },
    /// A guest whose QEMU does not answer.
    #[error(
        "guest {guest}: its QEMU does not answer at {path} ({problem}): start it with `-qmp unix:{path},server=on,wait=off`, or correct `qmp`"
    )]
    NoGuest {
        /// Name in the configuration.
        guest: String,
        /// QMP socket.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A domain of libvirt's that cannot be asked.
    #[error(
        "guest {guest}: libvirt does not tell about domain {domain} ({problem}): see `virsh domstate {domain}`, or correct `libvirt`"
    )]
    NoDomain {
        /// Name in the configuration.
        guest: String,
        /// The domain.
        domain: String,
        /// Why not.
        problem: String,
    },
    /// A guest that nobody named, and whose QEMU cannot be asked.
    #[error(
        "guest {guest} runs here, and its QEMU has no QMP socket with a path on its command line: start it with `-qmp \
         unix:PATH,server=on,wait=off`, or name the guests in a file of /etc/locum and refresh by that"
    )]
    NoSocket {
        /// Its name, or its process.
        guest: String,
    },
    /// A process in the pool that is no QEMU.
    #[error("{0} can write to guests' memory, and is no QEMU: end it")]
    PoolUser(String),
    /// A guest that is not running.
    #[error("guest {guest} is {status}, not running: resume it, or shut it down")]
    GuestNotRunning {
        /// Name in the configuration.
        guest: String,
        /// QEMU's run state.
        status: String,
    },
    /// A guest whose RAM would have to be copied.
    #[error(
        "guest {guest}: its RAM is not in the pool ({problem}): start it with `-object memory-backend-file,id=ram,mem-path={device},share=on,align=2M,size=SIZE,offset=OFFSET -machine memory-backend=ram`"
    )]
    NotInPool {
        /// Name in the configuration.
        guest: String,
        /// What was found.
        problem: String,
        /// The pool's device.
        device: String,
    },
    /// A guest whose RAM is not its own.
    #[error("guest {guest}: {problem}; see `locum pool`, and free there what belongs to no guest any more")]
    PoolTable {
        /// Name in the configuration.
        guest: String,
        /// What was found.
        problem: String,
    },
    /// A command line that starts one QEMU only.
    #[error("guest {guest}: {whose} cannot be used in the successor, for it names {what}: {remedy}")]
    OneStart {
        /// Name in the configuration.
        guest: String,
        /// Whose command line.
        whose: &'static str,
        /// What it names.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A guest that the successor's QEMU does not take.
    #[error(
        "guest {guest}: {program} in the successor's initramfs knows no {what}: put a QEMU there that does, or restart the guest with one that both know"
    )]
    UnknownThere {
        /// Name in the configuration.
        guest: String,
        /// The program, with its release.
        program: String,
        /// "machine type `pc-q35-10.0`" or "CPU model `EPYC`".
        what: String,
    },
    /// A domain whose network would not be there.
    #[error(
        "guest {guest}: libvirt of the successor's initramfs does not start network `{network}` by itself: have it do so \
         (`virsh net-autostart '{network}'`), then make the image anew (`locum image VERSION`)"
    )]
    NoNetworkThere {
        /// Name in the configuration.
        guest: String,
        /// Its network.
        network: String,
    },
    /// A guest whose disks are temporary files.
    #[error(
        "guest {guest}: what it writes to its disks is in temporary files of its QEMU ({option}), and the successor would not have it: start it without that option, or take it off `guests`"
    )]
    TemporaryDisk {
        /// Name in the configuration.
        guest: String,
        /// The option.
        option: String,
    },
    /// A guest that something other than its RAM keeps here.
    #[error(
        "guest {guest} cannot leave this host: {what}; detach that, or have it shut down first: `--leave '{guest}'`"
    )]
    Tied {
        /// Name in the configuration.
        guest: String,
        /// What was found.
        what: String,
    },
    /// A name that no guest of this host has.
    #[error("no guest of this host with its RAM in the pool is called `{name}`: those are {known}")]
    NoGuestCalled {
        /// What was given.
        name: String,
        /// Those that are.
        known: String,
    },
    /// A guest that would end with this host.
    #[error(
        "what runs here and does not go over would end with this host: {guests}; shut it down, or have that done first: {leave}"
    )]
    Stays {
        /// Each with why it does not.
        guests: String,
        /// The options that have it shut down.
        leave: String,
    },
    /// A virtual machine that nobody is known for.
    #[error(
        "{0} is a virtual machine that would end with this host, and that neither libvirt nor a QMP socket on its command line \
         can be asked to shut down: end it"
    )]
    NobodysGuest(String),
    /// A guest that was to be shut down.
    #[error(
        "guest {guest} does not shut down: {problem}; shut it down by hand, then try again; nothing has begun, and guests that did shut down stay off"
    )]
    StaysUp {
        /// Its name.
        guest: String,
        /// Why not.
        problem: String,
    },
    /// A name that nothing here has.
    #[error("`{0}`, which is to be shut down, is no guest of this host: see `locum plan` without `--leave`")]
    NotHere(String),
    /// A guest whose disks the successor may not have.
    #[error(
        "guest {guest}: {what}. The successor would not have it, or not all that was written: use storage that both hosts \
         reach (NBD, iSCSI, RBD; NFS with cache=none). If it has all of it nonetheless, say so: `--trust-storage '{guest}'`"
    )]
    Storage {
        /// Name in the configuration.
        guest: String,
        /// What was found, disk by disk.
        what: String,
    },
    /// A name that no guest has.
    #[error("`{name}`, whose storage is to be trusted, is no guest that is to go over: those are {known}")]
    NoSuchGuest {
        /// What was given.
        name: String,
        /// Those that are.
        known: String,
    },
    /// A guest whose state the successor's QEMU may not understand.
    #[error(
        "guest {guest} runs in QEMU {here}, and {program} in the successor's initramfs is {there}: an older QEMU may not take \
         its state; put the same or a later one there"
    )]
    OlderThere {
        /// Name in the configuration.
        guest: String,
        /// Release here.
        here: String,
        /// The program there.
        program: String,
        /// Its release.
        there: String,
    },
    /// The plan is not possible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// One at a time.
    #[error("a refresh to `{0}` is running: wait for it (`locum status`), or stop it with `locum abort`")]
    Running(String),
    /// What an earlier refresh left behind.
    #[error(
        "the machine is split already: L0 has another host, or a partition for one, and no refresh runs; `locum abort` gives everything back to this host"
    )]
    Split,
    /// Nothing to follow.
    #[error(
        "no refresh is running: there is nothing to follow; see `locum status`, or begin one with `locum refresh NAME`"
    )]
    NothingToFollow,
    /// Nothing to report.
    #[error("no refresh is known: this host was not made by one and has begun none since its boot; see `locum status`")]
    NoReport,
    /// Nothing to abort.
    #[error("no refresh is running: there is nothing to abort; see `locum status`")]
    NothingToAbort,
    /// Beyond abort.
    #[error("the refresh to `{0}` is past the point of no return (the incumbent retires): it can only go forward")]
    TooLate(String),
    /// A daemon that is there, and says nothing.
    #[error(
        "the daemon at {path} does not answer within {seconds} s: it hangs, or is stopped; systemd starts it anew after its \
         WatchdogSec=, `systemctl restart locum` does now, and a refresh goes on where it stood"
    )]
    DaemonHangs {
        /// Its socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// No daemon.
    #[error("the daemon does not answer at {path} ({error}): `systemctl start locum`, or run `locum daemon`")]
    NoDaemon {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
}

/// Names in a row.
pub fn listed<S: Borrow<str>>(names: &[S]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Magic => Self::NoL0,
            HeaderError::Family(found) => Self::L0Family {
                found,
                expected: FAMILY,
            },
            HeaderError::Damaged(part) => Self::DamagedL0(part),
        }
    }
}
