/* See net_device.h. */
#include "tests/fuzz/net_device.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/mem/io_buffer.h"
#include "net/virtio_net.h"

enum {
    RECEIVE = 0,
    SEND = 1,
    QUEUES = 2,
    CHAIN_MAX = 300,
    BUFFERS_MAX = 80, /* of one frame */
    SLOW_READS = 100,
    NEXT = 1,
    WRITE = 2,
    INDIRECT = 4,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

struct queue {
    uint8_t *descriptors;
    uint8_t *available;
    uint8_t *used;
    unsigned size;
    uint16_t seen;
    uint16_t used_index;
};

static struct {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    struct net_device_options options;
    struct queue queues[QUEUES];
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
    device.queues[index] = (struct queue){.descriptors = pointer_of(descriptors),
                                          .available = pointer_of(driver_area),
                                          .used = pointer_of(device_area),
                                          .size = size};
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

/* --- Rings --- */

static unsigned waiting(const struct queue *queue) {
    uint16_t published = 0;
    if (queue->size == 0) {
        return 0;
    }
    memcpy(&published, queue->available + 2, 2);
    return (uint16_t)(published - queue->seen);
}

static uint16_t next_head(struct queue *queue) {
    uint16_t head = 0;
    memcpy(&head, queue->available + 4 + 2 * (size_t)(queue->seen++ % queue->size), 2);
    FUZZ_CHECK(head < queue->size);
    return head;
}

static void complete(struct queue *queue, uint32_t id, uint32_t length) {
    uint8_t *entry = queue->used + 4 + 8 * (size_t)(queue->used_index % queue->size);
    memcpy(entry, &id, 4);
    memcpy(entry + 4, &length, 4);
    queue->used_index++;
    memcpy(queue->used + 2, &queue->used_index, 2);
}

/* What the driver shows must make sense, whatever the device does. */
static unsigned walk(const struct queue *queue, uint16_t head, struct descriptor *chain) {
    const uint8_t *table = queue->descriptors;
    struct descriptor at;
    memcpy(&at, table + 16 * (size_t)head, sizeof at);
    if ((at.flags & INDIRECT) != 0) {
        table = pointer_of(phys_addr(at.address));
        memcpy(&at, table, sizeof at);
    }
    for (unsigned count = 0;;) {
        FUZZ_CHECK(count < CHAIN_MAX);
        chain[count++] = at;
        if ((at.flags & NEXT) == 0) {
            return count;
        }
        memcpy(&at, table + 16 * (size_t)at.next, sizeof at);
    }
}

/* --- Frames --- */

unsigned net_device_buffers(void) {
    return waiting(&device.queues[RECEIVE]);
}

/* The next buffer of the ring, without taking it. */
static struct descriptor buffer_ahead(unsigned ahead) {
    const struct queue *queue = &device.queues[RECEIVE];
    struct descriptor chain[CHAIN_MAX];
    uint16_t head = 0;
    memcpy(&head, queue->available + 4 + 2 * (size_t)((queue->seen + ahead) % queue->size), 2);
    FUZZ_CHECK(head < queue->size);
    FUZZ_CHECK(walk(queue, head, chain) == 1 && (chain[0].flags & WRITE) != 0);
    return chain[0];
}

bool net_device_deliver(const uint8_t *frame, size_t bytes, uint8_t flags) {
    struct queue *queue = &device.queues[RECEIVE];
    struct net_header header = {.flags = flags};
    unsigned buffers = waiting(queue);
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
        struct descriptor buffer = buffer_ahead(0);
        uint8_t *data = pointer_of(phys_addr(buffer.address));
        size_t used = i == 0 ? sizeof header : 0;
        size_t part = buffer.length - used < bytes ? buffer.length - used : bytes;
        memcpy(data, &header, used);
        memcpy(data + used, frame, part);
        frame += part;
        bytes -= part;
        complete(queue, next_head(queue), (uint32_t)(used + part));
    }
    return true;
}

void net_device_take(unsigned frames_max, net_device_taken *taken) {
    struct queue *queue = &device.queues[SEND];
    struct descriptor chain[CHAIN_MAX];
    while (frames_max-- > 0 && waiting(queue) > 0) {
        uint16_t head = next_head(queue);
        if (device.has_lied_of_sent) {
            /* What it has called done is the driver's again, and not for reading. */
            complete(queue, head, 0);
            continue;
        }
        unsigned count = walk(queue, head, chain);
        struct net_header header;
        size_t bytes = 0;
        for (unsigned i = 0; i < count; i++) {
            FUZZ_CHECK((chain[i].flags & WRITE) == 0 &&
                       chain[i].length <= NET_DEVICE_FRAME_MAX - bytes);
            memcpy(frame_sent + bytes, pointer_of(phys_addr(chain[i].address)), chain[i].length);
            bytes += chain[i].length;
        }
        FUZZ_CHECK(bytes >= sizeof header);
        memcpy(&header, frame_sent, sizeof header);
        complete(queue, head, 0);
        taken(&header, frame_sent + sizeof header, bytes - sizeof header);
    }
}

/* --- Lies --- */

void net_device_lie(struct fuzz_input *input) {
    uint8_t kind = fuzz_u8(input);
    struct queue *queue = &device.queues[kind >> 7];
    if (queue->size == 0) {
        return;
    }
    device.has_lied = true;
    device.has_lied_of_sent |= kind >> 7 == SEND;
    switch (kind % 5) {
    case 0: /* a number that may be in flight, a length that may be one */
        complete(queue, fuzz_u8(input), fuzz_u16(input));
        break;
    case 1:
        complete(queue, fuzz_u32(input), fuzz_u32(input));
        break;
    case 2:
        queue->used_index = (uint16_t)(queue->used_index + fuzz_u8(input));
        memcpy(queue->used + 2, &queue->used_index, 2);
        break;
    case 3: { /* anywhere in what it may write */
        uint8_t *place = queue->used + fuzz_u16(input) % (6 + 8 * queue->size);
        *place = fuzz_u8(input);
        break;
    }
    default: { /* a header that claims other buffers than there are, in one that is ours to fill */
        struct net_header header = {.flags = fuzz_u8(input), .buffer_count = fuzz_u16(input)};
        struct descriptor buffer;
        if (waiting(&device.queues[RECEIVE]) == 0) {
            break;
        }
        buffer = buffer_ahead(0);
        memcpy(pointer_of(phys_addr(buffer.address)), &header, sizeof header);
        complete(&device.queues[RECEIVE], next_head(&device.queues[RECEIVE]),
                 fuzz_u16(input) % (buffer.length + 1));
        break;
    }
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
