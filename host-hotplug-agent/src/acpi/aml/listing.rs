//! What is listed, and how it crosses from the interpreter's process to ours: one JSON value a line.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Address space of a region (ACPI 6.5, 5.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    SystemMemory,
    SystemIo,
    PciConfig,
    EmbeddedControl,
    SmBus,
    SystemCmos,
    PciBarTarget,
    Ipmi,
    GeneralPurposeIo,
    GenericSerialBus,
    Pcc,
    Oem(u8),
}

/// An operation region: what AML reads and writes there, it does behind the host's back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Table that declares it, by its name in `/sys/firmware/acpi/tables`.
    pub table: String,
    /// Its name: `\_SB_.PCI0.LPCB.PMIO`.
    pub path: String,
    /// The device that it is in, if any.
    pub device: Option<String>,
    /// Which address space.
    pub space: Space,
    /// First address there.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.path, self.table)
    }
}

/// Where an interrupt pin of a PCI device leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// To that global system interrupt.
    Gsi(u32),
    /// To an interrupt link device, which can be set.
    Link(String),
}

/// A line of a routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Device number on the bus.
    pub device: u8,
    /// 1 to 4: INTA to INTD, as in a function's configuration space.
    pub pin: u8,
    /// Where it leads.
    pub wire: Wire,
}

/// A `_PRT`: the wires of the devices on one bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// The host bridge or PCI bridge whose bus it is.
    pub bridge: String,
    /// Its lines.
    pub routes: Vec<Route>,
}

/// A line of the process's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// This table, or this method, is next.
    Next(String),
    /// What was next could not be run to its end.
    Failed(String),
    /// A region.
    Region(Region),
    /// A routing table.
    Routing(Routing),
    /// All is said.
    End,
}

/// What one process said, and how it ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What it said.
    pub lines: Vec<Line>,
    /// Why it did not come to an end by itself.
    pub died: Option<String>,
}

/// What AML uses, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Regions, by name.
    pub regions: Vec<Region>,
    /// Interrupt routing, by bridge.
    pub routing: Vec<Routing>,
    /// Tables and methods that were not run to their end, each with the cause.
    pub unread: Vec<String>,
}
