//! The child that executes the instructions, driven by ptrace(2).

use std::io;
use std::mem::{MaybeUninit, offset_of};

use anyhow::{Result, bail, ensure};

use lab_instructions::{Case, PAGE};

use super::{Mode, PAGE_BYTES, STACK};

/// Selectors of Linux' user space: 64-bit code, 32-bit code, data.
const CODE_64: u64 = 0x33;
const CODE_32: u64 = 0x23;
const DATA_SEGMENT: u64 = 0x2b;
/// What a register holds that no instruction needs; each its own.
const FILL: u64 = 0x1122_3300;
/// A port that may be read and written: of the power-on self-test.
const PORT: u64 = 0x80;
/// Flags that a try begins with: interrupts on, and the one that reads as 1.
const FLAGS: u64 = 0x202;

/// A child, stopped between two tries.
pub(super) struct Child {
    pid: libc::pid_t,
    page: *mut u8,
}

/// What stopped the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// The signal.
    pub signal: i32,
    /// `si_code` (siginfo(2)).
    pub code: i32,
}

impl Stop {
    /// Anything but a trap: the instruction failed, and would again.
    pub(super) fn is_fault(self) -> bool {
        self.signal != libc::SIGTRAP
    }
}

/// The child's registers.
#[derive(Clone, Copy)]
pub(super) struct Registers(libc::user_regs_struct);

impl Registers {
    /// Those that a try begins with.
    pub(super) fn choose(&mut self, case: &Case, mode: Mode) {
        let r = &mut self.0;
        for (place, value) in general(r).into_iter().zip(chosen(case)) {
            *place = value;
        }
        r.rip = PAGE;
        r.rsp = PAGE + STACK;
        r.eflags = FLAGS;
        r.cs = match mode {
            Mode::Long => CODE_64,
            Mode::Compatibility => CODE_32,
        };
        (r.ss, r.ds, r.es) = (DATA_SEGMENT, DATA_SEGMENT, DATA_SEGMENT);
        // Not in a system call: nothing is to be restarted.
        r.orig_rax = u64::MAX;
    }

    /// RIP.
    pub(super) fn rip(&self) -> u64 {
        self.0.rip
    }

    /// RFLAGS.
    pub(super) fn flags(&self) -> u64 {
        self.0.eflags
    }

    /// Sets a flag.
    pub(super) fn set_flag(&mut self, flag: u64) {
        self.0.eflags |= flag;
    }

    /// Name and value of each general register that is not as chosen, but for those that vary.
    pub(super) fn changed(&self, case: &Case) -> Vec<(&'static str, u64)> {
        let mut registers = self.0;
        let found = general(&mut registers).map(|place| *place);
        let mut changed: Vec<_> = NAMES
            .into_iter()
            .zip(chosen(case))
            .zip(found)
            .filter(|((name, chosen), found)| chosen != found && !case.varies.contains(name))
            .map(|((name, _), found)| (name, found))
            .collect();
        if registers.rsp != PAGE + STACK {
            changed.push(("rsp", registers.rsp));
        }
        changed
    }
}

const NAMES: [&str; 7] = ["rax", "rcx", "rdx", "rbx", "rsi", "rdi", "rbp"];

fn general(r: &mut libc::user_regs_struct) -> [&mut u64; 7] {
    [
        &mut r.rax, &mut r.rcx, &mut r.rdx, &mut r.rbx, &mut r.rsi, &mut r.rdi, &mut r.rbp,
    ]
}

fn chosen(case: &Case) -> [u64; 7] {
    let [rax, rcx, rdx] = case.registers;
    [rax, rcx, rdx, FILL + 3, PAGE + 0x500, PAGE + 0x600, FILL + 6]
}

impl Child {
    /// Makes one on CPU 0, stopped.
    pub(super) fn start() -> Result<Self> {
        // SAFETY: maps fresh memory at an address where nothing of this program's is: an executable and its libraries lie
        // above it or far below, and MAP_FIXED_NOREPLACE refuses to cover any.
        let page = unsafe {
            libc::mmap(
                PAGE as *mut libc::c_void,
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        ensure!(
            page != libc::MAP_FAILED,
            "no page at {PAGE:#x}: {}",
            io::Error::last_os_error()
        );
        // SAFETY: the child makes two system calls and stops; it shares nothing but the page.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: only system calls that are safe after a fork. Without its parent the child ends.
            unsafe {
                let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
                libc::CPU_SET(0, &mut cpus);
                libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus);
                // Where that is not allowed, natively as nested, IN and OUT fail for want of it.
                libc::ioperm(PORT, 1, 1);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(1)
            }
        }
        ensure!(pid > 0, "no child: {}", io::Error::last_os_error());
        let child = Self { pid, page: page.cast() };
        ensure!(child.wait()? == libc::SIGSTOP, "the child does not stop");
        Ok(child)
    }

    /// The page that it executes and uses, while it stands still.
    pub(super) fn page(&mut self) -> &mut [u8] {
        // SAFETY: the page is mapped as long as this exists; the child, its only other user, is stopped.
        unsafe { std::slice::from_raw_parts_mut(self.page, PAGE_BYTES) }
    }

    /// Its registers.
    pub(super) fn registers(&self) -> Result<Registers> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
        self.ptrace(libc::PTRACE_GETREGS, 0, registers.as_mut_ptr() as usize)?;
        // SAFETY: the kernel filled it, and every value is one.
        Ok(Registers(unsafe { registers.assume_init() }))
    }

    /// Sets its registers.
    pub(super) fn set_registers(&self, registers: &Registers) -> Result<()> {
        self.ptrace(libc::PTRACE_SETREGS, 0, (&raw const registers.0).addr())
    }

    /// An execution breakpoint at this address, or none (SDM vol. 3B, 19.2).
    pub(super) fn set_breakpoint(&self, address: Option<u64>) -> Result<()> {
        let register = |number: usize| offset_of!(libc::user, u_debugreg) + number * size_of::<u64>();
        self.ptrace(libc::PTRACE_POKEUSER, register(7), 0)?;
        if let Some(address) = address {
            self.ptrace(libc::PTRACE_POKEUSER, register(0), address as usize)?;
            self.ptrace(libc::PTRACE_POKEUSER, register(7), 1)?;
        }
        Ok(())
    }

    /// Lets it run until something stops it.
    pub(super) fn run(&self) -> Result<Stop> {
        self.ptrace(libc::PTRACE_CONT, 0, 0)?;
        let signal = self.wait()?;
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        self.ptrace(libc::PTRACE_GETSIGINFO, 0, info.as_mut_ptr() as usize)?;
        // SAFETY: the kernel filled it, and every value is one.
        let code = unsafe { info.assume_init() }.si_code;
        Ok(Stop { signal, code })
    }

    /// The signal that stopped it.
    fn wait(&self) -> Result<i32> {
        let mut status = 0;
        // SAFETY: writes the status.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        ensure!(pid == self.pid, "waitpid: {}", io::Error::last_os_error());
        if !libc::WIFSTOPPED(status) {
            bail!("the child ended ({status:#x})");
        }
        Ok(libc::WSTOPSIG(status))
    }

    fn ptrace(&self, request: u32, address: usize, data: usize) -> Result<()> {
        // SAFETY: the child is stopped; what `data` points to, where it is a pointer, is the caller's own and of the
        // right type for the request.
        let result = unsafe { libc::ptrace(request, self.pid, address, data) };
        ensure!(result == 0, "ptrace request {request}: {}", io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is this one's own, and nobody else waits for it; the page was mapped by `start`.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            libc::munmap(self.page.cast(), PAGE_BYTES);
        }
    }
}
