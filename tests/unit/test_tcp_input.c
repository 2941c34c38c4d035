/* The short way of received segments, and what it leaves alone: net/tcp_input.c. */
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "core/task/scheduler.h"
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

/* --- What goes the short way --- */

static void next_bytes(void) {
    begin();
    struct spoken spoken = {.data = world_text, .bytes = 700};
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
    client.at += 700;
    spoken = (struct spoken){.flags = ACK | PSH, .data = world_text + 700, .bytes = 1300};
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
    client.at += 1300;
    client_expect(&client, 0, 2000);
    assert_int_equal(world_last_heard()->ack, client.at);
    assert_int_equal(pcb_of(&client)->rcv_nxt, client.at);
}

TEST(the_next_bytes_of_a_stream_take_the_short_way) {
    world_run(&plain, next_bytes);
}

static unsigned released;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static void acknowledgements(void) {
    struct stream_mark first = {.released = count_released};
    struct stream_mark last = {.released = count_released};
    begin();
    released = 0;
    struct stream *stream = client.stream;
    tcpwnd_size_t room = pcb_of(&client)->snd_buf;
    assert_int_equal(stream->ops->send(stream, world_text, 500), 500);
    stream->ops->mark(stream, &first);
    assert_int_equal(stream->ops->send(stream, world_text + 500, 900), 900);
    stream->ops->mark(stream, &last);
    stream->ops->flush(stream);
    world_settle();
    /* 536 bytes in each: it has told no size of its own (RFC 9293, 3.7.1). */
    assert_int_equal(world.heard_count, 3);
    /* In the middle of a segment: that stays, but the mark's bytes are there. */
    client.due += 536 + 10;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), SHORT_WAY);
    assert_int_equal(released, 1);
    assert_int_equal(pcb_of(&client)->snd_buf, room - 1400 + 536);
    assert_int_equal(pcb_of(&client)->rtime, 0);
    client.due += 1400 - 546;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), SHORT_WAY);
    assert_int_equal(released, 2);
    assert_null(pcb_of(&client)->unacked);
    assert_int_equal(pcb_of(&client)->rtime, -1);
    assert_int_equal(pcb_of(&client)->snd_buf, room);
    assert_int_equal(pcb_of(&client)->snd_queuelen, 0);
}

TEST(an_acknowledgement_takes_the_short_way_and_releases_what_it_covers) {
    world_run(&plain, acknowledgements);
}

static void both_in_one(void) {
    begin();
    client_reply(&client, 0, 300);
    client.due += 300;
    struct spoken spoken = {.data = world_text, .bytes = 400};
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
    client.at += 400;
    client_expect(&client, 0, 400);
    assert_null(pcb_of(&client)->unacked);
}

TEST(bytes_that_acknowledge_do_both_on_the_short_way) {
    world_run(&plain, both_in_one);
}

/* --- What does not --- */

struct oddity {
    const char *what;
    void (*make)(uint8_t *ip, uint8_t *tcp);
    bool keeps_sums; /* as they are: wrong, or right for somebody who looks at nothing else */
    enum way way;
    size_t bytes; /* of the ten that arrive */
};

static void alter_nothing(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    (void)tcp;
}

static void set_dont_fragment(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[6] = 0x40;
}

static void set_more_fragments(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[6] = 0x20;
}

static void set_fragment_offset(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[7] = 2;
}

static void set_version_6(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[0] = 0x65;
}

/* Makes the header's sum right again by its identification, which nobody looks at: TCP's sum stays
 * as it was, and would be right for who takes the packet for what it is not. */
static void settle_sum(uint8_t *ip, uint16_t identification) {
    ip[4] = (uint8_t)(identification >> 8);
    ip[5] = (uint8_t)identification;
}

static void set_protocol(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[9] += 126; /* SCTP */
    settle_sum(ip, UINT16_MAX - 126);
}

static void set_other_destination(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[19] += 70;
    settle_sum(ip, UINT16_MAX - 70);
}

static void set_other_source(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[15] += 70;
    settle_sum(ip, UINT16_MAX - 70);
}

