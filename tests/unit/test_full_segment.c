/* A segment that is full leaves before its round ends, and another begins behind it:
 * net/tcp_send.c. */
#include <lwip/priv/tcp_priv.h>
#include <lwip/stats.h>
#include <string.h>

#include "config/limits.h"
#include "net/counters.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    MSS = 1460,
    LIMIT = NET_SEGMENT_BYTES_MAX / MSS * MSS,
    SHIFT = 2,  /* of the window */
    FIRST = 10, /* bytes of a reply that shows the way */
    HEADER = 16,
    PART = HEADER + 4096,
    FILLS = LIMIT / PART,
    SEGMENT = FILLS * PART,
    PIECES = 1 + 2 * FILLS, /* of its frame */
    PARTS_MAX = 2 * FILLS + 1,
    RING = 64,
};

static const struct world_options cuts = {.hears_beginnings = true,
                                          .features = CARD_CSUM | CARD_HOST_TSO4};
static const uint8_t options[8] = {2, 4, MSS >> 8, MSS & 0xff, 1, 3, 3, SHIFT};
static const size_t options_without_shift = 4;
static struct client client;
static struct stream_parcel parcels[PARTS_MAX];
static unsigned released;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static void connect(struct client *who, uint16_t port, size_t option_bytes) {
    client_connect(who, port, options, option_bytes);
    assert_non_null(who->stream);
    assert_int_equal(way_of_reply(who, FIRST), LONG_WAY);
    client_acknowledge(who, FIRST);
    pcb_of(who)->cwnd = 4 * LIMIT;
    world_forget_heard();
}

static void begin(void) {
    released = 0;
    connect(&client, 40000, sizeof options);
}

static bool send_part(unsigned index) {
    const struct stream_ops *ops = client.stream->ops;
    uint8_t *text = world_text + (size_t)index * PART;
    parcels[index].mark.released = count_released;
    return ops->send_whole(client.stream, (struct segment){text, HEADER},
                           (struct segment){text + HEADER, PART - HEADER}, &parcels[index]);
}

/* What nobody takes whole goes piece by piece, as apps/nbd does it. */
static void send_in_pieces(unsigned index) {
    const struct stream_ops *ops = client.stream->ops;
    const uint8_t *text = world_text + (size_t)index * PART;
    assert_int_equal(ops->send(client.stream, text, HEADER), HEADER);
    assert_int_equal(ops->send(client.stream, text + HEADER, PART - HEADER), PART - HEADER);
    ops->mark(client.stream, &parcels[index].mark);
}

static void expect_all(size_t bytes) {
    size_t at = 0;
    while (world.heard_count > 0) {
        at += client_take_in(&client, at);
    }
    assert_int_equal(at, bytes);
    assert_int_equal(released, bytes / PART);
    assert_null(pcb_of(&client)->unsent);
    assert_null(pcb_of(&client)->unacked);
}

/* Nothing has been flushed when the first is in the ring. */
static void full(void) {
    begin();
    uint64_t sent = net_counters.frames_sent;
    for (unsigned i = 0; i < FILLS; i++) {
        assert_true(send_part(i));
        assert_int_equal(net_counters.frames_sent, sent);
    }
    for (unsigned i = FILLS; i < 2 * FILLS; i++) {
        assert_true(send_part(i));
        assert_int_equal(net_counters.frames_sent, sent + 1);
    }
    client.stream->ops->flush(client.stream);
    world_settle();
    assert_int_equal(net_counters.frames_sent, sent + 2);
    assert_int_equal(world.heard_count, 2);
    assert_int_equal(world.heard[0].bytes, SEGMENT);
    assert_int_equal(world.heard[1].bytes, SEGMENT);
    assert_int_equal(world.heard[0].cut, MSS);
    expect_all((size_t)2 * SEGMENT);
}

TEST(a_full_segment_leaves_and_another_begins) {
    world_run(&cuts, full);
}

/* The first may go, the second not before that is acknowledged. */
static void windowed(void) {
    begin();
    client.window = (SEGMENT + 100) >> SHIFT;
    client_send(&client, world_text, 10);
    client_send(&client, world_text, 10);
    client_drop(&client);
    world_forget_heard();
    uint64_t sent = net_counters.frames_sent;
    for (unsigned i = 0; i < 2 * FILLS; i++) {
        assert_true(send_part(i));
    }
    assert_false(send_part(2 * FILLS));
    send_in_pieces(2 * FILLS);
    assert_int_equal(net_counters.frames_sent, sent + 1);
    client.stream->ops->flush(client.stream);
    world_settle();
    assert_int_equal(world.heard_count, 1);
    expect_all((size_t)PARTS_MAX * PART);
}

