/* How long segments are: what the wire carries, what the peer takes, what the device cuts. */
#include <lwip/etharp.h>
#include <lwip/netif.h>
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "config/limits.h"
#include "net/tcp_connection.h"
#include "tests/network_words.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

#define CUTS (CARD_CSUM | CARD_HOST_TSO4)

enum {
    OPTION_MSS = 2,
    MSS_DEFAULT = 536, /* RFC 9293, 3.7.1 */
    ETHERNET_MSS = 1460,
    LONGEST_MSS = 65535 - 14 - 40,
    WINDOW = 65535, /* of a client; lwIP takes no more than half of it into a segment */
    TEXT = 100000,
    SMALL_HEAP = 1024 * 1024,
    MANY = 30,
};

static struct client client;

static void begin_with(uint16_t mss) {
    uint8_t option[4] = {OPTION_MSS, sizeof option};
    put16(option + 2, mss);
    client_connect(&client, 40000, option, mss != 0 ? sizeof option : 0);
    assert_non_null(client.stream);
}

static void end(void) {
    client_close(&client, true);
    world_settle();
}

/* All of `bytes` come, in frames of which the longest is `longest`; what is longer than `taken` is
 * cut into as much, and nothing else is. */
static void expect_reply(size_t bytes, size_t taken, size_t longest) {
    size_t at = 0;
    size_t most = 0;
    uint32_t begins = client.due;
    world_forget_heard();
    client_reply(&client, 0, bytes);
    for (unsigned i = 0; i < world.heard_count; i++) {
        const struct heard *heard = &world.heard[i];
        size_t begin = heard->bytes < sizeof heard->data ? heard->bytes : sizeof heard->data;
        assert_int_equal(heard->seq, begins + at);
        assert_int_equal(heard->cut, heard->bytes > taken ? taken : 0);
        assert_memory_equal(heard->data, world_text + at, begin);
        at += heard->bytes;
        most = heard->bytes > most ? heard->bytes : most;
        client.due = begins + (uint32_t)at;
        client_say(&client, &(struct spoken){0});
    }
    assert_int_equal(at, bytes);
    assert_int_equal(most, longest);
}

static void cut_for_each_peer(void) {
    static const uint16_t taken[] = {1460, 1448, 1400, 1379, 1220, 536, 0};
    for (unsigned i = 0; i < ARRAY_COUNT(taken); i++) {
        uint16_t mss = taken[i] != 0 ? taken[i] : MSS_DEFAULT;
        begin_with(taken[i]);
        assert_int_equal(pcb_of(&client)->mss, NET_SEGMENT_BYTES_MAX / mss * mss);
        expect_reply(TEXT, mss, WINDOW / 2);
        end();
    }
}

TEST(the_device_cuts_for_each_peer_into_what_it_takes) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CUTS},
              cut_for_each_peer);
}

static void silly(void) {
    static const uint16_t taken[] = {535, 100};
    for (unsigned i = 0; i < ARRAY_COUNT(taken); i++) {
        begin_with(taken[i]);
        expect_reply(10000, taken[i], taken[i]);
        end();
    }
}

TEST(the_device_does_not_cut_for_a_peer_that_takes_less_than_every_host_must) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CUTS}, silly);
}

static void long_as_it_is(void) {
    begin_with(1460);
    expect_reply(TEXT, UINT16_MAX, WINDOW / 2);
    end();
    begin_with(1400);
    expect_reply(TEXT, 1400, 1400);
    end();
}

TEST(without_a_device_that_cuts_only_a_peer_that_takes_the_wires_gets_the_long_ones_asked_for) {
    world_run(&(struct world_options){.hears_beginnings = true, .config = "segment=64240"},
              long_as_it_is);
}

static void sent_again(void) {
    begin_with(1400);
    client_reply(&client, 0, 10000);
    world_forget_heard();
    world_pass_ms(2000);
    assert_true(world.heard_count > 0);
    for (unsigned i = 0; i < world.heard_count; i++) {
        assert_int_equal(world.heard[i].bytes, 10000);
        assert_int_equal(world.heard[i].cut, 1400);
    }
    end();
}

TEST(what_is_sent_again_is_cut_as_it_was) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CUTS}, sent_again);
}

/* Whose it is lwIP does not know any more when the answer comes: what every host takes will do. */
static void behind_arp(void) {
    begin_with(1460);
    etharp_cleanup_netif(netif_default);
    world_forget_heard();
    client_reply(&client, 0, 10000);
    assert_int_equal(world_last_heard()->bytes, 10000);
    assert_int_equal(world_last_heard()->cut, MSS_DEFAULT);
    end();
}

TEST(what_has_waited_for_an_answer_to_arp_is_cut_as_every_host_takes_it) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CUTS}, behind_arp);
}

/* --- Wires with long frames --- */

