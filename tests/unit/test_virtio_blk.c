/* The virtio-blk driver against a device of the test's own, which serves from memory or misbehaves
 * as told: blk/virtio_blk.c. What a healthy device does is tested on a real one (tests/guest). */
#include "blk/virtio_blk.h"

#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/unit/unit.h"

#define F_SIZE_MAX     (UINT64_C(1) << 1)
#define F_SEG_MAX      (UINT64_C(1) << 2)
#define F_RO           (UINT64_C(1) << 5)
#define F_BLK_SIZE     (UINT64_C(1) << 6)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_TOPOLOGY     (UINT64_C(1) << 10)
#define F_CONFIG_WCE   (UINT64_C(1) << 11)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

enum { SECTORS = 2048, RING = 16, NEXT = 1, WRITE = 2, INDIRECT = 4, CHAIN_MAX = 80 };

enum mood {
    SERVES,
    FAILS,        /* status IOERR */
    NOT_OFFERED,  /* status UNSUPP */
    SPEAKS_ODDLY, /* a status that means nothing */
    READS_SHORT,  /* says OK, and that it wrote less than asked for */
    KEEPS_SILENT,
    LIES, /* completes what is not in flight */
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

static struct {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    uint64_t offered;
    uint32_t status;
    bool never_resets;
    uint8_t config[60];
    size_t config_bytes;
    unsigned ring_max;
    uint8_t *descriptors;
    uint8_t *available;
    uint8_t *used;
    unsigned size;
    uint16_t seen;
    uint16_t used_index;
    enum mood mood;
    unsigned requests[16]; /* by type */
    uint32_t range_flags;
} device;

static uint8_t content[SECTORS * 512];

/* The driver's memory stays, as it does in the appliance; kept, so that nothing counts as lost. */
static struct block_device *kept[64];
static unsigned kept_count;
static struct block_device no_disk;
static struct block_device *disk = &no_disk;

static uint32_t status_read(struct virtio_transport *transport) {
    (void)transport;
    host_clock_advance(NS_PER_US);
    return device.status;
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    (void)transport;
    if (status == 0 && device.never_resets) {
        return;
    }
    device.status = status;
    if (status == 0) {
        device.seen = 0;
        device.used_index = 0;
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
    device.size = size;
    device.descriptors = pointer_of(descriptors);
    device.available = pointer_of(driver_area);
    device.used = pointer_of(device_area);
    return 0;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    (void)transport;
    memcpy(buf, device.config + offset, bytes);
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

static void complete(uint32_t id, uint32_t length) {
    uint8_t *entry = device.used + 4 + 8 * (size_t)(device.used_index % device.size);
    memcpy(entry, &id, 4);
    memcpy(entry + 4, &length, 4);
    device.used_index++;
    memcpy(device.used + 2, &device.used_index, 2);
}

static unsigned walk(uint16_t head, struct descriptor *chain) {
    const uint8_t *table = device.descriptors;
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

/* VIRTIO 1.3, 5.2.6: header, data or range, status. Returns the bytes written. */
static uint32_t serve(const struct descriptor *chain, unsigned count) {
    uint32_t type;
    uint64_t sector;
    uint32_t written = 1;
    const uint8_t *header = pointer_of(phys_addr(chain[0].address));
    assert_true(chain[0].length == 16 && count >= 2 && chain[count - 1].length == 1);
    assert_true((chain[count - 1].flags & WRITE) != 0);
    memcpy(&type, header, 4);
    memcpy(&sector, header + 8, 8);
    assert_true(type < ARRAY_COUNT(device.requests));
    device.requests[type]++;
    uint8_t *at = content + sector * 512;
    for (unsigned i = 1; i + 1 < count; i++) {
        void *data = pointer_of(phys_addr(chain[i].address));
        if (type == 0) {
            assert_true((chain[i].flags & WRITE) != 0);
            memcpy(data, at, chain[i].length);
            written += chain[i].length;
        } else if (type == 1) {
            memcpy(at, data, chain[i].length);
        } else {
            assert_int_equal(chain[i].length, 16);
            uint32_t sectors;
            memcpy(&sector, data, 8);
            memcpy(&sectors, (uint8_t *)data + 8, 4);
            memcpy(&device.range_flags, (uint8_t *)data + 12, 4);
            memset(content + sector * 512, 0, (size_t)sectors * 512);
        }
        at += chain[i].length;
    }
    static const uint8_t statuses[] = {
        [SERVES] = 0, [FAILS] = 1, [NOT_OFFERED] = 2, [SPEAKS_ODDLY] = 99, [READS_SHORT] = 0};
    *(uint8_t *)pointer_of(phys_addr(chain[count - 1].address)) = statuses[device.mood];
    return device.mood == READS_SHORT ? 1 : written;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    (void)index;
    uint16_t published;
    memcpy(&published, device.available + 2, 2);
    while (device.seen != published && device.mood != KEEPS_SILENT) {
        struct descriptor chain[CHAIN_MAX];
        uint16_t head;
        memcpy(&head, device.available + 4 + 2 * (size_t)(device.seen++ % device.size), 2);
        if (device.mood == LIES) {
            complete(head + 1u, 0);
        } else {
            complete(head, serve(chain, walk(head, chain)));
        }
    }
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

static void config64(size_t offset, uint64_t value) {
    memcpy(device.config + offset, &value, 8);
}

static void config32(size_t offset, uint32_t value) {
    memcpy(device.config + offset, &value, 4);
}

static void set_up(uint64_t features) {
    memset(&device, 0, sizeof device);
    memset(content, 0, sizeof content);
    device.node.name = "fake";
    device.transport = (struct virtio_transport){.ops = &ops, .node = &device.node};
    device.offered = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | features;
    device.config_bytes = sizeof device.config;
    device.ring_max = RING;
    config64(0, SECTORS);
    config32(12, 8);     /* segments */
    config32(20, 4096);  /* block size */
    config32(36, 4096);  /* discard: sectors, segments, alignment */
    config32(48, 16384); /* write zeroes: sectors */
    device.config[56] = 1;
    size_t bytes = virtio_blk_driver.dma_bytes(&device.transport);
    assert_int_equal(io_buffer_init(&device.dma, bytes, 4096), 0);
    device.node.dma_buffer = &device.dma;
}

static int probe(void) {
    int error = virtio_blk_driver.probe(&device.transport);
    struct block_device *found = block_device_at(0);
    assert_int_equal(found != NULL, error == 0);
    disk = found != NULL ? found : &no_disk;
    kept[kept_count++] = disk;
    return error;
}

/* --- Probing --- */

TEST(without_dma_memory_the_probe_fails_and_says_so) {
    set_up(F_FLUSH);
    device.node.dma_buffer = NULL;
    assert_int_equal(probe(), -ENOMEM);
    assert_logged("fake: has no DMA memory, needs");
    assert_true((device.status & VIRTIO_STATUS_FAILED) != 0);
}

TEST(a_buffer_too_small_fails_the_probe_and_says_so) {
    set_up(F_FLUSH);
    device.dma.bytes -= 1;
    assert_int_equal(probe(), -ENOMEM);
    assert_logged("bytes of DMA memory, needs");
}

TEST(whatever_allocation_fails_the_probe_leaves_nothing_and_a_reset_device) {
    int error = -ENOMEM;
    for (uint64_t successes = 0; error != 0; successes++) {
        assert_true(successes < 20);
        set_up(F_FLUSH);
        unit_allocations_until_failure(successes);
        error = probe();
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
        assert_true(error == 0 || error == -ENOMEM);
        assert_false((device.status & VIRTIO_STATUS_DRIVER_OK) != 0 && error != 0);
    }
}

TEST(limits_come_from_features_that_were_negotiated) {
    set_up(F_FLUSH | F_SEG_MAX | F_BLK_SIZE | F_DISCARD | F_WRITE_ZEROES);
    assert_int_equal(probe(), 0);
    assert_int_equal(disk->capacity_bytes, SECTORS * 512);
    assert_int_equal(disk->limits.block_bytes, 4096);
    assert_int_equal(disk->limits.segments_max, 8);
    assert_int_equal(disk->limits.discard_bytes_max, 4096 * 512);
    assert_int_equal(disk->limits.zeroes_bytes_max, 16384 * 512);
    assert_true(disk->limits.zeroes_may_unmap && disk->limits.has_cache);
    assert_false(disk->limits.is_read_only);
    assert_true((device.status & VIRTIO_STATUS_DRIVER_OK) != 0);
}

TEST(without_features_the_specification_s_defaults_hold) {
    set_up(F_RO);
    assert_int_equal(probe(), 0);
    assert_int_equal(disk->limits.block_bytes, 512);
    assert_int_equal(disk->limits.segments_max, 1);
    assert_int_equal(disk->limits.discard_bytes_max, 0);
    assert_int_equal(disk->limits.zeroes_bytes_max, 0);
    assert_true(disk->limits.is_read_only);
    assert_false(disk->limits.has_cache);
}

TEST(a_cache_that_is_switched_off_is_none) {
    set_up(F_FLUSH | F_CONFIG_WCE);
    assert_int_equal(probe(), 0);
    assert_false(disk->limits.has_cache);
}

TEST(a_chain_never_needs_more_than_the_ring_has) {
    set_up(F_SEG_MAX);
    config32(12, 1000);
    assert_int_equal(probe(), 0);
    assert_int_equal(disk->limits.segments_max, RING - 2);
}

TEST(a_configuration_that_makes_no_sense_is_refused) {
    for (int kind = 0; kind < 7; kind++) {
        set_up(F_BLK_SIZE | F_SEG_MAX | F_SIZE_MAX);
        config32(8, 65536);
        switch (kind) {
        case 0:
            config64(0, UINT64_MAX); /* bytes would wrap */
            break;
        case 1:
            config32(20, 0);
            break;
        case 2:
            config32(20, 1000);
            break;
        case 3:
            config32(20, 131072);
            break;
        case 4:
            config32(12, 0); /* no segment fits */
            break;
        case 5:
            config32(8, 100); /* no block fits */
            break;
        default:
            device.ring_max = 2; /* no request fits */
        }
        unit_log_clear();
        assert_int_equal(probe(), -EINVAL);
        assert_logged("error: ");
        assert_true((device.status & VIRTIO_STATUS_FAILED) != 0);
    }
}

TEST(a_device_that_cannot_be_reset_keeps_the_memory_it_was_given) {
    set_up(F_BLK_SIZE);
    device.status = VIRTIO_STATUS_DRIVER_OK;
    device.never_resets = true;
    assert_int_equal(probe(), -ETIMEDOUT);
    assert_null(device.node.dma_buffer); /* the scan has nothing to release */
}

/* --- Requests --- */

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
    assert_int_equal(task_wait(&done, arch_clock_ns() + 200 * NS_PER_S), 0);
    assert_int_equal(completions, 1);
}

static int run(enum block_operation operation, uint64_t offset, void *data, uint32_t length) {
    struct order order = {operation, 0, offset, data, length};
    unit_run_task(run_order, &order);
    return result;
}

static uint8_t buffer[65536];

TEST(data_goes_to_its_place_and_comes_back) {
    set_up(F_FLUSH | F_SEG_MAX | F_DISCARD | F_WRITE_ZEROES);
    assert_int_equal(probe(), 0);
    memset(buffer, 0x5a, sizeof buffer);
    assert_int_equal(run(BLOCK_WRITE, 4096, buffer, 8192), 0);
    assert_int_equal(content[4095], 0);
    assert_int_equal(content[4096], 0x5a);
    assert_int_equal(content[12287], 0x5a);
    assert_int_equal(content[12288], 0);
    memset(buffer, 0, sizeof buffer);
    assert_int_equal(run(BLOCK_READ, 4096, buffer, 8192), 0);
    assert_int_equal(buffer[8191], 0x5a);
    assert_int_equal(run(BLOCK_WRITE_ZEROES, 4096, NULL, 4096), 0);
    assert_int_equal(content[8191], 0);
    assert_int_equal(content[8192], 0x5a);
    assert_int_equal(run(BLOCK_DISCARD, 8192, NULL, 4096), 0);
    assert_int_equal(run(BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(device.requests[4], 1);
    assert_int_equal(device.requests[11], 1);
    assert_int_equal(device.requests[13], 1);
}

TEST(zeroes_unmap_only_when_asked_and_allowed) {
    struct order order = {BLOCK_WRITE_ZEROES, BLOCK_UNMAP, 0, NULL, 4096};
    set_up(F_WRITE_ZEROES);
    assert_int_equal(probe(), 0);
    assert_int_equal(run(BLOCK_WRITE_ZEROES, 0, NULL, 4096), 0);
    assert_int_equal(device.range_flags, 0);
    unit_run_task(run_order, &order);
    assert_int_equal(device.range_flags, 1);
    disk->limits.zeroes_may_unmap = false;
    unit_run_task(run_order, &order);
    assert_int_equal(device.range_flags, 0);
}

TEST(the_device_s_status_becomes_an_errno) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.mood = FAILS;
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), -EIO);
    assert_int_equal(run(BLOCK_FLUSH, 0, NULL, 0), -EIO);
    device.mood = NOT_OFFERED;
    assert_int_equal(run(BLOCK_WRITE, 0, buffer, 512), -ENOTSUP);
    device.mood = SPEAKS_ODDLY;
    assert_int_equal(run(BLOCK_WRITE, 0, buffer, 512), -EIO);
    assert_logged("status 0x63 means nothing");
    device.mood = SERVES;
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), 0);
    assert_false(disk->is_gone);
}

TEST(a_read_that_wrote_less_than_it_should_is_an_error) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.mood = READS_SHORT;
    assert_int_equal(run(BLOCK_READ, 0, buffer, 4096), -EIO);
    assert_logged("a read of 4096 bytes came back with 1");
    assert_int_equal(run(BLOCK_WRITE, 0, buffer, 4096), 0);
}

