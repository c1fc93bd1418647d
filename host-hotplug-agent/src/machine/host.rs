//! The real machine.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use firmware_shim::PhysMem;
use locum_abi::uapi::{Info, PowerPolicy};
use locum_abi::{Grant, HostStatus, Slot, Status, Will};
use partitioner::{MemRange, PciAddress};
use rustix::system::{RebootCommand, reboot};

use super::{CarriedOver, Device, Facts, Machine, Start, TextKind, device};
use crate::channel::Port;
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::inventory::{cpu_dir, memory as blocks, pci, pins};
use crate::l0::memory;
use crate::pool::Extents;
use crate::sysroot::SysRoot;

/// How long a PCI function may take to appear after a rescan.
const RESCAN: Duration = Duration::from_secs(10);

/// This host.
#[derive(Debug)]
pub struct Host {
    sys: SysRoot,
    device: Device,
    facts: Facts,
    extents: Option<Extents>,
}

impl Host {
    /// Through an open device.
    ///
    /// # Errors
    /// [`Refusal::NoSlot`].
    pub fn new(sys: SysRoot, device: Device) -> Result<Self, Refusal> {
        let facts = Facts {
            header: *device.header(),
            header_address: device.info().header,
            slot: slot(device.info())?,
            tsc_khz: device.info().tsc_khz,
        };
        let extents = device.extents().unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            None
        });
        Ok(Self {
            sys,
            device,
            facts,
            extents,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// Who may be why a memory block cannot go.
fn stays(sys: &SysRoot, error: anyhow::Error) -> anyhow::Error {
    match pins::holders(sys) {
        Some(who) => anyhow::anyhow!("{error:#}; memory is pinned by {who}: stop these, and refresh again"),
        None => error,
    }
}

/// The slot that the module gives this host.
fn slot(info: &Info) -> Result<Slot, Refusal> {
    info.slot().ok_or(Refusal::NoSlot(info.slot))
}

impl Machine for Host {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn sys(&self) -> &SysRoot {
        &self.sys
    }

    fn memory(&self) -> &dyn PhysMem {
        &self.device
    }

    fn status(&self) -> Result<Box<Status>> {
        memory::status(&self.device, &self.facts.header)
    }

    fn host(&self, slot: Slot) -> Result<HostStatus> {
        memory::host(&self.device, &self.facts.header, slot)
    }

    fn offline_cpu(&self, number: u32) -> Result<()> {
        self.sys
            .write(format!("{}/online", cpu_dir(number)), "0")
            .context("offlining the CPU")
    }

    fn online_cpu(&self, number: u32) -> Result<()> {
        self.sys
            .write(format!("{}/online", cpu_dir(number)), "1")
            .context("onlining the CPU")
    }

    fn remove_pci(&self, address: PciAddress) -> Result<()> {
        pci::keep_bridges_on(&self.sys, address).context("keeping the bridges above it switched on")?;
        self.sys.write(format!("{}/remove", pci::dir(address)), "1")?;
        if self.sys.exists(pci::dir(address)) {
            bail!("PCI function {address} is still there after its removal");
        }
        Ok(())
    }

    fn find_pci(&self, address: PciAddress) -> Result<()> {
        let there = || self.sys.exists(pci::dir(address));
        if !there() {
            self.sys.write("sys/bus/pci/rescan", "1")?;
        }
        ensure!(
            Deadline::after(RESCAN).comes_true(Duration::from_millis(20), there),
            "PCI function {address} did not appear after a rescan"
        );
        Ok(())
    }

    fn rescan_pci(&self) -> Result<()> {
        Ok(self.sys.write("sys/bus/pci/rescan", "1")?)
    }

    fn is_removed(&self, block: MemRange) -> Result<bool> {
        self.device.takes_byte(block.start())
    }

    fn remove_memory(&self, block: MemRange) -> Result<()> {
        self.device.mem_remove(block).map_err(|error| stays(&self.sys, error))
    }

    fn add_memory(&self, block: MemRange, node: u32, online: bool) -> Result<()> {
        let dir = blocks::block_dir(block.start(), block.len());
        // It may have been added, and not yet brought online, by a daemon that is gone.
        if !self.sys.exists(&dir) {
            self.device.mem_add(block, node)?;
        }
        if !online {
            return Ok(());
        }
        let state = format!("{dir}/state");
        if self.sys.read(&state)? != "online" {
            self.sys
                .write(&state, "online_movable")
                .with_context(|| format!("onlining memory {block}"))?;
        }
        Ok(())
    }

    fn wipe(&self, range: MemRange) -> Result<()> {
        self.device.mem_wipe(range)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.device.write(at, bytes)
    }

    fn carried_over(&self) -> Result<CarriedOver> {
        self.device.carried_over()
    }

    fn enter(&self, number: u32) -> Result<()> {
        self.device.enter(i32::try_from(number)?).map(drop)
    }

    fn leave(&self, number: u32) -> Result<()> {
        self.device.leave(i32::try_from(number)?).map(drop)
    }

    fn grant(&self, grant: Grant) -> Result<()> {
        self.device.grant(grant)
    }

    fn start(&self, start: Start) -> Result<()> {
        self.device.start(start)
    }

    fn abort(&self) -> Result<()> {
        self.device.abort()
    }

    fn will(&self, will: Will) -> Result<bool> {
        self.device.will(will)
    }

    fn power_off(&self, command: &[String]) -> Result<()> {
        self.device.power_policy(PowerPolicy::Retire)?;
        let systemd = ["systemctl".to_owned(), "poweroff".to_owned()];
        let command = if command.is_empty() && self.sys.exists("run/systemd/system") {
            &systemd
        } else {
            command
        };
        let Some((program, args)) = command.split_first() else {
            rustix::fs::sync();
            return reboot(RebootCommand::PowerOff).context("powering off");
        };
        let status = Command::new(program)
            .args(args)
            .status()
            .with_context(|| format!("running {program}"))?;
        if !status.success() {
            bail!("`{}` failed ({status})", command.join(" "));
        }
        Ok(())
    }

    fn extents(&self) -> Option<&Extents> {
        self.extents.as_ref()
    }

    fn channel(&self, number: usize) -> Result<Port> {
        device::channel(&self.sys, number).map(Port::new)
    }

    fn set_clock(&self, clock: &Clock) -> Result<()> {
        clock.set()
    }

    fn publish(&self, kind: TextKind, text: &str) {
        if let Err(error) = self.device.text(kind, text) {
            tracing::debug!("{error:#}");
        }
    }

    fn busy(&self, busy: bool) {
        if let Err(error) = self.device.busy(busy) {
            tracing::debug!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_memory_pinned_is_told_with_a_block_that_stays() {
        let tree = crate::testing::tree::Tree::lab();
        let error = || anyhow::anyhow!("busy").context("taking memory 0x48000000-0x50000000 off Linux");
        assert_eq!(format!("{:#}", stays(&tree.sys(), error())), format!("{:#}", error()));
        tree.put("proc/9/status", "Name:\tmlx\nVmPin:\t 4096 kB\n");
        let told = stays(&tree.sys(), error()).to_string();
        assert!(
            told.contains("0x48000000-0x50000000") && told.contains("process 9 (mlx"),
            "{told}"
        );
    }

    #[test]
    fn a_slot_that_does_not_exist_is_refused_with_the_remedy() {
        let says = |slot| Info {
            slot,
            ..Info::default()
        };
        assert!(matches!(slot(&says(1)), Ok(Slot::Odd)));
        let error = slot(&says(2)).unwrap_err().to_string();
        assert!(
            error.contains("slot 2") && error.contains("load the module of the same package"),
            "{error}"
        );
    }
}
