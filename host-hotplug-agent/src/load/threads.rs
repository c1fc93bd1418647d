//! How many threads the successor's kernel will allow.
//!
//! Linux derives `threads-max` from its RAM less all that memblock holds reserved (kernel/fork.c, `set_max_threads`),
//! and it reserves Soft Reserved ranges too, which are no RAM (arch/x86/kernel/e820.c, `e820__memblock_setup`). So a
//! successor with little more RAM than pool and image together comes out at 20 threads and dies in early boot. With
//! less RAM than that the difference wraps around, and Linux takes its maximum.

use partitioner::BootSize;

use crate::error::Refusal;

/// A thread may take an eighth of this part of RAM: its stack is 16 KiB.
const BYTES_PER_THREAD: u64 = 8 * (16 << 10);
/// Threads that a host needs: those of the kernel on a few CPUs, the agent, QEMU.
const NEEDED: u64 = 256;
/// What the kernel reserves for itself early, beside page structures of 64 bytes for 4 KiB.
const OWN: u64 = 4 << 20;

/// Checks that a successor with `ram` bytes beside a pool of `pool` bytes can have enough threads.
///
/// # Errors
/// [`Refusal::FewThreads`].
pub fn check(ram: u64, pool: u64, image: BootSize) -> Result<(), Refusal> {
    let counted = pool + image.kernel_init + image.initramfs;
    let at_least = counted + ram / 64 + OWN + NEEDED * BYTES_PER_THREAD;
    if (counted..at_least).contains(&ram) {
        return Err(Refusal::FewThreads {
            ram: ram >> 20,
            at_least: at_least.div_ceil(1 << 20),
            less_than: counted >> 20,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_little_more_ram_than_the_pool_is_refused() {
        let image = BootSize {
            kernel_init: 50 << 20,
            kernel_align: 2 << 20,
            initramfs: 74 << 20,
            tables: 0,
        };
        let check = |ram: u64, pool: u64| check(ram << 20, pool << 20, image);
        // Died in early boot with 20 threads, and boots.
        assert!(check(512, 382).is_err());
        assert!(check(512, 336).is_ok());
        assert!(check(8192, 65536).is_ok(), "it wraps");
        let words = check(512, 382).unwrap_err().to_string();
        assert!(
            words.contains("at least 550 MiB") && words.contains("less than 506 MiB"),
            "{words}"
        );
    }
}
