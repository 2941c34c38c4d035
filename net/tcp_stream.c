/* Streams over lwIP's TCP. See stream.h and tcp_stream.h.
 *
 * Received packets stay in the driver's buffers: the stream keeps a list of them and lends pieces.
 * A packet at the border of two pieces is referenced by both. Sent data stays in its owner's memory
 * until the peer has acknowledged it; marks tell the owner.
 *
 *   open ──▶ (peer closed) ──▶ close ──▶ everything acknowledged ──▶ FIN ──▶ freed
 *     └────▶ dead: reset, timed out ──▶ close ──▶ frames out of the ring ──▶ freed
 *
 * Frames that refer to sent data may still be in the device's ring when the peer has acknowledged
 * it (it was sent again meanwhile, or the peer lies) or when the connection dies. Marks are
 * released only when the device has read them, or it would send somebody else's bytes. */
#include "net/tcp_stream.h"

#include <errno.h>
#include <lwip/ip_addr.h>
#include <lwip/priv/tcp_priv.h>
#include <lwip/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/lib/unaligned.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "net/counters.h"
#include "net/stack.h"
#include "net/tcp_connection.h"
#include "net/virtio_net.h"

static struct tcp_stream *streams;
static unsigned stream_count;
static struct tcp_pcb *listener;
static tcp_stream_accept *accept_function;
static void *accept_arg;
static struct tcp_stream_sizes sizes;
/* In which windows open and acknowledgements are due: as Ethernet's segments, also where longer
 * ones are possible, for a client's may be shorter, and windows are when there are many. */
static uint16_t step_bytes;

enum {
    ETHERNET_SEGMENT_BYTES = 1460,
    CUT_BYTES_MIN = 536, /* what every host takes (RFC 9293, 3.7.1) */
    /* After this many, with nothing heard, the client is gone; the idle time has room for so many.
     */
    KEEP_ALIVE_PROBES = 4,
    KEEP_ALIVE_PROBES_PER_IDLE = 6,
};

uint32_t net_window_update_bytes;

/* Bytes of any stream, since the last round. */
static bool was_acknowledged;

static struct tcp_stream *of(struct stream *stream) {
    return (struct tcp_stream *)stream;
}

static void tell_owner(struct tcp_stream *tcp) {
    if (!tcp->is_closing && tcp->stream.changed != NULL) {
        tcp->stream.changed(tcp->stream.arg);
    }
}

/* --- Receiving ---------------------------------------------------------------------------------
 */

/* As memcpy, without the call and the steps for much; both ends may lie anywhere. */
static inline void copy_few(uint8_t *to, const uint8_t *from, size_t bytes) {
    for (; bytes >= 8; to += 8, from += 8, bytes -= 8) {
        unaligned_store64(to, unaligned_load64(from));
    }
    if (bytes >= 4) {
        unaligned_store32(to, unaligned_load32(from));
        to += 4;
        from += 4;
        bytes -= 4;
    }
    for (; bytes > 0; bytes--) {
        *to++ = *from++;
    }
}

/* A request is a few bytes and comes in a packet of its own. Where requests wait, each would keep a
 * whole receive buffer, and many clients could keep them all, so that not even an acknowledgement
 * would find one: they move together. */
static bool join_last(struct tcp_stream *tcp, struct pbuf *packet) {
    struct pbuf *last = tcp->last;
    if (last == NULL || packet->next != NULL || packet->len > NET_JOIN_BYTES_MAX ||
        packet->len > tcp->tail_room) {
        return false;
    }
    tcp->tail_room -= packet->len;
    copy_few((uint8_t *)last->payload + last->len, packet->payload, packet->len);
    last->len = (u16_t)(last->len + packet->len);
    tcp->received += packet->len;
    net_counters.header_bytes_copied += packet->len;
    virtio_net_free(packet);
    return true;
}

static inline __attribute__((always_inline)) void append_received(struct tcp_stream *tcp,
                                                                  struct pbuf *chain) {
    if (join_last(tcp, chain)) {
        return;
    }
    for (struct pbuf *part = chain; part != NULL; part = part->next) {
        tcp->received += part->len;
        if (tcp->last != NULL && part == chain) {
            tcp->last->next = chain;
        }
        tcp->last = part;
    }
    if (tcp->first == NULL) {
        tcp->first = chain;
    }
    tcp->tail_room = virtio_net_tail_room(tcp->last);
}

