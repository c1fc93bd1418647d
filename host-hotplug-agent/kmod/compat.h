/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What older kernels lack, written with the newest kernel's names, so that the rest of the module knows one kernel only.
 *
 * No version is asked for: distributions carry changes back. Each piece is there if the headers lack the real one, by
 * __has_include() or #ifdef where those can tell, and else by HAS_name, which Kbuild looks up in the header.
 */
#ifndef LOCUM_COMPAT_H
#define LOCUM_COMPAT_H

#include <linux/hrtimer.h>

#ifndef HAS_hrtimer_setup
/* hrtimer_init() and an assignment by hand, before 6.13; they are gone since 6.15. */
static inline void hrtimer_setup(struct hrtimer *timer, enum hrtimer_restart (*function)(struct hrtimer *),
				 clockid_t clock_id, enum hrtimer_mode mode)
{
	hrtimer_init(timer, clock_id, mode);
	timer->function = function;
}
#endif

#endif /* LOCUM_COMPAT_H */
