/* The virtio-net driver (VIRTIO 1.3, 5.1). See virtio_net.h.
 *
 * A receive buffer, seen from its beginning, which lies at a multiple of its size, or, if that is
 * two pages or more, so that a page begins behind the headers of a write
 * (virtio_net_begin_page):
 *
 *   2 or 6       12 bytes            14            from here on at a multiple of 4
 *   ┌───────┬──────────────────┬───────────────┬──────────────────────────────────┐
 *   │ pad   │ virtio-net header│ Ethernet      │ IP, TCP, payload                 │
 *   └───────┴──────────────────┴───────────────┴──────────────────────────────────┘
 *
 * The buffer is lwIP's packet: a pbuf whose release puts it back on the free list, from where it
 * returns to the ring. A frame over several buffers (MRG_RXBUF) is a chain of them.
 *
 * Sending needs no interrupt: what was sent is reclaimed whenever the network task runs. Only when
 * the ring is full does the device have to tell. */
#include "net/virtio_net.h"

#include <errno.h>
#include <lwip/pbuf.h>
#include <stddef.h>

#include "config/limits.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "core/virtio/queue.h"
#include "net/counters.h"
#include "net/offload.h"
#include "net/virtio_net_device.h"

_Static_assert(sizeof(struct net_header) == PBUF_LINK_ENCAPSULATION_HLEN,
               "lwIP leaves room for the header in front of each frame");

enum {
    FRAME_BUFFERS_MAX =
        64, /* longest chain taken from the ring: 64 KiB in buffers of 4 KiB and some */
    FRAME_BYTES_MAX = 65535 + ETHERNET_BYTES,
    /* Give buffers back in batches: a ring entry costs less when the device is told once. */
    REFILL_BATCH = 32,
    STATUS_LINK_UP = 1,
};

static void packet_free(struct pbuf *pbuf) {
    struct packet *packet = (struct packet *)(void *)pbuf;
    struct virtio_net *net = packet->net;
    packet->next_free = net->free_packets;
    net->free_packets = packet;
    net->free_count++;
}

void virtio_net_free(struct pbuf *pbuf) {
    const struct pbuf_custom *custom = (const struct pbuf_custom *)(const void *)pbuf;
    bool is_ours = (pbuf->flags & PBUF_FLAG_IS_CUSTOM) != 0 &&
                   custom->custom_free_function == packet_free && pbuf->next == NULL;
    if (!is_ours || pbuf->ref != 1) {
        pbuf_free(pbuf);
        return;
    }
    pbuf->ref = 0;
    packet_free(pbuf);
}

void virtio_net_note_freed(struct pbuf *note) {
    (void)note;
}

void virtio_net_free_sent(struct pbuf *frame) {
    while (frame != NULL && frame->ref == 1) {
        struct pbuf *next = frame->next;
        if ((frame->flags & PBUF_FLAG_IS_CUSTOM) != 0) {
            pbuf_free_custom_fn give = ((struct pbuf_custom *)(void *)frame)->custom_free_function;
            frame->ref = 0;
            if (give != virtio_net_note_freed) {
                give(frame);
            }
        } else {
            frame->next = NULL;
            pbuf_free(frame);
        }
        frame = next;
    }
    if (frame != NULL) {
        frame->ref--;
    }
}

static struct pbuf **place_of(struct virtio_net *net, uint64_t number) {
    return &net->frames[number & (virtqueue_size(net->send) - 1)];
}

static void frame_is_read(struct virtio_net *net, struct pbuf **place) {
    virtio_net_free_sent(*place);
    *place = NULL;
    while (net->reclaimed < net->sent && *place_of(net, net->reclaimed) == NULL) {
        net->reclaimed++;
    }
}

static void abandon_frames(struct virtio_net *net) {
    struct pbuf **place;
    while ((place = virtqueue_abandon(net->send)) != NULL) {
        frame_is_read(net, place);
    }
}

static void break_device(struct virtio_net *net) {
    net->is_broken = true;
    net_counters.device_errors++;
    /* After the reset the device cannot touch the buffers; frames it held are lost, as on any wire.
     */
    if (virtio_reset(net->transport) == 0) {
        abandon_frames(net);
    }
    virtio_fail(net->transport);
}

static struct packet *take_free_packet(struct virtio_net *net) {
    struct packet *packet = net->free_packets;
    if (packet != NULL) {
        net->free_packets = packet->next_free;
    } else if (net->fresh < net->packet_count) {
        packet = &net->packets[net->fresh];
        packet->net = net;
        packet->buffer = net->buffers + net->fresh * net->buffer_bytes;
        net->fresh++;
    } else {
        return NULL;
    }
    net->free_count--;
    return packet;
}

