/* A virtio-net device, between the files of its driver: virtio_net.c moves frames, and
 * virtio_net_start.c brings it up. */
#ifndef NET_VIRTIO_NET_DEVICE_H
#define NET_VIRTIO_NET_DEVICE_H

#include <lwip/pbuf.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/task/scheduler.h"
#include "core/virtio/queue.h"
#include "net/virtio_net.h"

/* VIRTIO 1.3, 5.1.3. */
#define VIRTIO_NET_F_CSUM       (UINT64_C(1) << 0)
#define VIRTIO_NET_F_GUEST_CSUM (UINT64_C(1) << 1)
#define VIRTIO_NET_F_MTU        (UINT64_C(1) << 3)
#define VIRTIO_NET_F_MAC        (UINT64_C(1) << 5)
#define VIRTIO_NET_F_GUEST_TSO4 (UINT64_C(1) << 7)
#define VIRTIO_NET_F_HOST_TSO4  (UINT64_C(1) << 11)
#define VIRTIO_NET_F_MRG_RXBUF  (UINT64_C(1) << 15)
#define VIRTIO_NET_F_STATUS     (UINT64_C(1) << 16)

/* VIRTIO 1.3, 5.1.4. */
struct net_config {
    uint8_t mac[6];
    uint16_t status;
    uint16_t max_virtqueue_pairs;
    uint16_t mtu;
};

enum {
    SEND_SEGMENTS_MAX = 256,
    /* In front of what the device writes, so that IP's header is aligned; more by a multiple of 4
     * where what is to begin a page comes earlier (virtio_net_begin_page). */
    BUFFER_PAD = 2,
    BUFFER_PAD_MAX = BUFFER_PAD + 4,
    ETHERNET_BYTES = 14,
};

/* One receive buffer and its packet. */
struct packet {
    struct pbuf_custom custom; /* first: lwIP gives this back */
    struct virtio_net *net;
    uint8_t *buffer;
    size_t pad; /* as it was when the device got the buffer */
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
    unsigned free_count;  /* fresh ones included */
    unsigned short_below; /* with so few buffers left: virtio_net_is_short_of_buffers */
    unsigned out_below;   /* virtio_net_is_out_of_buffers */
    size_t buffer_bytes;
    size_t pad; /* of buffers that the device gets from now on */
    size_t pad_max;
    struct poll_source receive_source;
    struct poll_source send_source;
    struct event *event;
    bool wants_room; /* a frame was refused: the device must tell when it has read some */
    bool acks_may_wait;
    uint16_t looked_at; /* of the receive ring's completions: before it all are taken or may wait */
    bool link_changed;
    bool is_broken;
    bool has_merged;    /* frames over several buffers may come: MRG_RXBUF */
    bool has_sums_seen; /* the device may vouch for checksums: GUEST_CSUM */
    /* The device sends when it is told a second time: the key `notify`. */
    bool notifies_twice;
    /* Frames in the send ring, each at the number that it was sent as, modulo the ring's size; NULL
     * when the device has read it. A device may be done with them in any order. */
    struct pbuf **frames;
    uint64_t sent;
    uint64_t reclaimed;                         /* all before this number */
    struct segment segments[SEND_SEGMENTS_MAX]; /* of the frame being sent: too many for a stack */
};

#endif
