/* The block layer over a real virtio-blk: disk vda is writable and has 64 MiB, vdb is read-only.
 * And over a RAM disk, which must behave no differently. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk/block.h"
#include "blk/ram_disk.h"
#include "blk/virtio_blk.h"
#include "boot/arch.h"
#include "core/config.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/guest/guest.h"

/* No request takes longer on the busiest of machines; a lost one must not hang the image. */
#define PATIENCE_NS (60 * NS_PER_S)

enum { SECTOR = 512, BLOCK = 4096 };

static struct block_device *disk;

/* --- One request at a time --- */

struct job {
    struct block_request request;
    struct segment segments[2];
    unsigned completions;
};

static struct event some_job_done;
static unsigned jobs_done;

static void job_done(struct block_request *request) {
    ((struct job *)request->owner)->completions++;
    jobs_done++;
    event_signal(&some_job_done);
}

static void submit(struct job *job, enum block_operation operation, uint64_t offset, void *data,
                   uint32_t length) {
    job->completions = 0;
    job->segments[0] = (struct segment){data, length};
    job->request = (struct block_request){.operation = operation,
                                          .offset = offset,
                                          .length = length,
                                          .segments = job->segments,
                                          .segment_count = 1,
                                          .complete = job_done,
                                          .owner = job};
    block_submit(disk, &job->request);
}

/* The same from two pieces of memory, for which no descriptors are kept ready. */
static void submit_halves(struct job *job, enum block_operation operation, uint64_t offset,
                          char *memory, uint32_t length) {
    job->completions = 0;
    job->segments[0] = (struct segment){memory, length / 2};
    job->segments[1] = (struct segment){memory + length / 2, length - length / 2};
    job->request = (struct block_request){.operation = operation,
                                          .offset = offset,
                                          .length = length,
                                          .segments = job->segments,
                                          .segment_count = 2,
                                          .complete = job_done,
                                          .owner = job};
    block_submit(disk, &job->request);
}

/* -ETIMEDOUT when it was not answered: the job must then stay, for it still may be. */
static int finish(struct job *job) {
    uint64_t deadline_ns = arch_clock_ns() + PATIENCE_NS;
    while (job->completions == 0) {
        if (task_wait(&some_job_done, deadline_ns) != 0) {
            return -ETIMEDOUT;
        }
    }
    return job->completions == 1 ? job->request.status : -EBADE;
}

static int transfer(enum block_operation operation, uint64_t offset, void *data, uint32_t length) {
    static struct job job;
    submit(&job, operation, offset, data, length);
    return finish(&job);
}

static int transfer_segments(enum block_operation operation, unsigned flags, uint64_t offset,
                             const struct segment *segments, unsigned count, uint64_t length) {
    static struct job job;
    job.completions = 0;
    job.request = (struct block_request){.operation = operation,
                                         .flags = flags,
                                         .offset = offset,
                                         .length = length,
                                         .segments = segments,
                                         .segment_count = count,
                                         .complete = job_done,
                                         .owner = &job};
    block_submit(disk, &job.request);
    return finish(&job);
}

/* Every 8 bytes tell where on the disk they belong, and of which writing they are. */
static void fill(uint64_t *words, uint64_t offset, size_t bytes, uint64_t generation) {
    for (size_t i = 0; i < bytes / 8; i++) {
        words[i] = (offset + 8 * i) * UINT64_C(0x9e3779b97f4a7c15) + generation;
    }
}

static bool matches(const uint64_t *words, uint64_t offset, size_t bytes, uint64_t generation) {
    for (size_t i = 0; i < bytes / 8; i++) {
        if (words[i] != (offset + 8 * i) * UINT64_C(0x9e3779b97f4a7c15) + generation) {
            guest_say("at %llu: wrong content", (unsigned long long)offset + 8ull * i);
            return false;
        }
    }
    return true;
}

