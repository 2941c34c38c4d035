/* Block devices: the list, the validator, statistics, and the RAM disk: blk/block.c,
 * blk/histogram.h, blk/ram_disk.c. */
#include "blk/block.h"

#include <stdlib.h>
#include <string.h>

#include "blk/ram_disk.h"
#include "boot/host/host.h"
#include "core/mem/heap.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/unit/unit.h"

static struct block_device new_device(void) {
    return (struct block_device){.name = "test",
                                 .model = "test",
                                 .capacity_bytes = 1 << 20,
                                 .limits = {.block_bytes = 512,
                                            .physical_block_bytes = 512,
                                            .segments_max = 1,
                                            .segment_bytes_max = 4096,
                                            .discard_bytes_max = 4096,
                                            .zeroes_bytes_max = 4096}};
}

/* --- The list --- */

TEST(registered_devices_are_found_by_place_and_name) {
    struct block_device first = new_device();
    struct block_device second = new_device();
    second.name = "other";
    assert_int_equal(block_register(&first), 0);
    assert_int_equal(block_register(&second), 0);
    assert_ptr_equal(block_device_at(0), &first);
    assert_ptr_equal(block_device_at(1), &second);
    assert_null(block_device_at(2));
    assert_ptr_equal(block_device_find("other"), &second);
    assert_null(block_device_find("othe"));
    block_unregister(&second);
    assert_null(block_device_find("other"));
    assert_panics("devices[device_count - 1] == device", block_unregister(&second));
}

TEST(one_device_too_many_is_refused_and_said) {
    static struct block_device devices[BLOCK_DEVICES_MAX + 1];
    for (unsigned i = 0; i < BLOCK_DEVICES_MAX; i++) {
        devices[i] = new_device();
        assert_int_equal(block_register(&devices[i]), 0);
    }
    devices[BLOCK_DEVICES_MAX] = new_device();
    assert_int_equal(block_register(&devices[BLOCK_DEVICES_MAX]), -ENOSPC);
    assert_logged("test: 16 block devices are the limit");
}

TEST(limits_that_make_no_sense_are_refused) {
    struct block_device devices[9];
    for (unsigned i = 0; i < ARRAY_COUNT(devices); i++) {
        devices[i] = new_device();
    }
    devices[0].limits.block_bytes = 0;
    devices[1].limits.block_bytes = 256;
    devices[2].limits.block_bytes = 768;
    devices[3].limits.physical_block_bytes = 256;
    devices[4].limits.segments_max = 0;
    devices[5].limits.segment_bytes_max = 511;
    devices[6].capacity_bytes = 513;
    devices[7].limits.discard_bytes_max = 511;
    devices[8].limits.zeroes_bytes_max = 1;
    for (unsigned i = 0; i < ARRAY_COUNT(devices); i++) {
        assert_int_equal(block_register(&devices[i]), -EINVAL);
    }
    assert_logged("test: its limits make no sense");
    assert_null(block_device_at(0));
}

/* --- The validator --- */

TEST(a_request_is_accepted_up_to_the_last_block_and_not_beyond) {
    struct block_device device = new_device();
    uint64_t end = device.capacity_bytes;
    assert_int_equal(block_check(&device, BLOCK_READ, 0, end), 0);
    assert_int_equal(block_check(&device, BLOCK_READ, 0, end + 512), -ERANGE);
    assert_int_equal(block_check(&device, BLOCK_WRITE, end - 512, 512), 0);
    assert_int_equal(block_check(&device, BLOCK_WRITE, end - 512, 1024), -ERANGE);
    assert_int_equal(block_check(&device, BLOCK_WRITE, end, 512), -ERANGE);
    assert_int_equal(block_check(&device, BLOCK_READ, UINT64_MAX - 511, 1024), -ERANGE);
    assert_int_equal(block_check(&device, BLOCK_READ, 512, UINT64_MAX - 511), -ERANGE);
}

