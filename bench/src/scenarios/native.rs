//! One host, native and nested: nothing tells it the difference, and nothing is left behind.

use anyhow::{Context, Result, ensure};

use super::refuse;
use crate::{machine::deadline::Span, steps::Run};

/// Model-specific registers that a host must read alike natively and nested: APIC base, feature control, SYSENTER,
/// MISC_ENABLE, PAT, debug control, all of VMX', EFER. Not STAR and those after it: they are a guest's as long as its
/// thread has not gone back to user mode (`kvm_set_user_return_msr()` in Linux `arch/x86/kvm/x86.c`).
const MSRS: &str = "0x1b 0x3a 0x174 0x175 0x176 0x1a0 0x277 0x1d9 $(seq 0x480 0x491) 0xc0000080";
/// Rounds of NMIs to all CPUs but the one that sends them.
const NMI_ROUNDS: u64 = 10;

/// All of it, on a host that runs two guests. L0 runs with `check=vmcs`, the kernel with `reboot=triple`.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    ensure!(run.sh("nproc")?.trim() == "4", "not all CPUs are online");
    run.sh("locum doctor")?;
    run.cycle(100)?;
    compared(run)?;
    alike(run)?;
    refuse::all(run)?;
    resets(run)
}

/// 8,000 times in and out of nested under two guests; no VMCS is left other than it was. L0 runs with `check=vmcs`.
pub(super) fn cycles(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    for _ in 0..40 {
        // As many as L0's trace ring holds.
        run.sh("locum cycle 200")?;
        compared(run)?;
    }
    run.check_dormant()
}

/// Six stays in nested mode and 1,000 ways in and out, during and after which the guests' timers fire. L0 runs with
/// `check=vmcs shadowing=windows`.
pub(super) fn windows(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    for stay in 1..=6 {
        run.sh("locum enter")?;
        run.check_guests().with_context(|| format!("stay {stay}, nested"))?;
        run.sh("locum leave")?;
        run.check_guests().with_context(|| format!("stay {stay}, after it"))?;
    }
    // Not after these: a VMCS that was entered or written to meanwhile is another one, and L0 compares it with nothing.
    for _ in 0..5 {
        run.sh("locum cycle 200")?;
        compared(run)?;
    }
    run.check_guests()?;
    run.check_dormant()
}

/// The lab itself: without L0, KVM runs a guest.
pub(super) fn plain(run: &mut Run) -> Result<()> {
    run.sh("modprobe kvm_intel && /guest/pool-up.sh")?;
    run.start_guest("g1")?;
    run.check_guests()?;
    run.power_off()
}

/// What CPUID and model-specific registers say is the same natively and nested, and no NMI is lost nested.
fn alike(run: &mut Run) -> Result<()> {
    run.progress.step("CPUID, MSRs and NMIs");
    run.sh("modprobe msr && modprobe cpuid")?;
    let native = view(run)?;
    run.sh("locum enter")?;
    let nested = view(run)?;
    let before = nmis(run)?;
    run.sh(&format!(
        "dmesg -n 1; for i in $(seq {NMI_ROUNDS}); do echo l > /proc/sysrq-trigger; done; dmesg -n 7"
    ))?;
    let taken = nmis(run)? - before;
    run.sh("locum leave")?;
    ensure!(
        native == nested,
        "CPUID or an MSR differs:\nnative\n{native}\nnested\n{nested}"
    );
    run.check("CPUID and MSRs are alike native and nested");
    let sent = NMI_ROUNDS * u64::from(run.report.cpus - 1);
    ensure!(taken == sent, "{taken} NMIs of {sent} arrived nested");
    run.check(&format!("{sent} NMIs arrived nested"));
    run.check_guests()
}

/// CPUID leaves and MSRs of every CPU, in hexadecimal, a line each; none for an MSR that is not there. One `od` for many,
/// since to start a program is what takes long in the emulator.
fn view(run: &mut Run) -> Result<String> {
    let text = run.sh(&format!(
        "for c in 0 1 2 3; do \
         for leaf in 0 0x80000000; do \
         dd if=/dev/cpu/$c/cpuid bs=16 count=24 iflag=skip_bytes skip=$((leaf)) 2>/dev/null; done | od -An -v -w16 -tx4; \
         for m in {MSRS}; do \
         dd if=/dev/cpu/$c/msr bs=8 count=1 iflag=skip_bytes skip=$((m)) 2>/dev/null; done | od -An -v -w8 -tx8; \
         done"
    ))?;
    ensure!(text.lines().count() > 250, "too little to compare:\n{text}");
    Ok(text)
}

/// NMIs that all CPUs took so far.
fn nmis(run: &mut Run) -> Result<u64> {
    let sum = run.sh(
        "awk '$1 == \"NMI:\" { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) s += $i; print s }' /proc/interrupts",
    )?;
    Ok(sum.trim().parse()?)
}

/// A nested host that ends in a triple fault resets the machine, as it does natively.
fn resets(run: &mut Run) -> Result<()> {
    const BOOTED: &str = "dormant from here on";
    run.sh("locum enter")?;
    run.host().start("echo b > /proc/sysrq-trigger")?;
    run.machine
        .wait_log("l0.log", BOOTED, 2, Span::seconds(300))
        .context("a triple fault did not reset the machine")?;
    run.check("a triple fault of the only host resets the machine");
    Ok(())
}

/// L0 compared VMCSs after leaving (`check=vmcs`) and found them as they were.
fn compared(run: &mut Run) -> Result<()> {
    run.progress.step("reading L0's trace");
    // The console takes a while for a whole ring.
    let found = run.sh("locum trace --kind vmcs-checked | sed 's/.*given back //' | sort | uniq -c")?;
    let mut same = 0;
    for line in found.lines() {
        let parts = line.trim().split_once(' ');
        let (count, how) = parts.with_context(|| format!("uniq's lines are a count and a text, not {found:?}"))?;
        ensure!(how == "as it was", "L0 left VMCSs other than they were:\n{found}");
        same += count.parse::<u32>()?;
    }
    ensure!(same > 0, "L0 compared no VMCS");
    run.check(&format!("{same} VMCSs were left as they were"));
    Ok(())
}
