/* See peer.h. */
#include "tests/sim/peer.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/network_words.h"
#include "tests/sim/net.h"
#include "tests/sim/sim.h"

enum {
    IP_BYTES = 20,
    TCP_BYTES = 20,
    OPTIONS_BYTES_MAX = 12,
    FIN = 1,
    SYN = 2,
    RST = 4,
    PSH = 8,
    ACK = 16,
    PEERS_MAX = 2048,
    HOSTS_MAX = 80,
    PORT = 10809,
    LARGE_BYTES_MAX = 60000,
    TRIES_MAX = 24,
    DUPLICATES_FOR_LOSS = 3,
};

#define APPLIANCE_IP UINT32_C(0x0a000001)
#define HOST_IP      UINT32_C(0x0a00000a)
#define RTO_NS       (200 * NS_PER_MS)
#define RTO_NS_MAX   (5 * NS_PER_S)
/* After so long without a word, the other side is asked whether it is there: a reset may be lost,
 * by the wire or by a ring that is full. */
#define KEEP_ALIVE_NS (4 * NS_PER_S)
#define UPDATE_NUMBER 2 /* a window that grows by a half of itself is worth a word */

/* A segment that came too early. */
struct early {
    struct early *next;
    uint32_t sequence;
    uint32_t bytes;
    uint8_t data[];
};

struct peer {
    struct peer_options options;
    enum peer_state state;
    bool is_silent;
    bool is_stalled;
    unsigned probes_alone; /* of a closed window, since the client has gone */
    uint16_t port;
    void (*changed)(void *arg);
    void *arg;
    /* Sending: the byte at `una` is the one at `out_first`. */
    uint8_t *out;
    size_t out_first;
    size_t out_bytes;
    size_t out_room;
    uint32_t una;
    uint32_t next;
    uint32_t highest; /* sent, ever */
    uint32_t window;
    uint32_t window_sequence;
    uint32_t window_acknowledgement;
    uint8_t their_shift;
    uint16_t their_mss;
    uint32_t congestion_bytes;
    unsigned duplicates;
    bool wants_fin;
    bool is_fin_sent;
    bool is_fin_acknowledged;
    uint64_t timer; /* number of the one that counts; 0: none */
    uint64_t timers;
    uint64_t rto_ns;
    unsigned tries;
    /* Receiving. */
    uint32_t received_next;
    uint32_t edge; /* of the window, as told; goes back only where it takes_back */
    bool is_ended;
    uint8_t *history; /* all that was ever received, to hold repetitions against */
    size_t history_bytes;
    size_t history_room;
    uint8_t *in;
    size_t in_first;
    size_t in_bytes;
    size_t in_room;
    struct early *early;
    unsigned unacknowledged; /* segments */
    uint64_t heard_ns;
    uint64_t ack_timer;
};

static struct peer *peers[PEERS_MAX];
static unsigned peer_count;
static bool knows_appliance[HOSTS_MAX];
static uint16_t next_port = 20000;

/* Before and after, around the circle of sequence numbers. */
static bool is_before(uint32_t a, uint32_t b) {
    return (int32_t)(a - b) < 0;
}

static void put_mac(uint8_t *at, unsigned host) {
    static const uint8_t start[5] = {0x02, 0x00, 0x00, 0x00, 0x01};
    memcpy(at, start, sizeof start);
    at[5] = (uint8_t)host;
}

/* --- Frames ------------------------------------------------------------------------------------
 */

static uint8_t frame[FRAME_BYTES_MAX];

static void send_arp(unsigned host, unsigned operation, const uint8_t *to, uint32_t to_ip) {
    static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint8_t arp[ETHERNET_BYTES + 28] = {0};
    memcpy(arp, operation == 1 ? everybody : to, 6);
    put_mac(arp + 6, host);
    put16(arp + 12, 0x0806);
    memcpy(arp + 14, (const uint8_t[]){0x00, 0x01, 0x08, 0x00, 0x06, 0x04}, 6);
    put16(arp + 20, operation);
    put_mac(arp + 22, host);
    put32(arp + 28, HOST_IP + host);
    if (operation != 1) {
        memcpy(arp + 32, to, 6);
    }
    put32(arp + 38, to_ip);
    net_send_to_appliance(arp, sizeof arp, 0);
}

