//! How a machine is to be, and everything that it is booted from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    debian::kernels::{NEWEST, OLDEST},
    image::{
        build,
        initramfs::{self, Image},
        iso::{Boot, Iso},
        kernel::{self, Kernel},
        stock_guest::StockGuest,
    },
    machine::{
        Medium, Setup,
        board::{Board, Firmware},
        bochs::HASWELL,
        deadline::Span,
        layout::Layout,
        platform::Platform,
    },
    paths,
    progress::say,
    tools,
};

/// Command line of every host in the lab, with the `movablecore` of its [`Layout`]. Bochs loses wake-ups from MWAIT
/// idle; the rest is what Locum asks of a host. Beside a guest, huge pages of its QEMU were seen to hold a block that
/// could not be offlined then.
const CMDLINE: &str = "console=ttyS0,115200 idle=halt acpi_irq_nobalance no_ipi_broadcast=1 \
     retain_initrd panic=0 transparent_hugepage=never";

/// The same for the second board, where nothing has to go to a successor. A machine check may find CPUs that wait for
/// this machine's own: they get so many microseconds to meet.
const BOARD_CMDLINE: &str = "console=ttyS0,115200 retain_initrd panic=0 mce=300000000";

/// With [`BOARD_CMDLINE`], up to [`HPET_CPUS`]. Linux patches what each CPU runs when it wakes (`sched_clock_init_late()`)
/// while they all do. TCG drops a block's translation before the byte is stored, so another CPU that waits to run it may
/// translate the old one again, an INT3, and keep it for good: Linux dies of it, once in hundreds of boots. Where the TSC
/// is no clock, nothing is patched then.
const BOARD_CLOCK: &str = " tsc=unstable";

/// CPUs that can read their time from one HPET, which is the clock then.
const HPET_CPUS: u32 = 8;

/// Most CPUs that the lab's Bochs is good for.
const BOCHS_CPUS: u32 = 4;

/// How to build and run a machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// Let GRUB load Linux itself, without L0
    #[arg(long)]
    pub plain: bool,
    /// CPUs: 1 to 4, more with --platform tcg
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// Their model, as Bochs calls it
    #[arg(long, default_value = HASWELL)]
    pub cpu_model: String,
    /// Kernel to boot: one that `cargo lab root --list` shows
    #[arg(long, default_value = OLDEST)]
    pub kernel: String,
    /// Further kernel whose modules and image go into the initramfs
    #[arg(long, default_value = NEWEST)]
    pub to: String,
    /// Added to the kernel's command line
    #[arg(long, default_value = "")]
    pub cmdline: String,
    /// Added to L0's command line
    #[arg(long, default_value = "")]
    pub l0_args: String,
    /// Put the Redis benchmark into the initramfs
    #[arg(long)]
    pub workload: bool,
    /// Put a file into the initramfs: PATH_IN_HOST=FILE
    #[arg(long, value_name = "PATH=FILE")]
    pub file: Vec<String>,
    /// Kill the machine after this many emulated seconds: 100 million ticks each, some 1.4 s here
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Fail if the module or the agent does not build, instead of booting without them
    #[arg(long)]
    pub strict: bool,
    /// What runs the machine
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
    /// The second board
    #[command(flatten)]
    pub board: Board,
    /// Put the stock guest's kernel into the initramfs, and its disk beside the machine
    #[arg(skip)]
    pub stock_guest: bool,
    /// Hang its cards on a segment, and put a Redis server into the initramfs that is reached by it
    #[arg(skip)]
    pub segment: bool,
    /// Put the lab's own module that executes instructions into the initramfs: `/lab_probe.ko`
    #[arg(skip)]
    pub probe: bool,
    /// Put Linux's own tests of KVM into the initramfs: `/images/selftests.sqfs`
    #[arg(skip)]
    pub selftests: bool,
    /// Put what loads a crash kernel into the initramfs, and that one's own initramfs: `/own/crash/load`
    #[arg(long)]
    pub crash: bool,
    /// Have CPUs that take machine checks, for [`Machine::machine_checks`](crate::machine::Machine::machine_checks)
    #[arg(skip)]
    pub machine_checks: bool,
    /// Where what lies in its RAM
    #[arg(skip = Layout::USUAL)]
    pub layout: Layout,
    /// Directory of the run (default: a new one in target/lab/runs)
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

impl Default for MachineArgs {
    fn default() -> Self {
        Self {
            plain: false,
            cpus: 4,
            cpu_model: HASWELL.into(),
            kernel: OLDEST.into(),
            to: NEWEST.into(),
            cmdline: String::new(),
            l0_args: String::new(),
            workload: false,
            stock_guest: false,
            segment: false,
            probe: false,
            selftests: false,
            crash: false,
            machine_checks: false,
            file: Vec::new(),
            timeout: 600,
            strict: false,
            platform: Platform::default(),
            board: Board::default(),
            layout: Layout::USUAL,
            dir: None,
        }
    }
}

