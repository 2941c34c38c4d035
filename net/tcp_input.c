/* What becomes of a received packet before, around and instead of lwIP. See tcp_stream.h.
 *
 * Nearly every packet is the next piece of an open connection, acknowledges what is due, or both.
 * Such a one goes straight to its stream; whatever is not exactly that goes through lwIP. */
#include <errno.h>
#include <lwip/inet_chksum.h>
#include <lwip/ip.h>
#include <lwip/netif.h>
#include <lwip/priv/tcp_priv.h>
#include <lwip/stats.h>
#include <lwip/tcp.h>
#include <string.h>

#include "boot/arch.h"
#include "core/task/scheduler.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"

enum {
    IP_VERSION_4_NO_OPTIONS = 0x45,
    IP_FRAGMENT = 0x3fff, /* more of them, or not the first */
    HEADERS_BYTES = IP_HLEN + TCP_HLEN,
    PLACES = 64, /* of streams by their ports; a power of two */
};

#define STALE_ANSWER_INTERVAL_NS (500 * NS_PER_MS)

/* --- The short way -----------------------------------------------------------------------------
 */

/* All streams, at the places that their ports give them: clients' ports are next to each other, or
 * every other one. */
static struct tcp_stream *by_ports[PLACES];

static struct tcp_stream **place_of(uint32_t ports) {
    uint32_t hash = ports * UINT32_C(0x9e3779b1); /* 2^32 by the golden ratio spreads neighbours */
    return &by_ports[hash / (UINT32_MAX / PLACES + 1)];
}

void tcp_input_add(struct tcp_stream *tcp) {
    uint16_t ports[2] = {lwip_htons(tcp->pcb->remote_port), lwip_htons(tcp->pcb->local_port)};
    memcpy(&tcp->ports, ports, sizeof tcp->ports);
    tcp->address = ip4_addr_get_u32(ip_2_ip4(&tcp->pcb->remote_ip));
    struct tcp_stream **place = place_of(tcp->ports);
    tcp->next_at_place = *place; /* before one that is dead already and had the same port */
    *place = tcp;
}

void tcp_input_remove(const struct tcp_stream *tcp) {
    struct tcp_stream **link = place_of(tcp->ports);
    while (*link != tcp) {
        link = &(*link)->next_at_place;
    }
    *link = tcp->next_at_place;
}

static struct tcp_stream *find(uint32_t ports, uint32_t address) {
    struct tcp_stream *tcp = *place_of(ports);
    while (tcp != NULL && (tcp->ports != ports || tcp->address != address)) {
        tcp = tcp->next_at_place;
    }
    return tcp;
}

/* The connection that a packet belongs to, when all that its headers say is that the streams go on:
 * no options, no fragment, no flag but ACK and PSH. NULL for the long way. */
static struct tcp_stream *continued(const struct pbuf *packet, const struct netif *netif) {
    const struct ip_hdr *ip = packet->payload;
    const struct tcp_hdr *header = (const void *)(ip + 1);
    if (packet->len < HEADERS_BYTES || ip->_v_hl != IP_VERSION_4_NO_OPTIONS ||
        IPH_PROTO(ip) != IP_PROTO_TCP || lwip_ntohs(IPH_LEN(ip)) != packet->tot_len ||
        (IPH_OFFSET(ip) & PP_HTONS(IP_FRAGMENT)) != 0 ||
        ip->dest.addr != ip4_addr_get_u32(netif_ip4_addr(netif))) {
        return NULL;
    }
    uint32_t ports;
    memcpy(&ports, header, sizeof ports);
    struct tcp_stream *tcp = find(ports, ip->src.addr);
    /* Header of five words; of the flags only PSH may differ. */
    bool is_plain = (header->_hdrlen_rsvd_flags & PP_HTONS(0xf03f & ~TCP_PSH)) ==
                    PP_HTONS((5u << 12) | TCP_ACK);
    return is_plain && tcp != NULL && tcp->pcb != NULL ? tcp : NULL;
}

