/* How much of one connection goes to the disk at once: apps/nbd/transmission.c. */
#include "apps/nbd/wire.h"
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

static unsigned waves[WAVES_MAX]; /* parts that the disk was given, each time */
static unsigned wave_count;

static void count_wave(struct block_device *device) {
    unsigned before = nbd_part_count;
    (void)device; /* there is one */
    take_parts();
    assert_true(wave_count < WAVES_MAX);
    waves[wave_count++] = nbd_part_count - before;
}

/* All of them are received before the server looks. */
static void ask_at_once(struct talker *talker, uint16_t command, unsigned count) {
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
