/* The short way out, on which what a stream has gathered leaves past lwIP: net/tcp_output.c. Where
 * there is no room for it: test_tcp_output_room.c. */
#include <lwip/netif.h>
#include <lwip/priv/tcp_priv.h>
#include <lwip/stats.h>
#include <lwip/udp.h>
#include <string.h>

#include "config/limits.h"
#include "net/counters.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/network_words.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

#define CUTS (CARD_CSUM | CARD_HOST_TSO4)

enum {
    MSS = 1460,
    HEADERS = TCP_AT + 20,
    IP_ID_AT = IP_AT + 4,
    IP_FRAGMENT_AT = IP_AT + 6,
    TCP_SEQ_AT = TCP_AT + 4,
    TCP_ACK_AT = TCP_AT + 8,
    TCP_SUM_AT = TCP_AT + 16,
    FIRST = 10,    /* bytes of a reply that is only to go, as the first one that shows the way */
    FRAMES = 4,    /* that the longest reply takes */
    STATUS_AT = 6, /* in the card's configuration */
};

static const struct world_options plain = {0};
static const uint8_t options[8] = {2, 4, MSS >> 8, MSS & 0xff, 1, 3, 3, 0}; /* windows scale */
static const uint8_t second_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x58};
static const uint8_t third_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x59};
static struct client client;
static unsigned released;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static struct tcp_stream *tcp_of(const struct client *of) {
    return (struct tcp_stream *)of->stream;
}

/* All that was sent is acknowledged, and the way is known. */
static void begin(void) {
    released = 0;
    client_connect(&client, 40000, options, sizeof options);
    assert_non_null(client.stream);
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
    client_acknowledge(&client, FIRST);
    world_forget_heard();
}

/* --- What leaves --- */

/* A frame as the card gets it. */
struct sent {
    size_t bytes;
    struct net_header header;
    uint8_t frame[CARD_FRAME_MAX];
};

static struct sent ours[FRAMES];
static struct sent theirs[FRAMES];

/* All that is in the ring of a card that is deaf. */
static unsigned take(struct sent sent[FRAMES]) {
    unsigned count = 0;
    while (count < FRAMES && (sent[count].bytes = fake_card_take(sent[count].frame)) > 0) {
        sent[count++].header = card.header;
    }
    world_settle(); /* it has come back */
    return count;
}

/* The same bytes, the next ones, as lwIP sends them. */
static void send_through_lwip(size_t bytes) {
    tcp_of(&client)->sent += bytes;
    assert_int_equal(tcp_write(pcb_of(&client), world_text, (u16_t)bytes, 0), ERR_OK);
    assert_int_equal(tcp_output(pcb_of(&client)), ERR_OK);
    world_settle();
}

/* But for the identification, the place in the stream, and what these make of checksums: a frame
 * whose sum the device completes has none yet. */
static void expect_alike(const struct sent *our, const struct sent *their) {
    static uint8_t wanted[CARD_FRAME_MAX];
    uint16_t sum = get16(their->frame + TCP_SUM_AT);
    assert_int_equal(our->bytes, their->bytes);
    assert_memory_equal(&our->header, &their->header, sizeof our->header);
    memcpy(wanted, their->frame, their->bytes);
    memcpy(wanted + IP_ID_AT, our->frame + IP_ID_AT, 2);
    memcpy(wanted + TCP_SEQ_AT, our->frame + TCP_SEQ_AT, 4);
    world_mend(wanted);
    if ((their->header.flags & NET_HEADER_NEEDS_CHECKSUM) != 0) {
        put16(wanted + TCP_SUM_AT, sum);
    }
    assert_memory_equal(our->frame, wanted, their->bytes);
}

static void expect_headers(const struct sent *our, uint32_t seq) {
    bool completes = (card.transport.features & CARD_CSUM) != 0;
    bool is_cut = (card.transport.features & CARD_HOST_TSO4) != 0 && our->bytes > HEADERS + MSS;
    assert_int_equal(get32(our->frame + TCP_SEQ_AT), seq);
    assert_int_equal(get32(our->frame + TCP_ACK_AT), client.at);
    assert_int_equal(our->header.flags, completes ? NET_HEADER_NEEDS_CHECKSUM : 0);
    assert_int_equal(our->header.gso_type, is_cut ? NET_HEADER_GSO_TCPV4 : NET_HEADER_GSO_NONE);
    assert_int_equal(our->header.gso_size, is_cut ? MSS : 0);
    assert_int_equal(our->header.header_bytes, is_cut ? HEADERS : 0);
}

