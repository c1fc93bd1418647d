/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef LOCUM_ABI_H
#define LOCUM_ABI_H

/* Made by cbindgen from the crate locum-abi; do not edit. See its tests/c_header.rs. */

#ifndef __ASSEMBLY__

#include <linux/types.h>

#define LOCUM_ALIGNED(n) __attribute__((aligned(n)))

/* Signature of the ACPI table that leads to the header. */
#define LOCUM_ACPI_SIGNATURE "LOCM"
/* First word of struct locum_header. */
#define LOCUM_MAGIC 0x304c2d4d55434f4cULL
/* First word of struct locum_frame. */
#define LOCUM_FRAME_MAGIC 0x454d4152464d434cULL
/* Bytes of a page. */
#define LOCUM_PAGE_SIZE 4096

/* Number of channels. Channel 0 carries the agents' messages, the others guest state. */
#define LOCUM_CHANNEL_COUNT 4

/* Bytes of data in a ring, a power of two. */
#define LOCUM_RING_DATA (64 * 1024)

/* `flags`: the writer will write no more. */
#define LOCUM_FLAG_EOF 1

/* Index of a segment register in locum_frame.selectors, in the order of the VMCS encodings. */
#define LOCUM_SEL_ES 0

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_CS 1

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_SS 2

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_DS 3

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_FS 4

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_GS 5

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_LDTR 6

/* See LOCUM_SEL_ES. */
#define LOCUM_SEL_TR 7

/*
 * Family of all layouts in this crate but the module's interface: 1 as long as no field moves. Module and agent refuse
 * an L0 of another family.
 */
#define LOCUM_FAMILY 1

/*
 * All that locum_header.features of this release tells: nothing yet. A bit that a release adds has a constant of its
 * own and is never used again.
 */
#define LOCUM_FEATURES 0

/* Bytes of the header that every L0 has. */
#define LOCUM_HEADER_MIN 344

/* How many logical CPUs L0 manages at most. */
#define LOCUM_MAX_CPUS 256

/* Pieces that the pool has at most. */
#define LOCUM_POOL_PIECES 16

/* Ranges of blank memory at most. */
#define LOCUM_BLANK_RANGES 8

/* Upper half of RAX of every operation ("LOCM"), so that a stray VMCALL is not taken for one of ours. */
#define LOCUM_OP_MAGIC 5498687668034207744

/* Bytes of a struct locum_cpu_status in the first release. */
#define LOCUM_FIRST_CPU_STATUS_SIZE 704

/* CPUs in the status of the first release. */
#define LOCUM_FIRST_CPU_CAPACITY 64

/* Bytes of a struct locum_host_status in the first release. */
#define LOCUM_FIRST_HOST_STATUS_SIZE 40

/* Bytes of a struct locum_trace_record in the first release. */
#define LOCUM_FIRST_TRACE_RECORD_SIZE 32

/* Channels of the first release. */
#define LOCUM_FIRST_CHANNEL_COUNT 4

/* Bytes of a struct locum_channel_ring in the first release. */
#define LOCUM_FIRST_CHANNEL_RING_SIZE 69632

/* Offset of the first struct locum_host_status in the status of the first release. */
#define LOCUM_FIRST_STATUS_HOSTS 8

/* Offset of the first struct locum_cpu_status in the status of the first release. */
#define LOCUM_FIRST_STATUS_CPUS 128

/* Bytes of a struct locum_channel_ring before its data. */
#define LOCUM_CHANNEL_DATA 4096

/* No command; also what L0 leaves behind. */
#define LOCUM_MAILBOX_NOOP 0

/* Jump to `wakeup_vector`. */
#define LOCUM_MAILBOX_WAKEUP 1

/* Only clear the command: proves that the CPU is in the monitor's hands (mailbox version 1). */
#define LOCUM_MAILBOX_TEST 2

/* How many extents there are. */
#define LOCUM_POOL_EXTENTS 1024

/* Extents begin and end at multiples of this: Linux maps device-DAX memory in pages of 2 MiB. */
#define LOCUM_POOL_GRAIN (2 << 20)

/* A flag of struct locum_pool_extent: nobody asked for it. A guest that was started by hand was found there. */
#define LOCUM_POOL_SEEN 1

/* Bytes of a name, the zero at its end included. */
#define LOCUM_POOL_NAME 64

/* Number of hosts that can exist at a time. */
#define LOCUM_SLOTS 2

/* Number of basic exit reasons counted one by one; later ones share the last counter. */
#define LOCUM_EXIT_REASONS 80

/* locum_cpu_status.owner of a CPU that no host owns. */
#define LOCUM_NO_OWNER 4294967295

/* Records in the ring. */
#define LOCUM_TRACE_RECORDS 2044

/*
 * Records of each kind that are kept whatever the others do: as many as there may be CPUs, so that a round of all of
 * them is whole.
 */
#define LOCUM_KEPT_RECORDS 256

/* locum_kept_record.number of a record that is being written. */
#define LOCUM_BEING_WRITTEN 18446744073709551615ull

/* Bytes of text in the log ring. */
#define LOCUM_LOG_BYTES ((32 * 1024) - 64)

/*
 * One of the two places for a host: its generation modulo LOCUM_SLOTS. Each holds one host or none, and has a mailbox,
 * a reset vector, page tables, a table area and a console of its own (struct locum_slot_info).
 */
enum locum_slot {
	/* Hosts of generation 0, 2, 4... */
	LOCUM_SLOT_EVEN = 0,
	/* Hosts of generation 1, 3, 5... */
	LOCUM_SLOT_ODD = 1,
};

/* Where a CPU is. */
enum locum_cpu_mode {
	/* Not started by L0. */
	LOCUM_CPU_MODE_ABSENT = 0,
	/* In L0's parking loop. */
	LOCUM_CPU_MODE_PARKED = 1,
	/* A host runs on it in VMX root; L0 is dormant. */
	LOCUM_CPU_MODE_NATIVE = 2,
	/* A host runs on it in VMX non-root; L0 is in VMX root. */
	LOCUM_CPU_MODE_NESTED = 3,
};

/* State of the host in one slot. */
enum locum_host_state {
	/* No host. */
	LOCUM_HOST_STATE_ABSENT = 0,
	/* A partition is being put together for it. */
	LOCUM_HOST_STATE_PREPARING = 1,
	/* It runs. */
	LOCUM_HOST_STATE_RUNNING = 2,
	/* It ended by itself or was stopped; its resources are not handed out yet. See locum_host_status.reason. */
	LOCUM_HOST_STATE_DEAD = 3,
	/* It retired: everything it had belongs to the other slot. */
	LOCUM_HOST_STATE_RETIRED = 4,
	/*
	 * It has panicked, and its crash kernel writes a dump: no guest runs in it any more. It is dead when that one
	 * resets the machine, or when the other host takes it, dump or not.
	 */
	LOCUM_HOST_STATE_DUMPING = 5,
};