static bool is_zero(const uint64_t *words, size_t bytes) {
    for (size_t i = 0; i < bytes / 8; i++) {
        if (words[i] != 0) {
            return false;
        }
    }
    return true;
}

static uint64_t data[1024 * 1024 / 8] __attribute__((aligned(4096)));

/* --- Both kinds of disk --- */

static bool check_write_and_read(void) {
    static const uint32_t lengths[] = {512, 1024, 4096, 65536, 1024 * 1024};
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (unsigned at = 0; at < 3; at++) {
            uint64_t offsets[3] = {0, 7 * SECTOR, disk->capacity_bytes - lengths[i]};
            fill(data, offsets[at], lengths[i], i);
            EXPECT_OR_FALSE(transfer(BLOCK_WRITE, offsets[at], data, lengths[i]) == 0);
            memset(data, 0xee, lengths[i]);
            EXPECT_OR_FALSE(transfer(BLOCK_READ, offsets[at], data, lengths[i]) == 0);
            EXPECT_OR_FALSE(matches(data, offsets[at], lengths[i], i));
        }
    }
    return true;
}

/* As many segments as a request may have, none of them whole blocks but their sum. */
static bool check_odd_segments(void) {
    static uint64_t back[64 * 1024 / 8];
    static struct segment out[BLOCK_SEGMENTS_MAX];
    static struct segment in[BLOCK_SEGMENTS_MAX];
    unsigned count = block_segments_max(disk);
    uint32_t at = 0;
    for (unsigned i = 0; i < count; i++) {
        uint32_t length = i + 1 < count ? 37 + 13 * i : (uint32_t)(64 * 1024 - at);
        out[i] = (struct segment){(char *)data + at, length};
        in[i] = (struct segment){(char *)back + at, length};
        at += length;
    }
    fill(data, 0, sizeof back, 77);
    EXPECT_OR_FALSE(transfer_segments(BLOCK_WRITE, 0, 512 * 1024, out, count, sizeof back) == 0);
    memset(back, 0xee, sizeof back);
    EXPECT_OR_FALSE(transfer_segments(BLOCK_READ, 0, 512 * 1024, in, count, sizeof back) == 0);
    return matches(back, 0, sizeof back, 77);
}

/* More segments than any request of the device takes: it is split, each block whole. */
static bool check_many_block_segments(void) {
    enum { COUNT = 600 };
    static struct segment segments[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        segments[i] = (struct segment){(char *)data + (size_t)i * SECTOR, SECTOR};
    }
    uint64_t parts = disk->stats.parts;
    fill(data, 0, COUNT * SECTOR, 5);
    EXPECT_OR_FALSE(transfer_segments(BLOCK_WRITE, 0, 0, segments, COUNT, COUNT * SECTOR) == 0);
    EXPECT_OR_FALSE(disk->stats.parts - parts >= COUNT / BLOCK_SEGMENTS_MAX);
    memset(data, 0xee, COUNT * SECTOR);
    EXPECT_OR_FALSE(transfer(BLOCK_READ, 0, data, COUNT * SECTOR) == 0);
    return matches(data, 0, COUNT * SECTOR, 5);
}

static bool check_write_zeroes(void) {
    fill(data, 0, 16384, 9);
    EXPECT_OR_FALSE(transfer(BLOCK_WRITE, 0, data, 16384) == 0);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_WRITE_ZEROES, 4096, 8192) == 0);
    EXPECT_OR_FALSE(transfer_segments(BLOCK_WRITE_ZEROES, 0, 4096, NULL, 0, 8192) == 0);
    EXPECT_OR_FALSE(transfer(BLOCK_READ, 0, data, 16384) == 0);
    EXPECT_OR_FALSE(matches(data, 0, 4096, 9) && is_zero(data + 512, 8192));
    return matches(data + 1536, 12288, 4096, 9);
}

