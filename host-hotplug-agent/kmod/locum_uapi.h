/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/**
 * DOC: locum.ko for user space
 *
 * ``/dev/locum`` (mode 0644) is the module's control device.
 *
 * *Files.* Opened read-only it allows LOCUM_IOC_INFO and reading L0's header, status, trace and log. Everything else
 * needs an open for reading and writing; others get -EPERM.
 *
 * *Offsets are physical addresses.* pread(2) works inside L0's header, status, trace and log regions (addresses from
 * LOCUM_IOC_INFO and the header), and, on a file opened for writing, inside all of the shared region, inside memory
 * removed with LOCUM_IOC_MEM_REMOVE and, while there is no other host, inside the machine's firmware tables (memory
 * that e820 calls Reserved, ACPI Tables or ACPI Non-volatile Storage, but for L0's private memory). pwrite(2) works inside removed memory and
 * the other slot's ``tables``. Elsewhere: -EFAULT. In memory that was granted to the other host, or in ``tables`` once
 * that host was started: -EBUSY. mmap(2) (PROT_READ, MAP_SHARED) works for the page-aligned parts of the shared region
 * that the file may read; -EACCES with PROT_WRITE. Reads and writes may be short: go on at the next offset.
 *
 * *Structures* have no padding and are copied back to the caller on errors too, so that fields marked "out" are valid
 * whenever the call returned 0 or an error other than -EFAULT, -ENOTTY, -EPERM. Fields called ``reserved`` must be 0
 * (-EINVAL). All addresses and sizes are bytes; CPU numbers are Linux's, APIC ids are called so.
 *
 * *L0's refusals* (enum errno of locum_abi.h) are copied raw to ``l0_errno`` (0: L0 was not asked or agreed) and
 * mapped: Argument -EINVAL, NotOwner -EACCES, NotParked -EBUSY, State -EBADFD, NoSpace -ENOSPC, NoVmx -EOPNOTSUPP,
 * EntryFailed -EIO, Timeout -ETIMEDOUT, Frame -EBADMSG, any other -EPROTO.
 *
 * ioctls are serialized by one mutex; a waiting caller can be killed (-ERESTARTSYS/-EINTR).
 */
#ifndef LOCUM_UAPI_H
#define LOCUM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/** Revision of this file, in &struct locum_info. */
#define LOCUM_UAPI_REVISION 1

#define LOCUM_IOC 'L'

/** Value of &struct locum_switch.cpu that means every online CPU. */
#define LOCUM_ALL_CPUS (-1)

/* ------------------------------------------------------------------------------------------------ information --- */

/** struct locum_info - what does not change while the module is loaded, 96 bytes. All out. */
struct locum_info {
	__u32 uapi_revision;	/* LOCUM_UAPI_REVISION */
	__u32 abi_revision;	/* REVISION of locum_abi.h */
	__u32 slot;		/* of this host: 0 or 1 */
	__u32 cpu_count;	/* of the machine */
	__u64 header;		/* physical address of L0's header */
	__u64 shared;		/* physical address of the shared region */
	__u64 shared_size;	/* bytes */
	__u64 memory_block;	/* bytes of a Linux memory block: granularity of LOCUM_IOC_MEM_REMOVE and _ADD */
	__u64 tsc_khz;		/* this kernel's exact value, for the successor's tsc_early_khz= */
	__u64 reserved[5];	/* 0 */
};

/** 0x80604c01. Never fails on an open file. Allowed on files opened read-only. */
#define LOCUM_IOC_INFO _IOR(LOCUM_IOC, 0x01, struct locum_info)

/* -------------------------------------------------------------------------------------------- native and nested --- */

/** struct locum_switch - enter or leave nested, 40 bytes. */
struct locum_switch {
	__s32 cpu;		/* in: Linux CPU number, or LOCUM_ALL_CPUS */
	__u32 flags;		/* in: 0 */
	__u32 done;		/* out: CPUs that are now in the asked-for mode (the others were put back) */
	__u32 l0_errno;		/* out: of the first CPU that failed */
	__u32 failed_apic_id;	/* out: of that CPU, 0xffffffff if none failed */
	__u32 reserved;		/* in: 0 */
	__u64 detail;		/* out: L0's detail of the failure (VM-instruction error or exit reason) */
	__u64 ticks;		/* out: TSC ticks that the whole call took */
};