/* Nothing is under way in which this segment could be more than the next bytes: it is the next one,
 * fits into the window and leaves the peer's open. */
static bool is_next(const struct tcp_stream *tcp, const struct tcp_hdr *header, size_t bytes) {
    const struct tcp_pcb *pcb = tcp->pcb;
    return pcb->state == ESTABLISHED && !tcp->is_closing && pcb->refused_data == NULL &&
           pcb->ooseq == NULL && pcb->persist_backoff == 0 &&
           lwip_ntohl(header->seqno) == pcb->rcv_nxt && bytes <= pcb->rcv_wnd && header->wnd != 0;
}

/* It acknowledges what it should, and nothing has been lost lately; what waits to be sent lies
 * behind it. (lwIP may forget of a loss, when there are two in a row, that some of it still waits
 * to be sent again.) */
static bool is_plain_acknowledgement(const struct tcp_pcb *pcb, uint32_t ackno) {
    return TCP_SEQ_GT(ackno, pcb->lastack) && TCP_SEQ_LEQ(ackno, pcb->snd_nxt) &&
           pcb->unacked != NULL && pcb->nrtx == 0 && (pcb->flags & (TF_RTO | TF_INFR)) == 0 &&
           (pcb->unsent == NULL || TCP_SEQ_LEQ(ackno, lwip_ntohl(pcb->unsent->tcphdr->seqno)));
}

/* Slow start and congestion avoidance (RFC 5681, 3.1, with RFC 3465's counting of bytes), as lwIP
 * reckons. */
static void open_congestion_window(struct tcp_pcb *pcb, tcpwnd_size_t acknowledged) {
    if (pcb->cwnd < pcb->ssthresh) {
        tcpwnd_size_t most = 2 * (tcpwnd_size_t)pcb->mss;
        tcpwnd_size_t more = acknowledged < most ? acknowledged : most;
        TCP_WND_INC(pcb->cwnd, more);
        return;
    }
    TCP_WND_INC(pcb->bytes_acked, acknowledged);
    if (pcb->bytes_acked >= pcb->cwnd) {
        pcb->bytes_acked -= pcb->cwnd;
        TCP_WND_INC(pcb->cwnd, pcb->mss);
    }
}

/* The round trip of the segment that is timed, in ticks (RFC 6298, 2; scaled as lwIP does). */
static void measure_round_trip(struct tcp_pcb *pcb, uint32_t ackno) {
    if (pcb->rttest == 0 || !TCP_SEQ_LT(pcb->rtseq, ackno)) {
        return;
    }
    int error = (s16_t)(tcp_ticks - pcb->rttest) - (pcb->sa >> 3);
    pcb->sa = (s16_t)(pcb->sa + error);
    pcb->sv = (s16_t)(pcb->sv + (error < 0 ? -error : error) - (pcb->sv >> 2));
    pcb->rto = (s16_t)((pcb->sa >> 3) + pcb->sv);
    pcb->rttest = 0;
}

/* Frees the segments that are acknowledged whole; what is acknowledged in part stays. */
static void acknowledge(struct tcp_stream *tcp, uint32_t ackno) {
    struct tcp_pcb *pcb = tcp->pcb;
    size_t bytes = 0;
    struct tcp_seg *segment;
    open_congestion_window(pcb, ackno - pcb->lastack);
    pcb->dupacks = 0; /* and only here: bytes do not interrupt a row of them (RFC 5681, 3.2) */
    pcb->lastack = ackno;
    pcb->rto = (s16_t)((pcb->sa >> 3) + pcb->sv);
    while ((segment = pcb->unacked) != NULL &&
           TCP_SEQ_LEQ(lwip_ntohl(segment->tcphdr->seqno) + TCP_TCPLEN(segment), ackno)) {
        pcb->unacked = segment->next;
        pcb->snd_queuelen = (u16_t)(pcb->snd_queuelen - pbuf_clen(segment->p));
        bytes += segment->len;
        virtio_net_free_sent(segment->p);
        memp_free(MEMP_TCP_SEG, segment);
    }
    pcb->rtime = pcb->unacked == NULL ? -1 : 0;
    pcb->polltmr = 0;
    pcb->snd_buf += (tcpwnd_size_t)bytes;
    measure_round_trip(pcb, ackno);
    tcp->needs_output |= pcb->unsent != NULL;
    if (bytes > 0) {
        tcp_stream_acknowledged(tcp, bytes);
    }
}