struct segment_head {
    unsigned host;
    uint16_t port;
    uint32_t sequence;
    uint32_t acknowledgement;
    unsigned flags;
    uint16_t window;
    uint8_t options[OPTIONS_BYTES_MAX];
    unsigned option_bytes; /* a multiple of 4 */
};

static void send_segment(const struct segment_head *head, const uint8_t *data, size_t bytes,
                         unsigned cut) {
    uint8_t *ip = frame + ETHERNET_BYTES;
    uint8_t *tcp = ip + IP_BYTES;
    size_t header = TCP_BYTES + head->option_bytes;
    memcpy(frame, net_mac, 6);
    put_mac(frame + 6, head->host);
    put16(frame + 12, 0x0800);
    memset(ip, 0, IP_BYTES + TCP_BYTES);
    ip[0] = 0x45;
    put16(ip + 2, (uint16_t)(IP_BYTES + header + bytes));
    put16(ip + 4, head->sequence);
    put16(ip + 6, 0x4000);
    ip[8] = 64;
    ip[9] = 6;
    put32(ip + 12, HOST_IP + head->host);
    put32(ip + 16, APPLIANCE_IP);
    put16(ip + 10, (uint16_t)~checksum_fold(checksum_add(0, ip, IP_BYTES)));
    put16(tcp, head->port);
    put16(tcp + 2, PORT);
    put32(tcp + 4, head->sequence);
    put32(tcp + 8, head->acknowledgement);
    tcp[12] = (uint8_t)(header / 4 << 4);
    tcp[13] = (uint8_t)head->flags;
    put16(tcp + 14, head->window);
    memcpy(tcp + TCP_BYTES, head->options, head->option_bytes);
    if (bytes > 0) {
        memcpy(tcp + header, data, bytes);
    }
    put16(tcp + 16, checksum_tcp(ip, tcp, header + bytes));
    net_send_to_appliance(frame, ETHERNET_BYTES + IP_BYTES + header + bytes, cut);
}

/* --- Sending -----------------------------------------------------------------------------------
 */

/* Some hosts close their window at once when nothing is taken, over what is on its way, and some
 * take the byte that asks whether it is still closed. Who, goes by the port. */
static bool takes_back(const struct peer *peer) {
    return peer->port % 5 == 2;
}

static bool takes_probes(const struct peer *peer) {
    return peer->port % 3 == 1;
}

static uint16_t told_window(struct peer *peer) {
    bool is_closed =
        peer->in_bytes >= peer->options.window_bytes || (peer->is_stalled && takes_back(peer));
    size_t free_bytes = is_closed ? 0 : peer->options.window_bytes - peer->in_bytes;
    uint32_t edge = peer->received_next + (uint32_t)free_bytes;
    peer->edge = takes_back(peer) || is_before(peer->edge, edge) ? edge : peer->edge;
    uint32_t window = peer->edge - peer->received_next;
    uint8_t shift = peer->options.has_window_scale ? peer->options.window_shift : 0;
    /* Rounded up: what was told is never taken back. */
    uint32_t field = (window + (1u << shift) - 1) >> shift;
    field = field < UINT16_MAX ? field : UINT16_MAX;
    uint32_t told = peer->received_next + (field << shift);
    peer->edge = is_before(peer->edge, told) ? told : peer->edge;
    return (uint16_t)field;
}

static void send_part(struct peer *peer, unsigned flags, const uint8_t *data, size_t bytes,
                      uint32_t sequence, unsigned cut) {
    struct segment_head head = {.host = peer->options.host,
                                .port = peer->port,
                                .sequence = sequence,
                                .acknowledgement = peer->received_next,
                                .flags = flags | ACK,
                                .window = told_window(peer)};
    peer->unacknowledged = 0;
    peer->ack_timer = 0;
    send_segment(&head, data, bytes, cut);
}

