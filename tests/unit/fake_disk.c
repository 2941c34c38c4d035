/* The device of tests. See fake_disk.h. */
#include "tests/unit/fake_disk.h"

#include <string.h>

#include "boot/host/host.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/unit/unit.h"

enum { CHAIN_MAX = 80 };

struct fake_disk device;
uint8_t fake_content[FAKE_SECTORS * 512];

/* The driver's memory stays, as it does in the appliance; kept, so that nothing counts as lost. */
static struct block_device *kept[256];
static unsigned kept_count;
static struct block_device no_disk;
struct block_device *disk = &no_disk;

static uint32_t status_read(struct virtio_transport *transport) {
    (void)transport;
    host_clock_advance(NS_PER_US);
    if (device.is_unplugged) {
        return UINT32_MAX;
    }
    if (device.reset_reads > 0 && device.status == 0) {
        device.reset_reads--;
        return VIRTIO_STATUS_DRIVER_OK;
    }
    return device.status;
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    (void)transport;
    if (device.is_unplugged || (status == 0 && device.never_resets)) {
        return;
    }
    device.status = status;
    if (status == 0) {
        device.ring = (struct device_ring){0};
        device.resets++;
        device.mood = device.mood_after_reset;
    }
}

static uint64_t features_read(struct virtio_transport *transport) {
    (void)transport;
    return device.offered;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    (void)transport;
    assert_int_equal(features & ~device.offered, 0);
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index == 0 ? device.ring_max : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    assert_int_equal(index, 0);
    /* After a reset the driver must have emptied what it shows again. */
    const uint8_t *rings[] = {pointer_of(driver_area), pointer_of(device_area)};
    assert_true(rings[0][2] == 0 && rings[0][3] == 0 && rings[1][2] == 0 && rings[1][3] == 0);
    device.ring = device_ring_at(size, descriptors, driver_area, device_area);
    return 0;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    (void)transport;
    memcpy(buf, device.config + offset, bytes);
}

static void config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    (void)transport;
    assert_int_equal(offset, 32); /* all that a driver may write */
    if (!device.keeps_cache_mode) {
        device.config[offset] = value;
    }
}

static uint32_t config_generation(struct virtio_transport *transport) {
    (void)transport;
    return 0;
}

static size_t config_bytes(struct virtio_transport *transport) {
    (void)transport;
    return device.config_bytes;
}

static void barrier(struct virtio_transport *transport) {
    (void)transport;
}

static bool touches(uint64_t sector, const struct fake_request *request) {
    return request->type != 4 && sector >= request->sector &&
           sector < request->sector + (request->bytes + 511) / 512;
}

/* VIRTIO 1.3, 5.2.6: header, data or range, status. */
static struct fake_request read_request(const struct ring_descriptor *chain, unsigned count) {
    struct fake_request request = {0};
    const uint8_t *header = device_ring_memory(&chain[0]);
    assert_true(chain[0].length == 16 && count >= 2 && chain[count - 1].length == 1);
    assert_true((chain[count - 1].flags & RING_WRITE) != 0);
    memcpy(&request.type, header, 4);
    memcpy(&request.sector, header + 8, 8);
    for (unsigned i = 1; i + 1 < count; i++) {
        request.bytes += chain[i].length;
    }
    assert_true(request.type < ARRAY_COUNT(device.requests));
    if (request.type >= 11) {
        uint32_t sectors;
        const uint8_t *range = device_ring_memory(&chain[1]);
        assert_true(count == 3 && request.bytes == 16 && request.sector == 0);
        memcpy(&request.sector, range, 8);
        memcpy(&sectors, range + 8, 4);
        memcpy(&device.range_flags, range + 12, 4);
        request.bytes = sectors * 512;
    }
    return request;
}

/* Returns the bytes written. */
static uint32_t serve(const struct fake_request *request, const struct ring_descriptor *chain,
                      unsigned count) {
    uint32_t written = 1;
    uint8_t *at = fake_content + request->sector * 512;
    uint64_t capacity = 0;
    memcpy(&capacity, device.config, 8);
    assert_true(request->type == 4 || request->type == 8 ||
                request->sector + request->bytes / 512 <= capacity);
    for (unsigned i = 1; i + 1 < count && request->type < 11; i++) {
        void *data = device_ring_memory(&chain[i]);
        assert_int_equal((chain[i].flags & RING_WRITE) != 0, request->type != 1);
        if (request->type == 8) {
            assert_int_equal(chain[i].length, 20);
            strncpy(data, device.id, 20);
        } else if (request->type == 0) {
            memcpy(data, at, chain[i].length);
        } else {
            memcpy(at, data, chain[i].length);
        }
        written += request->type != 1 ? chain[i].length : 0;
        at += chain[i].length;
    }
    if (request->type >= 11) {
        memset(at, 0, request->bytes);
    }
    return written;
}