/* --- Out of service --- */

static void expect_out_of_service(const char *why) {
    assert_true(disk->is_gone);
    assert_logged(why);
    assert_logged("taken out of service");
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), -EIO);
    assert_int_equal(run(BLOCK_FLUSH, 0, NULL, 0), -EIO);
    assert_int_equal(disk->stats.in_flight, 0);
}

TEST(a_device_that_lies_is_reset_and_its_requests_fail) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.mood = LIES;
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), -EIO);
    assert_int_equal(device.status, VIRTIO_STATUS_FAILED);
    expect_out_of_service("the device broke its ring");
}

TEST(a_request_that_is_never_answered_ends_at_its_deadline) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.mood = KEEPS_SILENT;
    assert_int_equal(run(BLOCK_WRITE, 0, buffer, 512), -EIO);
    uint64_t took_ns = arch_clock_ns() - UNIT_CLOCK_START_NS;
    assert_in_range(took_ns / NS_PER_MS, BLOCK_REQUEST_TIMEOUT_MS, BLOCK_REQUEST_TIMEOUT_MS + 2000);
    expect_out_of_service("a request was not answered in time");
}

TEST(a_device_that_asks_for_a_reset_is_taken_out_of_service) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.status |= VIRTIO_STATUS_NEEDS_RESET;
    device.transport.config_changed(device.transport.config_changed_arg);
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), -EIO);
    expect_out_of_service("the device asks for a reset");
}