/* Releases one packet, whose successors have another owner. */
static void release_packet(struct pbuf *packet) {
    packet->next = NULL;
    virtio_net_free(packet);
}

/* Takes the first packet off the list; the caller owns its reference. */
static struct pbuf *pop_packet(struct tcp_stream *tcp) {
    struct pbuf *packet = tcp->first;
    tcp->first = packet->next;
    if (tcp->first == NULL) {
        tcp->last = NULL;
    }
    tcp->first_offset = 0;
    packet->next = NULL;
    return packet;
}

static size_t stream_received(const struct stream *stream) {
    return ((const struct tcp_stream *)stream)->received;
}

static const uint8_t *stream_front(const struct stream *stream, size_t bytes) {
    const struct tcp_stream *tcp = (const struct tcp_stream *)stream;
    const struct pbuf *packet = tcp->first;
    if (packet == NULL || packet->len - tcp->first_offset < bytes) {
        return NULL;
    }
    return (const uint8_t *)packet->payload + tcp->first_offset;
}

static void stream_peek(const struct stream *stream, void *buf, size_t bytes) {
    const struct tcp_stream *tcp = (const struct tcp_stream *)stream;
    ASSERT(bytes <= tcp->received);
    uint8_t *out = buf;
    size_t offset = tcp->first_offset;
    net_counters.header_bytes_copied += bytes;
    for (const struct pbuf *packet = tcp->first; bytes > 0; packet = packet->next) {
        size_t run = packet->len - offset;
        run = run < bytes ? run : bytes;
        memcpy(out, (const uint8_t *)packet->payload + offset, run);
        out += run;
        bytes -= run;
        offset = 0;
    }
}

/* Of `bytes` that leave the list of received ones, those that lwIP does not know as consumed. */
static size_t settle_credit(struct tcp_stream *tcp, size_t bytes) {
    size_t settled = tcp->credited < bytes ? tcp->credited : bytes;
    tcp->credited -= settled;
    return bytes - settled;
}

/* Window and gathering are each bounded by this, so together by three quarters of all buffers; but
 * for the smallest machines with many clients, where two segments each are more than that: there
 * the reserve of buffers (limits.h) keeps things going. */
static size_t receive_share(void) {
    size_t share = sizes.receive_bytes * 3 / 8 / (stream_count > 0 ? stream_count : 1);
    size_t least = 2 * (size_t)step_bytes + ((size_t)1 << TCP_RCV_SCALE); /* as it is told */
    return share > least ? share : least;
}

static void count_streams(int change) {
    stream_count += (unsigned)change;
    net_window_update_bytes = (uint32_t)(receive_share() / 4);
}

static size_t stream_gather_max(const struct stream *stream) {
    (void)stream; /* the buffers are everybody's */
    return receive_share();
}

static void stream_gather(struct stream *stream, size_t bytes) {
    struct tcp_stream *tcp = of(stream);
    size_t credit = tcp->received < bytes ? tcp->received : bytes;
    if (credit > tcp->credited) {
        tcp->consumed += credit - tcp->credited;
        tcp->credited = credit;
    }
}

/* Out of line: of several requests in one packet only the last comes here. */
__attribute__((noinline)) static void drop_packets(struct tcp_stream *tcp, size_t bytes) {
    while (bytes > 0) {
        size_t run = tcp->first->len - tcp->first_offset;
        if (bytes < run) {
            tcp->first_offset += bytes;
            return;
        }
        bytes -= run;
        release_packet(pop_packet(tcp));
    }
}

static void stream_drop(struct stream *stream, size_t bytes) {
    struct tcp_stream *tcp = of(stream);
    ASSERT(bytes <= tcp->received);
    tcp->received -= bytes;
    tcp->consumed += settle_credit(tcp, bytes);
    if (bytes > 0 && bytes < tcp->first->len - tcp->first_offset) {
        tcp->first_offset += bytes;
        return;
    }
    drop_packets(tcp, bytes);
}