/// Builds everything that a machine needs: a directory for the run, with the CD in it.
///
/// # Errors
/// Something does not build or cannot be fetched.
pub(crate) fn prepare(args: &MachineArgs) -> Result<Setup> {
    check(args)?;
    tools::ensure()?;
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => paths::out().join("runs").join(run_name()?),
    };
    fs::create_dir_all(&dir)?;
    let mut kernels = kernel::prefetch(&[&args.kernel, &args.to], &[args.platform])?;
    kernels.dedup_by(|a, b| a.release() == b.release());
    let initrd = dir.join("initrd");
    initramfs(args, &kernels)?.build(&initrd)?;
    let iso = dir.join("boot.iso");
    let first = kernels.first().context("no kernel")?;
    cd(args, first, &initrd)?.build(&dir.join("iso"), &iso)?;
    fs::remove_file(initrd)?;
    Ok(Setup {
        cpus: args.cpus,
        cpu_model: args.cpu_model.clone(),
        memory: args.layout.memory,
        board: args.board.clone(),
        platform: args.platform,
        medium: Medium::Cd(iso),
        disk: None,
        segment: args.segment,
        machine_checks: args.machine_checks,
        dir,
        limit: Span::seconds(args.timeout),
    })
}

/// Makes sure that there is such a machine.
fn check(args: &MachineArgs) -> Result<()> {
    if args.platform == Platform::Tcg {
        return args.board.check(args.cpus);
    }
    ensure!(
        args.cpus <= BOCHS_CPUS,
        "the lab's server has at most {BOCHS_CPUS} CPUs on --platform {}; --platform tcg has boards with more",
        args.platform
    );
    ensure!(
        args.board == Board::default(),
        "on --platform {} there is one board; these options are for --platform tcg: --chipset, --firmware, --tcg-cpu, \
         --memory, --sockets, --threads, --nodes, --grub",
        args.platform
    );
    Ok(())
}

fn initramfs<'a>(args: &MachineArgs, kernels: &'a [Kernel]) -> Result<Image<'a>> {
    let mut extra: Vec<_> = args.file.iter().map(|spec| extra_file(spec)).collect::<Result<_>>()?;
    if let Some(first) = kernels.first().filter(|_| args.probe) {
        extra.push(("lab_probe.ko".to_owned(), build::probe(first)?, 0o644));
    }
    if let Some(first) = kernels.first().filter(|_| args.selftests) {
        let image = initramfs::selftests(&first.selftests()?)?;
        extra.push(("images/selftests.sqfs".to_owned(), image, 0o644));
    }
    Ok(Image {
        kernels,
        modules: kernels
            .iter()
            .map(|kernel| tolerate(args, build::module(kernel)))
            .collect::<Result<_>>()?,
        agent: tolerate(args, build::agent().map(Some))?,
        workload: args.workload,
        segment: args.segment,
        crash: args.crash,
        stock_guest: args.stock_guest.then(StockGuest::get).transpose()?,
        extra,
    })
}

fn cd(args: &MachineArgs, kernel: &Kernel, initrd: &Path) -> Result<Iso> {
    let MachineArgs {
        layout,
        cpus,
        l0_args,
        cmdline,
        ..
    } = args;
    Ok(Iso {
        l0: if args.plain { None } else { Some(build::l0()?) },
        l0_args: format!("{} log=e9 host_cpus={cpus} {l0_args}", layout.l0_pool()),
        kernel: kernel.image(),
        cmdline: format!("{} movablecore={}M {cmdline}", usual_cmdline(args), layout.movable()),
        initrd: initrd.to_owned(),
        boot: if args.platform == Platform::Tcg && args.board.firmware != Firmware::Bios {
            Boot::Uefi
        } else {
            Boot::Bios
        },
        before: args.board.grub.clone(),
    })
}

fn usual_cmdline(args: &MachineArgs) -> String {
    match args.platform {
        Platform::Tcg if args.cpus <= HPET_CPUS => format!("{BOARD_CMDLINE}{BOARD_CLOCK}"),
        Platform::Tcg => BOARD_CMDLINE.into(),
        Platform::Bochs | Platform::Kvm => CMDLINE.into(),
    }
}

/// A machine is of use to somebody who works on another part even when the module or the agent is broken.
fn tolerate<T>(args: &MachineArgs, part: Result<Option<T>>) -> Result<Option<T>> {
    match part {
        Err(error) if !args.strict => {
            say(&format!("going on without this part: {error:#}"));
            Ok(None)
        }
        part => part,
    }
}

fn extra_file(spec: &str) -> Result<(String, PathBuf, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let (path, file) = spec
        .split_once('=')
        .with_context(|| format!("--file {spec}: expected PATH_IN_HOST=FILE"))?;
    let mode = fs::metadata(file)
        .with_context(|| format!("--file {spec}: reading {file}"))?
        .permissions()
        .mode();
    Ok((path.trim_start_matches('/').to_owned(), file.into(), mode & 0o777))
}

fn run_name() -> Result<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(format!("{}-{}", now.as_secs(), std::process::id()))
}