static bool check_discard(void) {
    fill(data, 0, 16384, 10);
    EXPECT_OR_FALSE(transfer(BLOCK_WRITE, 0, data, 16384) == 0);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_DISCARD, 4096, 8192) == 0);
    EXPECT_OR_FALSE(transfer_segments(BLOCK_DISCARD, 0, 4096, NULL, 0, 8192) == 0);
    EXPECT_OR_FALSE(transfer(BLOCK_READ, 0, data, 16384) == 0);
    return matches(data, 0, 4096, 10) && matches(data + 1536, 12288, 4096, 10);
}

static bool check_refusals(void) {
    uint64_t end = disk->capacity_bytes;
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, end - SECTOR, SECTOR) == 0);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, end, SECTOR) == -ERANGE);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, end - SECTOR, 2 * SECTOR) == -ERANGE);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, (uint64_t)-SECTOR, 2 * SECTOR) == -ERANGE);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, 1, SECTOR) == -EINVAL);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, 0, SECTOR - 1) == -EINVAL);
    EXPECT_OR_FALSE(block_check(disk, BLOCK_READ, 0, 0) == -EINVAL);
    return true;
}

/* --- virtio-blk --- */

static bool use_virtio_disk(void) {
    disk = block_device_find("vda");
    EXPECT_OR_FALSE(disk != NULL && disk->capacity_bytes == 64 * 1024 * 1024);
    return true;
}

static void what_is_written_to_virtio_blk_is_read_back(void) {
    (void)(use_virtio_disk() && check_write_and_read()); /* they note what fails */
}

static void virtio_blk_takes_segments_of_any_length(void) {
    (void)(use_virtio_disk() && check_odd_segments() && check_many_block_segments()); /* as above */
}

static void virtio_blk_writes_zeroes_where_told_only(void) {
    (void)(use_virtio_disk() && check_write_zeroes()); /* as above */
}

static void virtio_blk_discards_where_told_only(void) {
    (void)(use_virtio_disk() && check_discard()); /* as above */
}

static void requests_past_the_end_of_virtio_blk_are_refused(void) {
    (void)(use_virtio_disk() && check_refusals()); /* as above */
}

static void direct_chains_and_indirect_tables_are_both_used(void) {
    if (!use_virtio_disk()) {
        return;
    }
    struct segment segments[32];
    for (unsigned i = 0; i < 32; i++) {
        segments[i] = (struct segment){(char *)data + (size_t)i * SECTOR, SECTOR};
    }
    struct virtqueue_stats before = *virtio_blk_ring_stats(disk);
    EXPECT(transfer(BLOCK_READ, 0, data, BLOCK) == 0);
    EXPECT(virtio_blk_ring_stats(disk)->added == before.added + 1);
    EXPECT(virtio_blk_ring_stats(disk)->indirect == before.indirect + 1); /* one kept ready */
    EXPECT(transfer_segments(BLOCK_READ, 0, 0, segments, 2, 2 * SECTOR) == 0);
    EXPECT(virtio_blk_ring_stats(disk)->added == before.added + 2);
    EXPECT(virtio_blk_ring_stats(disk)->indirect == before.indirect + 1);
    EXPECT(transfer_segments(BLOCK_READ, 0, 0, segments, 32, 32 * SECTOR) == 0);
    EXPECT(virtio_blk_ring_stats(disk)->added == before.added + 3);
    EXPECT(virtio_blk_ring_stats(disk)->indirect == before.indirect + 2);
}

static void a_flush_reaches_the_device(void) {
    if (!use_virtio_disk()) {
        return;
    }
    uint64_t flushes = disk->stats.device_flushes;
    EXPECT(disk->limits.has_cache);
    EXPECT(transfer_segments(BLOCK_FLUSH, 0, 0, NULL, 0, 0) == 0);
    EXPECT(disk->stats.device_flushes == flushes + 1);
}

