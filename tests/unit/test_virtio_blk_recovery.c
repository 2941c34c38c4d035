/* A virtio-blk device that is late, silent, wrong, or gone, and what becomes of its requests:
 * blk/virtio_blk_recovery.c. */
#include <string.h>

#include "blk/queue.h"
#include "boot/host/host.h"
#include "core/config.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/unit/fake_disk.h"
#include "tests/unit/unit.h"

enum { MANY = 64, TIMEOUT_S = BLOCK_REQUEST_TIMEOUT_MS / 1000 };

static uint8_t buffer[MANY * 4096];

static void start(uint64_t features) {
    fake_disk_set_up(F_FLUSH | F_SEG_MAX | features);
    assert_int_equal(fake_disk_probe(), 0);
    device.resets = 0;
}

static void expect_in_service(uint64_t resets) {
    device.mood = SERVES;
    assert_false(disk->is_gone);
    assert_int_equal(disk->stats.resets, resets);
    assert_int_equal(disk->stats.in_flight, 0);
    assert_int_equal(disk->parts_in_flight, 0);
    memset(fake_content + 8192, 0x77, 512);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 8192, buffer, 512), 0);
    assert_int_equal(buffer[511], 0x77);
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
}

static void expect_out_of_service(const char *why) {
    assert_true(disk->is_gone);
    assert_logged(why);
    assert_logged("taken out of service");
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 4096), -EIO);
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(disk->stats.in_flight, 0);
}

/* --- One request --- */

TEST(a_request_that_is_not_answered_is_submitted_again_after_a_reset) {
    static const enum fake_mood moods[] = {KEEPS_SILENT, FORGETS};
    for (unsigned i = 0; i < ARRAY_COUNT(moods); i++) {
        uint64_t begun_ns = arch_clock_ns();
        start(0);
        device.mood = moods[i];
        memset(buffer, 0x41, 512);
        assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 1024, buffer, 512), 0);
        assert_int_equal(fake_content[1024], 0x41);
        assert_int_equal(disk->stats.timeouts, 1);
        assert_int_equal(disk->stats.retries, 1);
        uint64_t took_ns = arch_clock_ns() - begun_ns;
        assert_in_range(took_ns / NS_PER_S, TIMEOUT_S, TIMEOUT_S + 2);
        assert_logged("a request was not answered in time: reset with 1 device requests in flight");
        assert_logged("offers: SEG_MAX FLUSH INDIRECT_DESC VERSION_1");
        assert_logged("oldest in flight: write of 512 at 1024");
        expect_in_service(1);
        block_unregister(disk);
    }
}

TEST(a_flush_that_is_not_answered_is_submitted_again) {
    start(0);
    device.mood = KEEPS_SILENT;
    assert_int_equal(fake_disk_run(BLOCK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(device.requests[4], 1);
    expect_in_service(1);
}

TEST(the_time_a_device_has_can_be_configured) {
    static const struct {
        const char *words;
        uint64_t seconds;
    } cases[] = {{"disk.timeout=7", 7},
                 {"disk.timeout=7 disk.vda.timeout=3 disk.vdb.timeout=9", 3},
                 {"disk.vda.timeout=0", TIMEOUT_S},
                 {"disk.vda.timeout=3601", TIMEOUT_S},
                 {"disk.vda.timeout=3s", TIMEOUT_S},
                 {"disk.vda.timeout=99999999999999999999999", TIMEOUT_S}};
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        config_forget();
        assert_int_equal(config_parse(cases[i].words), 0);
        fake_disk_set_up(F_FLUSH);
        uint64_t begun_ns = arch_clock_ns();
        assert_int_equal(fake_disk_probe(), 0);
        device.mood = KEEPS_SILENT;
        assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), 0);
        assert_int_equal((arch_clock_ns() - begun_ns) / NS_PER_S, cases[i].seconds);
        block_unregister(disk);
    }
}