/* In pieces: the first is of an odd length. */
static void compare_ways(uint16_t bytes, bool in_pieces) {
    enum { HEADER = 21 };
    static struct stream_parcel parcel = {.mark.released = count_released};
    struct stream *stream = client.stream;
    unsigned ip_before = lwip_stats.ip.xmit;
    pcb_of(&client)->cwnd = UINT16_MAX;
    world.is_deaf = true;
    if (in_pieces) {
        struct segment header = {world_text, HEADER};
        struct segment data = {world_text + HEADER, (uint32_t)bytes - HEADER};
        assert_true(stream->ops->send_whole(stream, header, data, &parcel));
        stream->ops->flush(stream);
        world_settle();
    } else {
        client_reply(&client, 0, bytes);
    }
    assert_int_equal(lwip_stats.ip.xmit, ip_before);
    unsigned count = take(ours);
    send_through_lwip(bytes);
    assert_true(count > 0);
    assert_int_equal(take(theirs), count);
    uint32_t seq = client.due;
    for (unsigned i = 0; i < count; i++) {
        expect_headers(&ours[i], seq);
        expect_alike(&ours[i], &theirs[i]);
        seq += (uint32_t)(ours[i].bytes - HEADERS);
    }
    assert_int_equal(seq, client.due + bytes);
    world.is_deaf = false;
    client_acknowledge(&client, (size_t)2 * bytes);
    assert_null(tcp_of(&client)->marks_first); /* the parcel's */
}

static void both_ways(void) {
    static const uint16_t lengths[] = {1, 2, 101, 1000, MSS - 1, MSS, MSS + 1, 2 * MSS, 5001};
    begin();
    for (unsigned i = 0; i < ARRAY_COUNT(lengths); i++) {
        compare_ways(lengths[i], false);
        client_send(&client, world_text, 101); /* another acknowledgement, and another window */
        client_drop(&client);
    }
    compare_ways(1016, true);
    compare_ways(1017, true);
    compare_ways(MSS, true);
}

TEST(frames_of_both_ways_are_alike) {
    world_run(&plain, both_ways);
}

TEST(frames_whose_checksums_the_device_completes_are_alike) {
    world_run(&(struct world_options){.features = CARD_CSUM}, both_ways);
}

TEST(frames_that_the_device_cuts_are_alike) {
    world_run(&(struct world_options){.features = CUTS}, both_ways);
}

TEST(long_frames_that_nobody_cuts_are_alike) {
    world_run(&(struct world_options){.features = CARD_CSUM, .config = "segment=64240"}, both_ways);
}

/* Bytes that nobody answers are acknowledged before the network waits. */
static void bare(void) {
    begin();
    world.is_deaf = true;
    unsigned ip_before = lwip_stats.ip.xmit;
    client_send(&client, world_text, 101);
    assert_int_equal(lwip_stats.ip.xmit, ip_before);
    assert_int_equal(pcb_of(&client)->flags & (TF_ACK_DELAY | TF_ACK_NOW), 0);
    assert_int_equal(take(ours), 1);
    tcp_ack_now(pcb_of(&client));
    assert_int_equal(tcp_output(pcb_of(&client)), ERR_OK);
    world_settle();
    assert_int_equal(lwip_stats.ip.xmit, ip_before + 1);
    assert_int_equal(take(theirs), 1);
    assert_int_equal(ours[0].bytes, HEADERS);
    assert_int_equal(get32(ours[0].frame + TCP_SEQ_AT), client.due);
    expect_headers(&ours[0], client.due);
    expect_alike(&ours[0], &theirs[0]);
    /* And what the reader has consumed since is told by the next. */
    client_drop(&client);
    client_send(&client, world_text, 50);
    assert_int_equal(take(ours), 1);
    assert_int_equal(get32(ours[0].frame + TCP_ACK_AT), client.at);
    assert_int_equal(pcb_of(&client)->rcv_ann_right_edge,
                     pcb_of(&client)->rcv_nxt + pcb_of(&client)->rcv_ann_wnd);
}