static void a_write_with_fua_is_flushed_before_it_is_done(void) {
    if (!use_virtio_disk()) {
        return;
    }
    struct segment whole = {data, BLOCK};
    uint64_t flushes = disk->stats.device_flushes;
    fill(data, BLOCK, BLOCK, 11);
    EXPECT(transfer_segments(BLOCK_WRITE, BLOCK_FUA, BLOCK, &whole, 1, BLOCK) == 0);
    EXPECT(disk->stats.device_flushes == flushes + 1);
    EXPECT(transfer(BLOCK_READ, BLOCK, data, BLOCK) == 0);
    EXPECT(matches(data, BLOCK, BLOCK, 11));
}

static void flushes_at_once_share_the_device_s(void) {
    enum { FLUSHES = 20 };
    static struct job jobs[FLUSHES];
    if (!use_virtio_disk()) {
        return;
    }
    uint64_t flushes = disk->stats.device_flushes;
    for (unsigned i = 0; i < FLUSHES; i++) {
        submit(&jobs[i], BLOCK_FLUSH, 0, NULL, 0);
    }
    for (unsigned i = 0; i < FLUSHES; i++) {
        EXPECT(finish(&jobs[i]) == 0);
    }
    EXPECT(disk->stats.device_flushes == flushes + 1);
}

static void a_read_only_disk_is_read_and_not_written(void) {
    disk = block_device_find("vdb");
    EXPECT(disk != NULL && disk->limits.is_read_only);
    EXPECT(block_check(disk, BLOCK_WRITE, 0, SECTOR) == -EROFS);
    EXPECT(block_check(disk, BLOCK_DISCARD, 0, SECTOR) == -EROFS);
    EXPECT(block_check(disk, BLOCK_WRITE_ZEROES, 0, SECTOR) == -EROFS);
    EXPECT(block_check(disk, BLOCK_FLUSH, 0, 0) == 0);
    EXPECT(block_check(disk, BLOCK_READ, 0, BLOCK) == 0);
    memset(data, 0xee, BLOCK);
    EXPECT(transfer(BLOCK_READ, disk->capacity_bytes - BLOCK, data, BLOCK) == 0);
    EXPECT(is_zero(data, BLOCK));
    EXPECT(transfer_segments(BLOCK_FLUSH, 0, 0, NULL, 0, 0) == 0);
}

/* Far more requests than the ring has entries, all at once: each completes exactly once, with its
 * own data. */
static void a_full_ring_loses_and_doubles_nothing(void) {
    enum { JOBS = 4000, PIECE = 512 * 1024 };
    static struct job jobs[JOBS];
    static char *buffers; /* static: what a failed expectation leaves is not lost */
    buffers = malloc((size_t)JOBS * SECTOR);
    if (buffers == NULL || !use_virtio_disk()) {
        EXPECT(buffers != NULL);
        free(buffers);
        return;
    }
    for (uint64_t at = 0; at < (uint64_t)JOBS * SECTOR; at += PIECE) {
        fill(data, at, PIECE, 12);
        EXPECT(transfer(BLOCK_WRITE, at, data, PIECE) == 0);
    }
    uint64_t full = virtio_blk_ring_stats(disk)->full;
    jobs_done = 0;
    for (unsigned i = 0; i < JOBS; i++) {
        /* No two in a row are neighbours, or they would be merged. */
        uint64_t at = (uint64_t)(i * 7 % JOBS) * SECTOR;
        submit_halves(&jobs[i], BLOCK_READ, at, buffers + at, SECTOR);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        EXPECT(finish(&jobs[i]) == 0);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        EXPECT(matches((uint64_t *)(void *)(buffers + (size_t)i * SECTOR), (uint64_t)i * SECTOR,
                       SECTOR, 12));
    }
    task_sleep_until(arch_clock_ns() + 10 * NS_PER_MS);
    EXPECT(jobs_done == JOBS && disk->stats.in_flight == 0);
    EXPECT(virtio_blk_ring_stats(disk)->full > full);
    EXPECT(virtio_blk_ring_stats(disk)->in_flight_peak > 64);
    free(buffers);
}

