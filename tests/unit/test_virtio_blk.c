/* The virtio-blk driver against a device of the test's own: probing, requests, what the device says
 * of itself. Devices that misbehave are in test_virtio_blk_recovery.c; what a healthy one does is
 * tested on a real one (tests/guest). */
#include "blk/virtio_blk.h"

#include <string.h>

#include "config/limits.h"
#include "core/config.h"
#include "core/task/task.h"
#include "tests/unit/fake_disk.h"
#include "tests/unit/unit.h"

/* --- Probing --- */

TEST(without_dma_memory_the_probe_fails_and_says_so) {
    fake_disk_set_up(F_FLUSH);
    device.node.dma_buffer = NULL;
    assert_int_equal(fake_disk_probe(), -ENOMEM);
    assert_logged("fake: has no DMA memory, needs");
    assert_true((device.status & VIRTIO_STATUS_FAILED) != 0);
}

TEST(a_buffer_too_small_fails_the_probe_and_says_so) {
    fake_disk_set_up(F_FLUSH);
    device.dma.bytes -= 1;
    assert_int_equal(fake_disk_probe(), -ENOMEM);
    assert_logged("bytes of DMA memory, needs");
}

TEST(whatever_allocation_fails_the_probe_leaves_nothing_and_a_reset_device) {
    int error = -ENOMEM;
    for (uint64_t successes = 0; error != 0; successes++) {
        assert_true(successes < 20);
        fake_disk_set_up(F_FLUSH);
        unit_allocations_until_failure(successes);
        error = fake_disk_probe();
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
        assert_true(error == 0 || error == -ENOMEM);
        assert_false((device.status & VIRTIO_STATUS_DRIVER_OK) != 0 && error != 0);
    }
}

TEST(limits_come_from_features_that_were_negotiated) {
    fake_disk_set_up(F_FLUSH | F_SEG_MAX | F_BLK_SIZE | F_DISCARD | F_WRITE_ZEROES);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->capacity_bytes, FAKE_SECTORS * 512);
    assert_int_equal(disk->limits.block_bytes, 4096);
    assert_int_equal(disk->limits.segments_max, 8);
    assert_int_equal(disk->limits.discard_bytes_max, 4096 * 512);
    assert_int_equal(disk->limits.zeroes_bytes_max, 16384 * 512);
    assert_true(disk->limits.zeroes_may_unmap && disk->limits.has_cache);
    assert_false(disk->limits.is_read_only);
    assert_true((device.status & VIRTIO_STATUS_DRIVER_OK) != 0);
}

TEST(without_features_the_specification_s_defaults_hold) {
    fake_disk_set_up(F_RO);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.block_bytes, 512);
    assert_int_equal(disk->limits.segments_max, 1);
    assert_int_equal(disk->limits.discard_bytes_max, 0);
    assert_int_equal(disk->limits.zeroes_bytes_max, 0);
    assert_true(disk->limits.is_read_only);
    assert_false(disk->limits.has_cache);
}

TEST(a_cache_that_is_switched_off_is_none) {
    fake_disk_set_up(F_FLUSH | F_CONFIG_WCE);
    assert_int_equal(fake_disk_probe(), 0);
    assert_false(disk->limits.has_cache);
}

TEST(a_chain_never_needs_more_than_the_ring_has) {
    fake_disk_set_up(F_SEG_MAX);
    fake_config32(12, 1000);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.segments_max, FAKE_RING - 2);
}

TEST(a_configuration_that_makes_no_sense_is_refused) {
    for (int kind = 0; kind < 7; kind++) {
        fake_disk_set_up(F_BLK_SIZE | F_SEG_MAX | F_SIZE_MAX);
        fake_config32(8, 65536);
        switch (kind) {
        case 0:
            fake_config64(0, UINT64_MAX); /* bytes would wrap */
            break;
        case 1:
            fake_config32(20, 0);
            break;
        case 2:
            fake_config32(20, 1000);
            break;
        case 3:
            fake_config32(20, 131072);
            break;
        case 4:
            fake_config32(12, 0); /* no segment fits */
            break;
        case 5:
            fake_config32(8, 100); /* no block fits */
            break;
        default:
            device.ring_max = 2; /* no request fits */
        }
        unit_log_clear();
        assert_int_equal(fake_disk_probe(), -EINVAL);
        assert_logged("error: ");
        assert_true((device.status & VIRTIO_STATUS_FAILED) != 0);
    }
}

