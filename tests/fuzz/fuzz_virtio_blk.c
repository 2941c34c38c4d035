/* The driver of disks against a device that lies: in its configuration, in the ring, in what it
 * writes and when, and in its status. Whatever it does, every request that was submitted comes back
 * once, with an answer that is one, within the time that resets and attempts may take; only a
 * device that does not obey a reset keeps what it has, as long as it lives.
 *
 *   options, features (4 bytes), configuration (its length, bytes), then steps: of the client
 * (submit) and of the device. When the input is at its end the device serves honestly, or nothing
 * (options). */
#include <stdlib.h>
#include <string.h>

#include "blk/virtio_blk.h"
#include "blk/virtio_blk_disk.h"
#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/device_ring.h"
#include "tests/fuzz/fuzz.h"

enum {
    CONFIG_BYTES = 72,
    AT_CAPACITY = 0,
    REQUESTS_MAX = 32,
    DATA_BYTES = 64 * 1024,
    CHAIN_MAX = 80,
    HEAP_BYTES = 4 * 1024 * 1024,
    CLIENT_STACK_BYTES = 256 * 1024,
    IDLES_MAX = 20000, /* far more than resets and attempts take */
};

enum option {
    ENDS_SILENT = 1,
    NEVER_RESETS = 2,
    SMALL_RING = 4,
    RESETS_SLOWLY = 8,
    REALLY_LIES = 16
};

struct asked {
    struct block_request request;
    struct segment segments[4];
    unsigned completions;
};

static struct {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    uint64_t offered;
    uint32_t status;
    uint8_t config[CONFIG_BYTES];
    size_t config_bytes;
    struct device_ring ring;
    unsigned slow_reads;
    unsigned options;
    unsigned idles;
} device;

static struct fuzz_input input;
static struct asked asked[REQUESTS_MAX];
static unsigned asked_count;
static unsigned answered;
static struct event client_wake;
static uint8_t data_memory[DATA_BYTES];

/* --- The device's registers --- */

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
        if ((device.options & NEVER_RESETS) != 0 && device.status != 0) {
            return;
        }
        device.slow_reads = (device.options & RESETS_SLOWLY) != 0 ? 100 : 0;
        device.ring = (struct device_ring){0};
    }
    device.status = status;
}

static uint64_t features_read(struct virtio_transport *transport) {
    (void)transport;
    return device.offered;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    (void)transport;
    FUZZ_CHECK((features & ~device.offered) == 0);
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index == 0 ? ((device.options & SMALL_RING) != 0 ? 8 : 64) : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    FUZZ_CHECK(index == 0 && size > 0);
    device.ring = device_ring_at(size, descriptors, driver_area, device_area);
    return 0;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    (void)transport;
    FUZZ_CHECK(offset <= device.config_bytes && bytes <= device.config_bytes - offset);
    memcpy(buf, device.config + offset, bytes);
}

static void config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    (void)transport;
    FUZZ_CHECK(offset == 32 && offset < device.config_bytes); /* all that a driver may write */
    device.config[offset] = value;
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

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    FUZZ_CHECK(index == 0); /* the device looks when it likes */
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

/* --- The device at work --- */

/* Fills what it may write, says `status`, and that it wrote `extra` more than it did. */
static void serve(uint8_t status, uint32_t extra) {
    struct ring_descriptor chain[CHAIN_MAX];
    uint32_t written = 0;
    if (device_ring_waiting(&device.ring) == 0) {
        return;
    }
    uint16_t head = device_ring_take(&device.ring);
    unsigned count = device_ring_walk(&device.ring, head, chain, CHAIN_MAX);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *data = device_ring_memory(&chain[i]);
        if ((chain[i].flags & RING_WRITE) != 0) {
            memset(data, i + 1 == count ? status : 0xd5, chain[i].length);
            written += chain[i].length;
        } else {
            volatile uint8_t sum = 0; /* all that it offers can be read */
            for (uint32_t at = 0; at < chain[i].length; at++) {
                sum = (uint8_t)(sum + data[at]);
            }
        }
    }
    device_ring_complete(&device.ring, head, written + extra);
}

static void change_config(void) {
    size_t at = fuzz_u8(&input) % CONFIG_BYTES;
    device.config[at] = fuzz_u8(&input);
    if (device.transport.config_changed != NULL) {
        device.transport.config_changed(device.transport.config_changed_arg);
    }
}

/* One step of what the input makes of the device; false when it leaves it alone. */
static bool device_step(void) {
    if (device.ring.size == 0) {
        return false;
    }
    if (input.left == 0) {
        if ((device.options & ENDS_SILENT) == 0) {
            serve(0, 0);
        }
        return true;
    }
    switch (fuzz_u8(&input) % 8) {
    case 0:
    case 1:
        serve(0, 0);
        break;
    case 2:
        serve(fuzz_u8(&input), 0);
        break;
    case 3:
        serve(0, fuzz_u16(&input));
        break;
    case 4:
        fuzz_ring_lie(&input, fuzz_u8(&input) % FUZZ_RING_LIES, &device.ring);
        break;
    case 5:
        change_config();
        break;
    case 6:
        device.status |= fuzz_u8(&input);
        if (device.transport.config_changed != NULL) {
            device.transport.config_changed(device.transport.config_changed_arg);
        }
        break;
    default:
        return false;
    }
    return true;
}

static void submit(struct block_device *disk);

