/* The NBD server: its real handshake, transmission, limits and memory, behind streams and in front
 * of a disk that do what the input says. Up to four clients talk at once; the disk answers in any
 * order, and fails now and then.
 *
 * What must hold whatever they say: every request is answered once, rightly and in the form that
 * was agreed on, or its connection is closed; memory that was sent stays as it was until the client
 * has it; what changes on the disk was asked for by somebody who may; in the end nothing is kept of
 * a client that has gone (libFuzzer looks for leaks of its own).
 *
 *   options, then steps of the clients, of the disk and of time. One process serves all inputs, as
 *   the appliance serves all clients. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/export.h"
#include "apps/nbd/server.h"
#include "blk/queue.h"
#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/log.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/stack.h"
#include "net/tcp_stream.h"
#include "tests/fuzz/nbd_client.h"

enum {
    CLIENTS = 4,
    DISK_BYTES = 1024 * 1024,
    PARTS_MAX = 64,
    REFS_MAX = 1024,
    HEAP_BYTES = 4 * 1024 * 1024,
    STACK_BYTES = 256 * 1024,
    IN_BYTES_MAX = 4 * 1024 * 1024, /* of one client */
    ROUNDS_MAX = 1000,              /* that the server may want without anything happening */
    SETTLE_ROUNDS_MAX = 20000,
    STILL_S = 6,
    CLOSE_ROUNDS = 20, /* of a second: more than any deadline */
};

/* Memory that was sent and may be sent again. */
struct reference {
    const uint8_t *data;
    size_t bytes;
};

struct client {
    struct stream stream; /* first: the operations cast back */
    bool is_used;
    bool is_let_go; /* by the server */
    bool is_cut;
    bool is_closed_early;
    bool is_under_pressure;
    struct transcript in;
    struct transcript out;
    size_t in_at;
    size_t acknowledged;
    size_t window; /* bytes sent and not acknowledged, at most */
    size_t fragment_bytes;
    size_t gather_max;
    struct reference refs[REFS_MAX];
    unsigned ref_first;
    unsigned ref_count;
    struct stream_mark *marks_first;
    struct stream_mark *marks_last;
    unsigned loans;
    unsigned agreed_mode; /* as the client believes, for well-formed requests */
    uint64_t next_cookie;
};

static struct client clients[CLIENTS];
static struct conversation talks[CLIENTS];
static struct fuzz_input input;
static struct nbd_server_config config = {.port = 10809, .may_list = true, .depth = 8};

/* --- The network, as apps/nbd knows it --- */

static bool (*worker)(void *arg);
static void *worker_arg;
static bool is_awake;
static tcp_stream_accept *accept_client;
static void *accept_arg;

void net_set_worker(bool (*work)(void *arg), void *arg) {
    worker = work;
    worker_arg = arg;
}

void net_wake(void) {
    is_awake = true;
}

struct event *net_round(void) {
    static struct event nobody_waits;
    return &nobody_waits;
}

void net_expect_headers(size_t bytes) {
    FUZZ_CHECK(bytes == 28 || bytes == 32); /* compact and extended requests */
}

bool net_is_under_pressure(void) {
    return true; /* each client answers for itself */
}

int tcp_stream_listen(uint16_t port, tcp_stream_accept *accept, void *arg) {
    FUZZ_CHECK(port != 0);
    accept_client = accept;
    accept_arg = arg;
    return 0;
}

static void run_server(void) {
    unsigned rounds = 0;
    do {
        is_awake = false;
        is_awake |= worker(worker_arg);
        FUZZ_CHECK(++rounds < ROUNDS_MAX);
    } while (is_awake);
}

/* --- Streams --- */

static struct client *client_of(struct stream *stream) {
    struct client *client = (struct client *)stream;
    FUZZ_CHECK(client->is_used && !client->is_let_go);
    return client;
}

static size_t stream_received(const struct stream *stream) {
    const struct client *client = (const struct client *)stream;
    return client->in.bytes - client->in_at;
}

/* What a client sends in small fragments lies nowhere side by side. */
static const uint8_t *stream_front(const struct stream *stream, size_t bytes) {
    const struct client *client = (const struct client *)stream;
    bool is_whole = bytes <= client->fragment_bytes && bytes <= stream_received(stream);
    return is_whole ? client->in.data + client->in_at : NULL;
}