TEST(a_device_that_breaks_its_ring_is_reset_and_its_request_repeated) {
    static const enum fake_mood moods[] = {LIES, MIXES_UP, BRAGS};
    for (unsigned i = 0; i < ARRAY_COUNT(moods); i++) {
        start(0);
        device.mood = moods[i];
        memset(fake_content + 512, 0x42, 512);
        assert_int_equal(fake_disk_run(BLOCK_READ, 0, 512, buffer, 512), 0);
        assert_int_equal(buffer[0], 0x42);
        assert_logged("the device broke its ring: reset with");
        expect_in_service(1);
        block_unregister(disk);
    }
}

TEST(a_completion_that_comes_twice_counts_once) {
    start(0);
    device.mood = REPEATS;
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 512, buffer, 512), 0);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 512, buffer, 512), 0);
    expect_in_service(1);
}

TEST(a_request_is_not_tried_for_ever) {
    start(0);
    device.silent_sector = 100;
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 51200, buffer, 512), -EIO);
    assert_logged("read of 512 at 51200 fails: tried often enough");
    assert_int_equal(disk->stats.timeouts, BLOCK_ATTEMPTS_MAX);
    expect_in_service(BLOCK_ATTEMPTS_MAX);
}

TEST(a_device_that_is_reset_too_often_is_taken_out_of_service) {
    start(0);
    device.mood = LIES;
    device.mood_after_reset = LIES;
    for (unsigned i = 0; i < BLOCK_RESETS_MAX && !disk->is_gone; i++) {
        assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), -EIO);
    }
    expect_out_of_service("it was reset too often");
    assert_int_equal(disk->stats.resets, BLOCK_RESETS_MAX + 1);
    assert_int_equal(device.status, VIRTIO_STATUS_FAILED);
}

TEST(resets_long_ago_are_forgotten) {
    start(0);
    for (unsigned i = 0; i < 2 * BLOCK_RESETS_MAX; i++) {
        device.mood = LIES;
        assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), 0);
        host_clock_advance(BLOCK_RESET_WINDOW_MS * NS_PER_MS / 4);
    }
    expect_in_service(2 * BLOCK_RESETS_MAX);
}

/* --- Many requests --- */

static struct event done;
static unsigned completions;
static unsigned order[MANY];
static struct block_request requests[MANY];
static struct segment segments[MANY];

static void note_done(struct block_request *request) {
    order[completions++] = (unsigned)(request - requests);
    event_signal(&done);
}

static void submit(unsigned i, enum block_operation operation, unsigned flags, uint64_t offset,
                   uint32_t length) {
    segments[i] = (struct segment){buffer + 4096 * (size_t)i, length};
    requests[i] = (struct block_request){.operation = operation,
                                         .flags = flags,
                                         .offset = offset,
                                         .length = length,
                                         .segments = &segments[i],
                                         .segment_count = 1,
                                         .complete = note_done};
    block_submit(disk, &requests[i]);
}

static void wait_for(unsigned count) {
    while (completions < count) {
        assert_int_equal(task_wait(&done, arch_clock_ns() + 1000 * NS_PER_S), 0);
    }
}

static void sleep_ms(uint64_t ms) {
    task_sleep_until(arch_clock_ns() + ms * NS_PER_MS);
}

static void submit_mixture(void *unused) {
    (void)unused;
    completions = 0;
    for (unsigned i = 0; i < MANY; i++) {
        /* Every second place is left out, so that nothing is merged. */
        memset(buffer + 4096 * (size_t)i, (int)i, 4096);
        submit(i, i % 3 == 0 ? BLOCK_READ : BLOCK_WRITE, i % 7 == 1 ? BLOCK_FUA : 0,
               1024 * (uint64_t)i, 512);
    }
    wait_for(MANY);
}

