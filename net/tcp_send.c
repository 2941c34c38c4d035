/* What a stream sends, by reference, and until when it is needed. See tcp_connection.h.
 *
 * Replies are appended to the segment that is being gathered, past lwIP, or begin one; what is
 * larger than one, or comes while others wait, goes through tcp_write. */
#include <lwip/priv/tcp_priv.h>
#include <lwip/tcp.h>
#include <stddef.h>

#include "config/limits.h"
#include "core/panic.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"

enum { LONG_SEGMENT_BYTES = 16 * 1024 }; /* several small replies */

static struct tcp_stream *of(struct stream *stream) {
    return (struct tcp_stream *)stream;
}

/* The segment that tcp_stream_send wrote last, as long as nothing but sending has happened since:
 * its last buffer, which tcp_write would look for through all of the chain. */
static struct {
    const struct tcp_stream *stream;
    struct tcp_seg *segment;
    struct pbuf *last;
    size_t room; /* bytes that still fit, and buffers */
    unsigned buffers_left;
} newest;

void tcp_stream_forget_newest(void) {
    newest.stream = NULL;
}

/* As tcp_write reckons: half of the largest window that the peer has had, at most. */
static size_t segment_limit(const struct tcp_pcb *pcb) {
    size_t half = pcb->snd_wnd_max / 2;
    return half == 0 || half > pcb->mss ? pcb->mss : half;
}

/* Behind tcp_write, which has marked the segment as one to be pushed. */
static void remember_newest(struct tcp_stream *tcp) {
    const struct tcp_pcb *pcb = tcp->pcb;
    struct tcp_seg *segment = pcb->unsent;
    newest.stream = NULL;
    if (segment == NULL || segment->next != NULL || pcb->snd_queuelen >= TCP_SND_QUEUELEN ||
        segment->len >= segment_limit(pcb) ||
        (pcb->state != ESTABLISHED && pcb->state != CLOSE_WAIT)) {
        return; /* several wait for the window: speed is not what this peer lacks */
    }
    size_t room = segment_limit(pcb) - segment->len;
    newest.stream = tcp;
    newest.segment = segment;
    newest.room = room < tcp_sndbuf(pcb) ? room : tcp_sndbuf(pcb);
    newest.buffers_left = (unsigned)(TCP_SND_QUEUELEN - pcb->snd_queuelen);
    newest.last = segment->p;
    while (newest.last->next != NULL) {
        newest.last = newest.last->next;
    }
}

/* True when `bytes` more, in so many buffers, fit into the newest segment, which has not left yet.
 */
static bool fits_newest(const struct tcp_stream *tcp, size_t bytes, unsigned buffers) {
    return newest.stream == tcp && bytes <= newest.room && buffers < newest.buffers_left;
}

/* A new segment, when nothing waits to be sent that comes before it. It is what tcp_write would
 * make. */
static bool begin_newest(struct tcp_stream *tcp, size_t bytes, unsigned buffers) {
    struct tcp_pcb *pcb = tcp->pcb;
    if (pcb == NULL || pcb->unsent != NULL || pcb->state != ESTABLISHED) {
        return false;
    }
    size_t limit = segment_limit(pcb);
    if (bytes == 0 || bytes > limit || bytes > tcp_sndbuf(pcb) ||
        pcb->snd_queuelen + buffers + 1 >= TCP_SND_QUEUELEN) {
        return false;
    }
    struct tcp_seg *segment = tcp_segment_begin(tcp);
    if (segment == NULL) {
        return false;
    }
    pcb->unsent = segment;
    pcb->snd_queuelen++;
    tcp->needs_output = true;
    newest.stream = tcp;
    newest.segment = segment;
    newest.last = segment->p;
    newest.room = limit < tcp_sndbuf(pcb) ? limit : tcp_sndbuf(pcb);
    newest.buffers_left = (unsigned)(TCP_SND_QUEUELEN - pcb->snd_queuelen);
    return true;
}

/* A segment so long that nearly nothing is lost when what does not fit begins another; not where
 * the window is what bounds it, of which some would be left unused. */
static bool is_as_good_as_full(const struct tcp_pcb *pcb, const struct tcp_seg *segment) {
    size_t limit = segment_limit(pcb);
    return limit == pcb->mss && limit >= LONG_SEGMENT_BYTES && segment->len >= limit - limit / 4;
}