TEST(bare_acknowledgements_of_both_ways_are_alike) {
    world_run(&plain, bare);
}

TEST(bare_acknowledgements_whose_checksums_the_device_completes_are_alike) {
    world_run(&(struct world_options){.features = CUTS}, bare);
}

/* lwIP tells of segments that came out of order, and keeps what the ring has no room for. */
static void bare_through_lwip(void) {
    struct spoken ahead = {.seq_skew = 100, .data = world_text, .bytes = 10};
    begin();
    unsigned ip_before = lwip_stats.ip.xmit;
    client_say(&client, &ahead);
    client_send(&client, world_text, 20);
    assert_true(lwip_stats.ip.xmit > ip_before);
    assert_int_equal(world_last_heard()->ack, client.at);
    client_send(&client, world_text, 100);
    assert_null(pcb_of(&client)->ooseq);
    client_drop(&client);
    world_pass_ms(NET_WAY_MS + 1);
    ip_before = lwip_stats.ip.xmit;
    client_send(&client, world_text, 20);
    assert_int_equal(lwip_stats.ip.xmit, ip_before + 1); /* the way is old */
    client_send(&client, world_text, 20);
    assert_int_equal(lwip_stats.ip.xmit, ip_before + 1);
    assert_int_equal(world_last_heard()->ack, client.at);
}

TEST(bare_acknowledgements_with_more_to_say_go_through_lwip) {
    world_run(&plain, bare_through_lwip);
}

static void gathered(void) {
    enum { PART = 700 };
    begin();
    struct stream *stream = client.stream;
    unsigned ip_before = lwip_stats.ip.xmit;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(stream->ops->send(stream, world_text + i * PART, PART), PART);
    }
    stream->ops->flush(stream);
    world_settle();
    assert_int_equal(lwip_stats.ip.xmit, ip_before);
    assert_int_equal(world.heard_count, 2);
    assert_int_equal(world.heard[0].bytes, MSS);
    assert_memory_equal(world.heard[0].data, world_text, MSS);
    assert_int_equal(world.heard[1].bytes, 3 * PART - MSS);
    assert_memory_equal(world.heard[1].data, world_text + MSS, 3 * PART - MSS);
}

TEST(what_is_gathered_leaves_in_as_few_frames_as_can_be) {
    world_run(&plain, gathered);
}

static void identified(void) {
    uint16_t before = 0;
    begin();
    world.is_deaf = true;
    uint64_t frames_before = net_counters.frames_sent;
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
        assert_int_equal(take(ours), 1);
        uint16_t identification = get16(ours[0].frame + IP_ID_AT);
        assert_true(i == 0 || identification != before);
        before = identification;
    }
    assert_int_equal(net_counters.frames_sent, frames_before + 20);
}

TEST(frames_have_identifications_of_their_own) {
    world_run(&plain, identified);
}

/* A header whose sum, in the host's order, is so near to the next multiple of 2^16 that the carry
 * carries once more. The word of fragments, which nobody reads here, makes it so. */
static void carries(void) {
    begin();
    struct tcp_way *way = &tcp_of(&client)->way;
    world.is_deaf = true;
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    assert_int_equal(take(ours), 1);
    uint16_t word = 0;
    memcpy(&word, ours[0].frame + IP_ID_AT, sizeof word);
    word++;
    uint32_t sum = way->ip_sum + lwip_htons(HEADERS - IP_AT + FIRST) + word;
    word = (uint16_t)~sum;
    memcpy(way->headers + IP_FRAGMENT_AT, &word, sizeof word);
    way->ip_sum += word;
    assert_int_equal((sum + word) & UINT16_MAX, UINT16_MAX);
    assert_true(sum + word > UINT16_MAX);
    world.is_deaf = false;
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY); /* the world looks at sums */
}

TEST(sums_whose_carry_carries_are_right) {
    world_run(&plain, carries);
}

/* --- Which way --- */

static void first_frame(void) {
    client_connect(&client, 40000, options, sizeof options);
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_connect(&client, 40001, options, sizeof options);
    client_send(&client, world_text, 100);
    assert_int_equal(world_last_heard()->ack, client.at);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
}

TEST(a_connections_first_frame_goes_through_lwip_and_shows_the_way) {
    world_run(&plain, first_frame);
}