static void acknowledge(struct peer *peer) {
    send_part(peer, 0, NULL, 0, peer->next, 0);
}

static void send_syn(struct peer *peer) {
    struct segment_head head = {.host = peer->options.host,
                                .port = peer->port,
                                .sequence = peer->una - 1,
                                .flags = SYN,
                                .window = (uint16_t)(peer->options.window_bytes < UINT16_MAX
                                                         ? peer->options.window_bytes
                                                         : UINT16_MAX)};
    uint8_t *option = head.options;
    option[0] = 2;
    option[1] = 4;
    put16(option + 2, peer->options.mss);
    head.option_bytes = 4;
    if (peer->options.has_window_scale) {
        memcpy(option + head.option_bytes, (uint8_t[]){1, 3, 3, peer->options.window_shift}, 4);
        head.option_bytes += 4;
    }
    if (peer->options.may_sack) {
        memcpy(option + head.option_bytes, (uint8_t[]){1, 1, 4, 2}, 4);
        head.option_bytes += 4;
    }
    send_segment(&head, NULL, 0, 0);
}

static void timer_fires(void *arg, uint64_t number);

static void set_timer(struct peer *peer, uint64_t delay_ns) {
    peer->timer = ++peer->timers;
    world_after(delay_ns, timer_fires, peer, peer->timer);
}

static void die(struct peer *peer) {
    peer->state = PEER_DEAD;
    peer->timer = 0;
    if (peer->changed != NULL) {
        peer->changed(peer->arg);
    }
}

static uint32_t data_end(const struct peer *peer) {
    return peer->una + (uint32_t)peer->out_bytes;
}

static size_t next_length(const struct peer *peer, bool *is_large) {
    uint32_t flight = peer->next - peer->una;
    uint32_t allowed =
        peer->window < peer->congestion_bytes ? peer->window : peer->congestion_bytes;
    size_t unsent = data_end(peer) - peer->next;
    size_t usable = allowed > flight ? allowed - flight : 0;
    size_t mss = peer->options.mss < peer->their_mss ? peer->options.mss : peer->their_mss;
    *is_large = peer->options.sends_large && net_takes_large_segments();
    size_t most = *is_large ? LARGE_BYTES_MAX : mss;
    size_t bytes = unsent < most ? unsent : most;
    if (usable < bytes) {
        /* No silly windows. */
        bytes = usable >= mss || flight == 0 ? usable : 0;
    }
    *is_large = *is_large && bytes > mss;
    return bytes;
}

static void output(struct peer *peer) {
    if ((peer->state != PEER_OPEN && peer->state != PEER_ENDED) || peer->is_silent) {
        return;
    }
    bool is_large = false;
    size_t bytes;
    while (is_before(peer->next, data_end(peer)) && (bytes = next_length(peer, &is_large)) > 0) {
        size_t mss = peer->options.mss < peer->their_mss ? peer->options.mss : peer->their_mss;
        const uint8_t *data = peer->out + peer->out_first + (peer->next - peer->una);
        uint32_t sequence = peer->next;
        peer->next += (uint32_t)bytes;
        send_part(peer, peer->next == data_end(peer) ? PSH : 0, data, bytes, sequence,
                  is_large ? (unsigned)mss : 0);
    }
    if (peer->wants_fin && !peer->is_fin_sent && peer->next == data_end(peer)) {
        peer->is_fin_sent = true;
        send_part(peer, FIN, NULL, 0, peer->next, 0);
        peer->next++;
    }
    if (is_before(peer->highest, peer->next)) {
        peer->highest = peer->next;
    }
    bool waits = peer->next != peer->una || is_before(peer->next, data_end(peer));
    if (waits && peer->timer == 0) {
        set_timer(peer, peer->rto_ns);
    }
}

/* A window has been found closed, ours or the appliance's. Hosts end what a process leaves behind
 * when nothing comes of it. */