/* The newest segment goes into the ring before the others of its round when it is full, so that
 * another can begin. Otherwise tcp_write would have to make one, and walk through its chain for
 * every reply that follows. */
static void send_full_newest(struct tcp_stream *tcp) {
    if (newest.stream == tcp && is_as_good_as_full(tcp->pcb, newest.segment) &&
        !virtio_net_wants_room(virtio_net_first())) {
        tcp_stream_output(tcp);
    }
}

/* Room in a segment that has not left yet, for `bytes` more in so many buffers. */
static bool makes_room(struct tcp_stream *tcp, size_t bytes, unsigned buffers) {
    if (fits_newest(tcp, bytes, buffers)) {
        return true;
    }
    send_full_newest(tcp);
    return begin_newest(tcp, bytes, buffers);
}

/* Of the lengths in the chain that lwIP keeps up to date, those between the first and the last
 * buffer are read by nobody but pbuf_copy, to which they only must not look like the end of a
 * packet. */
static void chain_to_newest(struct pbuf *part) {
    newest.last->next = part;
    if (newest.last != newest.segment->p) {
        newest.last->tot_len = (u16_t)(newest.last->len + part->len);
    }
    newest.last = part;
}

static void newest_has_grown(struct tcp_stream *tcp, size_t bytes, unsigned buffers) {
    struct tcp_pcb *pcb = tcp->pcb;
    struct tcp_seg *segment = newest.segment;
    ASSERT(pcb->unsent == segment);
    segment->p->tot_len = (u16_t)(segment->p->tot_len + bytes);
    segment->len = (u16_t)(segment->len + bytes);
    newest.room -= bytes;
    newest.buffers_left -= buffers;
    pcb->snd_queuelen = (u16_t)(pcb->snd_queuelen + buffers);
    pcb->snd_lbb += (u32_t)bytes;
    pcb->snd_buf -= (tcpwnd_size_t)bytes;
    tcp->sent += bytes;
}

/* A segment begun for what then found no memory. */
static void give_up_empty(struct tcp_stream *tcp) {
    struct tcp_seg *segment = newest.segment;
    if (segment->len == 0) {
        tcp->pcb->unsent = NULL;
        tcp->pcb->snd_queuelen--;
        tcp_seg_free(segment);
        tcp_stream_forget_newest();
    }
}

/* What tcp_write does, at a third of the cost, for the case that nearly all replies are: the bytes
 * fit into the newest segment. */
static bool append_to_newest(struct tcp_stream *tcp, const void *data, size_t bytes) {
    unsigned buffers = 0;
    if (!makes_room(tcp, bytes, 1)) {
        return false;
    }
    if ((const char *)newest.last->payload + newest.last->len == data &&
        newest.last != newest.segment->p && newest.last->len + bytes <= UINT16_MAX) {
        newest.last->len = (u16_t)(newest.last->len + bytes);
        newest.last->tot_len = newest.last->len;
    } else {
        struct pbuf *part = pbuf_alloc(PBUF_RAW, (u16_t)bytes, PBUF_ROM);
        if (part == NULL) {
            give_up_empty(tcp);
            return false;
        }
        part->payload = (void *)(uintptr_t)data; /* lwIP only reads what it sends */
        chain_to_newest(part);
        buffers = 1;
    }
    newest_has_grown(tcp, bytes, buffers);
    return true;
}

/* A segment that is to be sent again and waits, for the device's ring was full. lwIP would append
 * new data to it when it is the last of those that wait, though what follows it is under way. */
static bool is_resend_waiting(const struct tcp_pcb *pcb) {
    return pcb->unsent != NULL && TCP_SEQ_LT(lwip_ntohl(pcb->unsent->tcphdr->seqno), pcb->snd_nxt);
}

/* What begins a segment, or more of them. Out of line, so that what nearly every reply takes saves
 * no registers for this. */
__attribute__((noinline)) static size_t send_anew(struct tcp_stream *tcp, const void *data,
                                                  size_t bytes) {
    size_t accepted = 0;
    if (tcp->pcb != NULL && is_resend_waiting(tcp->pcb)) {
        tcp->was_refused = true; /* its acknowledgement tells */
        return 0;
    }
    while (tcp->pcb != NULL && accepted < bytes) {
        size_t step = bytes - accepted;
        step = step < UINT16_MAX ? step : UINT16_MAX;
        step = step < tcp_sndbuf(tcp->pcb) ? step : tcp_sndbuf(tcp->pcb);
        if (step == 0) {
            break; /* acknowledgements make room */
        }
        if (tcp_write(tcp->pcb, (const uint8_t *)data + accepted, (u16_t)step, 0) != ERR_OK) {
            tcp->lacks_memory = true; /* perhaps that of others: see tell_of_memory */
            break;
        }
        accepted += step;
    }
    tcp->sent += accepted;
    tcp->was_refused = accepted < bytes;
    tcp->needs_output |= accepted > 0;
    if (tcp->pcb != NULL && accepted > 0) {
        remember_newest(tcp);
    }
    return accepted;
}

