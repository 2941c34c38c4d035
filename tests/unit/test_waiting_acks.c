/* Acknowledgements that nobody waits for: net/virtio_net.c, which lets them lie, and
 * net/tcp_stream.c, which says when it may. */
#include <limits.h>
#include <lwip/init.h>
#include <lwip/pbuf.h>
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/network_words.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    HEADERS = TCP_AT + 20, /* a bare acknowledgement ends behind them */
    SHORTEST = 60,         /* on Ethernet */
    MOST = NET_ACKS_WAITING_MAX,
    ACK_AT = TCP_AT + 8,
    SMALL_RING = 2,
};

/* --- The driver --- */

static struct virtio_net *net;
static struct event event;
static const struct client speaker = {.port = 40000, .window = 1000, .at = 1000, .due = 1};
static const struct spoken request = {.flags = ACK | PSH, .data = "request", .bytes = 7};

static void begin_with(uint64_t features, unsigned ring_max) {
    static bool has_lwip;
    if (!has_lwip) {
        lwip_init(); /* for its pools */
        has_lwip = true;
    }
    if (virtio_net_first() != NULL) {
        fake_card_unplug(); /* a test has failed half-way */
    }
    event = (struct event){0};
    fake_card_set_up(features);
    card.ring_max = ring_max;
    assert_int_equal(fake_card_probe(), 0);
    net = virtio_net_first();
    virtio_net_set_event(net, &event);
    virtio_net_let_acks_wait(net, true);
}

static void begin(void) {
    begin_with(0, CARD_RING);
}

static void end(void) {
    scheduler_forget();
    fake_card_unplug();
}

static void deliver(const struct spoken *spoken) {
    uint8_t frame[FRAME_MAX];
    fake_card_deliver(frame, client_frame(&speaker, spoken, frame), 0);
}

/* An acknowledgement of this many bytes more than the one before it. */
static void deliver_ack(uint32_t more) {
    deliver(&(struct spoken){.ack_skew = more});
}

static void nothing(void *unused) {
    (void)unused;
}

/* Whether one look at the rings has signalled the event. */
static bool is_told(void) {
    unit_run_task(nothing, NULL);
    bool was_set = event.is_set;
    event_clear(&event);
    return was_set;
}

/* So many frames are there, of which each acknowledges one byte more than the one before it. */
static void take_acks(unsigned count) {
    bool is_sum_known = false;
    for (unsigned i = 0; i < count; i++) {
        struct pbuf *frame = virtio_net_receive(net, &is_sum_known);
        assert_non_null(frame);
        assert_int_equal(get32((const uint8_t *)frame->payload + ACK_AT), speaker.due + i);
        pbuf_free(frame);
    }
    assert_null(virtio_net_receive(net, &is_sum_known));
    virtio_net_flush(net);
}

TEST(a_bare_acknowledgement_waits_for_what_comes_next) {
    begin();
    for (unsigned i = 0; i < 3; i++) {
        deliver_ack(i);
        assert_false(is_told());
    }
    assert_int_equal(scheduler_get_stats()->put_off, 3);
    assert_false(is_told());
    assert_int_equal(scheduler_get_stats()->put_off, 3); /* each once */
    struct spoken last = request;
    last.ack_skew = 3;
    deliver(&last);
    assert_true(is_told());
    take_acks(4);
    /* The request was not looked at; what comes behind it is all the same. */
    deliver(&request);
    assert_true(is_told());
    take_acks(1);
    deliver_ack(0);
    assert_false(is_told());
    end();
}

TEST(an_acknowledgement_filled_up_to_the_shortest_frame_waits_as_well) {
    begin();
    for (size_t bytes = HEADERS; bytes <= SHORTEST; bytes++) {
        uint8_t frame[FRAME_MAX] = {0};
        (void)client_frame(&speaker, &(struct spoken){0}, frame);
        fake_card_deliver(frame, bytes, 0);
        assert_false(is_told());
        take_acks(1);
    }
    end();
}

