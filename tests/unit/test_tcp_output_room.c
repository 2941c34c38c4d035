/* The short way out (net/tcp_output.c, net/tcp_send.c) where a window, the card's ring or memory
 * has no room. */
#include <lwip/memp.h>
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
    FIRST = 10,       /* bytes of a reply that is only to go, as the first one that shows the way */
    PIECES_MAX = 256, /* of a frame, its headers among them */
    MANY = 3 * NET_HEADS_KEPT,
};

static const struct world_options plain = {0};
static const uint8_t options[4] = {2, 4, MSS >> 8, MSS & 0xff};
static struct client client;
static unsigned released;
static unsigned changes;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static void count_change(void *unused) {
    (void)unused;
    changes++;
}

static struct tcp_stream *tcp_of(const struct client *of) {
    return (struct tcp_stream *)of->stream;
}

/* All that it was sent is acknowledged, and the way is known. */
static void connect(struct client *who, uint16_t port) {
    client_connect(who, port, options, sizeof options);
    assert_non_null(who->stream);
    assert_int_equal(way_of_reply(who, FIRST), LONG_WAY);
    client_acknowledge(who, FIRST);
    assert_null(pcb_of(who)->unacked);
    world_forget_heard();
}

static void begin(void) {
    released = 0;
    changes = 0;
    connect(&client, 40000);
}

/* --- Windows --- */

static void small_window(void) {
    begin();
    client.window = 1000;
    client_send(&client, world_text, 1);
    world_forget_heard();
    assert_int_equal(way_of_reply(&client, 1000), SHORT_WAY); /* all of it */
    assert_int_equal(way_of_reply(&client, 1), NO_WAY);
    client_reply(&client, 1, 1); /* nothing overtakes what waits */
    client_acknowledge(&client, 1000);
    client_expect_heard(&client, 2);
    assert_int_equal(pcb_of(&client)->persist_backoff, 0);
    assert_int_equal(way_of_reply(&client, 1000), NO_WAY);
    assert_int_equal(pcb_of(&client)->persist_backoff, 0); /* something is under way */
    client_acknowledge(&client, 2);
    client_expect_heard(&client, 1000);
    client_acknowledge(&client, 1000);
    /* Too small for all of it, with nothing under way: lwIP's to ask. */
    assert_int_equal(way_of_reply(&client, 1001), NO_WAY);
    assert_int_equal(pcb_of(&client)->persist_backoff, 1);
    client.window = UINT16_MAX;
    client_say(&client, &(struct spoken){0});
    client_expect_heard(&client, 1001);
    assert_int_equal(pcb_of(&client)->persist_backoff, 0);
    client_acknowledge(&client, 1001);
    /* What lwIP then cuts off is plain again. */
    client.window = 1000;
    client_send(&client, world_text, 1);
    assert_int_equal(way_of_reply(&client, 1400), NO_WAY);
    world_forget_heard();
    for (unsigned i = 0; i < 20 && world.heard_count == 0; i++) {
        world_pass_ms(TCP_SLOW_INTERVAL);
    }
    client_expect_heard(&client, 1000);
    unsigned ip_before = lwip_stats.ip.xmit;
    client_acknowledge(&client, 1000);
    assert_int_equal(lwip_stats.ip.xmit, ip_before);
    assert_int_equal(world_last_heard()->seq, client.due);
    assert_memory_equal(world_last_heard()->data, world_text + 1000, 400);
}

TEST(the_peers_window_bounds_what_goes_the_short_way) {
    world_run(&plain, small_window);
}

static void congested(void) {
    begin();
    assert_int_equal(way_of_reply(&client, MSS - 1), SHORT_WAY);
    world_pass_ms(2000); /* it is lost, and sent again */
    assert_int_equal(pcb_of(&client)->cwnd, MSS);
    world_forget_heard();
    assert_int_equal(way_of_reply(&client, 2), NO_WAY);
    client_acknowledge(&client, MSS - 1);
    client_expect_heard(&client, 2);
}

TEST(the_congestion_window_bounds_what_goes_the_short_way) {
    world_run(&plain, congested);
}

