/* A segment that is full leaves before its round ends, and another begins behind it:
 * net/tcp_send.c. */
#include <lwip/priv/tcp_priv.h>
#include <lwip/stats.h>
#include <string.h>

#include "net/counters.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    MSS = 1460,
    FIRST = 10, /* bytes of a reply that shows the way */
    HEADER = 16,
    PART = HEADER + 4096,
    SEGMENT = UINT16_MAX / 2 / PART * PART, /* lwIP takes half of the largest window into one */
    FILLS = SEGMENT / PART,
    PARTS_MAX = 2 * FILLS + 1,
};

static const struct world_options cuts = {.hears_beginnings = true,
                                          .features = CARD_CSUM | CARD_HOST_TSO4};
static const uint8_t options[4] = {2, 4, MSS >> 8, MSS & 0xff};
static struct client client;
static struct stream_parcel parcels[PARTS_MAX];
static unsigned released;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static void begin(void) {
    released = 0;
    client_connect(&client, 40000, options, sizeof options);
    assert_non_null(client.stream);
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
    client_acknowledge(&client, FIRST);
    pcb_of(&client)->cwnd = UINT16_MAX;
    world_forget_heard();
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

/* The next bytes of world_text from `at` on, in frames of so many bytes; acknowledged then. */
static size_t take_in(size_t at) {
    size_t came = 0;
    for (unsigned i = 0; i < world.heard_count; i++) {
        const struct heard *heard = &world.heard[i];
        size_t known = heard->bytes < sizeof heard->data ? heard->bytes : sizeof heard->data;
        assert_int_equal(heard->seq, client.due + came);
        assert_memory_equal(heard->data, world_text + at + came, known);
        came += heard->bytes;
    }
    world_forget_heard();
    client_acknowledge(&client, came);
    return came;
}

static void expect_all(size_t bytes) {
    size_t at = 0;
    while (world.heard_count > 0) {
        at += take_in(at);
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
    client.window = SEGMENT + 100;
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

/* The ring has no room when the first is full. */
static void crowded(void) {
    begin();
    world.is_deaf = true;
    unsigned full_before = net_counters.send_ring_full;
    unsigned waiting = 0;
    while (net_counters.send_ring_full == full_before) {
        client_reply(&client, waiting++, 1);
    }
    client.due += waiting;
    uint64_t sent = net_counters.frames_sent;
    for (unsigned i = 0; i < 2 * FILLS; i++) {
        if (!send_part(i)) {
            send_in_pieces(i);
        }
    }
    client.stream->ops->flush(client.stream);
    assert_int_equal(net_counters.frames_sent, sent);
    world.is_deaf = false;
    world_settle();
    assert_true(world.heard_count > waiting);
    size_t came = 0;
    for (unsigned i = 0; i < world.heard_count; i++) {
        came += world.heard[i].bytes;
    }
    assert_int_equal(came, waiting + (size_t)2 * SEGMENT);
    client_acknowledge(&client, (size_t)2 * SEGMENT);
    assert_int_equal(released, 2 * FILLS);
    assert_null(pcb_of(&client)->unacked);
}

TEST(a_full_segment_waits_for_room_in_the_ring) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CARD_CSUM | CARD_HOST_TSO4,
                                      .ring = 4},
              crowded);
}

/* Of a segment with more room than a quarter nothing is lost: it is filled. */
static void filled(void) {
    enum { HALF = UINT16_MAX / 2 * 5 / 8 };
    begin();
    struct stream *stream = client.stream;
    uint64_t sent = net_counters.frames_sent;
    assert_int_equal(stream->ops->send(stream, world_text, HALF), HALF);
    assert_int_equal(stream->ops->send(stream, world_text + HALF, HALF), HALF);
    assert_int_equal(net_counters.frames_sent, sent);
    stream->ops->flush(stream);
    world_settle();
    assert_int_equal(world.heard_count, 2);
    assert_int_equal(world.heard[0].bytes, UINT16_MAX / 2);
    assert_int_equal(take_in(0), 2 * HALF);
}

TEST(a_segment_that_is_not_full_is_filled) {
    world_run(&cuts, filled);
}