TEST(a_frame_too_short_or_too_long_for_an_acknowledgement_is_told_at_once) {
    static const size_t lengths[] = {TCP_AT, HEADERS - 1, SHORTEST + 1, 1000};
    begin();
    for (unsigned i = 0; i < ARRAY_COUNT(lengths); i++) {
        uint8_t frame[FRAME_MAX] = {0};
        bool is_sum_known = false;
        (void)client_frame(&speaker, &(struct spoken){0}, frame);
        fake_card_deliver(frame, lengths[i], 0);
        assert_true(is_told());
        pbuf_free(virtio_net_receive(net, &is_sum_known));
    }
    end();
}

/* One byte is another, and everything else as in an acknowledgement. */
TEST(what_differs_from_a_bare_acknowledgement_is_told_at_once) {
    static const struct {
        unsigned at;
        uint8_t value;
    } others[] = {
        {12, 0x86},
        {13, 0x06},
        {13, 0xdd}, /* ARP, or IPv6 by half */
        {IP_AT, 0x46},
        {IP_AT, 0x65}, /* IP options, version 6 */
        {IP_AT + 2, 1},
        {IP_AT + 3, 39},
        {IP_AT + 3, 41}, /* longer, shorter */
        {IP_AT + 9, 17},
        {IP_AT + 9, 1}, /* UDP, ICMP */
        {TCP_AT + 12, 0x60},
        {TCP_AT + 12, 0x40},
        {TCP_AT + 12, 0x51}, /* TCP options */
        {TCP_AT + 13, 0},
        {TCP_AT + 13, ACK | FIN},
        {TCP_AT + 13, ACK | SYN},
        {TCP_AT + 13, ACK | RST},
        {TCP_AT + 13, ACK | PSH},
        {TCP_AT + 13, ACK | URG},
        {TCP_AT + 13, ACK | 0x40},
        {TCP_AT + 13, ACK | 0x80}, /* of congestion */
    };
    begin();
    for (unsigned i = 0; i < ARRAY_COUNT(others); i++) {
        uint8_t frame[FRAME_MAX] = {0};
        (void)client_frame(&speaker, &(struct spoken){0}, frame);
        frame[others[i].at] = others[i].value;
        fake_card_deliver(frame, SHORTEST, 0);
        assert_true(is_told());
        take_acks(1);
    }
    end();
}

TEST(what_a_client_may_say_besides_is_told_at_once) {
    static const uint8_t nops[4] = {1, 1, 1, 1};
    static const struct spoken others[] = {
        {.flags = SYN},
        {.flags = FIN | ACK},
        {.flags = RST},
        {.flags = RST | ACK},
        {.data = "x", .bytes = 1},
        {.data = "a longer one", .bytes = 12},
        {.options = nops, .option_bytes = sizeof nops},
        {.ip_option_bytes = 4},
    };
    bool is_sum_known = false;
    begin();
    for (unsigned i = 0; i < ARRAY_COUNT(others); i++) {
        deliver(&others[i]);
        assert_true(is_told());
        pbuf_free(virtio_net_receive(net, &is_sum_known));
    }
    end();
}

TEST(one_look_at_several_frames_tells_of_any_that_may_not_wait) {
    enum { FRAMES = 4 };
    begin();
    for (unsigned which = 0; which < FRAMES; which++) {
        for (unsigned i = 0; i < FRAMES; i++) {
            struct spoken spoken = i == which ? request : (struct spoken){0};
            spoken.ack_skew = i;
            deliver(&spoken);
        }
        assert_true(is_told());
        assert_true(is_told()); /* as long as it is there */
        take_acks(FRAMES);
    }
    end();
}

TEST(so_many_acknowledgements_wait_and_no_more) {
    begin();
    for (unsigned i = 0; i < MOST; i++) {
        deliver_ack(i);
        assert_false(is_told());
    }
    deliver_ack(MOST);
    assert_true(is_told());
    take_acks(MOST + 1);
    for (unsigned i = 0; i < MOST; i++) { /* at a time */
        deliver_ack(i);
    }
    assert_false(is_told());
    take_acks(MOST);
    for (unsigned i = 0; i <= MOST; i++) {
        deliver_ack(i);
    }
    assert_true(is_told());
    take_acks(MOST + 1);
    end();
}

