/* A network device of the fuzzer's: rings and configuration of virtio-net (VIRTIO 1.3, 5.1), behind
 * a transport of its own. Honest unless told to lie; it acts only when it is called. */
#ifndef TESTS_FUZZ_NET_DEVICE_H
#define TESTS_FUZZ_NET_DEVICE_H

#include "core/virtio/transport.h"
#include "net/offload.h"
#include "tests/fuzz/fuzz.h"

enum {
    NET_DEVICE_CONFIG_BYTES = 12,
    NET_DEVICE_FRAME_MAX = 128 * 1024,
};

/* Feature bits that the fuzzer looks at (VIRTIO 1.3, 5.1.3). */
#define NET_DEVICE_CSUM       (UINT64_C(1) << 0)
#define NET_DEVICE_GUEST_CSUM (UINT64_C(1) << 1)
#define NET_DEVICE_MTU        (UINT64_C(1) << 3)
#define NET_DEVICE_MAC        (UINT64_C(1) << 5)
#define NET_DEVICE_GUEST_TSO4 (UINT64_C(1) << 7)
#define NET_DEVICE_HOST_TSO4  (UINT64_C(1) << 11)
#define NET_DEVICE_MRG_RXBUF  (UINT64_C(1) << 15)
#define NET_DEVICE_STATUS     (UINT64_C(1) << 16)

struct net_device_options {
    uint64_t features;
    unsigned ring_size;
    size_t config_bytes;
    bool never_resets;
    bool resets_slowly;
    uint8_t config[NET_DEVICE_CONFIG_BYTES];
};

/* A new device, probed by the driver with a buffer of as many bytes as it asks for: what the driver
 * says to it. */
int net_device_plug_in(const struct net_device_options *options);
/* The driver forgets it, and its memory goes. */
void net_device_unplug(void);

/* Features that were agreed on. */
uint64_t net_device_features(void);
bool net_device_is_live(void);
/* It has lied, or does not reset: what it holds, it holds. */
bool net_device_has_lied(void);

/* Receive buffers that it has and has not filled. */
unsigned net_device_buffers(void);
/* Fills some with a frame; false when it does not fit, and nothing happens. */
bool net_device_deliver(const uint8_t *frame, size_t bytes, uint8_t flags);

/* Reads up to `frames_max` frames that the driver sends, and completes them. */
typedef void net_device_taken(const struct net_header *header, const uint8_t *frame, size_t bytes);
void net_device_take(unsigned frames_max, net_device_taken *taken);

/* One lie, as the input has it: in a used ring, in a header, in the status. */
void net_device_lie(struct fuzz_input *input);

/* Writes one byte of the configuration and says so. */
void net_device_change(size_t offset, uint8_t value);

#endif