TEST(whatever_goes_wrong_in_the_middle_every_request_ends_once_and_well) {
    static const enum fake_mood moods[] = {KEEPS_SILENT, FORGETS, LIES, MIXES_UP, BRAGS, REPEATS};
    for (unsigned round = 0; round < 60; round++) {
        start(0);
        for (unsigned i = 0; i < MANY; i++) {
            memset(fake_content + 1024 * (size_t)i, 0xc0 + (int)(i % 16), 512);
        }
        device.mood = moods[round % ARRAY_COUNT(moods)];
        device.good_requests = (unsigned)unit_random_below(MANY + 10);
        unit_run_task(submit_mixture, NULL);
        for (unsigned i = 0; i < MANY; i++) {
            assert_int_equal(requests[i].status, 0);
            const uint8_t *data =
                i % 3 == 0 ? buffer + 4096 * (size_t)i : fake_content + 1024 * (size_t)i;
            uint8_t expected = i % 3 == 0 ? (uint8_t)(0xc0 + i % 16) : (uint8_t)i;
            assert_int_equal(data[0], expected);
            assert_int_equal(data[511], expected);
        }
        expect_in_service(disk->stats.resets);
        assert_in_range(disk->stats.resets, 0, 2);
        block_unregister(disk);
    }
}

static void submit_reads_writes_and_a_flush(void *unused) {
    (void)unused;
    completions = 0;
    submit(0, BLOCK_WRITE, 0, 0, 512);
    submit(1, BLOCK_READ, 0, 2048, 512);
    submit(2, BLOCK_FLUSH, 0, 0, 0);
    submit(3, BLOCK_WRITE, 0, 4096, 512);
    wait_for(4);
}

TEST(after_a_reset_the_order_is_that_of_before_and_the_flush_comes_last) {
    start(0);
    device.mood = KEEPS_SILENT;
    unit_run_task(submit_reads_writes_and_a_flush, NULL);
    static const uint32_t types[] = {1, 0, 1, 4};
    static const uint64_t sectors[] = {0, 4, 8, 0};
    assert_int_equal(device.served_count, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(device.served[i].type, types[i]);
        assert_int_equal(device.served[i].sector, sectors[i]);
    }
    expect_in_service(1);
}

/* The first write hangs, a second one to the same place is answered, and so known to be there. */
static void submit_overlapping(void *unused) {
    (void)unused;
    completions = 0;
    memset(buffer, 0x11, 4096);
    memset(buffer + 4096, 0x22, 4096);
    memset(buffer + 8192, 0x33, 4096);
    device.silent_sector = 7;
    submit(0, BLOCK_WRITE, 0, 0, 4096);
    submit(1, BLOCK_WRITE, 0, 3584, 512); /* hangs as well: touches sector 7 */
    sleep_ms(10);
    device.silent_sector = UINT64_MAX;
    submit(2, BLOCK_WRITE, 0, 2048, 512);
    wait_for(1);
    assert_int_equal(order[0], 2);
    wait_for(3);
}

TEST(a_write_that_a_later_one_has_overtaken_is_not_repeated) {
    start(0);
    unit_run_task(submit_overlapping, NULL);
    assert_int_equal(requests[2].status, 0);
    assert_int_equal(fake_content[2048], 0x33);
    assert_int_equal(requests[0].status, -EIO);
    assert_logged("write of 4096 at 0 fails: a later write to the same place was answered first");
    assert_int_equal(requests[1].status, 0);
    assert_int_equal(fake_content[3584], 0x22);
    assert_int_equal(disk->stats.retries, 1);
    expect_in_service(1);
}

static void submit_neighbours(void *unused) {
    (void)unused;
    completions = 0;
    device.mood = KEEPS_SILENT;
    submit(0, BLOCK_READ, 0, 65536, 512);
    for (unsigned i = 1; i < 6; i++) {
        submit(i, BLOCK_READ, 0, 512 * (uint64_t)i, 512);
        memset(fake_content + 512 * (size_t)i, (int)i, 512);
    }
    wait_for(6);
}

TEST(merged_requests_are_repeated_as_one) {
    start(0);
    unit_run_task(submit_neighbours, NULL);
    assert_int_equal(disk->stats.merges, 4);
    assert_int_equal(disk->stats.retries, 2);
    assert_int_equal(device.served_count, 2);
    for (unsigned i = 1; i < 6; i++) {
        assert_int_equal(requests[i].status, 0);
        assert_int_equal(buffer[4096 * (size_t)i], i);
    }
    expect_in_service(1);
}