/**
 * 0xc0284c10. The CPU(s) become nested. CPUs that are nested already are left so and count as done. If one of several
 * fails, those that this call entered leave again before it returns.
 * Errors: -ENODEV (no such CPU or offline), -EINVAL, those of L0.
 */
#define LOCUM_IOC_ENTER _IOWR(LOCUM_IOC, 0x10, struct locum_switch)

/** 0xc0284c11. The CPU(s) become native. As LOCUM_IOC_ENTER, the other way round. */
#define LOCUM_IOC_LEAVE _IOWR(LOCUM_IOC, 0x11, struct locum_switch)

/** struct locum_cycle - enter and leave many times (a test), 64 bytes. */
struct locum_cycle {
	__s32 cpu;		/* in: Linux CPU number, or LOCUM_ALL_CPUS */
	__u32 count;		/* in: times, 1 to 1000000 */
	__u32 pause_us;		/* in: microseconds, at most 1000000, to stay nested and then native in each cycle */
	__u32 done;		/* out: whole cycles */
	__u32 l0_errno;		/* out */
	__u32 failed_apic_id;	/* out: 0xffffffff if none failed */
	__u64 detail;		/* out */
	__u64 enter_ticks;	/* out: sum over cycles and CPUs of ticks spent in entering */
	__u64 leave_ticks;	/* out: same, in leaving */
	__u64 enter_max;	/* out: longest single enter in ticks */
	__u64 leave_max;	/* out: longest single leave in ticks */
};

/**
 * 0xc0404c12. From native: enter and leave ``count`` times. Stops at the first failure or signal (-EINTR), native.
 * Errors: -EALREADY (a CPU is nested already), those of LOCUM_IOC_ENTER.
 */
#define LOCUM_IOC_CYCLE _IOWR(LOCUM_IOC, 0x12, struct locum_cycle)

/* ------------------------------------------------------------------------------------------------- calls of L0 --- */

/** struct locum_call - a call of L0, 40 bytes. */
struct locum_call {
	__u64 a;		/* in */
	__u64 b;		/* in */
	__u64 c;		/* in */
	__u32 l0_errno;		/* out */
	__u32 reserved;		/* in: 0 */
	__u64 ticks;		/* out: TSC ticks that the call took */
};

/*
 * All of them run on the CPU of the caller and fail with -ENOTCONN while that CPU, or any other online CPU of this
 * host, is native.
 */

/** 0xc0284c20. L0 answers. a, b, c: 0. */
#define LOCUM_IOC_PING _IOWR(LOCUM_IOC, 0x20, struct locum_call)

/**
 * 0xc0284c21. Give a resource to the other slot. a: enum resource_kind, b, c: as in ``hypercall.rs`` (CPU: APIC id;
 * memory: first byte, bytes; PCI: bus << 8 | device << 3 | function; ports: first, number; pin: GSI).
 * The module refuses memory that is System RAM of this kernel, and CPUs that are online here: -EBUSY.
 */
#define LOCUM_IOC_GRANT _IOWR(LOCUM_IOC, 0x21, struct locum_call)

/** 0xc0284c22. Start the other host. a: physical entry address, b: of the zero page, c: APIC id of the boot CPU. */
#define LOCUM_IOC_START _IOWR(LOCUM_IOC, 0x22, struct locum_call)

/**
 * 0xc0284c23. Stop the other host and take everything back. a, b, c: 0. Memory granted before is "removed memory"
 * again: wipe it, then add it.
 */
#define LOCUM_IOC_ABORT _IOWR(LOCUM_IOC, 0x23, struct locum_call)

/* ----------------------------------------------------------------------------------------------------- memory --- */

/** enum locum_range_state - what the module knows about a range. */
enum locum_range_state {
	LOCUM_RANGE_REMOVED = 1,	/* taken from Linux, this host's, readable and writable through /dev/locum */
	LOCUM_RANGE_GRANTED = 2,	/* given to the other host */
};