static void stream_peek(const struct stream *stream, void *buf, size_t bytes) {
    const struct client *client = (const struct client *)stream;
    FUZZ_CHECK(bytes <= stream_received(stream));
    memcpy(buf, client->in.data + client->in_at, bytes);
}

static void stream_drop(struct stream *stream, size_t bytes) {
    FUZZ_CHECK(bytes <= stream_received(stream));
    client_of(stream)->in_at += bytes;
}

/* Each loan is memory of its own, which goes when it is returned. */
static int stream_take(struct stream *stream, size_t bytes, struct segment *segments,
                       unsigned segments_max, struct stream_loan *loan) {
    struct client *client = client_of(stream);
    FUZZ_CHECK(bytes > 0 && bytes <= stream_received(stream) && loan->stream == NULL);
    unsigned count = (unsigned)((bytes + client->fragment_bytes - 1) / client->fragment_bytes);
    if (count > segments_max) {
        return -E2BIG;
    }
    uint8_t *memory = malloc(bytes);
    FUZZ_CHECK(memory != NULL);
    stream_peek(stream, memory, bytes);
    for (unsigned i = 0; i < count; i++) {
        size_t at = i * client->fragment_bytes;
        size_t rest = bytes - at;
        segments[i] = (struct segment){
            memory + at, (uint32_t)(rest < client->fragment_bytes ? rest : client->fragment_bytes)};
    }
    client->in_at += bytes;
    client->loans++;
    *loan = (struct stream_loan){.stream = stream, .chain = memory, .bytes = bytes};
    return (int)count;
}

void stream_return(struct stream_loan *loan) {
    if (loan->stream != NULL) {
        struct client *client = (struct client *)loan->stream;
        FUZZ_CHECK(client->is_used && client->loans > 0);
        client->loans--;
        free(loan->chain);
        *loan = (struct stream_loan){0};
    }
}

static void stream_gather(struct stream *stream, size_t bytes) {
    FUZZ_CHECK(bytes > stream_received(stream));
}

static size_t stream_gather_max(const struct stream *stream) {
    return ((const struct client *)stream)->gather_max;
}

static size_t stream_send(struct stream *stream, const void *data, size_t bytes) {
    struct client *client = client_of(stream);
    size_t unacknowledged = client->out.bytes - client->acknowledged;
    size_t room = client->window > unacknowledged ? client->window - unacknowledged : 0;
    FUZZ_CHECK(bytes > 0);
    bytes = bytes < room ? bytes : room;
    if (stream->state == STREAM_DEAD || bytes == 0 || client->ref_count == REFS_MAX) {
        return 0;
    }
    client->refs[(client->ref_first + client->ref_count++) % REFS_MAX] =
        (struct reference){data, bytes};
    transcript_add(&client->out, data, bytes);
    return bytes;
}

static void stream_mark(struct stream *stream, struct stream_mark *mark) {
    struct client *client = client_of(stream);
    mark->next = NULL;
    mark->position = client->out.bytes;
    if (client->marks_last != NULL) {
        client->marks_last->next = mark;
    } else {
        client->marks_first = mark;
    }
    client->marks_last = mark;
}

static bool stream_send_whole(struct stream *stream, struct segment header, struct segment data,
                              struct stream_parcel *parcel) {
    struct client *client = client_of(stream);
    size_t unacknowledged = client->out.bytes - client->acknowledged;
    size_t bytes = (size_t)header.length + data.length;
    FUZZ_CHECK(data.length > 0);
    if (stream->state == STREAM_DEAD || unacknowledged + bytes > client->window ||
        client->ref_count + 2 > REFS_MAX) {
        return false;
    }
    if (header.length > 0) {
        (void)stream_send(stream, header.data, header.length); /* there is room */
    }
    (void)stream_send(stream, data.data, data.length);
    stream_mark(stream, &parcel->mark);
    return true;
}

static void stream_flush(struct stream *stream) {
    (void)client_of(stream);
}

static void stream_expect(struct stream *stream, enum stream_outlook outlook) {
    (void)client_of(stream);
    (void)outlook;
}

static bool stream_is_under_pressure(const struct stream *stream) {
    return ((const struct client *)stream)->is_under_pressure;
}