static void shown_again(void) {
    enum { STEP_MS = NET_WAY_MS * 2 / 5 };
    begin();
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned step = 0; step < 2; step++) { /* these do not show it themselves */
            world_pass_ms(STEP_MS);
            assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
            client_acknowledge(&client, FIRST);
        }
        world_pass_ms(STEP_MS);
        assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
        client_acknowledge(&client, FIRST);
    }
}

TEST(a_way_is_known_for_its_time_and_then_shown_again) {
    world_run(&plain, shown_again);
}

static void not_shown(void) {
    uint8_t frame[HEADERS] = {[IP_AT] = 0x46};
    struct pbuf packet = {.payload = frame, .len = sizeof frame, .tot_len = sizeof frame};
    begin();
    tcp_streams_forget_ways();
    tcp_way_learn(tcp_of(&client), &packet, false);
    assert_int_equal(tcp_of(&client)->way.until_ns, 0);
    frame[IP_AT] = 0x45;
    packet.len--;
    tcp_way_learn(tcp_of(&client), &packet, false);
    assert_int_equal(tcp_of(&client)->way.until_ns, 0);
    /* Nor do datagrams, which are of no connection. */
    struct udp_pcb *udp = udp_new();
    struct pbuf *datagram = pbuf_alloc(PBUF_TRANSPORT, 100, PBUF_RAM);
    memset(datagram->payload, 0, datagram->len);
    assert_int_equal(udp_sendto(udp, datagram, &pcb_of(&client)->remote_ip, 9), ERR_OK);
    pbuf_free(datagram);
    udp_remove(udp);
    assert_int_equal(tcp_of(&client)->way.until_ns, 0);
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
}

TEST(a_frame_with_other_headers_shows_no_way) {
    world_run(&plain, not_shown);
}

/* Where the client is now: for everybody to hear, or for the guest. */
static void tell_of_mac(const uint8_t *mac, bool is_for_all) {
    uint8_t frame[42] = {0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0, 0,
                         0,    8,    6, 0,    1,    8,    0, 6, 4, 0, is_for_all ? 1 : 2};
    if (is_for_all) {
        memset(frame, 0xff, 6);
    }
    memcpy(frame + 6, mac, 6);
    memcpy(frame + 22, mac, 6);
    put32(frame + 28, WORLD_CLIENT);
    put32(frame + 38, is_for_all ? WORLD_CLIENT : WORLD_GUEST);
    world_deliver(frame, sizeof frame);
}

static void expect_reply_to(const uint8_t *mac, enum way way) {
    assert_int_equal(way_of_reply(&client, FIRST), way);
    assert_int_equal(take(ours), 1);
    assert_memory_equal(ours[0].frame, mac, 6);
}

static void moves(void) {
    begin();
    world.is_deaf = true;
    tell_of_mac(second_mac, true);
    expect_reply_to(second_mac, LONG_WAY);
    expect_reply_to(second_mac, SHORT_WAY);
    tell_of_mac(third_mac, false);
    expect_reply_to(third_mac, LONG_WAY);
    expect_reply_to(third_mac, SHORT_WAY);
}

TEST(a_neighbour_that_moves_is_followed_at_once) {
    world_run(&plain, moves);
}

static void plug(bool is_in) {
    card.config[STATUS_AT] = is_in;
    card.transport.config_changed(card.transport.config_changed_arg);
    world_settle();
}

static void unplugged(void) {
    begin();
    plug(false);
    assert_int_equal(way_of_reply(&client, FIRST), NO_WAY);
    plug(true);
    client_send(&client, world_text, 1);
    client_expect_heard(&client, FIRST);
    client_acknowledge(&client, FIRST);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_acknowledge(&client, FIRST);
    plug(false);
    plug(true);
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
}

TEST(without_a_link_nothing_leaves_and_behind_a_new_one_lwip_shows_the_way) {
    world_run(&(struct world_options){.features = CARD_STATUS}, unplugged);
}

static void interface_down(void) {
    begin();
    netif_set_down(netif_default);
    assert_int_equal(way_of_reply(&client, FIRST), NO_WAY);
    netif_set_up(netif_default);
    client_send(&client, world_text, 1);
    client_expect_heard(&client, FIRST);
    client_acknowledge(&client, FIRST);
    /* What waited for the neighbour's answer has shown nothing. */
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
}