/* --- Room --- */

static void full_ring(void) {
    struct client other;
    begin();
    connect(&other, 40001);
    struct stream *stream = client.stream;
    world.is_deaf = true;
    assert_int_equal(way_of_reply(&other, 100), SHORT_WAY);
    assert_int_equal(way_of_reply(&other, 100), SHORT_WAY);
    assert_int_equal(stream->ops->send(stream, world_text, FIRST), FIRST);
    const struct tcp_seg *segment = pcb_of(&client)->unsent;
    uint64_t sent_before = virtio_net_sent(virtio_net_first());
    tcp_output_plain(tcp_of(&client));
    assert_ptr_equal(pcb_of(&client)->unsent, segment);
    assert_ptr_equal(segment->p->payload, segment->tcphdr);
    assert_int_equal(segment->p->len, 20);
    assert_int_equal(segment->p->tot_len, 20 + FIRST);
    assert_int_equal(virtio_net_sent(virtio_net_first()), sent_before);
    stream->ops->flush(stream);
    world_settle();
    assert_true(virtio_net_wants_room(virtio_net_first()));
    world.is_deaf = false;
    assert_int_equal(world_listen(2), 2);
    world_settle();
    assert_int_equal(world.heard_count, 3);
    client_expect_heard(&client, FIRST);
    client_acknowledge(&client, FIRST);
    world_pass_ms(100);
    assert_int_equal(world.heard_count, 3);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
}

TEST(what_finds_the_ring_full_goes_later_and_once) {
    world_run(&(struct world_options){.ring = 4}, full_ring);
}

/* Behind a frame that was refused all wait for their turn. */
static void behind_refused(void) {
    struct client other;
    struct client late;
    begin();
    connect(&other, 40001);
    connect(&late, 40002);
    world.is_deaf = true;
    assert_int_equal(way_of_reply(&other, 100), SHORT_WAY);
    assert_int_equal(way_of_reply(&other, 100), SHORT_WAY);
    tcp_streams_forget_ways();
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY); /* tried, that is */
    assert_int_equal(tcp_of(&client)->way.until_ns, 0);
    tcp_of(&late)->way.until_ns = DEADLINE_NEVER;
    assert_int_equal(world_listen(1), 1);
    virtio_net_reclaim(virtio_net_first());
    struct stream *stream = late.stream;
    assert_int_equal(stream->ops->send(stream, world_text, FIRST), FIRST);
    const struct tcp_seg *waits = pcb_of(&late)->unsent;
    tcp_output_plain(tcp_of(&late));
    assert_ptr_equal(pcb_of(&late)->unsent, waits);
    world.is_deaf = false;
    world_settle();
    assert_int_equal(world.heard_count, 4);
    assert_int_equal(world.heard[2].port, client.port);
    assert_int_equal(world.heard[3].port, late.port);
}

TEST(what_comes_behind_a_refused_frame_waits_for_its_turn) {
    world_run(&(struct world_options){.ring = 4}, behind_refused);
}

static void broken_device(void) {
    begin();
    fake_card_break_receive();
    world_settle();
    uint64_t sent_before = virtio_net_sent(virtio_net_first());
    assert_int_equal(client.stream->ops->send(client.stream, world_text, FIRST), FIRST);
    client.stream->ops->flush(client.stream);
    assert_int_equal(virtio_net_sent(virtio_net_first()), sent_before);
}

TEST(a_broken_device_gets_nothing) {
    world_run(&plain, broken_device);
}

/* Bytes that do not lie side by side, each a piece of its own behind the headers. */
static enum way way_of_pieces(unsigned pieces) {
    static uint8_t told[PIECES_MAX];
    struct stream *stream = client.stream;
    unsigned ip_before = lwip_stats.ip.xmit;
    for (unsigned i = 1; i < pieces; i++) {
        assert_int_equal(stream->ops->send(stream, world_text + (size_t)2 * i, 1), 1);
        told[i - 1] = world_text[2 * i];
    }
    assert_int_equal(pbuf_clen(pcb_of(&client)->unsent->p), pieces);
    stream->ops->flush(stream);
    world_settle();
    assert_int_equal(world_last_heard()->bytes, pieces - 1);
    assert_memory_equal(world_last_heard()->data, told, pieces - 1);
    client_acknowledge(&client, pieces - 1);
    return lwip_stats.ip.xmit != ip_before ? LONG_WAY : SHORT_WAY;
}