/* Why a host is LOCUM_HOST_STATE_DEAD. */
enum locum_stop_reason {
	/* Not dead. */
	LOCUM_STOP_REASON_NONE = 0,
	/* Triple fault (`detail[0]`: RIP). */
	LOCUM_STOP_REASON_TRIPLE_FAULT = 1,
	/*
	 * It touched memory it does not own (`detail[0]`: RIP, `detail[1]`: physical address, `detail[2]`: exit
	 * qualification, SDM vol. 3C table "Exit Qualification for EPT Violations").
	 */
	LOCUM_STOP_REASON_WILD_ACCESS = 2,
	/* An exit that L0 can't serve (`detail[0]`: RIP, `detail[1]`: exit reason, `detail[2]`: qualification). */
	LOCUM_STOP_REASON_UNHANDLED = 3,
	/* VM entry failed (`detail[0]`: RIP, `detail[1]`: exit reason or VM-instruction error). */
	LOCUM_STOP_REASON_ENTRY_FAILURE = 4,
	/* The other host aborted it. */
	LOCUM_STOP_REASON_ABORTED = 5,
	/* It asked for power-off or reboot itself. */
	LOCUM_STOP_REASON_POWERED_OFF = 6,
};

/* Operations. */
enum locum_op {
	/* Does nothing: 0. Tells a module that L0 is above it. */
	LOCUM_OP_PING = LOCUM_OP_MAGIC,
	/*
	 * Give this CPU back to the host, in VMX root. RDI: address of the CPU's struct locum_frame. On success
	 * execution goes on at the frame's `rip`; on refusal after the VMCALL.
	 */
	LOCUM_OP_LEAVE = (LOCUM_OP_MAGIC | 1),
	/* Give a resource of the caller to the other slot. RDI: enum locum_resource, RSI, RDX: as the kind says. */
	LOCUM_OP_GRANT = (LOCUM_OP_MAGIC | 2),
	/*
	 * Start the host of the other slot, to which at least one parked CPU and memory were granted. RDI: physical
	 * address of the 64-bit entry point; RSI: of the zero page, both in granted memory; RDX: APIC id of its boot
	 * CPU.
	 */
	LOCUM_OP_START = (LOCUM_OP_MAGIC | 3),
	/*
	 * Stop the host of the other slot, take its CPUs (by INIT if they run) and give all it has to the caller.
	 * Refused with LOCUM_ERRNO_STATE where the other host reigns, lives and has not left LOCUM_WILL_YIELD.
	 */
	LOCUM_OP_ABORT = (LOCUM_OP_MAGIC | 4),
	/*
	 * The caller ends: all it has goes to the other slot, which must be running. Its other CPUs must be parked.
	 * Does not return on success: this CPU parks, owned by the other slot.
	 */
	LOCUM_OP_RETIRE = (LOCUM_OP_MAGIC | 5),
	/* Park this CPU (used by the reset vector). Does not return. */
	LOCUM_OP_PARK = (LOCUM_OP_MAGIC | 6),
	/*
	 * The caller ends by itself (power-off, reboot, panic) and asks to be declared dead. RDI, RSI, RDX: told in
	 * locum_host_status.detail. Does not return where another host goes on (see enum locum_will); where none does,
	 * refused with LOCUM_ERRNO_STATE and the host uses the machine's own ports.
	 */
	LOCUM_OP_EXIT = (LOCUM_OP_MAGIC | 7),
	/*
	 * What becomes of the machine when the caller, which reigns, cannot go on. RDI: an enum locum_will. It holds
	 * until the next one, or until one of two hosts is gone.
	 */
	LOCUM_OP_WILL = (LOCUM_OP_MAGIC | 8),
	/*
	 * The caller has panicked and is about to jump to its crash kernel, which writes a dump: it is
	 * LOCUM_HOST_STATE_DUMPING from here on. Refused with LOCUM_ERRNO_STATE where no other host runs.
	 */
	LOCUM_OP_DUMP = (LOCUM_OP_MAGIC | 9),
};

/* What becomes of the machine when the reigning host cannot go on while another one runs. */
enum locum_will {
	/* If it dies, the other host goes on, and may take what it had by LOCUM_OP_ABORT. So it is without a will. */
	LOCUM_WILL_PASS = 0,
	/*
	 * If it dies, the machine is reset, as if there were no other host: that one is not ready to go on without it.
	 */
	LOCUM_WILL_RESET = 1,
	/* As LOCUM_WILL_PASS, and the other host may take it even while it lives: no guest runs in it any more. */
	LOCUM_WILL_YIELD = 2,
};

/* What kind of resource a `Grant` gives: RDI of the call. `b` and `c` are RSI and RDX. */
enum locum_resource {
	/* A parked CPU. `b`: APIC id, `c`: 0. */
	LOCUM_RESOURCE_CPU = 0,
	/* Memory or MMIO. `b`: first byte, `c`: bytes, both multiples of 4 KiB. */
	LOCUM_RESOURCE_MEMORY = 1,
	/* A PCI function. `b`: bus << 8 | device << 3 | function, `c`: 0. */
	LOCUM_RESOURCE_PCI = 2,
	/* I/O ports. `b`: first port, `c`: number. */
	LOCUM_RESOURCE_PORTS = 3,
	/* An interrupt pin. `b`: GSI, `c`: 0. */
	LOCUM_RESOURCE_PIN = 4,
};

/* Why L0 refused. RAX returns the negative. Numbers are never used again: 7 was one that no L0 ever returned. */
enum locum_errno {
	/* An argument is out of range, not aligned, or reserved and not zero. */
	LOCUM_ERRNO_ARGUMENT = 1,
	/* The caller does not own the resource. */
	LOCUM_ERRNO_NOT_OWNER = 2,
	/* The CPU is not parked. */
	LOCUM_ERRNO_NOT_PARKED = 3,
	/* The host in the other slot is not in the state the operation needs. */
	LOCUM_ERRNO_STATE = 4,
	/* A table of L0 is full. */
	LOCUM_ERRNO_NO_SPACE = 5,
	/* The CPU can't run L0: no VMX, EPT or unrestricted guest, or disabled in IA32_FEATURE_CONTROL. */
	LOCUM_ERRNO_NO_VMX = 6,
	/* VM entry failed. */
	LOCUM_ERRNO_ENTRY_FAILED = 8,
	/* CPUs of the other host did not answer INIT in time. */
	LOCUM_ERRNO_TIMEOUT = 9,
	/* The frame is not what L0 expects (magic, CPU, or not mapped where it says). */
	LOCUM_ERRNO_FRAME = 10,
};