TEST(through_an_interface_that_is_down_nothing_leaves) {
    world_run(&plain, interface_down);
}

static void other_address(void) {
    ip4_addr_t address;
    ip4_addr_t before = *netif_ip4_addr(netif_default);
    begin();
    ip4_addr_set_u32(&address, lwip_htonl(WORLD_GUEST + 1));
    netif_set_ipaddr(netif_default, &address);
    assert_int_equal(tcp_of(&client)->way.until_ns, 0);
    assert_int_equal(client.stream->state, STREAM_DEAD);
    netif_set_ipaddr(netif_default, &before);
}

TEST(with_its_address_a_connection_ends_and_its_way) {
    world_run(&plain, other_address);
}

/* --- What is not plain --- */

/* The first of what waits goes the short way, or stays. */
static bool goes(struct tcp_stream *tcp) {
    const struct tcp_seg *first = tcp->pcb->unsent;
    tcp_output_plain(tcp);
    return tcp->pcb->unsent != first;
}

/* A segment that has not left. */
static struct tcp_seg *gather(void) {
    assert_int_equal(client.stream->ops->send(client.stream, world_text, FIRST), FIRST);
    return pcb_of(&client)->unsent;
}

#define assert_refused_with(lvalue, value)                                                         \
    do {                                                                                           \
        __typeof__(lvalue) before_ = (lvalue);                                                     \
        (lvalue) = (value);                                                                        \
        assert_false(goes(tcp_of(&client)));                                                       \
        assert_ptr_equal(pcb->unsent, segment);                                                    \
        assert_null(pcb->unacked);                                                                 \
        (lvalue) = before_;                                                                        \
    } while (0)

/* Of all that makes a segment plain, one thing at a time is not so. */
static void not_plain(void) {
    begin();
    struct tcp_pcb *pcb = pcb_of(&client);
    struct tcp_seg *segment = gather();
    u16_t *flags = &segment->tcphdr->_hdrlen_rsvd_flags;
    assert_refused_with(tcp_of(&client)->way.until_ns, arch_clock_ns());
    assert_refused_with(pcb->state, CLOSE_WAIT);
    assert_refused_with(segment->flags, TF_SEG_OPTS_MSS);
    assert_refused_with(*flags, *flags | PP_HTONS(TCP_FIN));
    assert_refused_with(*flags, *flags + PP_HTONS(1 << 12)); /* longer, for options */
    assert_refused_with(pcb->snd_nxt, pcb->snd_nxt + 1);
    assert_refused_with(pcb->snd_nxt, pcb->snd_nxt - 1);
    assert_refused_with(pcb->persist_backoff, 1);
    assert_refused_with(pcb->snd_wnd, FIRST - 1);
    assert_refused_with(pcb->cwnd, FIRST - 1);
    assert_refused_with(pcb->lastack, pcb->snd_nxt - UINT16_MAX);
    assert_refused_with(segment->p->ref, 2);
    assert_refused_with(segment->p->payload, (uint8_t *)segment->tcphdr - 1);
    assert_int_equal(fake_card_take(ours[0].frame), 0);
    pcb->snd_wnd = FIRST;
    pcb->cwnd = FIRST;
    assert_true(goes(tcp_of(&client)));
    world_settle();
    client_expect_heard(&client, FIRST);
}

TEST(only_what_is_plain_goes_the_short_way) {
    world_run(&plain, not_plain);
}

static void half_closed(void) {
    begin();
    client_say(&client, &(struct spoken){.flags = FIN | ACK});
    client.at++;
    assert_int_equal(way_of_reply(&client, FIRST), LONG_WAY);
    client_expect_heard(&client, FIRST);
    client_acknowledge(&client, FIRST);
    client_close(&client, false);
    world_settle();
    assert_int_equal(world_last_heard()->flags, FIN | ACK);
    assert_int_equal(world_last_heard()->seq, client.due);
}

TEST(what_goes_to_a_client_that_sends_no_more_goes_through_lwip) {
    world_run(&plain, half_closed);
}

/* --- What lwIP knows of it --- */

