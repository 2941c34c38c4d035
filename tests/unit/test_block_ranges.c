/* How discards and zeroes are cut for a device: blk/queue.c. */
#include <string.h>

#include "blk/queue.h"
#include "tests/unit/unit.h"

enum { KIB = 1024 };

static struct block_device device;
static unsigned completions;

static void wake(struct block_device *woken) {
    assert_ptr_equal(woken, &device);
}

static void complete(struct block_request *request) {
    assert_int_equal(request->status, 0);
    completions++;
}

static void set_up(void) {
    completions = 0;
    device = (struct block_device){.name = "test",
                                   .model = "test",
                                   .capacity_bytes = UINT64_C(1) << 40,
                                   .wake = wake,
                                   .limits = {.block_bytes = 512,
                                              .physical_block_bytes = 512,
                                              .segments_max = 4,
                                              .segment_bytes_max = 1024 * KIB,
                                              .discard_bytes_max = 100 * KIB,
                                              .discard_align_bytes = 64 * KIB}};
}

static struct block_request request;

static void submit(enum block_operation operation, uint64_t offset, uint64_t length) {
    request = (struct block_request){
        .operation = operation, .offset = offset, .length = length, .complete = complete};
    block_submit(&device, &request);
}

/* Takes the next part, which must be this one, and reports it done. */
static struct block_part expect_part(uint64_t offset, uint64_t length) {
    struct block_part part;
    assert_true(block_queue_next(&device, &part));
    assert_int_equal(part.offset, offset);
    assert_int_equal(part.length, length);
    block_queue_done(&device, part.request, 0);
    return part;
}

static void expect_done(void) {
    struct block_part part;
    assert_int_equal(completions, 1);
    assert_false(block_queue_next(&device, &part));
}

TEST(a_long_discard_is_cut_where_the_device_likes_it) {
    set_up();
    submit(BLOCK_DISCARD, 4 * KIB, 256 * KIB);
    expect_part(4 * KIB, 60 * KIB);
    expect_part(64 * KIB, 64 * KIB);
    expect_part(128 * KIB, 64 * KIB);
    expect_part(192 * KIB, 68 * KIB);
    expect_done();
}

TEST(a_discard_within_the_limit_stays_whole_however_it_lies) {
    set_up();
    submit(BLOCK_DISCARD, 4 * KIB, 100 * KIB);
    expect_part(4 * KIB, 100 * KIB);
    expect_done();
}

TEST(an_alignment_that_cannot_be_kept_is_not) {
    set_up();
    device.limits.discard_align_bytes = 128 * KIB;
    submit(BLOCK_DISCARD, 4 * KIB, 300 * KIB);
    expect_part(4 * KIB, 100 * KIB);
    expect_part(104 * KIB, 24 * KIB);
    expect_part(128 * KIB, 100 * KIB);
    expect_part(228 * KIB, 76 * KIB);
    expect_done();
}

static void expect_zeroes(const struct block_part *part) {
    uint64_t length = 0;
    assert_int_equal(part->operation, BLOCK_WRITE);
    for (unsigned i = 0; i < part->segment_count; i++) {
        const uint8_t *bytes = part->segments[i].data;
        assert_int_equal(part->segments[i].length % device.limits.block_bytes, 0);
        assert_true(part->segments[i].length <= device.limits.segment_bytes_max);
        for (uint32_t at = 0; at < part->segments[i].length; at++) {
            assert_int_equal(bytes[at], 0);
        }
        length += part->segments[i].length;
    }
    assert_int_equal(length, part->length);
}

TEST(a_device_that_cannot_zero_is_given_zeroes_to_write) {
    set_up();
    submit(BLOCK_WRITE_ZEROES, 512, 300 * KIB);
    struct block_part part = expect_part(512, 256 * KIB);
    expect_zeroes(&part);
    part = expect_part(512 + 256 * KIB, 44 * KIB);
    expect_zeroes(&part);
    expect_done();
}

TEST(zeroes_to_write_obey_the_smallest_limits) {
    set_up();
    device.limits.block_bytes = 4096;
    device.limits.segments_max = 1;
    device.limits.segment_bytes_max = 5000;
    submit(BLOCK_WRITE_ZEROES, 8192, 8192);
    struct block_part part = expect_part(8192, 4096);
    expect_zeroes(&part);
    part = expect_part(12288, 4096);
    expect_zeroes(&part);
    expect_done();
}

TEST(zeroes_to_write_that_found_no_room_come_again) {
    set_up();
    submit(BLOCK_WRITE_ZEROES, 0, 300 * KIB);
    struct block_part part;
    assert_true(block_queue_next(&device, &part));
    block_queue_return(&device, &part);
    part = expect_part(0, 256 * KIB);
    expect_zeroes(&part);
    expect_part(256 * KIB, 44 * KIB);
    expect_done();
}
