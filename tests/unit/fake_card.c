/* The network device of tests. See fake_card.h. */
#include "tests/unit/fake_card.h"

#include <string.h>

#include "boot/host/host.h"
#include "core/mem/io_buffer.h"
#include "tests/unit/unit.h"

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, CHAIN_MAX = 300, BUFFERS_MAX = 80 };

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

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
        card.receive = (struct card_queue){0};
        card.send = (struct card_queue){0};
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
    struct card_queue *queue = index == 0 ? &card.receive : &card.send;
    *queue = (struct card_queue){.descriptors = pointer_of(descriptors),
                                 .available = pointer_of(driver_area),
                                 .used = pointer_of(device_area),
                                 .size = size};
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
    assert_true(index < 2); /* it looks when it is called */
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

int fake_card_probe(void) {
    size_t bytes = virtio_net_driver.dma_bytes(&card.transport);
    assert_int_equal(io_buffer_init(&card.dma, bytes, 4096), 0);
    card.node.dma_buffer = &card.dma;
    return virtio_net_driver.probe(&card.transport);
}

void fake_card_unplug(void) {
    virtio_net_forget();
}

/* --- Rings --- */

static unsigned waiting(const struct card_queue *queue) {
    uint16_t published = 0;
    if (queue->size == 0) {
        return 0;
    }
    memcpy(&published, queue->available + 2, 2);
    return (uint16_t)(published - queue->seen);
}

static uint16_t next_head(struct card_queue *queue) {
    uint16_t head = 0;
    assert_true(waiting(queue) > 0);
    memcpy(&head, queue->available + 4 + 2 * (size_t)(queue->seen++ % queue->size), 2);
    assert_true(head < queue->size);
    return head;
}

static void complete(struct card_queue *queue, uint32_t id, uint32_t length) {
    uint8_t *entry = queue->used + 4 + 8 * (size_t)(queue->used_index % queue->size);
    memcpy(entry, &id, 4);
    memcpy(entry + 4, &length, 4);
    queue->used_index++;
    memcpy(queue->used + 2, &queue->used_index, 2);
}

static unsigned walk(const struct card_queue *queue, uint16_t head, struct descriptor *chain) {
    const uint8_t *table = queue->descriptors;
    struct descriptor at;
    memcpy(&at, table + 16 * (size_t)head, sizeof at);
    if ((at.flags & INDIRECT) != 0) {
        table = pointer_of(phys_addr(at.address));
        memcpy(&at, table, sizeof at);
    }
    for (unsigned count = 0;;) {
        assert_true(count < CHAIN_MAX);
        chain[count++] = at;
        if ((at.flags & NEXT) == 0) {
            return count;
        }
        memcpy(&at, table + 16 * (size_t)at.next, sizeof at);
    }
}

unsigned fake_card_buffers(void) {
    return waiting(&card.receive);
}

/* The buffer that is due, and where it is to be said to be full. */
static uint8_t *next_buffer(uint16_t *head, uint32_t *room) {
    struct descriptor chain[CHAIN_MAX];
    *head = next_head(&card.receive);
    assert_int_equal(walk(&card.receive, *head, chain), 1);
    assert_true((chain[0].flags & WRITE) != 0);
    *room = chain[0].length;
    return pointer_of(phys_addr(chain[0].address));
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
        complete(&card.receive, buffers[i].head, buffers[i].used);
    }
}

void fake_card_claim(unsigned claimed, uint32_t written) {
    struct net_header header = {.buffer_count = (uint16_t)claimed};
    uint16_t head = 0;
    uint32_t room = 0;
    uint8_t *data = next_buffer(&head, &room);
    assert_true(written <= room);
    memcpy(data, &header, sizeof header);
    complete(&card.receive, head, written);
}

void fake_card_break_receive(void) {
    complete(&card.receive, card.receive.size, 0);
}

size_t fake_card_hold(uint8_t frame[CARD_FRAME_MAX], uint16_t *held) {
    struct descriptor chain[CHAIN_MAX];
    size_t bytes = 0;
    size_t skip = sizeof(struct net_header);
    if (waiting(&card.send) == 0) {
        return 0;
    }
    *held = next_head(&card.send);
    unsigned count = walk(&card.send, *held, chain);
    assert_true(chain[0].length >= skip);
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *data = pointer_of(phys_addr(chain[i].address));
        assert_true((chain[i].flags & WRITE) == 0);
        assert_true(chain[i].length - skip <= CARD_FRAME_MAX - bytes);
        memcpy(frame + bytes, data + skip, chain[i].length - skip);
        bytes += chain[i].length - skip;
        skip = 0;
    }
    return bytes;
}

void fake_card_done(uint16_t held) {
    complete(&card.send, held, 0);
}

size_t fake_card_take(uint8_t frame[CARD_FRAME_MAX]) {
    uint16_t held = 0;
    size_t bytes = fake_card_hold(frame, &held);
    if (bytes > 0) {
        fake_card_done(held);
    }
    return bytes;
}