static bool ends_alone(struct peer *peer) {
    if (peer->changed != NULL || ++peer->probes_alone <= TRIES_MAX) {
        return false;
    }
    trace("peer %llu: ends the connection from port %llu, which nobody has any more",
          peer->options.host, peer->port, 0, 0);
    peer_reset(peer);
    return true;
}

/* Nothing was acknowledged for too long: all over again from there. With a closed window: one byte,
 * to be told when it opens. */
static void retransmit(struct peer *peer) {
    peer->rto_ns = 2 * peer->rto_ns < RTO_NS_MAX ? 2 * peer->rto_ns : RTO_NS_MAX;
    if (peer->window == 0 && is_before(peer->una, data_end(peer))) {
        if (ends_alone(peer)) {
            return;
        }
        send_part(peer, 0, peer->out + peer->out_first, 1, peer->una, 0);
        uint32_t probed = peer->una + 1;
        peer->highest = is_before(peer->highest, probed) ? probed : peer->highest;
        set_timer(peer, peer->rto_ns);
        return;
    }
    if (++peer->tries > TRIES_MAX) {
        trace("peer %llu: gives up its connection from port %llu", peer->options.host, peer->port,
              0, 0);
        die(peer);
        return;
    }
    peer->next = peer->una;
    peer->is_fin_sent = false;
    peer->congestion_bytes = peer->options.mss;
    peer->timer = 0;
    output(peer);
}

static void timer_fires(void *arg, uint64_t number) {
    struct peer *peer = arg;
    if (number == peer->ack_timer) {
        peer->ack_timer = 0;
        if (peer->unacknowledged > 0 && !peer->is_silent && peer->state != PEER_DEAD) {
            acknowledge(peer);
        }
        return;
    }
    if (number != peer->timer || peer->is_silent || peer->state == PEER_DEAD) {
        return;
    }
    peer->timer = 0;
    if (peer->state != PEER_CONNECTING) {
        retransmit(peer);
        return;
    }
    if (++peer->tries > TRIES_MAX) {
        die(peer);
        return;
    }
    if (knows_appliance[peer->options.host]) {
        send_syn(peer);
        peer->rto_ns = 2 * peer->rto_ns < RTO_NS_MAX ? 2 * peer->rto_ns : RTO_NS_MAX;
    } else {
        send_arp(peer->options.host, 1, NULL, APPLIANCE_IP);
    }
    set_timer(peer, peer->rto_ns);
}

/* --- Receiving ---------------------------------------------------------------------------------
 */

static void append(uint8_t **array, size_t *bytes, size_t *room, const void *data, size_t more) {
    if (more > *room - *bytes) {
        *room = 2 * (*bytes + more) + 4096;
        *array = realloc(*array, *room);
        SIM_CHECK(*array != NULL);
    }
    memcpy(*array + *bytes, data, more);
    *bytes += more;
}

static void take_in(struct peer *peer, const uint8_t *data, size_t bytes) {
    if (peer->in_first > 65536 && peer->in_first > peer->in_bytes) {
        memmove(peer->in, peer->in + peer->in_first, peer->in_bytes);
        peer->in_first = 0;
    }
    size_t end = peer->in_first + peer->in_bytes;
    append(&peer->in, &end, &peer->in_room, data, bytes);
    append(&peer->history, &peer->history_bytes, &peer->history_room, data, bytes);
    peer->in_bytes += bytes;
    peer->received_next += (uint32_t)bytes;
}

static void keep_early(struct peer *peer, uint32_t sequence, const uint8_t *data, uint32_t bytes) {
    struct early **link = &peer->early;
    while (*link != NULL && is_before((*link)->sequence, sequence)) {
        link = &(*link)->next;
    }
    struct early *early = malloc(sizeof *early + bytes);
    SIM_CHECK(early != NULL);
    *early = (struct early){.next = *link, .sequence = sequence, .bytes = bytes};
    memcpy(early->data, data, bytes);
    *link = early;
}

static void take_early(struct peer *peer) {
    while (peer->early != NULL && !is_before(peer->received_next, peer->early->sequence)) {
        struct early *early = peer->early;
        uint32_t known = peer->received_next - early->sequence;
        if (known < early->bytes) {
            take_in(peer, early->data + known, early->bytes - known);
        }
        peer->early = early->next;
        free(early);
    }
}