static void set_other_port(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[1] ^= 1;
}

static void set_far_port(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[0] ^= 1;
}

static void set_longer_than_the_frame(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[3] += 1;
    settle_sum(ip, UINT16_MAX - 1);
}

static void set_no_acknowledgement(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[13] = PSH;
}

static void set_urgent(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[13] |= URG;
    tcp[19] = 1;
}

static void set_window_0(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[14] = 0;
    tcp[15] = 0;
}

static void spoil_ip_header(uint8_t *ip, uint8_t *tcp) {
    (void)tcp;
    ip[8]--;
}

static void spoil_payload(uint8_t *ip, uint8_t *tcp) {
    (void)ip;
    tcp[25] ^= 0x10;
}

static const struct oddity oddities[] = {
    {"nothing", alter_nothing, false, SHORT_WAY, 10},
    {"don't fragment", set_dont_fragment, false, SHORT_WAY, 10},
    {"more fragments", set_more_fragments, false, LONG_WAY, 0},
    {"a fragment's offset", set_fragment_offset, false, LONG_WAY, 0},
    {"IP version 6", set_version_6, false, LONG_WAY, 0},
    {"another protocol", set_protocol, true, LONG_WAY, 0},
    {"another destination", set_other_destination, true, LONG_WAY, 0},
    {"another source", set_other_source, true, LONG_WAY, 0},
    {"another port", set_other_port, false, LONG_WAY, 0},
    {"another port with the same low bits", set_far_port, false, LONG_WAY, 0},
    {"more bytes than there are", set_longer_than_the_frame, true, LONG_WAY, 0},
    {"no acknowledgement", set_no_acknowledgement, false, LONG_WAY, 10}, /* lwIP does not mind */
    {"urgent bytes", set_urgent, false, LONG_WAY, 10},
    {"a closed window", set_window_0, false, LONG_WAY, 10},
    {"a wrong sum of the IP header", spoil_ip_header, true, LONG_WAY, 0},
    {"a wrong sum of TCP", spoil_payload, true, LONG_WAY, 0},
};

static void odd_packets(void) {
    begin();
    client_send(&client, world_text, 400);
    client_drop(&client);
    for (unsigned i = 0; i < ARRAY_COUNT(oddities); i++) {
        const struct oddity *oddity = &oddities[i];
        struct spoken spoken = {.flags = ACK | PSH, .data = world_text, .bytes = 10};
        size_t bytes = client_frame(&client, &spoken, frame);
        oddity->make(frame + IP_AT, frame + TCP_AT);
        if (!oddity->keeps_sums) {
            world_mend(frame);
        }
        enum way way = way_of(frame, bytes);
        if (way != oddity->way || client_received(&client) != oddity->bytes) {
            fail_msg("with %s: way %u, %zu bytes", oddity->what, (unsigned)way,
                     client_received(&client));
        }
        client.at += (uint32_t)client_received(&client);
        client_expect(&client, 0, client_received(&client));
        client_drop(&client);
        /* And all goes on as if nothing had been. */
        assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
        client.at += 10;
        client_expect(&client, 0, 10);
        client_drop(&client);
    }
}

TEST(what_is_not_just_the_next_bytes_takes_the_long_way) {
    world_run(&plain, odd_packets);
}

/* More than the places by which it looks for them (net/tcp_input.c), so that some share one; their
 * ports are as Linux gives them. */
enum { MANY = 80 };

static void many_clients(void) {
    static struct client clients[MANY];
    struct spoken spoken = {.data = world_text, .bytes = 10};
    for (unsigned i = 0; i < MANY; i++) {
        client_connect(&clients[i], (uint16_t)(33000 + 2 * i), NULL, 0);
    }
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(way_of_spoken(&clients[i], &spoken), SHORT_WAY);
        clients[i].at += 10;
        client_expect(&clients[i], 0, 10);
        client_drop(&clients[i]);
    }
    for (unsigned i = 0; i < MANY; i += 3) {
        client_close(&clients[i], true);
    }
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(way_of_spoken(&clients[i], &spoken), i % 3 == 0 ? LONG_WAY : SHORT_WAY);
    }
}