TEST(a_full_segment_waits_for_the_window_and_what_follows_behind_it) {
    world_run(&cuts, windowed);
}

/* The ring has not as much room when the first is full. From then on nobody overtakes it. */
static void crowded(void) {
    static struct client other;
    begin();
    connect(&other, 40001, sizeof options);
    world.is_deaf = true;
    unsigned small = (RING - PIECES) / 2 + 1; /* of two pieces each */
    for (unsigned i = 0; i < small; i++) {
        client_reply(&client, 0, 1);
    }
    uint64_t full_before = net_counters.send_ring_full;
    uint64_t sent = net_counters.frames_sent;
    for (unsigned i = 0; i < FILLS; i++) {
        assert_true(send_part(i));
    }
    assert_int_equal(net_counters.send_ring_full, full_before);
    assert_false(send_part(FILLS));
    assert_int_equal(net_counters.send_ring_full, full_before + 1);
    send_in_pieces(FILLS);
    assert_int_equal(net_counters.send_ring_full, full_before + 1);
    assert_int_equal(other.stream->ops->send(other.stream, world_text, 1), 1);
    other.stream->ops->flush(other.stream);
    client.stream->ops->flush(client.stream);
    assert_int_equal(net_counters.frames_sent, sent);
    world.is_deaf = false;
    world_settle();
    assert_int_equal(world.heard_count, small + 3);
    assert_int_equal(world.heard[small].port, client.port);
    client.due += small;
    assert_int_equal(world.heard[small].seq, client.due);
    assert_int_equal(world.heard[small].bytes, LIMIT);
    client_acknowledge(&client, (size_t)(FILLS + 1) * PART);
    assert_int_equal(released, FILLS + 1);
    assert_null(pcb_of(&client)->unacked);
    client_acknowledge(&other, 1);
}

TEST(a_full_segment_waits_for_room_in_the_ring_and_nobody_overtakes_it) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CARD_CSUM | CARD_HOST_TSO4,
                                      .ring = RING},
              crowded);
}

/* --- Not full --- */

/* Two pieces that are more than a segment, and leave as one that is full and the rest. */
static void expect_filled(size_t first, size_t second, size_t limit) {
    struct stream *stream = client.stream;
    uint64_t sent = net_counters.frames_sent;
    assert_int_equal(stream->ops->send(stream, world_text, first), first);
    assert_int_equal(stream->ops->send(stream, world_text + first, second), second);
    assert_int_equal(net_counters.frames_sent, sent);
    stream->ops->flush(stream);
    world_settle();
    assert_int_equal(world.heard_count, 2);
    assert_int_equal(world.heard[0].bytes, limit);
    assert_int_equal(client_take_in(&client, 0), first + second);
}

static void filled(void) {
    enum { QUARTER = LIMIT - LIMIT / 4 };
    begin();
    expect_filled(QUARTER - 1, LIMIT - 100, LIMIT);
}

TEST(a_segment_with_more_room_than_a_quarter_is_filled) {
    world_run(&cuts, filled);
}

/* A peer that does not scale its window: two halves of it are all that may be under way. */
static void filled_to_half(void) {
    enum { HALF = UINT16_MAX / 2 };
    connect(&client, 40000, options_without_shift);
    expect_filled(HALF - 100, HALF - 100, HALF);
}

TEST(a_segment_that_the_window_bounds_is_filled) {
    world_run(&cuts, filled_to_half);
}

/* What has no room in the send buffer has none in another segment. */
static void buffered(void) {
    begin();
    pcb_of(&client)->snd_buf = 2 * PART;
    uint64_t sent = net_counters.frames_sent;
    assert_true(send_part(0));
    assert_true(send_part(1));
    assert_false(send_part(2));
    assert_int_equal(client.stream->ops->send(client.stream, world_text, 1), 0);
    assert_int_equal(net_counters.frames_sent, sent);
    client.stream->ops->flush(client.stream);
    world_settle();
    assert_int_equal(world.heard_count, 1);
    expect_all((size_t)2 * PART);
}

TEST(a_small_segment_does_not_leave_for_a_full_send_buffer) {
    world_run(&cuts, buffered);
}
