//! The pool's table: a guest finds zeroes where another was, and the table outlives a refresh.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::steps::Run;

/// Bytes that a guest of ours has at 2 MiB.
const SECRET: &str = "yes secret | head -c 100000 >/tmp/secret";
/// Such a guest: it executes nothing, its RAM is filled from a file, or saved to one.
const QEMU: &str = "qemu-system-x86_64 -accel kvm -cpu host -S -nodefaults -no-user-config -display none -m 64M \
                    -M microvm,memory-backend=ram -monitor stdio";

#[derive(Debug, Deserialize)]
struct Extent {
    guest: String,
    state: String,
    slot: u32,
    start: u64,
    end: u64,
}

#[derive(Debug, Deserialize)]
struct Pool {
    extents: Vec<Extent>,
    problems: Vec<String>,
}

fn pool(run: &mut Run) -> Result<Pool> {
    let text = run.sh("locum pool --json")?;
    serde_json::from_str(&text).with_context(|| format!("locum pool says: {text}"))
}

/// The option by which QEMU is told of a guest's piece.
fn alloc(run: &mut Run, name: &str) -> Result<String> {
    let said = run.sh(&format!("locum pool alloc {name} --size 64M"))?;
    let backend = said.lines().find(|line| line.starts_with("-object "));
    backend
        .map(str::to_owned)
        .with_context(|| format!("no option for QEMU in: {said}"))
}

/// How many bytes of the guest at `backend` are not zero, where the secret was.
fn dirt(run: &mut Run, backend: &str) -> Result<u64> {
    run.sh(&format!(
        "rm -f /tmp/ram; printf 'pmemsave 0x200000 100000 \"/tmp/ram\"\\nquit\\n' | {QEMU} {backend} >/dev/null; \
         [ -s /tmp/ram ]"
    ))?;
    Ok(run.sh("tr -d '\\000' </tmp/ram | wc -c")?.trim().parse()?)
}

/// All of it, on a host that runs the guest g1.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    run.progress
        .step("giving pieces of the pool to guests, and taking them back");
    run.sh(SECRET)?;
    let first = alloc(run, "first")?;
    ensure!(first.contains("offset=134217728"), "g1 was not seen at 0: {first}");
    run.sh(&format!(
        "echo quit | {QEMU} {first} -device loader,file=/tmp/secret,addr=0x200000,force-raw=on >/dev/null"
    ))?;
    let left = dirt(run, &first)?;
    ensure!(left == 100_000, "the guest has {left} of its bytes when it comes again");
    run.sh("locum pool free first")?;
    let second = alloc(run, "second")?;
    ensure!(first == second, "{second} is not where the first was");
    let left = dirt(run, &second)?;
    ensure!(left == 0, "the second guest finds {left} bytes of the first");
    run.check("a guest finds zeroes where another was, and its own bytes where it was itself");
    let words = run.sh("if locum pool alloc big --size 300M 2>&1; then echo it was not refused; exit 1; fi")?;
    ensure!(words.contains("too full"), "{words}");
    let words = run.sh("if locum pool free 'process '$(pidof qemu-system-x86_64) 2>&1; then exit 1; fi")?;
    ensure!(words.contains("stop the guest first"), "{words}");

    let successor = run.successor()?;
    run.replace_host(&successor)?;
    let Pool { extents, problems } = pool(run)?;
    ensure!(problems.is_empty(), "{problems:?}");
    let [g1, second] = extents.as_slice() else {
        anyhow::bail!("not two guests: {extents:?}");
    };
    ensure!(
        (g1.start, g1.end - g1.start) == (second.start - (128 << 20), 128 << 20),
        "{extents:?}"
    );
    ensure!(second.guest == "second", "{extents:?}");
    let here = |extent: &Extent| (extent.state.as_str(), extent.slot) == ("used", 1);
    ensure!(extents.iter().all(here), "not all are the successor's: {extents:?}");
    run.check("the table outlives the host, and says where the guests are");
    run.sh("locum pool free second")?;
    run.check_guests()?;
    run.power_off()
}