/* What an entry says of its range. */
enum locum_pool_state {
	/* Nothing: there is no such entry. */
	LOCUM_POOL_STATE_EMPTY = 0,
	/* Nothing yet: the fields are being written. */
	LOCUM_POOL_STATE_WRITING = 1,
	/* It is to be taken, unless another entry has some of it. */
	LOCUM_POOL_STATE_CLAIMED = 2,
	/* It is taken, and being cleared. */
	LOCUM_POOL_STATE_SCRUBBING = 3,
	/* It holds the RAM of a guest of the host that `StateWord::slot` names. */
	LOCUM_POOL_STATE_USED = 4,
	/* Its guest is on the way from that host to the other one. */
	LOCUM_POOL_STATE_CROSSING = 5,
};

/* What a struct locum_trace_record tells. Its words are encoded and decoded by `Event`, and nowhere else. */
enum locum_trace_kind {
	/* Never written. */
	LOCUM_TRACE_KIND_NONE = 0,
	/* `Event::Boot`. */
	LOCUM_TRACE_KIND_BOOT = 1,
	/* `Event::Park`. */
	LOCUM_TRACE_KIND_PARK = 2,
	/* `Event::Wake`. */
	LOCUM_TRACE_KIND_WAKE = 3,
	/* `Event::MailboxRefused`. */
	LOCUM_TRACE_KIND_MAILBOX_REFUSED = 4,
	/* `Event::Enter`. */
	LOCUM_TRACE_KIND_ENTER = 5,
	/* `Event::Leave`. */
	LOCUM_TRACE_KIND_LEAVE = 6,
	/* `Event::CallRefused`. */
	LOCUM_TRACE_KIND_CALL_REFUSED = 7,
	/* `Event::Owner`. */
	LOCUM_TRACE_KIND_OWNER = 8,
	/* `Event::HostStart`. */
	LOCUM_TRACE_KIND_HOST_START = 9,
	/* `Event::HostDead`. */
	LOCUM_TRACE_KIND_HOST_DEAD = 10,
	/* `Event::HostRetired`. */
	LOCUM_TRACE_KIND_HOST_RETIRED = 11,
	/* `Event::CpuTaken`. */
	LOCUM_TRACE_KIND_CPU_TAKEN = 12,
	/* `Event::PortDenied`. */
	LOCUM_TRACE_KIND_PORT_DENIED = 13,
	/* `Event::PinDenied`. */
	LOCUM_TRACE_KIND_PIN_DENIED = 14,
	/* `Event::PciDenied`. */
	LOCUM_TRACE_KIND_PCI_DENIED = 15,
	/* `Event::Inject`. */
	LOCUM_TRACE_KIND_INJECT = 16,
	/* `Event::MemoryDenied`. */
	LOCUM_TRACE_KIND_MEMORY_DENIED = 17,
	/* `Event::VmxFail`. */
	LOCUM_TRACE_KIND_VMX_FAIL = 18,
	/* `Event::PowerFiltered`. */
	LOCUM_TRACE_KIND_POWER_FILTERED = 19,
	/* `Event::Fault`. */
	LOCUM_TRACE_KIND_FAULT = 20,
	/* `Event::VmcsChecked`. */
	LOCUM_TRACE_KIND_VMCS_CHECKED = 21,
	/* `Event::FieldTrapped`. */
	LOCUM_TRACE_KIND_FIELD_TRAPPED = 22,
	/* `Event::MachineCheck`. */
	LOCUM_TRACE_KIND_MACHINE_CHECK = 23,
	/* `Event::MachineCheckBank`. */
	LOCUM_TRACE_KIND_MACHINE_CHECK_BANK = 24,
	/* `Event::Will`. */
	LOCUM_TRACE_KIND_WILL = 25,
	/* `Event::HostDumps`. */
	LOCUM_TRACE_KIND_HOST_DUMPS = 26,
};

/* What belongs to the host of one slot (generation parity). */
struct locum_slot_info {
	/* Physical address of the ACPI wakeup struct locum_mailbox (4 KiB aligned). */
	__u64 mailbox;
	/* Physical address of the reset vector: where an offlined CPU jumps, native or nested. */
	__u64 reset_vector;
	/* CR3 to load for a native call of L0. Bit 12 is clear, see `frame.rs` of the crate. */
	__u64 l0_cr3;
	/* Address (under `l0_cr3`) of L0's native entry; RDI is the address of a struct locum_frame. */
	__u64 l0_entry;
	/* Physical address of the page directory that maps the top GiB (0xffffffffc0000000 and up) under `l0_cr3`. */
	__u64 stub_pd;
	/* Physical address of the page tables that the module links into `stub_pd` to map its stub and frames. */
	__u64 stub_pt;
	/* How many page-table pages there are at `stub_pt`. */
	__u32 stub_pt_pages;
	/* I/O port of the host's console UART, 0 if none. */
	__u32 console_port;
	/* First byte of the slice below 1 MiB that holds this host's trampoline. */
	__u64 low_slice;
	/* Bytes of the slice. */
	__u64 low_slice_size;
	/* Physical address of the page this host sees at address 0 while nested (0: the real one). */
	__u64 page_zero;
	/* Physical address of memory for this host's firmware tables, at the agent's disposal (ACPI, zero page). */
	__u64 tables;
	/* Bytes at `tables`. */
	__u64 tables_size;
};

/* A piece of the pool: memory of one NUMA node. Cannot grow. */
struct locum_pool_piece {
	/* Physical address. */
	__u64 start;
	/* Bytes. */
	__u64 size;
};

/*
 * Memory of the firmware's, whole pages, that reads as zeroes for a host that does not reign, and is the reigning
 * host's: where its error sources say whether there is a report. Cannot grow.
 */
struct locum_blank_range {
	/* Physical address. */
	__u64 start;
	/* Bytes. */
	__u64 size;
};

