/* The request queue of a block device: blk/queue.c. Order, splitting, flush and FUA; merging and
 * what comes with resets and partitions is in test_block_merge.c. */
#include <stdlib.h>
#include <string.h>

#include "boot/host/host.h"
#include "core/task/event.h"
#include "tests/unit/block_jobs.h"

/* --- Order and splitting --- */

TEST(a_request_passes_whole_when_it_fits) {
    set_up();
    struct block_request *request = submit(0, BLOCK_READ, 4096, 8192, 0);
    assert_int_equal(wakes, 1);
    struct block_part part = next();
    assert_ptr_equal(part.request, request);
    assert_int_equal(part.operation, BLOCK_READ);
    assert_int_equal(part.offset, 4096);
    assert_int_equal(part.length, 8192);
    assert_int_equal(part.segment_count, 1);
    assert_ptr_equal(part.segments[0].data, data);
    expect_no_part();
    assert_false(block_queue_has_work(&device));
    block_queue_done(&device, request, 0);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(request->status, 0);
}

TEST(requests_are_taken_in_the_order_they_came) {
    set_up();
    for (unsigned i = 0; i < 5; i++) {
        submit(i, BLOCK_WRITE, i * 8192, 4096, 0);
    }
    for (unsigned i = 0; i < 5; i++) {
        assert_ptr_equal(next().request, &jobs[i].request);
    }
    for (unsigned i = 5; i-- > 0;) {
        block_queue_done(&device, &jobs[i].request, 0);
        assert_int_equal(jobs[i].order, 5 - i);
    }
}

TEST(a_request_above_the_limits_is_complete_when_its_last_part_is) {
    set_up();
    struct block_request *request = submit(0, BLOCK_READ, 0, 3 * 32768 + 512, 0);
    static const uint64_t lengths[] = {32768, 32768, 32768, 512};
    uint64_t at = 0;
    for (unsigned i = 0; i < 4; i++) {
        struct block_part part = next();
        assert_int_equal(part.offset, at);
        assert_int_equal(part.length, lengths[i]);
        assert_ptr_equal(part.segments[0].data, data + at);
        at += lengths[i];
    }
    expect_no_part();
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(jobs[0].completions, 0);
        block_queue_done(&device, request, 0);
    }
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(device.stats.parts, 4);
    assert_int_equal(device.stats.operations[BLOCK_READ], 1);
    assert_int_equal(device.stats.bytes[BLOCK_READ], 3 * 32768 + 512);
}

TEST(parts_done_before_the_last_is_issued_do_not_complete) {
    set_up();
    struct block_request *request = submit(0, BLOCK_READ, 0, 65536, 0);
    (void)next();
    block_queue_done(&device, request, 0);
    assert_int_equal(jobs[0].completions, 0);
    (void)next();
    block_queue_done(&device, request, 0);
    assert_int_equal(jobs[0].completions, 1);
}

TEST(discards_and_zeroes_are_split_by_their_own_limits) {
    set_up();
    struct block_request *discard = submit(0, BLOCK_DISCARD, 4096, 20000 / 512 * 512, 0);
    struct block_request *zeroes = submit(1, BLOCK_WRITE_ZEROES, 0, 8192 + 512, BLOCK_UNMAP);
    assert_int_equal(next().length, 16384);
    struct block_part part = next();
    assert_int_equal(part.offset, 4096 + 16384);
    assert_int_equal(part.length, 20000 / 512 * 512 - 16384);
    assert_int_equal(part.segment_count, 0);
    part = next();
    assert_int_equal(part.length, 8192);
    assert_int_equal(part.flags, BLOCK_UNMAP);
    assert_int_equal(next().length, 512);
    expect_no_part();
    for (int i = 0; i < 2; i++) {
        block_queue_done(&device, discard, 0);
        block_queue_done(&device, zeroes, 0);
    }
    assert_int_equal(completed, 2);
}

/* A driver that takes the queue's word: every part within the limits, whole blocks, and all parts
 * together exactly the request, each byte at its place. Some parts are put back first. */
