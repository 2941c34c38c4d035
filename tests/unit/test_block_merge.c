/* The request queue of a block device: blk/queue.c. Merging, repeating a part, disks that shrink,
 * partitions. */
#include <stdlib.h>
#include <string.h>

#include "tests/unit/block_jobs.h"

/* --- Merging --- */

/* Something that keeps the device busy: only then requests are merged. */
static struct block_request *keep_busy(void) {
    struct block_request *request = submit(JOBS_MAX - 1, BLOCK_READ, 512 * 1024, 512, 0);
    assert_ptr_equal(next().request, request);
    return request;
}

TEST(an_idle_device_gets_each_request_at_once) {
    set_up();
    submit(0, BLOCK_READ, 0, 4096, 0);
    submit(1, BLOCK_READ, 4096, 4096, 0);
    assert_int_equal(next().length, 4096);
    assert_int_equal(device.stats.merges, 0);
}

TEST(a_busy_device_gets_neighbours_as_one) {
    set_up();
    keep_busy();
    for (unsigned i = 0; i < 3; i++) {
        submit(i, BLOCK_READ, 4096 * i, 4096, 0);
        jobs[i].segments[0].data = data + 65536 * i;
    }
    struct block_part part = next();
    assert_int_equal(part.offset, 0);
    assert_int_equal(part.length, 3 * 4096);
    assert_int_equal(part.segment_count, 3);
    assert_ptr_equal(part.segments[2].data, data + 131072);
    assert_int_equal(device.stats.merges, 2);
    assert_int_equal(device.stats.parts, 2);
    expect_no_part();
    block_queue_done(&device, part.request, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].order, i + 1);
        assert_int_equal(jobs[i].completions, 1);
    }
    assert_int_equal(device.parts_in_flight, 1);
}

TEST(what_is_no_neighbour_is_not_merged) {
    static const struct {
        enum block_operation operation;
        uint64_t offset;
        uint32_t length;
    } seconds[] = {
        {BLOCK_READ, 4096 + 512, 512}, {BLOCK_READ, 4096 - 512, 512},
        {BLOCK_READ, 0, 4096},         {BLOCK_WRITE, 4096, 512},
        {BLOCK_DISCARD, 4096, 512},    {BLOCK_READ, 4096, 8192 + 512},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(seconds); i++) {
        set_up();
        keep_busy();
        submit(0, BLOCK_READ, 0, 4096, 0);
        submit(1, seconds[i].operation, seconds[i].offset, seconds[i].length, 0);
        assert_int_equal(next().length, 4096);
        assert_ptr_equal(next().request, &jobs[1].request);
        assert_int_equal(device.stats.merges, 0);
    }
    set_up();
    keep_busy();
    submit(0, BLOCK_DISCARD, 0, 4096, 0);
    submit(1, BLOCK_DISCARD, 4096, 512, 0);
    assert_int_equal(next().length, 4096);
}

TEST(only_the_next_in_line_joins_so_nothing_is_overtaken) {
    set_up();
    keep_busy();
    submit(0, BLOCK_WRITE, 0, 512, 0);
    submit(1, BLOCK_WRITE, 65536, 512, 0);
    submit(2, BLOCK_WRITE, 512, 512, 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_ptr_equal(next().request, &jobs[i].request);
    }
}

TEST(a_merged_request_stays_within_the_limits) {
    set_up();
    device.limits.segments_max = 4;
    keep_busy();
    for (unsigned i = 0; i < 6; i++) {
        submit(i, BLOCK_WRITE, 512 * i, 512, 0);
    }
    assert_int_equal(next().segment_count, 4);
    assert_int_equal(next().segment_count, 2);
    set_up();
    device.limits.segments_max = BLOCK_SEGMENTS_MAX;
    device.limits.segment_bytes_max = 1 << 20;
    keep_busy();
    submit(0, BLOCK_WRITE, 0, 65536, 0);
    submit(1, BLOCK_WRITE, 65536, BLOCK_MERGE_BYTES_MAX - 65536, 0);
    submit(2, BLOCK_WRITE, BLOCK_MERGE_BYTES_MAX, 512, 0);
    assert_int_equal(next().length, BLOCK_MERGE_BYTES_MAX);
    assert_int_equal(next().length, 512);
    submit(3, BLOCK_WRITE, 0, BLOCK_MERGE_BYTES_MAX - 512, 0);
    submit(4, BLOCK_WRITE, BLOCK_MERGE_BYTES_MAX - 512, 1024, 0);
    assert_int_equal(next().length, BLOCK_MERGE_BYTES_MAX - 512);
}