/* The first goes at once; the others, neighbours all, become few device requests. */
static void neighbours_in_line_are_merged_and_keep_their_data(void) {
    enum { JOBS = 500 };
    static struct job jobs[JOBS];
    if (!use_virtio_disk()) {
        return;
    }
    struct block_stats before = disk->stats;
    fill(data, 0, (size_t)JOBS * SECTOR, 14);
    for (unsigned i = 0; i < JOBS; i++) {
        submit(&jobs[i], BLOCK_WRITE, (uint64_t)i * SECTOR, (char *)data + (size_t)i * SECTOR,
               SECTOR);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        EXPECT(finish(&jobs[i]) == 0);
    }
    guest_say("%u requests: %llu device requests, %llu merges", JOBS,
              (unsigned long long)(disk->stats.parts - before.parts),
              (unsigned long long)(disk->stats.merges - before.merges));
    EXPECT(disk->stats.parts - before.parts + disk->stats.merges - before.merges == JOBS);
    EXPECT(disk->stats.parts - before.parts < JOBS / 10);
    memset(data, 0xee, (size_t)JOBS * SECTOR);
    EXPECT(transfer(BLOCK_READ, 0, data, JOBS * SECTOR) == 0);
    EXPECT(matches(data, 0, (size_t)JOBS * SECTOR, 14));
}

static void the_serial_is_the_one_that_the_emulator_was_told(void) {
    char id[BLOCK_ID_BYTES] = {0};
    if (use_virtio_disk()) {
        EXPECT(block_check(disk, BLOCK_GET_ID, 0, sizeof id) == 0);
        EXPECT(transfer(BLOCK_GET_ID, 0, id, sizeof id) == 0);
        EXPECT(strncmp(id, "disk0", sizeof id) == 0);
    }
}

/* Writes and reads of random length, many in flight, each on a region of its own. */
static void random_requests_at_depth_keep_their_data(void) {
    enum { JOBS = 32, REGION = 64 * 1024, ROUNDS = 1500 };
    static struct job jobs[JOBS];
    static uint32_t lengths[JOBS];
    static uint64_t generations[JOBS];
    static bool writes[JOBS];
    char *buffers = malloc((size_t)JOBS * REGION);
    if (buffers == NULL || !use_virtio_disk()) {
        EXPECT(buffers != NULL);
        free(buffers);
        return;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned i = round % JOBS;
        uint64_t offset = (uint64_t)i * REGION + 8 * 1024 * 1024;
        uint64_t *buffer = (uint64_t *)(void *)(buffers + (size_t)i * REGION);
        if (round >= JOBS) {
            EXPECT(finish(&jobs[i]) == 0);
            EXPECT(writes[i] || matches(buffer, offset, lengths[i], generations[i]));
        }
        writes[i] = round < JOBS || !writes[i];
        if (writes[i]) {
            lengths[i] = SECTOR * (1 + (uint32_t)(guest_random() % (REGION / SECTOR)));
            generations[i] = round;
            fill(buffer, offset, lengths[i], round);
        } else {
            memset(buffer, 0xee, lengths[i]);
        }
        submit(&jobs[i], writes[i] ? BLOCK_WRITE : BLOCK_READ, offset, buffer, lengths[i]);
    }
    for (unsigned i = 0; i < JOBS; i++) {
        EXPECT(finish(&jobs[i]) == 0);
    }
    free(buffers);
}

/* The emulator emits nothing for our fences (scheduler.c): every one of these reads puts all tasks
 * to sleep, so a wake-up that can be lost is lost here. */