static void expect_parts_cover(struct block_request *request, const uint8_t *const *bytes) {
    const struct block_limits *limits = &device.limits;
    uint64_t at = 0;
    unsigned parts = 0;
    while (at < request->length) {
        struct block_part part;
        assert_true(block_queue_next(&device, &part));
        if (unit_random_below(3) == 0) {
            block_queue_return(&device, &part);
            continue;
        }
        assert_ptr_equal(part.request, request);
        assert_int_equal(part.offset, request->offset + at);
        assert_true(part.length > 0 && part.length % limits->block_bytes == 0);
        assert_in_range(part.segment_count, 1, limits->segments_max);
        uint64_t sum = 0;
        for (unsigned i = 0; i < part.segment_count; i++) {
            assert_in_range(part.segments[i].length, 1, limits->segment_bytes_max);
            for (uint32_t j = 0; j < part.segments[i].length; j++) {
                if ((uint8_t *)part.segments[i].data + j != bytes[at + sum + j]) {
                    fail_msg("byte %llu is not at its place", (unsigned long long)(at + sum + j));
                }
            }
            sum += part.segments[i].length;
        }
        assert_int_equal(sum, part.length);
        at += part.length;
        parts++;
    }
    assert_int_equal(at, request->length);
    assert_int_equal(device.stats.parts, parts);
    expect_no_part();
    for (; parts > 0; parts--) {
        assert_int_equal(jobs[0].completions, 0);
        block_queue_done(&device, request, 0);
    }
    assert_int_equal(jobs[0].completions, 1);
}

/* Fills the first job's request with segments whose lengths sum to whole blocks; `bytes` gets the
 * address of every byte. */
static struct block_request *random_request(unsigned count, bool whole_blocks,
                                            const uint8_t **bytes) {
    struct block_request *request = prepare(0, BLOCK_WRITE, 512 * unit_random_below(100), 0);
    uint32_t block = device.limits.block_bytes;
    for (unsigned i = 0; i < count; i++) {
        uint32_t length = whole_blocks ? block * (uint32_t)(1 + unit_random_below(2))
                                       : (uint32_t)(1 + unit_random_below(3000));
        if (i + 1 == count && !whole_blocks) {
            length =
                block + (uint32_t)((block - (request->length + length) % block) + length) - block;
        }
        uint8_t *start = data + unit_random_below(sizeof data - 8192);
        jobs[0].segments[i] = (struct segment){start, length};
        for (uint32_t j = 0; j < length; j++) {
            bytes[request->length + j] = start + j;
        }
        request->length += length;
    }
    assert_int_equal(request->length % block, 0);
    request->segments = jobs[0].segments;
    request->segment_count = count;
    return request;
}

TEST(parts_cover_any_request_exactly_in_order_in_whole_blocks) {
    static const uint8_t *bytes[(BLOCK_SEGMENTS_MAX + 40) * 2 * 4096];
    for (int round = 0; round < 400; round++) {
        set_up();
        device.limits.block_bytes = 512u << unit_random_below(4);
        device.limits.segments_max = (uint32_t)(1 + unit_random_below(20));
        device.limits.segment_bytes_max =
            device.limits.block_bytes + (uint32_t)unit_random_below(6000);
        bool whole_blocks = unit_random_below(2) == 0;
        unsigned count_max = whole_blocks ? BLOCK_SEGMENTS_MAX + 40 : block_segments_max(&device);
        struct block_request *request =
            random_request((unsigned)(1 + unit_random_below(count_max)), whole_blocks, bytes);
        block_submit(&device, request);
        expect_parts_cover(request, bytes);
    }
}

/* --- Return --- */

TEST(a_returned_part_comes_again_as_it_was) {
    set_up();
    submit(0, BLOCK_WRITE, 0, 40960, 0);
    submit(1, BLOCK_WRITE, 65536, 512, 0);
    for (int i = 0; i < 3; i++) {
        struct block_part first = next();
        struct block_part again;
        block_queue_return(&device, &first);
        again = next();
        assert_ptr_equal(again.request, first.request);
        assert_int_equal(again.offset, first.offset);
        assert_int_equal(again.length, first.length);
        assert_int_equal(again.segment_count, first.segment_count);
        for (unsigned j = 0; j < first.segment_count; j++) {
            assert_ptr_equal(again.segments[j].data, first.segments[j].data);
            assert_int_equal(again.segments[j].length, first.segments[j].length);
        }
    }
    expect_no_part();
    assert_int_equal(device.stats.parts, 3);
}