static void wait_in_vain(void *unused) {
    static struct segment segment = {buffer, 512};
    static struct block_request request;
    (void)unused;
    request = (struct block_request){.operation = BLOCK_READ,
                                     .length = 512,
                                     .segments = &segment,
                                     .segment_count = 1,
                                     .complete = note_done};
    completions = 0;
    block_submit(disk, &request);
    assert_int_equal(task_wait(&done, arch_clock_ns() + 200 * NS_PER_S), -ETIMEDOUT);
}

/* It may still write there: no completion, or the memory would be used again. */
TEST(a_device_that_cannot_be_stopped_keeps_its_requests_memory) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    device.mood = KEEPS_SILENT;
    device.never_resets = true;
    unit_run_task(wait_in_vain, NULL);
    assert_int_equal(completions, 0);
    assert_logged("1 requests stay unanswered, their memory is quarantined");
    assert_true(disk->is_gone);
}

TEST(a_size_that_changes_is_named_and_the_old_one_served) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    config64(0, SECTORS / 2);
    device.transport.config_changed(device.transport.config_changed_arg);
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), 0);
    assert_logged("the device changed its size from 1048576 to 524288 bytes");
    assert_int_equal(disk->capacity_bytes, SECTORS * 512);
}

TEST(a_dump_tells_the_state_of_the_ring) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    assert_int_equal(run(BLOCK_READ, 0, buffer, 512), 0);
    block_dump(disk);
    assert_logged("added 1, kicks 1, notifies 1, indirect 0, full 0, peak 1");
    assert_int_equal(virtio_blk_ring_stats(disk)->completed, 1);
}

/* --- A full ring --- */

enum { MANY = 300 };

static struct block_request many[MANY];
static struct segment many_segments[MANY];

static void submit_many(void *unused) {
    (void)unused;
    completions = 0;
    for (unsigned i = 0; i < MANY; i++) {
        many_segments[i] = (struct segment){buffer + (size_t)512 * (i % 128), 512};
        many[i] = (struct block_request){.operation = BLOCK_READ,
                                         .offset = (uint64_t)512 * i,
                                         .length = 512,
                                         .segments = &many_segments[i],
                                         .segment_count = 1,
                                         .complete = note_done};
        block_submit(disk, &many[i]);
    }
    while (completions < MANY) {
        assert_int_equal(task_wait(&done, arch_clock_ns() + 200 * NS_PER_S), 0);
    }
}

TEST(more_requests_than_the_ring_holds_wait_and_all_complete) {
    set_up(F_FLUSH);
    assert_int_equal(probe(), 0);
    unit_run_task(submit_many, NULL);
    assert_int_equal(completions, MANY);
    assert_int_equal(disk->stats.in_flight_peak, MANY);
    assert_true(virtio_blk_ring_stats(disk)->full > 0);
    assert_int_equal(result, 0);
}
