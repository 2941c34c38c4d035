/* What happens when the card's send ring is full: net/stack.c, net/tcp_stream.c. The card has rings
 * of a few entries, each frame with payload takes two of them, and it reads frames when a test says
 * so. */
#include <limits.h>
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "config/limits.h"
#include "core/task/task.h"
#include "net/counters.h"
#include "net/stack.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    CLIENTS = 7,
    SEGMENT = 1000,
    FAST_TIMER_MS = 2 * TCP_FAST_INTERVAL + 20, /* once at least; far from sending anything again */
    NOBODY = 50000, /* from here on: ports of clients that have no connection */
    GREEDY = 1,     /* of the clients: neither the first nor the last */
    WARM_UP = 12,   /* turns, then the congestion window is more than the ring has room for */
    TURNS_MAX = 3 + CLIENTS, /* until everybody has had one */
};

static const struct world_options four = {.ring = 4};
static const struct world_options two = {.ring = 2};
static const uint8_t mss_1460[4] = {2, 4, 1460 >> 8, 1460 & 0xff};
static struct client clients[CLIENTS];

static void begin(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        client_connect(&clients[i], (uint16_t)(40000 + i), mss_1460, sizeof mss_1460);
        assert_non_null(clients[i].stream);
    }
    world_forget_heard();
}

/* How many segments were heard of a connection, and the last of them. */
static unsigned heard_of(const struct client *client, const struct heard **last) {
    static const struct heard nothing;
    unsigned count = 0;
    *last = &nothing;
    for (unsigned i = 0; i < world.heard_count; i++) {
        if (world.heard[i].port == client->port) {
            *last = &world.heard[i];
            count++;
        }
    }
    return count;
}

/* From here on the card reads nothing, and replies to the first client fill the ring. */
static void fill_ring(void) {
    world.is_deaf = true;
    for (unsigned entries = 0; entries < card.ring_max; entries += 2) {
        client_reply(&clients[0], 0, SEGMENT);
    }
    assert_int_equal(net_counters.send_ring_full, 0);
}

/* The card reads all there is, and what comes then; the replies are the first. */
static void empty_ring(void) {
    world.is_deaf = false;
    assert_int_equal(world_listen(UINT_MAX), card.ring_max / 2);
    world_settle();
}

/* --- Frames that are sent once --- */

static void acknowledgements_wait(void) {
    const struct heard *ack = NULL;
    begin(3);
    fill_ring();
    for (unsigned i = 0; i < 3; i++) {
        client_send(&clients[1], world_text, 100);
        world_pass_ms(FAST_TIMER_MS);
    }
    client_send(&clients[2], world_text, 100);
    world_pass_ms(FAST_TIMER_MS);
    for (unsigned i = 1; i < 3; i++) {
        assert_int_equal(pcb_of(&clients[i])->flags & (TF_ACK_DELAY | TF_ACK_NOW), 0);
    }
    assert_true(net_counters.send_ring_full >= 4);
    empty_ring();
    for (unsigned i = 1; i < 3; i++) {
        assert_int_equal(heard_of(&clients[i], &ack), 1);
        assert_int_equal(ack->flags, ACK);
        assert_int_equal(ack->bytes, 0);
        assert_int_equal(ack->ack, clients[i].at);
    }
    world_pass_ms(FAST_TIMER_MS);
    assert_int_equal(world.heard_count, card.ring_max / 2 + 2);
}

TEST(of_refused_acknowledgements_each_connection_s_newest_goes_once) {
    world_run(&four, acknowledgements_wait);
}

TEST(the_same_at_the_smallest_ring) {
    world_run(&two, acknowledgements_wait);
}

/* Somebody asks for the guest's address. */
static void ask_for_address(void) {
    static const uint8_t question[42] = {
        0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x54, 0, 0x12, 0x34, 0x57, 8, 6, /* Ethernet */
        0,    1,    8, 0,    6,    4,    0,    1,                               /* a question */
        0x52, 0x54, 0, 0x12, 0x34, 0x57, 10,   0,    2, 100,                    /* from */
        0,    0,    0, 0,    0,    0,    10,   0,    2, 15};                    /* for */
    world_deliver(question, sizeof question);
}

/* A segment of a connection that there is not, which is answered by a reset. */
static void speak_as_nobody(unsigned which) {
    struct client nobody = {.port = (uint16_t)(NOBODY + which), .window = 1000, .at = which};
    client_say(&nobody, &(struct spoken){.data = world_text, .bytes = 1});
}

static void expect_reset(const struct heard *heard, unsigned which) {
    assert_int_equal(heard->port, NOBODY + which);
    assert_int_equal(heard->flags, RST | ACK);
    assert_int_equal(heard->ack, which + 1);
}