/* The header page. */
struct locum_header {
	/* LOCUM_MAGIC. */
	__u64 magic;
	/* LOCUM_FAMILY. */
	__u32 family;
	/* Bytes of the header that L0 has, at least LOCUM_HEADER_MIN. */
	__u32 size;
	/* Physical address of the shared region. Hosts may map all of it. */
	__u64 shared;
	/* Bytes of the shared region. */
	__u64 shared_size;
	/* Physical address of L0's private memory, which no host may touch. */
	__u64 private_;
	/* Bytes of L0's private memory. */
	__u64 private_size;
	/* Physical address of the pool's first piece, 0 if there is no pool. */
	__u64 pool;
	/* Bytes of the pool's first piece. */
	__u64 pool_size;
	/* Physical address of the struct locum_status. */
	__u64 status;
	/* Bytes of the status, including what later releases append. */
	__u64 status_size;
	/* Physical address of the struct locum_trace_ring. */
	__u64 trace;
	/* Bytes of the trace ring, header included. */
	__u64 trace_size;
	/* Physical address of the struct locum_log_ring. */
	__u64 log;
	/* Bytes of the log ring, header included. */
	__u64 log_size;
	/* Physical address of the first struct locum_channel_ring; see `channel.rs` of the crate. */
	__u64 channels;
	/* Bytes of all channel rings. */
	__u64 channels_size;
	/* Per slot. */
	struct locum_slot_info slots[LOCUM_SLOTS];
	/* Physical address of the machine's own RSDP (not the one made for the first host). */
	__u64 machine_rsdp;
	/* Bytes of L0's loaded image (text, read-only data, data), without bss. */
	__u64 image_bytes;
	/* Logical CPUs of the machine. */
	__u32 cpu_count;
	/*
	 * Port of PM1a_CNT (ACPI 4.8.3.2.1) of the machine, 0 if none. A hardware-reduced host has no other way to S5.
	 */
	__u16 pm1a_cnt;
	/* Port of PM1b_CNT, 0 if none. */
	__u16 pm1b_cnt;
	/* What L0 can do beyond the first release, of which it is 0: bits of LOCUM_FEATURES. */
	__u64 features;
	/* Bytes from one struct locum_cpu_status to the next, a multiple of 64. 0: LOCUM_FIRST_CPU_STATUS_SIZE. */
	__u32 cpu_status_size;
	/* CPUs for which the status has room. 0: LOCUM_FIRST_CPU_CAPACITY. */
	__u32 cpu_capacity;
	/* Bytes from one struct locum_host_status to the next. 0: LOCUM_FIRST_HOST_STATUS_SIZE. */
	__u32 host_status_size;
	/* Bytes from one struct locum_trace_record to the next. 0: LOCUM_FIRST_TRACE_RECORD_SIZE. */
	__u32 trace_record_size;
	/* Number of channels. 0: LOCUM_FIRST_CHANNEL_COUNT. */
	__u32 channel_count;
	/*
	 * Bytes of a struct locum_channel_ring, of which all but the first 4096 are data, a power of two. 0:
	 * LOCUM_FIRST_CHANNEL_RING_SIZE.
	 */
	__u32 channel_ring_size;
	/* Offset in the status of the first struct locum_host_status. 0: LOCUM_FIRST_STATUS_HOSTS. */
	__u32 status_hosts;
	/* Offset in the status of the first struct locum_cpu_status. 0: LOCUM_FIRST_STATUS_CPUS. */
	__u32 status_cpus;
	/*
	 * First address that a host can't be entered at, nor find its zero page above it: the page tables with which a
	 * CPU is handed over map the low 4 GiB and all RAM below this. 0: 4 GiB.
	 */
	__u64 entry_end;
	/* Not used, zero. */
	__u64 reserved[2];
	/*
	 * All pieces of the pool in ascending order, the first one too; then zeroes. An L0 of the first release has one
	 * piece and none of this.
	 */
	struct locum_pool_piece pool_pieces[LOCUM_POOL_PIECES];
	/* Blank memory; then zeroes. An L0 without this has none. */
	struct locum_blank_range blank[LOCUM_BLANK_RANGES];
	/* Physical address of the first struct locum_kept_ring, that of kind 0; 0 if this L0 keeps no records apart. */
	__u64 kept;
	/* Bytes from one struct locum_kept_ring to the next. */
	__u32 kept_ring_size;
	/* Bytes from one struct locum_kept_record to the next. */
	__u32 kept_record_size;
	/* Rings: the kinds of records that this L0 writes, and kind 0. */
	__u32 kept_kinds;
	/* Not used, zero. */
	__u32 reserved3;
	/*
	 * Physical address of the pool's table, an array of struct locum_pool_extent; see `pool.rs` of the crate. 0:
	 * there is none.
	 */
	__u64 pool_table;
	/* Bytes from one struct locum_pool_extent to the next, a multiple of 64. */
	__u32 pool_extent_size;
	/* How many there are. */
	__u32 pool_extent_count;
};

/* The host of one slot. */
struct locum_host_status {
	/* An enum locum_host_state. */
	__u32 state;
	/* An enum locum_stop_reason. */
	__u32 reason;
	/* What the reason says they are. */
	__u64 detail[3];
	/* Generation of the host. */
	__u32 generation;
	/* APIC id of the CPU on which `reason` arose. */
	__u32 cpu;
};

/* One CPU. Every counter counts from boot and never decreases. */
struct LOCUM_ALIGNED(64) locum_cpu_status {
	/* Its xAPIC id. */
	__u32 apic_id;
	/* An enum locum_cpu_mode. */
	__u32 mode;
	/* Slot of the host that owns it, or LOCUM_NO_OWNER. */
	__u32 owner;
	/* Not used, zero. */
	__u32 reserved;
	/* Times it went from native to nested. */
	__u64 enters;
	/* Times it went from nested to native. */
	__u64 leaves;
	/* VM exits taken by L0, from the host and from guests. */
	__u64 exits;
	/* Of these, exits of a guest (L2), reflected to the host's KVM. */
	__u64 guest_exits;
	/* NMIs that arrived while L0 ran, passed on to the host. */
	__u64 nmis;
	/* Not used, zero. */
	__u64 reserved2;
	/* Exits of the host by basic exit reason (SDM vol. 3D appendix C). */
	__u64 exits_by_reason[LOCUM_EXIT_REASONS];
};

/* The status region. */
struct locum_status {
	/* Generation of the reigning host. */
	__u32 generation;
	/* Number of entries of `cpus` in use. */
	__u32 cpu_count;
	/* Per slot. */
	struct locum_host_status hosts[LOCUM_SLOTS];
	/* Number of refused requests (each has a trace record). */
	__u64 refusals;
	/* Stretches of memory of one kind and owner that L0 tells apart; 0 from an L0 that does not count them. */
	__u32 memory_stretches;
	/* Not used, zero. */
	__u32 reserved2;
	/* EPT tables (4 KiB each) in use below the root, per slot; 0 likewise, and where no CPU was nested yet. */
	__u32 ept_tables[LOCUM_SLOTS];
	/* Not used, zero. */
	__u64 reserved[2];
	/* Per CPU, in the order of the machine's MADT. */
	struct locum_cpu_status cpus[LOCUM_MAX_CPUS];
};

/* A pseudo-descriptor as LGDT and LIDT read it, padded to keep `base` aligned. */
struct locum_table_register {
	/* Not read by the CPU. */
	__u16 pad[3];
	/* Limit in bytes. The instruction's operand starts here. */
	__u16 limit;
	/* Linear address. */
	__u64 base;
};

