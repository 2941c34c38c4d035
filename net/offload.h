/* The virtio-net header of an outgoing frame: which of its checksum and segmentation the device is
 * to do (VIRTIO 1.3, 5.1.6). Knows frames, neither rings nor lwIP. */
#ifndef NET_OFFLOAD_H
#define NET_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In front of every frame, both ways. */
struct net_header {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_bytes;
    uint16_t gso_size;
    uint16_t checksum_start;
    uint16_t checksum_offset;
    uint16_t buffer_count;
};

enum {
    NET_HEADER_NEEDS_CHECKSUM = 1,
    NET_HEADER_DATA_VALID = 2,
    NET_HEADER_GSO_NONE = 0,
    NET_HEADER_GSO_TCPV4 = 1,
};

_Static_assert(sizeof(struct net_header) == 12, "VIRTIO 1.3, 5.1.6");

struct net_offload {
    bool checksums; /* the device completes TCP and UDP checksums */
    bool segments;  /* the device cuts TCP segments; only with checksums */
    uint16_t segment_bytes;
};

/* Fills `header` for the frame whose first `bytes` bytes, all protocol headers among them, are at
 * `frame`. With checksum offload, the sum over the pseudo header is put where the device completes
 * it; a TCP payload longer than `segment_bytes` is marked to be cut. What is neither TCP nor UDP
 * over IPv4 is left alone. */
void net_offload_fill(const struct net_offload *offload, uint8_t *frame, size_t bytes,
                      struct net_header *header);

/* The same for a TCP segment over IPv4, both without options, whose sum over the pseudo header is
 * where it belongs: `header`, all zeroes, says that the device completes it and, unless it is 0,
 * cuts the payload into pieces of `cut_bytes`. */
void net_offload_fill_tcp(struct net_header *header, uint16_t cut_bytes);

#endif