TEST(a_returned_request_keeps_its_place_before_later_ones) {
    set_up();
    submit(0, BLOCK_WRITE, 0, 512, 0);
    struct block_part part = next();
    submit(1, BLOCK_WRITE, 4096, 512, 0);
    block_queue_return(&device, &part);
    submit(2, BLOCK_WRITE, 1024, 512, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_ptr_equal(next().request, &jobs[i].request);
    }
}

TEST(a_returned_flush_keeps_its_place_and_its_company) {
    set_up();
    submit(0, BLOCK_FLUSH, 0, 0, 0);
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    struct block_part part = next();
    submit(2, BLOCK_FLUSH, 0, 0, 0);
    block_queue_return(&device, &part);
    assert_int_equal(device.stats.device_flushes, 0);
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].order, i + 1);
    }
}

/* --- Flush and FUA --- */

TEST(a_flush_goes_at_once_past_what_waits) {
    set_up();
    submit(0, BLOCK_WRITE, 0, 512, 0);
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    struct block_part part = next();
    assert_int_equal(part.operation, BLOCK_FLUSH);
    assert_null(part.request);
    assert_int_equal(next().operation, BLOCK_WRITE);
}

/* The promise: what was completed before the flush was submitted is covered by a device flush that
 * was issued after that completion. A flush in flight since before does not count. */
TEST(a_flush_submitted_during_another_gets_a_device_flush_of_its_own) {
    set_up();
    submit(0, BLOCK_FLUSH, 0, 0, 0);
    (void)next();
    struct block_request *write = submit(1, BLOCK_WRITE, 0, 512, 0);
    (void)next();
    block_queue_done(&device, write, 0);
    submit(2, BLOCK_FLUSH, 0, 0, 0);
    assert_false(block_queue_has_work(&device));
    expect_no_part();
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(jobs[2].completions, 0);
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[2].completions, 1);
    assert_int_equal(device.stats.device_flushes, 2);
}

TEST(flushes_that_wait_together_share_one_of_the_device) {
    set_up();
    submit(0, BLOCK_FLUSH, 0, 0, 0);
    (void)next();
    for (unsigned i = 1; i < 6; i++) {
        submit(i, BLOCK_FLUSH, 0, 0, 0);
    }
    block_queue_done(&device, NULL, 0);
    (void)next();
    expect_no_part();
    block_queue_done(&device, NULL, 0);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(jobs[i].completions, 1);
    }
    assert_int_equal(device.stats.device_flushes, 2);
}

TEST(a_write_with_fua_is_complete_after_a_flush_that_followed_it) {
    set_up();
    struct block_request *request = submit(0, BLOCK_WRITE, 0, 65536, BLOCK_FUA);
    (void)next();
    (void)next();
    expect_no_part();
    block_queue_done(&device, request, 0);
    expect_no_part();
    block_queue_done(&device, request, 0);
    assert_int_equal(jobs[0].completions, 0);
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(request->status, 0);
}

TEST(fua_is_not_served_by_a_flush_already_in_flight) {
    set_up();
    struct block_request *request = submit(0, BLOCK_WRITE, 0, 512, BLOCK_FUA);
    (void)next();
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, request, 0);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[1].completions, 1);
    assert_int_equal(jobs[0].completions, 0);
    (void)next();
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[0].completions, 1);
}

TEST(finishing_parts_wakes_the_driver_when_fua_asks_for_a_flush) {
    set_up();
    struct block_request *request = submit(0, BLOCK_WRITE, 0, 512, BLOCK_FUA);
    (void)next();
    unsigned before = wakes;
    block_queue_done(&device, request, 0);
    assert_int_equal(wakes, before + 1);
}

TEST(without_a_cache_flush_and_fua_cost_nothing) {
    set_up();
    device.limits.has_cache = false;
    submit(0, BLOCK_FLUSH, 0, 0, 0);
    expect_no_part();
    assert_int_equal(jobs[0].completions, 1);
    struct block_request *request = submit(1, BLOCK_WRITE, 0, 512, BLOCK_FUA);
    (void)next();
    block_queue_done(&device, request, 0);
    assert_int_equal(jobs[1].completions, 1);
    assert_int_equal(device.stats.device_flushes, 0);
}

/* --- Errors --- */