/* What was sent once is the same whenever it is sent again: else its memory was given away too
 * early, and this is somebody else's. */
static void check_repetition(const struct peer *peer, uint32_t sequence, const uint8_t *data,
                             uint32_t bytes) {
    uint32_t back = peer->received_next - sequence - (peer->is_ended ? 1 : 0);
    uint32_t known = back < bytes ? back : bytes;
    if (known > 0 && back <= peer->history_bytes &&
        memcmp(peer->history + peer->history_bytes - back, data, known) != 0) {
        sim_fail("the appliance sends other bytes again for what it has sent before");
    }
}

/* The text of a segment, cut to the window. True when it calls for an answer at once. */
static bool take_text(struct peer *peer, uint32_t sequence, const uint8_t *data, uint32_t bytes) {
    if (is_before(sequence, peer->received_next)) {
        uint32_t known = peer->received_next - sequence;
        check_repetition(peer, sequence, data, bytes);
        if (known >= bytes) {
            return true; /* once more what we have */
        }
        data += known;
        bytes -= known;
        sequence = peer->received_next;
    }
    bool is_beyond = !is_before(sequence, peer->edge);
    if (is_beyond && (sequence != peer->received_next || !takes_probes(peer))) {
        return true;
    }
    uint32_t room = is_beyond ? 1 : peer->edge - sequence;
    bytes = bytes < room ? bytes : room;
    if (sequence != peer->received_next) {
        keep_early(peer, sequence, data, bytes);
        return true;
    }
    bool had_gap = peer->early != NULL;
    take_in(peer, data, bytes);
    take_early(peer);
    return had_gap;
}

static void take_acknowledgement(struct peer *peer, const uint8_t *tcp, size_t text_bytes) {
    uint32_t acknowledgement = get32(tcp + 8);
    uint32_t sequence = get32(tcp + 4);
    uint32_t window = (uint32_t)get16(tcp + 14) << peer->their_shift;
    uint32_t window_before = peer->window;
    if (is_before(peer->highest, acknowledgement)) {
        sim_fail("the appliance acknowledges %u, and %u was the last that was sent",
                 acknowledgement, peer->highest);
    }
    if (is_before(peer->window_sequence, sequence) ||
        (peer->window_sequence == sequence &&
         !is_before(acknowledgement, peer->window_acknowledgement))) {
        peer->window = window;
        peer->window_sequence = sequence;
        peer->window_acknowledgement = acknowledgement;
    }
    if (is_before(peer->una, acknowledgement)) {
        uint32_t bytes = acknowledgement - peer->una;
        size_t text = bytes < peer->out_bytes ? bytes : peer->out_bytes;
        peer->out_first += text;
        peer->out_bytes -= text;
        peer->is_fin_acknowledged |= bytes > text;
        peer->una += bytes;
        peer->next = is_before(peer->next, peer->una) ? peer->una : peer->next;
        peer->is_fin_sent |= peer->is_fin_acknowledged;
        peer->congestion_bytes = peer->congestion_bytes + bytes < peer->options.congestion_bytes_max
                                     ? peer->congestion_bytes + bytes
                                     : peer->options.congestion_bytes_max;
        peer->duplicates = 0;
        peer->tries = 0;
        peer->rto_ns = RTO_NS;
        peer->timer = 0;
    } else if (acknowledgement == peer->una && text_bytes == 0 && peer->next != peer->una &&
               peer->window == window_before && ++peer->duplicates == DUPLICATES_FOR_LOSS) {
        size_t mss = peer->options.mss < peer->their_mss ? peer->options.mss : peer->their_mss;
        size_t bytes = peer->out_bytes < mss ? peer->out_bytes : mss;
        bytes = bytes < peer->next - peer->una ? bytes : peer->next - peer->una;
        if (bytes > 0) {
            send_part(peer, 0, peer->out + peer->out_first, bytes, peer->una, 0);
        }
    }
    if (window_before == 0 && peer->window != 0) {
        peer->timer = 0;
        peer->rto_ns = RTO_NS;
    }
}

