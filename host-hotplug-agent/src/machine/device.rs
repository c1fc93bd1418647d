//! `/dev/locum`: physical memory that the module lets us see, and its ioctls with their errors in words.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use firmware_shim::{OutOfRange, PhysMem};
use locum_abi::uapi::{ALL_CPUS, Call, Cycle, Info, PowerPolicy, Range, Request, Switch, Text, TextKind, UAPI_FAMILY};
use locum_abi::{FAMILY, Grant, Header, Will};
use partitioner::MemRange;
use rustix::io::Errno;

use super::{CarriedOver, Start, ioctl};
use crate::error::Refusal;
use crate::l0::{header, memory, names};
use crate::pool::Extents;
use crate::pool::mapped::Mapped;
use crate::pool::table::{Table, Words};
use crate::sysroot::SysRoot;

/// Offset of L0's family in the `LOCM` table (`locum_abi::header`).
const LOCM_FAMILY: usize = 44;

/// An open `/dev/locum`.
#[derive(Debug)]
pub struct Device {
    file: File,
    info: Info,
    header: Header,
}

/// What the file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Information, status, trace, log.
    Look,
    /// Everything.
    Control,
}

impl Device {
    /// Opens the device below `sys`. Module and L0 may be of other releases; only other families are refused here.
    ///
    /// # Errors
    /// [`Refusal::NoModule`], [`Refusal::NoAccess`], [`Refusal::ModuleFamily`], and those of [`header::read`].
    pub fn open(sys: &SysRoot, access: Access) -> Result<Self, Refusal> {
        let file = open(&sys.path("dev/locum"), access == Access::Control).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => absent(sys),
            _ => Refusal::NoAccess(error),
        })?;
        let mut info = Info::default();
        ioctl::info(&file, &mut info).map_err(|error| Refusal::NoAccess(error.into()))?;
        if info.family != UAPI_FAMILY {
            return Err(Refusal::ModuleFamily {
                found: info.family,
                expected: UAPI_FAMILY,
            });
        }
        let header = header::read(&Window(&file), info.header)?;
        Ok(Self { file, info, header })
    }

    /// What the module knows.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// L0's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The open file, to poll for requests.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes to removed memory or to the other slot's table area.
    ///
    /// # Errors
    /// If the module does not permit all of it.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, at)
            .with_context(|| format!("writing {} bytes of physical memory at {at:#x}", bytes.len()))
    }

    /// The pool's table, to read and to change; `None` if this L0 has none.
    ///
    /// # Errors
    /// If the module does not let it be mapped.
    pub fn extents(&self) -> Result<Option<Extents>> {
        let Some(array) = memory::layout(&self.header)?.extents else {
            return Ok(None);
        };
        let (stride, count) = (array.stride as usize, array.count as usize);
        let mapped = Mapped::new(&self.file, array.start, stride * count).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => anyhow!(OLD_MODULE),
            _ => error.into(),
        });
        let words: Arc<dyn Words> = Arc::new(mapped.context("mapping the pool's table")?);
        Ok(Some(Table::new(words, stride, count)))
    }

    /// Whether all that Linux uses of its online CPUs survives while they are nested. Nothing changes.
    ///
    /// # Errors
    /// If the module cannot look.
    pub fn carried_over(&self) -> Result<CarriedOver> {
        let mut switch = Switch::check(ALL_CPUS);
        let outcome = ioctl::enter(&self.file, &mut switch);
        judged(&switch, outcome).context("looking at the CPUs' control registers")
    }

    /// Clears the byte at `at`. Whether the module takes it: it does in memory that it took off Linux, and that the other
    /// host has not got.
    ///
    /// # Errors
    /// If it fails otherwise than by a refusal of that memory.
    pub fn takes_byte(&self, at: u64) -> Result<bool> {
        match self.file.write_at(&[0], at) {
            Ok(_) => Ok(true),
            Err(error)
                if [Errno::FAULT, Errno::BUSY]
                    .map(|errno| Some(errno.raw_os_error()))
                    .contains(&error.raw_os_error()) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("asking the module for the memory at {at:#x}")),
        }
    }

    /// One CPU, by Linux's number, or all online ones ([`ALL_CPUS`]) become nested.
    ///
    /// # Errors
    /// Which CPU refused and why; those that had entered have left again.
    pub fn enter(&self, cpu: i32) -> Result<Switch> {
        self.switch("entering nested mode", cpu, ioctl::enter)
    }

    /// One CPU, or all online ones, become native.
    ///
    /// # Errors
    /// Which CPU refused and why; those that had left have entered again.
    pub fn leave(&self, cpu: i32) -> Result<Switch> {
        self.switch("leaving nested mode", cpu, ioctl::leave)
    }

    fn switch(&self, what: &str, cpu: i32, call: fn(&File, &mut Switch) -> rustix::io::Result<()>) -> Result<Switch> {
        let mut switch = Switch::new(cpu);
        match call(&self.file, &mut switch) {
            Ok(()) => Ok(switch),
            Err(error) => Err(anyhow!("{what}: {}", failed(switch.failed(), switch.l0_errno, error))),
        }
    }

    /// Enters and leaves `count` times on every online CPU.
    ///
    /// # Errors
    /// As [`Self::enter`], with the number of cycles done.
    pub fn cycle(&self, count: u32, pause_us: u32) -> Result<Cycle> {
        let mut cycle = Cycle::new(ALL_CPUS, count, pause_us);
        ioctl::cycle(&self.file, &mut cycle).map_err(|error| {
            let why = failed(cycle.failed(), cycle.l0_errno, error);
            anyhow!("after {} cycles: {why}", cycle.done)
        })?;
        Ok(cycle)
    }

    /// Gives a resource to the other slot.
    ///
    /// # Errors
    /// L0's or the module's refusal.
    pub fn grant(&self, grant: Grant) -> Result<()> {
        self.call(ioctl::grant, Call::grant(grant))
            .with_context(|| format!("giving {} to the successor", names::grant(grant)))
    }

    /// Starts the other host.
    ///
    /// # Errors
    /// L0's or the module's refusal.
    pub fn start(&self, start: Start) -> Result<()> {
        let Start {
            entry,
            zero_page,
            boot_cpu,
        } = start;
        self.call(ioctl::start, Call::start(entry, zero_page, boot_cpu.0))
            .with_context(|| format!("starting the successor at {entry:#x} on {boot_cpu}"))
    }

    /// Stops the other host and takes everything back.
    ///
    /// # Errors
    /// L0's or the module's refusal.
    pub fn abort(&self) -> Result<()> {
        self.call(ioctl::abort, Call::abort()).context("stopping the successor")
    }

    /// Says what becomes of the machine when this host cannot go on beside another. False: module or L0 is older and does
    /// not know of that; it is as with [`Will::Pass`] then.
    ///
    /// # Errors
    /// L0's refusal.
    pub fn will(&self, will: Will) -> Result<bool> {
        let mut call = Call::will(will);
        match ioctl::will(&self.file, &mut call) {
            Ok(()) => Ok(true),
            Err(error) if is_unknown(call.l0_errno, error) => Ok(false),
            Err(error) => Err(anyhow!(refused(call.l0_errno, error)))
                .context("telling L0 what becomes of the machine when this host cannot go on"),
        }
    }

    fn call(&self, ask: fn(&File, &mut Call) -> rustix::io::Result<()>, mut call: Call) -> Result<()> {
        ask(&self.file, &mut call).map_err(|error| match error {
            Errno::OPNOTSUPP if call.l0_errno == 0 => anyhow!(OLD_L0),
            error => anyhow!(refused(call.l0_errno, error)),
        })
    }

    /// Takes memory blocks off Linux.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn mem_remove(&self, range: MemRange) -> Result<()> {
        self.range(ioctl::mem_remove, whole(range)).with_context(|| {
            format!(
                "taking memory {range} off Linux (a page that cannot be moved keeps its block: the kernel's log says which; \
                 choose other blocks in `memory`, or boot with a larger movablecore=)"
            )
        })
    }

    /// Gives memory blocks to Linux, offline.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn mem_add(&self, range: MemRange, node: u32) -> Result<()> {
        self.range(ioctl::mem_add, Range::on_node(range.start(), range.len(), node))
            .with_context(|| format!("adding memory {range}"))
    }

    /// Overwrites memory with zeroes.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn mem_wipe(&self, range: MemRange) -> Result<()> {
        self.range(ioctl::mem_wipe, whole(range))
            .with_context(|| format!("wiping memory {range}"))
    }

    fn range(&self, call: fn(&File, &mut Range) -> rustix::io::Result<()>, mut range: Range) -> Result<()> {
        loop {
            match call(&self.file, &mut range) {
                Err(Errno::INTR) => {}
                outcome => return told(outcome),
            }
        }
    }

    /// What the next power-off does.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn power_policy(&self, policy: PowerPolicy) -> Result<()> {
        told(ioctl::power_policy(&self.file, policy as u32)).context("setting what power-off does")
    }

    /// New content of a file in `/sys/kernel/locum`. Longer texts are cut at a character's border.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn text(&self, kind: TextKind, text: &str) -> Result<()> {
        told(ioctl::text(&self.file, Text::new(kind, text))).context("publishing the state in /sys/kernel/locum")
    }

    /// Makes this file the one that hears of requests.
    ///
    /// # Errors
    /// If another daemon listens.
    pub fn listen(&self) -> Result<()> {
        ioctl::listen(&self.file).map_err(|error| match error {
            Errno::BUSY => {
                anyhow!("another `locum daemon` runs: stop it first (`systemctl stop locum`)")
            }
            error => anyhow!(words(error)).context("registering with the module"),
        })
    }

    /// The name written to `/sys/kernel/locum/refresh`, if one waits.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn next_request(&self) -> Result<Option<String>> {
        let mut request = Request::default();
        match ioctl::next_request(&self.file, &mut request) {
            Ok(()) => Ok(request.name().map(str::to_owned)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(anyhow!(words(error)).context("asking the module for a request")),
        }
    }

    /// Whether a refresh runs: writes to `/sys/kernel/locum/refresh` are refused meanwhile.
    ///
    /// # Errors
    /// The module's refusal.
    pub fn busy(&self, busy: bool) -> Result<()> {
        told(ioctl::busy(&self.file, u32::from(busy))).context("telling the module whether a refresh runs")
    }
}