TEST(a_device_that_cannot_be_reset_keeps_the_memory_it_was_given) {
    fake_disk_set_up(F_BLK_SIZE);
    device.status = VIRTIO_STATUS_DRIVER_OK;
    device.never_resets = true;
    assert_int_equal(fake_disk_probe(), -ETIMEDOUT);
    assert_null(device.node.dma_buffer); /* the scan has nothing to release */
}

/* --- Requests --- */

static uint8_t buffer[65536];

TEST(data_goes_to_its_place_and_comes_back) {
    fake_disk_set_up(F_FLUSH | F_SEG_MAX | F_DISCARD | F_WRITE_ZEROES);
    assert_int_equal(fake_disk_probe(), 0);
    memset(buffer, 0x5a, sizeof buffer);
    assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 4096, buffer, 8192), 0);
    assert_int_equal(fake_content[4095], 0);
    assert_int_equal(fake_content[4096], 0x5a);
    assert_int_equal(fake_content[12287], 0x5a);
    assert_int_equal(fake_content[12288], 0);
    memset(buffer, 0, sizeof buffer);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 4096, buffer, 8192), 0);
    assert_int_equal(buffer[8191], 0x5a);
    assert_int_equal(fake_disk_run(BLOCK_WRITE_ZEROES, 0, 4096, NULL, 4096), 0);
    assert_int_equal(fake_content[8191], 0);
    assert_int_equal(fake_content[8192], 0x5a);
    assert_int_equal(fake_disk_run(BLOCK_DISCARD, 0, 8192, NULL, 4096), 0);
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(device.requests[4], 1);
    assert_int_equal(device.requests[11], 1);
    assert_int_equal(device.requests[13], 1);
}

TEST(zeroes_unmap_only_when_asked_and_allowed) {
    fake_disk_set_up(F_WRITE_ZEROES);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(fake_disk_run(BLOCK_WRITE_ZEROES, 0, 0, NULL, 4096), 0);
    assert_int_equal(device.range_flags, 0);
    assert_int_equal(fake_disk_run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, NULL, 4096), 0);
    assert_int_equal(device.range_flags, 1);
    disk->limits.zeroes_may_unmap = false;
    assert_int_equal(fake_disk_run(BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, NULL, 4096), 0);
    assert_int_equal(device.range_flags, 0);
}

TEST(the_device_s_status_becomes_an_errno) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    device.mood = FAILS;
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), -EIO);
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), -EIO);
    device.mood = NOT_OFFERED;
    assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 512), -ENOTSUP);
    device.mood = SPEAKS_ODDLY;
    assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 512), -EIO);
    assert_logged("status 0x63 means nothing");
    device.mood = SERVES;
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), 0);
    assert_false(disk->is_gone);
}

TEST(a_read_that_wrote_less_than_it_should_is_an_error) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    device.mood = READS_SHORT;
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 4096), -EIO);
    assert_logged("a read of 4096 bytes came back with 1");
    assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 4096), 0);
}

TEST(the_serial_is_read) {
    char id[BLOCK_ID_BYTES];
    fake_disk_set_up(0);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(block_check(disk, BLOCK_GET_ID, 0, sizeof id), 0);
    assert_int_equal(block_check(disk, BLOCK_GET_ID, 0, sizeof id - 1), -EINVAL);
    device.id = "a serial of 20 bytes";
    assert_int_equal(fake_disk_run(BLOCK_GET_ID, 0, 0, id, sizeof id), 0);
    assert_memory_equal(id, "a serial of 20 bytes", sizeof id);
    device.mood = NOT_OFFERED;
    assert_int_equal(fake_disk_run(BLOCK_GET_ID, 0, 0, id, sizeof id), -ENOTSUP);
}

