/* See fuzz.h. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/export.h"
#include "blk/block.h"
#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/config.h"
#include "core/dev/device_node.h"
#include "core/dev/irq.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/task/scheduler.h"
#include "core/virtio/transport.h"
#include "tests/device_ring.h"

enum { HEAP_BYTES_MAX = 16 * 1024 * 1024, LOG_BYTES = 16 * 1024 };

static uint8_t heap_memory[HEAP_BYTES_MAX] __attribute__((aligned(4096)));
static char log_kept[LOG_BYTES];
static size_t log_used;

bool heap_checks = false;

/* Most targets call drivers directly; one that goes through a transport has a table of its own. */
__attribute__((weak)) const struct virtio_driver *const platter_virtio_drivers[] = {NULL};

/* The last of it: half is dropped when it is full. */
static size_t keep_log(void *unused, const char *text, size_t length) {
    (void)unused;
    size_t kept = length < LOG_BYTES / 2 ? length : LOG_BYTES / 2;
    if (kept > LOG_BYTES - log_used) {
        memmove(log_kept, log_kept + LOG_BYTES / 2, log_used - LOG_BYTES / 2);
        log_used -= LOG_BYTES / 2;
    }
    memcpy(log_kept + log_used, text, kept);
    log_used += kept;
    return length;
}

static _Noreturn void show_log_and_abort(void) {
    (void)fwrite(log_kept, 1, log_used, stderr); /* to whom could it be said */
    (void)fflush(stderr);
    abort();
}

static void halted(bool failed) {
    (void)fprintf(stderr, "the code under test %s\n", failed ? "panics" : "halts");
    show_log_and_abort();
}

void fuzz_fail(const char *what, const char *file, int line) {
    log_flush();
    (void)fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    show_log_and_abort();
}

uint8_t fuzz_u8(struct fuzz_input *input) {
    if (input->left == 0) {
        return 0;
    }
    input->left--;
    return *input->at++;
}

uint16_t fuzz_u16(struct fuzz_input *input) {
    uint16_t low = fuzz_u8(input);
    return (uint16_t)(low | fuzz_u8(input) << 8);
}

uint32_t fuzz_u32(struct fuzz_input *input) {
    uint32_t low = fuzz_u16(input);
    return low | (uint32_t)fuzz_u16(input) << 16;
}

uint64_t fuzz_u64(struct fuzz_input *input) {
    uint64_t low = fuzz_u32(input);
    return low | (uint64_t)fuzz_u32(input) << 32;
}

const uint8_t *fuzz_bytes(struct fuzz_input *input, size_t *bytes) {
    const uint8_t *at = input->at;
    *bytes = *bytes < input->left ? *bytes : input->left;
    input->at += *bytes;
    input->left -= *bytes;
    return at;
}

void fuzz_log_again(void) {
    log_set_sink(keep_log, NULL);
}

void device_ring_broken(const char *rule, const char *file, int line) {
    fuzz_fail(rule, file, line);
}

void fuzz_ring_lie(struct fuzz_input *input, unsigned kind, struct device_ring *ring) {
    uint32_t id;
    uint8_t *place;
    switch (kind) {
    case 0: /* a number that may be in flight, a length that may be one */
        id = fuzz_u8(input);
        device_ring_complete(ring, id, fuzz_u16(input));
        break;
    case 1:
        id = fuzz_u32(input);
        device_ring_complete(ring, id, fuzz_u32(input));
        break;
    case 2:
        device_ring_publish(ring, fuzz_u8(input));
        break;
    default: /* anywhere in what it may write */
        place = ring->used + fuzz_u16(input) % (6 + 8 * ring->size);
        *place = fuzz_u8(input);
        break;
    }
}

void fuzz_begin(void) {
    host_clock_set(NS_PER_S);
    host_set_idle(NULL, NULL);
    host_set_mmio(NULL, NULL);
    host_set_halt(halted);
    fuzz_log_again();
    log_used = 0;
}

void fuzz_heap(size_t bytes) {
    heap_forget();
    FUZZ_CHECK(bytes <= sizeof heap_memory && heap_init(heap_memory, bytes) == 0);
}

void fuzz_forget(void) {
    unsigned count = 0;
    scheduler_forget();
    device_tree_forget();
    irq_forget();
    while (block_device_at(count) != NULL) {
        count++;
    }
    while (count > 0) {
        block_unregister(block_device_at(--count));
    }
    nbd_export_forget();
    config_forget();
}