TEST(however_many_clients_there_are_each_has_the_short_way) {
    world_run(&plain, many_clients);
}

static void other_headers(void) {
    static const uint8_t nops[4] = {1, 1, 1, 1};
    begin();
    struct spoken with_ip_options = {.ip_option_bytes = 4, .data = world_text, .bytes = 10};
    assert_int_equal(way_of_spoken(&client, &with_ip_options), LONG_WAY);
    client.at += 10;
    struct spoken with_options = {
        .options = nops, .option_bytes = 4, .data = world_text + 10, .bytes = 10};
    assert_int_equal(way_of_spoken(&client, &with_options), LONG_WAY);
    client.at += 10;
    /* Ethernet's padding behind a short packet is no part of it. */
    size_t bytes =
        client_frame(&client, &(struct spoken){.data = world_text + 20, .bytes = 2}, frame);
    memcpy(frame + bytes, "\xff\xfb\0\0", 4); /* which makes up for the four bytes in TCP's sum */
    assert_int_equal(way_of(frame, bytes + 4), LONG_WAY);
    client.at += 2;
    client_expect(&client, 0, 22);
    /* Less than the headers. */
    (void)client_frame(&client, &(struct spoken){0}, frame);
    frame[IP_AT + 3] = 30;
    frame[IP_AT + 10] = 0;
    assert_int_equal(way_of(frame, IP_AT + 30), LONG_WAY);
    client_expect(&client, 0, 22);
    struct spoken fin = {.flags = FIN | ACK};
    assert_int_equal(way_of_spoken(&client, &fin), LONG_WAY);
    assert_int_equal(client.stream->state, STREAM_PEER_CLOSED);
}

TEST(options_padding_and_a_fin_take_the_long_way) {
    world_run(&plain, other_headers);
}

static void numbers(void) {
    begin();
    /* The same acknowledgement once more, and one of what was never sent. */
    client_reply(&client, 0, 100);
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), LONG_WAY);
    assert_int_equal(way_of_spoken(&client, &(struct spoken){.ack_skew = 101}), LONG_WAY);
    assert_non_null(pcb_of(&client)->unacked);
    client.due += 100;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), SHORT_WAY);
    /* What was received before, alone and with more behind it. */
    struct spoken again = {.data = world_text, .bytes = 4};
    client_send(&client, world_text, 4);
    client_drop(&client);
    again.seq_skew = UINT32_MAX - 3;
    assert_int_equal(way_of_spoken(&client, &again), LONG_WAY);
    assert_int_equal(client_received(&client), 0);
    again.bytes = 10;
    assert_int_equal(way_of_spoken(&client, &again), LONG_WAY);
    client.at += 6;
    client_expect(&client, 4, 6);
    client_drop(&client);
    /* A gap; while it is there nothing is plain; what fills it is delivered with what waited. */
    struct spoken beyond = {.seq_skew = 10, .data = world_text + 10, .bytes = 10};
    assert_int_equal(way_of_spoken(&client, &beyond), LONG_WAY);
    assert_int_equal(client_received(&client), 0);
    struct spoken first = {.data = world_text, .bytes = 4};
    assert_int_equal(way_of_spoken(&client, &first), LONG_WAY);
    client.at += 4;
    client_expect(&client, 0, 4);
    struct spoken rest = {.data = world_text + 4, .bytes = 6};
    assert_int_equal(way_of_spoken(&client, &rest), LONG_WAY);
    client.at += 16;
    client_expect(&client, 0, 20);
    struct spoken next = {.data = world_text + 20, .bytes = 6};
    assert_int_equal(way_of_spoken(&client, &next), SHORT_WAY);
    client.at += 6;
    client_expect(&client, 0, 26);
}

TEST(gaps_and_strange_acknowledgements_take_the_long_way) {
    world_run(&plain, numbers);
}