/** struct locum_range - a range of physical memory, 32 bytes. */
struct locum_range {
	__u64 start;		/* in: physical address, a multiple of memory_block (WIPE: of 4096) */
	__u64 size;		/* in: bytes, likewise, not 0 */
	__s32 nid;		/* in: NUMA node for MEM_ADD, -1: that of the address; others: 0 */
	__u32 state;		/* out (MEM_LIST): enum locum_range_state; in: 0 */
	__u64 reserved;		/* in: 0 */
};

/**
 * 0xc0204c30. Offline and remove memory blocks from Linux. All of the range or nothing if it lies within one "System
 * RAM" line of /proc/iomem; else line by line, and LOCUM_IOC_MEM_LIST tells how far it came. The module remembers what
 * it removed. Errors: -EINVAL (not multiples of memory_block, or holes in the blocks), -EBUSY (a page could not be
 * migrated, or the range is not all System RAM, or the kernel's image or crash kernel lies above the range in the same
 * line of /proc/iomem, which Linux can't split then: boot with nokaslr), -ENOSPC (the module's table is full), -EINTR.
 */
#define LOCUM_IOC_MEM_REMOVE _IOWR(LOCUM_IOC, 0x30, struct locum_range)

/**
 * 0xc0204c31. Add memory to Linux as "System RAM (locum)". Each block is then offline, or online in the movable zone
 * where the kernel's policy (auto_online_blocks) chose that; it never goes to a kernel zone, which the module refuses
 * while it adds. So afterwards: read each block's state in sysfs, and write online_movable where it says offline.
 * The range must be memory removed before, or, while no other host is being prepared or runs, memory which this kernel
 * never had (a retired host's). Add block by block where e820 has several entries side by side: a range may not
 * straddle two of them (-EBUSY).
 * Errors: -EEXIST (part is System RAM already), -EBUSY (granted; or owned by the other host; or a resource in its way),
 * -EINVAL (alignment, or no such node), -EACCES (L0's memory or the pool).
 */
#define LOCUM_IOC_MEM_ADD _IOWR(LOCUM_IOC, 0x31, struct locum_range)

/**
 * 0xc0204c32. Overwrite memory with zeroes. Allowed where LOCUM_IOC_MEM_ADD would be allowed. Takes about 10 ms for
 * 128 MiB on a server. Errors: as MEM_ADD, -EINTR (call again).
 */
#define LOCUM_IOC_MEM_WIPE _IOWR(LOCUM_IOC, 0x32, struct locum_range)

/** Ranges that the module's table can hold. */
#define LOCUM_MAX_RANGES 64

/** struct locum_ranges - the module's table of ranges, 2064 bytes. All out. Adjacent ranges of one state are merged. */
struct locum_ranges {
	__u32 count;
	__u32 reserved[3];
	struct locum_range ranges[LOCUM_MAX_RANGES];
};

/** 0x88104c33. Never fails. */
#define LOCUM_IOC_MEM_LIST _IOR(LOCUM_IOC, 0x33, struct locum_ranges)

/* ----------------------------------------------------------------------------------------- power-off and panic --- */

/** enum locum_power_policy - what power-off does while this host is nested. */
enum locum_power_policy {
	LOCUM_POWER_EXIT = 0,	/* tell L0 that this host ended (reason PoweredOff); the other host goes on */
	LOCUM_POWER_RETIRE = 1,	/* give everything to the other host, which must be running */
};

/**
 * 0x40044c40. Takes an enum locum_power_policy by pointer; the default is EXIT. It stays until it is set again (a
 * shutdown by systemd ends the daemon first). A native host always powers the machine off. Errors: -EINVAL.
 */
#define LOCUM_IOC_POWER_POLICY _IOW(LOCUM_IOC, 0x40, __u32)

/* ---------------------------------------------------------------------------------------- /sys/kernel/locum/ --- */

