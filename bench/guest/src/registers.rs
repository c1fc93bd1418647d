//! Registers held over time: whatever interrupts, exits and handovers happen meanwhile, they must not change.
//!
//! [`hold`] loads every general, vector and x87 register, MXCSR, the x87 control word, the carry and direction flags
//! and GS.base with chosen values, beats for a while with nothing but them in the CPU, and stores them again. The
//! comparison is a pure function, so it can be tested with every register wrong.
#![expect(unsafe_code, reason = "no language but assembly can hold all registers")]

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;

/// Turns of the inner loop between two beats, of two instructions each.
const TURNS: u64 = 500;

const GENERAL: usize = 12;
const VECTORS: usize = 16;
const X87: usize = 8;
/// CF and DF.
const FLAGS: u64 = 1 << 10 | 1;
/// All exceptions masked, round up: neither the reset value nor what a kernel would use.
const MXCSR: u32 = 0x5f80;
/// All exceptions masked, double precision, round up.
const X87_CONTROL: u16 = 0x0a7f;

/// One image of the registers that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Image {
    general: [u64; GENERAL],
    vectors: [[u64; 4]; VECTORS],
    x87: [[u64; 2]; X87],
    flags: u64,
    gs_base: u64,
    mxcsr: u32,
    x87_control: u16,
    reserved: u16,
}

/// A register that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Number of the 64-bit word in [`Image`]: 0-11 general (rax rbx rdx rbp r8-r15), 12-75 ymm0-15 by quarters, 76-91
    /// x87, 92 flags, 93 GS.base, 94 MXCSR, 95 x87 control word.
    pub register: u64,
    /// The value that was loaded.
    pub expected: u64,
    /// The value that was stored.
    pub found: u64,
}

#[repr(C)]
struct Block {
    want: Image,
    got: Image,
    beats: *const AtomicU64,
    rounds: u64,
    ymm: u64,
    gs: u64,
}

/// What of the CPU can be held beyond the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    ymm: bool,
    gs: bool,
}

impl Features {
    /// Asks the CPU and the kernel.
    #[must_use]
    pub(crate) fn detect() -> Self {
        // AT_HWCAP2 bit 1: the kernel lets user space write GS.base (arch/x86/include/uapi/asm/hwcap2.h).
        Features {
            ymm: std::arch::is_x86_feature_detected!("avx"),
            gs: rustix::param::linux_hwcap().1 & 2 != 0,
        }
    }
}

impl Image {
    /// An image drawn from a seed: no two seeds share values, so that a stale image cannot pass for the present one.
    #[must_use]
    pub(crate) fn draw(seed: u64, features: Features) -> Self {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z ^ z >> 31
        };
        Image {
            general: std::array::from_fn(|_| draw()),
            vectors: std::array::from_fn(|_| {
                [
                    draw(),
                    draw(),
                    if features.ymm { draw() } else { 0 },
                    if features.ymm { draw() } else { 0 },
                ]
            }),
            // Normal numbers (integer bit set, exponent near 0), which load and store without change.
            x87: std::array::from_fn(|_| [draw() | 1 << 63, 0x3f00 | draw() & 0x80ff]),
            flags: FLAGS,
            // Below 2^47: canonical whatever the paging mode.
            gs_base: if features.gs { draw() >> 17 } else { 0 },
            mxcsr: MXCSR,
            x87_control: X87_CONTROL,
            reserved: 0,
        }
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let rest = [
            self.flags & FLAGS,
            self.gs_base,
            u64::from(self.mxcsr),
            u64::from(self.x87_control),
        ];
        let x87 = self.x87.iter().flat_map(|[mantissa, top]| [*mantissa, top & 0xffff]);
        self.general
            .iter()
            .chain(self.vectors.as_flattened())
            .copied()
            .chain(x87)
            .chain(rest)
    }

    /// The first register in which `found` differs.
    ///
    /// # Errors
    /// [`Changed`] names it.
    pub(crate) fn compare(&self, found: &Image) -> Result<(), Changed> {
        let pairs = (0..).zip(self.words().zip(found.words()));
        match pairs.into_iter().find(|(_, (expected, found))| expected != found) {
            Some((register, (expected, found))) => Err(Changed {
                register,
                expected,
                found,
            }),
            None => Ok(()),
        }
    }
}

