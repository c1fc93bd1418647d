//! The interpreter's side: runs in the process that [`super::child`] starts, and prints what it finds.
//!
//! It never touches hardware. [`Blind`] stands between AML and the machine: whatever AML reads is zero, whatever it
//! writes is dropped, and it maps nothing. So a region's address is right unless it was computed from what was read.
#![expect(
    unsafe_code,
    reason = "the crate's trait has an unsafe function, and its registers are made by one; neither touches anything"
)]

use std::collections::BTreeSet;
use std::io::Write;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{fs, io, panic};

use acpi::address::{AddressSpace, GenericAddress, MappedGas};
use acpi::aml::namespace::{AmlName, Namespace, NamespaceLevelKind};
use acpi::aml::object::Object;
use acpi::aml::op_region::RegionSpace;
use acpi::aml::{AmlError, Interpreter};
use acpi::registers::{FixedRegisters, Pm1ControlRegisterBlock, Pm1EventRegisterBlock};
use acpi::{Handle, Handler, PciAddress, PhysicalMapping};
use firmware_shim::acpi::SDT_HEADER_LEN;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::files::{DIR, tables};
#[cfg(test)]
use super::listing::Outcome;
use super::listing::{Line, Region, Route, Routing, Space, Wire};
use crate::sysroot::SysRoot;

/// Bytes of address space that the process may use.
const MEMORY: u64 = 512 << 20;
/// Seconds of CPU time that it may use, should nobody be there to end it.
const SECONDS: u64 = 20;
/// Offset of the revision in a table's header (ACPI 6.5, 5.2.6).
const REVISION: usize = 8;
/// Says that interrupts go to IOAPICs (ACPI 6.5, 5.8.1).
const PIC: &str = "\\_PIC";
/// Where firmware keeps what `_PIC` was told. The interpreter fails on `If (Arg0)`, which many a `_PIC` begins with.
const PIC_MODES: [&str; 3] = ["\\PICM", "\\GPIC", "\\PICF"];

/// Prints what the tables' AML uses, line by line, but for what is in `skip`: the command `locum __aml`.
pub fn main(sys: &SysRoot, skip: &[String]) {
    limit();
    run(sys, skip, Arc::new(print), true);
}

/// The same within the caller's process, for tests.
#[cfg(test)]
pub fn outcome(sys: &SysRoot, skip: &[String]) -> Outcome {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let push = move |line| sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    run(sys, skip, Arc::new(push), false);
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    Outcome {
        lines: std::mem::take(&mut *lines),
        died: None,
    }
}

/// Keeps AML that never ends or grows from harming the host, whatever becomes of the parent.
fn limit() {
    for (resource, most) in [(Resource::As, MEMORY), (Resource::Cpu, SECONDS), (Resource::Core, 0)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        let _ = setrlimit(resource, limit);
    }
}

fn print(line: Line) {
    let Ok(text) = serde_json::to_string(&line) else {
        return;
    };
    // Nobody listens any more: nothing is left to be done.
    if writeln!(io::stdout().lock(), "{text}").is_err() {
        std::process::exit(1);
    }
}

type Sink = Arc<dyn Fn(Line) + Send + Sync>;

/// The interpreter, and what was said already.
struct Run {
    interpreter: Interpreter<Blind>,
    /// The table or method that is being run.
    step: Mutex<String>,
    /// Names of the regions that were told.
    told: Mutex<BTreeSet<String>>,
    say: Sink,
}

fn run(sys: &SysRoot, skip: &[String], say: Sink, hook: bool) {
    let read = |name: &String| fs::read(sys.path(DIR).join(name)).map_err(|error| error.to_string());
    let names = tables(sys);
    let first = names.first().map(read).and_then(Result::ok).unwrap_or_default();
    let revision = first.get(REVISION).copied().unwrap_or(0);
    #[expect(clippy::arc_with_non_send_sync, reason = "the crate asks for an Arc")]
    let registers = Arc::new(registers());
    let run = Arc::new(Run {
        interpreter: Interpreter::new(Blind::new(), revision, registers, None),
        step: Mutex::default(),
        told: Mutex::default(),
        say,
    });
    if hook {
        let run = Arc::clone(&run);
        panic::set_hook(Box::new(move |info| {
            run.tell_regions();
            let text = info.payload_as_str().unwrap_or("no reason given");
            (run.say)(Line::Failed(format!("the interpreter gave up ({text})")));
        }));
    }
    let wanted = |step: &str| !skip.iter().any(|other| other == step);
    for name in names.iter().filter(|name| wanted(name)) {
        run.step(name, || run.load(&read(name)?));
        run.tell_regions();
    }
    if wanted(PIC) {
        run.use_ioapics();
    }
    let found = run.find(|_, path| path.as_string().ends_with("._PRT"));
    for path in found.iter().filter(|path| wanted(&path.as_string())) {
        run.step(&path.as_string(), || run.routing(path));
    }
    (run.say)(Line::End);
}