TEST(where_the_ring_s_indices_wrap_they_wait_and_are_told_as_well) {
    enum { WAITING = 4 };
    begin();
    for (unsigned i = 0; i < UINT16_MAX - 1; i++) {
        deliver_ack(0);
        take_acks(1);
    }
    for (unsigned i = 0; i < WAITING; i++) {
        deliver_ack(i);
        assert_false(is_told());
    }
    struct spoken last = request;
    last.ack_skew = WAITING;
    deliver(&last);
    assert_true(is_told());
    take_acks(WAITING + 1);
    end();
}

TEST(without_leave_an_acknowledgement_is_told_at_once) {
    begin();
    deliver_ack(0);
    assert_false(is_told());
    virtio_net_let_acks_wait(net, false);
    deliver_ack(1);
    assert_true(is_told());
    take_acks(2);
    deliver_ack(0);
    assert_true(is_told());
    virtio_net_let_acks_wait(net, true);
    assert_false(is_told());
    take_acks(1);
    end();
}

/* It is taken, the device is done with, and nobody is told again. */
static void expect_end_of_device(void) {
    bool is_sum_known = false;
    assert_true(is_told());
    assert_null(virtio_net_receive(net, &is_sum_known));
    assert_int_equal(card.status, VIRTIO_STATUS_FAILED);
    assert_false(is_told());
    end();
}

TEST(a_buffer_that_was_never_given_is_told_at_once) {
    begin();
    fake_card_break_receive();
    expect_end_of_device();
}

TEST(a_buffer_given_back_twice_is_told_at_once) {
    begin();
    uint16_t head = device_ring_peek(&card.receive, 0);
    bool is_sum_known = false;
    deliver_ack(0);
    assert_false(is_told());
    pbuf_free(virtio_net_receive(net, &is_sum_known));
    device_ring_complete(&card.receive, head, HEADERS + sizeof(struct net_header));
    expect_end_of_device();
}

TEST(more_bytes_than_a_buffer_has_are_told_at_once) {
    begin();
    device_ring_complete(&card.receive, device_ring_take(&card.receive), UINT32_MAX);
    expect_end_of_device();
}

TEST(more_buffers_than_were_given_are_told_at_once) {
    begin();
    device_ring_publish(&card.receive, 0x8000);
    expect_end_of_device();
}

/* Whatever lies behind it in the ring. */
TEST(a_frame_that_makes_no_sense_is_told_at_once) {
    begin();
    fake_card_claim(1, sizeof(struct net_header) + 1);
    deliver(&request);
    expect_end_of_device();
}

/* --- The next interrupt --- */

static uint16_t used_event(const struct device_ring *ring) {
    uint16_t index = 0;
    memcpy(&index, ring->available + 4 + 2 * (size_t)ring->size, sizeof index);
    return index;
}

static uint16_t events_asleep[2]; /* of the rings for receiving and sending */

/* So many looks before a sleep, in one test, are none that ends in one. */
static void look_before_sleep(void *unused) {
    static unsigned looks;
    (void)unused;
    assert_true(looks++ < 100);
}

static void stop_asleep(void *unused, uint64_t deadline_ns) {
    (void)unused;
    (void)deadline_ns;
    events_asleep[0] = used_event(&card.receive);
    events_asleep[1] = used_event(&card.send);
    scheduler_stop();
}

TEST(asleep_the_device_interrupts_for_what_comes_behind_those_that_wait) {
    begin_with(VIRTIO_F_EVENT_IDX, CARD_RING);
    scheduler_set_sleep_barrier(look_before_sleep, NULL);
    host_set_idle(stop_asleep, NULL);
    for (uint16_t i = 0; i < 3; i++) {
        scheduler_run();
        assert_int_equal(events_asleep[0], i);
        assert_int_equal(used_event(&card.receive), (uint16_t)(i - 1));
        deliver_ack(i);
    }
    assert_false(event.is_set);
    take_acks(3);
    end();
}