/** enum locum_text_kind - files whose content the daemon sets. */
enum locum_text_kind {
	LOCUM_TEXT_STATE = 0,		/* ``state``, at first "idle" */
	LOCUM_TEXT_PROGRESS = 1,	/* ``progress``, at first empty */
	LOCUM_TEXT_LAST_ERROR = 2,	/* ``last_error``, at first empty */
};

/** Bytes of a text at most, without terminator. */
#define LOCUM_TEXT_MAX 1008

/** struct locum_text - new content of a file in sysfs, 1024 bytes. */
struct locum_text {
	__u32 kind;		/* in: enum locum_text_kind */
	__u32 len;		/* in: bytes of text, at most LOCUM_TEXT_MAX, no newline at the end (the file shows one) */
	__u64 reserved;		/* in: 0 */
	__u8 text[LOCUM_TEXT_MAX];	/* in: UTF-8 */
};

/** 0x44004c50. Sets the text and wakes those who poll(2) the file. Errors: -EINVAL. */
#define LOCUM_IOC_TEXT _IOW(LOCUM_IOC, 0x50, struct locum_text)

/**
 * 0x4c51. This file becomes the daemon's: names written to /sys/kernel/locum/refresh are queued for it, and poll(2)
 * reports POLLIN while one waits. Ends with close(2). Errors: -EBUSY (another file is the daemon's).
 */
#define LOCUM_IOC_LISTEN _IO(LOCUM_IOC, 0x51)

/** struct locum_request - a name written to ``refresh``, 64 bytes. */
struct locum_request {
	__u8 name[64];		/* out: successor's name, terminated by zeroes, without newline, [A-Za-z0-9._-]+ */
};

/**
 * 0x80404c52. Takes the waiting name. The module is busy from the write until LOCUM_IOC_BUSY 0.
 * Errors: -EAGAIN (none waits), -EPERM (not the daemon's file).
 */
#define LOCUM_IOC_NEXT_REQUEST _IOR(LOCUM_IOC, 0x52, struct locum_request)

/**
 * 0x40044c53. 1: a refresh runs (one that did not come through sysfs, say): writes to ``refresh`` get -EBUSY. 0: none
 * runs. Takes a __u32 by pointer. Errors: -EPERM (not the daemon's file), -EINVAL.
 */
#define LOCUM_IOC_BUSY _IOW(LOCUM_IOC, 0x53, __u32)

/* -------------------------------------------------------------------------------------------------- channels --- */

/*
 * /dev/locum-chan0 to -chan3 (mode 0600): byte streams to the other host, both directions in one file; like a FIFO
 * opened on both ends. L0 empties them when it starts a host (LOCUM_IOC_START), so bytes written before are lost.
 *
 * read(2): blocks until there is at least a byte (O_NONBLOCK: -EAGAIN), may be short. 0: the ring is empty and the
 * writer on the other side closed or shut down; more may follow after it opens again, so agree with the other side
 * (on channel 0) before a channel is used for a second stream. write(2): blocks until all is written or a signal comes,
 * may be short with O_NONBLOCK. -EPIPE (no SIGPIPE): the reader on the other side closed. Both: -ENOTCONN if there is
 * no other host (neither being prepared nor running, and for read: nothing left in the ring).
 * poll(2): POLLIN, POLLOUT, POLLHUP (other host gone, or the end of its stream reached), POLLERR (its reader closed).
 * One file at a time may have a channel open for reading and one for writing: -EBUSY. Closing a file does what
 * LOCUM_CHAN_SHUTDOWN does; opening undoes it, and a reader that opens again drops what was left.
 */

/** Bits for LOCUM_CHAN_SHUTDOWN. */
enum locum_shutdown {
	LOCUM_SHUT_READ = 1,	/* want no more: the other side's writes get -EPIPE */
	LOCUM_SHUT_WRITE = 2,	/* write no more: the other side reads to the end, then 0 */
};

/** 0x40044c60, on a channel. Takes enum locum_shutdown bits by pointer. Errors: -EINVAL, -EPERM (direction not open). */
#define LOCUM_CHAN_SHUTDOWN _IOW(LOCUM_IOC, 0x60, __u32)

#endif /* LOCUM_UAPI_H */
