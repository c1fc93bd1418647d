//! L0's self-test (`selftest`) on the emulated CPUs: everything passes, and its costs can be read.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::{
    image::{
        build,
        iso::{Boot, Iso},
    },
    machine::{
        Machine, Medium, Setup,
        board::Board,
        bochs::{HASWELL, IVY_BRIDGE, SKYLAKE_X, TIGER_LAKE},
        deadline::Span,
        platform::Platform,
    },
    progress::say,
    tools,
};

/// CPUs of each machine.
const CPUS: u32 = 2;
/// The models, and what the self-test says there of VMCS shadowing and of CET.
const MODELS: [(&str, &str, &str); 4] = [
    (HASWELL, "ok", "absent"),
    (SKYLAKE_X, "ok", "absent"),
    (IVY_BRIDGE, "absent", "absent"),
    (TIGER_LAKE, "ok", "ok"),
];
/// How long a machine may take.
const LIMIT: Span = Span::seconds(120);
/// What L0 begins its last line with.
const ENDED: &str = "selftest: ended: ";
/// Costs that the model of the benchmarks asks for.
const MODELLED: [&str; 4] = ["transition", "vmptrld", "vmread", "vmwrite"];

/// A cost as it is in `costs.toml`.
#[derive(Debug, Deserialize)]
struct Cost {
    unit: String,
    low: f64,
    mid: f64,
    high: f64,
}

/// Every model.
pub(super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    for (model, shadowing, cet) in MODELS {
        let log = boot(&dir.join(model), model)?;
        check(&log, shadowing, cet).with_context(|| format!("on {model}:\n{log}"))?;
        say(&format!("selftest: {CPUS} CPUs of {model} passed"));
    }
    Ok(())
}

/// Boots into the self-test. Returns L0's log once it has ended.
fn boot(dir: &Path, model: &str) -> Result<String> {
    fs::create_dir_all(dir)?;
    let l0 = build::l0()?;
    let iso = dir.join("boot.iso");
    // There is no host: what stands for its files is not looked at.
    Iso {
        l0: Some(l0.clone()),
        l0_args: "log=e9 selftest".into(),
        kernel: l0.clone(),
        cmdline: String::new(),
        initrd: l0,
        boot: Boot::Bios,
        before: Vec::new(),
    }
    .build(&dir.join("iso"), &iso)?;
    let setup = Setup {
        cpus: CPUS,
        cpu_model: model.to_owned(),
        memory: 512,
        board: Board::default(),
        medium: Medium::Cd(iso.clone()),
        disk: None,
        platform: Platform::Bochs,
        segment: false,
        machine_checks: false,
        dir: dir.to_owned(),
        limit: LIMIT,
    };
    let mut machine = Machine::start(&setup)?;
    machine.wait_log("l0.log", ENDED, 1, LIMIT)?;
    let log = machine.log("l0.log");
    drop(machine);
    fs::remove_file(iso)?;
    Ok(log)
}

fn check(log: &str, shadowing: &str, cet: &str) -> Result<()> {
    let said: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("l0: info: ").map(|(_, said)| said))
        .collect();
    let passed = format!("{ENDED}passed on {CPUS} CPUs");
    ensure!(said.contains(&passed.as_str()), "the self-test did not pass");
    let cpus: Vec<&&str> = said
        .iter()
        .filter(|line| line.starts_with("selftest: APIC id "))
        .collect();
    ensure!(cpus.len() == CPUS as usize, "{} CPUs were tried", cpus.len());
    for line in cpus {
        // All that an emulator need not have is to be there but for what is named.
        for outcome in ["vmx ok", "vmxon ok", "guest ok", "nmi ok", "ept ok", "init ok"] {
            ensure!(line.contains(outcome), "no {outcome:?} in {line:?}");
        }
        for (check, outcome) in [("shadow-cleared", shadowing), ("shadow", shadowing), ("cet", cet)] {
            let told = format!(" {check} {outcome}");
            ensure!(line.contains(&told), "no {told:?} in {line:?}");
        }
    }
    let costs = costs(&said)?;
    for name in MODELLED {
        let cost = costs.get(name).with_context(|| format!("no cost of {name}"))?;
        ensure!(cost.unit == "ticks of the TSC", "{name}: {cost:?}");
        ensure!(
            0.0 <= cost.low && cost.low <= cost.mid && cost.mid <= cost.high,
            "{name}: {cost:?}"
        );
    }
    ensure!(costs["transition"].low >= 1.0, "a round of exit and entry took no time");
    Ok(())
}

/// The costs, read as the benchmarks read their file.
fn costs(said: &[&str]) -> Result<BTreeMap<String, Cost>> {
    let text: Vec<&str> = said
        .iter()
        .copied()
        .skip_while(|line| !line.starts_with('['))
        .take_while(|line| !line.starts_with("selftest: "))
        .collect();
    toml::from_str(&text.join("\n")).context("the costs are no TOML")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What L0 wrote on an emulated Haswell, cut to the costs that are checked.
    fn log() -> String {
        let cpu =
            "vmx ok vmxon ok guest ok shadow-cleared ok shadow ok nmi ok ept ok cet absent init ok init-held absent";
        let mut lines = vec![
            format!("selftest: APIC id 0: {cpu}"),
            format!("selftest: APIC id 1: {cpu}"),
        ];
        for name in MODELLED {
            lines.push(format!("[{name}]"));
            lines.extend(["unit = \"ticks of the TSC\"", "low = 7.5", "mid = 17.9", "high = 17.9"].map(str::to_owned));
        }
        lines.push("selftest: ended: passed on 2 CPUs".to_owned());
        lines.iter().map(|line| format!("l0: info: {line}\n")).collect()
    }

    #[test]
    fn a_good_table_passes_and_each_lie_does_not() {
        check(&log(), "ok", "absent").unwrap();
        for (was, lie) in [
            ("ended: passed on 2", "ended: FAILED on 1 of 2"),
            ("APIC id 1", "APIC"),
            (" shadow ok", " shadow absent"),
            ("ept ok", "ept FAILED(0x1)"),
            ("cet absent", "cet FAILED(0x15)"),
            ("[vmptrld]", "[vmclear]"),
            ("mid = 17.9", "mid = 1.0"),
            ("low = 7.5", "low = 0.0"),
        ] {
            assert!(check(&log().replace(was, lie), "ok", "absent").is_err(), "{lie}");
        }
    }
}
