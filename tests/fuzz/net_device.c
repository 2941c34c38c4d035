/* See net_device.h. */
#include "tests/fuzz/net_device.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/mem/io_buffer.h"
#include "net/virtio_net.h"
#include "tests/device_ring.h"

enum {
    RECEIVE = 0,
    SEND = 1,
    QUEUES = 2,
    CHAIN_MAX = 300,
    BUFFERS_MAX = 80, /* of one frame */
    SLOW_READS = 100,
};

static struct {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    struct net_device_options options;
    struct device_ring queues[QUEUES];
    uint64_t agreed;
    uint32_t status;
    unsigned slow_reads;
    bool has_lied;
    bool has_lied_of_sent;
} device;

static uint8_t frame_sent[NET_DEVICE_FRAME_MAX];

/* --- Registers --- */

static uint32_t status_read(struct virtio_transport *transport) {
    (void)transport;
    host_clock_advance(NS_PER_US);
    if (device.slow_reads > 0) {
        device.slow_reads--;
        return VIRTIO_STATUS_DRIVER_OK;
    }
    return device.status;
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    (void)transport;
    if (status == 0) {
        if (device.options.never_resets && device.status != 0) {
            device.has_lied = true;
            return;
        }
        device.slow_reads = device.options.resets_slowly ? SLOW_READS : 0;
        memset(device.queues, 0, sizeof device.queues);
    }
    device.status = status;
}

static uint64_t features_read(struct virtio_transport *transport) {
    (void)transport;
    return device.options.features;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    (void)transport;
    FUZZ_CHECK((features & ~device.options.features) == 0);
    device.agreed = features;
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index < QUEUES ? device.options.ring_size : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    FUZZ_CHECK(index < QUEUES);
    FUZZ_CHECK(size > 0 && size <= device.options.ring_size);
    device.queues[index] = device_ring_at(size, descriptors, driver_area, device_area);
    return 0;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    (void)transport;
    FUZZ_CHECK(offset <= device.options.config_bytes &&
               bytes <= device.options.config_bytes - offset);
    memcpy(buf, device.options.config + offset, bytes);
}

static uint32_t config_generation(struct virtio_transport *transport) {
    (void)transport;
    return 0;
}

static size_t config_bytes(struct virtio_transport *transport) {
    (void)transport;
    return device.options.config_bytes;
}

static void nothing(struct virtio_transport *transport) {
    (void)transport;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    FUZZ_CHECK(index < QUEUES); /* the device looks when it is called */
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
                                                .barrier = nothing};

/* --- Frames --- */

unsigned net_device_buffers(void) {
    return device_ring_waiting(&device.queues[RECEIVE]);
}

/* The next buffer of the ring, without taking it. */
static struct ring_descriptor buffer_ahead(unsigned ahead) {
    const struct device_ring *queue = &device.queues[RECEIVE];
    struct ring_descriptor chain[CHAIN_MAX];
    unsigned count = device_ring_walk(queue, device_ring_peek(queue, ahead), chain, CHAIN_MAX);
    FUZZ_CHECK(count == 1 && (chain[0].flags & RING_WRITE) != 0);
    return chain[0];
}

bool net_device_deliver(const uint8_t *frame, size_t bytes, uint8_t flags) {
    struct device_ring *queue = &device.queues[RECEIVE];
    struct net_header header = {.flags = flags};
    unsigned buffers = device_ring_waiting(queue);
    unsigned need = 0;
    size_t room = 0;
    bool may_merge = (device.agreed & NET_DEVICE_MRG_RXBUF) != 0;
    while (room < bytes + sizeof header) {
        if (need == buffers || need == BUFFERS_MAX || (need == 1 && !may_merge)) {
            return false;
        }
        room += buffer_ahead(need++).length;
    }
    header.buffer_count = (uint16_t)need;
    for (unsigned i = 0; i < need; i++) {
        struct ring_descriptor buffer = buffer_ahead(0);
        uint8_t *data = device_ring_memory(&buffer);
        size_t used = i == 0 ? sizeof header : 0;
        size_t part = buffer.length - used < bytes ? buffer.length - used : bytes;
        memcpy(data, &header, used);
        memcpy(data + used, frame, part);
        frame += part;
        bytes -= part;
        device_ring_complete(queue, device_ring_take(queue), (uint32_t)(used + part));
    }
    return true;
}