/* Gives free buffers to the device, in batches unless it has nearly none. */
static void refill(struct virtio_net *net) {
    unsigned in_ring = virtqueue_in_flight(net->receive);
    unsigned room = virtqueue_room(net->receive, 1);
    unsigned batch = room < net->free_count ? room : net->free_count;
    if (net->is_broken || (batch < REFILL_BATCH && in_ring >= REFILL_BATCH)) {
        return;
    }
    struct packet *packet;
    while (room > 0 && (packet = take_free_packet(net)) != NULL) {
        packet->pad = net->pad;
        if (virtqueue_add_writable(net->receive, packet->buffer + packet->pad,
                                   (uint32_t)(net->buffer_bytes - packet->pad), packet) != 0) {
            packet_free(&packet->custom.pbuf); /* the ring broke */
            break;
        }
        room--;
    }
    virtqueue_kick(net->receive);
}

/* QEMU's device with `tx=timer` sets a timer at the first notify and sends at the second, in the
 * thread that notifies: ours. By default it leaves sending to its main loop, whose thread has to be
 * woken for it and sends while we hold its lock. See docs/performance.md. */
static void kick_send(struct virtio_net *net) {
    if (net->notifies_twice) {
        virtqueue_kick_twice(net->send);
    } else {
        virtqueue_kick(net->send);
    }
}

void virtio_net_reclaim(struct virtio_net *net) {
    struct pbuf **place;
    uint32_t unused = 0;
    bool has_room = false;
    while (!net->is_broken && (place = virtqueue_take(net->send, &unused)) != NULL) {
        frame_is_read(net, place);
        has_room = true;
    }
    if (net->wants_room && has_room) {
        /* What was refused in this round has room now, and perhaps nothing is left in the ring
         * that could tell. */
        event_signal(net->event);
    }
    if (virtqueue_is_broken(net->send) && !net->is_broken) {
        break_device(net);
    }
}

void virtio_net_flush(struct virtio_net *net) {
    if (net->is_broken) {
        return;
    }
    kick_send(net);
    if (net->reclaimed != net->sent) {
        virtio_net_reclaim(net);
    }
    refill(net);
}

static struct pbuf *packet_pbuf(struct packet *packet, size_t offset, size_t bytes) {
    packet->custom.custom_free_function = packet_free;
    return pbuf_alloced_custom(PBUF_RAW, (u16_t)bytes, PBUF_REF, &packet->custom,
                               packet->buffer + offset, (u16_t)bytes);
}

/* Takes the buffers behind the first one of a frame and chains them. NULL when the device's count
 * and its completions do not agree: what was taken goes back. */
static struct pbuf *take_rest(struct virtio_net *net, struct pbuf *head, unsigned count) {
    struct pbuf *last = head;
    uint32_t total = head->tot_len;
    for (unsigned i = 1; i < count; i++) {
        uint32_t written = 0;
        struct packet *packet = virtqueue_take(net->receive, &written);
        struct pbuf *part = packet != NULL ? packet_pbuf(packet, packet->pad, written) : NULL;
        if (part == NULL) {
            pbuf_free(head);
            return NULL;
        }
        last->next = part;
        last = part;
        total += written;
    }
    if (total > FRAME_BYTES_MAX) {
        pbuf_free(head);
        return NULL;
    }
    /* lwIP counts in 16 bits what follows in the chain; the Ethernet header comes off before it
     * looks at the sum (stack.c), so a frame of 65535 + 14 bytes is one that fits. */
    for (struct pbuf *part = head; part != NULL; part = part->next) {
        part->tot_len = (u16_t)total;
        total -= part->len;
    }
    return head;
}

/* One frame from the ring; NULL when there is none or the device's word makes no sense. */
static struct pbuf *take_frame(struct virtio_net *net, uint8_t *flags) {
    uint32_t written = 0;
    struct packet *packet = virtqueue_take(net->receive, &written);
    if (packet == NULL) {
        return NULL;
    }
    const struct net_header *header = (const void *)(packet->buffer + packet->pad);
    unsigned count = net->has_merged ? header->buffer_count : 1;
    *flags = header->flags;
    if (written < sizeof *header + ETHERNET_BYTES || count < 1 || count > FRAME_BUFFERS_MAX) {
        (void)log_error(-EPROTO, "%s: a frame of %u bytes in %u buffers makes no sense",
                        net->transport->node->name, (unsigned)written, count); /* is_broken tells */
        packet_free(&packet->custom.pbuf);
        break_device(net);
        return NULL;
    }
    struct pbuf *frame =
        packet_pbuf(packet, packet->pad + sizeof *header, written - sizeof *header);
    if (count > 1) {
        frame = take_rest(net, frame, count);
    }
    if (frame == NULL) {
        (void)log_error(-EPROTO, "%s: %u buffers of a frame do not come together",
                        net->transport->node->name, count); /* is_broken tells */
        break_device(net);
    }
    return frame;
}

