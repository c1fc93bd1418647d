/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The module's tests, in a host: what they share.
 */
#ifndef LOCUM_CHECK_H
#define LOCUM_CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../locum_abi.h"
#include "../locum_uapi.h"

extern int failures, checks;
extern int device;			/* /dev/locum, for reading and writing */
extern struct locum_info machine;
extern struct locum_header header;

static inline enum locum_slot other_slot(void)
{
	return machine.slot == LOCUM_SLOT_EVEN ? LOCUM_SLOT_ODD : LOCUM_SLOT_EVEN;
}

/* Checks that @condition holds; errno is told with a failure. */
#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)
/* Checks that a system call fails with a certain errno. */
#define FAILS(call, error) (errno = 0, CHECK((call) == -1), CHECK(errno == (error)))

int check(int good, const char *what, const char *file, int line);
int put_file(const char *path, const char *text);
int get_file(const char *path, char *text, size_t size);
int refcount(void);	/* of the module */

/* Words of the region, behind L0's back: only with the fake L0 (by /dev/mem). */
extern volatile unsigned char *fake;
volatile struct locum_host_status *fake_host(enum locum_slot slot);
volatile struct locum_cpu_status *fake_cpu(unsigned int index);
volatile struct locum_channel_ring *fake_ring(unsigned int channel, enum locum_slot from);
unsigned int fake_ring_data(void);	/* bytes of data in a ring */

void test_access(void);
void test_memory(void);
void test_sysfs(void);
void test_nested(void);
void test_switch(void);
void test_cpus(void);
void test_channels(void);
void test_releases(void);
void test_old_l0(void);

#endif