/// Holds `want` in the registers for `beats` beats of `counter` (at least one) and returns what they held at the end.
#[must_use]
pub(crate) fn hold(want: &Image, features: Features, counter: &AtomicU64, beats: u64) -> Image {
    let mut block = Block {
        want: *want,
        got: Image {
            general: [0; GENERAL],
            vectors: [[0; 4]; VECTORS],
            x87: [[0; 2]; X87],
            flags: 0,
            ..*want
        },
        beats: counter,
        rounds: beats.max(1),
        ymm: u64::from(features.ymm),
        gs: u64::from(features.gs),
    };
    // SAFETY: the function keeps the callee-saved registers, MXCSR, the x87 control word, GS.base and DF as the ABI
    // wants, uses AVX and WRGSBASE only where `features` found them, and reads and writes `block` and `counter` alone.
    unsafe { lab_guest_hold(&raw mut block) };
    block.got
}

unsafe extern "sysv64" {
    fn lab_guest_hold(block: *mut Block);
}

core::arch::global_asm!(
    r#"
    .pushsection .text.lab_guest_hold, "ax", @progbits
    .globl lab_guest_hold
    .globl lab_guest_held_begin
    .globl lab_guest_held_end
    .p2align 6
lab_guest_hold:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 24
    stmxcsr [rsp]
    fnstcw [rsp + 4]
    cmp qword ptr [rdi + {gs}], 0
    je 2f
    rdgsbase rax
    mov [rsp + 8], rax
    mov rax, [rdi + {want} + {gs_base}]
    wrgsbase rax
2:
    cmp qword ptr [rdi + {ymm}], 0
    je 3f
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups ymm\i, [rdi + {want} + {vectors} + 32 * \i]
    .endr
    jmp 4f
3:
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups xmm\i, [rdi + {want} + {vectors} + 32 * \i]
    .endr
4:
    fninit
    fldcw [rdi + {want} + {x87_control}]
    .irp i, 7, 6, 5, 4, 3, 2, 1, 0
    fld tbyte ptr [rdi + {want} + {x87} + 16 * \i]
    .endr
    ldmxcsr [rdi + {want} + {mxcsr}]
    mov rsi, [rdi + {beats}]
    mov rax, [rdi + {want}]
    mov rbx, [rdi + {want} + 8]
    mov rdx, [rdi + {want} + 16]
    mov rbp, [rdi + {want} + 24]
    .irp i, 8, 9, 10, 11, 12, 13, 14, 15
    mov r\i, [rdi + {want} + 32 + 8 * (\i - 8)]
    .endr
    std
    stc
    // INC and DEC leave CF alone, so the flags are held as well.
lab_guest_held_begin:
5:
    mov ecx, {turns}
6:
    dec ecx
    jnz 6b
    lock inc qword ptr [rsi]
    dec qword ptr [rdi + {rounds}]
    jnz 5b
lab_guest_held_end:
    pushfq
    pop qword ptr [rdi + {got} + {flags}]
    cld
    mov [rdi + {got}], rax
    mov [rdi + {got} + 8], rbx
    mov [rdi + {got} + 16], rdx
    mov [rdi + {got} + 24], rbp
    .irp i, 8, 9, 10, 11, 12, 13, 14, 15
    mov [rdi + {got} + 32 + 8 * (\i - 8)], r\i
    .endr
    stmxcsr [rdi + {got} + {mxcsr}]
    fnstcw [rdi + {got} + {x87_control}]
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    fstp tbyte ptr [rdi + {got} + {x87} + 16 * \i]
    .endr
    cmp qword ptr [rdi + {ymm}], 0
    je 7f
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups [rdi + {got} + {vectors} + 32 * \i], ymm\i
    .endr
    vzeroupper
    jmp 8f
7:
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups [rdi + {got} + {vectors} + 32 * \i], xmm\i
    .endr
8:
    cmp qword ptr [rdi + {gs}], 0
    je 9f
    rdgsbase rax
    mov [rdi + {got} + {gs_base}], rax
    mov rax, [rsp + 8]
    wrgsbase rax
9:
    fninit
    fldcw [rsp + 4]
    ldmxcsr [rsp]
    add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    .popsection
    "#,
    want = const offset_of!(Block, want),
    got = const offset_of!(Block, got),
    beats = const offset_of!(Block, beats),
    rounds = const offset_of!(Block, rounds),
    ymm = const offset_of!(Block, ymm),
    gs = const offset_of!(Block, gs),
    vectors = const offset_of!(Image, vectors),
    x87 = const offset_of!(Image, x87),
    flags = const offset_of!(Image, flags),
    gs_base = const offset_of!(Image, gs_base),
    mxcsr = const offset_of!(Image, mxcsr),
    x87_control = const offset_of!(Image, x87_control),
    turns = const TURNS,
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const ALL: Features = Features { ymm: true, gs: true };

    #[test]
    #[cfg_attr(miri, ignore = "runs assembly")]
    fn registers_hold_and_beats_are_counted() {
        let features = Features::detect();
        for seed in 0..50 {
            let (want, counter) = (Image::draw(seed, features), AtomicU64::new(0));
            assert_eq!(want.compare(&hold(&want, features, &counter, 20)), Ok(()));
            assert_eq!(counter.load(Ordering::Relaxed), 20);
        }
        let base = Features { ymm: false, gs: false };
        let want = Image::draw(1, base);
        assert_eq!(want.compare(&hold(&want, base, &AtomicU64::new(0), 0)), Ok(()));
    }

    #[test]
    fn every_register_is_compared() {
        let want = Image::draw(1, ALL);
        let changes: [fn(&mut Image); 8] = [
            |i| i.general[0] ^= 1,
            |i| i.general[11] ^= 1 << 63,
            |i| i.vectors[0][0] ^= 1,
            |i| i.vectors[15][3] ^= 1,
            |i| i.x87[7][1] ^= 1,
            |i| i.flags ^= 1 << 10,
            |i| i.gs_base ^= 1,
            |i| i.mxcsr ^= 1,
        ];
        let numbers = changes.map(|change| {
            let mut got = want;
            change(&mut got);
            want.compare(&got).expect_err("one register differs").register
        });
        assert_eq!(numbers, [0, 11, 12, 75, 91, 92, 93, 94]);
        let got = Image {
            x87_control: 0x37f,
            ..want
        };
        let changed = Changed {
            register: 95,
            expected: 0xa7f,
            found: 0x37f,
        };
        assert_eq!(want.compare(&got), Err(changed));
    }

    #[test]
    fn flags_that_are_not_held_do_not_matter() {
        let want = Image::draw(1, ALL);
        assert_eq!(
            want.compare(&Image {
                flags: want.flags | 0x246,
                ..want
            }),
            Ok(())
        );
    }

    #[test]
    fn images_of_two_seeds_differ_in_every_drawn_register() {
        let (a, b) = (Image::draw(1, ALL), Image::draw(2, ALL));
        assert!(a.general.iter().zip(&b.general).all(|(a, b)| a != b));
        assert!(
            a.vectors
                .as_flattened()
                .iter()
                .zip(b.vectors.as_flattened())
                .all(|(a, b)| a != b)
        );
    }

    static STRUCK: AtomicBool = AtomicBool::new(false);
    static VICTIM: AtomicU64 = AtomicU64::new(0);

    unsafe extern "C" {
        static lab_guest_held_begin: u8;
        static lab_guest_held_end: u8;
    }

    /// Plays a kernel or monitor that fails to restore a register.
    extern "C" fn corrupt(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a ucontext_t to a handler installed with SA_SIGINFO; the symbols' addresses are
        // only taken.
        unsafe {
            let context = &mut *context.cast::<libc::ucontext_t>();
            let registers = &mut context.uc_mcontext.gregs;
            let rip = registers[libc::REG_RIP as usize] as u64;
            if !(&raw const lab_guest_held_begin as u64..&raw const lab_guest_held_end as u64).contains(&rip) {
                return;
            }
            match VICTIM.load(Ordering::Relaxed) {
                0 => registers[libc::REG_R12 as usize] ^= 1,
                1 => (*context.uc_mcontext.fpregs)._xmm[5].element[1] ^= 1,
                _ => (*context.uc_mcontext.fpregs)._st[2].significand[0] ^= 1,
            }
        }
        STRUCK.store(true, Ordering::Relaxed);
    }

    #[test]
    #[cfg_attr(miri, ignore = "runs assembly")]
    fn a_register_changed_behind_the_back_is_seen() {
        let features = Features::detect();
        // SAFETY: the handler only touches the interrupted context and atomics; the timer is stopped again below.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = corrupt as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            assert_eq!(
                libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()),
                0
            );
        }
        // SAFETY: no arguments.
        let me = unsafe { libc::pthread_self() } as usize;
        for (victim, registers) in [(0, 8..9), (1, 12 + 20..12 + 24), (2, 76 + 4..76 + 6)] {
            VICTIM.store(victim, Ordering::Relaxed);
            STRUCK.store(false, Ordering::Relaxed);
            let done = AtomicBool::new(false);
            let seen = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        // SAFETY: the thread `me` waits for this scope to end, so it exists.
                        unsafe { libc::pthread_kill(me as libc::pthread_t, libc::SIGUSR1) };
                    }
                });
                let seen = (0..1000).find_map(|seed| {
                    let want = Image::draw(seed, features);
                    want.compare(&hold(&want, features, &AtomicU64::new(0), 1000)).err()
                });
                done.store(true, Ordering::Relaxed);
                seen
            });
            assert!(STRUCK.load(Ordering::Relaxed));
            let seen = seen.expect("the handler changed a register");
            assert!(registers.contains(&seen.register), "{seen:?}");
        }
    }
}