static void many_pieces(void) {
    begin();
    assert_int_equal(way_of_pieces(PIECES_MAX), SHORT_WAY);
    assert_int_equal(net_counters.bytes_copied, 0);
    assert_int_equal(way_of_pieces(PIECES_MAX + 1), LONG_WAY);
    assert_true(net_counters.bytes_copied > 0);
}

TEST(a_frame_of_too_many_pieces_goes_as_a_copy) {
    world_run(&plain, many_pieces);
}

static void few_pieces(void) {
    begin();
    assert_int_equal(way_of_pieces(2), SHORT_WAY);
    assert_int_equal(way_of_pieces(3), LONG_WAY);
}

TEST(a_frame_of_more_pieces_than_the_ring_goes_as_a_copy) {
    world_run(&(struct world_options){.ring = 2}, few_pieces);
}

/* lwIP bounds the buffers of all that is under way: each of these replies has two. */
static void queue_is_full(void) {
    unsigned replies = 0;
    begin();
    const struct tcp_pcb *pcb = pcb_of(&client);
    struct stream *stream = client.stream;
    pcb_of(&client)->cwnd = UINT16_MAX;
    while (stream->ops->send(stream, world_text, 1) == 1) {
        stream->ops->flush(stream);
        world_settle();
        world_forget_heard();
        replies++;
    }
    assert_int_equal(replies, TCP_SND_QUEUELEN / 2);
    assert_int_equal(pcb->snd_queuelen, TCP_SND_QUEUELEN);
    client_acknowledge(&client, replies);
    assert_int_equal(pcb->snd_queuelen, 0);
    pcb_of(&client)->snd_buf = FIRST - 1;
    assert_int_equal(stream->ops->send(stream, world_text, FIRST), FIRST - 1);
    assert_int_equal(pcb->snd_buf, 0);
    pcb_of(&client)->snd_buf = TCP_SND_BUF - (FIRST - 1);
    stream->ops->flush(stream);
    world_settle();
    client_expect_heard(&client, FIRST - 1);
}

TEST(what_lwip_has_no_buffers_for_waits_for_an_acknowledgement) {
    world_run(&plain, queue_is_full);
}

/* --- Memory --- */

/* A reply that finds none: nothing of it is kept. */
static void expect_refusal(void) {
    const struct tcp_pcb *pcb = pcb_of(&client);
    unsigned segments = lwip_stats.memp[MEMP_TCP_SEG]->used;
    unsigned buffers = lwip_stats.memp[MEMP_PBUF]->used;
    unsigned queued = pcb->snd_queuelen;
    uint64_t sent = tcp_of(&client)->sent;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(client.stream->ops->send(client.stream, world_text, FIRST), 0);
    }
    assert_null(pcb->unsent);
    assert_int_equal(pcb->snd_queuelen, queued);
    assert_int_equal(tcp_of(&client)->sent, sent);
    assert_int_equal(lwip_stats.memp[MEMP_TCP_SEG]->used, segments);
    assert_int_equal(lwip_stats.memp[MEMP_PBUF]->used, buffers);
    unsigned heard_before = world.heard_count;
    client.stream->ops->flush(client.stream);
    world_settle();
    assert_int_equal(world.heard_count, heard_before);
}

static void without_heap(void) {
    begin(); /* one head is kept */
    client.stream->changed = count_change;
    unit_allocations_until_failure(0);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    expect_refusal();
    client_expect_heard(&client, FIRST);
    unsigned changes_before = changes;
    client_acknowledge(&client, FIRST);
    assert_true(changes > changes_before); /* it hears of it */
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_expect_heard(&client, FIRST);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    client_acknowledge(&client, FIRST);
}

