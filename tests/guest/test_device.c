/* Injection of DMA memory and its failures, with a device of the test's own, and what the scan made
 * of the real ones. */
#include <errno.h>
#include <string.h>

#include "core/dev/device_node.h"
#include "core/dev/driver.h"
#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "tests/guest/guest.h"

static size_t wanted_bytes;
static size_t carved_bytes;
static unsigned probes;
static void *carved;

static size_t test_dma_bytes(struct device_node *node) {
    (void)node; /* every instance wants the same */
    return wanted_bytes;
}

/* As a real driver: checks, carves, and fails cleanly. */
static int test_probe(struct device_node *node) {
    probes++;
    if (!device_has_dma(node, carved_bytes)) {
        return -ENOMEM;
    }
    return io_buffer_carve(node->dma_buffer, carved_bytes, 64, &carved);
}

static const char *const test_compatible[] = {"platter,test", NULL};

static const struct driver test_driver = {.name = "test",
                                          .compatible = test_compatible,
                                          .stage = STAGE_DEVICE,
                                          .dma_bytes = test_dma_bytes,
                                          .probe = test_probe};

static int bind(struct device_node *node, size_t wanted, size_t needed) {
    *node = (struct device_node){.name = "test-device", .driver = &test_driver};
    wanted_bytes = wanted;
    carved_bytes = needed;
    probes = 0;
    return device_bind(node);
}

static size_t bytes_used(void) {
    struct heap_stats stats;
    heap_get_stats(&stats);
    return stats.bytes_used;
}

static void a_driver_gets_the_memory_it_asked_for(void) {
    struct device_node node;
    EXPECT(bind(&node, 20000, 20000) == 0);
    EXPECT(node.state == DEVICE_BOUND && io_buffer_is_valid(node.dma_buffer));
    EXPECT(io_buffer_size(node.dma_buffer) == 20000);
    EXPECT(carved == io_buffer_data(node.dma_buffer));
    memset(carved, 0xee, 20000);
    io_buffer_release(node.dma_buffer);
}

static void a_driver_without_a_buffer_stays_unbound(void) {
    struct device_node node;
    EXPECT(bind(&node, 0, 100) == -ENOMEM);
    EXPECT(node.state == DEVICE_UNBOUND && node.dma_buffer == NULL && probes == 1);
}

static void a_driver_whose_buffer_is_too_small_stays_unbound(void) {
    struct device_node node;
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    EXPECT(bind(&node, 8191, 8192) == -ENOMEM);
    EXPECT(node.state == DEVICE_UNBOUND && node.dma_buffer == NULL);
    EXPECT(bytes_used() == before && io_buffer_count() == count);
}

static void a_driver_for_which_no_memory_is_left_stays_unbound(void) {
    struct device_node node;
    size_t before = bytes_used();
    EXPECT(bind(&node, (size_t)1 << 40, 100) == -ENOMEM);
    EXPECT(node.state == DEVICE_UNBOUND && node.dma_buffer == NULL && bytes_used() == before);
}

static void a_node_that_failed_can_be_bound_later(void) {
    struct device_node node;
    EXPECT(bind(&node, 100, 200) == -ENOMEM);
    wanted_bytes = 200;
    EXPECT(device_bind(&node) == 0 && node.state == DEVICE_BOUND);
    io_buffer_release(node.dma_buffer);
}

static void the_scan_gave_every_virtio_device_its_buffer(void) {
    unsigned bound = 0;
    const struct device_node *node;
    for (unsigned i = 0; (node = device_node_at(i)) != NULL; i++) {
        bool is_virtio = strcmp(node->driver->name, "virtio-mmio") == 0;
        EXPECT(!is_virtio || node->state != DEVICE_BOUND || io_buffer_is_valid(node->dma_buffer));
        EXPECT(!is_virtio || node->state == DEVICE_BOUND || node->dma_buffer == NULL);
        bound += is_virtio && node->state == DEVICE_BOUND;
    }
    EXPECT(bound == 3); /* two disks and a network */
}

const struct guest_test guest_device_tests[] = {
    {"a_driver_gets_the_memory_it_asked_for", a_driver_gets_the_memory_it_asked_for},
    {"a_driver_without_a_buffer_stays_unbound", a_driver_without_a_buffer_stays_unbound},
    {"a_driver_whose_buffer_is_too_small_stays_unbound",
     a_driver_whose_buffer_is_too_small_stays_unbound},
    {"a_driver_for_which_no_memory_is_left_stays_unbound",
     a_driver_for_which_no_memory_is_left_stays_unbound},
    {"a_node_that_failed_can_be_bound_later", a_node_that_failed_can_be_bound_later},
    {"the_scan_gave_every_virtio_device_its_buffer", the_scan_gave_every_virtio_device_its_buffer},
    {NULL, NULL},
};