void net_device_take(unsigned frames_max, net_device_taken *taken) {
    struct device_ring *queue = &device.queues[SEND];
    struct ring_descriptor chain[CHAIN_MAX];
    while (frames_max-- > 0 && device_ring_waiting(queue) > 0) {
        uint16_t head = device_ring_take(queue);
        if (device.has_lied_of_sent) {
            /* What it has called done is the driver's again, and not for reading. */
            device_ring_complete(queue, head, 0);
            continue;
        }
        unsigned count = device_ring_walk(queue, head, chain, CHAIN_MAX);
        struct net_header header;
        size_t bytes = 0;
        for (unsigned i = 0; i < count; i++) {
            FUZZ_CHECK((chain[i].flags & RING_WRITE) == 0 &&
                       chain[i].length <= NET_DEVICE_FRAME_MAX - bytes);
            memcpy(frame_sent + bytes, device_ring_memory(&chain[i]), chain[i].length);
            bytes += chain[i].length;
        }
        FUZZ_CHECK(bytes >= sizeof header);
        memcpy(&header, frame_sent, sizeof header);
        device_ring_complete(queue, head, 0);
        taken(&header, frame_sent + sizeof header, bytes - sizeof header);
    }
}

/* --- Lies --- */

/* A header that claims other buffers than there are, in one that is ours to fill. */
static void lie_in_header(struct fuzz_input *input) {
    struct device_ring *queue = &device.queues[RECEIVE];
    struct net_header header = {.flags = fuzz_u8(input), .buffer_count = fuzz_u16(input)};
    if (device_ring_waiting(queue) == 0) {
        return;
    }
    struct ring_descriptor buffer = buffer_ahead(0);
    memcpy(device_ring_memory(&buffer), &header, sizeof header);
    uint32_t bytes = fuzz_u16(input) % (buffer.length + 1);
    device_ring_complete(queue, device_ring_take(queue), bytes);
}

void net_device_lie(struct fuzz_input *input) {
    uint8_t word = fuzz_u8(input);
    unsigned kind = word % (FUZZ_RING_LIES + 1);
    struct device_ring *queue = &device.queues[word >> 7];
    if (queue->size == 0) {
        return;
    }
    device.has_lied = true;
    device.has_lied_of_sent |= word >> 7 == SEND;
    if (kind < FUZZ_RING_LIES) {
        fuzz_ring_lie(input, kind, queue);
    } else {
        lie_in_header(input);
    }
}

void net_device_change(size_t offset, uint8_t value) {
    device.options.config[offset % NET_DEVICE_CONFIG_BYTES] = value;
    if (device.transport.config_changed != NULL) {
        device.transport.config_changed(device.transport.config_changed_arg);
    }
}

/* --- In and out --- */

int net_device_plug_in(const struct net_device_options *options) {
    memset(&device, 0, sizeof device);
    device.options = *options;
    device.node.name = "hostile";
    device.transport = (struct virtio_transport){.ops = &ops, .node = &device.node};
    size_t bytes = virtio_net_driver.dma_bytes(&device.transport);
    FUZZ_CHECK(io_buffer_init(&device.dma, bytes, 4096) == 0);
    device.node.dma_buffer = &device.dma;
    return virtio_net_driver.probe(&device.transport);
}

void net_device_unplug(void) {
    virtio_net_forget();
}

uint64_t net_device_features(void) {
    return device.agreed;
}

bool net_device_is_live(void) {
    return (device.status & VIRTIO_STATUS_DRIVER_OK) != 0 &&
           (device.status & VIRTIO_STATUS_FAILED) == 0;
}

bool net_device_has_lied(void) {
    return device.has_lied;
}