/* The peer's window, told by a segment that is newer than any before (RFC 9293, 3.10.7.4). */
static void take_window(struct tcp_stream *tcp, const struct tcp_hdr *header) {
    struct tcp_pcb *pcb = tcp->pcb;
    tcpwnd_size_t window = (tcpwnd_size_t)SND_WND_SCALE(pcb, (u32_t)lwip_ntohs(header->wnd));
    if (window > pcb->snd_wnd && pcb->unsent != NULL) {
        tcp->needs_output = true;
    }
    pcb->snd_wnd = window;
    if (window > pcb->snd_wnd_max) {
        pcb->snd_wnd_max = window;
    }
    pcb->snd_wl1 = pcb->rcv_nxt;
    pcb->snd_wl2 = pcb->lastack;
}

/* The ones' complement sum over the header's ten words is that of five pairs of them, whatever the
 * order of bytes (RFC 1071, 2); with the checksum among them it is zero, which is all ones. */
static bool is_header_sound(const struct ip_hdr *ip) {
    uint32_t words[IP_HLEN / sizeof(uint32_t)];
    memcpy(words, ip, sizeof words);
    uint64_t sum = (uint64_t)words[0] + words[1] + words[2] + words[3] + words[4];
    sum = (sum >> 32) + (sum & UINT32_MAX);
    sum = (sum >> 16) + (sum & UINT16_MAX);
    sum = (sum >> 16) + (sum & UINT16_MAX);
    return sum == UINT16_MAX;
}

/* Moves the packet's first byte, headers off or on again. */
static void move_front(struct pbuf *packet, int bytes) {
    packet->payload = (uint8_t *)packet->payload + bytes;
    packet->len = (u16_t)(packet->len - bytes);
    packet->tot_len = (u16_t)(packet->tot_len - bytes);
}

static bool is_sum_right(struct pbuf *packet, const struct tcp_pcb *pcb) {
    move_front(packet, IP_HLEN);
    uint16_t sum =
        ip_chksum_pseudo(packet, IP_PROTO_TCP, packet->tot_len, &pcb->remote_ip, &pcb->local_ip);
    move_front(packet, -IP_HLEN);
    return sum == 0;
}

bool tcp_input_continue(struct pbuf *packet, const struct netif *netif, bool is_sum_known) {
    const struct ip_hdr *ip = packet->payload;
    const struct tcp_hdr *header = (const void *)(ip + 1);
    struct tcp_stream *tcp = continued(packet, netif);
    u16_t bytes = (u16_t)(packet->tot_len - HEADERS_BYTES);
    if (tcp == NULL || !is_next(tcp, header, bytes) || !is_header_sound(ip)) {
        return false;
    }
    uint32_t ackno = lwip_ntohl(header->ackno);
    bool has_news = ackno != tcp->pcb->lastack;
    if (has_news ? !is_plain_acknowledgement(tcp->pcb, ackno) : bytes == 0) {
        return false;
    }
    struct tcp_pcb *pcb = tcp->pcb;
    if (!is_sum_known && !is_sum_right(packet, pcb)) {
        return false; /* lwIP sums it up once more, drops it and counts it */
    }
    move_front(packet, HEADERS_BYTES);
    TCP_STATS_INC(tcp.recv);
    pcb->tmr = tcp_ticks;
    pcb->keep_cnt_sent = 0;
    pcb->persist_probe = 0;
    if (has_news) {
        acknowledge(tcp, ackno);
    }
    take_window(tcp, header);
    if (bytes == 0) {
        virtio_net_free(packet);
        return true;
    }
    if ((pcb->flags & TF_ACK_DELAY) != 0) {
        tcp->owes_ack = true; /* for more than one segment: see send_owed_ack */
    } else {
        tcp->unacknowledged = pcb->rcv_nxt;
    }
    pcb->rcv_nxt += bytes;
    pcb->rcv_wnd -= bytes;
    /* The window that was told ends where it did; by what it could be raised matters to tcp_recved
     * only. */
    pcb->rcv_ann_wnd -= bytes < pcb->rcv_ann_wnd ? bytes : pcb->rcv_ann_wnd;
    tcp_set_flags(pcb, TF_ACK_DELAY);
    tcp_stream_received(tcp, packet);
    return true;
}