/* Segments that `bytes` bytes from the front lie in. */
static unsigned count_segments(const struct tcp_stream *tcp, size_t bytes) {
    unsigned count = 0;
    size_t offset = tcp->first_offset;
    for (const struct pbuf *packet = tcp->first; bytes > 0; packet = packet->next) {
        size_t run = packet->len - offset;
        bytes -= run < bytes ? run : bytes;
        count += run > 0;
        offset = 0;
    }
    return count;
}

static int stream_take(struct stream *stream, size_t bytes, struct segment *segments,
                       unsigned segments_max, struct stream_loan *loan) {
    struct tcp_stream *tcp = of(stream);
    ASSERT(bytes > 0 && bytes <= tcp->received);
    if (count_segments(tcp, bytes) > segments_max) {
        return -E2BIG;
    }
    *loan = (struct stream_loan){.stream = stream, .bytes = settle_credit(tcp, bytes)};
    struct pbuf *tail = NULL;
    int count = 0;
    tcp->received -= bytes;
    tcp->loans++;
    while (bytes > 0) {
        struct pbuf *packet = tcp->first;
        size_t run = packet->len - tcp->first_offset;
        uint8_t *data = (uint8_t *)packet->payload + tcp->first_offset;
        if (bytes < run) {
            /* The rest is the next piece's: both hold the packet. */
            segments[count++] = (struct segment){data, (uint32_t)bytes};
            tcp->first_offset += bytes;
            pbuf_ref(packet);
            loan->shared = packet;
            break;
        }
        bytes -= run;
        pop_packet(tcp);
        if (run > 0) {
            segments[count++] = (struct segment){data, (uint32_t)run};
        }
        if (tail != NULL) {
            tail->next = packet;
        } else {
            loan->chain = packet;
        }
        tail = packet;
    }
    return count;
}

void stream_return(struct stream_loan *loan) {
    if (loan->stream == NULL) {
        return;
    }
    struct tcp_stream *tcp = of(loan->stream);
    struct pbuf *packet = loan->chain;
    while (packet != NULL) {
        struct pbuf *next = packet->next;
        release_packet(packet);
        packet = next;
    }
    if (loan->shared != NULL) {
        pbuf_free(loan->shared);
    }
    ASSERT(tcp->loans > 0);
    tcp->loans--;
    tcp->consumed += loan->bytes;
    *loan = (struct stream_loan){0};
}

/* Tells lwIP, which counts in 16 bits here, so that it opens the window: up to this stream's share.
 * What is above it is kept back; so windows shrink as streams become more, without ever taking back
 * what was promised.
 *
 * lwIP opens a window in steps of the mss at least; with one of nearly the whole window, as sending
 * likes it, a peer could be left before a closed one until its persist timer fires. So for this it
 * sees a short one. */
static void tell_consumed(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    if (pcb == NULL) {
        return;
    }
    u16_t segment = pcb->mss;
    pcb->mss = segment > step_bytes ? step_bytes : segment;
    size_t share = receive_share();
    size_t room = share > pcb->rcv_wnd ? share - pcb->rcv_wnd : 0;
    size_t told = tcp->is_closing || tcp->consumed < room ? tcp->consumed : room;
    tcp->consumed -= told;
    while (told > 0) {
        u16_t step = told > UINT16_MAX ? UINT16_MAX : (u16_t)told;
        told -= step;
        tcp_recved(pcb, step);
        tcp_stream_forget_newest(); /* it may have sent */
    }
    pcb->mss = segment;
}

void tcp_stream_output(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    tcp_stream_forget_newest();
    if (pcb->unsent != NULL) {
        tcp_output_plain(tcp);
    }
    if (pcb->unsent != NULL || (pcb->flags & TF_ACK_NOW) != 0) {
        (void)tcp_output(pcb); /* what could not go now goes with the next acknowledgement */
    }
}

static void stream_flush(struct stream *stream) {
    struct tcp_stream *tcp = of(stream);
    if (tcp->needs_output && tcp->pcb != NULL) {
        tcp->needs_output = false;
        tcp_stream_output(tcp);
    }
}

