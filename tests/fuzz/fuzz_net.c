/* The network: the driver, lwIP and the streams over it, between clients that say anything and a
 * device that may lie. The server is a small one of our own: it echoes, keeps silent, reads late or
 * talks.
 *
 * What must hold: a stream delivers what its client has said, in order, each byte once; what is
 * sent is what the server gave, whenever and however often it is sent, and read from memory that is
 * still its; checksums, segment sizes, windows and acknowledgements are right; and when all clients
 * are gone nothing is kept: no stream, buffer, mark, nor anything in lwIP's pools.
 *
 *   options (2 bytes), features, configuration if wanted; then steps of clients, device and time.
 */
#include <lwip/etharp.h>
#include <lwip/memp.h>
#include <lwip/stats.h>
#include <lwip/timeouts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/host/host.h"
#include "config/limits.h"
#include "core/config.h"
#include "core/log.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/counters.h"
#include "net/stack.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"
#include "tests/fuzz/net_device.h"
#include "tests/fuzz/net_peer.h"
#include "tests/lwip_abort.h"

enum {
    HEAP_BYTES = 4 * 1024 * 1024,
    HEAP_BYTES_SMALL = 1024 * 1024, /* where buffers run short */
    WORLD_STACK_BYTES = 256 * 1024,
    CONNECTIONS = 8,
    TURNS_MAX = 32, /* of a connection, in one round */
    CHUNK_BYTES = 16 * 1024,
    HEADER_BYTES = 16,
    PIECE_BYTES = 6000,
    SEGMENTS_MAX = 64,
    ANSWERS_MAX = 16,
    DRAIN_ROUNDS = 400, /* of 50 ms: longer than a stream may take to close */
    STEPS_MAX = 600,
    /* To a peer that takes a few bytes in a segment no more is said at once: thousands of segments
     * take the time of thousands of inputs. */
    SEGMENT_SMALL = 200,
    CHUNK_BYTES_SMALL = 600,
    TIME_SHIFTS = 14,
};

/* Low bits of the client's port. */
enum kind { ECHO, SILENT, LATE, TALKER };

struct chunk {
    struct stream_parcel parcel; /* first: released casts back */
    size_t bytes;
    size_t sent;
    uint8_t data[];
};

struct connection {
    struct stream *stream;
    uint32_t address;
    uint16_t port;
    uint32_t in_at;
    uint32_t out_at;
    bool may_read; /* a LATE one, once */
    struct chunk *waiting;
    struct stream_loan loan;
};

static struct fuzz_input input;
static struct connection connections[CONNECTIONS];
static unsigned chunks_alive;
static bool is_ending;
static bool holds_frames; /* the device does not send */
static bool is_done;
static bool is_relied_on; /* no lie so far: what was promised can be asked for */
static uint32_t wire_segment;
static struct event world_event;

/* --- The server --- */

static void chunk_released(struct stream_mark *mark) {
    FUZZ_CHECK(chunks_alive > 0);
    chunks_alive--;
    free(mark);
}

static bool is_believed(const struct connection *connection) {
    const struct net_peer *peer = net_peer_of(connection->address, connection->port);
    return is_relied_on && peer != NULL && peer->is_trusted;
}

static enum kind kind_of(const struct connection *connection) {
    return (enum kind)(connection->port % 4);
}

static struct chunk *new_chunk(size_t bytes) {
    struct chunk *chunk = malloc(sizeof *chunk + bytes);
    FUZZ_CHECK(chunk != NULL);
    *chunk = (struct chunk){.bytes = bytes, .parcel.mark.released = chunk_released};
    chunks_alive++;
    return chunk;
}

/* Header and data at once, or all that is left of the data. */
static bool send_parcel(struct stream *stream, struct chunk *chunk) {
    size_t left = chunk->bytes - chunk->sent;
    size_t head = chunk->sent == 0 && left > HEADER_BYTES ? HEADER_BYTES : 0;
    struct segment header = {chunk->data, (uint32_t)head};
    struct segment data = {chunk->data + chunk->sent + head, (uint32_t)(left - head)};
    return stream->ops->send_whole(stream, header, data, &chunk->parcel);
}

