/* What is known of a disk's content: blk/allocation.c, against a model that looks at every block by
 * itself. The requests go through the block queue, as a driver's do. */
#include "blk/allocation.h"

#include <stdlib.h>
#include <string.h>

#include "blk/queue.h"
#include "tests/unit/unit.h"

enum { BLOCK = 512, BLOCKS = 96, JOBS = 24, ROOMY = BLOCKS };

struct model_block {
    unsigned known;
};

struct job {
    struct block_request request;
    struct segment segment;
    bool is_in_flight;
    bool is_complete;
    bool is_disturbed; /* by the model's reckoning */
    unsigned leaves;
};

static struct block_device device;
static struct job jobs[JOBS];
static struct model_block blocks[BLOCKS];
static uint8_t data[BLOCKS * BLOCK];

static void wake(struct block_device *woken) {
    assert_ptr_equal(woken, &device);
}

static void complete(struct block_request *request) {
    ((struct job *)request->owner)->is_complete = true;
}

static void set_up(unsigned extents_max) {
    device = (struct block_device){.name = "test",
                                   .model = "test",
                                   .capacity_bytes = sizeof data,
                                   .wake = wake,
                                   .limits = {.block_bytes = BLOCK,
                                              .physical_block_bytes = BLOCK,
                                              .segments_max = 4,
                                              .segment_bytes_max = 1 << 20,
                                              .discard_bytes_max = 1 << 20,
                                              .discard_leaves = BLOCK_KNOWN_HOLE,
                                              .zeroes_bytes_max = 1 << 20,
                                              .zeroes_may_unmap = true}};
    memset(jobs, 0, sizeof jobs);
    memset(blocks, 0, sizeof blocks);
    assert_int_equal(block_allocation_enable(&device, extents_max), 0);
}

static void tear_down(void) {
    block_allocation_disable(&device);
}

static struct job *submit(struct job *job, enum block_operation operation, unsigned flags,
                          uint64_t first, uint64_t count) {
    *job = (struct job){.is_in_flight = true,
                        .segment = {data, (uint32_t)(count * BLOCK)},
                        .request = {.operation = operation,
                                    .flags = flags,
                                    .offset = first * BLOCK,
                                    .length = count * BLOCK,
                                    .segments = &job->segment,
                                    .segment_count = operation == BLOCK_WRITE,
                                    .complete = complete,
                                    .owner = job}};
    block_submit(&device, &job->request);
    struct block_part part;
    while (block_queue_next(&device, &part)) {
    }
    return job;
}

static void finish(struct job *job, int error) {
    while (!job->is_complete) {
        block_queue_done(&device, &job->request, error);
    }
    job->is_in_flight = false;
}

static void run(enum block_operation operation, unsigned flags, uint64_t first, uint64_t count) {
    finish(submit(&jobs[0], operation, flags, first, count), 0);
}

/* What is known of one block, and how far the same goes. */
static unsigned known(uint64_t block) {
    unsigned told = 0;
    assert_int_equal(block_known_at(&device, block * BLOCK, BLOCK, &told), BLOCK);
    return told;
}

TEST(nothing_is_known_at_first) {
    set_up(ROOMY);
    unsigned told = 7;
    assert_false(block_knows_any(&device));
    assert_int_equal(block_known_at(&device, 0, sizeof data, &told), sizeof data);
    assert_int_equal(told, 0);
    tear_down();
}

TEST(a_device_without_a_map_knows_nothing) {
    set_up(ROOMY);
    tear_down();
    run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, 8);
    assert_int_equal(known(0), 0);
}

TEST(zeroes_are_zero_and_a_hole_only_when_they_may_be) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, 8);
    run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 8, 8);
    assert_int_equal(known(7), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(8), BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE);
    assert_int_equal(known(16), 0);
    tear_down();
}

TEST(a_device_that_never_unmaps_leaves_no_hole) {
    set_up(ROOMY);
    device.limits.zeroes_may_unmap = false;
    run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, 8);
    assert_int_equal(known(0), BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(a_discard_is_a_hole_and_not_known_to_be_zero_even_where_zeroes_were) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, 16);
    run(BLOCK_DISCARD, 0, 4, 4);
    assert_int_equal(known(3), BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE);
    assert_int_equal(known(4), BLOCK_KNOWN_HOLE);
    assert_int_equal(known(8), BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE);
    tear_down();
}

