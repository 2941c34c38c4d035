/* The network device of tests. See fake_card.h. */
#include "tests/unit/fake_card.h"

#include <string.h>

#include "boot/host/host.h"
#include "core/mem/io_buffer.h"
#include "tests/unit/unit.h"

enum { CHAIN_MAX = 300, BUFFERS_MAX = 80 };

struct fake_card card;

/* --- Registers --- */

static uint32_t status_read(struct virtio_transport *transport) {
    (void)transport;
    host_clock_advance(NS_PER_US);
    return card.status;
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    (void)transport;
    if (status == 0 && card.status != 0 && card.never_resets) {
        return;
    }
    card.status = status;
    if (status == 0) {
        card.receive = (struct device_ring){0};
        card.send = (struct device_ring){0};
    }
}

static uint64_t features_read(struct virtio_transport *transport) {
    (void)transport;
    return card.offered;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    (void)transport;
    assert_int_equal(features & ~card.offered, 0);
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index < 2 ? card.ring_max : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    assert_true(index < 2 && size > 0 && size <= card.ring_max);
    struct device_ring *ring = index == 0 ? &card.receive : &card.send;
    *ring = device_ring_at(size, descriptors, driver_area, device_area);
    return 0;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    (void)transport;
    assert_true(offset <= card.config_bytes && bytes <= card.config_bytes - offset);
    memcpy(buf, card.config + offset, bytes);
}

static uint32_t config_generation(struct virtio_transport *transport) {
    static uint32_t generation;
    (void)transport;
    generation += card.is_restless;
    return generation;
}

static size_t config_bytes(struct virtio_transport *transport) {
    (void)transport;
    return card.config_bytes;
}

static void barrier(struct virtio_transport *transport) {
    (void)transport;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    assert_true(index < 2);
    card.notifies[index]++; /* but it looks when it is called */
}

static const struct virtio_transport_ops ops = {.status_read = status_read,
                                                .status_write = status_write,
                                                .features_read = features_read,
                                                .features_write = features_write,
                                                .queue_size_max = queue_size_max,
                                                .queue_enable = queue_enable,
                                                .notify = notify,
                                                .config_read = config_read,
                                                .config_generation = config_generation,
                                                .config_bytes = config_bytes,
                                                .barrier = barrier};

void fake_card_set_up(uint64_t features) {
    static const uint8_t config[CARD_CONFIG_BYTES] = {0x52, 0x54, 0,    0x12, 0x34, 0x56,
                                                      1,    0,    0x01, 0,    0xdc, 0x05};
    memset(&card, 0, sizeof card);
    memcpy(card.config, config, sizeof config);
    card.config_bytes = sizeof config;
    card.offered = features | CARD_MAC | VIRTIO_F_VERSION_1;
    card.ring_max = CARD_RING;
    card.node.name = "card";
    card.transport = (struct virtio_transport){.ops = &ops, .node = &card.node};
}

void fake_card_set_mtu(uint16_t mtu) {
    memcpy(card.config + CARD_CONFIG_BYTES - sizeof mtu, &mtu, sizeof mtu);
}

int fake_card_probe_with(size_t dma_bytes) {
    assert_int_equal(io_buffer_init(&card.dma, dma_bytes, 4096), 0);
    card.node.dma_buffer = &card.dma;
    return virtio_net_driver.probe(&card.transport);
}

int fake_card_probe(void) {
    return fake_card_probe_with(virtio_net_driver.dma_bytes(&card.transport));
}

void fake_card_unplug(void) {
    virtio_net_forget();
}

/* --- Rings --- */

unsigned fake_card_buffers(void) {
    return device_ring_waiting(&card.receive);
}

/* The buffer that is due, and where it is to be said to be full. */
static uint8_t *next_buffer(uint16_t *head, uint32_t *room) {
    struct ring_descriptor chain[CHAIN_MAX];
    *head = device_ring_take(&card.receive);
    assert_int_equal(device_ring_walk(&card.receive, *head, chain, CHAIN_MAX), 1);
    assert_true((chain[0].flags & RING_WRITE) != 0);
    *room = chain[0].length;
    return device_ring_memory(&chain[0]);
}

void fake_card_deliver(const void *frame, size_t bytes, uint8_t flags) {
    struct {
        uint8_t *data;
        uint32_t used;
        uint16_t head;
    } buffers[BUFFERS_MAX];
    const uint8_t *from = frame;
    struct net_header header = {.flags = flags};
    unsigned count = 0;
    do {
        uint32_t room = 0;
        uint32_t at = count == 0 ? sizeof header : 0;
        assert_true(count < BUFFERS_MAX);
        buffers[count].data = next_buffer(&buffers[count].head, &room);
        room = count == 0 && card.first_bytes != 0 ? at + (uint32_t)card.first_bytes : room;
        uint32_t part = bytes < room - at ? (uint32_t)bytes : room - at;
        memcpy(buffers[count].data + at, from, part);
        buffers[count++].used = at + part;
        from += part;
        bytes -= part;
    } while (bytes > 0);
    assert_true(count == 1 || (card.transport.features & CARD_MRG_RXBUF) != 0);
    header.buffer_count = (uint16_t)count;
    memcpy(buffers[0].data, &header, sizeof header);
    for (unsigned i = 0; i < count; i++) {
        device_ring_complete(&card.receive, buffers[i].head, buffers[i].used);
    }
}

void fake_card_claim(unsigned claimed, uint32_t written) {
    struct net_header header = {.buffer_count = (uint16_t)claimed};
    uint16_t head = 0;
    uint32_t room = 0;
    uint8_t *data = next_buffer(&head, &room);
    assert_true(written <= room);
    memcpy(data, &header, sizeof header);
    device_ring_complete(&card.receive, head, written);
}

void fake_card_break_receive(void) {
    device_ring_complete(&card.receive, card.receive.size, 0);
}

size_t fake_card_hold(uint8_t frame[CARD_FRAME_MAX], uint16_t *held) {
    struct ring_descriptor chain[CHAIN_MAX];
    size_t bytes = 0;
    size_t skip = sizeof(struct net_header);
    if (device_ring_waiting(&card.send) == 0) {
        return 0;
    }
    *held = device_ring_take(&card.send);
    unsigned count = device_ring_walk(&card.send, *held, chain, CHAIN_MAX);
    assert_true(chain[0].length >= skip);
    memcpy(&card.header, device_ring_memory(&chain[0]), skip);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *data = device_ring_memory(&chain[i]);
        assert_true((chain[i].flags & RING_WRITE) == 0);
        assert_true(chain[i].length - skip <= CARD_FRAME_MAX - bytes);
        memcpy(frame + bytes, data + skip, chain[i].length - skip);
        bytes += chain[i].length - skip;
        skip = 0;
    }
    return bytes;
}

void fake_card_done(uint16_t held) {
    device_ring_complete(&card.send, held, 0);
}

size_t fake_card_take(uint8_t frame[CARD_FRAME_MAX]) {
    uint16_t held = 0;
    size_t bytes = fake_card_hold(frame, &held);
    if (bytes > 0) {
        fake_card_done(held);
    }
    return bytes;
}