struct pbuf *virtio_net_receive(struct virtio_net *net, bool *checksum_ok) {
    uint8_t flags = 0;
    struct pbuf *frame = net->is_broken ? NULL : take_frame(net, &flags);
    net->looked_at = virtqueue_taken(net->receive);
    if (frame == NULL) {
        if (virtqueue_is_broken(net->receive) && !net->is_broken) {
            break_device(net);
        }
        return NULL;
    }
    *checksum_ok =
        (flags & (NET_HEADER_NEEDS_CHECKSUM | NET_HEADER_DATA_VALID)) != 0 && net->has_sums_seen;
    net_counters.frames_received++;
    return frame;
}

void virtio_net_begin_page(struct virtio_net *net, size_t behind_bytes) {
    size_t pad = BUFFER_PAD + NET_RX_PAGE_BEHIND_MAX - behind_bytes;
    ASSERT(behind_bytes <= NET_RX_PAGE_BEHIND_MAX && pad <= BUFFER_PAD_MAX);
    net->pad = pad < net->pad_max ? pad : net->pad_max;
}

size_t virtio_net_tail_room(const struct pbuf *pbuf) {
    const struct packet *packet = (const struct packet *)(const void *)pbuf;
    bool is_ours = (pbuf->flags & PBUF_FLAG_IS_CUSTOM) != 0 &&
                   packet->custom.custom_free_function == packet_free;
    const uint8_t *end = (const uint8_t *)pbuf->payload + pbuf->len;
    return is_ours ? (size_t)(packet->buffer + packet->net->buffer_bytes - end) : 0;
}

/* True when the bytes in front of the frame are its own buffer's, as in everything lwIP allocates
 * for sending; then the virtio header goes there. */
static bool has_headroom(const struct pbuf *frame) {
    bool is_own = (frame->type_internal & PBUF_TYPE_FLAG_STRUCT_DATA_CONTIGUOUS) != 0;
    return is_own && (const uint8_t *)frame->payload - sizeof(struct net_header) >=
                         (const uint8_t *)frame + sizeof(struct pbuf);
}

/* Puts the frame, whose `count` segments are gathered, into the ring. -ENOSPC when it is full, or
 * when the device still has the one that was sent a whole ring before. */
static int put_in(struct virtio_net *net, struct pbuf *frame, unsigned count) {
    struct pbuf **place = place_of(net, net->sent);
    if (*place != NULL) {
        return -ENOSPC;
    }
    int error = virtqueue_add(net->send, net->segments, count, 0, place);
    if (error == 0) {
        pbuf_ref(frame);
        *place = frame;
        net->sent++;
    }
    return error;
}

/* Where it is to lie: in front of the frame, whose buffer has the room. */
static struct net_header *header_of(const struct pbuf *frame) {
    return (struct net_header *)(void *)((uint8_t *)frame->payload - sizeof(struct net_header));
}

static unsigned segments_max(const struct virtio_net *net) {
    unsigned ring = virtqueue_size(net->send);
    return ring < SEND_SEGMENTS_MAX ? ring : SEND_SEGMENTS_MAX;
}

/* Lists what the frame consists of; 0 when that is more than `most` pieces. */
static unsigned list_pieces(struct virtio_net *net, const struct pbuf *frame, unsigned most) {
    unsigned count = 0;
    net->segments[count++] =
        (struct segment){header_of(frame), frame->len + (uint32_t)sizeof(struct net_header)};
    for (const struct pbuf *part = frame->next; part != NULL; part = part->next) {
        if (count == most) {
            return 0;
        }
        net->segments[count++] = (struct segment){part->payload, part->len};
    }
    return count;
}