static void no_wake_up_is_lost_in_many_sleeps(void) {
    enum { AREA = 1024 * 1024 };
    uint64_t reads = config_number("sleeps", 1, UINT64_C(1) << 40, 20000);
    if (!use_virtio_disk()) {
        return;
    }
    fill(data, 0, AREA, 13);
    EXPECT(transfer(BLOCK_WRITE, 0, data, AREA) == 0);
    struct scheduler_stats before = *scheduler_get_stats();
    for (uint64_t i = 0; i < reads; i++) {
        uint64_t offset = SECTOR * (guest_random() % (AREA / SECTOR));
        memset(data, 0xee, SECTOR);
        EXPECT(transfer(BLOCK_READ, offset, data, SECTOR) == 0);
        EXPECT(matches(data, offset, SECTOR, 13));
        EXPECT(scheduler_get_stats()->rescued == 0);
    }
    const struct scheduler_stats *after = scheduler_get_stats();
    guest_say("%llu reads: %llu sleeps, %llu last looks that found, %llu rescued",
              (unsigned long long)reads, (unsigned long long)(after->sleeps - before.sleeps),
              (unsigned long long)(after->looks_that_found - before.looks_that_found),
              (unsigned long long)after->rescued);
    EXPECT(after->sleeps - before.sleeps > reads / 10);
}

/* --- RAM disk --- */

static void a_ram_disk_is_a_disk(void) {
    disk = ram_disk_create("ram0", 4 * 1024 * 1024);
    EXPECT(disk != NULL && block_device_find("ram0") == disk);
    EXPECT(transfer(BLOCK_READ, 0, data, 65536) == 0 && is_zero(data, 65536));
    (void)(check_write_and_read() && check_odd_segments() && check_many_block_segments() &&
           check_write_zeroes() && check_discard() && check_refusals()); /* they note what fails */
    EXPECT(transfer_segments(BLOCK_FLUSH, 0, 0, NULL, 0, 0) == 0);
    EXPECT(disk->stats.device_flushes == 0);
}

static void a_ram_disk_larger_than_memory_is_refused(void) {
    EXPECT(ram_disk_create("ram1", UINT64_C(1) << 40) == NULL);
    EXPECT(ram_disk_create("ram1", 0) == NULL);
    EXPECT(block_device_find("ram1") == NULL);
}

const struct guest_test guest_disk_tests[] = {
    {"what_is_written_to_virtio_blk_is_read_back", what_is_written_to_virtio_blk_is_read_back},
    {"virtio_blk_takes_segments_of_any_length", virtio_blk_takes_segments_of_any_length},
    {"virtio_blk_writes_zeroes_where_told_only", virtio_blk_writes_zeroes_where_told_only},
    {"virtio_blk_discards_where_told_only", virtio_blk_discards_where_told_only},
    {"requests_past_the_end_of_virtio_blk_are_refused",
     requests_past_the_end_of_virtio_blk_are_refused},
    {"direct_chains_and_indirect_tables_are_both_used",
     direct_chains_and_indirect_tables_are_both_used},
    {"a_flush_reaches_the_device", a_flush_reaches_the_device},
    {"a_write_with_fua_is_flushed_before_it_is_done",
     a_write_with_fua_is_flushed_before_it_is_done},
    {"flushes_at_once_share_the_device_s", flushes_at_once_share_the_device_s},
    {"a_read_only_disk_is_read_and_not_written", a_read_only_disk_is_read_and_not_written},
    {"a_full_ring_loses_and_doubles_nothing", a_full_ring_loses_and_doubles_nothing},
    {"neighbours_in_line_are_merged_and_keep_their_data",
     neighbours_in_line_are_merged_and_keep_their_data},
    {"the_serial_is_the_one_that_the_emulator_was_told",
     the_serial_is_the_one_that_the_emulator_was_told},
    {"random_requests_at_depth_keep_their_data", random_requests_at_depth_keep_their_data},
    {"no_wake_up_is_lost_in_many_sleeps", no_wake_up_is_lost_in_many_sleeps},
    {"a_ram_disk_is_a_disk", a_ram_disk_is_a_disk},
    {"a_ram_disk_larger_than_memory_is_refused", a_ram_disk_larger_than_memory_is_refused},
    {NULL, NULL},
};
