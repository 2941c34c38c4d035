/* See net_world.h. */
#include "tests/unit/net_world.h"

#include <limits.h>
#include <lwip/etharp.h>
#include <lwip/memp.h>
#include <lwip/stats.h>
#include <lwip/timeouts.h>
#include <string.h>

#include "core/config.h"
#include "core/mem/heap.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/counters.h"
#include "net/stack.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/lwip_abort.h"
#include "tests/network_words.h"
#include "tests/unit/unit.h"

enum {
    HEAP_MAX = 4 * 1024 * 1024,
    IP_BYTES = 20,
    TCP_BYTES = 20,
    ARP_BYTES = 14 + 28,
    TCP_CHECKSUM_AT = 16,
    CLOSE_ROUNDS = 40, /* of 500 ms: longer than a stream may take to close */
};

struct net_world world;
uint8_t world_text[WORLD_TEXT_BYTES];

static uint8_t heap_memory[HEAP_MAX] __attribute__((aligned(4096)));
static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
static const uint8_t client_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x57};
static void (*body_now)(void);
static bool is_left_over; /* a test has failed half-way: its connections are still there */

/* --- Sums, not the appliance's own --- */

static uint32_t sum_of(const uint8_t *p, size_t bytes, uint32_t sum) {
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        sum += get16(p + i);
    }
    sum += bytes % 2 != 0 ? (uint32_t)p[bytes - 1] << 8 : 0;
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* With its checksum in it: all ones when it is right. */
static uint32_t transport_sum(const uint8_t *ip) {
    uint32_t header = (ip[0] & 0x0fu) * 4u;
    uint32_t bytes = get16(ip + 2) - header;
    return sum_of(ip + header, bytes, sum_of(ip + 12, 8, ip[9] + bytes));
}

void world_mend(uint8_t *frame) {
    uint8_t *ip = frame + IP_AT;
    uint32_t header = (ip[0] & 0x0fu) * 4u;
    put16(ip + 10, 0);
    put16(ip + 10, ~sum_of(ip, header, 0));
    put16(ip + header + TCP_CHECKSUM_AT, 0);
    put16(ip + header + TCP_CHECKSUM_AT, ~transport_sum(ip));
}

/* --- Listening --- */

/* Whoever is asked for, it is here: clients have one address for all that is behind the wire. */
static void answer_arp(const uint8_t *question) {
    uint8_t frame[ARP_BYTES];
    memcpy(frame, question, sizeof frame);
    memcpy(frame, guest_mac, 6);
    memcpy(frame + 6, client_mac, 6);
    frame[21] = 2;                     /* a reply */
    memcpy(frame + 22, client_mac, 6); /* from */
    memcpy(frame + 28, question + 38, 4);
    memcpy(frame + 32, guest_mac, 6); /* to */
    memcpy(frame + 38, question + 28, 4);
    fake_card_deliver(frame, sizeof frame, 0);
}

/* As the device does what its header asks for (VIRTIO 1.3, 5.1.6.2). */
static void complete_sum(uint8_t *frame, size_t bytes) {
    assert_true((card.transport.features & CARD_CSUM) != 0);
    assert_int_equal(card.header.checksum_start, TCP_AT);
    assert_int_equal(card.header.checksum_offset, TCP_CHECKSUM_AT);
    put16(frame + TCP_AT + TCP_CHECKSUM_AT, ~sum_of(frame + TCP_AT, bytes - TCP_AT, 0));
}

