/* What happens when the card's send ring is full: net/stack.c, net/tcp_stream.c. The card has rings
 * of a few entries, each frame with payload takes two of them, and it reads frames when a test says
 * so. */
#include <limits.h>
#include <lwip/priv/tcp_priv.h>

#include "config/limits.h"
#include "net/counters.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    CLIENTS = 3,
    SEGMENT = 1000,
    FAST_TIMER_MS = 2 * TCP_FAST_INTERVAL + 20, /* once at least; far from sending anything again */
    NOBODY = 50000,                             /* a port of a client that has no connection */
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