impl Run {
    fn step(&self, name: &str, work: impl FnOnce() -> Result<(), String>) {
        name.clone_into(&mut self.step.lock().unwrap_or_else(PoisonError::into_inner));
        (self.say)(Line::Next(name.to_owned()));
        if let Err(error) = work() {
            (self.say)(Line::Failed(error));
        }
    }

    fn load(&self, table: &[u8]) -> Result<(), String> {
        let length = table
            .get(4..8)
            .and_then(|raw| Some(u32::from_le_bytes(raw.try_into().ok()?)));
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let aml = table.get(SDT_HEADER_LEN..length.min(table.len()));
        let aml = aml.ok_or("its length is impossible")?;
        self.interpreter.load_table(aml).map_err(|error| said(&error))
    }

    /// Tells the regions that were not told yet. Also called from a panic, so it waits for nothing.
    fn tell_regions(&self) {
        let (Some(mut namespace), Ok(mut told)) = (self.interpreter.namespace.try_lock(), self.told.try_lock()) else {
            return;
        };
        let table = self.step.try_lock().map(|step| step.clone()).unwrap_or_default();
        let devices = devices(&mut namespace);
        let _ = namespace.traverse(|scope, level| {
            for (name, (flags, object)) in &level.values {
                let (Object::OpRegion(region), false) = (&**object, flags.is_alias()) else {
                    continue;
                };
                let path = AmlName::from_name_seg(*name).resolve(scope)?.as_string();
                if told.insert(path.clone()) {
                    (self.say)(Line::Region(Region {
                        table: table.clone(),
                        path,
                        device: nearest(scope, &devices),
                        space: space(region.space),
                        start: region.base,
                        length: region.length,
                    }));
                }
            }
            Ok(true)
        });
    }

    /// Objects of which `wanted` says so.
    fn find(&self, wanted: impl Fn(&Object, &AmlName) -> bool) -> Vec<AmlName> {
        let mut found = Vec::new();
        let _ = self.interpreter.namespace.lock().traverse(|scope, level| {
            for (name, (_, object)) in &level.values {
                let path = AmlName::from_name_seg(*name).resolve(scope)?;
                if wanted(object, &path) {
                    found.push(path);
                }
            }
            Ok(true)
        });
        found
    }

    /// Tells the firmware that interrupts go to IOAPICs.
    fn use_ioapics(&self) {
        let Ok(path) = AmlName::from_str(PIC) else {
            return;
        };
        self.step(PIC, || {
            let mode = || Object::Integer(1).wrap();
            if self.interpreter.evaluate_if_present(path, vec![mode()]).is_ok() {
                return Ok(());
            }
            let modes = self.find(|object, path| {
                matches!(object, Object::Integer(_)) && PIC_MODES.contains(&path.as_string().as_str())
            });
            let mut namespace = self.interpreter.namespace.lock();
            for path in modes {
                namespace.insert(path, mode()).map_err(|error| said(&error))?;
            }
            Ok(())
        });
    }

    /// Evaluates a `_PRT` (ACPI 6.5, 6.2.13).
    fn routing(&self, path: &AmlName) -> Result<(), String> {
        let object = self.interpreter.evaluate(path.clone(), Vec::new());
        let object = object.map_err(|error| said(&error))?;
        let Object::Package(lines) = &*object else {
            return Err("it gives no package".to_owned());
        };
        let bridge = path.parent().map_err(|error| said(&error))?.as_string();
        let routes = lines.iter().filter_map(|line| route(line)).collect::<Vec<_>>();
        let odd = lines.len() - routes.len();
        (self.say)(Line::Routing(Routing { bridge, routes }));
        match odd {
            0 => Ok(()),
            odd => Err(format!("{odd} of its lines are malformed")),
        }
    }
}

/// Device and function, pin, source, index.
fn route(line: &Object) -> Option<Route> {
    let Object::Package(fields) = line else {
        return None;
    };
    let [address, pin, source, index] = fields.as_slice() else {
        return None;
    };
    let wire = match &**source {
        Object::Integer(0) => Wire::Gsi(index.as_integer().ok()?.try_into().ok()?),
        Object::String(name) => Wire::Link(name.clone()),
        _ => return None,
    };
    Some(Route {
        device: u8::try_from(address.as_integer().ok()? >> 16).ok()?,
        pin: u8::try_from(pin.as_integer().ok()?).ok().filter(|pin| *pin < 4)? + 1,
        wire,
    })
}

fn devices(namespace: &mut Namespace) -> BTreeSet<String> {
    let mut devices = BTreeSet::new();
    let _ = namespace.traverse(|path, level| {
        if level.kind == NamespaceLevelKind::Device {
            devices.insert(path.as_string());
        }
        Ok(true)
    });
    devices
}