static void stream_expect(struct stream *stream, enum stream_outlook outlook) {
    of(stream)->outlook = outlook;
}

static bool stream_is_under_pressure(const struct stream *stream) {
    (void)stream; /* the buffers are everybody's */
    return virtio_net_is_short_of_buffers(virtio_net_first());
}

/* --- Beginning and end -------------------------------------------------------------------------
 */

static void detach(struct tcp_stream *tcp) {
    tcp_arg(tcp->pcb, NULL);
    tcp_recv(tcp->pcb, NULL);
    tcp_sent(tcp->pcb, NULL);
    tcp_err(tcp->pcb, NULL);
    tcp->pcb = NULL;
}

/* The connection is no more. Its frames may still be on their way out. */
static void mark_dead(struct tcp_stream *tcp) {
    tcp_stream_forget_newest();
    tcp->pcb = NULL;
    tcp->stream.state = STREAM_DEAD;
    tcp->frames_at_death = virtio_net_sent(virtio_net_first());
}

static void stream_close(struct stream *stream, bool abort) {
    struct tcp_stream *tcp = of(stream);
    if (tcp->received > 0) {
        stream_drop(stream, tcp->received);
    }
    tcp->is_closing = true;
    tcp_stream_forget_newest();
    tcp->close_deadline_ns = scheduler_now_ns() + NET_CLOSE_TIMEOUT_MS * NS_PER_MS;
    if (abort && tcp->pcb != NULL) {
        struct tcp_pcb *pcb = tcp->pcb;
        detach(tcp);
        mark_dead(tcp);
        tcp_abort(pcb);
    }
    net_wake();
}

void tcp_stream_received(struct tcp_stream *tcp, struct pbuf *chain) {
    append_received(tcp, chain);
    tell_owner(tcp);
}

static err_t received(void *arg, struct tcp_pcb *pcb, struct pbuf *chain, err_t error) {
    struct tcp_stream *tcp = arg;
    (void)pcb;   /* the stream's */
    (void)error; /* lwIP passes none but ERR_OK here */
    if (chain == NULL) {
        tcp->stream.state = STREAM_PEER_CLOSED;
    } else if (tcp->is_closing) {
        tcp->consumed += chain->tot_len;
        pbuf_free(chain);
    } else {
        append_received(tcp, chain);
    }
    tell_owner(tcp);
    return ERR_OK;
}

void tcp_stream_acknowledged(struct tcp_stream *tcp, size_t bytes) {
    tcp->acknowledged += bytes;
    was_acknowledged = true;
    ASSERT(tcp->acknowledged <= tcp->sent);
    tcp_stream_release_acknowledged(tcp);
    if (tcp->was_refused) {
        tcp->was_refused = false;
        tell_owner(tcp);
    }
}

static err_t sent(void *arg, struct tcp_pcb *pcb, u16_t bytes) {
    /* lwIP stops its timer for a closed window when it sends, and not when all that waited turns
     * out to have been received: the timer would miss what it is to ask with, and panic. */
    if (pcb->unsent == NULL) {
        pcb->persist_backoff = 0;
    }
    tcp_stream_acknowledged(arg, bytes);
    return ERR_OK;
}

static void failed(void *arg, err_t error) {
    struct tcp_stream *tcp = arg;
    if (tcp == NULL) {
        return;
    }
    log_debug("net: %s: connection lost (%s)", tcp->stream.peer,
              error == ERR_RST ? "reset by peer" : "timed out or out of memory");
    mark_dead(tcp);
    tell_owner(tcp);
}

static const struct stream_ops tcp_stream_ops = {
    .received = stream_received,
    .front = stream_front,
    .peek = stream_peek,
    .drop = stream_drop,
    .take = stream_take,
    .gather = stream_gather,
    .gather_max = stream_gather_max,
    .send = tcp_stream_send,
    .mark = tcp_stream_mark,
    .send_whole = tcp_stream_send_whole,
    .flush = stream_flush,
    .expect = stream_expect,
    .is_under_pressure = stream_is_under_pressure,
    .close = stream_close,
};