/* --- Around the long way -----------------------------------------------------------------------
 */

/* A pure acknowledgement from before what we have received, and with no news, is answered twice a
 * second at most: enough for a keep-alive probe. Two ends whose windows are both closed, and that
 * have both probed, would otherwise answer each other's answers for as long as they are stuck. */
static bool is_answered_already(const struct tcp_pcb *pcb, const struct tcp_hdr *header,
                                const struct pbuf *payload) {
    struct tcp_stream *tcp =
        pcb->state == ESTABLISHED || pcb->state == CLOSE_WAIT ? pcb->callback_arg : NULL;
    if (tcp == NULL || payload->tot_len != 0 || TCPH_FLAGS(header) != TCP_ACK ||
        !TCP_SEQ_LT(header->seqno, pcb->rcv_nxt) || TCP_SEQ_GT(header->ackno, pcb->lastack)) {
        return false;
    }
    uint64_t now = scheduler_now_ns();
    if (now < tcp->stale_answer_ns) {
        return true;
    }
    tcp->stale_answer_ns = now + STALE_ANSWER_INTERVAL_NS;
    return false;
}

/* lwIP takes an MSS option from any segment. One that comes after the handshake would make the mss
 * smaller than segments that are queued already, and lwIP's assertions about that stop the machine.
 * It belongs into a SYN only (RFC 9293, 3.7.1): anything else that carries one is not TCP. */
static err_t check_options(const struct tcp_pcb *pcb, const struct tcp_hdr *header,
                           uint16_t option_bytes, uint16_t first_bytes, const uint8_t *rest) {
    if (option_bytes == 0 || pcb->state == LISTEN || (TCPH_FLAGS(header) & TCP_SYN) != 0) {
        return ERR_OK;
    }
    const uint8_t *first = (const uint8_t *)(header + 1);
    for (unsigned at = 0; at < option_bytes;) {
        uint8_t kind = at < first_bytes ? first[at] : rest[at - first_bytes];
        if (kind == LWIP_TCP_OPT_MSS) {
            return ERR_VAL;
        }
        unsigned next = at + 1;
        if (kind == LWIP_TCP_OPT_EOL || (kind != LWIP_TCP_OPT_NOP && next >= option_bytes)) {
            break;
        }
        if (kind != LWIP_TCP_OPT_NOP) {
            uint8_t bytes = next < first_bytes ? first[next] : rest[next - first_bytes];
            if (bytes < 2) {
                break; /* lwIP reads no further either */
            }
            next = at + bytes;
        }
        at = next;
    }
    return ERR_OK;
}

/* lwIP cuts a segment at the end of the window when it is in order, but not the first one that it
 * queues out of order; when its turn comes, an assertion about the window stops the machine. A peer
 * that keeps to the window sends none; of another it is as good as lost. */
static bool queues_beyond_window(const struct tcp_pcb *pcb, const struct tcp_hdr *header,
                                 const struct pbuf *payload) {
    if (pcb->state == LISTEN) {
        return false;
    }
    u32_t edge = pcb->rcv_nxt + pcb->rcv_wnd;
    bool counts_one = (TCPH_FLAGS(header) & (TCP_SYN | TCP_FIN)) != 0;
    u32_t end = header->seqno + payload->tot_len + (counts_one ? 1 : 0);
    return TCP_SEQ_GT(header->seqno, pcb->rcv_nxt) && TCP_SEQ_LT(header->seqno, edge) &&
           TCP_SEQ_GT(end, edge);
}