TEST(a_secure_erase_goes_where_it_is_offered) {
    fake_disk_set_up(F_SECURE_ERASE);
    fake_config32(60, 16); /* sectors */
    fake_config32(64, 1);
    fake_config32(68, 8); /* alignment */
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.erase_bytes_max, 8192);
    assert_int_equal(disk->limits.erase_align_bytes, 4096);
    memset(fake_content, 0x5a, sizeof fake_content);
    assert_int_equal(fake_disk_run(BLOCK_SECURE_ERASE, 0, 512, NULL, 20480), 0);
    assert_int_equal(device.requests[14], 3);
    assert_int_equal(fake_content[511], 0x5a);
    assert_int_equal(fake_content[512], 0);
    assert_int_equal(fake_content[20991], 0);
    assert_int_equal(fake_content[20992], 0x5a);
    /* What does not end between blocks is no alignment. */
    fake_disk_set_up(F_SECURE_ERASE | F_BLK_SIZE);
    fake_config32(20, 4096);
    fake_config32(60, 16);
    fake_config32(64, 1);
    fake_config32(68, 3);
    block_unregister(disk);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.erase_align_bytes, 0);
    fake_disk_set_up(0);
    block_unregister(disk);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(block_check(disk, BLOCK_SECURE_ERASE, 0, 512), -ENOTSUP);
}

TEST(topology_and_geometry_are_told) {
    fake_disk_set_up(F_TOPOLOGY | F_GEOMETRY | F_BLK_SIZE);
    fake_config32(20, 512);
    device.config[16] = 99; /* cylinders */
    device.config[18] = 4;
    device.config[19] = 63;
    device.config[24] = 3; /* physical: 8 blocks */
    device.config[25] = 1; /* first aligned */
    device.config[26] = 16;
    fake_config32(28, 128);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.physical_block_bytes, 4096);
    assert_int_equal(disk->limits.alignment_bytes, 512);
    assert_int_equal(disk->limits.minimum_io_bytes, 8192);
    assert_int_equal(disk->limits.optimal_io_bytes, 65536);
    assert_int_equal(disk->limits.cylinders, 99);
    assert_int_equal(disk->limits.heads, 4);
    assert_int_equal(disk->limits.sectors, 63);
    block_dump_device(disk);
    assert_logged("block 512, physical 4096, first aligned at 512, suggested 8192, optimal 65536, "
                  "geometry 99/4/63");
    assert_logged("accepted: GEOMETRY BLK_SIZE TOPOLOGY INDIRECT_DESC VERSION_1");
}

TEST(what_makes_no_sense_of_topology_and_alignment_is_left_out) {
    fake_disk_set_up(F_TOPOLOGY | F_DISCARD | F_BLK_SIZE);
    fake_config32(20, 4096);
    device.config[24] = 64; /* physical blocks of 2^64 logical ones */
    fake_config32(28, 128);
    fake_config32(36, 64); /* discards of 64 sectors, */
    fake_config32(40, 1);
    fake_config32(44, 3); /* aligned to three */
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(disk->limits.physical_block_bytes, 4096);
    assert_int_equal(disk->limits.optimal_io_bytes, 0);
    assert_int_equal(disk->limits.discard_bytes_max, 32768);
    assert_int_equal(disk->limits.discard_align_bytes, 0);
}

TEST(a_size_that_changes_is_the_size_from_then_on) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    struct block_device *partition =
        block_partition_create(disk, "vda1", "part", FAKE_SECTORS * 256 - 4096, 8192);
    fake_config64(0, FAKE_SECTORS / 2);
    fake_disk_config_changed();
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, FAKE_SECTORS * 256 - 512, buffer, 512), 0);
    assert_logged("changes its size from 1048576 to 524288 bytes");
    assert_int_equal(disk->capacity_bytes, FAKE_SECTORS * 256);
    assert_int_equal(partition->capacity_bytes, 4096);
    assert_int_equal(block_check(disk, BLOCK_READ, FAKE_SECTORS * 256, 512), -ERANGE);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, FAKE_SECTORS * 256, buffer, 512), -ERANGE);
    fake_config64(0, FAKE_SECTORS);
    fake_disk_config_changed();
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, FAKE_SECTORS * 512 - 512, buffer, 512), 0);
    assert_int_equal(disk->stats.resizes, 2);
    fake_config64(0, UINT64_MAX);
    fake_disk_config_changed();
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(disk->capacity_bytes, FAKE_SECTORS * 512);
    assert_logged("makes no sense");
}

/* --- The write cache --- */