/* Behind all others: who waits for room waits no longer because somebody comes. */
static void add_stream(struct tcp_stream *tcp) {
    struct tcp_stream **link = &streams;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = tcp;
    count_streams(1);
    tcp_input_add(tcp);
}

static void remove_stream(struct tcp_stream *tcp) {
    struct tcp_stream **link = &streams;
    while (*link != tcp) {
        link = &(*link)->next;
    }
    *link = tcp->next;
    tcp_input_remove(tcp);
    count_streams(-1);
    tcp_segments_are_fewer();
    free(tcp);
}

/* Larger than `taken`, what the peer takes, as whole ones of it, where the device cuts. Where it
 * does not, a network that carries large ones all the same does so for peers that take the wire's.
 * What is too short to be meant is not worth a device's work. */
static uint16_t longest_segment(uint16_t taken) {
    bool is_cut = sizes.device_cuts ? taken >= CUT_BYTES_MIN : taken == sizes.wire_segment_bytes;
    if (!is_cut || sizes.large_segment_bytes <= taken) {
        return taken;
    }
    return sizes.device_cuts ? (uint16_t)(sizes.large_segment_bytes / taken * taken)
                             : sizes.large_segment_bytes;
}

/* NULL for a reset, what has waited for an answer to ARP, and a connection that has no stream. */
static struct tcp_stream *with_hints(const struct netif_hint *hints) {
    if (hints == NULL) {
        return NULL;
    }
    const struct tcp_pcb *pcb =
        (const void *)((const char *)hints - offsetof(struct tcp_pcb, netif_hints));
    return pcb->callback_arg;
}

uint16_t tcp_stream_cut_bytes(const struct netif_hint *hints) {
    const struct tcp_stream *tcp = with_hints(hints);
    return tcp != NULL ? tcp->cut_bytes : CUT_BYTES_MIN;
}

void tcp_stream_has_sent(const struct netif_hint *hints, const struct pbuf *frame,
                         bool device_sums) {
    struct tcp_stream *tcp = with_hints(hints);
    if (tcp != NULL) {
        tcp_way_learn(tcp, frame, device_sums);
    }
}

void tcp_streams_forget_ways(void) {
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = tcp->next) {
        tcp->way.until_ns = 0;
    }
}

static err_t accepted(void *arg, struct tcp_pcb *pcb, err_t error) {
    (void)arg; /* there is one listener */
    if (pcb == NULL || error != ERR_OK) {
        net_counters.connections_refused++;
        return ERR_VAL;
    }
    struct tcp_stream *tcp = calloc(1, sizeof *tcp);
    if (tcp == NULL) {
        net_counters.connections_refused++;
        tcp_abort(pcb);
        return ERR_ABRT;
    }
    tcp->stream.ops = &tcp_stream_ops;
    tcp->pcb = pcb;
    (void)snprintf(tcp->stream.peer, sizeof tcp->stream.peer, "%s:%u", ipaddr_ntoa(&pcb->remote_ip),
                   pcb->remote_port); /* for the log: may be cut */
    tcp->stream.peer_address = lwip_ntohl(ip4_addr_get_u32(ip_2_ip4(&pcb->remote_ip)));
    tcp_arg(pcb, tcp);
    tcp_recv(pcb, received);
    tcp_sent(pcb, sent);
    tcp_err(pcb, failed);
    tcp_nagle_disable(pcb);
    /* lwIP bounds what a SYN says by the wire, but not what the same SYN says when it comes again.
     */
    tcp->cut_bytes = pcb->mss < sizes.wire_segment_bytes ? pcb->mss : sizes.wire_segment_bytes;
    pcb->mss = longest_segment(tcp->cut_bytes);
    add_stream(tcp);
    if (!accept_function(&tcp->stream, accept_arg)) {
        net_counters.connections_refused++;
        detach(tcp);
        remove_stream(tcp);
        tcp_abort(pcb);
        return ERR_ABRT;
    }
    net_counters.connections_accepted++;
    return ERR_OK;
}