/* One that is closed for being idle, and has not taken what it was told, misses the end of it. */
static void stream_close(struct stream *stream, bool abort) {
    struct client *client = client_of(stream);
    client->is_let_go = true;
    client->is_cut |= abort;
    if (config.idle_ms > 0 && client->acknowledged < client->out.bytes) {
        client->is_cut = true;
    }
}

static const struct stream_ops stream_ops = {.received = stream_received,
                                             .front = stream_front,
                                             .peek = stream_peek,
                                             .drop = stream_drop,
                                             .take = stream_take,
                                             .gather = stream_gather,
                                             .gather_max = stream_gather_max,
                                             .send = stream_send,
                                             .mark = stream_mark,
                                             .send_whole = stream_send_whole,
                                             .flush = stream_flush,
                                             .expect = stream_expect,
                                             .is_under_pressure = stream_is_under_pressure,
                                             .close = stream_close};

static void tell(struct client *client) {
    if (client->stream.changed != NULL) {
        client->stream.changed(client->stream.arg);
    }
}

/* The client has so many bytes more: until now they may have been sent again, so their memory must
 * be as it was. Then the marks behind them. */
static void acknowledge(struct client *client, size_t bytes) {
    size_t end = client->out.bytes - client->acknowledged;
    end = client->acknowledged + (bytes < end ? bytes : end);
    while (client->acknowledged < end) {
        struct reference *ref = &client->refs[client->ref_first];
        size_t part = end - client->acknowledged;
        part = part < ref->bytes ? part : ref->bytes;
        FUZZ_CHECK(memcmp(ref->data, client->out.data + client->acknowledged, part) == 0);
        client->acknowledged += part;
        ref->data += part;
        ref->bytes -= part;
        if (ref->bytes == 0) {
            client->ref_first = (client->ref_first + 1) % REFS_MAX;
            client->ref_count--;
        }
    }
    while (client->marks_first != NULL && client->marks_first->position <= end) {
        struct stream_mark *mark = client->marks_first;
        client->marks_first = mark->next;
        if (client->marks_first == NULL) {
            client->marks_last = NULL;
        }
        mark->released(mark);
    }
    tell(client);
}

/* --- The disk --- */

static struct block_device disk;
static uint8_t content[DISK_BYTES];
static bool is_content_changed;
static struct block_part parts[PARTS_MAX];
static unsigned part_count;
static struct disk_history history;
static struct disk_change **history_end;

static void original_block(uint64_t offset, uint8_t block[CLIENT_BLOCK]) {
    memset(block, (int)(offset / CLIENT_BLOCK % 251), CLIENT_BLOCK);
    memcpy(block, &offset, sizeof offset);
}

static void renew_content(void) {
    for (uint64_t at = 0; at < DISK_BYTES; at += CLIENT_BLOCK) {
        original_block(at, content + at);
    }
    is_content_changed = false;
}

static void disk_wake(struct block_device *device) {
    (void)device; /* it looks for itself */
}

static void note_change(const struct block_part *part) {
    struct disk_change *change = calloc(1, sizeof *change);
    FUZZ_CHECK(change != NULL);
    change->offset = part->offset;
    change->length = part->length;
    if (part->operation == BLOCK_WRITE) {
        change->data = malloc(part->length);
        FUZZ_CHECK(change->data != NULL);
        memcpy(change->data, content + part->offset, part->length);
    }
    *history_end = change;
    history_end = &change->next;
    is_content_changed = true;
}

static void serve(const struct block_part *part) {
    uint64_t at = part->offset;
    FUZZ_CHECK(part->length <= DISK_BYTES && at <= DISK_BYTES - part->length);
    FUZZ_CHECK(at % history.block_bytes == 0 && part->length % history.block_bytes == 0);
    for (unsigned i = 0; i < part->segment_count; i++) {
        const struct segment *segment = &part->segments[i];
        FUZZ_CHECK(segment->length <= part->offset + part->length - at);
        if (part->operation == BLOCK_READ) {
            memcpy(segment->data, content + at, segment->length);
        } else {
            memcpy(content + at, segment->data, segment->length);
        }
        at += segment->length;
    }
    if (part->operation == BLOCK_READ || part->operation == BLOCK_WRITE) {
        FUZZ_CHECK(at == part->offset + part->length);
    } else {
        memset(content + part->offset, 0, part->length);
    }
    if (part->operation != BLOCK_READ) {
        note_change(part);
    }
}