TEST(a_returned_merge_is_undone_in_order) {
    set_up();
    keep_busy();
    for (unsigned i = 0; i < 4; i++) {
        submit(i, BLOCK_WRITE, 512 * i, 512, 0);
    }
    struct block_part part = next();
    assert_int_equal(part.length, 2048);
    block_queue_return(&device, &part);
    assert_int_equal(device.stats.merges, 0);
    assert_int_equal(device.stats.parts, 1);
    assert_int_equal(device.parts_in_flight, 1);
    submit(4, BLOCK_WRITE, 2048, 512, 0);
    device.limits.segments_max = 1;
    for (unsigned i = 0; i < 5; i++) {
        part = next();
        assert_ptr_equal(part.request, &jobs[i].request);
        assert_ptr_equal(part.segments[0].data, data);
        assert_int_equal(part.length, 512);
        block_queue_done(&device, part.request, 0);
        assert_int_equal(jobs[i].order, i + 1);
    }
}

TEST(of_merged_requests_that_fail_only_the_one_that_does_gets_the_error) {
    set_up();
    keep_busy();
    for (unsigned i = 0; i < 3; i++) {
        submit(i, BLOCK_WRITE, 512 * i, 512, i == 2 ? BLOCK_FUA : 0);
    }
    submit(3, BLOCK_WRITE, 65536, 512, 0);
    struct block_part part = next();
    assert_int_equal(part.length, 1536);
    block_queue_done(&device, part.request, -EIO);
    assert_int_equal(completed, 0);
    assert_int_equal(device.stats.merges_undone, 3);
    for (unsigned i = 0; i < 3; i++) {
        part = next();
        assert_ptr_equal(part.request, &jobs[i].request);
        assert_int_equal(part.length, 512);
        block_queue_done(&device, part.request, i == 1 ? -EIO : 0);
    }
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    assert_ptr_equal(next().request, &jobs[3].request);
    block_queue_done(&device, &jobs[3].request, 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(jobs[i].completions, 1);
        assert_int_equal(jobs[i].request.status, i == 1 ? -EIO : 0);
    }
    assert_int_equal(device.parts_in_flight, 1);
}

TEST(a_final_error_reaches_every_merged_request) {
    set_up();
    keep_busy();
    submit(0, BLOCK_WRITE, 0, 512, 0);
    submit(1, BLOCK_WRITE, 512, 512, 0);
    block_queue_fail(&device, next().request, -EIO);
    assert_int_equal(jobs[0].request.status, -EIO);
    assert_int_equal(jobs[1].request.status, -EIO);
    assert_int_equal(completed, 2);
}

/* --- A part once more, after a reset --- */

static void expect_rebuilt(const struct block_part *part) {
    struct block_part again = *part;
    memset(again.segments, 0, sizeof again.segments);
    again.segment_count = 99;
    block_queue_rebuild(&device, &again);
    assert_int_equal(again.segment_count, part->segment_count);
    for (unsigned i = 0; i < part->segment_count; i++) {
        assert_ptr_equal(again.segments[i].data, part->segments[i].data);
        assert_int_equal(again.segments[i].length, part->segments[i].length);
    }
}

TEST(every_part_can_be_built_again_whatever_the_segments) {
    for (unsigned round = 0; round < 300; round++) {
        set_up();
        device.limits.segments_max = 1 + (uint32_t)unit_random_below(BLOCK_SEGMENTS_MAX);
        device.limits.segment_bytes_max = 512 + (uint32_t)unit_random_below(8192);
        unsigned most = block_segments_max(&device);
        for (unsigned i = 0; i < 3; i++) {
            struct job *job = &jobs[i];
            unsigned count = 1 + (unsigned)unit_random_below(most);
            uint32_t length = 0;
            for (unsigned j = 0; j < count; j++) {
                uint32_t bytes = 1 + (uint32_t)unit_random_below(2000);
                if (j + 1 == count) {
                    bytes = (length + bytes + 511) / 512 * 512 - length;
                }
                job->segments[j] = (struct segment){data + length, bytes};
                length += bytes;
            }
            struct block_request *request = prepare(i, BLOCK_READ, i == 0 ? 0 : 262144, length);
            request->offset = i == 0 ? 0 : jobs[i - 1].request.offset + jobs[i - 1].request.length;
            request->segments = job->segments;
            request->segment_count = count;
            block_submit(&device, request);
        }
        struct block_part part;
        while (block_queue_next(&device, &part)) {
            expect_rebuilt(&part);
        }
    }
}