static void submit_neighbours_of_a_bad_sector(void *unused) {
    (void)unused;
    completions = 0;
    device.bad_sector = 3;
    for (unsigned i = 0; i < 8; i++) {
        submit(i, BLOCK_READ, 0, 512 * (uint64_t)i, 512);
    }
    wait_for(8);
}

TEST(of_merged_requests_only_the_one_on_the_bad_sector_fails) {
    start(0);
    unit_run_task(submit_neighbours_of_a_bad_sector, NULL);
    assert_true(disk->stats.merges > 0 && disk->stats.merges_undone > 0);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(requests[i].status, i == 3 ? -EIO : 0);
    }
    expect_in_service(0);
}

static void submit_a_merge_that_fails_before_a_later_write(void *unused) {
    (void)unused;
    completions = 0;
    memset(buffer, 0x11, sizeof buffer);
    memset(buffer + 3 * 4096, 0x33, 4096);
    device.mood = KEEPS_SILENT;
    submit(0, BLOCK_READ, 0, 65536, 512);
    submit(1, BLOCK_WRITE, 0, 0, 512);
    submit(2, BLOCK_WRITE, 0, 512, 512);
    submit(3, BLOCK_WRITE, 0, 0, 512);
    sleep_ms(10);
    device.mood = SERVES;
    device.bad_sector = 1;
    fake_disk_work();
    device.bad_sector = UINT64_MAX;
    wait_for(4);
}

TEST(a_merge_that_fails_is_not_tried_again_over_a_later_write) {
    start(0);
    unit_run_task(submit_a_merge_that_fails_before_a_later_write, NULL);
    assert_int_equal(disk->stats.merges, 1);
    assert_int_equal(requests[1].status, -EIO);
    assert_int_equal(requests[2].status, -EIO);
    assert_int_equal(requests[3].status, 0);
    assert_int_equal(fake_content[0], 0x33);
    expect_in_service(0);
}

/* --- Asks for a reset, is unplugged, cannot be stopped --- */

static void ask_for_a_reset(void *unused) {
    (void)unused;
    completions = 0;
    device.mood = KEEPS_SILENT;
    submit(0, BLOCK_WRITE, 0, 0, 512);
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    sleep_ms(10);
    device.status |= VIRTIO_STATUS_NEEDS_RESET;
    fake_disk_config_changed();
    wait_for(2);
}

TEST(a_device_that_asks_for_a_reset_gets_it_and_its_requests_again) {
    start(0);
    device.reset_reads = 50; /* takes its time */
    unit_run_task(ask_for_a_reset, NULL);
    assert_int_equal(requests[0].status, 0);
    assert_int_equal(requests[1].status, 0);
    assert_logged("the device asks for a reset");
    assert_int_equal(disk->stats.timeouts, 0);
    expect_in_service(1);
}

static void unplug(void *unused) {
    (void)unused;
    completions = 0;
    device.mood = KEEPS_SILENT;
    submit(0, BLOCK_WRITE, 0, 0, 512);
    submit(1, BLOCK_READ, 0, 4096, 512);
    submit(2, BLOCK_FLUSH, 0, 0, 0);
    sleep_ms(10);
    device.is_unplugged = true;
    wait_for(3);
}

TEST(the_requests_of_a_device_that_is_unplugged_end_with_an_error) {
    start(0);
    struct block_device *partition = block_partition_create(disk, "vda1", "partition", 512, 512);
    unit_run_task(unplug, NULL);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(requests[i].status, -EIO);
    }
    assert_true(partition->is_gone);
    expect_out_of_service("nothing answers at its address any more");
}

TEST(an_interrupt_tells_at_once_that_it_was_unplugged) {
    start(0);
    uint64_t begun_ns = arch_clock_ns();
    device.is_unplugged = true;
    fake_disk_config_changed();
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), -EIO);
    assert_true(arch_clock_ns() - begun_ns < NS_PER_S);
    expect_out_of_service("nothing answers at its address any more");
}