static void after_a_loss(void) {
    begin();
    client_reply(&client, 0, 200);
    for (unsigned i = 0; i < 40 && pcb_of(&client)->nrtx == 0; i++) {
        world_pass_ms(100);
    }
    assert_int_equal(pcb_of(&client)->nrtx, 1);
    assert_int_equal(world_last_heard()->seq, client.due); /* said again */
    client.due += 200;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), LONG_WAY);
    assert_null(pcb_of(&client)->unacked);
    /* Until all is acknowledged that was on its way when it was lost. */
    client_reply(&client, 0, 1000);
    for (unsigned i = 0; i < 40 && pcb_of(&client)->nrtx == 0; i++) {
        world_pass_ms(100);
    }
    for (unsigned i = 0; i < 2; i++) {
        client.due += 500;
        assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), LONG_WAY);
        assert_int_equal(pcb_of(&client)->nrtx, 0);
    }
    client_reply(&client, 0, 100);
    client.due += 100;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), SHORT_WAY);
}

TEST(an_acknowledgement_after_a_loss_is_for_lwip) {
    world_run(&plain, after_a_loss);
}

/* Twice within one round trip nothing came back: lwIP takes the loss for mended when what it had
 * said again by then is acknowledged, and the rest still waits to be said again. */
static void after_two_losses(void) {
    enum { SEGMENT = 536, SEGMENTS = 4 };
    begin();
    client_reply(&client, 0, SEGMENTS * SEGMENT);
    assert_int_equal(world.heard_count, SEGMENTS);
    for (unsigned i = 0; i < 80 && pcb_of(&client)->nrtx < 2; i++) {
        world_pass_ms(100);
    }
    assert_int_equal(pcb_of(&client)->nrtx, 2);
    client.due += SEGMENT;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), LONG_WAY);
    assert_int_equal(pcb_of(&client)->nrtx, 0);
    assert_int_equal(pcb_of(&client)->flags & (TF_RTO | TF_INFR), 0);
    assert_non_null(pcb_of(&client)->unacked);
    assert_non_null(pcb_of(&client)->unsent);
    /* They had come all the same, but for the first. */
    client.due += (SEGMENTS - 1) * SEGMENT;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), LONG_WAY);
    assert_null(pcb_of(&client)->unacked);
    assert_null(pcb_of(&client)->unsent);
    world_forget_heard();
    client_reply(&client, 0, 100);
    assert_int_equal(world_last_heard()->bytes, 100);
    client.due += 100;
    assert_int_equal(way_of_spoken(&client, &(struct spoken){0}), SHORT_WAY);
}

TEST(an_acknowledgement_of_what_waits_to_be_said_again_is_for_lwip) {
    world_run(&plain, after_two_losses);
}

static size_t heard_bytes(void) {
    size_t bytes = 0;
    for (unsigned i = 0; i < world.heard_count; i++) {
        bytes += world.heard[i].bytes;
    }
    return bytes;
}

static void windows(void) {
    struct spoken spoken = {.data = world_text, .bytes = 10};
    begin();
    client.window = 600;
    /* Or an acknowledgement would take it along. */
    client.stream->ops->expect(client.stream, STREAM_WILL_REPLY);
    client_send(&client, world_text, 10);
    client_reply(&client, 0, 1200);
    assert_int_equal(heard_bytes(), 536);
    /* A larger window, though nothing is acknowledged. */
    client.window = 1300;
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
    client.at += 10;
    assert_int_equal(heard_bytes(), 1200);
    /* One that is closed, and data for it: what opens it again has to end the probing. */
    client.due += 1200;
    client.window = 0;
    assert_int_equal(way_of_spoken(&client, &spoken), LONG_WAY);
    client.at += 10;
    client_reply(&client, 0, 500);
    assert_int_not_equal(pcb_of(&client)->persist_backoff, 0);
    client.window = 1300;
    world_forget_heard();
    assert_int_equal(way_of_spoken(&client, &spoken), LONG_WAY);
    client.at += 10;
    assert_int_equal(pcb_of(&client)->persist_backoff, 0);
    assert_int_equal(heard_bytes(), 500);
    client.due += 500;
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
}