/* --- A disk that has shrunk, partitions, other operations --- */

TEST(what_lies_past_the_end_of_a_shrunk_disk_fails_and_nothing_else) {
    set_up();
    submit(0, BLOCK_WRITE, DISK_BYTES - 512, 512, 0);
    submit(1, BLOCK_WRITE, 0, 512, 0);
    submit(2, BLOCK_WRITE, DISK_BYTES - 4096 - 512, 1024, 0);
    submit(3, BLOCK_FLUSH, 0, 0, 0);
    device.capacity_bytes = DISK_BYTES - 4096;
    assert_int_equal(next().operation, BLOCK_FLUSH);
    assert_ptr_equal(next().request, &jobs[1].request);
    expect_no_part();
    assert_int_equal(jobs[0].request.status, -ERANGE);
    assert_int_equal(jobs[2].request.status, -ERANGE);
    block_queue_done(&device, &jobs[1].request, 0);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[1].request.status, 0);
    assert_int_equal(completed, 4);
}

TEST(a_request_that_the_end_reaches_half_way_ends_with_its_parts) {
    set_up();
    submit(0, BLOCK_READ, DISK_BYTES - 65536, 65536, 0);
    struct block_part part = next();
    device.capacity_bytes = DISK_BYTES - 512;
    expect_no_part();
    assert_int_equal(completed, 0);
    block_queue_done(&device, part.request, 0);
    assert_int_equal(jobs[0].request.status, -ERANGE);
    assert_int_equal(completed, 1);
}

TEST(a_partition_s_requests_go_to_its_place_on_the_disk) {
    set_up();
    struct block_device *partition =
        block_partition_create(&device, "test1", "partition", 65536, 131072);
    struct block_request *request = prepare(0, BLOCK_WRITE, 512, 1024);
    jobs[0].segments[0] = (struct segment){data, 1024};
    request->segments = jobs[0].segments;
    request->segment_count = 1;
    block_submit(partition, request);
    struct block_part part = next();
    assert_int_equal(part.offset, 65536 + 512);
    block_queue_done(&device, part.request, 0);
    assert_int_equal(jobs[0].completions, 1);
    assert_int_equal(request->offset, 512); /* as it was submitted */
    block_submit(partition, prepare(1, BLOCK_FLUSH, 0, 0));
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(jobs[1].completions, 1);
    free(partition);
}

TEST(a_request_that_leaves_its_partition_is_our_own_fault) {
    set_up();
    struct block_device *partition =
        block_partition_create(&device, "test1", "partition", 65536, 131072);
    assert_panics("range_fits", block_submit(partition, prepare(0, BLOCK_WRITE, 131072, 512)));
    assert_panics("range_fits",
                  block_submit(partition, prepare(0, BLOCK_DISCARD, UINT64_MAX - 511, 512)));
    free(partition);
}

TEST(a_discard_is_cut_where_the_device_likes_it) {
    set_up();
    device.limits.discard_bytes_max = 10240;
    device.limits.discard_align_bytes = 4096;
    device.limits.erase_bytes_max = 2048;
    struct block_request *request = submit(0, BLOCK_DISCARD, 512, 20480, 0);
    static const uint64_t lengths[] = {7680, 8192, 4608};
    for (unsigned i = 0; i < ARRAY_COUNT(lengths); i++) {
        assert_int_equal(next().length, lengths[i]);
    }
    expect_no_part();
    assert_ptr_equal(request, &jobs[0].request);
    submit(1, BLOCK_SECURE_ERASE, 0, 4096, 0);
    assert_int_equal(next().length, 2048);
    assert_int_equal(next().length, 2048);
}

TEST(with_a_cache_written_through_every_write_is_flushed_and_no_read) {
    set_up();
    device.limits.is_write_through = true;
    submit(0, BLOCK_WRITE, 0, 512, 0);
    block_queue_done(&device, next().request, 0);
    assert_int_equal(completed, 0);
    assert_int_equal(next().operation, BLOCK_FLUSH);
    block_queue_done(&device, NULL, 0);
    assert_int_equal(completed, 1);
    submit(1, BLOCK_READ, 0, 512, 0);
    block_queue_done(&device, next().request, 0);
    assert_int_equal(completed, 2);
    assert_int_equal(device.stats.device_flushes, 1);
}