static void disk_take_parts(void) {
    while (part_count < PARTS_MAX && block_queue_next(&disk, &parts[part_count])) {
        part_count++;
    }
}

static void disk_answer(unsigned which, int error) {
    disk_take_parts();
    if (part_count == 0) {
        return;
    }
    static struct block_part part;
    which %= part_count;
    part = parts[which];
    part_count--;
    memmove(&parts[which], &parts[which + 1], (part_count - which) * sizeof parts[0]);
    if (error == 0 && part.operation != BLOCK_FLUSH) {
        serve(&part);
    }
    block_queue_done(&disk, part.request, error);
}

/* --- Steps of the input --- */

static void deliver(struct client *client, const void *data, size_t bytes) {
    if (client->is_let_go || client->stream.state != STREAM_OPEN ||
        bytes > IN_BYTES_MAX - client->in.bytes) {
        return;
    }
    transcript_add(&client->in, data, bytes);
    tell(client);
}

static void connect_client(struct client *client) {
    if (client->is_used) {
        return;
    }
    unsigned options = fuzz_u8(&input);
    static const size_t windows[] = {64 * 1024, 1 << 20, 700, 17};
    static const size_t fragments[] = {1460, 4096, 100, 1};
    client->is_used = true;
    client->window = windows[options & 3];
    client->fragment_bytes = fragments[options >> 2 & 3];
    client->gather_max = (options & 16) != 0 ? 64 * 1024 : 1000;
    client->stream.ops = &stream_ops;
    client->stream.peer_address = (options & 32) != 0 ? 0x0a000001 : 0x0a000002;
    (void)snprintf(client->stream.peer, sizeof client->stream.peer, "10.0.0.%u:%u",
                   1u + ((options & 32) == 0), (unsigned)(client - clients)); /* it fits */
    if (!accept_client(&client->stream, accept_arg)) {
        client->is_let_go = true;
        client->is_cut = true;
    }
}

static void put(uint8_t **at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) {
        *(*at)++ = (uint8_t)(value >> 8 * (bytes - 1 - i));
    }
}

/* What an outsider may claim, besides the truth. */
static const uint32_t claimed_lengths[] = {0, 0, 0, 240, 4096, 65536, 0x7fffff80, 0xffffff00};

static void send_option(struct client *client, uint32_t option, const void *data, size_t bytes) {
    uint8_t head[16];
    uint8_t *at = head;
    put(&at, 0x49484156454f5054, 8); /* "IHAVEOPT" */
    put(&at, option, 4);
    put(&at, bytes, 4);
    deliver(client, head, sizeof head);
    deliver(client, data, bytes);
}

/* An option that is one, with any length of a name or number of queries in it. */
static void send_rough_option(struct client *client) {
    uint8_t data[256 + 4];
    uint8_t *at = data;
    uint32_t option = fuzz_u8(&input) % 13;
    size_t bytes = fuzz_u8(&input);
    put(&at, claimed_lengths[bytes % ARRAY_COUNT(claimed_lengths)] + fuzz_u8(&input), 4);
    const uint8_t *rest = fuzz_bytes(&input, &bytes);
    memcpy(at, rest, bytes);
    send_option(client, option, data, 4 + bytes);
}

/* A handshake as a client does it that knows how, or only its options. */
static void shake_hands(struct client *client) {
    static const char *const names[] = {"", "ro", "slow", "disk"};
    static const char context[] = "base:allocation";
    uint8_t data[64];
    unsigned options = fuzz_u8(&input);
    if ((options & 64) != 0) {
        send_rough_option(client);
        return;
    }
    const char *name = names[options & 3];
    size_t name_bytes = strlen(name);
    client->agreed_mode = (options >> 2 & 3) % 3;
    deliver(client, (options & 16) != 0 ? "\0\0\0\1" : "\0\0\0\3", 4);
    if (client->agreed_mode > 0) {
        send_option(client, client->agreed_mode == 1 ? 8 : 11, data, 0);
        uint8_t *at = data;
        put(&at, name_bytes, 4);
        memcpy(at, name, name_bytes);
        at += name_bytes;
        put(&at, 1, 4);
        put(&at, sizeof context - 1, 4);
        memcpy(at, context, sizeof context - 1);
        send_option(client, 10, data, (size_t)(at - data) + sizeof context - 1);
    }
    if ((options & 32) != 0 && client->agreed_mode < 2) {
        send_option(client, 1, name, name_bytes);
        return;
    }
    uint8_t *at = data;
    put(&at, name_bytes, 4);
    memcpy(at, name, name_bytes);
    at += name_bytes;
    put(&at, 1, 2);
    put(&at, 3, 2);
    send_option(client, 7, data, (size_t)(at - data));
}