/* Sends what waits; its memory is the stream's until the mark. */
static bool send_waiting(struct connection *connection) {
    struct chunk *chunk = connection->waiting;
    struct stream *stream = connection->stream;
    if (chunk == NULL || stream->state == STREAM_DEAD) {
        return chunk == NULL;
    }
    while (chunk->sent < chunk->bytes) {
        if (chunk->bytes % 4 != 0 && send_parcel(stream, chunk)) {
            connection->waiting = NULL;
            return true;
        }
        /* As a server does: a header, then what it is for, in pieces. */
        size_t piece = chunk->sent == 0 ? HEADER_BYTES : PIECE_BYTES;
        piece = piece < chunk->bytes - chunk->sent ? piece : chunk->bytes - chunk->sent;
        size_t accepted = stream->ops->send(stream, chunk->data + chunk->sent, piece);
        FUZZ_CHECK(accepted <= piece);
        chunk->sent += accepted;
        if (accepted < piece) {
            return false;
        }
    }
    stream->ops->mark(stream, &chunk->parcel.mark);
    connection->waiting = NULL;
    return true;
}

static void check_content(const struct connection *connection, const uint8_t *data, size_t bytes) {
    FUZZ_CHECK(
        !is_believed(connection) ||
        net_content_is(data, connection->address, connection->port, connection->in_at, bytes));
}

static size_t chunk_bytes(const struct connection *connection) {
    const struct net_peer *peer = net_peer_of(connection->address, connection->port);
    return peer != NULL && peer->mss < SEGMENT_SMALL ? CHUNK_BYTES_SMALL : CHUNK_BYTES;
}

/* Reads by one of the ways that there are; what is echoed is copied. False when nothing was read.
 */
static bool read_some(struct connection *connection) {
    struct stream *stream = connection->stream;
    struct segment segments[SEGMENTS_MAX];
    size_t bytes = stream->ops->received(stream);
    bytes = bytes % 5 == 0 ? (bytes + 1) / 2 : bytes; /* not always all that has come */
    bytes = bytes < chunk_bytes(connection) ? bytes : chunk_bytes(connection);
    bool is_late = kind_of(connection) == LATE;
    if (bytes == 0 || connection->loan.stream != NULL || (is_late && !connection->may_read)) {
        return false;
    }
    struct chunk *chunk = new_chunk(bytes);
    int count = -1;
    if (bytes % 3 != 0) {
        count =
            stream->ops->take(stream, bytes, segments, 1 + bytes % SEGMENTS_MAX, &connection->loan);
    }
    if (count > 0) {
        size_t at = 0;
        for (int i = 0; i < count; i++) {
            memcpy(chunk->data + at, segments[i].data, segments[i].length);
            at += segments[i].length;
        }
        FUZZ_CHECK(at == bytes);
    } else {
        stream->ops->peek(stream, chunk->data, bytes);
        stream->ops->drop(stream, bytes);
    }
    check_content(connection, chunk->data, bytes);
    connection->in_at += (uint32_t)bytes;
    if (kind_of(connection) == SILENT || kind_of(connection) == TALKER) {
        chunk_released(&chunk->parcel.mark);
    } else {
        connection->waiting = chunk;
        connection->out_at += (uint32_t)bytes;
    }
    if (!is_late) {
        stream_return(&connection->loan);
    }
    connection->may_read = false;
    return true;
}

/* Says something without being asked. */
static bool talk(struct connection *connection) {
    if (kind_of(connection) != TALKER || connection->waiting != NULL || !connection->may_read) {
        return false;
    }
    size_t bytes = chunk_bytes(connection);
    struct chunk *chunk = new_chunk(bytes);
    net_content_copy(chunk->data, connection->address, connection->port, connection->out_at, bytes);
    connection->out_at += (uint32_t)bytes;
    connection->waiting = chunk;
    connection->may_read = false;
    return true;
}

/* A piece that was begun and cannot be finished goes when the stream goes. */
static void let_go(struct connection *connection, bool abort) {
    struct stream *stream = connection->stream;
    struct chunk *chunk = connection->waiting;
    stream->changed = NULL;
    stream_return(&connection->loan);
    if (chunk != NULL && chunk->sent > 0) {
        stream->ops->mark(stream, &chunk->parcel.mark);
    } else if (chunk != NULL) {
        chunk_released(&chunk->parcel.mark);
    }
    stream->ops->close(stream, abort);
    connection->stream = NULL;
}