impl PhysMem for Device {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        Window(&self.file).read(addr, buf)
    }
}

/// Physical memory through a file whose offsets are addresses.
struct Window<'f>(&'f File);

impl PhysMem for Window<'_> {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let len = buf.len();
        self.0.read_exact_at(buf, addr).map_err(|_| OutOfRange { addr, len })
    }
}

/// Opens channel `number` for both directions, without blocking.
///
/// # Errors
/// If it is not there or another process has it.
pub fn channel(sys: &SysRoot, number: usize) -> Result<File> {
    let path = sys.path(format!("dev/locum-chan{number}"));
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Why there is no device: the module refuses to load without L0, or above an L0 of another family. Both show in the
/// ACPI table by which the module finds L0.
fn absent(sys: &SysRoot) -> Refusal {
    let table = sys.path("sys/firmware/acpi/tables/LOCM");
    if !table.exists() {
        return Refusal::NoL0;
    }
    let bytes = std::fs::read(table).unwrap_or_default();
    match bytes
        .get(LOCM_FAMILY..)
        .and_then(|rest| rest.first_chunk())
        .map(|raw| u32::from_le_bytes(*raw))
    {
        Some(found) if found != FAMILY => Refusal::L0Family {
            found,
            expected: FAMILY,
        },
        _ => Refusal::NoModule,
    }
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).open(path)
}

