/* Checksum and segmentation offload of outgoing frames. See offload.h. */
#include "net/offload.h"

#include <string.h>

#include "net/checksum.h"

enum {
    ETHERNET_BYTES = 14,
    ETHERTYPE_IPV4 = 0x0800,
    IPV4_BYTES_MIN = 20,
    IPV4_PROTOCOL = 9,
    IPV4_SOURCE = 12,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
    TCP_BYTES_MIN = 20,
    TCP_DATA_OFFSET = 12,
    TCP_CHECKSUM = 16,
    UDP_BYTES = 8,
    UDP_CHECKSUM = 6,
};

struct frame_headers {
    uint8_t *ip;
    uint8_t *transport;
    unsigned ip_bytes;
    uint8_t protocol;
    uint16_t payload_bytes; /* of IP */
};

static unsigned get16(const uint8_t *p) {
    return (unsigned)(p[0] << 8 | p[1]);
}

static bool find_headers(uint8_t *frame, size_t bytes, struct frame_headers *headers) {
    if (bytes < ETHERNET_BYTES + IPV4_BYTES_MIN || get16(frame + 12) != ETHERTYPE_IPV4) {
        return false;
    }
    headers->ip = frame + ETHERNET_BYTES;
    headers->ip_bytes = (headers->ip[0] & 0x0fu) * 4;
    headers->protocol = headers->ip[IPV4_PROTOCOL];
    headers->payload_bytes = (uint16_t)(get16(headers->ip + 2) - headers->ip_bytes);
    headers->transport = headers->ip + headers->ip_bytes;
    size_t need = headers->protocol == PROTOCOL_TCP   ? TCP_BYTES_MIN
                  : headers->protocol == PROTOCOL_UDP ? UDP_BYTES
                                                      : SIZE_MAX / 2;
    return bytes >= ETHERNET_BYTES + headers->ip_bytes + need;
}

/* The sum over source, destination, protocol and length that the device goes on from (RFC
 * 9293, 3.1; RFC 768). */
static uint16_t pseudo_sum(const struct frame_headers *headers) {
    uint32_t sum = net_checksum(headers->ip + IPV4_SOURCE, 8);
    sum += (uint32_t)headers->protocol << 8;
    sum += __builtin_bswap16(headers->payload_bytes);
    sum = (sum >> 16) + (sum & UINT16_MAX);
    return (uint16_t)((sum >> 16) + (sum & UINT16_MAX));
}

void net_offload_fill(const struct net_offload *offload, uint8_t *frame, size_t bytes,
                      struct net_header *header) {
    struct frame_headers headers = {0};
    *header = (struct net_header){0};
    if (!offload->checksums || !find_headers(frame, bytes, &headers)) {
        return;
    }
    bool is_tcp = headers.protocol == PROTOCOL_TCP;
    size_t offset = is_tcp ? TCP_CHECKSUM : UDP_CHECKSUM;
    uint16_t sum = pseudo_sum(&headers);
    memcpy(headers.transport + offset, &sum, sizeof sum);
    header->flags = NET_HEADER_NEEDS_CHECKSUM;
    header->checksum_start = (uint16_t)(ETHERNET_BYTES + headers.ip_bytes);
    header->checksum_offset = (uint16_t)offset;
    unsigned tcp_bytes = is_tcp ? (headers.transport[TCP_DATA_OFFSET] >> 4) * 4u : 0;
    if (is_tcp && offload->segments && headers.payload_bytes > tcp_bytes + offload->segment_bytes) {
        header->gso_type = NET_HEADER_GSO_TCPV4;
        header->gso_size = offload->segment_bytes;
        header->header_bytes = (uint16_t)(header->checksum_start + tcp_bytes);
    }
}

void net_offload_fill_tcp(struct net_header *header, uint16_t cut_bytes) {
    header->flags = NET_HEADER_NEEDS_CHECKSUM;
    header->checksum_start = ETHERNET_BYTES + IPV4_BYTES_MIN;
    header->checksum_offset = TCP_CHECKSUM;
    if (cut_bytes != 0) {
        header->gso_type = NET_HEADER_GSO_TCPV4;
        header->gso_size = cut_bytes;
        header->header_bytes = ETHERNET_BYTES + IPV4_BYTES_MIN + TCP_BYTES_MIN;
    }
}