static void run_connection(struct connection *connection) {
    struct stream *stream = connection->stream;
    for (unsigned i = 0; i < TURNS_MAX && send_waiting(connection); i++) {
        if (!read_some(connection) && !talk(connection)) {
            break;
        }
    }
    stream->ops->flush(stream);
    bool is_read = stream->ops->received(stream) == 0 && connection->waiting == NULL;
    stream->ops->expect(stream,
                        connection->waiting != NULL ? STREAM_WILL_REPLY : STREAM_HAS_REPLIED);
    if (!is_read && kind_of(connection) == LATE && stream->ops->gather_max(stream) > 4096) {
        stream->ops->gather(stream, 4096);
    }
    if (is_ending || stream->state == STREAM_DEAD) {
        let_go(connection, true);
    } else if (stream->state == STREAM_PEER_CLOSED && is_read) {
        let_go(connection, false);
    }
}

static bool work(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        if (connections[i].stream != NULL) {
            run_connection(&connections[i]);
        }
    }
    return false;
}

static bool accept_connection(struct stream *stream, void *unused) {
    unsigned port = 0;
    (void)unused;
    const char *colon = strrchr(stream->peer, ':');
    FUZZ_CHECK(colon != NULL && sscanf(colon, ":%u", &port) == 1 && port <= UINT16_MAX);
    for (unsigned i = 0; !is_ending && i < CONNECTIONS; i++) {
        if (connections[i].stream == NULL) {
            connections[i] = (struct connection){
                .stream = stream, .address = stream->peer_address, .port = (uint16_t)port};
            return true;
        }
    }
    return false;
}

/* --- The wire --- */

static struct {
    uint8_t frame[64];
    size_t bytes;
} answers[ANSWERS_MAX];
static unsigned answer_count;

static void keep_answer(const uint8_t *frame, size_t bytes) {
    if (answer_count < ANSWERS_MAX && bytes <= sizeof answers[0].frame) {
        memcpy(answers[answer_count].frame, frame, bytes);
        answers[answer_count++].bytes = bytes;
    }
}

static void hear(const struct net_header *header, const uint8_t *frame, size_t bytes) {
    if (is_relied_on) {
        net_peers_hear(header, frame, bytes, keep_answer);
    }
}

/* Time for the guest to do all that it can do at once. */
static void settle(void) {
    task_sleep_until(arch_clock_ns() + 50 * NS_PER_US);
    is_relied_on = is_relied_on && !net_device_has_lied();
    if (!holds_frames) {
        net_device_take(UINT32_MAX, hear);
    }
    while (answer_count > 0) {
        answer_count--;
        (void)net_device_deliver(answers[answer_count].frame, answers[answer_count].bytes, 0);
    }
    net_wake();
    task_sleep_until(arch_clock_ns() + 50 * NS_PER_US);
}

static uint8_t frame_now[NET_FRAME_BYTES_MAX];
static uint8_t frame_kept[NET_FRAME_BYTES_MAX];
static size_t kept_bytes;

static uint8_t good_flags(void) {
    bool vouches = (net_device_features() & NET_DEVICE_GUEST_CSUM) != 0;
    return vouches ? fuzz_u8(&input) & NET_HEADER_DATA_VALID : 0;
}

static struct net_peer *pick_peer(uint8_t word) {
    return &net_peers[word % NET_PEERS];
}

/* --- Steps --- */

static void step_connect(uint8_t word) {
    size_t option_bytes = fuzz_u8(&input) % 41;
    uint16_t window = fuzz_u16(&input);
    const uint8_t *options = fuzz_bytes(&input, &option_bytes);
    size_t bytes = net_peer_connect(pick_peer(word), word / NET_PEERS, (word & 0x80) != 0, window,
                                    options, option_bytes, frame_now);
    (void)net_device_deliver(frame_now, bytes, 0);
}

/* The handshake's end, and every acknowledgement that an honest client makes. */
static void step_acknowledge(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    struct net_segment segment = {.flags = FLAG_ACK, .at = peer->sent, .window = fuzz_u16(&input)};
    if (!peer->is_established) {
        return;
    }
    for (unsigned copies = 0; copies <= word >> 6; copies++) { /* three the same ask again */
        size_t bytes = net_peer_segment(peer, &segment, frame_now);
        (void)net_device_deliver(frame_now, bytes, good_flags());
    }
}