static void do_request(uint16_t head, enum fake_mood mood) {
    static const uint8_t statuses[] = {
        [FAILS] = 1, [NOT_OFFERED] = 2, [SPEAKS_ODDLY] = 99, [REPEATS] = 0};
    struct ring_descriptor chain[CHAIN_MAX];
    unsigned count = device_ring_walk(&device.ring, head, chain, CHAIN_MAX);
    struct fake_request request = read_request(chain, count);
    if (touches(device.silent_sector, &request)) {
        return;
    }
    if (touches(device.bad_sector, &request)) {
        mood = FAILS;
    }
    device.requests[request.type]++;
    if (device.served_count < FAKE_SERVED_MAX) {
        device.served[device.served_count++] = request;
    }
    uint32_t written = mood == FAILS || mood == NOT_OFFERED ? 1 : serve(&request, chain, count);
    *device_ring_memory(&chain[count - 1]) = statuses[mood];
    written = mood == READS_SHORT ? 1 : mood == BRAGS ? written + 4096 : written;
    if (mood != FORGETS) {
        device_ring_complete(&device.ring, head, written);
    }
    if (mood == REPEATS) {
        device_ring_complete(&device.ring, head, written);
    }
}

void fake_disk_work(void) {
    while (!device.is_unplugged && device_ring_waiting(&device.ring) > 0) {
        enum fake_mood mood = device.good_requests > 0 ? SERVES : device.mood;
        if (mood == KEEPS_SILENT) {
            return;
        }
        device.good_requests -= device.good_requests > 0;
        host_clock_advance(device.takes_ns);
        uint16_t head = device_ring_take(&device.ring);
        if (mood == LIES) {
            device_ring_complete(&device.ring, head + 1u, 0);
        } else if (mood == MIXES_UP) {
            device_ring_complete(&device.ring, head, 1);
        } else {
            do_request(head, mood);
        }
    }
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    (void)index;
    fake_disk_work();
}

static const struct virtio_transport_ops ops = {.status_read = status_read,
                                                .status_write = status_write,
                                                .features_read = features_read,
                                                .features_write = features_write,
                                                .queue_size_max = queue_size_max,
                                                .queue_enable = queue_enable,
                                                .notify = notify,
                                                .config_read = config_read,
                                                .config_write8 = config_write8,
                                                .config_generation = config_generation,
                                                .config_bytes = config_bytes,
                                                .barrier = barrier};

void fake_config64(size_t offset, uint64_t value) {
    memcpy(device.config + offset, &value, 8);
}

void fake_config32(size_t offset, uint32_t value) {
    memcpy(device.config + offset, &value, 4);
}

void fake_disk_set_up(uint64_t features) {
    scheduler_forget(); /* the tasks and rings of the device before */
    virtio_blk_forget();
    memset(&device, 0, sizeof device);
    memset(fake_content, 0, sizeof fake_content);
    device.bad_sector = UINT64_MAX;
    device.silent_sector = UINT64_MAX;
    device.id = "";
    device.node.name = "fake";
    device.transport = (struct virtio_transport){.ops = &ops, .node = &device.node};
    device.offered = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | features;
    device.config_bytes = sizeof device.config;
    device.ring_max = FAKE_RING;
    fake_config64(0, FAKE_SECTORS);
    fake_config32(12, 8);     /* segments */
    fake_config32(20, 4096);  /* block size */
    fake_config32(36, 4096);  /* discard: sectors, segments, alignment */
    fake_config32(48, 16384); /* write zeroes: sectors */
    device.config[56] = 1;
    size_t bytes = virtio_blk_driver.dma_bytes(&device.transport);
    assert_int_equal(io_buffer_init(&device.dma, bytes, 4096), 0);
    device.node.dma_buffer = &device.dma;
}

void fake_disk_lacks(uint64_t features) {
    device.offered &= ~features;
}

int fake_disk_probe(void) {
    int error = virtio_blk_driver.probe(&device.transport);
    struct block_device *found = block_device_at(0);
    assert_int_equal(found != NULL, error == 0);
    disk = found != NULL ? found : &no_disk;
    assert_true(kept_count < ARRAY_COUNT(kept));
    kept[kept_count++] = disk;
    return error;
}

void fake_disk_config_changed(void) {
    device.transport.config_changed(device.transport.config_changed_arg);
}

/* --- One request --- */

static struct event done;
static int result;
static unsigned completions;

static void note_done(struct block_request *request) {
    result = request->status;
    completions++;
    event_signal(&done);
}

struct order {
    enum block_operation operation;
    unsigned flags;
    uint64_t offset;
    void *data;
    uint32_t length;
};

static void run_order(void *arg) {
    const struct order *order = arg;
    struct segment segment = {order->data, order->length};
    struct block_request request = {.operation = order->operation,
                                    .flags = order->flags,
                                    .offset = order->offset,
                                    .length = order->length,
                                    .segments = &segment,
                                    .segment_count = 1,
                                    .complete = note_done};
    completions = 0;
    block_submit(disk, &request);
    while (completions == 0) {
        assert_int_equal(task_wait(&done, arch_clock_ns() + 1000 * NS_PER_S), 0);
    }
    assert_int_equal(completions, 1);
}

int fake_disk_run(enum block_operation operation, unsigned flags, uint64_t offset, void *data,
                  uint32_t length) {
    struct order order = {operation, flags, offset, data, length};
    unit_run_task(run_order, &order);
    return result;
}