static void wait_in_vain(void *unused) {
    (void)unused;
    completions = 0;
    event_clear(&done);
    submit(0, BLOCK_READ, 0, 0, 512);
    submit(1, BLOCK_FLUSH, 0, 0, 0);
    assert_int_equal(task_wait(&done, arch_clock_ns() + 200 * NS_PER_S), -ETIMEDOUT);
}

/* It may still write there: no completion, or the memory would be used again. */
TEST(a_device_that_cannot_be_stopped_keeps_its_requests_memory) {
    start(0);
    device.mood = KEEPS_SILENT;
    device.never_resets = true;
    unit_run_task(wait_in_vain, NULL);
    assert_int_equal(completions, 0);
    assert_logged("2 device requests stay unanswered, their memory is quarantined");
    assert_true(disk->is_gone);
    assert_int_equal(fake_disk_run(BLOCK_READ, 0, 0, buffer, 512), -EIO);
}

TEST(a_device_that_comes_back_as_another_is_not_used) {
    for (unsigned kind = 0; kind < 5; kind++) {
        start(F_BLK_SIZE | F_DISCARD);
        device.mood = KEEPS_SILENT;
        switch (kind) {
        case 0:
            device.offered |= F_RO;
            break;
        case 1:
            device.offered &= ~F_FLUSH;
            break;
        case 2:
            fake_config32(20, 512);
            break;
        case 3:
            fake_config32(36, 8);
            break;
        default:
            device.ring_max = FAKE_RING / 2;
        }
        assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 4096), -EIO);
        expect_out_of_service("it does not come back from its reset");
        block_unregister(disk);
    }
}

TEST(a_device_may_come_back_with_another_size) {
    start(0);
    device.mood = KEEPS_SILENT;
    fake_config64(0, FAKE_SECTORS / 2);
    assert_int_equal(fake_disk_run(BLOCK_WRITE, 0, 0, buffer, 512), 0);
    assert_int_equal(disk->capacity_bytes, FAKE_SECTORS * 256);
    expect_in_service(1);
}

/* --- Begun in another task --- */

enum { GATHERED = 2 };

static struct block_request gathered[GATHERED];
static struct segment gathered_segment;
static struct event gathered_event;
static unsigned gathered_count;

static void note_gathered(struct block_request *request) {
    assert_int_equal(request->status, disk->is_gone ? -EIO : 0);
    gathered_count++;
    event_signal(&gathered_event);
}

static bool serve_one(unsigned which) {
    gathered_segment = (struct segment){buffer, 512};
    gathered[which] = (struct block_request){.operation = BLOCK_READ,
                                             .offset = 8192 + (uint64_t)4096 * which,
                                             .length = 512,
                                             .segments = &gathered_segment,
                                             .segment_count = 1,
                                             .complete = note_gathered};
    block_gather();
    block_submit(disk, &gathered[which]);
    return block_serve();
}

static void wait_for_gathered(unsigned count) {
    while (gathered_count < count) {
        assert_int_equal(task_wait(&gathered_event, arch_clock_ns() + 200 * NS_PER_S), 0);
    }
    assert_int_equal(gathered_count, count);
    gathered_count = 0;
}

/* Whenever its task last looked. */
static void not_answered(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < 3; i++) {
        task_sleep_until(arch_clock_ns() + i * TIMEOUT_S * NS_PER_S / 2);
        device.mood = KEEPS_SILENT;
        uint64_t begun_ns = arch_clock_ns();
        assert_false(serve_one(0));
        wait_for_gathered(1);
        assert_in_range((arch_clock_ns() - begun_ns) / NS_PER_S, TIMEOUT_S, TIMEOUT_S + 2);
        assert_int_equal(disk->stats.timeouts, i + 1);
    }
}

TEST(a_request_that_another_task_has_begun_has_its_time_and_no_more) {
    start(0);
    unit_run_task(not_answered, NULL);
    expect_in_service(3);
}