static void answers_wait(void) {
    begin(1);
    fill_ring();
    ask_for_address();
    speak_as_nobody(0);
    world_pass_ms(FAST_TIMER_MS);
    assert_true(net_counters.send_ring_full >= 2);
    empty_ring();
    assert_int_equal(world.arp_answers, 1);
    assert_int_equal(world.heard_count, card.ring_max / 2 + 1);
    expect_reset(world_last_heard(), 0);
    world_pass_ms(FAST_TIMER_MS);
    assert_int_equal(world.arp_answers, 1);
    assert_int_equal(world.heard_count, card.ring_max / 2 + 1);
}

TEST(answers_to_arp_and_resets_wait_for_room_and_go_once) {
    world_run(&four, answers_wait);
}

TEST(answers_wait_at_the_smallest_ring_as_well) {
    world_run(&two, answers_wait);
}

/* lwIP gives a client up that has not answered TCP_MAXRTX probes, sent or not. */
static void probe_waits(void) {
    const struct heard *segment = NULL;
    begin(2);
    client_send(&clients[1], world_text, 1);
    clients[1].window = 0;
    client_send(&clients[1], world_text + 1, 1);
    assert_int_equal(pcb_of(&clients[1])->snd_wnd, 0);
    fill_ring();
    client_reply(&clients[1], 0, SEGMENT);
    world_pass_ms(2 * TCP_MAXRTX * TCP_SLOW_INTERVAL);
    assert_int_equal(clients[1].stream->state, STREAM_OPEN);
    world_forget_heard();
    empty_ring();
    assert_true(heard_of(&clients[1], &segment) > 0);
    assert_int_equal(segment->bytes, 1);
    assert_int_equal(segment->cut, 0);
    clients[1].window = UINT16_MAX;
    client_say(&clients[1], &(struct spoken){0});
    assert_int_equal(world_last_heard()->bytes, SEGMENT);
    assert_memory_equal(world_last_heard()->data, world_text, SEGMENT);
    client_drop(&clients[1]);
}

TEST(a_probe_of_a_closed_window_waits_for_room) {
    world_run(&four, probe_waits);
}

TEST(a_probe_that_waited_is_not_cut) {
    world_run(&(struct world_options){.ring = 4, .features = CARD_CSUM | CARD_HOST_TSO4},
              probe_waits);
}

/* At the bound what comes on top is lost, but for an acknowledgement that takes the place of an
 * older one. */
static void bound_of_kept_frames(void) {
    const struct heard *ack = NULL;
    begin(3);
    fill_ring();
    client_send(&clients[1], world_text, 100);
    for (unsigned i = 0; i < NET_KEPT_FRAMES - 1; i++) {
        speak_as_nobody(i);
    }
    speak_as_nobody(NET_KEPT_FRAMES - 1);
    ask_for_address();
    client_send(&clients[1], world_text, 100);
    client_send(&clients[2], world_text, 100);
    world_pass_ms(FAST_TIMER_MS);
    empty_ring();
    unsigned before = card.ring_max / 2;
    assert_int_equal(world.heard_count, before + NET_KEPT_FRAMES);
    assert_int_equal(world.arp_answers, 0);
    assert_int_equal(heard_of(&clients[1], &ack), 1);
    assert_int_equal(ack->ack, clients[1].at);
    for (unsigned i = 0; i < NET_KEPT_FRAMES - 1; i++) {
        expect_reset(&world.heard[before + 1 + i], i); /* the oldest first, and none is missing */
    }
    /* A wire may do so: who got no acknowledgement says it again. */
    assert_int_equal(heard_of(&clients[2], &ack), 0);
    clients[2].at -= 100;
    client_send(&clients[2], world_text, 100);
    assert_int_equal(world_last_heard()->port, clients[2].port);
    assert_int_equal(world_last_heard()->ack, clients[2].at);
    client_expect(&clients[2], 0, 100);
}

TEST(of_too_many_frames_that_wait_the_last_are_lost) {
    world_run(&four, bound_of_kept_frames);
}

/* --- Turns --- */

static void tell(const struct client *client, const struct spoken *spoken) {
    uint8_t frame[FRAME_MAX];
    fake_card_deliver(frame, client_frame(client, spoken, frame), 0);
}

/* Nobody wakes the network but the card. */
static void let_run(void) {
    task_sleep_until(arch_clock_ns() + 50 * NS_PER_US);
}

/* The card reads so many frames. The greedy client acknowledges at once what it has of them, before
 * anybody else can have the room. */
static void take_turn(unsigned frames) {
    struct client *greedy = &clients[GREEDY];
    unsigned at = world.heard_count;
    (void)world_listen(frames); /* there may be fewer */
    for (; at < world.heard_count; at++) {
        if (world.heard[at].port == greedy->port && world.heard[at].bytes > 0) {
            assert_int_equal(world.heard[at].seq, greedy->due);
            greedy->due += (uint32_t)world.heard[at].bytes;
        }
    }
    tell(greedy, &(struct spoken){0});
    let_run();
}

