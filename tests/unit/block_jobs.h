/* Requests for tests of blk/queue.c, which play the driver: they take parts and report them done in
 * whatever order they like. One disk and a handful of jobs for each program that includes this. */
#ifndef TESTS_UNIT_BLOCK_JOBS_H
#define TESTS_UNIT_BLOCK_JOBS_H

#include "blk/queue.h"

#include <string.h>

#include "tests/unit/unit.h"

enum { JOBS_MAX = 16, DISK_BYTES = 1 << 20 };

static struct block_device device;
static unsigned wakes;

struct job {
    struct block_request request;
    struct segment segments[BLOCK_SEGMENTS_MAX + 40];
    unsigned completions;
    unsigned order; /* of completion, from 1 */
};

static struct job jobs[JOBS_MAX];
static unsigned completed;
static uint8_t data[256 * 1024];

static inline void wake(struct block_device *woken) {
    assert_ptr_equal(woken, &device);
    wakes++;
}

static inline void complete(struct block_request *request) {
    struct job *job = request->owner;
    job->completions++;
    job->order = ++completed;
}

static inline void set_up(void) {
    device = (struct block_device){.name = "test",
                                   .model = "test",
                                   .capacity_bytes = DISK_BYTES,
                                   .wake = wake,
                                   .limits = {.block_bytes = 512,
                                              .physical_block_bytes = 4096,
                                              .segments_max = 4,
                                              .segment_bytes_max = 8192,
                                              .discard_bytes_max = 16384,
                                              .zeroes_bytes_max = 8192,
                                              .has_cache = true}};
    memset(jobs, 0, sizeof jobs);
    completed = 0;
    wakes = 0;
}

static inline struct block_request *prepare(unsigned i, enum block_operation operation,
                                            uint64_t offset, uint64_t length) {
    jobs[i].request = (struct block_request){.operation = operation,
                                             .offset = offset,
                                             .length = length,
                                             .complete = complete,
                                             .owner = &jobs[i]};
    return &jobs[i].request;
}

static inline struct block_request *submit(unsigned i, enum block_operation operation,
                                           uint64_t offset, uint32_t length, unsigned flags) {
    struct block_request *request = prepare(i, operation, offset, length);
    request->flags = flags;
    if (operation == BLOCK_READ || operation == BLOCK_WRITE) {
        jobs[i].segments[0] = (struct segment){data, length};
        request->segments = jobs[i].segments;
        request->segment_count = 1;
    }
    block_submit(&device, request);
    return request;
}

static inline struct block_part next(void) {
    struct block_part part;
    assert_true(block_queue_has_work(&device));
    assert_true(block_queue_next(&device, &part));
    return part;
}

static inline void expect_no_part(void) {
    struct block_part part;
    assert_false(block_queue_next(&device, &part));
}

#endif
