/* A virtio-net device for tests (VIRTIO 1.3, 5.1): rings and configuration behind a transport of
 * its own. It acts only when it is called. One at a time. */
#ifndef TESTS_UNIT_FAKE_CARD_H
#define TESTS_UNIT_FAKE_CARD_H

#include "core/virtio/transport.h"
#include "net/offload.h"
#include "net/virtio_net.h"
#include "tests/device_ring.h"

#define CARD_CSUM       (UINT64_C(1) << 0)
#define CARD_GUEST_CSUM (UINT64_C(1) << 1)
#define CARD_MTU        (UINT64_C(1) << 3)
#define CARD_MAC        (UINT64_C(1) << 5)
#define CARD_GUEST_TSO4 (UINT64_C(1) << 7)
#define CARD_HOST_TSO4  (UINT64_C(1) << 11)
#define CARD_MRG_RXBUF  (UINT64_C(1) << 15)
#define CARD_STATUS     (UINT64_C(1) << 16)

enum { CARD_CONFIG_BYTES = 12, CARD_RING = 1024, CARD_FRAME_MAX = 64 * 1024 };

struct fake_card {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    uint64_t offered;
    uint32_t status;
    unsigned ring_max;
    uint8_t config[CARD_CONFIG_BYTES]; /* the MAC, the status, pairs of queues, the MTU */
    size_t config_bytes;
    bool never_resets;  /* once it has begun */
    bool is_restless;   /* its configuration changes at every look */
    size_t first_bytes; /* of a frame, in its first buffer; 0: as many as there is room for */
    struct device_ring receive;
    struct device_ring send;
    struct net_header header; /* of the frame that was read last */
    unsigned notifies[2];     /* of each ring */
};

extern struct fake_card card;

/* A healthy device of these features besides MAC and VERSION_1, its link up. */
void fake_card_set_up(uint64_t features);
void fake_card_set_mtu(uint16_t mtu);
/* The driver's probe, with as much DMA memory as it asks for; and its end, for the next test. */
int fake_card_probe(void);
int fake_card_probe_with(size_t dma_bytes);
void fake_card_unplug(void);

/* Receive buffers that it has and has not filled. */
unsigned fake_card_buffers(void);
/* Fills as many as a frame takes, which must be there. `flags` are the header's. */
void fake_card_deliver(const void *frame, size_t bytes, uint8_t flags);
/* Fills one, whose header claims a frame in `claimed` buffers, and says that it has written so many
 * bytes. */
void fake_card_claim(unsigned claimed, uint32_t written);
/* Says that a buffer came back which it was never given. */
void fake_card_break_receive(void);

/* Reads the next frame that the driver sends, without the virtio header; 0 when there is none. */
size_t fake_card_take(uint8_t frame[CARD_FRAME_MAX]);
/* The same, but it is not done with the frame before fake_card_done. */
size_t fake_card_hold(uint8_t frame[CARD_FRAME_MAX], uint16_t *held);
void fake_card_done(uint16_t held);

#endif