TEST(a_write_makes_data_when_it_is_submitted) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, 16);
    struct job *write = submit(&jobs[1], BLOCK_WRITE, 0, 4, 2);
    assert_int_equal(known(4), 0);
    finish(write, -EIO);
    assert_int_equal(known(5), 0);
    assert_int_equal(known(3), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(6), BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(zeroes_are_known_only_when_they_are_complete) {
    set_up(ROOMY);
    struct job *zeroes = submit(&jobs[0], BLOCK_WRITE_ZEROES, 0, 0, 8);
    assert_int_equal(known(0), 0);
    finish(zeroes, 0);
    assert_int_equal(known(0), BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(zeroes_that_failed_are_not_known) {
    set_up(ROOMY);
    finish(submit(&jobs[0], BLOCK_WRITE_ZEROES, 0, 0, 8), -EIO);
    assert_int_equal(known(0), 0);
    tear_down();
}

TEST(a_write_submitted_behind_zeroes_in_flight_wins) {
    set_up(ROOMY);
    struct job *zeroes = submit(&jobs[0], BLOCK_WRITE_ZEROES, 0, 0, 8);
    finish(submit(&jobs[1], BLOCK_WRITE, 0, 7, 1), 0);
    finish(zeroes, 0);
    assert_int_equal(known(0), 0);
    assert_int_equal(known(7), 0);
    tear_down();
}

TEST(a_write_still_in_flight_when_zeroes_are_submitted_wins) {
    set_up(ROOMY);
    struct job *write = submit(&jobs[0], BLOCK_WRITE, 0, 7, 1);
    struct job *apart = submit(&jobs[1], BLOCK_WRITE_ZEROES, 0, 8, 8);
    finish(submit(&jobs[2], BLOCK_WRITE_ZEROES, 0, 0, 8), 0);
    finish(apart, 0);
    finish(write, 0);
    assert_int_equal(known(0), 0);
    assert_int_equal(known(8), BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(of_two_overlapping_zeroings_in_flight_neither_is_known) {
    set_up(ROOMY);
    struct job *first = submit(&jobs[0], BLOCK_WRITE_ZEROES, 0, 0, 8);
    struct job *second = submit(&jobs[1], BLOCK_DISCARD, 0, 4, 8);
    finish(first, 0);
    finish(second, 0);
    assert_int_equal(known(0), 0);
    assert_int_equal(known(11), 0);
    tear_down();
}

TEST(neighbours_of_one_kind_are_one_extent) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, 8);
    run(BLOCK_WRITE_ZEROES, 0, 16, 8);
    run(BLOCK_WRITE_ZEROES, 0, 8, 8);
    assert_int_equal(device.allocation->count, 1);
    unsigned told = 0;
    assert_int_equal(block_known_at(&device, BLOCK, sizeof data - BLOCK, &told), 23 * BLOCK);
    assert_int_equal(told, BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(a_full_map_forgets_the_smallest_and_counts_it) {
    set_up(2);
    run(BLOCK_WRITE_ZEROES, 0, 0, 8);
    run(BLOCK_WRITE_ZEROES, 0, 16, 8);
    run(BLOCK_WRITE_ZEROES, 0, 32, 8);
    assert_int_equal(device.allocation->count, 2);
    assert_int_equal(device.allocation->forgotten, 1);
    /* A write into the middle of one leaves two rests, and room for the larger only. */
    run(BLOCK_WRITE, 0, 2, 1);
    assert_int_equal(known(0), 0);
    assert_int_equal(known(3), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(16), BLOCK_KNOWN_ZERO);
    run(BLOCK_WRITE, 0, 22, 1);
    assert_int_equal(known(16), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(23), 0);
    assert_int_equal(device.allocation->forgotten, 3);
    tear_down();
}

TEST(a_device_out_of_service_knows_nothing) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, 8);
    device.is_gone = true;
    assert_int_equal(known(0), 0);
    tear_down();
}

TEST(what_is_forgotten_on_purpose_is_unknown) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, 32);
    block_allocation_forget(device.allocation, 8 * BLOCK, 8 * BLOCK);
    assert_int_equal(known(7), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(8), 0);
    assert_int_equal(known(16), BLOCK_KNOWN_ZERO);
    tear_down();
}

TEST(a_partition_and_its_disk_know_the_same) {
    set_up(ROOMY);
    struct block_device *partition = block_partition_create(
        &device, "test1", "partition", (uint64_t)16 * BLOCK, (uint64_t)32 * BLOCK);
    assert_non_null(partition);
    run(BLOCK_WRITE_ZEROES, 0, 8, 16); /* of the disk: half before the partition */
    unsigned told = 0;
    assert_int_equal(block_known_at(partition, 0, partition->capacity_bytes, &told), 8 * BLOCK);
    assert_int_equal(told, BLOCK_KNOWN_ZERO);
    assert_true(block_knows_any(partition));

    jobs[1] = (struct job){.request = {.operation = BLOCK_WRITE_ZEROES,
                                       .offset = (uint64_t)30 * BLOCK,
                                       .length = (uint64_t)2 * BLOCK,
                                       .complete = complete,
                                       .owner = &jobs[1]}};
    block_submit(partition, &jobs[1].request);
    struct block_part part;
    assert_true(block_queue_next(&device, &part));
    finish(&jobs[1], 0);
    assert_int_equal(known(45), 0);
    assert_int_equal(known(46), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(48), 0);
    free(partition);
    tear_down();
}

TEST(what_lay_behind_the_end_of_a_disk_that_shrank_is_forgotten) {
    set_up(ROOMY);
    run(BLOCK_WRITE_ZEROES, 0, 0, BLOCKS);
    device.capacity_bytes = (uint64_t)8 * BLOCK;
    block_device_changed(&device);
    device.capacity_bytes = sizeof data;
    block_device_changed(&device);
    assert_int_equal(known(7), BLOCK_KNOWN_ZERO);
    assert_int_equal(known(8), 0);
    assert_int_equal(known(BLOCKS - 1), 0);
    tear_down();
}

TEST(without_memory_there_is_no_map) {
    set_up(ROOMY);
    tear_down();
    for (uint64_t successes = 0; successes < 2; successes++) {
        unit_allocations_until_failure(successes);
        assert_int_equal(block_allocation_enable(&device, ROOMY), -ENOMEM);
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
        assert_null(device.allocation);
    }
}

/* --- Against the model --- */

static bool overlaps(const struct job *a, const struct job *b) {
    return a->request.offset < b->request.offset + b->request.length &&
           b->request.offset < a->request.offset + a->request.length;
}

static void model_submit(struct job *job) {
    for (uint64_t i = job->request.offset / BLOCK;
         i < (job->request.offset + job->request.length) / BLOCK; i++) {
        blocks[i].known = 0;
    }
    for (unsigned i = 0; i < JOBS; i++) {
        struct job *other = &jobs[i];
        if (other != job && other->is_in_flight && overlaps(job, other)) {
            other->is_disturbed = true;
            job->is_disturbed = true;
        }
    }
}

static void model_finish(const struct job *job, int error) {
    if (error != 0 || job->is_disturbed || job->leaves == 0) {
        return;
    }
    for (uint64_t i = job->request.offset / BLOCK;
         i < (job->request.offset + job->request.length) / BLOCK; i++) {
        blocks[i].known = job->leaves;
    }
}

static void random_submit(struct job *job) {
    static const enum block_operation operations[] = {BLOCK_WRITE, BLOCK_DISCARD,
                                                      BLOCK_WRITE_ZEROES};
    enum block_operation operation = operations[unit_random_below(3)];
    unsigned flags = unit_random_below(2) == 0 ? BLOCK_UNMAP : 0;
    uint64_t first = unit_random_below(BLOCKS);
    uint64_t count = 1 + unit_random_below(BLOCKS - first < 12 ? BLOCKS - first : 12);
    submit(job, operation, flags, first, count);
    job->leaves = operation == BLOCK_WRITE     ? 0
                  : operation == BLOCK_DISCARD ? BLOCK_KNOWN_HOLE
                  : flags != 0                 ? BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE
                                               : BLOCK_KNOWN_ZERO;
    model_submit(job);
}

/* Every block as the model has it; with a small map, unknown is always right. */
static void compare(bool may_forget) {
    for (uint64_t i = 0; i < BLOCKS; i++) {
        unsigned of_block = known(i);
        if (of_block != 0 || !may_forget) {
            assert_int_equal(of_block, blocks[i].known);
        }
    }
    uint64_t at = 0;
    unsigned told = 0;
    while (at < sizeof data) {
        uint64_t run_bytes = block_known_at(&device, at, sizeof data - at, &told);
        assert_true(run_bytes > 0 && run_bytes % BLOCK == 0 && run_bytes <= sizeof data - at);
        for (uint64_t i = at / BLOCK; i < (at + run_bytes) / BLOCK; i++) {
            assert_int_equal(known(i), told);
        }
        at += run_bytes;
    }
}

static void random_steps(unsigned extents_max, unsigned steps) {
    set_up(extents_max);
    for (unsigned step = 0; step < steps; step++) {
        struct job *job = &jobs[unit_random_below(JOBS)];
        if (!job->is_in_flight) {
            random_submit(job);
        } else {
            int error = unit_random_below(8) == 0 ? -EIO : 0;
            finish(job, error);
            model_finish(job, error);
        }
        assert_true(device.allocation->count <= extents_max);
        compare(extents_max < ROOMY);
    }
    tear_down();
}

TEST(random_changes_in_flight_agree_with_the_model) {
    random_steps(ROOMY, 4000);
}

TEST(random_changes_in_a_small_map_tell_nothing_untrue) {
    random_steps(5, 4000);
}
