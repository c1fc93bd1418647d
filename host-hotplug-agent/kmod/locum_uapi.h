/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What `locum.ko` offers to programs: `/dev/locum`, its ioctls, and the channels.
 *
 * `/dev/locum` (mode 0600) is the module's control device.
 *
 * *Files.* Opened read-only it allows LOCUM_IOC_INFO and reading L0's header, status, trace and log. Everything else
 * needs an open for reading and writing; others get -EPERM.
 *
 * *Offsets are physical addresses.* pread(2) works inside L0's header, status, trace (kept records too) and log
 * (addresses from LOCUM_IOC_INFO and the header), and, on a file opened for writing, inside all of the shared region,
 * inside memory removed with LOCUM_IOC_MEM_REMOVE and, while there is no other host, inside the machine's firmware
 * tables (memory that e820 calls Reserved, ACPI Tables or ACPI Non-volatile Storage, but for L0's private memory).
 * pwrite(2) works inside removed memory and the other slot's `tables`. Elsewhere: -EFAULT. In memory that was granted
 * to the other host, or in `tables` while that host runs: -EBUSY. mmap(2) (PROT_READ, MAP_SHARED) works for the
 * page-aligned parts of the shared region that the file may read; -EACCES with PROT_WRITE, but for the pool's table.
 * Reads and writes may be short: go on at the next offset.
 *
 * *Structures* have no padding and are copied back to the caller on errors too, so that fields marked "out" are valid
 * whenever the call returned 0 or an error other than -EFAULT, -ENOTTY, -EPERM, -E2BIG. Fields called `reserved` must
 * be 0 (-EINVAL) unless marked "out". All addresses and sizes are bytes; CPU numbers are Linux's, APIC ids are called
 * so.
 *
 * *L0's refusals* (enum locum_errno) are copied raw to `l0_errno` (0: L0 was not asked, or agreed) and mapped: Argument
 * -EINVAL, NotOwner -EACCES, NotParked -EBUSY, State -EBADFD, NoSpace -ENOSPC, NoVmx -EOPNOTSUPP, EntryFailed -EIO,
 * Timeout -ETIMEDOUT, Frame -EBADMSG, any other -EPROTO. -EOPNOTSUPP with an `l0_errno` of 0: L0 is older than the
 * request.
 *
 * *Releases.* The module may be older or newer than the program. Structures grow at their end only; the ioctl's number
 * carries the size that the program knows. What is missing there counts as 0, and what the module does not know must be
 * 0 (-E2BIG) and comes back as 0. An ioctl that the module does not know: -ENOTTY. What else the module can do since
 * the first release is told in locum_info.features. Only if a field moves does LOCUM_UAPI_FAMILY change, and only
 * another family is a reason for a program to refuse the module as a whole. Numbers are never used again: 0x33 was an
 * ioctl before the first release.
 *
 * ioctls are serialized by one mutex; a waiting caller can be killed (-ERESTARTSYS/-EINTR).
 */
#ifndef LOCUM_UAPI_H
#define LOCUM_UAPI_H

/* Made by cbindgen from the crate locum-abi; do not edit. See its tests/c_header.rs. */

#include <linux/ioctl.h>
#include <linux/types.h>

/* Type of every ioctl of the module. */
#define LOCUM_IOC 'L'

/* -------------------------------------------------------------------------------------------------- Information --- */

/* Family of the layouts here: 1 as long as no field moves. A program refuses another one. */
#define LOCUM_UAPI_FAMILY 1

/*
 * All that locum_info.features of this release tells: nothing yet. A bit that a release adds has a constant of its own
 * and is never used again.
 */
#define LOCUM_UAPI_FEATURES 0

/* What does not change while the module is loaded. All out. */
struct locum_info {
	/* LOCUM_UAPI_FAMILY of the module. */
	__u32 family;
	/* LOCUM_FAMILY of L0. */
	__u32 l0_family;
	/* Slot of this host: 0 or 1, see enum locum_slot. */
	__u32 slot;
	/* CPUs of the machine. */
	__u32 cpu_count;
	/* Physical address of L0's header. */
	__u64 header;
	/* Physical address of the shared region. */
	__u64 shared;
	/* Bytes of the shared region. */
	__u64 shared_size;
	/* Bytes of a Linux memory block: granularity of LOCUM_IOC_MEM_REMOVE and LOCUM_IOC_MEM_ADD. */
	__u64 memory_block;
	/* This kernel's exact rate of the TSC in kHz, for the successor's `tsc_early_khz=`. */
	__u64 tsc_khz;
	/* What the module can do beyond the first release, of which it is 0: bits of LOCUM_UAPI_FEATURES. */
	__u64 features;
	/* 0. */
	__u64 reserved[4];
};

/* Never fails on an open file. Allowed on files opened read-only. */
#define LOCUM_IOC_INFO _IOR(LOCUM_IOC, 0x01, struct locum_info)

/* -------------------------------------------------------------------------------------------- Native and nested --- */

/* locum_switch.cpu and locum_cycle.cpu that mean every online CPU. */
#define LOCUM_ALL_CPUS (-1)

/* locum_switch.failed_apic_id and locum_cycle.failed_apic_id if no CPU failed. */
#define LOCUM_NO_CPU 4294967295

/*
 * locum_switch.flags of LOCUM_IOC_ENTER: nothing changes. The module only tells whether a CPU uses what L0 does not
 * carry over; L0 is not asked. A module that does not know the flag refuses it: -EINVAL.
 */
#define LOCUM_SWITCH_CHECK 1

/* Enter or leave nested. */
struct locum_switch {
	/* In: Linux's CPU number, or LOCUM_ALL_CPUS. */
	__s32 cpu;
	/* In: 0, or LOCUM_SWITCH_CHECK. */
	__u32 flags;
	/*
	 * Out: CPUs that are now in the asked-for mode (the others were put back), or would be as far as was checked.
	 */
	__u32 done;
	/* Out: of the first CPU that failed. */
	__u32 l0_errno;
	/* Out: APIC id of that CPU, LOCUM_NO_CPU if none failed. */
	__u32 failed_apic_id;
	/* In: 0. */
	__u32 reserved;
	/*
	 * Out: bits of CR4 of that CPU that L0 does not carry over, for which it did not enter. CET is among them only
	 * if the kernel has a shadow stack of its own.
	 */
	__u64 unknown_cr4;
	/* Out: TSC ticks that the whole call took. */
	__u64 ticks;
};

/* Enter and leave many times (a test). */
struct locum_cycle {
	/* In: Linux's CPU number, or LOCUM_ALL_CPUS. */
	__s32 cpu;
	/* In: times, 1 to 1000000. */
	__u32 count;
	/* In: microseconds, at most 1000000, to stay nested and then native in each cycle. */
	__u32 pause_us;
	/* Out: whole cycles. */
	__u32 done;
	/* Out: of the first CPU that failed. */
	__u32 l0_errno;
	/* Out: APIC id of that CPU, LOCUM_NO_CPU if none failed. */
	__u32 failed_apic_id;
	/* Out: 0. */
	__u64 reserved;
	/* Out: sum over cycles and CPUs of the TSC ticks spent in entering. */
	__u64 enter_ticks;
	/* Out: likewise, in leaving. */
	__u64 leave_ticks;
	/* Out: longest single enter in ticks. */
	__u64 enter_max;
	/* Out: longest single leave in ticks. */
	__u64 leave_max;
};

/*
 * The CPU(s) become nested. CPUs that are nested already are left so and count as done. If one of several fails, those
 * that this call entered leave again before it returns.
 * Errors: -ENODEV (no such CPU or offline), -EINVAL, -EOPNOTSUPP (also: a feature of the CPU is in use that L0 does not
 * know: see locum_switch.unknown_cr4), those of L0.
 */
#define LOCUM_IOC_ENTER _IOWR(LOCUM_IOC, 0x10, struct locum_switch)

/* The CPU(s) become native. As LOCUM_IOC_ENTER, the other way round. */
#define LOCUM_IOC_LEAVE _IOWR(LOCUM_IOC, 0x11, struct locum_switch)

/*
 * From native: enter and leave locum_cycle.count times. Stops at the first failure or signal (-EINTR), native.
 * Errors: -EALREADY (a CPU is nested already), those of LOCUM_IOC_ENTER.
 */
#define LOCUM_IOC_CYCLE _IOWR(LOCUM_IOC, 0x12, struct locum_cycle)

/* -------------------------------------------------------------------------------------------------- Calls of L0 --- */

/*
 * All of them run on the CPU of the caller and fail with -ENOTCONN while that CPU, or any other online CPU of this
 * host, is native. -EOPNOTSUPP with an `l0_errno` of 0: L0 is older than the operation.
 */

/* A call of L0. */
struct locum_call {
	/* In: what the ioctl says. */
	__u64 a;
	/* In: what the ioctl says. */
	__u64 b;
	/* In: what the ioctl says. */
	__u64 c;
	/* Out: why L0 refused, 0 if it did not. */
	__u32 l0_errno;
	/* In: 0. */
	__u32 reserved;
	/* Out: TSC ticks that the call took. */
	__u64 ticks;
};

/* L0 answers. `a`, `b`, `c`: 0. */
#define LOCUM_IOC_PING _IOWR(LOCUM_IOC, 0x20, struct locum_call)

/*
 * Give a resource to the other slot. `a`: enum locum_resource, which says what `b` and `c` are. The module refuses
 * memory that is System RAM of this kernel, and CPUs that are online here: -EBUSY.
 */
#define LOCUM_IOC_GRANT _IOWR(LOCUM_IOC, 0x21, struct locum_call)

/* Start the other host. `a`: physical entry address, `b`: of the zero page, `c`: APIC id of the boot CPU. */
#define LOCUM_IOC_START _IOWR(LOCUM_IOC, 0x22, struct locum_call)

/*
 * Stop the other host and take everything back. `a`, `b`, `c`: 0. Memory granted before is "removed memory" again: wipe
 * it, then add it.
 */
#define LOCUM_IOC_ABORT _IOWR(LOCUM_IOC, 0x23, struct locum_call)

/* What becomes of the machine when this host, which reigns, cannot go on. `a`: an enum locum_will; `b`, `c`: 0. */
#define LOCUM_IOC_WILL _IOWR(LOCUM_IOC, 0x24, struct locum_call)

/* ------------------------------------------------------------------------------------------------------- Memory --- */

/* A range of physical memory. */
struct locum_range {
	/* In: physical address, a multiple of locum_info.memory_block (LOCUM_IOC_MEM_WIPE: of 4096). */
	__u64 start;
	/* In: bytes, likewise, not 0. */
	__u64 size;
	/* In: NUMA node for LOCUM_IOC_MEM_ADD, -1: that of the address; others: 0. */
	__s32 nid;
	/* In: 0. */
	__u32 reserved;
	/* In: 0. */
	__u64 reserved2;
};

/*
 * Offline and remove memory blocks from Linux. All of the range or nothing if it lies within one "System RAM" line of
 * /proc/iomem; else line by line, and after an error it may be done in part: pread(2) works where it is. The module
 * remembers what it removed, and cannot be unloaded meanwhile. Errors: -EINVAL (not multiples of
 * locum_info.memory_block, or holes in the blocks), -EBUSY (a page could not be migrated, or the range is not all
 * System RAM, or the kernel's image or crash kernel lies above the range in the same line of /proc/iomem, which Linux
 * can't split then; or an end of it lies within a page of 1 GiB of the direct map), -ENOSPC (the module's table is
 * full), -EINTR.
 */
#define LOCUM_IOC_MEM_REMOVE _IOWR(LOCUM_IOC, 0x30, struct locum_range)

/*
 * Add memory to Linux as "System RAM (locum)". Each block is then offline, or online in the movable zone where the
 * kernel's policy (auto_online_blocks) chose that; it never goes to a kernel zone, which the module refuses while it
 * adds. So afterwards: read each block's state in sysfs, and write online_movable where it says offline. The range must
 * be memory removed before, or, while no other host is being prepared or runs, memory which this kernel never had (a
 * retired host's). Add block by block where e820 has several entries side by side: a range may not straddle two of them
 * (-EBUSY). Errors: -EEXIST (part is System RAM already), -EBUSY (granted; or owned by the other host; or a resource in
 * its way), -EINVAL (alignment, or no such node), -EACCES (L0's memory or the pool).
 */
#define LOCUM_IOC_MEM_ADD _IOWR(LOCUM_IOC, 0x31, struct locum_range)

/*
 * Overwrite memory with zeroes. Allowed where LOCUM_IOC_MEM_ADD would be allowed. Takes about 10 ms for 128 MiB on a
 * server. Errors: as LOCUM_IOC_MEM_ADD, -EINTR (call again).
 */
#define LOCUM_IOC_MEM_WIPE _IOWR(LOCUM_IOC, 0x32, struct locum_range)

/* ------------------------------------------------------------------------------------------ Power-off and panic --- */

/* What power-off does while this host is nested. */
enum locum_power_policy {
	/* Tell L0 that this host ended (LOCUM_STOP_REASON_POWERED_OFF); the other host goes on. */
	LOCUM_POWER_POLICY_EXIT = 0,
	/* Give everything to the other host, which must be running. */
	LOCUM_POWER_POLICY_RETIRE = 1,
};

/*
 * Takes an enum locum_power_policy by pointer, 32 bits; the default is LOCUM_POWER_POLICY_EXIT. It stays until it is
 * set again (a shutdown by systemd ends the daemon first). A native host always powers the machine off. Errors:
 * -EINVAL.
 */
#define LOCUM_IOC_POWER_POLICY _IOW(LOCUM_IOC, 0x40, __u32)

/* ------------------------------------------------------------------------------------------- /sys/kernel/locum/ --- */

/* Bytes of a text at most, without terminator. */
#define LOCUM_TEXT_MAX 1008

/* Files whose content the daemon sets. */
enum locum_text_kind {
	/* `state`, at first "idle". */
	LOCUM_TEXT_KIND_STATE = 0,
	/* `progress`, at first empty. */
	LOCUM_TEXT_KIND_PROGRESS = 1,
	/* `last_error`, at first empty. */
	LOCUM_TEXT_KIND_LAST_ERROR = 2,
};

/* New content of a file in sysfs. */
struct locum_text {
	/* In: an enum locum_text_kind. */
	__u32 kind;
	/* In: bytes of text, at most LOCUM_TEXT_MAX, no newline at the end (the file shows one). */
	__u32 len;
	/* In: 0. */
	__u64 reserved;
	/* In: UTF-8. */
	__u8 text[LOCUM_TEXT_MAX];
};

/* A name written to `refresh`. */
struct locum_request {
	/* Out: the successor's name, terminated by zeroes, without newline, `[A-Za-z0-9._-]+`. */
	__u8 name[64];
};

/* Sets the text and wakes those who poll(2) the file. Errors: -EINVAL. */
#define LOCUM_IOC_TEXT _IOW(LOCUM_IOC, 0x50, struct locum_text)

/*
 * This file becomes the daemon's: names written to /sys/kernel/locum/refresh are queued for it, and poll(2) reports
 * POLLIN while one waits. Ends with close(2). Errors: -EBUSY (another file is the daemon's).
 */
#define LOCUM_IOC_LISTEN _IO(LOCUM_IOC, 0x51)

/*
 * Takes the waiting name. The module is busy from the write until LOCUM_IOC_BUSY 0.
 * Errors: -EAGAIN (none waits), -EPERM (not the daemon's file).
 */
#define LOCUM_IOC_NEXT_REQUEST _IOR(LOCUM_IOC, 0x52, struct locum_request)

/*
 * 1: a refresh runs (one that did not come through sysfs, say): writes to `refresh` get -EBUSY. 0: none runs. Takes 32
 * bits by pointer. Errors: -EPERM (not the daemon's file), -EINVAL.
 */
#define LOCUM_IOC_BUSY _IOW(LOCUM_IOC, 0x53, __u32)

/* ----------------------------------------------------------------------------------------------------- Channels --- */

/*
 * /dev/locum-chan0 and on (mode 0600): byte streams to the other host, both directions in one file; like a FIFO opened
 * on both ends. L0 empties them when it starts a host (LOCUM_IOC_START), so bytes written before are lost.
 *
 * read(2): blocks until there is at least a byte (O_NONBLOCK: -EAGAIN), may be short. 0: the ring is empty and the
 * writer on the other side closed or shut down; more may follow after it opens again, so agree with the other side (on
 * channel 0) before a channel is used for a second stream. write(2): blocks until all is written or a signal comes, may
 * be short with O_NONBLOCK. -EPIPE (no SIGPIPE): the reader on the other side closed. Both: -ENOTCONN if there is no
 * other host (neither being prepared nor running, and for read: nothing left in the ring). poll(2): POLLIN, POLLOUT,
 * POLLHUP (other host gone, or the end of its stream reached), POLLERR (its reader closed). One file at a time may have
 * a channel open for reading and one for writing: -EBUSY. Closing a file does what LOCUM_CHAN_SHUTDOWN does; opening
 * undoes it, and a reader that opens again drops what was left.
 */

/* For LOCUM_CHAN_SHUTDOWN: want no more; the other side's writes get -EPIPE. */
#define LOCUM_SHUT_READ 1

/* For LOCUM_CHAN_SHUTDOWN: write no more; the other side reads to the end, then 0. */
#define LOCUM_SHUT_WRITE 2

/*
 * On a channel. Takes LOCUM_SHUT_READ, LOCUM_SHUT_WRITE or both by pointer, 32 bits. Errors: -EINVAL, -EPERM (direction
 * not open).
 */
#define LOCUM_CHAN_SHUTDOWN _IOW(LOCUM_IOC, 0x60, __u32)

#endif /* LOCUM_UAPI_H */