/// What a module says that is older than this program, or than what is new in a request.
const OLD_MODULE: &str = "locum.ko is older than this `locum` and does not know the request: load the module of the same \
                          package, which needs every CPU native";
/// What a module says above an L0 that is older than a call.
const OLD_L0: &str =
    "L0 is older than this `locum` and does not know the request: reboot into the L0 of the same package";

/// The module's refusal in words.
fn words(error: Errno) -> String {
    match error {
        Errno::NOTTY | Errno::TOOBIG => OLD_MODULE.to_owned(),
        error => error.to_string(),
    }
}

fn told(outcome: rustix::io::Result<()>) -> Result<()> {
    outcome.map_err(|error| anyhow!(words(error)))
}

/// L0's refusal, or else the module's, in words.
fn refused(l0_errno: u32, error: Errno) -> String {
    match names::errno(l0_errno) {
        Some(text) => format!("L0 refused: {text} (see `locum trace`)"),
        None if l0_errno != 0 => format!("L0 refused with unknown error {l0_errno} (see `locum trace`)"),
        None => match error {
            Errno::NOTCONN => "this host is not nested on every CPU".to_owned(),
            Errno::BUSY => {
                "it is in use (pages that cannot be moved, memory of the other host, or a CPU that is online)"
                    .to_owned()
            }
            error => words(error),
        },
    }
}