/* The frame: 4 KiB, page aligned. Its last bytes are the stack used while neither the host's nor L0's is mapped. */
struct LOCUM_ALIGNED(4096) locum_frame {
	/* LOCUM_FRAME_MAGIC. */
	__u64 magic;
	/* APIC id of the CPU it belongs to. */
	__u32 apic_id;
	/* Set to 1 by the stub's NMI handler; the module re-sends the NMI when it is back in the host. */
	__u32 nmi;
	/* What the call returns: 0 or the negative of an enum locum_errno. */
	__s64 result;
	/*
	 * Set to 1 by the stub's machine-check handler, or by L0 for a check that came before it was back in the stub;
	 * the module raises it when it is back in the host. IA32_MCG_STATUS and the banks are as the CPU left them.
	 */
	__u64 machine_check;
	/* Physical address of this frame. */
	__u64 phys;
	/* Address of the stub's `return_native`. */
	__u64 return_native;
	/* `l0_cr3` of the host's slot. */
	__u64 l0_cr3;
	/* `l0_entry` of the host's slot. */
	__u64 l0_entry;
	/*
	 * Stub's GDT for the time between the worlds: 64-bit code at the host's CS selector, data at its SS selector.
	 */
	struct locum_table_register stub_gdtr;
	/* Stub's IDT: vector 2 sets `nmi`, vector 18 `machine_check`; all others are not expected. */
	struct locum_table_register stub_idtr;
	/* Host: where it goes on. */
	__u64 rip;
	/* Host: RSP there. */
	__u64 rsp;
	/* Host: RFLAGS there (IF clear). */
	__u64 rflags;
	/* Host: CR0. */
	__u64 cr0;
	/* Host: CR3. */
	__u64 cr3;
	/* Host: CR4, VMXE as the host sees it. */
	__u64 cr4;
	/* Host: GDTR. */
	struct locum_table_register gdtr;
	/* Host: IDTR. */
	struct locum_table_register idtr;
	/* Host: selectors ES, CS, SS, DS, FS, GS, LDTR, TR. */
	__u16 selectors[8];
	/* Host: FS base. */
	__u64 fs_base;
	/* Host: GS base. */
	__u64 gs_base;
	/* Host: base of the TSS, from its GDT. */
	__u64 tr_base;
	/* Host: limit of the TSS, from its GDT. */
	__u32 tr_limit;
	/* Host: limit of the LDT, from its GDT; ignored if LDTR is null. */
	__u32 ldtr_limit;
	/* Host: base of the LDT. */
	__u64 ldtr_base;
	/* Host: DR7. Filled by the stub before L0 changes it. */
	__u64 dr7;
	/* Not used, zero. */
	__u64 reserved2[34];
	/* The module's: GDT and IDT of the stub, and the stack (downwards from the end of the page). */
	__u8 module[3584];
};

/* The mailbox page. */
struct LOCUM_ALIGNED(4096) locum_mailbox {
	/* LOCUM_MAILBOX_NOOP, LOCUM_MAILBOX_WAKEUP or LOCUM_MAILBOX_TEST. */
	__u16 command;
	/* Zero. */
	__u16 reserved;
	/* Whom the command is for. */
	__u32 apic_id;
	/* Physical address to start at, in 64-bit mode with paging on an identity map. */
	__u64 wakeup_vector;
	/* The operating system's, up to byte 2047. */
	__u8 os[2032];
	/* The firmware's; L0 does not use it. */
	__u8 firmware[2048];
};

/* One direction of one channel. */
struct LOCUM_ALIGNED(4096) locum_channel_ring {
	/* Bytes written so far. Written by the writer. */
	__u32 head;
	/* LOCUM_FLAG_EOF. Written by the writer. */
	__u32 flags;
	/* Not used, zero. Keeps the two sides on separate cache lines. */
	__u32 pad0[30];
	/* Bytes read so far. Written by the reader. */
	__u32 tail;
	/* The reader wants no more: writers get an error. Written by the reader. */
	__u32 closed;
	/* Not used, zero. */
	__u32 pad1[30];
	/* Not used, zero. */
	__u8 pad2[3840];
	/* The bytes; position `p` is at `data[p % RING_DATA]`. */
	__u8 data[LOCUM_RING_DATA];
};

/* An entry. */
struct LOCUM_ALIGNED(64) locum_pool_extent {
	/* See `StateWord`. */
	__u64 state;
	/* Physical address, a multiple of LOCUM_POOL_GRAIN. */
	__u64 start;
	/* Bytes, a multiple of LOCUM_POOL_GRAIN. */
	__u64 size;
	/* UUID of the guest, in the order of its text. */
	__u8 uuid[16];
	/* NUMA node, as the host that entered it numbers them; !0 if it is not known. */
	__u32 node;
	/* LOCUM_POOL_SEEN; all else zero. */
	__u32 flags;
	/* Name of the guest in UTF-8, then zeroes. */
	__u8 name[LOCUM_POOL_NAME];
	/* Not used, zero. */
	__u64 reserved2[2];
};

/* One record. */
struct locum_trace_record {
	/* TSC when it was written. */
	__u64 tsc;
	/* An enum locum_trace_kind. */
	__u16 kind;
	/* APIC id. */
	__u16 cpu;
	/* See `Event`. */
	__u32 a;
	/* See `Event`. */
	__u64 b;
	/* See `Event`. */
	__u64 c;
};

/* The ring: record number `n` is at `records[n % TRACE_RECORDS]`. */
struct locum_trace_ring {
	/* Records written since boot. */
	__u64 written;
	/* LOCUM_TRACE_RECORDS. */
	__u64 capacity;
	/* Not used, zero. */
	__u64 reserved[14];
	/* The records. */
	struct locum_trace_record records[LOCUM_TRACE_RECORDS];
};

/* A record with its number. */
struct locum_kept_record {
	/* Number of the record since L0 booted, which is its number in the trace ring, too; or LOCUM_BEING_WRITTEN. */
	__u64 number;
	/* The record. Its kind is 0 where none was written yet. */
	struct locum_trace_record record;
};

/* The newest records of one kind: the `n`-th of them is at `records[n % KEPT_RECORDS]`. */
struct locum_kept_ring {
	/* Records of this kind written since boot. */
	__u64 written;
	/* Not used, zero. */
	__u64 reserved[7];
	/* The records. */
	struct locum_kept_record records[LOCUM_KEPT_RECORDS];
};

/* The log ring: byte number `n` is at `text[n % LOG_BYTES]`. */
struct locum_log_ring {
	/* Bytes written since boot. */
	__u64 written;
	/* LOCUM_LOG_BYTES. */
	__u64 capacity;
	/* Not used, zero. */
	__u64 reserved[6];
	/* UTF-8 text, lines end with `\n`. */
	__u8 text[LOCUM_LOG_BYTES];
};