/* In place of sleeping. */
static void idle(void *arg, uint64_t deadline_ns) {
    uint64_t now_ns = arch_clock_ns();
    (void)arg;
    device.idles++;
    FUZZ_CHECK(device.idles < IDLES_MAX);
    if (input.left > 0 && fuzz_u8(&input) % 4 == 0) {
        event_signal(&client_wake);
        return;
    }
    bool has_acted = device_step();
    if (deadline_ns != DEADLINE_NEVER && deadline_ns > now_ns && (!has_acted || input.left == 0)) {
        host_clock_set(deadline_ns);
    } else {
        host_clock_advance(NS_PER_MS);
    }
}

/* --- The client --- */

static void note_answer(struct block_request *request) {
    struct asked *one = request->owner;
    one->completions++;
    answered++;
    FUZZ_CHECK(one->completions == 1 && request->status <= 0);
    event_signal(&client_wake);
}

/* Of any kind and place; what block_check refuses is not submitted. */
static void submit(struct block_device *disk) {
    static const enum block_operation kinds[] = {BLOCK_READ,    BLOCK_WRITE,        BLOCK_FLUSH,
                                                 BLOCK_DISCARD, BLOCK_WRITE_ZEROES, BLOCK_READ,
                                                 BLOCK_WRITE,   BLOCK_GET_ID};
    uint8_t kind = fuzz_u8(&input);
    enum block_operation operation = kinds[kind % ARRAY_COUNT(kinds)];
    uint32_t block = disk->limits.block_bytes;
    uint64_t offset = (uint64_t)(fuzz_u16(&input) & 0x0fff) * block;
    uint64_t length = (1 + fuzz_u8(&input) % 32) * (uint64_t)block;
    struct asked *one = &asked[asked_count];
    bool has_data = operation == BLOCK_READ || operation == BLOCK_WRITE;
    if (asked_count == REQUESTS_MAX || (has_data && length > DATA_BYTES)) {
        return;
    }
    *one = (struct asked){.request = {.operation = operation,
                                      .flags = kind >> 6 & BLOCK_FUA,
                                      .offset = offset,
                                      .length = length,
                                      .segments = one->segments,
                                      .segment_count = has_data,
                                      .complete = note_answer,
                                      .owner = one}};
    one->segments[0] = (struct segment){data_memory, (uint32_t)length};
    if (operation == BLOCK_GET_ID) {
        one->segments[0].length = BLOCK_ID_BYTES;
        one->request.segment_count = 1;
        one->request.length = BLOCK_ID_BYTES;
    }
    if (operation == BLOCK_FLUSH || operation == BLOCK_GET_ID) {
        one->request.offset = 0;
        one->request.length = operation == BLOCK_FLUSH ? 0 : BLOCK_ID_BYTES;
    }
    if (block_check(disk, operation, one->request.offset, one->request.length) != 0) {
        return;
    }
    if (!has_data && operation != BLOCK_WRITE_ZEROES && operation != BLOCK_DISCARD) {
        one->request.flags = 0;
    }
    asked_count++;
    block_submit(disk, &one->request);
}

static bool is_quarantined(const struct block_device *disk) {
    return disk->is_gone && (device.options & NEVER_RESETS) != 0;
}

static void client(void *arg) {
    struct block_device *disk = arg;
    while (input.left > 0 || (answered < asked_count && !is_quarantined(disk))) {
        if (input.left > 0) {
            submit(disk);
        }
        (void)task_wait(&client_wake, arch_clock_ns() + NS_PER_S); /* looked at again in any case */
    }
    scheduler_stop();
}

/* --- One life --- */

static void set_up(void) {
    fuzz_begin();
    fuzz_forget();
    virtio_blk_forget();
    fuzz_heap(HEAP_BYTES);
    memset(&device, 0, sizeof device);
    asked_count = 0;
    answered = 0;
    client_wake = (struct event){0};
    host_set_idle(idle, NULL);
    device.node.name = "hostile";
    device.transport = (struct virtio_transport){.ops = &ops, .node = &device.node};
    device.options = fuzz_u8(&input);
    uint32_t features = fuzz_u32(&input);
    device.offered = VIRTIO_F_VERSION_1 | features;
    device.config_bytes = fuzz_u8(&input) % (CONFIG_BYTES + 1);
    size_t bytes = device.config_bytes;
    const uint8_t *config = fuzz_bytes(&input, &bytes);
    memcpy(device.config, config, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input = (struct fuzz_input){data, size};
    set_up();
    size_t bytes = virtio_blk_driver.dma_bytes(&device.transport);
    FUZZ_CHECK(io_buffer_init(&device.dma, bytes, 4096) == 0);
    device.node.dma_buffer = &device.dma;
    int error = virtio_blk_driver.probe(&device.transport);
    struct block_device *block = block_device_at(0);
    FUZZ_CHECK((block != NULL) == (error == 0));
    if (block == NULL) {
        return 0;
    }
    FUZZ_CHECK(block->limits.block_bytes >= 512 && block->limits.segments_max > 0);
    FUZZ_CHECK(block->capacity_bytes % block->limits.block_bytes == 0);
    FUZZ_CHECK(task_create("client", client, block, CLIENT_STACK_BYTES) != NULL);
    scheduler_run();
    FUZZ_CHECK(answered == asked_count || is_quarantined(block));
    block_dump_device(block);
    struct disk *disk = disk_of(block);
    fuzz_forget();
    virtqueue_destroy(disk->queue);
    free(disk->slots);
    free(disk);
    return 0;
}