int tcp_stream_listen(uint16_t port, tcp_stream_accept *accept, void *arg) {
    struct tcp_pcb *pcb = tcp_new();
    if (pcb == NULL) {
        return log_error(-ENOMEM, "net: no memory to listen");
    }
    if (tcp_bind(pcb, IP_ANY_TYPE, port) != ERR_OK) {
        tcp_abort(pcb);
        return log_error(-EADDRINUSE, "net: port %u is taken", port);
    }
    listener = tcp_listen(pcb);
    if (listener == NULL) {
        tcp_abort(pcb);
        return log_error(-ENOMEM, "net: no memory to listen");
    }
    accept_function = accept;
    accept_arg = arg;
    tcp_accept(listener, accepted);
    return 0;
}

void tcp_stream_stop_listening(void) {
    if (listener != NULL) {
        (void)tcp_close(listener); /* closing a listener cannot fail */
        listener = NULL;
    }
}

void tcp_stream_set_sizes(const struct tcp_stream_sizes *wanted) {
    sizes = *wanted;
    step_bytes = sizes.wire_segment_bytes < ETHERNET_SEGMENT_BYTES ? sizes.wire_segment_bytes
                                                                   : ETHERNET_SEGMENT_BYTES;
}

/* A closed stream goes on until the peer has everything, or the deadline. */
static void advance_close(struct tcp_stream *tcp) {
    if (tcp->pcb != NULL && tcp->acknowledged == tcp->sent && tcp->loans == 0) {
        struct tcp_pcb *pcb = tcp->pcb;
        detach(tcp);
        mark_dead(tcp);
        if (tcp_close(pcb) != ERR_OK) {
            tcp_abort(pcb); /* no memory for a FIN: everything is acknowledged, a reset will do */
        }
    } else if (tcp->pcb != NULL && scheduler_now_ns() > tcp->close_deadline_ns) {
        struct tcp_pcb *pcb = tcp->pcb;
        log_debug("net: %s: cut, it does not take its last bytes", tcp->stream.peer);
        detach(tcp);
        mark_dead(tcp);
        tcp_abort(pcb);
    }
    if (tcp->pcb == NULL && tcp->loans == 0 &&
        virtio_net_reclaimed(virtio_net_first()) >= tcp->frames_at_death) {
        tcp_stream_release_marks(tcp, UINT64_MAX);
        remove_stream(tcp);
    }
}

static void acknowledge(struct tcp_stream *tcp) {
    if (!tcp_output_ack(tcp)) {
        tcp_ack_now(tcp->pcb);
        (void)tcp_output(tcp->pcb); /* without memory for it, the timer will acknowledge */
    }
}

/* For more than one segment, at the end of the round that took them in; unless what was sent since
 * has acknowledged them, and lwIP has taken its mark away. As long as they are less than two full
 * ones (RFC 9293, 3.8.6.3), as requests are, a reply that is expected may take it along. */
static void send_owed_ack(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    tcp->owes_ack = false;
    if (pcb == NULL || (pcb->flags & TF_ACK_DELAY) == 0) {
        return;
    }
    if (tcp->outlook == STREAM_WILL_REPLY && pcb->rcv_nxt - tcp->unacknowledged < 2u * step_bytes) {
        return;
    }
    acknowledge(tcp);
}

/* What lwIP keeps of segments on their way comes from pools that all connections share. One that
 * was refused may have nothing on its way itself, so that no acknowledgement would ever tell it
 * that there is room again: it tries once more when anybody's bytes were acknowledged
 * or the device has read frames. */
static void tell_of_memory(void) {
    static uint64_t reclaimed_before;
    uint64_t reclaimed = virtio_net_reclaimed(virtio_net_first());
    if (reclaimed == reclaimed_before && !was_acknowledged) {
        return;
    }
    reclaimed_before = reclaimed;
    was_acknowledged = false;
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = tcp->next) {
        if (tcp->lacks_memory) {
            tcp->lacks_memory = false;
            tell_owner(tcp);
        }
    }
}

/* Once a tick: whatever was sent, the peer has to acknowledge within the user timeout, at the
 * latest at the end of the next one. It may answer, and even acknowledge a little now and then. */