/* Offsets and lengths near what matters, or of any size. */
static uint64_t near_something(void) {
    uint8_t kind = fuzz_u8(&input);
    switch (kind >> 5) {
    case 0:
    case 1:
    case 2:
        return (uint64_t)(kind & 63) * 4096;
    case 3:
        return (uint64_t)(kind & 31) * 512;
    case 4:
        return DISK_BYTES - (uint64_t)(kind & 31) * 4096;
    case 5:
        return (uint64_t)fuzz_u16(&input) * 512;
    case 6:
        return DISK_BYTES;
    default:
        return fuzz_u64(&input);
    }
}

/* A request in the right form, with any content. */
static void send_request(struct client *client) {
    static uint8_t payload[DISK_BYTES];
    uint8_t head[32];
    uint8_t *at = head;
    bool is_extended = client->agreed_mode == 2;
    uint16_t command = fuzz_u8(&input) % 9;
    uint16_t flags = fuzz_u8(&input);
    uint64_t offset = near_something();
    uint64_t length = near_something();
    bool has_payload = command == 1;
    flags = (flags & 0x80) != 0 ? flags & 0x3f : flags & 1;
    if (is_extended && command == 1) {
        flags |= 32;
    }
    if (command == 3 && offset % 3 != 0) {
        offset = 0;
        length = 0;
    }
    put(&at, is_extended ? 0x21e41c71 : 0x25609513, 4);
    put(&at, flags, 2);
    put(&at, command, 2);
    put(&at, 0x1000 + client->next_cookie++, 8);
    put(&at, offset, 8);
    put(&at, length, is_extended ? 8 : 4);
    deliver(client, head, (size_t)(at - head));
    if (has_payload) {
        uint64_t bytes = is_extended ? length : (uint32_t)length;
        bytes = bytes < DISK_BYTES ? bytes : DISK_BYTES;
        uint8_t cut = fuzz_u8(&input); /* now and then not all of it comes at once, or ever */
        bytes = cut >= 0xf0 ? bytes / 2 : bytes;
        for (uint64_t i = 0; i < bytes; i += CLIENT_BLOCK) {
            memset(payload + i, cut, CLIENT_BLOCK);
            payload[i] = (uint8_t)client->next_cookie;
            memcpy(payload + i + 1, &i, sizeof i);
        }
        deliver(client, payload, bytes);
    }
}

static void end_stream(struct client *client) {
    if (!client->is_used || client->is_let_go || client->stream.state != STREAM_OPEN) {
        return;
    }
    if (fuzz_u8(&input) % 2 == 0) {
        client->stream.state = STREAM_PEER_CLOSED;
        client->is_closed_early = true;
    } else {
        client->stream.state = STREAM_DEAD;
        client->is_cut = true;
    }
    tell(client);
}

static void pass_time(uint64_t ms) {
    host_clock_advance(ms * NS_PER_MS);
    task_yield(); /* the scheduler looks at its timers */
}

static void client_step(unsigned what, struct client *client) {
    size_t bytes;
    const uint8_t *data;
    if (!client->is_used) {
        connect_client(client);
    }
    switch (what) {
    case 0:
        bytes = fuzz_u8(&input);
        data = fuzz_bytes(&input, &bytes);
        deliver(client, data, bytes);
        break;
    case 1:
        shake_hands(client);
        break;
    case 2:
    case 3:
        send_request(client);
        break;
    case 4:
        acknowledge(client, fuzz_u16(&input));
        break;
    case 5:
        end_stream(client);
        break;
    default:
        client->is_under_pressure = !client->is_under_pressure;
        break;
    }
}