static void long_wire(void) {
    begin_with(8960);
    assert_int_equal(world.mss_told, 8960);
    expect_reply(4112, 8960, 4112);
    expect_reply(TEXT, 8960, WINDOW / 2);
    assert_int_equal(pcb_of(&client)->mss, NET_SEGMENT_BYTES_MAX / 8960 * 8960);
    end();
    begin_with(1460); /* as from behind a router */
    expect_reply(4112, 1460, 4112);
    end();
}

TEST(on_a_wire_with_long_frames_a_reply_is_one_segment) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CUTS | CARD_MTU | CARD_MRG_RXBUF,
                                      .mtu = 9000},
              long_wire);
}

static void long_wire_uncut(void) {
    begin_with(8960);
    expect_reply(TEXT, 8960, 8960);
    end();
    begin_with(UINT16_MAX); /* more than the wire's */
    expect_reply(TEXT, 8960, 8960);
    end();
}

TEST(on_a_wire_with_long_frames_segments_are_as_long_without_a_device_that_cuts) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CARD_MTU | CARD_MRG_RXBUF,
                                      .mtu = 9000},
              long_wire_uncut);
}

static void longest_wire(void) {
    begin_with(UINT16_MAX);
    assert_int_equal(world.mss_told, LONGEST_MSS);
    assert_int_equal(pcb_of(&client)->mss, LONGEST_MSS);
    expect_reply(TEXT, LONGEST_MSS, WINDOW / 2);
    end();
}

TEST(the_longest_frame_is_one_whose_length_fits_16_bits) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CUTS | CARD_MTU | CARD_MRG_RXBUF,
                                      .mtu = UINT16_MAX},
              longest_wire);
    assert_logged("of an mtu of 65535 65521 are used");
}

static void few_buffers(void) {
    begin_with(UINT16_MAX);
    assert_int_equal(world.mss_told, 4 * (2048 - 2) - 12 - 14 - 40);
    end();
}

TEST(peers_hear_of_no_more_than_the_receive_ring_holds) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CARD_MTU | CARD_MRG_RXBUF,
                                      .mtu = 9000,
                                      .ring = 4},
              few_buffers);
}

static void one_buffer(void) {
    begin_with(8960);
    assert_int_equal(world.mss_told, ETHERNET_MSS);
    assert_false((card.transport.features & CARD_MTU) != 0);
    expect_reply(TEXT, ETHERNET_MSS, ETHERNET_MSS);
    end();
}

TEST(without_mergeable_buffers_long_frames_are_not_agreed_upon) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CARD_MTU, .mtu = 9000},
              one_buffer);
}

static void syn_again(void) {
    static const uint8_t mss_8960[4] = {OPTION_MSS, 4, 8960 >> 8, 8960 & 0xff};
    struct spoken syn = {.flags = SYN, .options = mss_8960, .option_bytes = sizeof mss_8960};
    client = (struct client){.port = 40000, .window = UINT16_MAX, .at = 1000};
    client_say(&client, &syn);
    client_say(&client, &syn);
    client.at++;
    client.due = world_last_heard()->seq + 1;
    client_say(&client, &(struct spoken){0});
    assert_int_equal(world.stream_count, 1);
    client.stream = world.streams[0];
    expect_reply(TEXT, ETHERNET_MSS, ETHERNET_MSS);
    end();
}

TEST(a_syn_that_comes_twice_is_bound_by_the_wire_as_well) {
    world_run(&(struct world_options){.hears_beginnings = true}, syn_again);
}

static void short_wire(void) {
    begin_with(8960);
    assert_int_equal(world.mss_told, 960);
    assert_true((card.transport.features & CARD_MTU) != 0);
    expect_reply(TEXT, 960, 960);
    end();
}

TEST(without_mergeable_buffers_short_frames_are) {
    world_run(&(struct world_options){.hears_beginnings = true, .features = CARD_MTU, .mtu = 1000},
              short_wire);
}

/* Where buffers are few, the least that each of many gets is what two short segments take, and what
 * a window is rounded off by when it is told. */
static void many(void) {
    enum { WINDOW_STEP = 64 };
    static struct client clients[MANY];
    for (unsigned i = 0; i < MANY; i++) {
        client_connect(&clients[i], (uint16_t)(40000 + i), NULL, 0);
        assert_non_null(clients[i].stream);
    }
    assert_int_equal(clients[0].stream->ops->gather_max(clients[0].stream),
                     2 * ETHERNET_MSS + WINDOW_STEP);
}

TEST(on_a_wire_with_long_frames_many_clients_share_the_buffers_as_elsewhere) {
    world_run(&(struct world_options){.hears_beginnings = true,
                                      .features = CARD_MTU | CARD_MRG_RXBUF,
                                      .mtu = 9000,
                                      .heap_bytes = SMALL_HEAP},
              many);
}