TEST(the_first_error_of_the_parts_is_the_request_s) {
    set_up();
    struct block_request *request = submit(0, BLOCK_READ, 0, 3 * 32768, 0);
    for (int i = 0; i < 3; i++) {
        (void)next();
    }
    block_queue_done(&device, request, 0);
    block_queue_done(&device, request, -EIO);
    block_queue_done(&device, request, -ENOTSUP);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(request->status, -EIO);
    assert_int_equal(device.stats.errors[BLOCK_READ], 1);
    assert_logged("test: read of 98304 at 0 failed: error -5");
}

TEST(a_failed_write_with_fua_is_not_flushed) {
    set_up();
    struct block_request *request = submit(0, BLOCK_WRITE, 0, 512, BLOCK_FUA);
    (void)next();
    block_queue_done(&device, request, -EIO);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(request->status, -EIO);
    assert_false(block_queue_has_work(&device));
}

TEST(a_failed_flush_fails_all_that_it_serves) {
    set_up();
    struct block_request *write = submit(0, BLOCK_WRITE, 0, 512, BLOCK_FUA);
    (void)next();
    block_queue_done(&device, write, 0);
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    (void)next();
    block_queue_done(&device, NULL, -EIO);
    assert_int_equal(jobs[0].request.status, -EIO);
    assert_int_equal(jobs[1].request.status, -EIO);
    assert_int_equal(device.stats.errors[BLOCK_FLUSH], 1);
    assert_int_equal(device.stats.errors[BLOCK_WRITE], 1);
}

TEST(a_device_that_is_gone_fails_what_waits_and_later_what_it_held) {
    set_up();
    struct block_request *begun = submit(0, BLOCK_READ, 0, 65536, 0);
    (void)next();
    submit(1, BLOCK_READ, 0, 512, 0);
    submit(2, BLOCK_FLUSH, 0, 0, 0);
    block_queue_fail_waiting(&device, -EIO);
    assert_int_equal(jobs[1].request.status, -EIO);
    assert_int_equal(jobs[2].request.status, -EIO);
    assert_int_equal(jobs[0].completions, 0);
    assert_false(block_queue_has_work(&device));
    block_queue_done(&device, begun, 0);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(begun->status, -EIO);
    assert_int_equal(device.stats.in_flight, 0);
}

static void submit_another(struct block_request *request) {
    complete(request);
    submit(1, BLOCK_READ, 0, 512, 0);
}

TEST(a_completion_may_submit_the_next_request) {
    set_up();
    struct block_request *request = submit(0, BLOCK_READ, 0, 512, 0);
    request->complete = submit_another;
    (void)next();
    block_queue_done(&device, request, 0);
    assert_ptr_equal(next().request, &jobs[1].request);
    assert_int_equal(device.stats.in_flight, 1);
    assert_int_equal(device.stats.in_flight_peak, 1);
}

static void flush_again(struct block_request *request) {
    complete(request);
    if (completed == 1) {
        submit(1, BLOCK_FLUSH, 0, 0, 0);
    }
}

TEST(without_a_cache_a_flush_may_submit_another) {
    set_up();
    device.limits.has_cache = false;
    struct block_request *request = prepare(0, BLOCK_FLUSH, 0, 0);
    request->complete = flush_again;
    block_submit(&device, request);
    expect_no_part();
    assert_true(block_queue_has_work(&device));
    assert_int_equal(wakes, 2);
    expect_no_part();
    assert_int_equal(completed, 2);
}

/* --- A long random run against a simple model --- */

/* Time is counted in steps. A flush must be complete only by a device flush that was issued after
 * its submission; a write with FUA, after its last part was done. */
static struct {
    unsigned step;
    unsigned flush_issued;
    unsigned covers_from[JOBS_MAX];
    struct block_part held[64];
    unsigned held_count;
    unsigned submitted;
} model;

static void complete_in_model(struct block_request *request) {
    complete(request);
    if (request->operation == BLOCK_FLUSH || (request->flags & BLOCK_FUA) != 0) {
        assert_true(model.flush_issued > model.covers_from[(struct job *)request->owner - jobs]);
    }
}