/// The device that `scope` is or lies in.
fn nearest(scope: &AmlName, devices: &BTreeSet<String>) -> Option<String> {
    let mut scope = scope.clone();
    loop {
        let path = scope.as_string();
        if devices.contains(&path) {
            return Some(path);
        }
        scope = scope.parent().ok()?;
    }
}

fn space(space: RegionSpace) -> Space {
    match space {
        RegionSpace::SystemMemory => Space::SystemMemory,
        RegionSpace::SystemIO => Space::SystemIo,
        RegionSpace::PciConfig => Space::PciConfig,
        RegionSpace::EmbeddedControl => Space::EmbeddedControl,
        RegionSpace::SmBus => Space::SmBus,
        RegionSpace::SystemCmos => Space::SystemCmos,
        RegionSpace::PciBarTarget => Space::PciBarTarget,
        RegionSpace::Ipmi => Space::Ipmi,
        RegionSpace::GeneralPurposeIo => Space::GeneralPurposeIo,
        RegionSpace::GenericSerialBus => Space::GenericSerialBus,
        RegionSpace::Pcc => Space::Pcc,
        RegionSpace::Oem(number) => Space::Oem(number),
    }
}

fn said(error: &AmlError) -> String {
    match error {
        AmlError::ObjectDoesNotExist(path) => format!("{path} does not exist"),
        AmlError::LevelDoesNotExist(path) => format!("there is no scope {path}"),
        other => format!("{other:?}"),
    }
}

/// Registers that nobody uses: AML would touch them to release a global lock, and there is none without a FACS.
fn registers() -> FixedRegisters<Blind> {
    let register = || {
        let address = GenericAddress {
            address_space: AddressSpace::SystemIo,
            bit_width: 16,
            bit_offset: 0,
            access_size: 2,
            address: 0,
        };
        // SAFETY: nothing is mapped for a port, and every access to one ends in `Blind`.
        unsafe { MappedGas::map_gas(address, &Blind::new()) }
            .unwrap_or_else(|_| unreachable!("a port needs no mapping"))
    };
    FixedRegisters {
        pm1_event_registers: Pm1EventRegisterBlock {
            pm1_event_length: 4,
            pm1a: register(),
            pm1b: None,
        },
        pm1_control_registers: Pm1ControlRegisterBlock {
            pm1a: register(),
            pm1b: None,
        },
    }
}

/// The machine as AML sees it here: zeroes.
#[derive(Clone)]
struct Blind {
    start: Instant,
}

impl Blind {
    fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Handler for Blind {
    unsafe fn map_physical_region<T>(&self, address: usize, _: usize) -> PhysicalMapping<Self, T> {
        panic!("AML wants memory at {address:#x} mapped")
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    fn read_u8(&self, _: usize) -> u8 {
        0
    }
    fn read_u16(&self, _: usize) -> u16 {
        0
    }
    fn read_u32(&self, _: usize) -> u32 {
        0
    }
    fn read_u64(&self, _: usize) -> u64 {
        0
    }
    fn write_u8(&self, _: usize, _: u8) {}
    fn write_u16(&self, _: usize, _: u16) {}
    fn write_u32(&self, _: usize, _: u32) {}
    fn write_u64(&self, _: usize, _: u64) {}

    fn read_io_u8(&self, _: u16) -> u8 {
        0
    }
    fn read_io_u16(&self, _: u16) -> u16 {
        0
    }
    fn read_io_u32(&self, _: u16) -> u32 {
        0
    }
    fn write_io_u8(&self, _: u16, _: u8) {}
    fn write_io_u16(&self, _: u16, _: u16) {}
    fn write_io_u32(&self, _: u16, _: u32) {}

    fn read_pci_u8(&self, _: PciAddress, _: u16) -> u8 {
        0
    }
    fn read_pci_u16(&self, _: PciAddress, _: u16) -> u16 {
        0
    }
    fn read_pci_u32(&self, _: PciAddress, _: u16) -> u32 {
        0
    }
    fn write_pci_u8(&self, _: PciAddress, _: u16, _: u8) {}
    fn write_pci_u16(&self, _: PciAddress, _: u16, _: u16) {}
    fn write_pci_u32(&self, _: PciAddress, _: u16, _: u32) {}

    fn nanos_since_boot(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
    fn stall(&self, _: u64) {}
    fn sleep(&self, _: u64) {}

    fn create_mutex(&self) -> Handle {
        Handle(0)
    }
    fn acquire(&self, _: Handle, _: u16) -> Result<(), AmlError> {
        Ok(())
    }
    fn release(&self, _: Handle) {}
    fn handle_fatal_error(&self, _: u8, _: u32, _: u64) {}
}