TEST(a_window_that_opens_lets_more_go) {
    world_run(&plain, windows);
}

static void silence(void) {
    begin();
    for (unsigned i = 0; i < 40 && pcb_of(&client)->keep_cnt_sent == 0; i++) {
        world_pass_ms(100);
    }
    assert_int_equal(pcb_of(&client)->keep_cnt_sent, 1);
    struct spoken spoken = {.data = world_text, .bytes = 10};
    assert_int_equal(way_of_spoken(&client, &spoken), SHORT_WAY);
    assert_int_equal(pcb_of(&client)->keep_cnt_sent, 0);
}

TEST(whoever_says_something_is_there) {
    world_run(&(struct world_options){.config = "keepalive=1"}, silence);
}

/* What the client was sent was lost on its way, so it has nothing to say; but it answers what is
 * not in its window. */
static void loss(void) {
    begin();
    client_reply(&client, 0, 1000);
    world_forget_heard();
    for (unsigned ms = 0; ms < 3000; ms += 50) {
        world_pass_ms(50);
        const struct heard *last = world.heard_count > 0 ? world_last_heard() : NULL;
        if (last != NULL && last->bytes == 0 && (int32_t)(last->seq - client.due) < 0) {
            world_forget_heard();
            client_say(&client, &(struct spoken){0});
        }
    }
    assert_true(client.stream->state == STREAM_OPEN);
    client.due += 1000;
    client_say(&client, &(struct spoken){0});
    assert_null(pcb_of(&client)->unacked);
}

TEST(whoever_misses_what_is_on_its_way_is_asked_in_a_way_that_it_answers) {
    world_run(&(struct world_options){.config = "keepalive=1"}, loss);
}

/* It is asked four times, a sixth of a second apart, and given up; whatever is on its way to it. */
static void departure(size_t reply_bytes) {
    begin();
    if (reply_bytes > 0) {
        client_reply(&client, 0, reply_bytes);
    }
    world_forget_heard();
    uint32_t begun = tcp_ticks;
    while (client.stream->state != STREAM_DEAD) {
        assert_true((tcp_ticks - begun) * TCP_SLOW_INTERVAL < 2000);
        world_pass_ms(50);
    }
    assert_true((tcp_ticks - begun) * TCP_SLOW_INTERVAL >= 1600);
    unsigned questions = 0;
    for (unsigned i = 0; i < world.heard_count; i++) {
        const struct heard *heard = &world.heard[i];
        bool is_question = heard->bytes == 0 && (heard->flags & TCP_RST) == 0;
        assert_true(!is_question || heard->seq == client.due - 1);
        questions += is_question;
    }
    assert_int_equal(questions, 4);
    assert_true((world_last_heard()->flags & TCP_RST) != 0);
}

static void with_nothing_on_its_way(void) {
    departure(0);
}

static void with_something_on_its_way(void) {
    departure(1000);
}

TEST(whoever_answers_no_question_has_left) {
    world_run(&(struct world_options){.config = "keepalive=1"}, with_nothing_on_its_way);
}

TEST(whoever_answers_no_question_has_left_with_something_on_its_way) {
    world_run(&(struct world_options){.config = "keepalive=1"}, with_something_on_its_way);
}

static void say_at_once(unsigned segments, size_t bytes) {
    for (unsigned i = 0; i < segments; i++) {
        struct spoken spoken = {.data = world_text, .bytes = bytes};
        fake_card_deliver(frame, client_frame(&client, &spoken, frame), 0);
        client.at += (uint32_t)bytes;
    }
    world_settle();
}