static void submit_random(void) {
    static const enum block_operation operations[] = {BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH};
    enum block_operation operation = operations[unit_random_below(3)];
    uint32_t length = operation == BLOCK_FLUSH ? 0 : 512 * (uint32_t)(1 + unit_random_below(200));
    bool has_fua = operation == BLOCK_WRITE && unit_random_below(2) == 0;
    unsigned i = model.submitted++;
    model.covers_from[i] = model.step;
    submit(i, operation, 0, length, has_fua ? BLOCK_FUA : 0)->complete = complete_in_model;
}

static void take_random(void) {
    struct block_part part;
    if (!block_queue_next(&device, &part)) {
        return;
    }
    if (unit_random_below(4) == 0) {
        block_queue_return(&device, &part);
        return;
    }
    if (part.request == NULL) {
        model.flush_issued = model.step;
    }
    model.held[model.held_count++] = part;
}

static void finish_random(void) {
    unsigned victim = (unsigned)unit_random_below(model.held_count);
    struct block_request *request = model.held[victim].request;
    model.held[victim] = model.held[--model.held_count];
    if (request != NULL) {
        model.covers_from[(struct job *)request->owner - jobs] = model.step;
    }
    block_queue_done(&device, request, 0);
}

TEST(random_load_completes_every_request_once_and_flushes_cover_what_they_must) {
    for (int round = 0; round < 500; round++) {
        set_up();
        memset(&model, 0, sizeof model);
        while (completed < JOBS_MAX) {
            model.step++;
            uint64_t choice = unit_random_below(4);
            if (choice == 0 && model.submitted < JOBS_MAX) {
                submit_random();
            } else if (choice == 1 && model.held_count < ARRAY_COUNT(model.held)) {
                take_random();
            } else if (model.held_count > 0) {
                finish_random();
            }
        }
        for (unsigned i = 0; i < JOBS_MAX; i++) {
            assert_int_equal(jobs[i].completions, 1);
        }
        assert_int_equal(model.held_count, 0);
        assert_int_equal(device.stats.in_flight, 0);
    }
}

/* --- Gathering --- */

static unsigned served;
static bool serves_at_once;

static bool serve(struct block_device *device_now) {
    struct block_part part;
    assert_ptr_equal(device_now, &device);
    served++;
    while (serves_at_once && block_queue_next(&device, &part)) {
        block_queue_done(&device, part.request, 0);
    }
    return serves_at_once;
}

TEST(what_is_gathered_waits_until_all_is_served) {
    set_up();
    assert_int_equal(block_register(&device), 0);
    block_gather();
    submit(0, BLOCK_READ, 0, 512, 0);
    submit(1, BLOCK_READ, 4096, 512, 0);
    assert_int_equal(wakes, 0);
    assert_false(block_serve()); /* a device that does not serve by itself is woken */
    assert_int_equal(wakes, 1);
    for (unsigned i = 0; i < 2; i++) {
        struct block_part part = next();
        block_queue_done(&device, part.request, 0);
    }
    submit(2, BLOCK_READ, 0, 512, 0);
    assert_int_equal(wakes, 2); /* gathered no more */
    block_unregister(&device);
}

TEST(a_device_that_serves_by_itself_is_not_woken) {
    for (unsigned i = 0; i < 2; i++) {
        serves_at_once = i == 1;
        served = 0;
        set_up();
        device.serve = serve;
        assert_int_equal(block_register(&device), 0);
        block_gather();
        (void)block_serve();
        assert_int_equal(served, 1); /* nothing was submitted, but it may have answered */
        completed = 0;
        block_gather();
        submit(0, BLOCK_READ, 0, 512, 0);
        submit(1, BLOCK_WRITE, 4096, 512, 0);
        assert_int_equal(block_serve(), serves_at_once);
        assert_int_equal(served, 2);
        assert_int_equal(wakes, 0);
        assert_int_equal(completed, serves_at_once ? 2 : 0);
        block_unregister(&device);
    }
}

static struct event *server;

static void note_server(struct block_device *device_now, struct event *event) {
    assert_ptr_equal(device_now, &device);
    server = event;
}

TEST(a_device_learns_whom_to_wake_if_it_can_be_served) {
    struct event event = {0};
    server = NULL;
    set_up();
    assert_int_equal(block_register(&device), 0);
    block_set_server(&event); /* not by this one */
    device.set_server = note_server;
    block_set_server(&event);
    assert_ptr_equal(server, &event);
    block_unregister(&device);
}