_Static_assert(sizeof(struct locum_slot_info) == 96, "locum_slot_info");
_Static_assert(__builtin_offsetof(struct locum_slot_info, mailbox) == 0, "locum_slot_info.mailbox");
_Static_assert(__builtin_offsetof(struct locum_slot_info, reset_vector) == 8, "locum_slot_info.reset_vector");
_Static_assert(__builtin_offsetof(struct locum_slot_info, l0_cr3) == 16, "locum_slot_info.l0_cr3");
_Static_assert(__builtin_offsetof(struct locum_slot_info, l0_entry) == 24, "locum_slot_info.l0_entry");
_Static_assert(__builtin_offsetof(struct locum_slot_info, stub_pd) == 32, "locum_slot_info.stub_pd");
_Static_assert(__builtin_offsetof(struct locum_slot_info, stub_pt) == 40, "locum_slot_info.stub_pt");
_Static_assert(__builtin_offsetof(struct locum_slot_info, stub_pt_pages) == 48, "locum_slot_info.stub_pt_pages");
_Static_assert(__builtin_offsetof(struct locum_slot_info, console_port) == 52, "locum_slot_info.console_port");
_Static_assert(__builtin_offsetof(struct locum_slot_info, low_slice) == 56, "locum_slot_info.low_slice");
_Static_assert(__builtin_offsetof(struct locum_slot_info, low_slice_size) == 64, "locum_slot_info.low_slice_size");
_Static_assert(__builtin_offsetof(struct locum_slot_info, page_zero) == 72, "locum_slot_info.page_zero");
_Static_assert(__builtin_offsetof(struct locum_slot_info, tables) == 80, "locum_slot_info.tables");
_Static_assert(__builtin_offsetof(struct locum_slot_info, tables_size) == 88, "locum_slot_info.tables_size");
_Static_assert(sizeof(struct locum_pool_piece) == 16, "locum_pool_piece");
_Static_assert(__builtin_offsetof(struct locum_pool_piece, start) == 0, "locum_pool_piece.start");
_Static_assert(__builtin_offsetof(struct locum_pool_piece, size) == 8, "locum_pool_piece.size");
_Static_assert(sizeof(struct locum_blank_range) == 16, "locum_blank_range");
_Static_assert(__builtin_offsetof(struct locum_blank_range, start) == 0, "locum_blank_range.start");
_Static_assert(__builtin_offsetof(struct locum_blank_range, size) == 8, "locum_blank_range.size");
_Static_assert(sizeof(struct locum_header) == 832, "locum_header");
_Static_assert(__builtin_offsetof(struct locum_header, magic) == 0, "locum_header.magic");
_Static_assert(__builtin_offsetof(struct locum_header, family) == 8, "locum_header.family");
_Static_assert(__builtin_offsetof(struct locum_header, size) == 12, "locum_header.size");
_Static_assert(__builtin_offsetof(struct locum_header, shared) == 16, "locum_header.shared");
_Static_assert(__builtin_offsetof(struct locum_header, shared_size) == 24, "locum_header.shared_size");
_Static_assert(__builtin_offsetof(struct locum_header, private_) == 32, "locum_header.private_");
_Static_assert(__builtin_offsetof(struct locum_header, private_size) == 40, "locum_header.private_size");
_Static_assert(__builtin_offsetof(struct locum_header, pool) == 48, "locum_header.pool");
_Static_assert(__builtin_offsetof(struct locum_header, pool_size) == 56, "locum_header.pool_size");
_Static_assert(__builtin_offsetof(struct locum_header, status) == 64, "locum_header.status");
_Static_assert(__builtin_offsetof(struct locum_header, status_size) == 72, "locum_header.status_size");
_Static_assert(__builtin_offsetof(struct locum_header, trace) == 80, "locum_header.trace");
_Static_assert(__builtin_offsetof(struct locum_header, trace_size) == 88, "locum_header.trace_size");
_Static_assert(__builtin_offsetof(struct locum_header, log) == 96, "locum_header.log");
_Static_assert(__builtin_offsetof(struct locum_header, log_size) == 104, "locum_header.log_size");
_Static_assert(__builtin_offsetof(struct locum_header, channels) == 112, "locum_header.channels");
_Static_assert(__builtin_offsetof(struct locum_header, channels_size) == 120, "locum_header.channels_size");
_Static_assert(__builtin_offsetof(struct locum_header, slots) == 128, "locum_header.slots");
_Static_assert(__builtin_offsetof(struct locum_header, machine_rsdp) == 320, "locum_header.machine_rsdp");
_Static_assert(__builtin_offsetof(struct locum_header, image_bytes) == 328, "locum_header.image_bytes");
_Static_assert(__builtin_offsetof(struct locum_header, cpu_count) == 336, "locum_header.cpu_count");
_Static_assert(__builtin_offsetof(struct locum_header, pm1a_cnt) == 340, "locum_header.pm1a_cnt");
_Static_assert(__builtin_offsetof(struct locum_header, pm1b_cnt) == 342, "locum_header.pm1b_cnt");
_Static_assert(__builtin_offsetof(struct locum_header, features) == 344, "locum_header.features");
_Static_assert(__builtin_offsetof(struct locum_header, cpu_status_size) == 352, "locum_header.cpu_status_size");
_Static_assert(__builtin_offsetof(struct locum_header, cpu_capacity) == 356, "locum_header.cpu_capacity");
_Static_assert(__builtin_offsetof(struct locum_header, host_status_size) == 360, "locum_header.host_status_size");
_Static_assert(__builtin_offsetof(struct locum_header, trace_record_size) == 364, "locum_header.trace_record_size");
_Static_assert(__builtin_offsetof(struct locum_header, channel_count) == 368, "locum_header.channel_count");
_Static_assert(__builtin_offsetof(struct locum_header, channel_ring_size) == 372, "locum_header.channel_ring_size");
_Static_assert(__builtin_offsetof(struct locum_header, status_hosts) == 376, "locum_header.status_hosts");
_Static_assert(__builtin_offsetof(struct locum_header, status_cpus) == 380, "locum_header.status_cpus");
_Static_assert(__builtin_offsetof(struct locum_header, entry_end) == 384, "locum_header.entry_end");
_Static_assert(__builtin_offsetof(struct locum_header, reserved) == 392, "locum_header.reserved");
_Static_assert(__builtin_offsetof(struct locum_header, pool_pieces) == 408, "locum_header.pool_pieces");
_Static_assert(__builtin_offsetof(struct locum_header, blank) == 664, "locum_header.blank");
_Static_assert(__builtin_offsetof(struct locum_header, kept) == 792, "locum_header.kept");
_Static_assert(__builtin_offsetof(struct locum_header, kept_ring_size) == 800, "locum_header.kept_ring_size");
_Static_assert(__builtin_offsetof(struct locum_header, kept_record_size) == 804, "locum_header.kept_record_size");
_Static_assert(__builtin_offsetof(struct locum_header, kept_kinds) == 808, "locum_header.kept_kinds");
_Static_assert(__builtin_offsetof(struct locum_header, reserved3) == 812, "locum_header.reserved3");
_Static_assert(__builtin_offsetof(struct locum_header, pool_table) == 816, "locum_header.pool_table");
_Static_assert(__builtin_offsetof(struct locum_header, pool_extent_size) == 824, "locum_header.pool_extent_size");
_Static_assert(__builtin_offsetof(struct locum_header, pool_extent_count) == 828, "locum_header.pool_extent_count");
_Static_assert(sizeof(struct locum_host_status) == 40, "locum_host_status");
_Static_assert(__builtin_offsetof(struct locum_host_status, state) == 0, "locum_host_status.state");
_Static_assert(__builtin_offsetof(struct locum_host_status, reason) == 4, "locum_host_status.reason");
_Static_assert(__builtin_offsetof(struct locum_host_status, detail) == 8, "locum_host_status.detail");
_Static_assert(__builtin_offsetof(struct locum_host_status, generation) == 32, "locum_host_status.generation");
_Static_assert(__builtin_offsetof(struct locum_host_status, cpu) == 36, "locum_host_status.cpu");
_Static_assert(sizeof(struct locum_cpu_status) == 704, "locum_cpu_status");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, apic_id) == 0, "locum_cpu_status.apic_id");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, mode) == 4, "locum_cpu_status.mode");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, owner) == 8, "locum_cpu_status.owner");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, reserved) == 12, "locum_cpu_status.reserved");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, enters) == 16, "locum_cpu_status.enters");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, leaves) == 24, "locum_cpu_status.leaves");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, exits) == 32, "locum_cpu_status.exits");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, guest_exits) == 40, "locum_cpu_status.guest_exits");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, nmis) == 48, "locum_cpu_status.nmis");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, reserved2) == 56, "locum_cpu_status.reserved2");
_Static_assert(__builtin_offsetof(struct locum_cpu_status, exits_by_reason) == 64, "locum_cpu_status.exits_by_reason");
_Static_assert(sizeof(struct locum_status) == 180352, "locum_status");
_Static_assert(__builtin_offsetof(struct locum_status, generation) == 0, "locum_status.generation");
_Static_assert(__builtin_offsetof(struct locum_status, cpu_count) == 4, "locum_status.cpu_count");
_Static_assert(__builtin_offsetof(struct locum_status, hosts) == 8, "locum_status.hosts");
_Static_assert(__builtin_offsetof(struct locum_status, refusals) == 88, "locum_status.refusals");
_Static_assert(__builtin_offsetof(struct locum_status, memory_stretches) == 96, "locum_status.memory_stretches");
_Static_assert(__builtin_offsetof(struct locum_status, reserved2) == 100, "locum_status.reserved2");
_Static_assert(__builtin_offsetof(struct locum_status, ept_tables) == 104, "locum_status.ept_tables");
_Static_assert(__builtin_offsetof(struct locum_status, reserved) == 112, "locum_status.reserved");
_Static_assert(__builtin_offsetof(struct locum_status, cpus) == 128, "locum_status.cpus");
_Static_assert(sizeof(struct locum_table_register) == 16, "locum_table_register");
_Static_assert(__builtin_offsetof(struct locum_table_register, pad) == 0, "locum_table_register.pad");
_Static_assert(__builtin_offsetof(struct locum_table_register, limit) == 6, "locum_table_register.limit");
_Static_assert(__builtin_offsetof(struct locum_table_register, base) == 8, "locum_table_register.base");
_Static_assert(sizeof(struct locum_frame) == 4096, "locum_frame");
_Static_assert(__builtin_offsetof(struct locum_frame, magic) == 0, "locum_frame.magic");
_Static_assert(__builtin_offsetof(struct locum_frame, apic_id) == 8, "locum_frame.apic_id");
_Static_assert(__builtin_offsetof(struct locum_frame, nmi) == 12, "locum_frame.nmi");
_Static_assert(__builtin_offsetof(struct locum_frame, result) == 16, "locum_frame.result");
_Static_assert(__builtin_offsetof(struct locum_frame, machine_check) == 24, "locum_frame.machine_check");
_Static_assert(__builtin_offsetof(struct locum_frame, phys) == 32, "locum_frame.phys");
_Static_assert(__builtin_offsetof(struct locum_frame, return_native) == 40, "locum_frame.return_native");
_Static_assert(__builtin_offsetof(struct locum_frame, l0_cr3) == 48, "locum_frame.l0_cr3");
_Static_assert(__builtin_offsetof(struct locum_frame, l0_entry) == 56, "locum_frame.l0_entry");
_Static_assert(__builtin_offsetof(struct locum_frame, stub_gdtr) == 64, "locum_frame.stub_gdtr");
_Static_assert(__builtin_offsetof(struct locum_frame, stub_idtr) == 80, "locum_frame.stub_idtr");
_Static_assert(__builtin_offsetof(struct locum_frame, rip) == 96, "locum_frame.rip");
_Static_assert(__builtin_offsetof(struct locum_frame, rsp) == 104, "locum_frame.rsp");
_Static_assert(__builtin_offsetof(struct locum_frame, rflags) == 112, "locum_frame.rflags");
_Static_assert(__builtin_offsetof(struct locum_frame, cr0) == 120, "locum_frame.cr0");
_Static_assert(__builtin_offsetof(struct locum_frame, cr3) == 128, "locum_frame.cr3");
_Static_assert(__builtin_offsetof(struct locum_frame, cr4) == 136, "locum_frame.cr4");
_Static_assert(__builtin_offsetof(struct locum_frame, gdtr) == 144, "locum_frame.gdtr");
_Static_assert(__builtin_offsetof(struct locum_frame, idtr) == 160, "locum_frame.idtr");
_Static_assert(__builtin_offsetof(struct locum_frame, selectors) == 176, "locum_frame.selectors");
_Static_assert(__builtin_offsetof(struct locum_frame, fs_base) == 192, "locum_frame.fs_base");
_Static_assert(__builtin_offsetof(struct locum_frame, gs_base) == 200, "locum_frame.gs_base");
_Static_assert(__builtin_offsetof(struct locum_frame, tr_base) == 208, "locum_frame.tr_base");
_Static_assert(__builtin_offsetof(struct locum_frame, tr_limit) == 216, "locum_frame.tr_limit");
_Static_assert(__builtin_offsetof(struct locum_frame, ldtr_limit) == 220, "locum_frame.ldtr_limit");
_Static_assert(__builtin_offsetof(struct locum_frame, ldtr_base) == 224, "locum_frame.ldtr_base");
_Static_assert(__builtin_offsetof(struct locum_frame, dr7) == 232, "locum_frame.dr7");
_Static_assert(__builtin_offsetof(struct locum_frame, reserved2) == 240, "locum_frame.reserved2");
_Static_assert(__builtin_offsetof(struct locum_frame, module) == 512, "locum_frame.module");
_Static_assert(sizeof(struct locum_mailbox) == 4096, "locum_mailbox");
_Static_assert(__builtin_offsetof(struct locum_mailbox, command) == 0, "locum_mailbox.command");
_Static_assert(__builtin_offsetof(struct locum_mailbox, reserved) == 2, "locum_mailbox.reserved");
_Static_assert(__builtin_offsetof(struct locum_mailbox, apic_id) == 4, "locum_mailbox.apic_id");
_Static_assert(__builtin_offsetof(struct locum_mailbox, wakeup_vector) == 8, "locum_mailbox.wakeup_vector");
_Static_assert(__builtin_offsetof(struct locum_mailbox, os) == 16, "locum_mailbox.os");
_Static_assert(__builtin_offsetof(struct locum_mailbox, firmware) == 2048, "locum_mailbox.firmware");
_Static_assert(sizeof(struct locum_channel_ring) == 69632, "locum_channel_ring");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, head) == 0, "locum_channel_ring.head");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, flags) == 4, "locum_channel_ring.flags");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, pad0) == 8, "locum_channel_ring.pad0");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, tail) == 128, "locum_channel_ring.tail");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, closed) == 132, "locum_channel_ring.closed");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, pad1) == 136, "locum_channel_ring.pad1");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, pad2) == 256, "locum_channel_ring.pad2");
_Static_assert(__builtin_offsetof(struct locum_channel_ring, data) == 4096, "locum_channel_ring.data");
_Static_assert(sizeof(struct locum_pool_extent) == 128, "locum_pool_extent");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, state) == 0, "locum_pool_extent.state");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, start) == 8, "locum_pool_extent.start");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, size) == 16, "locum_pool_extent.size");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, uuid) == 24, "locum_pool_extent.uuid");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, node) == 40, "locum_pool_extent.node");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, flags) == 44, "locum_pool_extent.flags");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, name) == 48, "locum_pool_extent.name");
_Static_assert(__builtin_offsetof(struct locum_pool_extent, reserved2) == 112, "locum_pool_extent.reserved2");
_Static_assert(sizeof(struct locum_trace_record) == 32, "locum_trace_record");
_Static_assert(__builtin_offsetof(struct locum_trace_record, tsc) == 0, "locum_trace_record.tsc");
_Static_assert(__builtin_offsetof(struct locum_trace_record, kind) == 8, "locum_trace_record.kind");
_Static_assert(__builtin_offsetof(struct locum_trace_record, cpu) == 10, "locum_trace_record.cpu");
_Static_assert(__builtin_offsetof(struct locum_trace_record, a) == 12, "locum_trace_record.a");
_Static_assert(__builtin_offsetof(struct locum_trace_record, b) == 16, "locum_trace_record.b");
_Static_assert(__builtin_offsetof(struct locum_trace_record, c) == 24, "locum_trace_record.c");
_Static_assert(sizeof(struct locum_trace_ring) == 65536, "locum_trace_ring");
_Static_assert(__builtin_offsetof(struct locum_trace_ring, written) == 0, "locum_trace_ring.written");
_Static_assert(__builtin_offsetof(struct locum_trace_ring, capacity) == 8, "locum_trace_ring.capacity");
_Static_assert(__builtin_offsetof(struct locum_trace_ring, reserved) == 16, "locum_trace_ring.reserved");
_Static_assert(__builtin_offsetof(struct locum_trace_ring, records) == 128, "locum_trace_ring.records");
_Static_assert(sizeof(struct locum_kept_record) == 40, "locum_kept_record");
_Static_assert(__builtin_offsetof(struct locum_kept_record, number) == 0, "locum_kept_record.number");
_Static_assert(__builtin_offsetof(struct locum_kept_record, record) == 8, "locum_kept_record.record");
_Static_assert(sizeof(struct locum_kept_ring) == 10304, "locum_kept_ring");
_Static_assert(__builtin_offsetof(struct locum_kept_ring, written) == 0, "locum_kept_ring.written");
_Static_assert(__builtin_offsetof(struct locum_kept_ring, reserved) == 8, "locum_kept_ring.reserved");
_Static_assert(__builtin_offsetof(struct locum_kept_ring, records) == 64, "locum_kept_ring.records");
_Static_assert(sizeof(struct locum_log_ring) == 32768, "locum_log_ring");
_Static_assert(__builtin_offsetof(struct locum_log_ring, written) == 0, "locum_log_ring.written");
_Static_assert(__builtin_offsetof(struct locum_log_ring, capacity) == 8, "locum_log_ring.capacity");
_Static_assert(__builtin_offsetof(struct locum_log_ring, reserved) == 16, "locum_log_ring.reserved");
_Static_assert(__builtin_offsetof(struct locum_log_ring, text) == 64, "locum_log_ring.text");