/* The stream goes on by so many bytes; in one large frame where the device may give such. */
static void step_say(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    uint32_t left = fuzz_u16(&input) % 8192;
    bool is_large = (net_device_features() & NET_DEVICE_GUEST_TSO4) != 0 && (word & 0x80) != 0;
    uint32_t most = is_large ? 8192 : wire_segment;
    if (!peer->is_established || peer->is_finished) {
        return;
    }
    while (left > 0) {
        uint16_t bytes = (uint16_t)(left < most ? left : most);
        struct net_segment segment = {
            .flags = FLAG_ACK | FLAG_PUSH, .at = peer->sent, .window = UINT16_MAX, .bytes = bytes};
        size_t length = net_peer_segment(peer, &segment, frame_now);
        if (!net_device_deliver(frame_now, length, is_large ? NET_HEADER_NEEDS_CHECKSUM : 0)) {
            return; /* lost; said again by step_say_elsewhere or not at all */
        }
        peer->sent += bytes;
        left -= bytes;
    }
}

/* Again, or beyond a gap: the content is right all the same. */
static void step_say_elsewhere(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    int32_t skew = (int8_t)fuzz_u8(&input) * 64;
    struct net_segment segment = {.flags = FLAG_ACK,
                                  .at = peer->sent + (uint32_t)skew,
                                  .window = UINT16_MAX,
                                  .bytes = fuzz_u16(&input) % (NET_WIRE_SEGMENT + 1)};
    if (!peer->is_established || peer->is_finished || (int32_t)segment.at < 0) {
        return;
    }
    (void)net_device_deliver(frame_now, net_peer_segment(peer, &segment, frame_now), 0);
}

/* One byte is another on the way: it must not get through. */
static void step_spoil(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    struct net_peer before = *peer;
    struct net_segment segment = {
        .flags = FLAG_ACK, .at = peer->sent, .window = UINT16_MAX, .bytes = 1000};
    size_t bytes = net_peer_segment(peer, &segment, frame_now);
    size_t at = 14 + fuzz_u16(&input) % (bytes - 14);
    uint8_t change = fuzz_u8(&input);
    /* Of the lengths a change may be one that makes the sum right; of the rest none is. */
    if (!peer->is_established || change == 0 || at < 14 + 4) {
        *peer = before;
        return;
    }
    frame_now[at] ^= change;
    *peer = before;
    (void)net_device_deliver(frame_now, bytes, 0);
}

/* Any flags, numbers and options. Most of it is not TCP, so nothing is expected of it. */
static void step_anything(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    struct net_segment segment = {.flags = fuzz_u8(&input),
                                  .at = peer->sent + (uint32_t)(int16_t)fuzz_u16(&input),
                                  .ack_skew = (uint32_t)(int16_t)fuzz_u16(&input),
                                  .window = fuzz_u16(&input),
                                  .bytes = fuzz_u16(&input) % (NET_WIRE_SEGMENT + 1)};
    segment.option_bytes = fuzz_u8(&input) % 41;
    segment.options = fuzz_bytes(&input, &segment.option_bytes);
    peer->is_trusted = false;
    (void)net_device_deliver(frame_now, net_peer_segment(peer, &segment, frame_now), 0);
}

static void step_leave(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    struct net_segment segment = {.flags = (word & 0x80) != 0 ? FLAG_RST | FLAG_ACK
                                                              : FLAG_FIN | FLAG_ACK,
                                  .at = peer->sent,
                                  .window = UINT16_MAX};
    if (!peer->is_established || peer->is_finished) {
        return;
    }
    size_t bytes = net_peer_segment(peer, &segment, frame_now);
    peer->is_finished = net_device_deliver(frame_now, bytes, 0);
}

static void step_raw(uint8_t word) {
    size_t wanted = fuzz_u16(&input) % 2048;
    const uint8_t *bytes = fuzz_bytes(&input, &wanted);
    memcpy(frame_now, bytes, wanted);
    if ((word & 1) != 0) {
        net_mend_checksums(frame_now, wanted);
    }
    net_peers_doubt(frame_now, wanted);
    (void)net_device_deliver(frame_now, wanted, word & 2 ? NET_HEADER_DATA_VALID : 0);
}

static void step_dhcp(void) {
    size_t option_bytes = fuzz_u16(&input) % 1024;
    const uint8_t *options = fuzz_bytes(&input, &option_bytes);
    (void)net_device_deliver(frame_now, net_dhcp_reply(options, option_bytes, frame_now), 0);
}