TEST(the_device_interrupts_for_room_when_somebody_wants_it) {
    begin_with(VIRTIO_F_EVENT_IDX, SMALL_RING);
    host_set_idle(stop_asleep, NULL);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, SHORTEST, PBUF_RAM);
    memset(frame->payload, 0, SHORTEST);
    for (unsigned i = 0; i < SMALL_RING; i++) {
        assert_int_equal(virtio_net_send(net, frame, UINT16_MAX), 0);
        virtio_net_flush(net);
    }
    scheduler_run();
    assert_int_equal(events_asleep[1], UINT16_MAX); /* it has passed */
    assert_int_equal(virtio_net_send(net, frame, UINT16_MAX), -EAGAIN);
    scheduler_run();
    assert_int_equal(events_asleep[1], 0);
    static uint8_t sent[CARD_FRAME_MAX];
    assert_int_equal(fake_card_take(sent), SHORTEST);
    assert_true(is_told());
    assert_int_equal(fake_card_take(sent), SHORTEST);
    virtio_net_flush(net);
    pbuf_free(frame);
    end();
}

/* --- Who waits for none --- */

static const struct world_options plain = {0};
static const uint8_t mss_1460[4] = {2, 4, 1460 >> 8, 1460 & 0xff};
static struct client clients[2];

static void expect(const struct client *client, enum stream_outlook outlook) {
    client->stream->ops->expect(client->stream, outlook);
}

static void connect(unsigned which) {
    client_connect(&clients[which], (uint16_t)(40000 + which), mss_1460, sizeof mss_1460);
    assert_non_null(clients[which].stream);
    assert_false(tcp_streams_await_no_acks()); /* nobody has said anything of it */
    expect(&clients[which], STREAM_HAS_REPLIED);
}

static void all_have_replied(void) {
    assert_false(tcp_streams_await_no_acks());
    connect(0);
    assert_true(tcp_streams_await_no_acks());
    connect(1);
    assert_true(tcp_streams_await_no_acks());
    for (unsigned i = 0; i < ARRAY_COUNT(clients); i++) {
        expect(&clients[i], STREAM_WILL_REPLY);
        assert_false(tcp_streams_await_no_acks());
        expect(&clients[i], STREAM_MAY_REPLY);
        assert_false(tcp_streams_await_no_acks());
        expect(&clients[i], STREAM_HAS_REPLIED);
        assert_true(tcp_streams_await_no_acks());
    }
}

TEST(when_all_have_replied_nobody_waits_for_acknowledgements) {
    world_run(&plain, all_have_replied);
}

static void not_yet_sent(void) {
    connect(0);
    struct stream *stream = clients[0].stream;
    assert_int_equal(stream->ops->send(stream, world_text, 100), 100);
    assert_false(tcp_streams_await_no_acks());
    stream->ops->flush(stream);
    assert_null(pcb_of(&clients[0])->unsent);
    assert_true(tcp_streams_await_no_acks()); /* that it is not acknowledged is nobody's concern */
    client_acknowledge(&clients[0], 100);
    assert_true(tcp_streams_await_no_acks());
}

TEST(what_is_not_sent_yet_waits_for_acknowledgements) {
    world_run(&plain, not_yet_sent);
}

static void without_room(void) {
    connect(0);
    struct tcp_stream *tcp = (struct tcp_stream *)clients[0].stream;
    tcp->was_refused = true;
    assert_false(tcp_streams_await_no_acks());
    tcp->was_refused = false;
    tcp->lacks_memory = true;
    assert_false(tcp_streams_await_no_acks());
    tcp->lacks_memory = false;
    assert_true(tcp_streams_await_no_acks());
}

TEST(who_was_refused_or_lacks_memory_waits_for_acknowledgements) {
    world_run(&plain, without_room);
}

