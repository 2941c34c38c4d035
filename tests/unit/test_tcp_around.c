/* What is done before, around and instead of lwIP's looking at a segment: net/tcp_input.c. */
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "net/tcp_connection.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

static const struct world_options plain = {0};
static struct client client;
static uint8_t frame[FRAME_MAX];

static void begin(void) {
    client_connect(&client, 40000, NULL, 0);
    assert_non_null(client.stream);
    world_forget_heard();
}

/* --- The end of the window --- */

/* Sends what nobody reads, until so many bytes of the window are left. */
static void fill_window(uint32_t left) {
    const struct tcp_pcb *pcb = pcb_of(&client);
    while (pcb->rcv_wnd > left) {
        uint32_t bytes = pcb->rcv_wnd - left;
        client_send(&client, world_text, bytes < 1400 ? bytes : 1400);
        world_forget_heard();
    }
    assert_int_equal(pcb->rcv_wnd, left);
}

static void closed_window(void) {
    begin();
    fill_window(100);
    size_t before = client_received(&client);
    struct spoken spoken = {.data = world_text, .bytes = 101};
    assert_int_equal(way_of_spoken(&client, &spoken), LONG_WAY);
    assert_int_equal(client_received(&client), before + 100); /* cut at the window's end */
    client.at += 100;
    spoken.bytes = 1;
    world_forget_heard();
    assert_int_equal(way_of_spoken(&client, &spoken), LONG_WAY);
    assert_int_equal(client_received(&client), before + 100);
    assert_int_equal(world_last_heard()->ack, client.at); /* a probe is answered */
    assert_int_equal(world_last_heard()->window, 0);
    world_forget_heard();
    for (unsigned i = 0; i < 5; i++) {
        client_say(&client, &(struct spoken){0});
        assert_int_equal(pcb_of(&client)->rcv_wnd, 0);
    }
    assert_int_equal(world.heard_count, 0); /* an acknowledgement is none */
}

TEST(an_acknowledgement_at_a_closed_window_is_not_answered) {
    world_run(&plain, closed_window);
}

static void beyond_window(void) {
    begin();
    fill_window(100);
    struct spoken spoken = {.seq_skew = 50, .data = world_text, .bytes = 51};
    client_say(&client, &spoken);
    assert_null(pcb_of(&client)->ooseq);
    spoken.bytes = 50;
    client_say(&client, &spoken);
    assert_non_null(pcb_of(&client)->ooseq);
    /* A FIN counts as a byte. */
    tcp_free_ooseq(pcb_of(&client));
    spoken.flags = FIN | ACK;
    client_say(&client, &spoken);
    assert_null(pcb_of(&client)->ooseq);
    /* The gap is filled: all of the window, and nothing has stopped. */
    spoken.flags = ACK;
    client_say(&client, &spoken);
    client_send(&client, world_text, 50);
    assert_int_equal(pcb_of(&client)->rcv_wnd, 0);
    client.at += 50;
    assert_int_equal(world_last_heard()->ack, client.at);
}

TEST(what_lies_beyond_a_gap_and_the_window_is_as_good_as_lost) {
    world_run(&plain, beyond_window);
}

/* --- Answers --- */

static void stale(void) {
    begin();
    client_send(&client, world_text, 10);
    struct spoken spoken = {.seq_skew = UINT32_MAX}; /* a keep-alive probe */
    for (unsigned round = 0; round < 3; round++) {
        world_forget_heard();
        client_say(&client, &spoken);
        assert_int_equal(world.heard_count, 1);
        assert_int_equal(world_last_heard()->ack, client.at);
        client_say(&client, &spoken);
        client_say(&client, &spoken);
        assert_int_equal(world.heard_count, 1);
        world_pass_ms(600);
    }
}

TEST(a_stale_acknowledgement_is_answered_twice_a_second_at_most) {
    world_run(&plain, stale);
}

/* --- Options --- */

static const struct {
    uint8_t bytes[8];
    bool is_taken;
} options[] = {
    {{1, 1, 1, 1, 1, 1, 1, 1}, true},
    {{2, 4, 2, 24, 1, 1, 1, 1}, false},
    {{1, 1, 1, 1, 2, 4, 2, 24}, false},
    {{253, 3, 0, 2, 4, 2, 24, 1}, false}, /* behind one that nobody knows */
    {{253, 8, 2, 4, 2, 24, 1, 1}, true},  /* within one */
    {{0, 2, 2, 4, 2, 24, 0, 0}, true},    /* behind the end of the list */
    {{253, 0, 2, 4, 2, 24, 1, 1}, true},  /* behind one of no length: nobody reads on */
    {{253, 1, 2, 4, 2, 24, 1, 1}, true},
    {{1, 1, 1, 1, 1, 1, 1, 253}, true},   /* a length that is not there */
    {{1, 1, 1, 1, 1, 1, 253, 200}, true}, /* one that ends behind all of them */
};

