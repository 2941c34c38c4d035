/* The short way out: what a stream has gathered goes into a frame past lwIP, when it is no more
 * than the next bytes of an open connection and where the last frame went is known. See
 * tcp_connection.h.
 *
 * lwIP's own way remains the one for everything else: what is sent again, what does not fit into
 * the window, what no frame of lwIP's has shown the way for lately. A segment that has gone this
 * way is lwIP's like any other: it is in its list of those to be acknowledged, and is sent again by
 * it. */
#include <lwip/inet_chksum.h>
#include <lwip/priv/tcp_priv.h>
#include <lwip/prot/ip4.h>
#include <lwip/stats.h>
#include <lwip/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/lib/unaligned.h"
#include "core/task/scheduler.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"

enum {
    ETHERNET_BYTES = 14,
    LOWER_BYTES = ETHERNET_BYTES + IP_HLEN, /* in front of TCP's header */
    HEADERS_BYTES = LOWER_BYTES + TCP_HLEN,
    IP_LENGTH_AT = ETHERNET_BYTES + 2,
    IP_IDENTIFICATION_AT = ETHERNET_BYTES + 4,
    IP_CHECKSUM_AT = ETHERNET_BYTES + 10,
    IP_ADDRESSES_AT = ETHERNET_BYTES + 12,
};

_Static_assert(LOWER_BYTES == TCP_WAY_BYTES && LOWER_BYTES % 8 == 2, "copied as such");

/* --- The beginning of a segment ----------------------------------------------------------------
 */

/* The first buffer of a segment: room for all headers, and no payload. */
struct head {
    struct pbuf_custom custom; /* first: lwIP gives this back */
    union {
        struct head *next_free;
        /* So that TCP's header, the last, lies at a multiple of 8, and IP's at one of 4. */
        uint8_t room[2 + PBUF_LINK_ENCAPSULATION_HLEN + HEADERS_BYTES];
    };
};

_Static_assert((offsetof(struct head, room) + sizeof((struct head *)0)->room - TCP_HLEN) % 8 == 0,
               "TCP's header is aligned");

static struct head *free_heads;
static unsigned free_count;

static void head_freed(struct pbuf *pbuf) {
    struct head *head = (struct head *)(void *)pbuf;
    if (free_count >= tcp_streams_count() * NET_HEADS_KEPT) {
        free(head);
        return;
    }
    head->next_free = free_heads;
    free_heads = head;
    free_count++;
}

static struct head *pop_head(void) {
    struct head *head = free_heads;
    free_heads = head->next_free;
    free_count--;
    return head;
}

static struct head *take_head(void) {
    return free_heads != NULL ? pop_head() : malloc(sizeof(struct head));
}

void tcp_segments_are_fewer(void) {
    while (free_count > tcp_streams_count() * NET_HEADS_KEPT) {
        free(pop_head());
    }
}

static void begin_head(struct head *head, const struct tcp_pcb *pcb, uint32_t seqno, u8_t flags) {
    struct tcp_hdr *header = (void *)(head->room + sizeof head->room - TCP_HLEN);
    head->custom.custom_free_function = head_freed;
    head->custom.pbuf = (struct pbuf){.payload = header,
                                      .len = TCP_HLEN,
                                      .tot_len = TCP_HLEN,
                                      .type_internal = (u8_t)PBUF_RAM,
                                      .flags = PBUF_FLAG_IS_CUSTOM,
                                      .ref = 1};
    header->src = lwip_htons(pcb->local_port);
    header->dest = lwip_htons(pcb->remote_port);
    header->seqno = lwip_htonl(seqno);
    TCPH_HDRLEN_FLAGS_SET(header, TCP_HLEN / 4, flags);
    header->urgp = 0;
}

struct tcp_seg *tcp_segment_begin(const struct tcp_stream *tcp) {
    struct tcp_seg *segment = memp_malloc(MEMP_TCP_SEG);
    struct head *head = segment != NULL ? take_head() : NULL;
    if (head == NULL) {
        if (segment != NULL) {
            memp_free(MEMP_TCP_SEG, segment);
        }
        return NULL;
    }
    begin_head(head, tcp->pcb, tcp->pcb->snd_lbb, TCP_PSH);
    *segment = (struct tcp_seg){.p = &head->custom.pbuf, .tcphdr = head->custom.pbuf.payload};
    return segment;
}