static void one_round(void) {
    begin();
    client.stream->ops->expect(client.stream, STREAM_WILL_REPLY);
    struct spoken spoken = {.data = world_text, .bytes = 10};
    client_say(&client, &spoken);
    client.at += 10;
    assert_int_equal(world.heard_count, 0); /* the reply will acknowledge it */
    world_pass_ms(200);
    assert_int_equal(world_last_heard()->ack, client.at); /* but it does not come */
    world_forget_heard();
    say_at_once(3, 10); /* nor for three small ones, by themselves */
    assert_int_equal(world.heard_count, 0);
    say_at_once(2, 500); /* but bytes for nearly two full ones have come before these */
    say_at_once(2, 500);
    say_at_once(2, 500);
    assert_int_equal(world.heard_count, 1);
    assert_int_equal(world_last_heard()->ack, client.at);
    world_forget_heard();
    client.stream->ops->expect(client.stream, STREAM_MAY_REPLY);
    say_at_once(3, 10);
    assert_int_equal(world.heard_count, 1);
    assert_int_equal(world_last_heard()->ack, client.at);
}

TEST(of_several_segments_a_reply_or_the_end_of_the_round_tells) {
    world_run(&plain, one_round);
}

/* Three acknowledgements of the same say that a segment was lost (RFC 5681, 3.2), whatever else the
 * client says between them. */
static void loss_between_bytes(void) {
    begin();
    client_reply(&client, 0, 2000);
    world_forget_heard();
    for (unsigned i = 0; i < 3; i++) {
        client_say(&client, &(struct spoken){0});
        struct spoken spoken = {.data = world_text, .bytes = 10};
        client_say(&client, &spoken);
        client.at += 10;
    }
    bool is_said_again = false;
    for (unsigned i = 0; i < world.heard_count; i++) {
        is_said_again |= world.heard[i].seq == client.due && world.heard[i].bytes > 0;
    }
    assert_true(is_said_again);
}

TEST(bytes_between_duplicate_acknowledgements_do_not_hide_a_loss) {
    world_run(&plain, loss_between_bytes);
}

/* The same conversation twice, by one client as it is and by one whose options keep it from the
 * short way: TCP must stand at the same place after every step. */
struct standing {
    uint32_t rcv_nxt, rcv_wnd, lastack, snd_nxt, snd_lbb, snd_wl1, snd_wl2;
    uint32_t snd_wnd, snd_wnd_max, snd_buf, cwnd, ssthresh, bytes_acked;
    int rto, sa, sv, rtime, timed;
    unsigned queued, persist_backoff, persist_probe, keep_cnt, dupacks, nrtx;
};

static struct standing standing_of(const struct client *of, uint32_t guest_isn) {
    const struct tcp_pcb *pcb = pcb_of(of);
    return (struct standing){
        .rcv_nxt = pcb->rcv_nxt,
        .rcv_wnd = pcb->rcv_wnd,
        .lastack = pcb->lastack - guest_isn,
        .snd_nxt = pcb->snd_nxt - guest_isn,
        .snd_lbb = pcb->snd_lbb - guest_isn,
        .snd_wl1 = pcb->snd_wl1,
        .snd_wl2 = pcb->snd_wl2 - guest_isn,
        .snd_wnd = pcb->snd_wnd,
        .snd_wnd_max = pcb->snd_wnd_max,
        .snd_buf = pcb->snd_buf,
        .cwnd = pcb->cwnd,
        .ssthresh = pcb->ssthresh,
        .bytes_acked = pcb->bytes_acked,
        .rto = pcb->rto,
        .sa = pcb->sa,
        .sv = pcb->sv,
        .rtime = pcb->rtime,
        .timed = pcb->rttest != 0,
        .queued = pcb->snd_queuelen,
        .persist_backoff = pcb->persist_backoff,
        .persist_probe = pcb->persist_probe,
        .keep_cnt = pcb->keep_cnt_sent,
        .dupacks = pcb->dupacks,
        .nrtx = pcb->nrtx,
    };
}

enum { TALK_STEPS = 400, TALKERS = 2 };

static struct client talkers[TALKERS];
static unsigned ways[TALKERS];