static void read_options(struct peer *peer, const uint8_t *tcp, size_t header) {
    bool scales = false;
    peer->their_mss = 536;
    for (size_t at = TCP_BYTES; at < header && tcp[at] != 0;) {
        if (tcp[at] == 1) {
            at++;
            continue;
        }
        SIM_CHECK(at + 1 < header && tcp[at + 1] >= 2 && at + tcp[at + 1] <= header);
        if (tcp[at] == 2) {
            peer->their_mss = get16(tcp + at + 2);
        } else if (tcp[at] == 3) {
            scales = true;
            peer->their_shift = tcp[at + 2];
        }
        at += tcp[at + 1];
    }
    SIM_CHECK(!scales || peer->options.has_window_scale);
    SIM_CHECK(peer->their_mss >= 536 && peer->their_mss + 40u <= net_mtu() &&
              peer->their_shift <= 14);
    if (!scales) {
        peer->options.has_window_scale = false;
    }
}

static void take_syn(struct peer *peer, const uint8_t *tcp, size_t header) {
    unsigned flags = tcp[13];
    uint32_t acknowledgement = get32(tcp + 8);
    if ((flags & ACK) == 0 || acknowledgement != peer->una) {
        return;
    }
    if ((flags & RST) != 0) {
        die(peer);
        return;
    }
    if ((flags & SYN) == 0) {
        return;
    }
    read_options(peer, tcp, header);
    peer->received_next = get32(tcp + 4) + 1;
    peer->edge = peer->received_next;
    peer->window = get16(tcp + 14); /* of a SYN: never scaled */
    peer->window_sequence = get32(tcp + 4);
    peer->window_acknowledgement = acknowledgement;
    peer->state = PEER_OPEN;
    peer->timer = 0;
    peer->tries = 0;
    peer->rto_ns = RTO_NS;
    acknowledge(peer);
    if (peer->changed != NULL) {
        peer->changed(peer->arg);
    }
    output(peer);
}

static void take_segment(struct peer *peer, const uint8_t *tcp, size_t header, size_t bytes) {
    unsigned flags = tcp[13];
    uint32_t sequence = get32(tcp + 4);
    size_t text_bytes = bytes - header;
    if (text_bytes > peer->options.mss) {
        sim_fail("the appliance sends a segment of %zu bytes to a peer that takes %u", text_bytes,
                 peer->options.mss);
    }
    if (peer->is_silent || peer->state == PEER_DEAD) {
        return;
    }
    peer->heard_ns = world_now_ns();
    if (peer->state == PEER_CONNECTING) {
        take_syn(peer, tcp, header);
        return;
    }
    if ((flags & RST) != 0) {
        if (sequence == peer->received_next ||
            (is_before(peer->received_next, sequence) && is_before(sequence, peer->edge))) {
            die(peer);
        }
        return;
    }
    if ((flags & SYN) != 0 || (flags & ACK) == 0) {
        acknowledge(peer); /* of old: our acknowledgement of its SYN was lost */
        return;
    }
    take_acknowledgement(peer, tcp, text_bytes);
    if (text_bytes > 0 && peer->edge == peer->received_next && ends_alone(peer)) {
        return;
    }
    size_t before = peer->in_bytes;
    bool at_once = text_bytes > 0 && take_text(peer, sequence, tcp + header, (uint32_t)text_bytes);
    if (text_bytes == 0 &&
        (is_before(sequence, peer->received_next) || is_before(peer->edge, sequence))) {
        at_once = true; /* asks whether we are there; in the window it would be no question */
    }
    if ((flags & FIN) != 0) {
        at_once = true;
        if (!peer->is_ended && sequence + (uint32_t)text_bytes == peer->received_next) {
            peer->is_ended = true;
            peer->received_next++;
            peer->edge++;
            peer->state = PEER_ENDED;
        }
    }
    peer->unacknowledged += text_bytes > 0;
    if (at_once || peer->unacknowledged >= 2 ||
        (peer->unacknowledged > 0 && peer->options.ack_delay_ns == 0)) {
        acknowledge(peer);
    } else if (peer->unacknowledged > 0 && peer->ack_timer == 0) {
        peer->ack_timer = ++peer->timers;
        world_after(peer->options.ack_delay_ns, timer_fires, peer, peer->ack_timer);
    }
    if (peer->changed != NULL && !peer->is_stalled &&
        (peer->in_bytes != before || (flags & FIN) != 0 || text_bytes == 0)) {
        peer->changed(peer->arg);
    }
    output(peer);
}

