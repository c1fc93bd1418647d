// SPDX-License-Identifier: GPL-2.0
/*
 * When the module must stay.
 */
#include "locum.h"
#include <linux/limits.h>
#include <linux/module.h>

/**
 * locum_pin() - forbid unloading while a CPU is nested or memory is away, under locum.lock
 *
 * Without the module nobody could leave or give the memory back.
 */
void locum_pin(void)
{
	static bool pinned;
	bool want = locum_any_nested() || locum_ranges_touch(0, U64_MAX, 0);

	if (want && !pinned)
		__module_get(THIS_MODULE);
	if (!want && pinned)
		module_put(THIS_MODULE);
	pinned = want;
}