/* The greedy client has asked for as much as can wait to be sent, and gets more of it with each
 * acknowledgement than there is room for. */
static void be_greedy(void) {
    struct stream *stream = clients[GREEDY].stream;
    while (stream->ops->send(stream, world_text, UINT16_MAX) == UINT16_MAX) {
    }
    stream->ops->flush(stream);
    world.is_deaf = true;
    for (unsigned i = 0; i < WARM_UP; i++) {
        take_turn(UINT_MAX);
    }
    world_forget_heard();
    net_counters.send_ring_full = 0;
}

/* Of somebody who has nothing else to say; the ring has no room for it now. */
static void send_one_segment(const struct client *client) {
    const struct heard *segment = NULL;
    client_reply(client, 0, SEGMENT);
    assert_non_null(pcb_of(client)->unsent);
    assert_int_equal(heard_of(client, &segment), 0);
}

static void expect_segment(const struct client *client) {
    const struct heard *segment = NULL;
    assert_int_equal(heard_of(client, &segment), 1);
    assert_int_equal(segment->bytes, SEGMENT);
    assert_memory_equal(segment->data, world_text, SEGMENT);
}

static void expect_fin(const struct client *client) {
    const struct heard *segment = NULL;
    assert_int_equal(heard_of(client, &segment), 1);
    assert_int_equal(segment->flags, FIN | ACK);
}

static void greedy_stream(void) {
    begin(4);
    be_greedy();
    struct client leaving = clients[3];
    client_close(&clients[3], false);
    let_run();
    send_one_segment(&clients[0]);
    send_one_segment(&clients[2]);
    for (unsigned i = 0; i < TURNS_MAX; i++) {
        take_turn(UINT_MAX);
    }
    expect_segment(&clients[0]);
    expect_segment(&clients[2]);
    expect_fin(&leaving);
    /* It has had its share as well. */
    const struct heard *segment = NULL;
    assert_true(heard_of(&clients[GREEDY], &segment) > TURNS_MAX / 2);
}

TEST(a_stream_that_always_has_more_leaves_the_others_their_turns) {
    world_run(&four, greedy_stream);
}

TEST(turns_at_the_smallest_ring) {
    world_run(&two, greedy_stream);
}

static void let_go(struct stream_mark *mark) {
    (void)mark; /* the test's memory stays */
}

/* A frame that takes all of the ring, which is never empty while others may use what is left. */
static void send_widely(const struct client *client) {
    static struct stream_parcel parcel = {.mark.released = let_go};
    struct stream *stream = client->stream;
    struct segment header = {world_text + 100, 100};
    struct segment data = {world_text + 200, SEGMENT - 200};
    assert_int_equal(stream->ops->send(stream, world_text, 100), 100);
    assert_true(stream->ops->send_whole(stream, header, data, &parcel));
    stream->ops->flush(stream);
    assert_int_equal(pbuf_clen(pcb_of(client)->unsent->p), card.ring_max);
}

static void greedy_for_room(void) {
    const struct heard *segment = NULL;
    begin(2);
    be_greedy();
    send_widely(&clients[0]);
    for (unsigned i = 0; i < 2 * TURNS_MAX; i++) {
        take_turn(1);
    }
    expect_segment(&clients[0]);
    assert_true(heard_of(&clients[GREEDY], &segment) > TURNS_MAX / 2);
}

TEST(a_frame_that_needs_all_of_the_ring_gets_it) {
    world_run(&four, greedy_for_room);
}

/* Clients that say so much that acknowledgements alone could fill the ring each time. */
static void many_acknowledgements(void) {
    const struct heard *ack = NULL;
    begin(6);
    world.is_deaf = true;
    fill_ring();
    struct client leaving = clients[5];
    client_close(&clients[5], false);
    send_one_segment(&clients[4]);
    for (unsigned i = 0; i < TURNS_MAX; i++) {
        (void)world_listen(UINT_MAX); /* there may be none */
        for (unsigned who = 0; who < card.ring_max; who++) {
            tell(&clients[who], &(struct spoken){.data = world_text, .bytes = 10});
            clients[who].at += 10;
        }
        let_run();
    }
    expect_segment(&clients[4]);
    expect_fin(&leaving);
    for (unsigned who = 1; who < card.ring_max; who++) {
        assert_true(heard_of(&clients[who], &ack) > 1);
    }
}

TEST(acknowledgements_leave_others_their_turns) {
    world_run(&four, many_acknowledgements);
}

/* The card reads so many frames, and as many strangers begin connections as the ring has entries.
 */