static void noted(void) {
    begin();
    struct tcp_pcb *pcb = pcb_of(&client);
    world_pass_ms(2 * TCP_SLOW_INTERVAL);
    assert_int_equal(pcb->rtime, -1);
    assert_int_equal(pcb->rttest, 0);
    pcb->rcv_ann_right_edge--;
    pcb->flags |= TF_NAGLEMEMERR;
    assert_int_equal(way_of_reply(&client, 100), SHORT_WAY);
    assert_int_equal(pcb->rtime, 0);
    assert_int_equal(pcb->rttest, tcp_ticks);
    assert_int_equal(pcb->rtseq, client.due);
    assert_int_equal(pcb->snd_nxt, client.due + 100);
    assert_int_equal(pcb->rcv_ann_right_edge, pcb->rcv_nxt + pcb->rcv_ann_wnd);
    assert_int_equal(pcb->flags & TF_NAGLEMEMERR, 0);
    world_pass_ms(TCP_SLOW_INTERVAL);
    assert_true(pcb->rtime > 0);
    s16_t time = pcb->rtime;
    assert_int_equal(way_of_reply(&client, 200), SHORT_WAY);
    assert_int_equal(pcb->rtime, time);
    assert_int_equal(pcb->rtseq, client.due);
    assert_int_equal(pcb->snd_nxt, client.due + 300);
    assert_null(pcb->unsent);
    assert_int_equal(pcb->unacked->len, 100);
    assert_int_equal(pcb->unacked->next->len, 200);
    assert_null(pcb->unacked->next->next);
    client_acknowledge(&client, 100);
    assert_int_equal(pcb->unacked->len, 200);
    client_acknowledge(&client, 200);
    assert_null(pcb->unacked);
    assert_int_equal(pcb->snd_queuelen, 0);
    assert_int_equal(pcb->snd_buf, TCP_SND_BUF);
}

TEST(lwip_knows_what_has_gone_past_it) {
    world_run(&plain, noted);
}

static void taken_along(void) {
    begin();
    client.stream->ops->expect(client.stream, STREAM_WILL_REPLY);
    client_send(&client, world_text, 100);
    assert_int_equal(world.heard_count, 0);
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_expect_heard(&client, FIRST);
    assert_int_equal(world_last_heard()->flags, ACK | PSH);
    assert_int_equal(world_last_heard()->ack, client.at);
    client.due += FIRST;
    tcp_ack(pcb_of(&client)); /* as if it were owed once, and then at once */
    tcp_ack(pcb_of(&client));
    assert_int_equal(way_of_reply(&client, FIRST), SHORT_WAY);
    client_acknowledge(&client, FIRST);
    world_pass_ms(4 * TCP_FAST_INTERVAL);
    assert_int_equal(world.heard_count, 2);
}

TEST(a_reply_takes_the_acknowledgement_along) {
    world_run(&plain, taken_along);
}

static void lost(void) {
    struct stream_mark mark = {.released = count_released};
    begin();
    assert_int_equal(way_of_reply(&client, 500), SHORT_WAY);
    assert_int_equal(way_of_reply(&client, 600), SHORT_WAY);
    client.stream->ops->mark(client.stream, &mark);
    world_forget_heard();
    unsigned ip_before = lwip_stats.ip.xmit;
    world_pass_ms(1000);
    assert_true(world.heard_count >= 2);
    assert_int_equal((uint16_t)(lwip_stats.ip.xmit - ip_before), world.heard_count);
    for (unsigned i = 0; i < world.heard_count; i++) {
        bool is_first = world.heard[i].seq == client.due;
        size_t bytes = is_first ? 500 : 600;
        assert_true(is_first || world.heard[i].seq == client.due + 500);
        assert_int_equal(world.heard[i].bytes, bytes);
        assert_memory_equal(world.heard[i].data, world_text, bytes);
    }
    /* What is new goes behind it as ever. */
    assert_int_equal(way_of_reply(&client, 300), SHORT_WAY);
    assert_int_equal(world_last_heard()->seq, client.due + 1100);
    assert_int_equal(released, 0);
    client_acknowledge(&client, 1100);
    assert_int_equal(released, 1);
    client_acknowledge(&client, 300);
    assert_null(pcb_of(&client)->unacked);
    world_forget_heard();
    world_pass_ms(5000);
    assert_int_equal(world.heard_count, 0);
}

TEST(what_is_lost_on_the_short_way_is_sent_again_by_lwip) {
    world_run(&plain, lost);
}