#endif /* __ASSEMBLY__ */

/* Offsets in struct locum_frame, for assembly. */
#define LOCUM_FRAME_NMI 12
#define LOCUM_FRAME_MACHINE_CHECK 24
#define LOCUM_FRAME_RESULT 16
#define LOCUM_FRAME_L0_CR3 48
#define LOCUM_FRAME_L0_ENTRY 56
#define LOCUM_FRAME_STUB_GDTR 64
#define LOCUM_FRAME_STUB_IDTR 80
#define LOCUM_FRAME_RIP 96
#define LOCUM_FRAME_RSP 104
#define LOCUM_FRAME_RFLAGS 112
#define LOCUM_FRAME_CR0 120
#define LOCUM_FRAME_CR3 128
#define LOCUM_FRAME_CR4 136
#define LOCUM_FRAME_GDTR 144
#define LOCUM_FRAME_IDTR 160
#define LOCUM_FRAME_SELECTORS 176
#define LOCUM_FRAME_FS_BASE 192
#define LOCUM_FRAME_GS_BASE 200
#define LOCUM_FRAME_MODULE 512
#define LOCUM_FRAME_ES 176
#define LOCUM_FRAME_CS 178
#define LOCUM_FRAME_SS 180
#define LOCUM_FRAME_DS 182
#define LOCUM_FRAME_FS 184
#define LOCUM_FRAME_GS 186
#define LOCUM_FRAME_LDTR 188
#define LOCUM_FRAME_TR 190
/* Offset of the operand of LGDT and LIDT in struct locum_table_register. */
#define LOCUM_TABLE_OPERAND 6
#define LOCUM_FRAME_SIZE 4096

#endif /* LOCUM_ABI_H */