err_t tcp_stream_check_segment(const struct tcp_pcb *pcb, const struct tcp_hdr *header,
                               uint16_t option_bytes, uint16_t first_bytes, const uint8_t *rest,
                               const struct pbuf *payload) {
    return is_answered_already(pcb, header, payload) || queues_beyond_window(pcb, header, payload)
               ? ERR_VAL
               : check_options(pcb, header, option_bytes, first_bytes, rest);
}

/* lwIP acknowledges every second segment at once, with a frame of its own. Nearly always the round
 * that has begun ends with replies that carry the acknowledgement; if not, its end sends one for
 * all. */
static void put_off_ack(struct tcp_pcb *pcb) {
    struct tcp_stream *tcp = pcb->state == ESTABLISHED ? pcb->callback_arg : NULL;
    if (tcp != NULL && (pcb->flags & TF_ACK_DELAY) != 0) {
        tcp_clear_flags(pcb, TF_ACK_DELAY);
        tcp->owes_ack = true;
    }
}

/* The stream whose window was opened by a byte for the packet that lwIP is looking at. */
static struct tcp_stream *opened;

/* A pure acknowledgement at the edge of a closed window is in order (RFC 9293, 3.10.7.4), but lwIP
 * answers it; and a peer whose window is closed too, and that we have probed, answers that:
 * thousands of times a second for as long as both are stuck. With a window of one byte meanwhile
 * lwIP finds it in order. */
void tcp_stream_before_input(struct tcp_pcb *pcb, const struct tcp_hdr *header,
                             const struct pbuf *payload) {
    bool is_pure =
        payload->tot_len == 0 && (TCPH_FLAGS(header) & (TCP_SYN | TCP_FIN | TCP_RST)) == 0;
    put_off_ack(pcb);
    if (is_pure && pcb->state == ESTABLISHED && pcb->rcv_wnd == 0 && pcb->callback_arg != NULL &&
        header->seqno == pcb->rcv_nxt) {
        opened = pcb->callback_arg;
        pcb->rcv_wnd = 1;
    }
}

void tcp_streams_after_packet(void) {
    if (opened != NULL && opened->pcb != NULL && opened->pcb->rcv_wnd > 0) {
        opened->pcb->rcv_wnd--;
    }
    opened = NULL;
    tcp_stream_forget_newest();
}

/* A SYN that reopens a connection in TIME-WAIT with a sequence number beyond all that it used may
 * be accepted (RFC 1122, 4.2.2.13); lwIP would not. It matters on QEMU's user network, where all
 * clients have one address and the host uses a port again when it likes. */
void tcp_streams_before_packet(const uint8_t *packet, size_t bytes) {
    tcp_stream_forget_newest();
    unsigned ip_bytes = (packet[0] & 0x0fu) * 4u;
    if (tcp_tw_pcbs == NULL || bytes < ip_bytes + TCP_HLEN || packet[9] != IP_PROTO_TCP) {
        return;
    }
    const struct tcp_hdr *header = (const void *)(packet + ip_bytes);
    if ((TCPH_FLAGS(header) & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN) {
        return;
    }
    u32_t source;
    memcpy(&source, packet + 12, sizeof source);
    for (struct tcp_pcb *pcb = tcp_tw_pcbs; pcb != NULL; pcb = pcb->next) {
        if (pcb->remote_port == lwip_ntohs(header->src) &&
            pcb->local_port == lwip_ntohs(header->dest) &&
            ip4_addr_get_u32(ip_2_ip4(&pcb->remote_ip)) == source &&
            TCP_SEQ_GT(lwip_ntohl(header->seqno), pcb->rcv_nxt)) {
            tcp_abort(pcb); /* in this state: forgotten without a word */
            return;
        }
    }
}
