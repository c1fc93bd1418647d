/* SPDX-License-Identifier: GPL-2.0 */
/*
 * locum.ko, inside. main.c tells how the files hang together.
 */
#ifndef LOCUM_H
#define LOCUM_H

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include "locum_abi.h"
#include "locum_uapi.h"

/**
 * struct locum_layout - how this L0 lays out its arrays, which may be of another release
 * @hosts: offset in the status of the first struct locum_host_status
 * @host_size: bytes from one to the next
 * @cpus: offset in the status of the first struct locum_cpu_status
 * @cpu_size: bytes from one to the next
 * @cpu_capacity: how many there are, in use or not
 * @channel_count: number of channels
 * @ring_size: bytes of a struct locum_channel_ring with its data
 *
 * Structures are at least as long as in the first release. What a later release has added is there only if its bytes are.
 */
struct locum_layout {
	u32 hosts;
	u32 host_size;
	u32 cpus;
	u32 cpu_size;
	u32 cpu_capacity;
	u32 channel_count;
	u32 ring_size;
};

/**
 * struct locum - what was found at load time; constant afterwards but for the state behind the pointers
 * @header: copy of L0's header; what L0 does not have is 0
 * @header_phys: where it is
 * @layout: sizes and offsets out of the header
 * @status: L0's status, read-only by agreement; changes under our eyes, so read it with READ_ONCE(). Its arrays are read
 *	    by locum_host() and locum_cpu() only
 * @channels: the first ring
 * @slot: of this host
 * @lock: serializes everything that changes modes, owners or memory; may be held for seconds
 */
struct locum {
	struct locum_header header;
	u64 header_phys;
	struct locum_layout layout;
	const struct locum_status *status;
	void *channels;
	enum locum_slot slot;
	struct mutex lock;
};

extern struct locum locum;

static inline enum locum_slot locum_other_slot(void)
{
	return locum.slot == LOCUM_SLOT_EVEN ? LOCUM_SLOT_ODD : LOCUM_SLOT_EVEN;
}

static inline const struct locum_slot_info *locum_slot_info(enum locum_slot slot)
{
	return &locum.header.slots[slot];
}

/* discover.c */
int locum_discover(void);
void locum_forget(void);
void *locum_shared(u64 phys, u64 size);

/* status.c */
const struct locum_host_status *locum_host(enum locum_slot slot);
const struct locum_cpu_status *locum_cpu(u32 index);
u32 locum_cpu_count(void);
int locum_cpu_index(u32 apic_id);
u32 locum_apic_id(unsigned int cpu);
enum locum_cpu_mode locum_cpu_mode(unsigned int cpu);
bool locum_nested(void);
bool locum_any_nested(void);
bool locum_other_host_alive(void);

/* frames.c */
int locum_frames_init(void);
void locum_frames_exit(void);
struct locum_frame *locum_frame_of(unsigned int cpu);
void locum_frame_prepare(struct locum_frame *frame);
void locum_frame_fill_host(struct locum_frame *frame);

/* switch.c */
int locum_switch(struct locum_switch *request, enum locum_cpu_mode to);
int locum_cycle(struct locum_cycle *request);

/* vmcall.c; what locum_vmcall() returns if L0 is older than the operation */
#define LOCUM_UNKNOWN_OP 1
long locum_vmcall(u64 op, const struct locum_call *arguments);
int locum_errno(u32 l0_errno);

/* call.c */
int locum_call(struct locum_call *call, u64 op);
int locum_grant(struct locum_call *call);
int locum_start(struct locum_call *call);
int locum_abort(struct locum_call *call);

/**
 * enum locum_range_state - what becomes of memory that is not Linux's any more
 * @LOCUM_RANGE_REMOVED: this host's, readable and writable through /dev/locum
 * @LOCUM_RANGE_GRANTED: given to the other host
 */
enum locum_range_state {
	LOCUM_RANGE_REMOVED = 1,
	LOCUM_RANGE_GRANTED = 2,
};

/* ranges.c: under locum.lock */
int locum_ranges_set(u64 start, u64 size, u32 state);
void locum_ranges_replace(u32 from, u32 to);
bool locum_ranges_cover(u64 start, u64 size, u32 state);
bool locum_ranges_touch(u64 start, u64 size, u32 state);

/* pin.c */
void locum_pin(void);

/* memory.c */
int locum_memory_init(void);
void locum_memory_exit(void);
int locum_memory_remove(const struct locum_range *range);
int locum_memory_add(const struct locum_range *range);
int locum_memory_wipe(const struct locum_range *range);
bool locum_is_ram(u64 start, u64 size);

/* access.c */
ssize_t locum_read(struct file *file, char __user *buffer, size_t count, loff_t *position);
ssize_t locum_write(struct file *file, const char __user *buffer, size_t count, loff_t *position);
int locum_mmap(struct file *file, struct vm_area_struct *vma);

/* device.c */
int locum_device_init(void);
void locum_device_exit(void);

/* channel.c */
int locum_channels_init(void);
void locum_channels_exit(void);

/* cpuhp.c */
int locum_cpuhp_init(void);
void locum_cpuhp_exit(void);

/* power.c */
int locum_power_init(void);
void locum_power_exit(void);
int locum_power_policy(u32 policy);

/* sysfs.c */
int locum_sysfs_init(void);
void locum_sysfs_exit(void);
int locum_text(const struct locum_text *text);
int locum_listen(struct file *file);
void locum_listen_end(struct file *file);
int locum_next_request(struct file *file, struct locum_request *request);
int locum_busy(struct file *file, u32 busy);
__poll_t locum_poll(struct file *file, struct poll_table_struct *table);

#endif /* LOCUM_H */