static void expect_options(void) {
    unsigned mss = pcb_of(&client)->mss;
    for (unsigned i = 0; i < ARRAY_COUNT(options); i++) {
        struct spoken spoken = {.options = options[i].bytes,
                                .option_bytes = sizeof options[i].bytes,
                                .data = world_text,
                                .bytes = 10};
        client_say(&client, &spoken);
        if (client_received(&client) != (options[i].is_taken ? 10 : 0) ||
            pcb_of(&client)->mss != mss) {
            fail_msg("options %u: %zu bytes, mss %u", i, client_received(&client),
                     pcb_of(&client)->mss);
        }
        client.at += (uint32_t)client_received(&client);
        client_drop(&client);
    }
}

static void options_of_segments(void) {
    begin();
    expect_options();
}

TEST(a_segment_size_that_comes_after_the_handshake_is_refused) {
    world_run(&plain, options_of_segments);
}

/* --- A device that cuts anywhere --- */

static void cut_frames(void) {
    begin();
    for (size_t cut = 14; cut < 14 + 40 + 8 + 3; cut++) {
        static const uint8_t nops[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        struct spoken spoken = {.data = world_text, .bytes = 10};
        for (unsigned i = 0; i < 2; i++) {
            card.first_bytes = cut;
            client_say(&client, &spoken);
            /* Where IP's header or TCP's is in pieces, it is dropped, and said again. */
            assert_true(client_received(&client) == 0 || client_received(&client) == 10);
            assert_true(cut < TCP_AT + 20 || client_received(&client) == 10);
            card.first_bytes = 0;
            if (client_received(&client) == 0) {
                client_say(&client, &spoken);
            }
            client.at += 10;
            client_expect(&client, 0, 10);
            client_drop(&client);
            spoken.options = nops;
            spoken.option_bytes = sizeof nops;
        }
        card.first_bytes = cut;
        if (cut >= TCP_AT + 20) {
            expect_options();
        }
        card.first_bytes = 0;
    }
}

TEST(a_frame_may_come_in_pieces_that_end_anywhere) {
    world_run(&(struct world_options){.features = CARD_MRG_RXBUF}, cut_frames);
}

/* --- After the end --- */

static void time_wait(void) {
    begin();
    struct client before = client;
    client_close(&client, false);
    world_settle();
    assert_int_equal(world_last_heard()->flags, FIN | ACK);
    before.due++;
    client_say(&before, &(struct spoken){.flags = FIN | ACK});
    before.at++;
    assert_non_null(tcp_tw_pcbs);
    /* An old SYN, a segment that is none, and one that has no room for a header of TCP. */
    world_forget_heard();
    struct spoken syn = {.flags = SYN, .seq_skew = UINT32_MAX - 500};
    client_say(&before, &syn);
    assert_non_null(tcp_tw_pcbs);
    assert_int_equal(world_last_heard()->flags & SYN, 0);
    client_say(&before, &(struct spoken){.flags = SYN | ACK, .seq_skew = 10000});
    assert_non_null(tcp_tw_pcbs);
    (void)client_frame(&before, &(struct spoken){.flags = SYN, .seq_skew = 10000}, frame);
    frame[IP_AT + 3] = 30;
    world_deliver(frame, IP_AT + 30);
    assert_non_null(tcp_tw_pcbs);
    struct spoken other = {.flags = SYN, .seq_skew = 10000};
    size_t bytes = client_frame(&before, &other, frame);
    frame[TCP_AT + 1] ^= 1; /* another port is another connection */
    world_mend(frame);
    world_deliver(frame, bytes);
    assert_non_null(tcp_tw_pcbs);
    /* A new one of the same. */
    before.at += 10000;
    world_forget_heard();
    client_say(&before, &(struct spoken){.flags = SYN});
    assert_null(tcp_tw_pcbs);
    assert_int_equal(world_last_heard()->flags, SYN | ACK);
    assert_int_equal(world_last_heard()->ack, before.at + 1);
}

TEST(a_connection_in_time_wait_is_opened_again_by_a_newer_syn) {
    world_run(&plain, time_wait);
}
