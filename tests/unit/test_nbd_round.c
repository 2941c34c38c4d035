/* How much of one connection goes to the disk at once: apps/nbd/transmission.c. */
#include "apps/nbd/wire.h"
#include "boot/arch.h"
#include "core/task/task.h"
#include "net/counters.h"
#include "net/stack.h"
#include "tests/unit/nbd_world.h"
#include "tests/unit/unit.h"

enum {
    BLOCK = 512,
    STRIDE = 4 * BLOCK, /* no two are neighbours and merge */
    REQUEST_BYTES = 28,
    WRITES_AT_ONCE = 16,
    READS_AT_ONCE = 62,
    WAVES_MAX = 16,
};

static unsigned waves[WAVES_MAX];       /* parts that the disk was given, each time */
static uint64_t sent_before[WAVES_MAX]; /* frames */
static unsigned wave_count;

static void count_wave(struct block_device *device) {
    unsigned before = nbd_part_count;
    (void)device; /* there is one */
    take_parts();
    assert_true(wave_count < WAVES_MAX);
    sent_before[wave_count] = net_counters.frames_sent;
    waves[wave_count++] = nbd_part_count - before;
}

/* The server does not look yet. */
static void deliver(struct talker *talker, uint16_t command, unsigned count) {
    uint8_t frame[FRAME_MAX];
    uint8_t said[REQUEST_BYTES + BLOCK] = {0};
    size_t bytes = command == NBD_CMD_WRITE ? sizeof said : REQUEST_BYTES;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = said;
        put(&at, NBD_REQUEST_MAGIC, 4);
        put(&at, command, 4);
        put(&at, talker->next_cookie++, 8);
        put(&at, (uint64_t)i * STRIDE, 8);
        put(&at, BLOCK, 4);
        struct spoken spoken = {.flags = ACK | PSH, .data = said, .bytes = bytes};
        fake_card_deliver(frame, client_frame(&talker->client, &spoken, frame), 0);
        talker->client.at += (uint32_t)bytes;
    }
}

static void ask_at_once(struct talker *talker, uint16_t command, unsigned count) {
    deliver(talker, command, count);
    wave_count = 0;
    world_settle();
}

static void waves_of(uint16_t command, unsigned at_once) {
    struct talker *talker = begin_simple(0, "disk");
    nbd_disk.wake = count_wave;
    ask_at_once(talker, command, at_once);
    assert_int_equal(wave_count, 1);
    assert_int_equal(waves[0], at_once);
    answer_all();
    hear_all();
    ask_at_once(talker, command, at_once + 3);
    assert_int_equal(wave_count, 2);
    assert_int_equal(waves[0], at_once);
    assert_int_equal(waves[1], 3);
    answer_all();
    hear_all();
    assert_int_equal(nbd_part_count, 0);
}

static void writing(void) {
    waves_of(NBD_CMD_WRITE, WRITES_AT_ONCE);
}

TEST(the_disk_begins_with_some_writes_before_the_others_are_looked_at) {
    with_server(0, writing);
}

static void reading(void) {
    waves_of(NBD_CMD_READ, READS_AT_ONCE);
}

TEST(the_disk_begins_with_all_reads_that_a_client_waits_for) {
    with_server(0, reading);
}

/* --- A disk that has enough to do --- */

/* While others wait for their turn, that of a writer is as long as theirs. */
static void turns(void) {
    enum { TURN = 32, DEPTH = 4 * TURN };
    struct talker *reader = begin_simple(0, "disk");
    struct talker *writer = begin_simple(1, "disk");
    struct talker *next = begin_simple(2, "disk");
    nbd_disk.wake = count_wave;
    for (unsigned i = 0; i < DEPTH / TURN; i++) {
        ask_at_once(reader, NBD_CMD_READ, TURN);
    }
    assert_int_equal(nbd_part_count, DEPTH);
    ask_at_once(writer, NBD_CMD_WRITE, TURN);
    ask_at_once(next, NBD_CMD_READ, TURN);
    assert_int_equal(nbd_part_count, DEPTH);
    assert_int_equal(wave_count, 0);
    for (unsigned i = 0; i < TURN; i++) {
        answer_at(nbd_parts[0].offset, 0);
    }
    assert_int_equal(nbd_part_count, DEPTH);
    assert_int_equal(wave_count, 1);
    assert_int_equal(waves[0], TURN);
    answer_all();
    hear_all();
}