bool virtio_net_send_tcp(struct virtio_net *net, struct pbuf *frame, uint16_t cut_bytes) {
    unsigned count = net->is_broken ? 0 : list_pieces(net, frame, segments_max(net));
    struct net_header *header = header_of(frame);
    *header = (struct net_header){0};
    if (virtio_has(net->transport, VIRTIO_NET_F_CSUM)) {
        net_offload_fill_tcp(header,
                             virtio_has(net->transport, VIRTIO_NET_F_HOST_TSO4) ? cut_bytes : 0);
    }
    if (count == 0 || put_in(net, frame, count) != 0) {
        return false;
    }
    net_counters.frames_sent++;
    return true;
}

/* Only as long as it is, the send ring is looked at, and armed. Else its event index stays where it
 * is, and the device passes it once in 65536 frames: an interrupt for nothing. */
static void want_room(struct virtio_net *net) {
    if (!net->wants_room) {
        net->wants_room = true;
        scheduler_add_source(&net->send_source);
    }
}

int virtio_net_send(struct virtio_net *net, struct pbuf *frame, uint16_t segment_bytes) {
    if (net->is_broken) {
        return -EIO;
    }
    unsigned most = segments_max(net);
    if (!has_headroom(frame) || pbuf_clen(frame) > most) {
        /* A chain too long for the device, or a foreign buffer: rare, so it may cost a copy. */
        struct pbuf *copy = pbuf_clone(PBUF_LINK, PBUF_RAM, frame);
        if (copy == NULL) {
            return -EAGAIN;
        }
        net_counters.bytes_copied += frame->tot_len;
        int error = virtio_net_send(net, copy, segment_bytes);
        pbuf_free(copy);
        return error;
    }
    struct net_header *header = header_of(frame);
    struct net_offload offload = {.checksums = virtio_has(net->transport, VIRTIO_NET_F_CSUM),
                                  .segments = virtio_has(net->transport, VIRTIO_NET_F_HOST_TSO4),
                                  .segment_bytes = segment_bytes};
    net_offload_fill(&offload, frame->payload, frame->len, header);
    unsigned count = list_pieces(net, frame, most);
    int error = put_in(net, frame, count);
    if (error != 0) {
        /* Perhaps only because nobody has looked what the device has read since. */
        kick_send(net);
        virtio_net_reclaim(net);
        error = put_in(net, frame, count);
    }
    if (error != 0) {
        want_room(net);
        net_counters.send_ring_full++;
        return -EAGAIN;
    }
    net_counters.frames_sent++;
    return 0;
}

uint64_t virtio_net_sent(const struct virtio_net *net) {
    return net->sent;
}

uint64_t virtio_net_reclaimed(const struct virtio_net *net) {
    return net->reclaimed;
}

/* All buffers that no packet occupies. */
static unsigned buffers_left(const struct virtio_net *net) {
    return virtqueue_in_flight(net->receive) + net->free_count;
}

bool virtio_net_is_short_of_buffers(const struct virtio_net *net) {
    return buffers_left(net) < net->short_below;
}

bool virtio_net_is_out_of_buffers(const struct virtio_net *net) {
    return buffers_left(net) < net->out_below;
}

bool virtio_net_link_is_up(struct virtio_net *net) {
    uint16_t status = STATUS_LINK_UP;
    if (virtio_has(net->transport, VIRTIO_NET_F_STATUS) && !net->is_broken) {
        (void)virtio_config_read(net->transport, offsetof(struct net_config, status), &status,
                                 sizeof status); /* unreadable: as it was, up */
    }
    return (status & STATUS_LINK_UP) != 0;
}

/* TCP over IPv4, neither with options, of which the flags say no more than ACK. A short frame may
 * have been filled up (IEEE 802.3, 4.2.3.3). */
static bool is_bare_ack(const struct packet *packet, uint32_t written) {
    enum { IP_AT = ETHERNET_BYTES, TCP_AT = IP_AT + 20, FLAGS_AT = TCP_AT + 13 };
    enum { HEADERS_BYTES = TCP_AT + 20, SHORTEST_BYTES = 60, TCP = 6, ACK = 0x10 };
    const uint8_t *frame = packet->buffer + packet->pad + sizeof(struct net_header);
    return written >= sizeof(struct net_header) + HEADERS_BYTES &&
           written <= sizeof(struct net_header) + SHORTEST_BYTES && frame[12] == 0x08 &&
           frame[13] == 0x00 && frame[IP_AT] == 0x45 && frame[IP_AT + 2] == 0 &&
           frame[IP_AT + 3] == HEADERS_BYTES - IP_AT && frame[IP_AT + 9] == TCP &&
           frame[TCP_AT + 12] == 0x50 && frame[FLAGS_AT] == ACK;
}

