// SPDX-License-Identifier: GPL-2.0
/* Fake L0 only: this program is the other host at the rings' far ends. */
#include "check.h"
#include <pthread.h>

#define CHANNEL "/dev/locum-chan2"
#define NUMBER 2

static volatile struct locum_channel_ring *in, *out;

/* The other host: sends back what it gets, until the end. */
static void *echo(void *unused)
{
	while (!(out->flags & LOCUM_FLAG_EOF) || out->head != out->tail) {
		uint32_t bytes = out->head - out->tail;
		uint32_t room = fake_ring_data() - (in->head - in->tail);

		if (bytes > room)
			bytes = room;
		if (!bytes) {
			usleep(500);
			continue;
		}
		for (uint32_t i = 0; i < bytes; i++)
			in->data[(in->head + i) % fake_ring_data()] = out->data[(out->tail + i) % fake_ring_data()];
		__sync_synchronize();
		in->head += bytes;
		out->tail += bytes;
	}
	in->flags = LOCUM_FLAG_EOF;
	return unused;
}

#define STREAM (1 << 20)
static unsigned char sent[STREAM], got[STREAM];

static void *send_all(void *file)
{
	size_t done = 0;

	while (done < STREAM) {
		ssize_t n = write((int)(intptr_t)file, sent + done, STREAM - done);

		if (n <= 0) {
			CHECK(!"write goes on");
			break;
		}
		done += n;
	}
	CHECK(!ioctl((int)(intptr_t)file, LOCUM_CHAN_SHUTDOWN, &(unsigned int){ LOCUM_SHUT_WRITE }));
	FAILS(write((int)(intptr_t)file, sent, 1), EPIPE);
	return NULL;
}

static void stream(int file)
{
	pthread_t other, writer;
	size_t done = 0;
	ssize_t n;

	for (size_t i = 0; i < STREAM; i++)
		sent[i] = rand();
	in->head = 0xfffffff0;	/* positions wrap */
	in->tail = 0xfffffff0;
	out->head = 0xffff8000;
	out->tail = 0xffff8000;
	pthread_create(&other, NULL, echo, NULL);
	pthread_create(&writer, NULL, send_all, (void *)(intptr_t)file);
	while ((n = read(file, got + done, STREAM - done)) > 0)
		done += n;
	CHECK(n == 0 && done == STREAM && !memcmp(sent, got, STREAM));
	pthread_join(writer, NULL);
	pthread_join(other, NULL);
}

void test_channels(void)
{
	volatile struct locum_host_status *other = fake_host(other_slot());
	struct pollfd poller = { .events = POLLIN | POLLOUT };
	int file, second;
	char byte;

	out = fake_ring(NUMBER, machine.slot);
	in = fake_ring(NUMBER, other_slot());
	other->state = LOCUM_HOST_STATE_ABSENT;
	file = open(CHANNEL, O_RDWR);
	CHECK(file >= 0);
	second = open(CHANNEL, O_RDONLY);
	CHECK(second == -1 && errno == EBUSY);
	FAILS(read(file, &byte, 1), ENOTCONN);
	FAILS(write(file, &byte, 1), ENOTCONN);

	other->state = LOCUM_HOST_STATE_RUNNING;
	fcntl(file, F_SETFL, O_NONBLOCK);
	FAILS(read(file, &byte, 1), EAGAIN);
	poller.fd = file;
	CHECK(poll(&poller, 1, 1000) == 1 && poller.revents == POLLOUT);
	poller.events = POLLIN;
	CHECK(poll(&poller, 1, 20) == 0);
	in->data[0] = 'x';
	in->head = 1;
	CHECK(poll(&poller, 1, 1000) == 1 && poller.revents == POLLIN);
	CHECK(read(file, &byte, 1) == 1 && byte == 'x' && in->tail == 1);
	CHECK(write(file, sent, sizeof(sent)) == (ssize_t)fake_ring_data());
	FAILS(write(file, sent, 1), EAGAIN);
	out->closed = 1;
	FAILS(write(file, sent, 1), EPIPE);
	out->closed = 0;
	in->head = in->tail + fake_ring_data() + 1;
	FAILS(read(file, &byte, 1), EIO);
	in->head = in->tail;
	fcntl(file, F_SETFL, 0);
	stream(file);
	close(file);
	CHECK(out->flags == LOCUM_FLAG_EOF && in->closed == 1);
	in->head += 5;
	in->flags = 0;
	file = open(CHANNEL, O_RDWR | O_NONBLOCK);
	CHECK(file >= 0 && out->flags == 0 && in->closed == 0 && in->head == in->tail);
	FAILS(read(file, &byte, 1), EAGAIN);
	close(file);
	other->state = LOCUM_HOST_STATE_ABSENT;
}