static void note_segment(uint8_t *frame, size_t bytes) {
    const uint8_t *ip = frame + IP_AT;
    const uint8_t *tcp = frame + TCP_AT;
    bool is_cut = card.header.gso_type != NET_HEADER_GSO_NONE;
    assert_true(bytes >= TCP_AT + TCP_BYTES && ip[0] == 0x45);
    assert_int_equal(get16(ip + 2), bytes - IP_AT);
    assert_int_equal(sum_of(ip, IP_BYTES, 0), 0xffff);
    if ((card.header.flags & NET_HEADER_NEEDS_CHECKSUM) != 0) {
        complete_sum(frame, bytes);
    }
    assert_true(!is_cut || (card.transport.features & CARD_HOST_TSO4) != 0);
    assert_true(!is_cut || card.header.gso_size > 0);
    assert_true(!is_cut || (card.header.flags & NET_HEADER_NEEDS_CHECKSUM) != 0);
    assert_int_equal(transport_sum(ip), 0xffff);
    size_t header = (size_t)(tcp[12] >> 4) * 4;
    if ((tcp[13] & SYN) != 0) {
        assert_true(header >= TCP_BYTES + 4 && tcp[TCP_BYTES] == 2 && tcp[TCP_BYTES + 1] == 4);
        world.mss_told = get16(tcp + TCP_BYTES + 2); /* lwIP says it first */
    }
    assert_true(world.heard_count < WORLD_HEARD_MAX);
    struct heard *heard = &world.heard[world.heard_count++];
    *heard = (struct heard){.port = get16(tcp + 2),
                            .flags = tcp[13],
                            .window = get16(tcp + 14),
                            .seq = get32(tcp + 4),
                            .ack = get32(tcp + 8),
                            .bytes = bytes - TCP_AT - header,
                            .cut = is_cut ? card.header.gso_size : 0};
    assert_true(heard->bytes <= sizeof heard->data || world.hears_beginnings);
    memcpy(heard->data, tcp + header,
           heard->bytes < sizeof heard->data ? heard->bytes : sizeof heard->data);
}

static bool listen_once(void) {
    static uint8_t frame[CARD_FRAME_MAX];
    size_t bytes = fake_card_take(frame);
    if (bytes >= ARP_BYTES && get16(frame + 12) == 0x0806 && frame[21] == 1 &&
        memcmp(frame + 28, frame + 38, 4) != 0) {
        if (!world.is_silent) {
            answer_arp(frame);
        }
    } else if (bytes >= ARP_BYTES && get16(frame + 12) == 0x0806 && frame[21] == 2) {
        world.arp_answers++;
    } else if (bytes > IP_AT + IP_BYTES && get16(frame + 12) == 0x0800 && frame[IP_AT + 9] == 6) {
        note_segment(frame, bytes);
    }
    return bytes > 0;
}

unsigned world_listen(unsigned most) {
    unsigned count = 0;
    while (count < most && listen_once()) {
        count++;
    }
    return count;
}

void world_settle(void) {
    do {
        net_wake();
        task_sleep_until(arch_clock_ns() + 50 * NS_PER_US);
    } while (!world.is_deaf && world_listen(UINT_MAX) > 0);
}

void world_pass_ms(uint64_t ms) {
    task_sleep_until(arch_clock_ns() + ms * NS_PER_MS);
    world_settle();
}

void world_forget_heard(void) {
    world.heard_count = 0;
}

const struct heard *world_last_heard(void) {
    assert_true(world.heard_count > 0);
    return &world.heard[world.heard_count - 1];
}

/* --- Speaking --- */

size_t client_frame(const struct client *client, const struct spoken *spoken, uint8_t *frame) {
    size_t ip_bytes = IP_BYTES + spoken->ip_option_bytes;
    size_t header = TCP_BYTES + spoken->option_bytes;
    uint8_t *ip = frame + IP_AT;
    uint8_t *tcp = ip + ip_bytes;
    assert_true(IP_AT + ip_bytes + header + spoken->bytes <= FRAME_MAX);
    memcpy(frame, guest_mac, 6);
    memcpy(frame + 6, client_mac, 6);
    put16(frame + 12, 0x0800);
    memset(ip, 0, ip_bytes + header);
    ip[0] = (uint8_t)(0x40 | ip_bytes / 4);
    put16(ip + 2, (uint32_t)(ip_bytes + header + spoken->bytes));
    ip[8] = 64;
    ip[9] = 6;
    put32(ip + 12, WORLD_CLIENT);
    put32(ip + 16, WORLD_GUEST);
    memset(ip + IP_BYTES, 1, spoken->ip_option_bytes);
    put16(tcp, client->port);
    put16(tcp + 2, WORLD_PORT);
    put32(tcp + 4, client->at + spoken->seq_skew);
    tcp[12] = (uint8_t)(header / 4 << 4);
    tcp[13] = spoken->flags != 0 ? spoken->flags : ACK;
    put32(tcp + 8, (tcp[13] & ACK) != 0 ? client->due + spoken->ack_skew : 0);
    put16(tcp + 14, client->window);
    if (spoken->option_bytes > 0) {
        memcpy(tcp + TCP_BYTES, spoken->options, spoken->option_bytes);
    }
    if (spoken->bytes > 0) {
        memcpy(tcp + header, spoken->data, spoken->bytes);
    }
    world_mend(frame);
    return IP_AT + ip_bytes + header + spoken->bytes;
}

