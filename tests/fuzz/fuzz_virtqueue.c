/* The split virtqueue against a device that writes into the used ring, and elsewhere in the memory
 * they share, what the input says. Whatever that is: a token comes back once, only while it is in
 * flight, and with no more bytes than it offered room for. */
#include <string.h>

#include "core/virtio/queue.h"
#include "tests/fuzz/fuzz.h"

enum { TABLES = 4, TABLE_SIZE = 16, SEGMENTS_MAX = 20, CHAINS_MAX = 64, HEAP_BYTES = 1 << 20 };

struct sent {
    bool is_in_flight;
    uint32_t writable;
};

static struct {
    struct virtio_transport transport;
    uint8_t *rings[3]; /* descriptors, available, used */
    size_t bytes[3];
    unsigned size;
} device;

static struct device_node node = {.name = "hostile"};
static struct io_buffer memory;
static struct virtqueue *queue;
static struct sent sent[CHAINS_MAX];
static unsigned in_flight;

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index == 0 ? device.size : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    FUZZ_CHECK(index == 0 && size == device.size);
    device.rings[0] = pointer_of(descriptors);
    device.rings[1] = pointer_of(driver_area);
    device.rings[2] = pointer_of(device_area);
    device.bytes[0] = 16 * (size_t)size;
    device.bytes[1] = 6 + 2 * (size_t)size;
    device.bytes[2] = 6 + 8 * (size_t)size;
    return 0;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    FUZZ_CHECK(index == 0);
}

static void barrier(struct virtio_transport *transport) {
    (void)transport;
}

static uint32_t status_read(struct virtio_transport *transport) {
    (void)transport;
    return VIRTIO_STATUS_DRIVER_OK;
}

static const struct virtio_transport_ops ops = {.status_read = status_read,
                                                .queue_size_max = queue_size_max,
                                                .queue_enable = queue_enable,
                                                .notify = notify,
                                                .barrier = barrier};

static void set_up(unsigned options) {
    struct virtqueue_config config = {.name = "fuzz",
                                      .size = 2u << (options & 3),
                                      .indirect_count = TABLES,
                                      .indirect_size = TABLE_SIZE};
    fuzz_begin();
    fuzz_forget();
    fuzz_heap(HEAP_BYTES);
    memset(&device, 0, sizeof device);
    memset(sent, 0, sizeof sent);
    in_flight = 0;
    device.size = config.size;
    device.transport = (struct virtio_transport){
        .ops = &ops,
        .node = &node,
        .features = VIRTIO_F_VERSION_1 | ((options & 4) != 0 ? VIRTIO_F_INDIRECT_DESC : 0) |
                    ((options & 8) != 0 ? VIRTIO_F_EVENT_IDX : 0)};
    FUZZ_CHECK(io_buffer_init(&memory, virtqueue_dma_bytes(&config), 4096) == 0);
    queue = virtqueue_create(&device.transport, &memory, &config);
    FUZZ_CHECK(queue != NULL);
}

/* Three of which the first is read and the last written go by a table of the slot's own. */
static int put_in(const struct segment *segments, unsigned out_count, unsigned count,
                  uint32_t writable, unsigned slot) {
    static _Alignas(VIRTQUEUE_TABLE_ALIGN) uint8_t tables[CHAINS_MAX][VIRTQUEUE_TABLE_BYTES];
    if (count != 3 || out_count < 1 || out_count > 2 || !virtqueue_takes_tables(queue)) {
        return virtqueue_add(queue, segments, out_count, count - out_count, &sent[slot]);
    }
    virtqueue_table_write(tables[slot], segments[0], segments[2]);
    return virtqueue_add_table(queue, tables[slot], segments[1], out_count == 1, writable,
                               &sent[slot]);
}

static void add(struct fuzz_input *input) {
    static uint8_t data[SEGMENTS_MAX * 256];
    struct segment segments[SEGMENTS_MAX];
    unsigned count = 1 + fuzz_u8(input) % SEGMENTS_MAX;
    unsigned out_count = fuzz_u8(input) % (count + 1);
    uint32_t writable = 0;
    unsigned slot = 0;
    while (slot < CHAINS_MAX && sent[slot].is_in_flight) {
        slot++;
    }
    if (slot == CHAINS_MAX) {
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        segments[i] = (struct segment){data + 256 * (size_t)i, 1u + fuzz_u8(input)};
        writable += i >= out_count ? segments[i].length : 0;
    }
    if (put_in(segments, out_count, count, writable, slot) == 0) {
        sent[slot] = (struct sent){.is_in_flight = true, .writable = writable};
        in_flight++;
    }
}

static void take_back(struct sent *chain) {
    FUZZ_CHECK(chain >= sent && chain < sent + CHAINS_MAX && chain->is_in_flight);
    chain->is_in_flight = false;
    in_flight--;
}

static void take(void) {
    uint32_t length = UINT32_MAX;
    bool was_there = virtqueue_has_completed(queue);
    struct sent *chain = virtqueue_take(queue, &length);
    if (chain != NULL) {
        FUZZ_CHECK(was_there && !virtqueue_is_broken(queue) && length <= chain->writable);
        take_back(chain);
    }
}

/* As after a reset: everything comes back, then the ring is as new. */
static void restart(void) {
    struct sent *chain;
    while ((chain = virtqueue_abandon(queue)) != NULL) {
        take_back(chain);
    }
    FUZZ_CHECK(in_flight == 0);
    FUZZ_CHECK(virtqueue_restart(queue) == 0 && !virtqueue_is_broken(queue));
}

static void complete(struct fuzz_input *input) {
    uint16_t index = 0;
    uint32_t id = fuzz_u8(input);
    uint32_t length = fuzz_u16(input);
    id |= id >= 0xf0 ? fuzz_u32(input) : 0;
    length |= length >= 0xff00 ? fuzz_u32(input) : 0;
    memcpy(&index, device.rings[2] + 2, sizeof index);
    uint8_t *entry = device.rings[2] + 4 + 8 * (size_t)(index % device.size);
    memcpy(entry, &id, sizeof id);
    memcpy(entry + 4, &length, sizeof length);
    index++;
    memcpy(device.rings[2] + 2, &index, sizeof index);
}

static void scribble(struct fuzz_input *input) {
    unsigned ring = fuzz_u8(input) % 3;
    size_t at = fuzz_u8(input) % device.bytes[ring];
    size_t bytes = 1 + fuzz_u8(input) % 8;
    const uint8_t *data = fuzz_bytes(input, &bytes);
    bytes = bytes < device.bytes[ring] - at ? bytes : device.bytes[ring] - at;
    memcpy(device.rings[ring] + at, data, bytes);
}

static void step(struct fuzz_input *input) {
    switch (fuzz_u8(input) % 8) {
    case 0:
    case 1:
        add(input);
        break;
    case 2:
        virtqueue_kick(queue);
        break;
    case 3:
        complete(input);
        break;
    case 4:
        take();
        break;
    case 5:
        scribble(input);
        break;
    case 6:
        virtqueue_arm(queue);
        virtqueue_disarm(queue);
        break;
    default:
        restart();
        break;
    }
    FUZZ_CHECK(virtqueue_in_flight(queue) == in_flight);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_input input = {data, size};
    set_up(fuzz_u8(&input));
    while (input.left > 0) {
        step(&input);
    }
    virtqueue_dump(queue);
    restart();
    virtqueue_destroy(queue);
    io_buffer_release(&memory);
    return 0;
}