static void talk_step(const size_t *amounts, unsigned what, bool catches_up) {
    static const uint8_t nops[4] = {1, 1, 1, 1};
    for (unsigned i = 0; i < TALKERS; i++) {
        struct client *talker = &talkers[i];
        const struct tcp_pcb *pcb = pcb_of(talker);
        struct spoken spoken = {.options = nops, .option_bytes = i == 0 ? 0 : 4};
        if (what == 0) { /* the guest says something */
            (void)talker->stream->ops->send(talker->stream, world_text, amounts[0] * 8);
            talker->stream->ops->flush(talker->stream);
            world_settle();
            continue;
        }
        if (what == 1) { /* the server reads */
            size_t bytes = talker->stream->ops->received(talker->stream);
            if (bytes > 0) {
                talker->stream->ops->drop(talker->stream, bytes);
            }
            world_settle();
            continue;
        }
        uint32_t open = pcb->snd_nxt - talker->due;
        uint32_t news = 3 * amounts[1] < open && !catches_up ? 3 * (uint32_t)amounts[1] : open;
        news = what == 2 ? 0 : news;
        talker->due += news;
        if (news > 0) {
            /* Of windows that shrink without news lwIP takes no notice, though it may. */
            talker->window = (uint16_t)(20000 + amounts[2] * 8);
        }
        spoken.data = world_text;
        spoken.bytes = what != 3 && amounts[0] <= pcb->rcv_wnd ? amounts[0] : 0;
        ways[i] += way_of_spoken(talker, &spoken) == SHORT_WAY;
        talker->at += (uint32_t)spoken.bytes;
    }
}

/* TCP counts in ticks of 100 ms: none may come between what one talker does and what the other one
 * does. Waits for the next when it is near, or when it is wanted; true then. */
static bool keep_clear_of_ticks(bool wants_tick) {
    static uint64_t tick_ns;
    uint32_t ticks = tcp_ticks;
    if (!wants_tick && scheduler_now_ns() - tick_ns < 50 * NS_PER_MS) {
        return false;
    }
    while (tcp_ticks == ticks) {
        world_pass_ms(10);
    }
    tick_ns = scheduler_now_ns();
    return true;
}

static void same_by_both_ways(void) {
    uint32_t isn[TALKERS];
    begin();
    world.window = 20000;
    for (unsigned i = 0; i < TALKERS; i++) {
        client_connect(&talkers[i], (uint16_t)(50000 + i), (const uint8_t[]){2, 4, 5, 180}, 4);
        isn[i] = talkers[i].due;
        ways[i] = 0;
        pcb_of(&talkers[i])->ssthresh = 20000; /* so that both kinds of growth are seen */
    }
    for (unsigned step = 0; step < TALK_STEPS; step++) {
        size_t amounts[3];
        world_forget_heard();
        for (unsigned i = 0; i < 3; i++) {
            amounts[i] = 1 + unit_random_below(1400);
        }
        unsigned what = (unsigned)unit_random_below(8);
        if (keep_clear_of_ticks(unit_random_below(8) == 0)) {
            talk_step(amounts, 3, true); /* before anything counts as lost */
        }
        talk_step(amounts, what, false);
        struct standing first = standing_of(&talkers[0], isn[0]);
        struct standing second = standing_of(&talkers[1], isn[1]);
        assert_memory_equal(&first, &second, sizeof first);
    }
    assert_true(ways[0] > TALK_STEPS / 4);
    assert_int_equal(ways[1], 0);
}

TEST(both_ways_leave_tcp_at_the_same_place) {
    world_run(&plain, same_by_both_ways);
}

static void after_close(void) {
    begin();
    client_reply(&client, 0, 100);
    struct client peer = client;
    client_close(&client, false); /* what was sent is not acknowledged yet */
    struct spoken spoken = {.data = world_text, .bytes = 10};
    assert_int_equal(way_of_spoken(&peer, &spoken), LONG_WAY);
    assert_int_equal(world_last_heard()->ack, peer.at + 10); /* taken, and thrown away */
    peer.at += 10;
    peer.due += 100;
    client_say(&peer, &(struct spoken){0});
    assert_int_equal(world_last_heard()->flags, FIN | ACK);
}

TEST(bytes_for_a_stream_that_is_closed_take_the_long_way) {
    world_run(&plain, after_close);
}