void world_deliver(const uint8_t *frame, size_t bytes) {
    fake_card_deliver(frame, bytes, 0);
    world_settle();
}

void client_say(const struct client *client, const struct spoken *spoken) {
    uint8_t frame[FRAME_MAX];
    world_deliver(frame, client_frame(client, spoken, frame));
}

void client_send(struct client *client, const void *data, size_t bytes) {
    client_say(client, &(struct spoken){.flags = ACK | PSH, .data = data, .bytes = bytes});
    client->at += (uint32_t)bytes;
}

void client_acknowledge(struct client *client, size_t bytes) {
    client->due += (uint32_t)bytes;
    client_say(client, &(struct spoken){0});
}

size_t client_take_in(struct client *client, size_t at) {
    size_t came = 0;
    for (unsigned i = 0; i < world.heard_count; i++) {
        const struct heard *heard = &world.heard[i];
        size_t begin = heard->bytes < sizeof heard->data ? heard->bytes : sizeof heard->data;
        assert_int_equal(heard->seq, client->due + came);
        assert_memory_equal(heard->data, world_text + at + came, begin);
        came += heard->bytes;
    }
    world_forget_heard();
    client_acknowledge(client, came);
    return came;
}

void client_connect(struct client *client, uint16_t port, const void *options, size_t bytes) {
    unsigned before = world.stream_count;
    uint16_t window = world.window != 0 ? world.window : UINT16_MAX;
    *client = (struct client){.port = port, .window = window, .at = 1000};
    world_forget_heard();
    client_say(client, &(struct spoken){.flags = SYN, .options = options, .option_bytes = bytes});
    const struct heard *answer = world_last_heard();
    assert_int_equal(answer->flags, SYN | ACK);
    assert_int_equal(answer->ack, client->at + 1);
    client->at++;
    client->due = answer->seq + 1;
    client_say(client, &(struct spoken){0});
    client->stream = world.stream_count > before ? world.streams[before] : NULL;
}

/* Only lwIP counts packets of IP; both ways count segments. */
enum way way_of(const uint8_t *frame, size_t bytes) {
    unsigned ip_before = lwip_stats.ip.recv;
    unsigned tcp_before = lwip_stats.tcp.recv;
    world_deliver(frame, bytes);
    if (lwip_stats.ip.recv != ip_before) {
        return LONG_WAY;
    }
    return lwip_stats.tcp.recv != tcp_before ? SHORT_WAY : NO_WAY;
}

enum way way_of_spoken(const struct client *client, const struct spoken *spoken) {
    uint8_t frame[FRAME_MAX];
    return way_of(frame, client_frame(client, spoken, frame));
}

/* --- The listener --- */

static bool accept_stream(struct stream *stream, void *unused) {
    (void)unused;
    if (world.refuses) {
        return false;
    }
    assert_true(world.stream_count < WORLD_STREAMS);
    world.streams[world.stream_count++] = stream;
    if (world.greeting > 0) {
        assert_int_equal(stream->ops->send(stream, world_text, world.greeting), world.greeting);
    }
    return true;
}

static void close_stream(struct stream *stream, bool abort) {
    stream->changed = NULL;
    stream->ops->close(stream, abort);
}

struct tcp_pcb *pcb_of(const struct client *client) {
    return ((struct tcp_stream *)client->stream)->pcb;
}

size_t client_received(const struct client *client) {
    return client->stream->ops->received(client->stream);
}

void client_expect(const struct client *client, size_t at, size_t bytes) {
    static uint8_t got[WORLD_TEXT_BYTES];
    assert_int_equal(client_received(client), bytes);
    assert_true(at <= sizeof got && bytes <= sizeof got - at);
    client->stream->ops->peek(client->stream, got, bytes);
    assert_memory_equal(got, world_text + at, bytes);
}

void client_expect_heard(const struct client *client, size_t bytes) {
    const struct heard *heard = world_last_heard();
    assert_int_equal(heard->port, client->port);
    assert_int_equal(heard->seq, client->due);
    assert_int_equal(heard->bytes, bytes);
    assert_memory_equal(heard->data, world_text, bytes);
}