static void watch_delivery(struct tcp_stream *tcp) {
    uint32_t most = sizes.user_timeout_ms / TCP_SLOW_INTERVAL;
    if (tcp->acknowledged >= tcp->due) {
        tcp->due = tcp->sent;
        tcp->due_since = tcp_ticks;
    } else if (most != 0 && tcp_ticks - tcp->due_since > most) {
        log_info("net: %s: has not taken in %u ms what was sent to it: given up", tcp->stream.peer,
                 (unsigned)sizes.user_timeout_ms);
        tcp_abort(tcp->pcb);
    }
}

/* Cuts the first segment that waits; what is behind the cut is copied. False without memory. */
static bool cut_first(struct tcp_pcb *pcb, uint32_t bytes) {
    size_t rest = pcb->unsent->len - bytes;
    if (tcp_split_unsent_seg(pcb, (u16_t)bytes) != ERR_OK) {
        return false;
    }
    net_counters.bytes_copied += rest;
    return true;
}

/* Of a segment that was sent and is to be sent again, the peer may have acknowledged a part since.
 * lwIP reckons its window from there, and for what lies before finds that it does not fit. */
static void drop_acknowledged_front(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    struct tcp_seg *first = pcb->unsent;
    uint32_t bytes = pcb->lastack - lwip_ntohl(first->tcphdr->seqno);
    if (bytes == 0 || bytes >= first->len || !cut_first(pcb, bytes)) {
        return; /* also when it begins behind what is acknowledged: the difference is huge */
    }
    pcb->unsent = first->next;
    pcb->snd_queuelen = (u16_t)(pcb->snd_queuelen - pbuf_clen(first->p));
    pcb->snd_buf += bytes;
    tcp_seg_free(first);
    tcp_stream_acknowledged(tcp, bytes);
}

/* Nothing is on its way, and the first segment that waits is longer than the peer's window. lwIP
 * waits for the window to open or for a timer; but what fills one of the peer's segments, which are
 * shorter than those that lwIP knows of, may go at once (RFC 9293, 3.8.6.2.1). By halves, so that
 * what a slow peer takes in many small windows is not copied for each of them. */
static void fill_window(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    if (pcb->unsent == NULL) {
        return;
    }
    tcp_stream_forget_newest();
    drop_acknowledged_front(tcp);
    uint32_t length = pcb->unsent->len;
    uint32_t room = pcb->lastack + pcb->snd_wnd - lwip_ntohl(pcb->unsent->tcphdr->seqno);
    if (room == 0 || room < tcp->cut_bytes || room >= length) {
        return;
    }
    uint32_t part = room;
    while (2 * part < length) {
        part *= 2;
    }
    for (; part >= room; part /= 2) {
        if (!cut_first(pcb, part)) {
            return;
        }
    }
    (void)tcp_output(pcb); /* what finds no room goes with the others that found none */
}

/* Asks a peer that has been silent whether it is there (RFC 1122, 4.2.3.6), and gives it up when it
 * never answers. By a segment from before all that it may lack: lwIP's own question lies before the
 * next byte to be sent. To a peer that has missed what comes before that, it is in the window and
 * no question (RFC 9293, 3.10.7.4). Where the window is closed the probes of it ask, and lwIP
 * counts them. */
static void watch_peer(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    uint32_t silent_ms = (tcp_ticks - pcb->tmr) * TCP_SLOW_INTERVAL;
    uint32_t interval_ms = sizes.keep_alive_ms / KEEP_ALIVE_PROBES_PER_IDLE;
    if (pcb->persist_backoff != 0) {
        tcp_stream_mend_lengths(pcb);
        fill_window(tcp);
    } else if (silent_ms > sizes.keep_alive_ms + KEEP_ALIVE_PROBES * interval_ms) {
        tcp_abort(pcb);
    } else if (silent_ms > sizes.keep_alive_ms + pcb->keep_cnt_sent * interval_ms) {
        uint32_t next = pcb->snd_nxt;
        pcb->snd_nxt = pcb->lastack;
        pcb->keep_cnt_sent += tcp_keepalive(pcb) == ERR_OK;
        pcb->snd_nxt = next;
    }
}

