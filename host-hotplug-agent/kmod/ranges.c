// SPDX-License-Identifier: GPL-2.0
/*
 * The table of memory that is not Linux's at present: sorted, without overlap, neighbours of one state merged.
 * Everything under locum.lock.
 */
#include "locum.h"
#include <linux/string.h>

#define MAX_PIECES 64

struct piece {
	u64 start;
	u64 end;	/* exclusive */
	u32 state;
};

/* Room for a set() in the middle of one, before merging. */
static struct piece pieces[MAX_PIECES + 2];
static u32 count;

static void append(struct piece *to, u32 *n, u64 start, u64 end, u32 state)
{
	if (start >= end || !state)
		return;
	if (*n && to[*n - 1].end == start && to[*n - 1].state == state) {
		to[*n - 1].end = end;
		return;
	}
	to[*n].start = start;
	to[*n].end = end;
	to[*n].state = state;
	++*n;
}

/**
 * locum_ranges_set() - set the state of a range
 * @start: first byte
 * @size: bytes
 * @state: enum locum_range_state, 0 to forget the range
 *
 * Return: 0, -ENOSPC (nothing changed).
 */
int locum_ranges_set(u64 start, u64 size, u32 state)
{
	static struct piece next[MAX_PIECES + 2];
	u64 end = start + size;
	bool placed = false;
	u32 n = 0;
	u32 i;

	for (i = 0; i < count; i++) {
		const struct piece *piece = &pieces[i];

		append(next, &n, piece->start, min(piece->end, start), piece->state);
		if (!placed && piece->end > start) {
			append(next, &n, start, end, state);
			placed = true;
		}
		append(next, &n, max(piece->start, end), piece->end, piece->state);
	}
	if (!placed)
		append(next, &n, start, end, state);
	if (n > MAX_PIECES)
		return -ENOSPC;
	memcpy(pieces, next, sizeof(pieces));
	count = n;
	return 0;
}

/**
 * locum_ranges_replace() - change the state of all ranges that are in another
 * @from: state to look for
 * @to: state to set
 */
void locum_ranges_replace(u32 from, u32 to)
{
	u32 n = 0;
	u32 i;

	/* In place: append() never writes beyond the piece that is read. */
	for (i = 0; i < count; i++) {
		struct piece piece = pieces[i];

		append(pieces, &n, piece.start, piece.end, piece.state == from ? to : piece.state);
	}
	count = n;
}

/**
 * locum_ranges_cover() - is all of a range in a state?
 * @start: first byte
 * @size: bytes, not 0
 * @state: enum locum_range_state
 *
 * Return: whether every byte is. Neighbours of one state are merged, so one piece must hold them all.
 */
bool locum_ranges_cover(u64 start, u64 size, u32 state)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (pieces[i].state == state && pieces[i].start <= start && start < pieces[i].end &&
		    size <= pieces[i].end - start)
			return true;
	return false;
}

/**
 * locum_ranges_touch() - is any of a range in a state?
 * @start: first byte
 * @size: bytes
 * @state: enum locum_range_state, 0 for any
 *
 * Return: whether at least a byte is.
 */
bool locum_ranges_touch(u64 start, u64 size, u32 state)
{
	u32 i;

	for (i = 0; i < count; i++)
		if ((!state || pieces[i].state == state) && pieces[i].start < start + size && start < pieces[i].end)
			return true;
	return false;
}