TEST(a_writers_turn_is_as_long_as_a_readers) {
    config.depth = 128;
    with_server(0, turns);
}

/* The disk has begun with some turns before the next are looked at, though nothing tells that it
 * would have room for them. */
static void rounds(void) {
    for (unsigned i = 0; i < TALKERS; i++) {
        (void)begin_simple(i, "disk");
    }
    nbd_disk.wake = count_wave;
    for (unsigned i = 0; i < TALKERS; i++) {
        deliver(&talkers[i], NBD_CMD_READ, READS_AT_ONCE);
    }
    wave_count = 0;
    net_wake(); /* once */
    task_sleep_until(arch_clock_ns() + NS_PER_MS);
    assert_int_equal(wave_count, 2);
    assert_int_equal(waves[0], NBD_ROUND_PIECES / READS_AT_ONCE * READS_AT_ONCE);
    assert_int_equal(waves[0] + waves[1], TALKERS * READS_AT_ONCE);
    answer_all();
    hear_all();
}

TEST(a_round_gives_a_disk_some_turns_and_the_next_the_others) {
    config.depth = NBD_DISK_DEPTH;
    with_server(0, rounds);
}

/* --- A disk that answers at once --- */

static unsigned wakes;

static void count_wake(struct block_device *device) {
    (void)device; /* there is one */
    wakes++;
}

static bool serve_at_once(struct block_device *device) {
    count_wave(device);
    if (waves[wave_count - 1] == 0) {
        wave_count--;
        return false;
    }
    while (nbd_part_count > 0) {
        block_queue_done(device, nbd_parts[--nbd_part_count].request, 0);
    }
    return true;
}

/* Replies leave before more is taken; and what is taken goes through `serve` like all else. */
static void answered_at_once(uint16_t command, unsigned at_once) {
    struct talker *talker = begin_simple(0, "disk");
    nbd_disk.serve = serve_at_once;
    nbd_disk.wake = count_wake;
    wakes = 0;
    ask_at_once(talker, command, 2 * at_once + 3);
    assert_int_equal(wave_count, 3);
    assert_int_equal(waves[0], at_once);
    assert_int_equal(waves[1], at_once);
    assert_int_equal(waves[2], 3);
    assert_true(sent_before[1] > sent_before[0]);
    assert_int_equal(wakes, 0);
    hear_all();
}

static void writing_at_once(void) {
    answered_at_once(NBD_CMD_WRITE, WRITES_AT_ONCE);
}

static void reading_at_once(void) {
    answered_at_once(NBD_CMD_READ, READS_AT_ONCE);
}

TEST(what_a_round_leaves_goes_to_the_disk_in_the_next) {
    with_server(0, writing_at_once);
    with_server(0, reading_at_once);
}

/* Two have all that the disk takes at a time; nothing but their end tells the third's turn. */
static void waiting_at_once(void) {
    unsigned served = 0;
    for (unsigned i = 0; i < 3; i++) {
        (void)begin_simple(i, "disk");
    }
    nbd_disk.serve = serve_at_once;
    for (unsigned i = 0; i < 3; i++) {
        deliver(&talkers[i], NBD_CMD_READ, READS_AT_ONCE);
    }
    wave_count = 0;
    world_settle();
    for (unsigned i = 0; i < wave_count; i++) {
        served += waves[i];
    }
    assert_true(waves[0] < served);
    assert_int_equal(served, 3 * READS_AT_ONCE);
    hear_all();
}

TEST(who_waits_for_a_turn_has_it_when_the_disk_has_answered_at_once) {
    config.depth = 128;
    with_server(0, waiting_at_once);
}

/* Behind as much as a round takes nothing more comes, and that has to be seen. */
static void ending(void) {
    struct talker *talker = begin_simple(0, "disk");
    struct spoken end = {.flags = FIN | ACK};
    uint8_t frame[FRAME_MAX];
    nbd_disk.serve = serve_at_once;
    wave_count = 0;
    deliver(talker, NBD_CMD_WRITE, WRITES_AT_ONCE);
    fake_card_deliver(frame, client_frame(&talker->client, &end, frame), 0);
    world_settle();
    talker->client.at++;
    hear_all();
    assert_true(talker->has_ended);
}

TEST(a_client_that_closes_behind_a_full_round_is_let_go) {
    with_server(0, ending);
}