void client_drop(const struct client *client) {
    if (client_received(client) > 0) {
        client->stream->ops->drop(client->stream, client_received(client));
    }
    world_settle();
}

void client_reply(const struct client *client, size_t at, size_t bytes) {
    struct stream *stream = client->stream;
    assert_int_equal(stream->ops->send(stream, world_text + at, bytes), bytes);
    stream->ops->flush(stream);
    world_settle();
}

/* Again only lwIP counts packets of IP. */
enum way way_of_reply(const struct client *client, size_t bytes) {
    STAT_COUNTER ip_before = lwip_stats.ip.xmit;
    STAT_COUNTER tcp_before = lwip_stats.tcp.xmit;
    client_reply(client, 0, bytes);
    STAT_COUNTER long_way = (STAT_COUNTER)(lwip_stats.ip.xmit - ip_before);
    STAT_COUNTER segments = (STAT_COUNTER)(lwip_stats.tcp.xmit - tcp_before);
    assert_true(long_way == 0 || long_way == segments);
    return segments == 0 ? NO_WAY : long_way > 0 ? LONG_WAY : SHORT_WAY;
}

void client_close(struct client *client, bool abort) {
    for (unsigned i = 0; i < world.stream_count; i++) {
        if (world.streams[i] == client->stream) {
            world.streams[i] = world.streams[--world.stream_count];
            break;
        }
    }
    close_stream(client->stream, abort);
    client->stream = NULL;
}

/* --- One life --- */

static void abandon_all(void) {
    while (world.stream_count > 0) {
        close_stream(world.streams[--world.stream_count], true);
    }
    tcp_stream_stop_listening();
    lwip_abort_all();
    for (unsigned i = 0; i < CLOSE_ROUNDS && tcp_streams_count() > 0; i++) {
        world_forget_heard();
        world_pass_ms(500);
    }
}

static void expect_nothing_kept(void) {
    static const memp_t pools[] = {MEMP_TCP_PCB, MEMP_TCP_SEG, MEMP_PBUF, MEMP_TCP_PCB_LISTEN};
    assert_int_equal(tcp_streams_count(), 0);
    for (unsigned i = 0; i < ARRAY_COUNT(pools); i++) {
        assert_int_equal(lwip_stats.memp[pools[i]]->used, 0);
    }
}

static void live(void *unused) {
    (void)unused;
    world_settle();
    body_now();
    world.is_deaf = false;
    abandon_all();
    world_pass_ms(200); /* lwIP's timer has to see that there is nobody, or it never starts again */
    etharp_cleanup_netif(netif_default);
    world_settle();
}

int world_start_network(void) {
    *sys_timeouts_get_next_timeout() = NULL; /* of the life before */
    return net_start();
}

void world_run(const struct world_options *options, void (*body)(void)) {
    if (is_left_over) {
        fail_msg("what the test before has left half-way is still there");
    }
    is_left_over = true;
    memset(&world, 0, sizeof world);
    world.hears_beginnings = options->hears_beginnings;
    memset(&net_counters, 0, sizeof net_counters);
    for (size_t i = 0; i < sizeof world_text; i++) {
        world_text[i] = (uint8_t)(i * 7 + i / 251);
    }
    if (options->heap_bytes != 0) {
        heap_forget();
        assert_true(options->heap_bytes <= sizeof heap_memory);
        assert_int_equal(heap_init(heap_memory, options->heap_bytes), 0);
    }
    fake_card_set_up(options->features);
    card.ring_max = options->ring != 0 ? options->ring : card.ring_max;
    if (options->mtu != 0) {
        fake_card_set_mtu(options->mtu);
    }
    assert_int_equal(fake_card_probe(), 0);
    assert_int_equal(config_parse("ip=10.0.2.15/24 gw=10.0.2.2"), 0);
    assert_int_equal(config_parse(options->config != NULL ? options->config : ""), 0);
    assert_int_equal(world_start_network(), 0);
    if (!options->is_mute) {
        assert_int_equal(tcp_stream_listen(WORLD_PORT, accept_stream, NULL), 0);
    }
    body_now = body;
    unit_run_task(live, NULL);
    virtio_net_abandon(virtio_net_first());
    tcp_streams_run();
    expect_nothing_kept();
    net_forget();
    fake_card_unplug();
    is_left_over = false;
}