struct cache_case {
    uint64_t features;
    const char *words;
    uint8_t mode_before;
    uint8_t mode_after;
    bool has_cache;
    bool is_write_through;
};

TEST(the_cache_mode_is_what_the_configuration_says) {
    static const struct cache_case cases[] = {
        {F_FLUSH | F_CONFIG_WCE, "", 1, 1, true, false},
        {F_FLUSH | F_CONFIG_WCE, "", 0, 0, false, false},
        {F_FLUSH | F_CONFIG_WCE, "disk.cache=writethrough", 1, 0, false, false},
        {F_FLUSH | F_CONFIG_WCE, "disk.cache=writeback", 0, 1, true, false},
        {F_FLUSH | F_CONFIG_WCE, "disk.cache=writeback", 1, 1, true, false},
        {F_FLUSH, "disk.cache=writethrough", 1, 1, true, true},
        {F_FLUSH, "disk.cache=writeback", 0, 0, true, false},
        {0, "disk.cache=writethrough", 0, 0, false, false},
        {0, "disk.cache=writeback", 0, 0, false, false},
        {F_CONFIG_WCE, "disk.cache=writeback", 0, 1, false, false},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        const struct cache_case *at = &cases[i];
        config_forget();
        assert_int_equal(config_parse(at->words), 0);
        fake_disk_set_up(at->features);
        device.config[32] = at->mode_before;
        assert_int_equal(fake_disk_probe(), 0);
        assert_int_equal(device.config[32], at->mode_after);
        assert_int_equal(disk->limits.has_cache, at->has_cache);
        assert_int_equal(disk->limits.is_write_through, at->is_write_through);
        memset(buffer, 1, 512);
        assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 512), 0);
        assert_int_equal(device.requests[4], at->is_write_through);
        assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
        assert_int_equal(device.requests[4], (unsigned)at->is_write_through + at->has_cache);
        block_unregister(disk);
    }
}

TEST(a_device_that_keeps_its_cache_is_written_through_by_flushes) {
    assert_int_equal(config_parse("disk.cache=writethrough"), 0);
    fake_disk_set_up(F_FLUSH | F_CONFIG_WCE);
    device.config[32] = 1;
    device.keeps_cache_mode = true;
    assert_int_equal(fake_disk_probe(), 0);
    assert_true(disk->limits.has_cache && disk->limits.is_write_through);
}

TEST(a_cache_mode_that_has_no_register_cannot_be_set) {
    assert_int_equal(config_parse("disk.cache=writeback"), 0);
    fake_disk_set_up(F_FLUSH | F_CONFIG_WCE);
    device.config_bytes = 32;
    assert_int_equal(fake_disk_probe(), -ERANGE);
}

TEST(a_cache_mode_that_is_none_is_refused) {
    assert_int_equal(config_parse("disk.cache=none"), 0);
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), -EINVAL);
    assert_logged("cache mode none refused: writeback or writethrough is wanted");
}

TEST(a_dump_tells_the_state_of_the_ring) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), 0);
    block_dump(disk);
    assert_logged("added 1, kicks 1, notifies 1, indirect 1, full 0, peak 1");
    assert_int_equal(virtio_blk_ring_stats(disk)->completed, 1);
}

/* --- A full ring --- */

enum { MANY = 300 };

static struct event done;
static unsigned completions;
static int result;
static struct block_request many[MANY];
static struct segment many_segments[MANY];

static void note_done(struct block_request *request) {
    result = result != 0 ? result : request->status;
    completions++;
    event_signal(&done);
}

/* No two of them neighbours, or they would be merged. */
static uint64_t place_of(unsigned i) {
    return (uint64_t)512 * (i * 7 % FAKE_SECTORS);
}

static void submit_reads(unsigned count) {
    completions = 0;
    for (unsigned i = 0; i < count; i++) {
        many_segments[i] = (struct segment){buffer + (size_t)512 * (i % 128), 512};
        many[i] = (struct block_request){.operation = BLOCK_READ,
                                         .offset = place_of(i),
                                         .length = 512,
                                         .segments = &many_segments[i],
                                         .segment_count = 1,
                                         .complete = note_done};
        block_submit(disk, &many[i]);
    }
}

static void wait_for(unsigned count) {
    while (completions < count) {
        assert_int_equal(task_wait(&done, arch_clock_ns() + 200 * NS_PER_S), 0);
    }
}

