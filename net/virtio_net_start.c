/* How the virtio-net driver brings a device up (VIRTIO 1.3, 5.1.5), and what it tells of it. See
 * virtio_net_device.h. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "config/limits.h"
#include "core/config.h"
#include "core/log.h"
#include "core/mem/addr.h"
#include "core/mem/heap.h"
#include "net/offload.h"
#include "net/virtio_net.h"
#include "net/virtio_net_device.h"

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

enum {
    QUEUE_RECEIVE = 0,
    QUEUE_SEND = 1,

    BUFFER_BYTES_SMALL = 2048, /* one frame of an Ethernet wire */
    /* Frames up to 64 KiB come in chains of these. The fewer, the less they cost, so the larger
     * ones are taken when there is memory for as many as the ring has entries. */
    BUFFER_BYTES_LARGE = 4096,
    BUFFER_BYTES_LARGEST = 16384,
    BUFFERS_MIN = 64,
    BUFFERS_MAX = 4096,
    /* Share of the heap that is free at the scan: what is left serves the disks. */
    BUFFER_SHARE = 8,
    MTU_DEFAULT = 1500,
    MTU_MIN = 576,

    SEND_TABLES = 128,
    SEND_TABLE_SIZE = 40,
};

static struct virtio_net *first;

struct virtio_net *virtio_net_first(void) {
    return first;
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

/* In one buffer of a stream: what the wire carries at once, or, where that takes several, or the
 * device coalesces, half of the buffer. */
static size_t payload_expected(const struct virtio_net *net) {
    bool is_chained = is_coalesced(net->transport->features) || net->config.mtu > net->buffer_bytes;
    return is_chained ? net->buffer_bytes / 2 : net->config.mtu;
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

/* How far behind a page's beginning each buffer begins. */
static size_t buffer_offset_for(size_t buffer_bytes) {
    enum { BEFORE = BUFFER_PAD + sizeof(struct net_header) + NET_RX_PAGE_BEHIND_MAX };
    _Static_assert(BEFORE < PAGE_BYTES, "the headers lie in the page before");
    return buffer_bytes >= 2 * PAGE_BYTES ? PAGE_BYTES - BEFORE : 0;
}

/* With fewer than this there are less than so many eighths. */
static unsigned eighths_of(unsigned count, unsigned eighths) {
    return (count * eighths + 7) / 8;
}

/* One buffer less than there is room for: what it leaves is enough to align the others. */
static int create_packets(struct virtio_net *net) {
    struct io_buffer *memory = net->transport->node->dma_buffer;
    size_t left = io_buffer_size(memory) - memory->carved;
    net->buffer_bytes = buffer_bytes_for(net->transport->features, left);
    net->packet_count = (unsigned)(left / net->buffer_bytes) - 1;
    size_t offset = buffer_offset_for(net->buffer_bytes);
    size_t align = offset > 0 ? PAGE_BYTES : net->buffer_bytes;
    void *buffers = NULL;
    int error =
        io_buffer_carve(memory, offset + net->packet_count * net->buffer_bytes, align, &buffers);
    net->packets = error ? NULL : malloc(net->packet_count * sizeof *net->packets);
    if (net->packets == NULL) {
        return -ENOMEM;
    }
    net->buffers = (uint8_t *)buffers + offset;
    net->free_count = net->packet_count;
    net->short_below = eighths_of(net->packet_count, NET_RX_PRESSURE_EIGHTHS);
    net->out_below = eighths_of(net->packet_count, NET_RX_RESERVE_EIGHTHS);
    net->pad = BUFFER_PAD;
    net->pad_max = offset > 0 ? BUFFER_PAD_MAX : BUFFER_PAD;
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
    if (!virtio_has(transport, VIRTIO_NET_F_MTU) || net->config.mtu < MTU_MIN) {
        net->config.mtu = MTU_DEFAULT;
    }
    return 0;
}

/* No frame may be longer than all the buffers that the ring holds, or than lwIP can say in 16 bits:
 * peers hear of what fits instead. */
static void bound_mtu(struct virtio_net *net) {
    unsigned ring = virtqueue_size(net->receive);
    unsigned buffers = ring < net->packet_count ? ring : net->packet_count;
    size_t frame = buffers * (net->buffer_bytes - net->pad_max) - sizeof(struct net_header);
    size_t most = (frame < UINT16_MAX ? frame : UINT16_MAX) - ETHERNET_BYTES;
    if (net->config.mtu > most) {
        log_info("%s: of an mtu of %u %zu are used", net->transport->node->name, net->config.mtu,
                 most);
        net->config.mtu = (uint16_t)most;
    }
}

/* A frame longer than a buffer needs several, which only mergeable ones can be. */
static bool can_take_mtu(struct virtio_transport *transport, uint64_t offered) {
    struct net_config config;
    return (offered & VIRTIO_NET_F_MRG_RXBUF) != 0 ||
           (virtio_config_read(transport, 0, &config, sizeof config) == 0 &&
            config.mtu <= MTU_DEFAULT);
}

/* Offloads that depend on others are asked for only together (VIRTIO 1.3, 5.1.3.1); large frames
 * only with mergeable buffers, for without them each buffer would have to hold 64 KiB. */
static uint64_t wanted_features(struct virtio_transport *transport) {
    uint64_t offered = transport->ops->features_read(transport);
    uint64_t wanted = VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF |
                      VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_F_INDIRECT_DESC |
                      VIRTIO_F_EVENT_IDX;
    if ((offered & VIRTIO_NET_F_MTU) != 0 && can_take_mtu(transport, offered)) {
        wanted |= VIRTIO_NET_F_MTU;
    }
    if ((offered & VIRTIO_NET_F_CSUM) != 0) {
        wanted |= VIRTIO_NET_F_HOST_TSO4;
    }
    if ((offered & VIRTIO_NET_F_GUEST_CSUM) != 0 && (offered & VIRTIO_NET_F_MRG_RXBUF) != 0) {
        wanted |= VIRTIO_NET_F_GUEST_TSO4;
    }
    return wanted;
}

static bool should_notify_twice(void) {
    const char *word = config_text("notify");
    bool is_twice = word != NULL && strcmp(word, "twice") == 0;
    if (word != NULL && !is_twice && strcmp(word, "once") != 0) {
        log_warning("config: notify=%s refused: once or twice is wanted", word);
    }
    return is_twice;
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
    net->notifies_twice = should_notify_twice();
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
    if (!error) {
        bound_mtu(net);
    }
    if (error) {
        goto fail;
    }
    virtio_driver_ok(transport);
    virtio_net_flush(net);
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

const struct virtio_driver virtio_net_driver = {.name = "virtio-net",
                                                .device_id = VIRTIO_ID_NET,
                                                .dma_bytes = net_dma_bytes,
                                                .probe = net_probe};

#ifdef PLATTER_HOST
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