/* What has come and is not taken are acknowledgements that may wait. What the ring says is not
 * believed here: it is checked when it is taken, and till then costs a round too many or too late.
 */
static bool may_all_wait(struct virtio_net *net) {
    unsigned count = virtqueue_completed(net->receive);
    uint16_t taken = virtqueue_taken(net->receive);
    unsigned at = (uint16_t)(net->looked_at - taken);
    /* Half of the buffers at most; and what has been looked at cannot have become less. */
    if (!net->acks_may_wait || count > NET_ACKS_WAITING_MAX || at > count ||
        2 * count > virtqueue_in_flight(net->receive)) {
        return false;
    }
    for (; at < count; at++) {
        uint32_t written = 0;
        const struct packet *packet = virtqueue_look(net->receive, at, &written);
        if (packet == NULL || !is_bare_ack(packet, written)) {
            return false;
        }
    }
    net->looked_at = (uint16_t)(taken + count);
    return true;
}

/* A ring that is broken has something to tell, once: then nobody takes from it any more. */
static bool receive_pending(void *arg) {
    struct virtio_net *net = arg;
    return !net->is_broken && virtqueue_has_completed(net->receive) && !may_all_wait(net);
}

void virtio_net_let_acks_wait(struct virtio_net *net, bool may_wait) {
    net->acks_may_wait = may_wait;
}

static void receive_arm(void *arg) {
    virtqueue_arm(((struct virtio_net *)arg)->receive);
}

static void receive_disarm(void *arg) {
    virtqueue_disarm(((struct virtio_net *)arg)->receive);
}

static bool send_pending(void *arg) {
    const struct virtio_net *net = arg;
    return !net->is_broken && virtqueue_has_completed(net->send);
}

static void send_arm(void *arg) {
    virtqueue_arm(((struct virtio_net *)arg)->send);
}

static void send_disarm(void *arg) {
    virtqueue_disarm(((struct virtio_net *)arg)->send);
}

bool virtio_net_wants_room(const struct virtio_net *net) {
    return net->wants_room;
}

bool virtio_net_take_room(struct virtio_net *net) {
    if (!net->wants_room) {
        return false;
    }
    net->wants_room = false;
    scheduler_remove_source(&net->send_source);
    return true;
}

static void config_changed(void *arg) {
    struct virtio_net *net = arg;
    net->link_changed = true;
    event_signal(net->event);
}

bool virtio_net_take_link_change(struct virtio_net *net) {
    bool changed = net->link_changed;
    net->link_changed = false;
    return changed;
}

void virtio_net_set_event(struct virtio_net *net, struct event *event) {
    net->event = event;
    net->receive_source = (struct poll_source){.name = "net receive",
                                               .pending = receive_pending,
                                               .arm = receive_arm,
                                               .disarm = receive_disarm,
                                               .arg = net,
                                               .event = event};
    net->send_source = (struct poll_source){.name = "net send",
                                            .pending = send_pending,
                                            .arm = send_arm,
                                            .disarm = send_disarm,
                                            .arg = net,
                                            .event = event};
    virtqueue_watch(net->receive, &net->receive_source);
    net->looked_at = virtqueue_taken(net->receive);
    net->receive_source.taken = &net->looked_at;
    virtqueue_watch(net->send, &net->send_source);
    scheduler_add_source(&net->receive_source);
    net->transport->config_changed = config_changed;
    net->transport->config_changed_arg = net;
}

void virtio_net_dump(const struct virtio_net *net) {
    const struct virtqueue_stats *receive = virtqueue_get_stats(net->receive);
    const struct virtqueue_stats *send = virtqueue_get_stats(net->send);
    log_text("net: received %llu, dropped %llu, shed %llu, sent %llu, reclaimed %llu, send ring "
             "full %llu, "
             "buffers %u (free %u), notifies %llu/%llu, interrupts %llu%s",
             (unsigned long long)net_counters.frames_received,
             (unsigned long long)net_counters.receive_dropped,
             (unsigned long long)net_counters.receive_shed, (unsigned long long)net->sent,
             (unsigned long long)net->reclaimed, (unsigned long long)net_counters.send_ring_full,
             net->packet_count, net->free_count, (unsigned long long)receive->notifies,
             (unsigned long long)send->notifies, (unsigned long long)net->transport->interrupts,
             net->is_broken ? ", broken" : "");
    virtqueue_dump(net->receive);
    virtqueue_dump(net->send);
}

#ifdef PLATTER_HOST
void virtio_net_abandon(struct virtio_net *net) {
    net->is_broken = true;
    abandon_frames(net);
}

#endif
