//! `locum pool`: which guest's RAM lies where, a piece for a guest, and back.

use std::process::Command as Process;
use std::time::Duration;

use anyhow::{Context, Result};
use locum_abi::HostState;
use partitioner::MemRange;
use serde::Serialize;

use super::{print_json, print_line};
use crate::cli::{Output, PoolCommand};
use crate::deadline::Deadline;
use crate::guest::libvirt::hook::{self, Domain, Moment};
use crate::guest::pool::{Pool, pieces};
use crate::l0::{memory, view};
use crate::machine::{Access, Device};
use crate::pool::table::Uuid;
use crate::pool::up::up;
use crate::pool::{Keeper, View, Wanted};
use crate::sysroot::SysRoot;

/// For another program of this host to be done with the table: it may be clearing a large guest's RAM.
const OTHERS: Duration = Duration::from_secs(60);

/// What `locum pool` shows.
#[derive(Serialize)]
struct List {
    extents: Vec<View>,
    free: Vec<MemRange>,
    problems: Vec<String>,
}

pub fn run(sys: &SysRoot, command: Option<&PoolCommand>, list: Output) -> Result<()> {
    if let Some(PoolCommand::Up { output }) = command {
        let device = Device::open(sys, Access::Control)?;
        return make(sys, &device, *output);
    }
    with_keeper(sys, |keeper| answer(&keeper, command, list))
}

/// What libvirt's hook does: the domain's description comes in.
pub fn libvirt_hook(sys: &SysRoot, operation: &str, part: &str) -> Result<()> {
    let moment = Moment::of(operation, part);
    if moment == Moment::Other {
        return Ok(());
    }
    let xml = std::io::read_to_string(std::io::stdin()).context("reading the domain's description")?;
    let domain = Domain::parse(&xml)?;
    if !domain.wrapped {
        return Ok(());
    }
    let brought = hook::bring_variables(sys, &domain);
    if !sys.exists("dev/locum") {
        // As without L0: it starts all the same, in ordinary RAM.
        return hook::forget(sys, &domain).and(brought);
    }
    with_keeper(sys, |keeper| {
        let keeper = keeper.alone(&Deadline::after(OTHERS))?;
        match moment {
            Moment::Start => brought.and_then(|()| hook::start(sys, &keeper, &domain).map(drop)),
            // Its RAM is free all the same.
            _ => hook::end(sys, &keeper, &domain).and(brought),
        }
    })
}

fn with_keeper<T>(sys: &SysRoot, work: impl FnOnce(Keeper<'_>) -> Result<T>) -> Result<T> {
    let device = Device::open(sys, Access::Control)?;
    let slot = device.info().slot().context("locum.ko puts this host into no slot")?;
    let extents = device.extents()?.context(
        "this L0 is older and has no table of the pool: give each guest an `offset` of its own by hand, and reboot into the \
         L0 of the installed package when there is time",
    )?;
    let other = memory::host(&device, device.header(), slot.other())?;
    let beside_another = HostState::from_raw(other.state).is_none_or(view::is_there);
    let pool = Pool::of(device.header());
    work(Keeper::new(sys, &pool, &extents, slot, beside_another)?)
}

fn answer(keeper: &Keeper<'_>, command: Option<&PoolCommand>, list: Output) -> Result<()> {
    match command {
        // The latter was answered above.
        None | Some(PoolCommand::Up { .. }) => show(keeper, list),
        Some(PoolCommand::Alloc {
            name,
            size,
            node,
            uuid,
            output,
        }) => {
            let uuid = uuid.as_deref().map(parse_uuid).transpose()?;
            let given = keeper.alloc(&Wanted {
                name: name.clone(),
                size: size.0,
                node: *node,
                uuid,
            })?;
            if output.json {
                return print_json(&given);
            }
            print_line(&format!("guest {} (UUID {}) has:", given.guest, given.uuid))?;
            print_line(&given.backend().context("no device of this host has it")?)
        }
        Some(PoolCommand::Free { name, output }) => {
            let freed = keeper.free(name)?;
            if output.json {
                return print_json(&freed);
            }
            for view in freed {
                print_line(&format!(
                    "free: {:#x}-{:#x} of guest {}",
                    view.start, view.end, view.guest
                ))?;
            }
            Ok(())
        }
    }
}

/// Loads the drivers as they are to be, and has them make devices of the pool.
fn make(sys: &SysRoot, device: &Device, output: Output) -> Result<()> {
    if sys.is_hosts() {
        for words in [&["dax_hmem", "region_idle=1"][..], &["device_dax"]] {
            let status = Process::new("modprobe").args(words).status();
            // Either may be part of the kernel. If it is missing, the devices are.
            if !status.is_ok_and(|status| status.success()) {
                tracing::warn!("`modprobe {}` failed", words.join(" "));
            }
        }
    }
    let made = up(sys, &pieces(device.header()))?;
    if output.json {
        return print_json(&made);
    }
    made.iter().try_for_each(|up| {
        let how = if up.was_there { "is there" } else { "made" };
        print_line(&format!(
            "{}: {} MiB at {:#x}, {how}",
            up.device,
            up.size >> 20,
            up.start
        ))
    })
}

fn parse_uuid(text: &str) -> Result<Uuid> {
    let uuid = Uuid::parse(text).filter(|uuid| uuid.is_known());
    uuid.with_context(|| format!("`{text}` is no UUID: 8, 4, 4, 4 and 12 hexadecimal digits, with `-` between"))
}

fn show(keeper: &Keeper<'_>, output: Output) -> Result<()> {
    let problems = keeper.enter_seen()?;
    let list = List {
        extents: keeper.list()?,
        free: keeper.free_ranges()?,
        problems,
    };
    if output.json {
        return print_json(&list);
    }
    for view in &list.extents {
        let node = view.node.map_or_else(|| "-".to_owned(), |node| node.to_string());
        let device = match (&view.device, view.offset) {
            (Some(device), Some(offset)) => format!("{device} offset={offset}"),
            _ => "no device".to_owned(),
        };
        print_line(&format!(
            "{:<9} {:#x}-{:#x} {:>6} MiB  node {node}  {device}  {} {}",
            view.state,
            view.start,
            view.end,
            (view.end - view.start) >> 20,
            view.uuid,
            view.guest
        ))?;
    }
    for range in &list.free {
        print_line(&format!("free      {range} {:>6} MiB", range.len() >> 20))?;
    }
    list.problems
        .iter()
        .try_for_each(|problem| print_line(&format!("beware    {problem}")))
}