static void step(void) {
    static const int errors[] = {-EIO, -ENOSPC, -ENOTSUP, -EIO};
    static const uint64_t pauses_ms[] = {1, 100, 4000, 11000};
    uint8_t what = fuzz_u8(&input);
    switch (what & 15) {
    case 7:
        disk_answer(fuzz_u8(&input), 0);
        break;
    case 8:
        disk_answer(what >> 4, errors[what >> 4 & 3]);
        break;
    case 9:
        for (unsigned i = 0; i < 8; i++) {
            disk_answer(what >> 4, 0);
        }
        break;
    case 10:
        pass_time(pauses_ms[what >> 4 & 3]);
        break;
    case 11:
    case 12:
    case 13:
        run_server();
        break;
    default:
        client_step((what & 15) % 7, &clients[what >> 6]);
        break;
    }
}

/* --- The end of each input --- */

static void settle_once(void) {
    disk_take_parts();
    while (part_count > 0) {
        disk_answer(0, 0);
        disk_take_parts();
    }
    run_server();
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].is_used) {
            clients[i].window = SIZE_MAX;
            acknowledge(&clients[i], SIZE_MAX);
        }
    }
    run_server();
}

static size_t progress(void) {
    size_t sum = (size_t)disk.stats.parts;
    for (unsigned i = 0; i < CLIENTS; i++) {
        sum += clients[i].in_at + clients[i].out.bytes + clients[i].is_let_go;
    }
    return sum;
}

/* Everybody does their part at once, until nothing moves for longer than a limit lets anyone wait.
 */
static void settle(void) {
    unsigned still = 0;
    for (unsigned rounds = 0; still < STILL_S; rounds++) {
        size_t before = progress();
        settle_once();
        still = progress() == before && part_count == 0 ? still + 1 : 0;
        if (still > 0) {
            pass_time(1000);
        }
        FUZZ_CHECK(rounds < SETTLE_ROUNDS_MAX);
    }
}

static char status[4096];
static size_t status_used;

static size_t keep_status(void *unused, const char *text, size_t length) {
    (void)unused;
    size_t room = sizeof status - 1 - status_used;
    size_t kept = length < room ? length : room;
    memcpy(status + status_used, text, kept);
    status_used += kept;
    status[status_used] = '\0';
    return length;
}

/* The server's own numbers say that it holds nothing. */
static void expect_idle(void) {
    unsigned connections = 1;
    unsigned ios_free = 0;
    unsigned ios_all = 1;
    size_t free_kib = 0;
    size_t all_kib = 1;
    log_flush();
    log_set_sink(keep_status, NULL);
    status_used = 0;
    nbd_server_dump();
    log_flush();
    fuzz_log_again();
    const char *at = strstr(status, "nbd: ");
    const char *ios = at != NULL ? strstr(at, "ios ") : NULL;
    const char *payload = at != NULL ? strstr(at, "payload ") : NULL;
    FUZZ_CHECK(ios != NULL && payload != NULL);
    FUZZ_CHECK(sscanf(at, "nbd: %u connections", &connections) == 1);
    FUZZ_CHECK(sscanf(ios, "ios %u of %u", &ios_free, &ios_all) == 2);
    FUZZ_CHECK(sscanf(payload, "payload %zu of %zu", &free_kib, &all_kib) == 2);
    FUZZ_CHECK(connections == 0 && ios_free == ios_all && free_kib == all_kib);
    FUZZ_CHECK(disk.stats.in_flight == 0 && !block_queue_has_work(&disk));
}

static void check_conversations(void) {
    struct conversation *all[CLIENTS];
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        talks[i] = (struct conversation){.in = &client->in,
                                         .out = &client->out,
                                         .is_cut = client->is_cut,
                                         .is_closed_early = client->is_closed_early};
        conversation_check(&talks[i], &history);
        all[i] = &talks[i];
    }
    conversations_explain(all, CLIENTS, &history);
    for (unsigned i = 0; i < CLIENTS; i++) {
        conversation_free(&talks[i]);
    }
}

static bool is_alone(void) {
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].is_used && !clients[i].is_let_go) {
            return false;
        }
    }
    return true;
}