TEST(a_request_is_whole_blocks_and_not_empty) {
    struct block_device device = new_device();
    device.limits.block_bytes = 4096;
    assert_int_equal(block_check(&device, BLOCK_READ, 0, 0), -EINVAL);
    assert_int_equal(block_check(&device, BLOCK_READ, 0, 512), -EINVAL);
    assert_int_equal(block_check(&device, BLOCK_READ, 512, 4096), -EINVAL);
    assert_int_equal(block_check(&device, BLOCK_READ, 4096, 4097), -EINVAL);
    assert_int_equal(block_check(&device, BLOCK_READ, 4096, 4096), 0);
}

TEST(a_read_only_device_is_read_and_flushed_only) {
    struct block_device device = new_device();
    device.limits.is_read_only = true;
    assert_int_equal(block_check(&device, BLOCK_READ, 0, 512), 0);
    assert_int_equal(block_check(&device, BLOCK_FLUSH, 0, 0), 0);
    assert_int_equal(block_check(&device, BLOCK_WRITE, 0, 512), -EROFS);
    assert_int_equal(block_check(&device, BLOCK_DISCARD, 0, 512), -EROFS);
    assert_int_equal(block_check(&device, BLOCK_WRITE_ZEROES, 0, 512), -EROFS);
}

TEST(what_is_not_offered_is_not_accepted) {
    struct block_device device = new_device();
    assert_int_equal(block_check(&device, BLOCK_DISCARD, 0, 512), 0);
    assert_int_equal(block_check(&device, BLOCK_WRITE_ZEROES, 0, 512), 0);
    device.limits.discard_bytes_max = 0;
    device.limits.zeroes_bytes_max = 0;
    assert_int_equal(block_check(&device, BLOCK_DISCARD, 0, 512), -ENOTSUP);
    /* Zeroes can always be written. */
    assert_int_equal(block_check(&device, BLOCK_WRITE_ZEROES, 0, 512), 0);
}

/* --- Statistics --- */

TEST(values_fall_into_buckets_of_powers_of_two) {
    struct histogram histogram = {{0}};
    static const uint64_t values[] = {0, 1, 2, 3, 4, 7, 8, UINT64_C(1) << 30, UINT64_MAX};
    static const unsigned buckets[] = {0, 1, 2, 2, 3, 3, 4, 31, 31};
    for (unsigned i = 0; i < ARRAY_COUNT(values); i++) {
        uint64_t before = histogram.buckets[buckets[i]];
        histogram_add(&histogram, values[i]);
        assert_int_equal(histogram.buckets[buckets[i]], before + 1);
    }
}

TEST(a_percentile_is_an_upper_bound) {
    struct histogram histogram = {{0}};
    assert_int_equal(histogram_percentile(&histogram, 50), 0);
    for (unsigned i = 0; i < 99; i++) {
        histogram_add(&histogram, 5);
    }
    histogram_add(&histogram, 1000);
    assert_int_equal(histogram_percentile(&histogram, 50), 7);
    assert_int_equal(histogram_percentile(&histogram, 99), 7);
    assert_int_equal(histogram_percentile(&histogram, 100), 1023);
    struct histogram huge = {{0}};
    histogram_add(&huge, UINT64_C(1) << 40);
    assert_true(histogram_percentile(&huge, 50) >= UINT64_C(1) << 40);
}

static void driver_dump(const struct block_device *device) {
    (void)device;
    assert_logged("");
}

TEST(a_dump_tells_what_happened) {
    struct block_device device = new_device();
    device.dump = driver_dump;
    device.is_gone = true;
    device.stats.operations[BLOCK_WRITE] = 3;
    device.stats.bytes[BLOCK_WRITE] = 1536;
    block_dump(&device);
    assert_logged("test: 1048576 bytes, out of service, no cache, in flight 0 (peak 0)");
    assert_logged("test write: 3 requests, 1536 bytes, 0 errors");
    assert_not_logged("test read");
    assert_string_equal(block_operation_name(BLOCK_WRITE_ZEROES), "write zeroes");
}