/* --- Its way -----------------------------------------------------------------------------------
 */

static uint32_t add_words(const uint8_t *from, unsigned bytes) {
    uint32_t sum = 0;
    for (unsigned i = 0; i < bytes; i += 2) {
        sum += unaligned_load16(from + i);
    }
    return sum;
}

static uint16_t fold(uint32_t sum) {
    sum = (sum >> 16) + (sum & UINT16_MAX);
    return (uint16_t)((sum >> 16) + (sum & UINT16_MAX));
}

void tcp_way_learn(struct tcp_stream *tcp, const struct pbuf *frame, bool device_sums) {
    struct tcp_way *way = &tcp->way;
    const uint8_t *bytes = frame->payload;
    if (frame->len < HEADERS_BYTES || bytes[ETHERNET_BYTES] != 0x45) {
        return; /* with options: not what this way sends */
    }
    memcpy(way->headers, bytes, LOWER_BYTES);
    memset(way->headers + IP_LENGTH_AT, 0, 4); /* and the identification */
    memset(way->headers + IP_CHECKSUM_AT, 0, 2);
    way->ip_sum = add_words(way->headers + ETHERNET_BYTES, IP_HLEN);
    way->pseudo_sum = add_words(way->headers + IP_ADDRESSES_AT, 8) + PP_HTONS(IP_PROTO_TCP);
    way->device_sums = device_sums;
    way->until_ns = scheduler_now_ns() + NET_WAY_MS * NS_PER_MS;
}

/* Its way is known, and nobody waits for room. */
static bool may_go(const struct tcp_stream *tcp) {
    return scheduler_now_ns() < tcp->way.until_ns && tcp->pcb->state == ESTABLISHED &&
           !virtio_net_wants_room(virtio_net_first());
}

/* Only what is neither sent again nor says more than its bytes, and finds its way and room. */
static bool is_plain(const struct tcp_stream *tcp, const struct tcp_seg *segment) {
    const struct tcp_pcb *pcb = tcp->pcb;
    const struct tcp_hdr *header = segment->tcphdr;
    tcpwnd_size_t window = pcb->snd_wnd < pcb->cwnd ? pcb->snd_wnd : pcb->cwnd;
    bool says_more = segment->flags != 0 ||
                     (header->_hdrlen_rsvd_flags & PP_HTONS((u16_t) ~(TCP_PSH | TCP_ACK))) !=
                         PP_HTONS((TCP_HLEN / 4) << 12);
    return may_go(tcp) && !says_more && lwip_ntohl(header->seqno) == pcb->snd_nxt &&
           pcb->persist_backoff == 0 && pcb->snd_nxt - pcb->lastack + segment->len <= window &&
           segment->p->ref == 1 && segment->p->payload == header;
}

/* Moves the frame's first byte, lower headers on or off again. */
static void move_front(struct pbuf *frame, int bytes) {
    frame->payload = (uint8_t *)frame->payload - bytes;
    frame->len = (u16_t)(frame->len + bytes);
    frame->tot_len = (u16_t)(frame->tot_len + bytes);
}

static void fill_lower_headers(struct tcp_way *way, struct pbuf *frame, uint16_t ip_bytes) {
    /* lwIP counts its own; both count on, so of two with the same number one has long arrived. */
    static uint16_t identification = 0x8000;
    uint8_t *headers = frame->payload;
    uint16_t length = lwip_htons(ip_bytes);
    for (unsigned i = 0; i < LOWER_BYTES - 2; i += 8) {
        unaligned_store64(headers + i, unaligned_load64(way->headers + i));
    }
    unaligned_store16(headers + LOWER_BYTES - 2, unaligned_load16(way->headers + LOWER_BYTES - 2));
    unaligned_store16(headers + IP_LENGTH_AT, length);
    unaligned_store16(headers + IP_IDENTIFICATION_AT, ++identification);
    unaligned_store16(headers + IP_CHECKSUM_AT,
                      (uint16_t)~fold(way->ip_sum + length + identification));
}