size_t tcp_stream_send(struct stream *stream, const void *data, size_t bytes) {
    struct tcp_stream *tcp = of(stream);
    return append_to_newest(tcp, data, bytes) ? bytes : send_anew(tcp, data, bytes);
}

void tcp_stream_mark(struct stream *stream, struct stream_mark *mark) {
    struct tcp_stream *tcp = of(stream);
    mark->next = NULL;
    mark->position = tcp->sent;
    if (tcp->marks_last != NULL) {
        tcp->marks_last->next = mark;
    } else {
        tcp->marks_first = mark;
    }
    tcp->marks_last = mark;
}

_Static_assert(sizeof(struct pbuf_custom) <= sizeof((struct stream_parcel *)0)->notes[0],
               "a parcel has room for the buffers of its pieces");

static struct pbuf *note_piece(uint64_t note[], struct segment piece) {
    struct pbuf_custom *buffer = (struct pbuf_custom *)(void *)note;
    u16_t length = (u16_t)piece.length;
    buffer->custom_free_function = virtio_net_note_freed;
    buffer->pbuf = (struct pbuf){.payload = piece.data,
                                 .len = length,
                                 .tot_len = length,
                                 .type_internal = PBUF_ROM,
                                 .flags = PBUF_FLAG_IS_CUSTOM,
                                 .ref = 1};
    return &buffer->pbuf;
}

/* lwIP's buffers for the pieces are part of the parcel, so they never run out. They are needed as
 * long as the pieces are: what counts as acknowledged are whole segments, which lwIP has freed. */
bool tcp_stream_send_whole(struct stream *stream, struct segment header, struct segment data,
                           struct stream_parcel *parcel) {
    struct tcp_stream *tcp = of(stream);
    size_t bytes = (size_t)header.length + data.length;
    unsigned buffers = header.length > 0 ? 2 : 1;
    if (!makes_room(tcp, bytes, buffers)) {
        return false;
    }
    if (header.length > 0) {
        chain_to_newest(note_piece(parcel->notes[0], header));
    }
    chain_to_newest(note_piece(parcel->notes[1], data));
    newest_has_grown(tcp, bytes, buffers);
    tcp_stream_mark(stream, &parcel->mark);
    return true;
}

void tcp_stream_release_marks(struct tcp_stream *tcp, uint64_t up_to) {
    while (tcp->marks_first != NULL && tcp->marks_first->position <= up_to) {
        struct stream_mark *mark = tcp->marks_first;
        tcp->marks_first = mark->next;
        if (tcp->marks_first == NULL) {
            tcp->marks_last = NULL;
        }
        mark->released(mark);
    }
}

static bool awaits_release(const struct tcp_stream *tcp) {
    return tcp->marks_first != NULL && tcp->marks_first->position <= tcp->acknowledged;
}

void tcp_stream_release_acknowledged(struct tcp_stream *tcp) {
    struct virtio_net *net = virtio_net_first();
    while (awaits_release(tcp)) {
        if (tcp->marks_first->position > tcp->releasing) {
            tcp->releasing = tcp->acknowledged;
            tcp->releasing_after = virtio_net_sent(net);
        }
        if (virtio_net_reclaimed(net) < tcp->releasing_after) {
            virtio_net_reclaim(net);
            if (virtio_net_reclaimed(net) < tcp->releasing_after) {
                break; /* the next round looks again */
            }
        }
        tcp_stream_release_marks(tcp, tcp->releasing);
    }
}

void tcp_stream_mend_lengths(const struct tcp_pcb *pcb) {
    struct pbuf *part = pcb->unsent != NULL ? pcb->unsent->p : NULL;
    u16_t rest = part != NULL ? part->tot_len : 0;
    for (; part != NULL; part = part->next) {
        part->tot_len = rest;
        rest = (u16_t)(rest - part->len);
    }
}