static void let_everybody_go(void) {
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->is_used && !client->is_let_go && client->stream.state == STREAM_OPEN) {
            client->stream.state = STREAM_PEER_CLOSED;
            tell(client);
        }
    }
    for (unsigned rounds = 0; rounds < CLOSE_ROUNDS && !is_alone(); rounds++) {
        settle_once();
        pass_time(1000);
    }
    settle_once();
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        FUZZ_CHECK(!client->is_used || client->is_let_go);
        FUZZ_CHECK(client->loans == 0 && client->marks_first == NULL);
    }
}

static void begin(void) {
    unsigned options = fuzz_u8(&input);
    uint32_t block = (options & 1) != 0 ? 4096 : 512;
    config.idle_ms = (options & 2) != 0 ? 3000 : 0;
    disk.limits = (struct block_limits){
        .block_bytes = block,
        .physical_block_bytes = block,
        .segments_max = (options & 4) != 0 ? 2 : BLOCK_SEGMENTS_MAX,
        .segment_bytes_max = (options & 4) != 0 ? 16 * 1024 : 1u << 30,
        .discard_bytes_max = (options & 8) != 0 ? 64 * 1024 : 0,
        .discard_align_bytes = (options & 8) != 0 ? 8192 : 0,
        .discard_leaves = (options & 16) != 0 ? BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE : 0,
        .zeroes_bytes_max = (options & 32) != 0 ? 128 * 1024 : 0,
        .zeroes_may_unmap = (options & 16) != 0,
        .has_cache = (options & 64) != 0};
    if ((options & 128) == 0) {
        FUZZ_CHECK(block_allocation_enable(&disk, BLOCK_EXTENTS_MIN) == 0);
    }
    history = (struct disk_history){
        .capacity_bytes = DISK_BYTES, .block_bytes = block, .original = original_block};
    history_end = &history.changes;
    memset(clients, 0, sizeof clients);
    if (is_content_changed) {
        renew_content();
    }
}

static void end(void) {
    for (unsigned i = 0; i < CLIENTS; i++) {
        transcript_free(&clients[i].in);
        transcript_free(&clients[i].out);
    }
    while (history.changes != NULL) {
        struct disk_change *change = history.changes;
        history.changes = change->next;
        free(change->data);
        free(change);
    }
    if (disk.allocation != NULL) {
        block_allocation_disable(&disk);
    }
    pass_time(UINT64_C(24) * 3600 * 1000); /* nobody owes anything to a limit any more */
}

/* --- The process --- */

static struct event input_is_there;

static void network(void *unused) {
    (void)unused;
    for (;;) {
        (void)task_wait(&input_is_there, DEADLINE_NEVER); /* the next input is the event */
        begin();
        while (input.left > 0) {
            step();
        }
        settle();
        check_conversations();
        let_everybody_go();
        expect_idle();
        check_conversations();
        end();
        scheduler_stop();
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    fuzz_begin();
    scheduler_set_stall_ms(0); /* time is ours */
    fuzz_heap(HEAP_BYTES);
    disk = (struct block_device){.name = "vda",
                                 .model = "fuzz",
                                 .capacity_bytes = DISK_BYTES,
                                 .limits = {.block_bytes = 512,
                                            .physical_block_bytes = 512,
                                            .segments_max = BLOCK_SEGMENTS_MAX,
                                            .segment_bytes_max = 1u << 30},
                                 .wake = disk_wake};
    renew_content();
    FUZZ_CHECK(block_register(&disk) == 0);
    FUZZ_CHECK(nbd_export_add(&disk, "disk", false, false) == 0);
    FUZZ_CHECK(nbd_export_add(&disk, "ro", true, true) == 0);
    FUZZ_CHECK(nbd_export_add(&disk, "slow", false, false) == 0);
    FUZZ_CHECK(nbd_export_set_limit("slow", 256 * 1024, 500) == 0);
    FUZZ_CHECK(access_list_add(&config.readers, "10.0.0.1") == 0);
    FUZZ_CHECK(task_create("net", network, NULL, STACK_BYTES) != NULL);
    FUZZ_CHECK(nbd_server_start(&config) == 0);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input = (struct fuzz_input){data, size};
    event_signal(&input_is_there);
    scheduler_run();
    return 0;
}