/* A frame waits while another passes it, or comes twice. */
static void step_keep(uint8_t word) {
    struct net_peer *peer = pick_peer(word);
    if (kept_bytes > 0) {
        (void)net_device_deliver(frame_kept, kept_bytes, 0);
        kept_bytes = (word & 0x80) != 0 ? kept_bytes : 0;
        return;
    }
    struct net_segment segment = {
        .flags = FLAG_ACK, .at = peer->sent, .window = UINT16_MAX, .bytes = 700};
    if (peer->is_established && !peer->is_finished) {
        kept_bytes = net_peer_segment(peer, &segment, frame_kept);
        peer->sent += segment.bytes;
    }
}

static void step_server(uint8_t word) {
    struct connection *connection = &connections[word % CONNECTIONS];
    connection->may_read = true;
    stream_return(&connection->loan);
    if ((word & 0x80) != 0 && connection->stream != NULL) {
        let_go(connection, (word & 0x40) != 0);
    }
}

static void step(void) {
    uint8_t kind = fuzz_u8(&input);
    uint8_t word = fuzz_u8(&input);
    switch (kind % 16) {
    case 0:
        step_connect(word);
        break;
    case 1:
    case 2:
        step_acknowledge(word);
        break;
    case 3:
    case 4:
        step_say(word);
        break;
    case 5:
        step_say_elsewhere(word);
        break;
    case 6:
        step_spoil(word);
        break;
    case 7:
        step_anything(word);
        break;
    case 8:
        step_leave(word);
        break;
    case 9:
        step_raw(word);
        break;
    case 10:
        step_dhcp();
        break;
    case 11:
        step_keep(word);
        break;
    case 12:
        step_server(word);
        break;
    case 13:
        holds_frames = (word & 1) != 0;
        net_device_take(word >> 1, hear);
        break;
    case 14:
        net_device_change(word, fuzz_u8(&input));
        break;
    default:
        if ((word & 0x80) != 0) {
            net_device_lie(&input);
        } else {
            task_sleep_until(arch_clock_ns() + (NS_PER_MS << (word % TIME_SHIFTS)));
        }
        break;
    }
}

/* --- One life --- */

static char dump[4096];
static size_t dump_bytes;

static size_t keep_dump(void *unused, const char *text, size_t bytes) {
    (void)unused;
    size_t room = sizeof dump - 1 - dump_bytes;
    size_t kept = bytes < room ? bytes : room;
    memcpy(dump + dump_bytes, text, kept);
    dump_bytes += kept;
    dump[dump_bytes] = '\0';
    return bytes;
}

/* What the status dump says of the network. */
static void read_dump(void) {
    log_flush();
    dump_bytes = 0;
    log_set_sink(keep_dump, NULL);
    net_dump();
    log_flush();
    fuzz_log_again();
}

static void expect_nothing_kept(void) {
    static const memp_t pools[] = {MEMP_TCP_PCB, MEMP_TCP_SEG, MEMP_PBUF, MEMP_TCP_PCB_LISTEN};
    if (!is_relied_on) {
        return;
    }
    FUZZ_CHECK(tcp_streams_count() == 0);
    for (unsigned i = 0; i < ARRAY_COUNT(pools); i++) {
        FUZZ_CHECK(lwip_stats.memp[pools[i]]->used == 0);
    }
    unsigned buffers = 0;
    unsigned free_ones = 0;
    const char *words = strstr(dump, "buffers ");
    FUZZ_CHECK(words != NULL && sscanf(words, "buffers %u (free %u)", &buffers, &free_ones) == 2);
    FUZZ_CHECK(!net_device_is_live() || net_device_buffers() + free_ones == buffers);
}

static void world(void *unused) {
    (void)unused;
    settle();
    for (unsigned steps = 0; input.left > 0 && steps < STEPS_MAX; steps++) {
        step();
        settle();
    }
    is_ending = true;
    holds_frames = false;
    kept_bytes = 0;
    settle();
    tcp_stream_stop_listening();
    lwip_abort_all();
    for (unsigned i = 0; i < DRAIN_ROUNDS && (i < 4 || tcp_streams_count() > 0); i++) {
        task_sleep_until(arch_clock_ns() + 50 * NS_PER_MS);
        settle();
    }
    etharp_cleanup_netif(netif_default);
    settle();
    read_dump();
    expect_nothing_kept();
    is_done = true;
    scheduler_stop();
    (void)task_wait(&world_event, DEADLINE_NEVER); /* nobody signals: the end */
}