/* Is on its way, behind `last` of those that are: what lwIP notes of such a segment. */
static void note_sent(struct tcp_pcb *pcb, struct tcp_seg *segment, struct tcp_seg *last) {
    pcb->unsent = segment->next;
    *(last != NULL ? &last->next : &pcb->unacked) = segment;
    segment->next = NULL;
    tcp_clear_flags(pcb, TF_NAGLEMEMERR);
    if (pcb->rttest == 0) {
        pcb->rttest = tcp_ticks;
        pcb->rtseq = pcb->snd_nxt;
    }
    if (pcb->rtime < 0) {
        pcb->rtime = 0;
    }
    pcb->snd_nxt += segment->len;
}

/* With an acknowledgement of all that has come. `frame` begins with TCP's header. False when there
 * is no room in the ring; nothing has changed then but fields that lwIP writes anew. */
static inline __attribute__((always_inline)) bool
send_frame(struct tcp_stream *tcp, struct pbuf *frame, uint16_t cut_bytes) {
    struct tcp_pcb *pcb = tcp->pcb;
    struct tcp_hdr *header = frame->payload;
    uint16_t tcp_bytes = frame->tot_len;
    header->ackno = lwip_htonl(pcb->rcv_nxt);
    header->wnd = lwip_htons(TCPWND_MIN16(RCV_WND_SCALE(pcb, pcb->rcv_ann_wnd)));
    header->chksum = 0;
    header->chksum = tcp->way.device_sums ? fold(tcp->way.pseudo_sum + lwip_htons(tcp_bytes))
                                          : ip_chksum_pseudo(frame, IP_PROTO_TCP, tcp_bytes,
                                                             &pcb->local_ip, &pcb->remote_ip);
    move_front(frame, LOWER_BYTES);
    fill_lower_headers(&tcp->way, frame, (uint16_t)(tcp_bytes + IP_HLEN));
    if (!virtio_net_send_tcp(virtio_net_first(), frame, cut_bytes)) {
        move_front(frame, -LOWER_BYTES);
        return false;
    }
    tcp_clear_flags(pcb, TF_ACK_DELAY | TF_ACK_NOW);
    pcb->rcv_ann_right_edge = pcb->rcv_nxt + pcb->rcv_ann_wnd;
    TCP_STATS_INC(tcp.xmit);
    return true;
}

/* Out of line: streams that have nothing to send save no registers for it. */
__attribute__((noinline)) void tcp_output_plain(struct tcp_stream *tcp) {
    struct tcp_seg *last = tcp->pcb->unacked;
    while (last != NULL && last->next != NULL) {
        last = last->next;
    }
    struct tcp_seg *segment;
    while ((segment = tcp->pcb->unsent) != NULL && is_plain(tcp, segment)) {
        TCPH_SET_FLAG(segment->tcphdr, TCP_ACK);
        if (!send_frame(tcp, segment->p, segment->len > tcp->cut_bytes ? tcp->cut_bytes : 0)) {
            return;
        }
        note_sent(tcp->pcb, segment, last);
        last = segment;
    }
}

/* What lwIP would tell of segments that came out of order, only lwIP tells. */
__attribute__((noinline)) bool tcp_output_ack(struct tcp_stream *tcp) {
    struct tcp_pcb *pcb = tcp->pcb;
    bool is_bare = pcb->unsent == NULL && pcb->ooseq == NULL && pcb->persist_backoff == 0;
    struct head *head = is_bare && may_go(tcp) ? take_head() : NULL;
    if (head == NULL) {
        return false;
    }
    begin_head(head, pcb, pcb->snd_nxt, TCP_ACK);
    bool is_sent = send_frame(tcp, &head->custom.pbuf, 0);
    virtio_net_free_sent(&head->custom.pbuf); /* the ring has a reference of its own */
    return is_sent;
}