TEST(a_whole_dump_tells_limits_and_latencies) {
    struct block_device device = new_device();
    device.limits.optimal_io_bytes = 65536;
    device.limits.cylinders = 7;
    device.limits.has_cache = true;
    histogram_add(&device.stats.latency_us[BLOCK_READ], 5);
    histogram_add(&device.stats.latency_us[BLOCK_READ], 6);
    block_dump_device(&device);
    assert_logged("bytes, write cache, in flight");
    assert_logged("test read: 2 below 8 us");
    assert_logged("optimal 65536, geometry 7/0/0");
}

/* --- Partitions --- */

TEST(a_partition_ends_where_it_ends) {
    struct block_device device = new_device();
    struct block_device *partition = block_partition_create(&device, "test1", "part", 4096, 8192);
    assert_int_equal(partition->capacity_bytes, 8192);
    assert_int_equal(block_check(partition, BLOCK_READ, 0, 8192), 0);
    assert_int_equal(block_check(partition, BLOCK_READ, 8192, 512), -ERANGE);
    assert_int_equal(block_check(partition, BLOCK_WRITE, 7680, 1024), -ERANGE);
    assert_int_equal(block_check(partition, BLOCK_READ, UINT64_MAX - 4607, 512), -ERANGE);
    device.limits.is_read_only = true;
    block_device_changed(&device);
    assert_int_equal(block_check(partition, BLOCK_WRITE, 0, 512), -EROFS);
    free(partition);
}

TEST(a_partition_shrinks_and_grows_with_its_disk_but_never_beyond_its_table) {
    struct block_device device = new_device();
    static const uint64_t disk_bytes[] = {1 << 20, 12288, 8192, 4096, 512, 12288, 1 << 20, 1 << 21};
    static const uint64_t bytes[] = {8192, 8192, 4096, 0, 0, 8192, 8192, 8192};
    struct block_device *partition = block_partition_create(&device, "test1", "part", 4096, 8192);
    for (unsigned i = 0; i < ARRAY_COUNT(bytes); i++) {
        device.capacity_bytes = disk_bytes[i];
        block_device_changed(&device);
        assert_int_equal(partition->capacity_bytes, bytes[i]);
    }
    device.is_gone = true;
    block_device_changed(&device);
    assert_true(partition->is_gone);
    free(partition);
}

TEST(all_partitions_follow_their_disk) {
    struct block_device device = new_device();
    struct block_device *partitions[3];
    for (unsigned i = 0; i < ARRAY_COUNT(partitions); i++) {
        partitions[i] =
            block_partition_create(&device, "test1", "part", 4096 + (uint64_t)8192 * i, 8192);
        assert_non_null(partitions[i]);
    }
    device.capacity_bytes = 4096 + 8192 + 4096;
    block_device_changed(&device);
    assert_int_equal(partitions[0]->capacity_bytes, 8192);
    assert_int_equal(partitions[1]->capacity_bytes, 4096);
    assert_int_equal(partitions[2]->capacity_bytes, 0);
    for (unsigned i = 0; i < ARRAY_COUNT(partitions); i++) {
        free(partitions[i]);
    }
}

TEST(without_memory_there_is_no_partition) {
    struct block_device device = new_device();
    unit_allocations_until_failure(0);
    assert_null(block_partition_create(&device, "test1", "part", 4096, 8192));
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_null(device.first_partition);
}

/* --- The RAM disk, through the scheduler --- */

static struct block_device *disk;
static struct event done;

static void complete(struct block_request *request) {
    (void)request;
    event_signal(&done);
}

static int run(enum block_operation operation, uint64_t offset, const struct segment *segments,
               unsigned count, uint64_t length) {
    struct block_request request = {.operation = operation,
                                    .offset = offset,
                                    .length = length,
                                    .segments = segments,
                                    .segment_count = count,
                                    .complete = complete};
    block_submit(disk, &request);
    assert_int_equal(task_wait(&done, arch_clock_ns() + NS_PER_S), 0);
    return request.status;
}