static void submit_many(void *unused) {
    (void)unused;
    submit_reads(MANY);
    wait_for(MANY);
}

TEST(more_requests_than_the_ring_holds_wait_and_all_complete) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    unit_run_task(submit_many, NULL);
    assert_int_equal(completions, MANY);
    assert_int_equal(disk->stats.in_flight_peak, MANY);
    assert_int_equal(virtio_blk_ring_stats(disk)->in_flight_peak, FAKE_RING);
    assert_int_equal(virtio_blk_ring_stats(disk)->full, 0);
    assert_int_equal(result, 0);
}

TEST(without_tables_a_ring_holds_fewer_requests_and_all_complete) {
    fake_disk_set_up(F_FLUSH);
    fake_disk_lacks(VIRTIO_F_INDIRECT_DESC);
    assert_int_equal(fake_disk_probe(), 0);
    unit_run_task(submit_many, NULL);
    assert_int_equal(completions, MANY);
    assert_int_equal(virtio_blk_ring_stats(disk)->in_flight_peak, FAKE_RING / 3);
    assert_true(virtio_blk_ring_stats(disk)->full > 0);
    assert_int_equal(virtio_blk_ring_stats(disk)->indirect, 0);
    assert_int_equal(result, 0);
}

/* --- Served in another task --- */

static uint64_t runs_of_disk(void) {
    struct task_info info;
    for (unsigned i = 0; task_get_info(i, &info) == 0; i++) {
        if (strcmp(info.name, "vda") == 0) {
            return info.runs;
        }
    }
    fail_msg("the disk has no task");
    return 0;
}

static void submit_gathered(unsigned count) {
    block_gather();
    submit_reads(count);
    assert_int_equal(device.served_count, 0);
}

static void serve_at_once(void *unused) {
    (void)unused;
    task_yield(); /* the disk's task comes to rest */
    uint64_t runs = runs_of_disk();
    submit_gathered(3);
    assert_true(block_serve());
    assert_int_equal(completions, 3);
    assert_int_equal(device.served_count, 3);
    assert_int_equal(virtio_blk_ring_stats(disk)->kicks, 1);
    assert_int_equal(disk->stats.latency_us[BLOCK_READ].buckets[histogram_bits(300)], 3);
    task_yield();
    assert_int_equal(runs_of_disk(), runs);
}

TEST(what_a_device_answers_at_once_needs_no_run_of_its_task) {
    fake_disk_set_up(F_FLUSH);
    device.takes_ns = 100 * NS_PER_US;
    assert_int_equal(fake_disk_probe(), 0);
    unit_run_task(serve_at_once, NULL);
    assert_int_equal(result, 0);
}

static struct event server;

static void answer_later(void *unused) {
    (void)unused;
    task_yield(); /* the disk's task comes to rest */
    uint64_t runs = runs_of_disk();
    block_set_server(&server);
    device.mood = KEEPS_SILENT;
    submit_gathered(3);
    assert_false(block_serve());
    device.mood = SERVES;
    fake_disk_work();
    assert_int_equal(task_wait(&server, arch_clock_ns() + NS_PER_S), 0);
    assert_int_equal(completions, 0);
    block_gather();
    assert_true(block_serve());
    assert_int_equal(completions, 3);
    assert_int_equal(runs_of_disk(), runs);
}

TEST(the_answers_of_a_device_wake_the_task_that_serves_it_and_not_its_own) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    unit_run_task(answer_later, NULL);
    assert_int_equal(result, 0);
}

static void serve_many(void *unused) {
    (void)unused;
    task_yield();
    submit_gathered(MANY);
    assert_true(block_serve());
    assert_in_range(completions, 1, MANY - 1); /* no more than the ring holds */
    uint64_t begun_ns = arch_clock_ns();
    wait_for(MANY);
    assert_true(arch_clock_ns() - begun_ns < NS_PER_S); /* and not when it looks again */
}

TEST(what_the_ring_had_no_room_for_is_the_task_s) {
    fake_disk_set_up(F_FLUSH);
    assert_int_equal(fake_disk_probe(), 0);
    unit_run_task(serve_many, NULL);
    assert_int_equal(completions, MANY);
    assert_int_equal(result, 0);
}