/* Makes the list begin with `first`, in the same circle. */
static void turn_to(struct tcp_stream *first) {
    struct tcp_stream *head = streams;
    if (first == head) {
        return;
    }
    struct tcp_stream *before = head;
    while (before->next != first) {
        before = before->next;
    }
    before->next = NULL;
    struct tcp_stream *last = first;
    while (last->next != NULL) {
        last = last->next;
    }
    last->next = head;
    streams = first;
}

void tcp_streams_retry(void) {
    const struct virtio_net *net = virtio_net_first();
    uint64_t sent_before = virtio_net_sent(net);
    tcp_stream_forget_newest();
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = tcp->next) {
        if (tcp->pcb == NULL) {
            continue;
        }
        (void)tcp_output(tcp->pcb); /* no room once more: then once more */
        if (virtio_net_wants_room(net)) {
            /* Nor for the others. With too little room for its first frame it has had no turn. */
            bool had_turn = tcp == streams && virtio_net_sent(net) != sent_before;
            turn_to(had_turn && tcp->next != NULL ? tcp->next : tcp);
            return;
        }
    }
}

/* A FIN or SYN that found no room in the ring is not yet sent, so no timer would send it again. */
void tcp_streams_retry_closed(void) {
    struct tcp_pcb *waiting[MEMP_NUM_TCP_PCB];
    unsigned count = 0;
    for (struct tcp_pcb *pcb = tcp_active_pcbs; pcb != NULL; pcb = pcb->next) {
        if (pcb->callback_arg == NULL && pcb->unsent != NULL) {
            ASSERT(count < MEMP_NUM_TCP_PCB);
            waiting[count++] = pcb;
        }
    }
    /* lwIP puts new ones in front. */
    while (count > 0 && !virtio_net_wants_room(virtio_net_first())) {
        (void)tcp_output(waiting[--count]); /* no room once more: then once more */
    }
}

void tcp_streams_run(void) {
    tcp_stream_forget_newest();
    tell_of_memory();
    static uint32_t ticks_before;
    bool is_tick = tcp_ticks != ticks_before;
    ticks_before = tcp_ticks;
    struct tcp_stream *next;
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = next) {
        next = tcp->next;
        if (tcp->consumed >= NET_CONSUMED_TOLD_BYTES || (tcp->is_closing && tcp->consumed > 0)) {
            tell_consumed(tcp);
        }
        if (tcp->pcb != NULL) {
            tcp_stream_release_acknowledged(tcp);
        }
        stream_flush(&tcp->stream);
        if (tcp->owes_ack) {
            send_owed_ack(tcp);
        }
        if (tcp->pcb != NULL) {
            watch_peer(tcp);
        }
        if (is_tick && tcp->pcb != NULL) {
            watch_delivery(tcp);
        }
        if (tcp->is_closing) {
            advance_close(tcp);
        }
    }
}

bool tcp_streams_acknowledge(void) {
    bool any = false;
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = tcp->next) {
        if (tcp->pcb != NULL && tcp->outlook != STREAM_WILL_REPLY &&
            (tcp->pcb->flags & TF_ACK_DELAY) != 0) {
            net_counters.acks_at_idle++;
            any = true;
            acknowledge(tcp);
        }
    }
    return any;
}

bool tcp_streams_await_no_acks(void) {
    for (const struct tcp_pcb *pcb = tcp_active_pcbs; pcb != NULL; pcb = pcb->next) {
        const struct tcp_stream *tcp = pcb->callback_arg;
        if (pcb->state != ESTABLISHED || tcp == NULL || tcp->outlook != STREAM_HAS_REPLIED ||
            pcb->unsent != NULL || pcb->dupacks != 0 || tcp->is_closing || tcp->was_refused ||
            tcp->lacks_memory) {
            return false;
        }
    }
    return tcp_active_pcbs != NULL;
}

void tcp_streams_free_out_of_order(void) {
    for (struct tcp_stream *tcp = streams; tcp != NULL; tcp = tcp->next) {
        if (tcp->pcb != NULL && tcp->pcb->ooseq != NULL) {
            tcp_free_ooseq(tcp->pcb);
        }
    }
}

unsigned tcp_streams_count(void) {
    return stream_count;
}
