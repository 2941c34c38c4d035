/* The simulated interface (virtio-net, VIRTIO 1.3, 5.1) and the wire behind it, with all that can
 * happen to a frame. */
#ifndef TESTS_SIM_NET_H
#define TESTS_SIM_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bits of plan.net_features. */
#define NET_F_CSUM       (UINT64_C(1) << 0)
#define NET_F_GUEST_CSUM (UINT64_C(1) << 1)
#define NET_F_MTU        (UINT64_C(1) << 3)
#define NET_F_MAC        (UINT64_C(1) << 5)
#define NET_F_GUEST_TSO4 (UINT64_C(1) << 7)
#define NET_F_HOST_TSO4  (UINT64_C(1) << 11)
#define NET_F_MRG_RXBUF  (UINT64_C(1) << 15)
#define NET_F_STATUS     (UINT64_C(1) << 16)

enum { FRAME_BYTES_MAX = 65535 + 14, ETHERNET_BYTES = 14 };

extern const uint8_t net_mac[6];

void net_set_up(void);

/* A host on the wire sends a frame, which is copied. It is an ordinary one with its checksums, or,
 * when the appliance takes large segments, one TCP segment of any length. */
void net_send_to_appliance(const uint8_t *frame, size_t bytes, unsigned segment_bytes);
bool net_takes_large_segments(void);
/* What the appliance has agreed to. */
unsigned net_mtu(void);

bool net_is_broken(void);
/* Frames between the ends. */
bool net_is_idle(void);

/* The Internet checksum over `bytes`, beginning with `sum`; not inverted. */
uint32_t checksum_add(uint32_t sum, const uint8_t *data, size_t bytes);
uint16_t checksum_fold(uint32_t sum);
/* Of a TCP segment of `bytes` behind an IPv4 header, which has its addresses. */
uint16_t checksum_tcp(const uint8_t *ip, const uint8_t *segment, size_t bytes);

#endif