/* --- From the wire -----------------------------------------------------------------------------
 */

static void receive_arp(const uint8_t *arp, size_t bytes) {
    if (bytes < ETHERNET_BYTES + 28) {
        return;
    }
    uint32_t wanted = get32(arp + 38);
    if (wanted < HOST_IP || wanted >= HOST_IP + HOSTS_MAX) {
        return;
    }
    unsigned host = wanted - HOST_IP;
    if (get16(arp + 20) == 1) {
        send_arp(host, 2, arp + 22, get32(arp + 28));
    } else if (!knows_appliance[host] && get32(arp + 28) == APPLIANCE_IP) {
        SIM_CHECK(memcmp(arp + 22, net_mac, 6) == 0);
        knows_appliance[host] = true;
        for (unsigned i = 0; i < peer_count; i++) {
            if (peers[i]->options.host == host && peers[i]->state == PEER_CONNECTING) {
                send_syn(peers[i]);
            }
        }
    }
}

/* A host that knows nothing of a connection says so. */
static void refuse(unsigned host, const uint8_t *tcp, size_t text_bytes) {
    unsigned flags = tcp[13];
    if ((flags & RST) != 0) {
        return;
    }
    struct segment_head head = {.host = host,
                                .port = get16(tcp + 2),
                                .sequence = (flags & ACK) != 0 ? get32(tcp + 8) : 0,
                                .acknowledgement = get32(tcp + 4) + (uint32_t)text_bytes +
                                                   ((flags & (SYN | FIN)) != 0),
                                .flags = (flags & ACK) != 0 ? RST : RST | ACK};
    send_segment(&head, NULL, 0, 0);
}

void peers_receive(const uint8_t *data, size_t bytes) {
    if (bytes >= ETHERNET_BYTES && get16(data + 12) == 0x0806) {
        receive_arp(data, bytes);
        return;
    }
    const uint8_t *ip = data + ETHERNET_BYTES;
    if (bytes < ETHERNET_BYTES + IP_BYTES + TCP_BYTES || get16(data + 12) != 0x0800 ||
        ip[0] != 0x45 || ip[9] != 6) {
        return;
    }
    size_t ip_total = get16(ip + 2);
    bool is_good = ip_total <= bytes - ETHERNET_BYTES && ip_total >= IP_BYTES + TCP_BYTES &&
                   checksum_fold(checksum_add(0, ip, IP_BYTES)) == 0xffff;
    const uint8_t *tcp = ip + IP_BYTES;
    size_t tcp_bytes = is_good ? ip_total - IP_BYTES : 0;
    is_good = is_good && checksum_tcp(ip, tcp, tcp_bytes) == 0;
    if (!is_good) {
        if (plan.net_faults.corrupted == 0) {
            sim_fail("the appliance has sent a packet with a wrong checksum or length");
        }
        return;
    }
    size_t header = 4 * (size_t)(tcp[12] >> 4);
    uint32_t host = get32(ip + 16) - HOST_IP;
    SIM_CHECK(header >= TCP_BYTES && header <= tcp_bytes && host < HOSTS_MAX &&
              get32(ip + 12) == APPLIANCE_IP && get16(tcp) == PORT && data[5] == host);
    for (unsigned i = peer_count; i-- > 0;) {
        if (peers[i]->options.host == host && peers[i]->port == get16(tcp + 2)) {
            if (peers[i]->state == PEER_DEAD && !peers[i]->is_silent) {
                break;
            }
            take_segment(peers[i], tcp, header, tcp_bytes);
            return;
        }
    }
    refuse(host, tcp, tcp_bytes - header);
}