TEST(without_memory_for_headers_a_reply_waits_for_those_under_way) {
    world_run(&plain, without_heap);
}

static void *hoard[MEMP_NUM_PBUF + 1]; /* the last is none */

static unsigned take_all(memp_t pool) {
    unsigned count = 0;
    while ((hoard[count] = memp_malloc(pool)) != NULL) {
        count++;
    }
    return count;
}

static void give_back(memp_t pool, unsigned count) {
    while (count > 0) {
        memp_free(pool, hoard[--count]);
    }
}

static void without_segments(void) {
    begin();
    unsigned count = take_all(MEMP_TCP_SEG);
    expect_refusal();
    give_back(MEMP_TCP_SEG, count);
    unit_allocations_until_failure(0); /* the kept head is still there */
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    client_expect_heard(&client, FIRST);
}

TEST(without_a_segment_of_lwips_a_reply_goes_later) {
    world_run(&plain, without_segments);
}

static void without_buffers(void) {
    static struct stream_parcel parcel = {.mark.released = count_released};
    begin();
    struct stream *stream = client.stream;
    unsigned count = take_all(MEMP_PBUF);
    expect_refusal();
    tcp_ack_now(pcb_of(&client)); /* which goes although there is no reply to go with */
    assert_int_equal(stream->ops->send(stream, world_text, FIRST), 0);
    stream->ops->flush(stream);
    world_settle();
    assert_int_equal(world.heard_count, 1);
    /* What brings its own needs none, and stays although what should follow finds none. */
    struct segment data = {world_text, FIRST};
    assert_true(stream->ops->send_whole(stream, (struct segment){0}, data, &parcel));
    assert_int_equal(stream->ops->send(stream, world_text + FIRST + 1, FIRST), 0);
    stream->ops->flush(stream);
    world_settle();
    client_expect_heard(&client, FIRST);
    give_back(MEMP_PBUF, count);
    client_acknowledge(&client, FIRST);
    assert_int_equal(released, 1);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_expect_heard(&client, FIRST);
}

TEST(a_segment_begun_for_what_finds_no_buffer_is_given_up) {
    world_run(&plain, without_buffers);
}

/* --- Headers that are kept --- */

/* So many replies, each in a frame of its own and none acknowledged, find headers that are there
 * already; and the next does not. */
static void expect_kept(struct client *who, unsigned kept) {
    struct stream *stream = who->stream;
    unit_allocations_until_failure(0);
    for (unsigned i = 0; i < kept; i++) {
        assert_int_equal(way_of_reply(who, FIRST), SHORT_WAY);
    }
    assert_int_equal(stream->ops->send(stream, world_text, FIRST), 0);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    client_acknowledge(who, (size_t)kept * FIRST);
    assert_null(pcb_of(who)->unacked);
}

static void use_many(struct client *who) {
    for (unsigned i = 0; i < MANY; i++) {
        client_reply(who, 0, FIRST);
    }
}

static void kept(void) {
    struct client other;
    struct client third;
    begin();
    use_many(&client);
    client_acknowledge(&client, (size_t)MANY * FIRST);
    expect_kept(&client, NET_HEADS_KEPT);
    connect(&other, 40001);
    use_many(&other);
    client_acknowledge(&other, (size_t)MANY * FIRST);
    expect_kept(&client, 2 * NET_HEADS_KEPT);
    client_close(&client, true);
    world_settle();
    expect_kept(&other, NET_HEADS_KEPT);
    client_close(&other, false);
    world_settle();
    connect(&third, 40002);
    expect_kept(&third, 1);
    /* Some are under way when the stream goes. */
    use_many(&third);
    world.is_deaf = true;
    use_many(&third);
    client_close(&third, true);
    world_settle();
    world.is_deaf = false;
    world_settle();
    world_pass_ms(100);
    assert_int_equal(tcp_streams_count(), 0);
    begin();
    expect_kept(&client, 1);
}

TEST(headers_are_kept_for_the_next_ones_as_long_as_there_are_streams) {
    world_run(&plain, kept);
}