static uint8_t out[65536];
static uint8_t in[65536];

/* A RAM disk lives as long as its image; a test ends earlier. The device is its first member. */
static void drop_disk(void) {
    scheduler_forget();
    block_unregister(disk);
    free(disk);
}

static void exercise(void *unused) {
    (void)unused;
    struct segment odd[] = {{out, 1}, {out + 1, 4000}, {out + 4001, 65536 - 4001}};
    struct segment whole = {in, sizeof in};
    for (size_t i = 0; i < sizeof out; i++) {
        out[i] = (uint8_t)unit_random();
    }
    assert_int_equal(run(BLOCK_WRITE, 4096, odd, 3, sizeof out), 0);
    assert_int_equal(run(BLOCK_READ, 4096, &whole, 1, sizeof in), 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(run(BLOCK_WRITE_ZEROES, 8192, NULL, 0, 4096), 0);
    assert_int_equal(run(BLOCK_DISCARD, 16384, NULL, 0, 512), 0);
    assert_int_equal(run(BLOCK_FLUSH, 0, NULL, 0, 0), 0);
    memset(out + 4096, 0, 4096);
    memset(out + 12288, 0, 512);
    assert_int_equal(run(BLOCK_READ, 4096, &whole, 1, sizeof in), 0);
    assert_memory_equal(in, out, sizeof in);
    struct segment edge = {in, 512};
    assert_int_equal(run(BLOCK_READ, disk->capacity_bytes - 512, &edge, 1, 512), 0);
}

TEST(a_ram_disk_keeps_what_is_written) {
    disk = ram_disk_create("ram0", 1 << 20);
    assert_non_null(disk);
    assert_ptr_equal(block_device_find("ram0"), disk);
    unit_run_task(exercise, NULL);
    assert_int_equal(disk->stats.operations[BLOCK_READ], 3);
    assert_int_equal(disk->stats.device_flushes, 0);
    drop_disk();
}

enum { BURST = 500 };

static struct block_request burst[BURST];
static unsigned burst_done;

static void count_one(struct block_request *request) {
    assert_int_equal(request->status, 0);
    burst_done++;
}

static void submit_burst(void *unused) {
    static struct segment segment = {in, 512};
    (void)unused;
    for (unsigned i = 0; i < BURST; i++) {
        burst[i] = (struct block_request){.operation = BLOCK_READ,
                                          .length = 512,
                                          .segments = &segment,
                                          .segment_count = 1,
                                          .complete = count_one};
        block_submit(disk, &burst[i]);
    }
    task_yield();
    assert_in_range(burst_done, 1, BURST - 1); /* it lets others run now and then */
    for (unsigned i = 0; i < BURST; i++) {
        task_yield();
    }
}

TEST(a_ram_disk_serves_a_burst_in_turns) {
    burst_done = 0;
    disk = ram_disk_create("ram0", 4096);
    unit_run_task(submit_burst, NULL);
    assert_int_equal(burst_done, BURST);
    assert_int_equal(disk->stats.in_flight_peak, BURST);
    drop_disk();
}

TEST(a_ram_disk_that_cannot_be_made_leaves_nothing) {
    struct heap_stats before;
    struct heap_stats after;
    heap_get_stats(&before);
    assert_null(ram_disk_create("ram0", 0));
    assert_null(ram_disk_create("ram0", UINT64_C(1) << 40));
    assert_null(ram_disk_create("ram0", 1000));
    for (uint64_t successes = 0; successes < 3; successes++) {
        unit_allocations_until_failure(successes);
        assert_null(ram_disk_create("ram0", 1 << 20));
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    }
    heap_get_stats(&after);
    assert_int_equal(after.bytes_used, before.bytes_used);
    assert_null(block_device_at(0));
}