static void meet_strangers(struct client *stranger, unsigned frames) {
    (void)world_listen(frames); /* there may be fewer */
    for (unsigned i = 0; i < card.ring_max; i++) {
        tell(stranger, &(struct spoken){.flags = SYN});
        stranger->port++;
    }
    let_run();
}

static void many_strangers(void) {
    const struct heard *answer = NULL;
    struct client stranger = {.port = NOBODY, .window = 1000, .at = 1000};
    begin(3);
    fill_ring();
    struct client leaving = clients[1];
    client_close(&clients[1], false);
    send_one_segment(&clients[2]);
    for (unsigned i = 0; i < TURNS_MAX; i++) {
        meet_strangers(&stranger, UINT_MAX);
    }
    expect_segment(&clients[2]);
    expect_fin(&leaving);
    stranger.port = NOBODY;
    assert_int_equal(heard_of(&stranger, &answer), 1);
    assert_int_equal(answer->flags, SYN | ACK);
}

TEST(strangers_leave_others_their_turns) {
    world_run(&four, many_strangers);
}

static void strangers_and_a_wide_frame(void) {
    struct client stranger = {.port = NOBODY, .window = 1000, .at = 1000};
    begin(2);
    fill_ring();
    send_widely(&clients[1]);
    for (unsigned i = 0; i < TURNS_MAX; i++) {
        meet_strangers(&stranger, 1);
    }
    expect_segment(&clients[1]);
}

TEST(a_frame_that_needs_all_of_the_ring_gets_it_among_strangers) {
    world_run(&four, strangers_and_a_wide_frame);
}

static void newcomer(void) {
    struct client late = {.port = NOBODY, .window = UINT16_MAX, .at = 1000};
    struct spoken syn = {.flags = SYN, .options = mss_1460, .option_bytes = sizeof mss_1460};
    begin(2);
    client_say(&late, &syn);
    late.at++;
    late.due = world_last_heard()->seq + 1;
    world_forget_heard();
    fill_ring();
    send_one_segment(&clients[1]);
    world.greeting = SEGMENT;
    client_say(&late, &(struct spoken){0});
    assert_int_equal(world.stream_count, 3);
    empty_ring();
    unsigned before = card.ring_max / 2;
    assert_int_equal(world.heard_count, before + 2);
    assert_int_equal(world.heard[before].port, clients[1].port);
    assert_int_equal(world.heard[before + 1].port, late.port);
}

TEST(who_comes_later_is_behind_who_waits) {
    world_run(&two, newcomer);
}

/* --- Room --- */

static void expect_one_refusal_a_round(void) {
    world_settle();
    for (unsigned i = 0; i < 3; i++) {
        uint64_t before = net_counters.send_ring_full;
        world_settle();
        assert_int_equal(net_counters.send_ring_full, before + 1);
    }
}

static void streams_are_refused(void) {
    begin(CLIENTS);
    fill_ring();
    for (unsigned i = 1; i < CLIENTS; i++) {
        send_one_segment(&clients[i]);
    }
    expect_one_refusal_a_round();
}

static void fins_are_refused(void) {
    begin(CLIENTS);
    fill_ring();
    for (unsigned i = 1; i < CLIENTS; i++) {
        client_close(&clients[i], false);
    }
    expect_one_refusal_a_round();
}

TEST(a_full_ring_refuses_streams_once_a_round) {
    world_run(&four, streams_are_refused);
}

TEST(a_full_ring_refuses_what_is_closed_once_a_round) {
    world_run(&four, fins_are_refused);
}

/* Nothing is left in the ring that could tell, and nobody else wakes the network. */
static void told_of_room(void) {
    begin(2);
    fill_ring();
    let_run();
    struct stream *stream = clients[1].stream;
    assert_int_equal(stream->ops->send(stream, world_text, SEGMENT), SEGMENT);
    stream->ops->flush(stream);
    assert_true(net_counters.send_ring_full > 0);
    assert_int_equal(world_listen(UINT_MAX), card.ring_max / 2);
    virtio_net_reclaim(virtio_net_first());
    let_run();
    assert_int_equal(world_listen(UINT_MAX), 1);
    expect_segment(&clients[1]);
}

TEST(who_was_refused_hears_of_room_that_somebody_else_finds) {
    world_run(&four, told_of_room);
}

/* --- Rounds --- */

static unsigned rounds;

static bool wake_once(void *unused) {
    (void)unused;
    rounds++;
    if (rounds == 1) {
        net_wake();
    }
    return false;
}

static void woken_in_a_round(void) {
    rounds = 0;
    net_set_worker(wake_once, NULL);
    net_wake();
    let_run();
    assert_int_equal(rounds, 2);
}

TEST(whoever_wakes_the_network_while_it_works_gets_another_round) {
    world_run(&(struct world_options){.is_mute = true}, woken_in_a_round);
}