static void answered_wrongly(void *unused) {
    static const enum fake_mood moods[] = {LIES, MIXES_UP, BRAGS, REPEATS};
    (void)unused;
    task_yield();
    for (unsigned i = 0; i < ARRAY_COUNT(moods); i++) {
        uint64_t begun_ns = arch_clock_ns();
        device.mood = moods[i];
        (void)serve_one(0); /* perhaps the answer came first */
        wait_for_gathered(1);
        task_sleep_until(arch_clock_ns() + NS_PER_S);
        assert_int_equal(disk->stats.resets, i + 1);
        assert_true(arch_clock_ns() - begun_ns < 5 * NS_PER_S); /* it is not waited for */
    }
}

TEST(an_answer_to_another_task_that_makes_no_sense_is_the_disk_s_to_deal_with) {
    start(0);
    unit_run_task(answered_wrongly, NULL);
    expect_in_service(4);
}

static void behind_nonsense(void *unused) {
    (void)unused;
    task_yield();
    device.mood = MIXES_UP;
    assert_false(serve_one(0));
    assert_false(serve_one(1));
    assert_true(block_queue_has_work(disk));
    wait_for_gathered(GATHERED);
    assert_int_equal(disk->stats.retries, 1); /* the other one was not there yet */
}

TEST(nothing_is_asked_of_a_device_that_makes_no_sense_before_its_reset) {
    start(0);
    unit_run_task(behind_nonsense, NULL);
    expect_in_service(1);
}

/* While it is being reset nobody else touches its ring. */
static void during_a_reset(void *unused) {
    (void)unused;
    task_yield();
    device.mood = KEEPS_SILENT;
    device.reset_reads = 50; /* takes its time */
    assert_false(serve_one(0));
    task_sleep_until(arch_clock_ns() + TIMEOUT_S * NS_PER_S + NS_PER_MS);
    assert_true(device.reset_reads > 0 && device.reset_reads < 50);
    assert_false(serve_one(1));
    assert_true(block_queue_has_work(disk));
    wait_for_gathered(GATHERED);
}

TEST(another_task_begins_nothing_while_the_device_is_reset) {
    start(0);
    unit_run_task(during_a_reset, NULL);
    expect_in_service(1);
}

static void after_the_end(void *unused) {
    (void)unused;
    task_yield();
    device.mood = KEEPS_SILENT;
    device.never_resets = true;
    assert_false(serve_one(0));
    task_sleep_until(arch_clock_ns() + 2 * TIMEOUT_S * NS_PER_S);
    assert_true(disk->is_gone);
    gathered_count = 0; /* the device has that one for good */
    (void)serve_one(1);
    wait_for_gathered(1);
}

TEST(what_is_gathered_for_a_device_out_of_service_fails) {
    start(0);
    unit_run_task(after_the_end, NULL);
}

static struct event server;

static void server_task(void *unused) {
    (void)unused;
    for (;;) {
        (void)task_wait(&server, DEADLINE_NEVER); /* an answer */
        block_gather();
        (void)block_serve();
    }
}

static void serve_it(void) {
    assert_non_null(task_create("server", server_task, NULL, 0));
    block_set_server(&server);
}

static void expect_done(uint64_t resets) {
    assert_int_equal(disk->stats.resets, resets);
    assert_int_equal(disk->stats.in_flight, 0);
}

static void behind_a_server(void *unused) {
    serve_it();
    answered_wrongly(unused);
}

TEST(what_the_server_of_a_device_is_woken_for_may_make_no_sense) {
    start(0);
    unit_run_task(behind_a_server, NULL);
    expect_done(4);
}

/* Its server wakes it neither for answers nor for those that do not come. */
static void keeps_its_deadlines(void *unused) {
    serve_it();
    not_answered(unused);
}

TEST(a_device_with_a_server_keeps_its_own_deadlines) {
    start(0);
    unit_run_task(keeps_its_deadlines, NULL);
    expect_done(3);
}