/// Whether module or L0 is older than a call.
fn is_unknown(l0_errno: u32, error: Errno) -> bool {
    error == Errno::NOTTY || (error == Errno::OPNOTSUPP && l0_errno == 0)
}

/// What a check of all CPUs came to.
fn judged(switch: &Switch, outcome: rustix::io::Result<()>) -> Result<CarriedOver> {
    match (outcome, switch.failed()) {
        (Ok(()), _) => Ok(CarriedOver::All),
        (Err(Errno::OPNOTSUPP), Some(apic_id)) if switch.unknown_cr4 != 0 => Ok(CarriedOver::Not {
            apic_id,
            cr4: switch.unknown_cr4,
        }),
        // A module of the first release takes no flags.
        (Err(Errno::INVAL), _) => Ok(CarriedOver::Unknown(OLD_MODULE.to_owned())),
        (Err(Errno::OPNOTSUPP), None) => bail!(
            "Linux numbers a CPU beyond those that locum.ko manages: boot with nr_cpus= as the kernel's log (`dmesg`) says"
        ),
        (Err(error), _) => bail!(words(error)),
    }
}

/// Why a CPU did not change its mode.
fn failed(apic_id: Option<u32>, l0_errno: u32, error: Errno) -> String {
    let why = match error {
        Errno::OPNOTSUPP if l0_errno == 0 => {
            "the kernel uses a feature of the CPU that L0 does not know (`locum doctor` tells which)".to_owned()
        }
        error => refused(l0_errno, error),
    };
    match apic_id {
        Some(apic_id) => format!("APIC {apic_id}: {why}"),
        None => why,
    }
}

fn whole(range: MemRange) -> Range {
    Range::new(range.start(), range.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_the_cause_is_found_in_acpi() {
        let dir = tempfile::tempdir().unwrap();
        let sys = SysRoot::at(dir.path());
        let open = || Device::open(&sys, Access::Look).unwrap_err();
        assert!(matches!(open(), Refusal::NoL0));
        let table = dir.path().join("sys/firmware/acpi/tables/LOCM");
        std::fs::create_dir_all(table.parent().unwrap()).unwrap();
        let mut bytes = vec![0; 52];
        bytes[44..48].copy_from_slice(&(FAMILY + 1).to_le_bytes());
        std::fs::write(&table, &bytes).unwrap();
        assert!(matches!(open(), Refusal::L0Family { .. }));
        bytes[44..48].copy_from_slice(&FAMILY.to_le_bytes());
        std::fs::write(&table, &bytes).unwrap();
        assert!(matches!(open(), Refusal::NoModule));
    }

    #[test]
    fn a_check_of_the_cpus_is_told_apart() {
        let mut switch = Switch::check(ALL_CPUS);
        assert_eq!(judged(&switch, Ok(())).unwrap(), CarriedOver::All);
        let Ok(CarriedOver::Unknown(why)) = judged(&switch, Err(Errno::INVAL)) else {
            panic!("a module of the first release");
        };
        assert!(why.contains("locum.ko is older"), "{why}");
        let beyond = judged(&switch, Err(Errno::OPNOTSUPP)).unwrap_err().to_string();
        assert!(beyond.contains("nr_cpus="), "{beyond}");
        assert!(judged(&switch, Err(Errno::PERM)).is_err());
        (switch.failed_apic_id, switch.unknown_cr4) = (3, 1 << 27);
        let (apic_id, cr4) = (3, 1 << 27);
        let found = judged(&switch, Err(Errno::OPNOTSUPP)).unwrap();
        assert_eq!(found, CarriedOver::Not { apic_id, cr4 });
    }

    #[test]
    fn an_older_module_or_l0_is_told_as_such() {
        assert!(words(Errno::NOTTY).starts_with("locum.ko is older"));
        assert!(refused(0, Errno::TOOBIG).starts_with("locum.ko is older"));
        assert!(refused(4, Errno::BADFD).contains("L0 refused"));
        assert!(failed(Some(3), 0, Errno::OPNOTSUPP).starts_with("APIC 3: the kernel uses"));
        assert!(failed(None, 6, Errno::OPNOTSUPP).contains("no VMX"));
    }
}