static struct net_device_options read_options(uint8_t *words) {
    static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};
    struct net_device_options options = {.config_bytes = NET_DEVICE_CONFIG_BYTES};
    uint8_t word = fuzz_u8(&input);
    *words = fuzz_u8(&input);
    options.features = VIRTIO_F_VERSION_1 | NET_DEVICE_MAC | fuzz_u32(&input);
    options.ring_size = 4u << (word % 8);
    options.never_resets = (word & 0x08) != 0;
    options.resets_slowly = (word & 0x10) != 0;
    memcpy(options.config, mac, sizeof mac);
    options.config[6] = 1; /* the link is up */
    if ((word & 0x20) != 0) {
        size_t bytes = NET_DEVICE_CONFIG_BYTES;
        const uint8_t *config = fuzz_bytes(&input, &bytes);
        memcpy(options.config, config, bytes);
        options.config[0] &= 0xfe; /* of one machine */
        options.config_bytes = fuzz_u8(&input) % (NET_DEVICE_CONFIG_BYTES + 1);
    }
    return options;
}

static void begin_life(void) {
    fuzz_begin();
    fuzz_forget();
    host_set_idle(NULL, NULL);
    memset(connections, 0, sizeof connections);
    memset(&net_counters, 0, sizeof net_counters);
    is_ending = false;
    is_done = false;
    holds_frames = false;
    is_relied_on = true;
    answer_count = 0;
    kept_bytes = 0;
    chunks_alive = 0;
    world_event = (struct event){.is_external = true};
}

/* Addresses as a person may write them; the last word of a kind counts. */
static void configure_anything(void) {
    char text[40] = "ip=";
    size_t bytes = fuzz_u8(&input) % 20;
    const uint8_t *data = fuzz_bytes(&input, &bytes);
    memcpy(text + 3, data, bytes);
    FUZZ_CHECK(config_parse(text) == 0);
    memcpy(text, "gw=", 3);
    bytes = fuzz_u8(&input) % 20;
    data = fuzz_bytes(&input, &bytes);
    memcpy(text + 3, data, bytes);
    text[3 + bytes] = '\0';
    FUZZ_CHECK(config_parse(text) == 0);
}

static void live(uint8_t words) {
    struct virtio_net_info info;
    virtio_net_get_info(virtio_net_first(), &info);
    net_peers_begin(info.mac, info.mtu);
    bool may_be_long = (net_device_features() & NET_DEVICE_MRG_RXBUF) != 0;
    FUZZ_CHECK(info.mtu >= 576 && info.mtu <= (may_be_long ? UINT16_MAX - 14 : 1500));
    wire_segment = info.mtu - 40u;
    if ((words & 1) == 0) {
        FUZZ_CHECK(config_parse("ip=10.0.2.15/24 gw=10.0.2.2") == 0);
    }
    if ((words & 2) != 0) {
        FUZZ_CHECK(config_parse("keepalive=1") == 0);
    }
    if ((words & 8) != 0) {
        configure_anything();
    }
    *sys_timeouts_get_next_timeout() = NULL; /* of the life before */
    int error = net_start();
    FUZZ_CHECK(error == 0 || (words & 8) != 0);
    if (error != 0) {
        return;
    }
    FUZZ_CHECK(tcp_stream_listen(NET_GUEST_PORT, accept_connection, NULL) == 0);
    net_set_worker(work, NULL);
    FUZZ_CHECK(task_create("world", world, NULL, WORLD_STACK_BYTES) != NULL);
    scheduler_run();
    FUZZ_CHECK(is_done);
    /* Even what a device that does not obey its reset has kept can go now. */
    virtio_net_abandon(virtio_net_first());
    tcp_streams_run();
    FUZZ_CHECK(tcp_streams_count() == 0 && chunks_alive == 0);
    net_forget();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t words = 0;
    input = (struct fuzz_input){data, size};
    begin_life();
    struct net_device_options options = read_options(&words);
    fuzz_heap((words & 4) != 0 ? HEAP_BYTES_SMALL : HEAP_BYTES);
    if (net_device_plug_in(&options) == 0) {
        live(words);
    }
    net_device_unplug();
    return 0;
}
