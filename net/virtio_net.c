/* The virtio-net driver (VIRTIO 1.3, 5.1). See virtio_net.h.
 *
 * A receive buffer, seen from its beginning, which lies at a multiple of its size:
 *
 *   2 bytes      12 bytes            14            from here on at a multiple of 4
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
#include <stdlib.h>
#include <string.h>

#include "config/limits.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "core/virtio/queue.h"
#include "net/counters.h"
#include "net/offload.h"

/* VIRTIO 1.3, 5.1.3. */
#define VIRTIO_NET_F_CSUM       (UINT64_C(1) << 0)
#define VIRTIO_NET_F_GUEST_CSUM (UINT64_C(1) << 1)
#define VIRTIO_NET_F_MTU        (UINT64_C(1) << 3)
#define VIRTIO_NET_F_MAC        (UINT64_C(1) << 5)
#define VIRTIO_NET_F_GUEST_TSO4 (UINT64_C(1) << 7)
#define VIRTIO_NET_F_HOST_TSO4  (UINT64_C(1) << 11)
#define VIRTIO_NET_F_MRG_RXBUF  (UINT64_C(1) << 15)
#define VIRTIO_NET_F_STATUS     (UINT64_C(1) << 16)

static const struct virtio_feature_name feature_names[] = {
    {VIRTIO_NET_F_CSUM, "CSUM"},
    {VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"},
    {UINT64_C(1) << 2, "CTRL_GUEST_OFFLOADS"},
    {VIRTIO_NET_F_MTU, "MTU"},
    {VIRTIO_NET_F_MAC, "MAC"},
    {UINT64_C(1) << 6, "GSO"}, /* legacy */
    {VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"},
    {UINT64_C(1) << 8, "GUEST_TSO6"},
    {UINT64_C(1) << 9, "GUEST_ECN"},
    {UINT64_C(1) << 10, "GUEST_UFO"},
    {VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"},
    {UINT64_C(1) << 12, "HOST_TSO6"},
    {UINT64_C(1) << 13, "HOST_ECN"},
    {UINT64_C(1) << 14, "HOST_UFO"},
    {VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"},
    {VIRTIO_NET_F_STATUS, "STATUS"},
    {UINT64_C(1) << 17, "CTRL_VQ"},
    {UINT64_C(1) << 18, "CTRL_RX"},
    {UINT64_C(1) << 19, "CTRL_VLAN"},
    {UINT64_C(1) << 20, "CTRL_RX_EXTRA"},
    {UINT64_C(1) << 21, "GUEST_ANNOUNCE"},
    {UINT64_C(1) << 22, "MQ"},
    {UINT64_C(1) << 23, "CTRL_MAC_ADDR"},
    {UINT64_C(1) << 56, "HOST_USO"},
    {UINT64_C(1) << 57, "HASH_REPORT"},
    {UINT64_C(1) << 59, "GUEST_HDRLEN"},
    {UINT64_C(1) << 60, "RSS"},
    {UINT64_C(1) << 61, "RSC_EXT"},
    {UINT64_C(1) << 62, "STANDBY"},
    {UINT64_C(1) << 63, "SPEED_DUPLEX"},
    {0, NULL},
};

/* VIRTIO 1.3, 5.1.4. */
struct net_config {
    uint8_t mac[6];
    uint16_t status;
    uint16_t max_virtqueue_pairs;
    uint16_t mtu;
};

_Static_assert(sizeof(struct net_header) == PBUF_LINK_ENCAPSULATION_HLEN,
               "lwIP leaves room for the header in front of each frame");

enum {
    QUEUE_RECEIVE = 0,
    QUEUE_SEND = 1,
    STATUS_LINK_UP = 1,

    BUFFER_PAD = 2,
    BUFFER_BYTES_SMALL = 2048, /* one frame of an Ethernet wire */
    /* Frames up to 64 KiB come in chains of these. The fewer, the less they cost, so the larger
     * ones are taken when there is memory for as many as the ring has entries. */
    BUFFER_BYTES_LARGE = 4096,
    BUFFER_BYTES_LARGEST = 16384,
    BUFFERS_MIN = 64,
    BUFFERS_MAX = 4096,
    /* Share of the heap that is free at the scan: what is left serves the disks. */
    BUFFER_SHARE = 8,
    FRAME_BUFFERS_MAX =
        64, /* longest chain taken from the ring: 64 KiB in buffers of 4 KiB and some */
    ETHERNET_BYTES = 14,
    FRAME_BYTES_MAX = 65535 + ETHERNET_BYTES,
    MTU_DEFAULT = 1500,
    MTU_MIN = 576,
    /* Give buffers back in batches: a ring entry costs less when the device is told once. */
    REFILL_BATCH = 32,

    SEND_SEGMENTS_MAX = 256,
    SEND_TABLES = 128,
    SEND_TABLE_SIZE = 40,

};

/* One receive buffer and its packet. */
struct packet {
    struct pbuf_custom custom; /* first: lwIP gives this back */
    struct virtio_net *net;
    uint8_t *buffer;
    struct packet *next_free;
};

struct virtio_net {
    struct virtio_transport *transport;
    struct net_config config;
    struct virtqueue *receive;
    struct virtqueue *send;
    struct packet *packets;
    unsigned packet_count;
    uint8_t *buffers;
    unsigned fresh; /* packets never used so far: memory is touched when it is needed */
    struct packet *free_packets;
    unsigned free_count; /* fresh ones included */
    size_t buffer_bytes;
    struct poll_source receive_source;
    struct poll_source send_source;
    struct event *event;
    bool wants_room; /* a frame was refused: the device must tell when it has read some */
    bool link_changed;
    bool is_broken;
    bool has_merged;    /* frames over several buffers may come: MRG_RXBUF */
    bool has_sums_seen; /* the device may vouch for checksums: GUEST_CSUM */
    /* Frames in the send ring, each at the number that it was sent as, modulo the ring's size; NULL
     * when the device has read it. A device may be done with them in any order. */
    struct pbuf **frames;
    uint64_t sent;
    uint64_t reclaimed;                         /* all before this number */
    struct segment segments[SEND_SEGMENTS_MAX]; /* of the frame being sent: too many for a stack */
};

static struct virtio_net *first;

struct virtio_net *virtio_net_first(void) {
    return first;
}

static size_t header_room(void) {
    return BUFFER_PAD + sizeof(struct net_header);
}

static unsigned packet_count_for(size_t room, size_t buffer_bytes) {
    size_t count = room / buffer_bytes;
    return (unsigned)(count < BUFFERS_MIN   ? BUFFERS_MIN
                      : count > BUFFERS_MAX ? BUFFERS_MAX
                                            : count);
}

static struct virtqueue_config receive_config(unsigned size) {
    return (struct virtqueue_config){.name = "receive", .index = QUEUE_RECEIVE, .size = size};
}

static struct virtqueue_config send_config(unsigned size) {
    return (struct virtqueue_config){.name = "send",
                                     .index = QUEUE_SEND,
                                     .size = size,
                                     .indirect_count = SEND_TABLES,
                                     .indirect_size = SEND_TABLE_SIZE};
}

static bool is_coalesced(uint64_t features) {
    return (features & VIRTIO_NET_F_GUEST_TSO4) != 0 && (features & VIRTIO_NET_F_MRG_RXBUF) != 0;
}

static size_t buffer_bytes_for(uint64_t features, size_t room) {
    if (!is_coalesced(features)) {
        return BUFFER_BYTES_SMALL;
    }
    size_t bytes = BUFFER_BYTES_LARGEST;
    while (bytes > BUFFER_BYTES_LARGE && room / bytes < NET_RX_RING_ENTRIES) {
        bytes /= 2;
    }
    return bytes;
}

static size_t net_dma_bytes(struct virtio_transport *transport) {
    struct virtqueue_config receive = receive_config(NET_RX_RING_ENTRIES);
    struct virtqueue_config send = send_config(NET_TX_RING_ENTRIES);
    struct heap_stats heap;
    heap_get_stats(&heap);
    size_t room = (heap.bytes_total - heap.bytes_used) / BUFFER_SHARE;
    size_t buffer = buffer_bytes_for(transport->ops->features_read(transport), room);
    return virtqueue_dma_bytes(&receive) + virtqueue_dma_bytes(&send) +
           (packet_count_for(room, buffer) + 1) * buffer;
}

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
        bool is_note =
            (frame->flags & PBUF_FLAG_IS_CUSTOM) != 0 &&
            ((struct pbuf_custom *)(void *)frame)->custom_free_function == virtio_net_note_freed;
        if (is_note) {
            frame->ref = 0;
        } else {
            frame->next = NULL;
            pbuf_free(frame);
        }
        frame = next;
    }
    if (frame != NULL) {
        pbuf_free(frame);
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
        if (virtqueue_add_writable(net->receive, packet->buffer + BUFFER_PAD,
                                   (uint32_t)(net->buffer_bytes - BUFFER_PAD), packet) != 0) {
            packet_free(&packet->custom.pbuf); /* the ring broke */
            break;
        }
        room--;
    }
    virtqueue_kick(net->receive);
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
    virtqueue_kick(net->send);
    virtio_net_reclaim(net);
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
        struct pbuf *part = packet != NULL ? packet_pbuf(packet, BUFFER_PAD, written) : NULL;
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
    const struct net_header *header = (const void *)(packet->buffer + BUFFER_PAD);
    unsigned count = net->has_merged ? header->buffer_count : 1;
    *flags = header->flags;
    if (written < sizeof *header + ETHERNET_BYTES || count < 1 || count > FRAME_BUFFERS_MAX) {
        (void)log_error(-EPROTO, "%s: a frame of %u bytes in %u buffers makes no sense",
                        net->transport->node->name, (unsigned)written, count); /* is_broken tells */
        packet_free(&packet->custom.pbuf);
        break_device(net);
        return NULL;
    }
    struct pbuf *frame = packet_pbuf(packet, header_room(), written - sizeof *header);
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

int virtio_net_send(struct virtio_net *net, struct pbuf *frame, uint16_t segment_bytes) {
    if (net->is_broken) {
        return -EIO;
    }
    unsigned ring = virtqueue_size(net->send);
    unsigned most = ring < SEND_SEGMENTS_MAX ? ring : SEND_SEGMENTS_MAX;
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
    struct segment *segments = net->segments;
    unsigned count = 0;
    struct net_header *header =
        (struct net_header *)(void *)((uint8_t *)frame->payload - sizeof(struct net_header));
    struct net_offload offload = {.checksums = virtio_has(net->transport, VIRTIO_NET_F_CSUM),
                                  .segments = virtio_has(net->transport, VIRTIO_NET_F_HOST_TSO4),
                                  .segment_bytes = segment_bytes};
    net_offload_fill(&offload, frame->payload, frame->len, header);
    segments[count++] = (struct segment){header, frame->len + (uint32_t)sizeof *header};
    for (const struct pbuf *part = frame->next; part != NULL; part = part->next) {
        segments[count++] = (struct segment){part->payload, part->len};
    }
    int error = put_in(net, frame, count);
    if (error != 0) {
        /* Perhaps only because nobody has looked what the device has read since. */
        virtqueue_kick(net->send);
        virtio_net_reclaim(net);
        error = put_in(net, frame, count);
    }
    if (error != 0) {
        net->wants_room = true;
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

static bool has_less_than(const struct virtio_net *net, unsigned eighths) {
    return (virtqueue_in_flight(net->receive) + net->free_count) * 8 < net->packet_count * eighths;
}

bool virtio_net_is_short_of_buffers(const struct virtio_net *net) {
    return has_less_than(net, NET_RX_PRESSURE_EIGHTHS);
}

bool virtio_net_is_out_of_buffers(const struct virtio_net *net) {
    return has_less_than(net, NET_RX_RESERVE_EIGHTHS);
}

bool virtio_net_link_is_up(struct virtio_net *net) {
    uint16_t status = STATUS_LINK_UP;
    if (virtio_has(net->transport, VIRTIO_NET_F_STATUS) && !net->is_broken) {
        (void)virtio_config_read(net->transport, offsetof(struct net_config, status), &status,
                                 sizeof status); /* unreadable: as it was, up */
    }
    return (status & STATUS_LINK_UP) != 0;
}

/* In one buffer of a stream: what the wire carries at once, or, where the device coalesces, half of
 * the buffer. */
static size_t payload_expected(const struct virtio_net *net) {
    return is_coalesced(net->transport->features) ? net->buffer_bytes / 2 : net->config.mtu;
}

void virtio_net_get_info(const struct virtio_net *net, struct virtio_net_info *info) {
    const struct virtio_transport *transport = net->transport;
    *info = (struct virtio_net_info){
        .name = transport->node->name,
        .mtu = net->config.mtu,
        .sends_checksums = virtio_has(transport, VIRTIO_NET_F_CSUM),
        .checks_checksums = virtio_has(transport, VIRTIO_NET_F_GUEST_CSUM),
        .sends_large = virtio_has(transport, VIRTIO_NET_F_HOST_TSO4),
        .receives_large = virtio_has(transport, VIRTIO_NET_F_GUEST_TSO4),
        .receive_bytes = (size_t)net->packet_count * payload_expected(net),
    };
    memcpy(info->mac, net->config.mac, sizeof info->mac);
}

/* A ring that is broken has something to tell, once: then nobody takes from it any more. */
static bool receive_pending(void *arg) {
    const struct virtio_net *net = arg;
    return !net->is_broken && virtqueue_has_completed(net->receive);
}

static void receive_arm(void *arg) {
    virtqueue_arm(((struct virtio_net *)arg)->receive);
}

static void receive_disarm(void *arg) {
    virtqueue_disarm(((struct virtio_net *)arg)->receive);
}

static bool send_pending(void *arg) {
    const struct virtio_net *net = arg;
    return net->wants_room && !net->is_broken && virtqueue_has_completed(net->send);
}

static void send_arm(void *arg) {
    const struct virtio_net *net = arg;
    if (net->wants_room) {
        virtqueue_arm(net->send);
    }
}

static void send_disarm(void *arg) {
    virtqueue_disarm(((struct virtio_net *)arg)->send);
}

bool virtio_net_wants_room(const struct virtio_net *net) {
    return net->wants_room;
}

bool virtio_net_take_room(struct virtio_net *net) {
    bool had_wanted = net->wants_room;
    net->wants_room = false;
    return had_wanted;
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
    virtqueue_watch(net->send, &net->send_source);
    scheduler_add_source(&net->receive_source);
    scheduler_add_source(&net->send_source);
    net->transport->config_changed = config_changed;
    net->transport->config_changed_arg = net;
}

static int bring_up_queues(struct virtio_net *net) {
    struct virtio_transport *transport = net->transport;
    struct io_buffer *memory = transport->node->dma_buffer;
    unsigned receive_size = virtqueue_usable_size(transport, QUEUE_RECEIVE, NET_RX_RING_ENTRIES);
    unsigned send_size = virtqueue_usable_size(transport, QUEUE_SEND, NET_TX_RING_ENTRIES);
    if (receive_size < 2 || send_size < 2) {
        return log_error(-EINVAL, "%s: rings of %u and %u entries are too small",
                         transport->node->name, receive_size, send_size);
    }
    struct virtqueue_config receive = receive_config(receive_size);
    struct virtqueue_config send = send_config(send_size);
    net->receive = virtqueue_create(transport, memory, &receive);
    net->send = net->receive != NULL ? virtqueue_create(transport, memory, &send) : NULL;
    net->frames = net->send != NULL ? calloc(send_size, sizeof(struct pbuf *)) : NULL;
    return net->frames != NULL ? 0 : -ENOMEM;
}

static int create_packets(struct virtio_net *net) {
    struct io_buffer *memory = net->transport->node->dma_buffer;
    size_t left = io_buffer_size(memory) - memory->carved;
    net->buffer_bytes = buffer_bytes_for(net->transport->features, left);
    net->packet_count = (unsigned)(left / net->buffer_bytes) - 1;
    void *buffers = NULL;
    int error =
        io_buffer_carve(memory, net->packet_count * net->buffer_bytes, net->buffer_bytes, &buffers);
    net->packets = error ? NULL : malloc(net->packet_count * sizeof *net->packets);
    if (net->packets == NULL) {
        return -ENOMEM;
    }
    net->buffers = buffers;
    net->free_count = net->packet_count;
    return 0;
}

static int read_config(struct virtio_net *net) {
    struct virtio_transport *transport = net->transport;
    int error = virtio_config_read(transport, 0, &net->config, sizeof net->config);
    if (error) {
        return error;
    }
    if (!virtio_has(transport, VIRTIO_NET_F_MAC)) {
        return log_error(-ENOTSUP, "%s: has no MAC address", transport->node->name);
    }
    if (!virtio_has(transport, VIRTIO_NET_F_MTU) || net->config.mtu < MTU_MIN ||
        net->config.mtu > MTU_DEFAULT) {
        net->config.mtu = MTU_DEFAULT;
    }
    return 0;
}

/* Offloads that depend on others are asked for only together (VIRTIO 1.3, 5.1.3.1); large frames
 * only with mergeable buffers, for without them each buffer would have to hold 64 KiB. */
static uint64_t wanted_features(struct virtio_transport *transport) {
    uint64_t offered = transport->ops->features_read(transport);
    uint64_t wanted = VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MTU |
                      VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM |
                      VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    if ((offered & VIRTIO_NET_F_CSUM) != 0) {
        wanted |= VIRTIO_NET_F_HOST_TSO4;
    }
    if ((offered & VIRTIO_NET_F_GUEST_CSUM) != 0 && (offered & VIRTIO_NET_F_MRG_RXBUF) != 0) {
        wanted |= VIRTIO_NET_F_GUEST_TSO4;
    }
    return wanted;
}

static int net_probe(struct virtio_transport *transport) {
    struct virtqueue_config least_receive = receive_config(2);
    struct virtqueue_config least_send = send_config(2);
    size_t least = virtqueue_dma_bytes(&least_receive) + virtqueue_dma_bytes(&least_send) +
                   (size_t)BUFFERS_MIN * BUFFER_BYTES_SMALL;
    if (first != NULL) {
        log_info("%s: a second network interface is not used", transport->node->name);
        virtio_fail(transport);
        return -ENODEV;
    }
    if (!device_has_dma(transport->node, least)) {
        virtio_fail(transport);
        return -ENOMEM;
    }
    struct virtio_net *net = calloc(1, sizeof *net);
    if (net == NULL) {
        return log_error(-ENOMEM, "%s: no memory", transport->node->name);
    }
    net->transport = transport;
    int error = virtio_negotiate(transport, wanted_features(transport), feature_names);
    net->has_merged = virtio_has(transport, VIRTIO_NET_F_MRG_RXBUF);
    net->has_sums_seen = virtio_has(transport, VIRTIO_NET_F_GUEST_CSUM);
    if (!error) {
        error = read_config(net);
    }
    if (!error) {
        error = bring_up_queues(net);
    }
    if (!error) {
        error = create_packets(net);
    }
    if (error) {
        goto fail;
    }
    virtio_driver_ok(transport);
    refill(net);
    first = net;
    const uint8_t *mac = net->config.mac;
    log_info("net: %s, %02x:%02x:%02x:%02x:%02x:%02x, mtu %u%s%s%s, %u buffers of %zu, rings %u/%u",
             transport->node->name, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], net->config.mtu,
             virtio_has(transport, VIRTIO_NET_F_CSUM) ? ", checksums" : "",
             virtio_has(transport, VIRTIO_NET_F_HOST_TSO4) ? ", large send" : "",
             virtio_has(transport, VIRTIO_NET_F_GUEST_TSO4) ? ", large receive" : "",
             net->packet_count, net->buffer_bytes, virtqueue_size(net->receive),
             virtqueue_size(net->send));
    return 0;

fail:
    /* Reset, so that the device forgets the rings before their memory goes; a device that does not
     * obey keeps it for good. */
    if (virtio_reset(transport) != 0) {
        transport->node->dma_buffer = NULL;
    }
    virtio_fail(transport);
    virtqueue_destroy(net->receive);
    virtqueue_destroy(net->send);
    free(net->frames);
    free(net->packets);
    free(net);
    return error;
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

const struct virtio_driver virtio_net_driver = {.name = "virtio-net",
                                                .device_id = VIRTIO_ID_NET,
                                                .dma_bytes = net_dma_bytes,
                                                .probe = net_probe};

#ifdef PLATTER_HOST
void virtio_net_abandon(struct virtio_net *net) {
    net->is_broken = true;
    abandon_frames(net);
}

void virtio_net_forget(void) {
    if (first != NULL) {
        virtqueue_destroy(first->receive);
        virtqueue_destroy(first->send);
        free(first->frames);
        free(first->packets);
        free(first);
        first = NULL;
    }
}
#endif