static void closing(void) {
    connect(0);
    connect(1);
    client_reply(&clients[0], 0, 100);
    assert_true(tcp_streams_await_no_acks());
    struct tcp_pcb *pcb = pcb_of(&clients[0]);
    client_close(&clients[0], false);
    world_settle();
    assert_int_equal(pcb->state, ESTABLISHED); /* the last bytes are to be acknowledged first */
    assert_null(pcb->unsent);
    assert_false(tcp_streams_await_no_acks());
    client_acknowledge(&clients[0], 100);
    assert_int_equal(world_last_heard()->flags, FIN | ACK);
    assert_false(tcp_streams_await_no_acks()); /* nor without a stream */
    client_say(&clients[0], &(struct spoken){.flags = RST});
    assert_true(tcp_streams_await_no_acks());
}

TEST(who_closes_waits_for_acknowledgements) {
    world_run(&plain, closing);
}

static void closed_by_the_peer(void) {
    connect(0);
    client_say(&clients[0], &(struct spoken){.flags = FIN | ACK});
    clients[0].at++;
    assert_int_equal(pcb_of(&clients[0])->state, CLOSE_WAIT);
    expect(&clients[0], STREAM_HAS_REPLIED);
    assert_false(tcp_streams_await_no_acks());
}

TEST(where_the_peer_has_closed_acknowledgements_do_not_wait) {
    world_run(&plain, closed_by_the_peer);
}

/* Nobody wakes the network but the card. */
static void tell(const struct client *client, const struct spoken *spoken) {
    uint8_t frame[FRAME_MAX];
    fake_card_deliver(frame, client_frame(client, spoken, frame), 0);
    task_sleep_until(arch_clock_ns() + 50 * NS_PER_US);
}

static void handshake(void) {
    struct client late = {.port = 41000, .window = UINT16_MAX, .at = 1000};
    connect(0);
    client_say(&late, &(struct spoken){.flags = SYN});
    late.at++;
    late.due = world_last_heard()->seq + 1;
    assert_false(tcp_streams_await_no_acks());
    tell(&late, &(struct spoken){0});
    assert_int_equal(world.stream_count, 2);
}

TEST(a_handshake_waits_for_its_last_acknowledgement) {
    world_run(&plain, handshake);
}

/* --- Together --- */

static void replied(void) {
    connect(0);
    client_reply(&clients[0], 0, 100);
    clients[0].due += 100;
    tell(&clients[0], &(struct spoken){0});
    assert_non_null(pcb_of(&clients[0])->unacked);
    assert_int_equal(scheduler_get_stats()->rescued, 0);
    tell(&clients[0], &(struct spoken){.data = world_text, .bytes = 10});
    assert_null(pcb_of(&clients[0])->unacked);
    client_expect(&clients[0], 0, 10);
    clients[0].at += 10;
    client_reply(&clients[0], 0, 100);
    expect(&clients[0], STREAM_MAY_REPLY);
    world_settle();
    clients[0].due += 100;
    tell(&clients[0], &(struct spoken){0});
    assert_null(pcb_of(&clients[0])->unacked);
}

TEST(a_reply_s_acknowledgement_is_taken_with_the_next_request) {
    world_run(&plain, replied);
}

/* Far from sending anything again: lwIP's timers look first whether it lies there. */
static void at_leisure(void) {
    connect(0);
    client_reply(&clients[0], 0, 100);
    clients[0].due += 100;
    world_forget_heard();
    tell(&clients[0], &(struct spoken){0});
    task_sleep_until(arch_clock_ns() + 2000 * NS_PER_MS);
    (void)world_listen(UINT_MAX); /* nothing is what there should be */
    assert_null(pcb_of(&clients[0])->unacked);
    assert_int_equal(world.heard_count, 0);
    assert_int_equal(scheduler_get_stats()->rescued, 0);
}

TEST(what_lies_acknowledged_in_the_ring_is_not_sent_again) {
    world_run(&plain, at_leisure);
}
