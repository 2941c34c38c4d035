/* A queue with a device at its other end that a test plays: for the tests of core/virtio/queue.c.
 */
#ifndef TESTS_UNIT_FAKE_RING_H
#define TESTS_UNIT_FAKE_RING_H

#include "core/panic.h"
#include "core/task/scheduler.h"
#include "core/virtio/queue.h"
#include "tests/device_ring.h"
#include "tests/unit/unit.h"
#include <string.h>

enum { SIZE = 8, TABLES = 4, TABLE_SIZE = 16 };

/* The device's side. */
static struct {
    struct virtio_transport transport;
    struct device_ring ring;
    unsigned notifies;
    unsigned barriers;
    bool refuses;
} device;

static struct device_node node = {.name = "fake"};
static struct io_buffer memory;
static struct virtqueue *queue;

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    return index == 0 ? device.ring.size : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    (void)transport;
    assert_int_equal(index, 0);
    assert_int_equal(descriptors.value % 16, 0);
    assert_int_equal(driver_area.value % 2, 0);
    assert_int_equal(device_area.value % 4, 0);
    device.ring = device_ring_at(size, descriptors, driver_area, device_area);
    return device.refuses ? -EIO : 0;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    (void)transport;
    assert_int_equal(index, 0);
    device.notifies++;
}

static void barrier(struct virtio_transport *transport) {
    (void)transport;
    device.barriers++;
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

static uint16_t load16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void store16(uint8_t *at, uint16_t value) {
    memcpy(at, &value, sizeof value);
}

static inline void store32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
}

static inline uint16_t used_event(void) {
    return load16(device.ring.available + 4 + 2 * (size_t)device.ring.size);
}

static inline void set_avail_event(uint16_t event) {
    store16(device.ring.used + 4 + 8 * (size_t)device.ring.size, event);
}

static struct virtqueue_config config_of(unsigned size, unsigned tables) {
    return (struct virtqueue_config){
        .name = "test", .size = size, .indirect_count = tables, .indirect_size = TABLE_SIZE};
}

/* A queue of `size` entries on a device with these features. */
static void set_up(unsigned size, uint64_t features) {
    struct virtqueue_config config = config_of(size, TABLES);
    memset(&device, 0, sizeof device);
    device.transport = (struct virtio_transport){
        .ops = &ops, .node = &node, .features = features | VIRTIO_F_VERSION_1};
    assert_int_equal(io_buffer_init(&memory, virtqueue_dma_bytes(&config), 4096), 0);
    queue = virtqueue_create(&device.transport, &memory, &config);
    assert_non_null(queue);
}

static void tear_down(void) {
    virtqueue_destroy(queue);
    io_buffer_release(&memory);
}

/* The head of the next chain that the driver has published. */
static uint16_t device_take(void) {
    return device_ring_take(&device.ring);
}

static inline bool device_sees_more(void) {
    return device_ring_waiting(&device.ring) > 0;
}

static void device_complete(uint32_t id, uint32_t length) {
    device_ring_complete(&device.ring, id, length);
}

static char data[256];
static int tokens[1024];

static struct segment segment(unsigned offset, uint32_t length) {
    return (struct segment){data + offset, length};
}

static int add_one(int *token) {
    struct segment one = segment(0, 16);
    return virtqueue_add(queue, &one, 0, 1, token);
}

static int *take(uint32_t *length) {
    return virtqueue_take(queue, length);
}

static void expect_broken(const char *why) {
    uint32_t length = 0;
    assert_null(take(&length));
    assert_true(virtqueue_is_broken(queue));
    assert_false(virtqueue_has_completed(queue));
    assert_null(take(&length));
    assert_int_equal(add_one(&tokens[9]), -EIO);
    assert_logged(why);
}

#endif