static void keep_alive(void *arg, uint64_t unused) {
    struct peer *peer = arg;
    (void)unused;
    if (peer->is_silent || peer->state == PEER_DEAD || peer->changed == NULL) {
        return;
    }
    if (peer->state != PEER_CONNECTING && world_now_ns() > peer->heard_ns + KEEP_ALIVE_NS) {
        send_part(peer, 0, NULL, 0, peer->una - 1, 0);
    }
    world_after(KEEP_ALIVE_NS, keep_alive, peer, 0);
}

/* --- For clients -------------------------------------------------------------------------------
 */

struct peer *peer_open(const struct peer_options *options, void (*changed)(void *arg), void *arg) {
    SIM_CHECK(peer_count < PEERS_MAX && options->host < HOSTS_MAX);
    struct peer *peer = calloc(1, sizeof *peer);
    SIM_CHECK(peer != NULL);
    peers[peer_count++] = peer;
    peer->options = *options;
    peer->changed = changed;
    peer->arg = arg;
    peer->port = next_port++;
    peer->una = (uint32_t)luck();
    peer->next = peer->una;
    peer->highest = peer->una;
    peer->rto_ns = RTO_NS;
    peer->congestion_bytes = 4 * (uint32_t)options->mss;
    if (knows_appliance[options->host]) {
        send_syn(peer);
    } else {
        send_arp(options->host, 1, NULL, APPLIANCE_IP);
    }
    set_timer(peer, peer->rto_ns);
    world_after(KEEP_ALIVE_NS, keep_alive, peer, 0);
    return peer;
}

enum peer_state peer_state(const struct peer *peer) {
    return peer->state;
}

void peer_send(struct peer *peer, const void *data, size_t bytes) {
    if (peer->out_first > 65536 && peer->out_first > peer->out_bytes) {
        memmove(peer->out, peer->out + peer->out_first, peer->out_bytes);
        peer->out_first = 0;
    }
    size_t end = peer->out_first + peer->out_bytes;
    append(&peer->out, &end, &peer->out_room, data, bytes);
    peer->out_bytes += bytes;
    output(peer);
}

bool peer_has_sent_all(const struct peer *peer) {
    return peer->out_bytes == 0;
}

void peer_finish(struct peer *peer) {
    peer->wants_fin = true;
    output(peer);
}

size_t peer_received(const struct peer *peer, const uint8_t **data) {
    *data = peer->in != NULL ? peer->in + peer->in_first : NULL;
    return peer->in_bytes;
}

void peer_take(struct peer *peer, size_t bytes) {
    SIM_CHECK(bytes <= peer->in_bytes);
    uint32_t told = peer->edge - peer->received_next;
    peer->in_first += bytes;
    peer->in_bytes -= bytes;
    /* A window that was closed, or nearly, is told to be open again. */
    if (bytes > 0 && told < peer->options.window_bytes / UPDATE_NUMBER && !peer->is_silent &&
        peer->state == PEER_OPEN &&
        peer->options.window_bytes - peer->in_bytes >= told + peer->options.window_bytes / 4) {
        acknowledge(peer);
    }
}

void peer_reset(struct peer *peer) {
    if (peer->state == PEER_OPEN || peer->state == PEER_ENDED) {
        send_part(peer, RST, NULL, 0, peer->next, 0);
    }
    peer->changed = NULL;
    peer->state = PEER_DEAD;
}

void peer_vanish(struct peer *peer) {
    peer->is_silent = true;
    peer->changed = NULL;
}

void peer_let_go(struct peer *peer) {
    peer->changed = NULL;
}

void peer_stall(struct peer *peer, bool is_stalled) {
    peer->is_stalled = is_stalled;
    if (!is_stalled && peer->changed != NULL) {
        peer->changed(peer->arg);
    }
}

bool peer_is_stalled(const struct peer *peer) {
    return peer->is_stalled;
}
