// SPDX-License-Identifier: GPL-2.0
/*
 * The VMCALL, and what L0 means by its answer.
 */
#include "locum.h"
#include <asm/asm.h>

/**
 * locum_errno() - L0's error as one of Linux's
 * @l0_errno: enum locum_errno, 0 for none
 *
 * Return: 0 or a negative errno, as documented in locum_uapi.h.
 */
int locum_errno(u32 l0_errno)
{
	switch (l0_errno) {
	case 0:
		return 0;
	case LOCUM_ERRNO_ARGUMENT:
		return -EINVAL;
	case LOCUM_ERRNO_NOT_OWNER:
		return -EACCES;
	case LOCUM_ERRNO_NOT_PARKED:
		return -EBUSY;
	case LOCUM_ERRNO_STATE:
		return -EBADFD;
	case LOCUM_ERRNO_NO_SPACE:
		return -ENOSPC;
	case LOCUM_ERRNO_NO_VMX:
		return -EOPNOTSUPP;
	case LOCUM_ERRNO_ENTRY_FAILED:
		return -EIO;
	case LOCUM_ERRNO_TIMEOUT:
		return -ETIMEDOUT;
	case LOCUM_ERRNO_FRAME:
		return -EBADMSG;
	default:
		return -EPROTO;
	}
}

/**
 * locum_vmcall() - ask L0; this CPU must be nested and stay so (preemption off)
 * @op: enum locum_op
 * @arguments: of which only @a, @b and @c are looked at; %NULL for none
 *
 * An L0 of an earlier release does not know every operation; one that it does not ends as without L0: in #UD, or VMfail.
 *
 * Return: 0, the negative of an enum locum_errno, or %LOCUM_UNKNOWN_OP.
 */
long locum_vmcall(u64 op, const struct locum_call *arguments)
{
	static const struct locum_call none;
	const struct locum_call *given = arguments ? arguments : &none;
	long result;

	/* After #UD it goes on behind the instruction; that and VMfail leave RAX as it was: neither 0 nor a small negative number. */
	asm volatile("1:	vmcall\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "=a"(result) : "a"(op), "D"(given->a), "S"(given->b), "d"(given->c) : "memory", "cc");
	return result == (long)op ? LOCUM_UNKNOWN_OP : result;
}
