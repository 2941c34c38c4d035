/* What devices say through their registers: virtio-mmio, fw_cfg and the UART. The models are right
 * as long as the input does not say otherwise; then a read gives whatever the input has.
 *
 * What must hold: no access leaves the registers of the node, has another width than the
 * register's, or writes where nothing is to be written; a queue has a size that the device can
 * have, and lies in the DMA memory; reading a file keeps to its buffer, and ends; what keys are
 * pressed is what is received.
 *
 *   which, bytes of registers, then for each read whether it is a lie, and which. */
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/dev/console.h"
#include "core/dev/fwcfg.h"
#include "core/dev/irq.h"
#include "core/dev/mmio.h"
#include "core/dev/ns16550.h"
#include "core/log.h"
#include "core/virtio/mmio.h"
#include "core/virtio/queue.h"
#include "core/virtio/transport.h"
#include "tests/fuzz/fuzz.h"

enum {
    HEAP_BYTES = 2 * 1024 * 1024,
    CONFIG_BYTES = 64,
    REGISTERS_BYTES = 0x100,
    QUEUES = 2,
    RING_ENTRIES = 16,
    TREE_BYTES = 1024,
    KEYS_MAX = 256,
    ACCESSES_MAX = 4 * 1000 * 1000, /* far more than any wait with an end takes */
    PHANDLE = 1,
    SOURCE = 3,
};

static struct fuzz_input input;
static unsigned accesses;
static size_t registers_bytes;
static uint8_t place[REGISTERS_BYTES + CONFIG_BYTES]; /* an address: nobody reads it */

/* Whether this read is a lie, and then the value; without input none is. */
static bool lies(uint32_t *value) {
    if (input.left > 0 && fuzz_u8(&input) % 8 == 0) {
        *value = fuzz_u8(&input) % 2 == 0 ? fuzz_u32(&input) : fuzz_u8(&input);
        return true;
    }
    return false;
}

static void check_access(size_t offset, unsigned bytes) {
    FUZZ_CHECK(offset % bytes == 0 && offset <= registers_bytes &&
               bytes <= registers_bytes - offset);
    FUZZ_CHECK(++accesses < ACCESSES_MAX);
    host_clock_advance(100);
}

static struct device_node new_node(const char *name, const struct driver *driver,
                                   const void *tree) {
    registers_bytes = fuzz_u16(&input) % (sizeof place + 1);
    return (struct device_node){.name = name,
                                .fdt = tree,
                                .driver = driver,
                                .regs = {{phys_of(place), registers_bytes}},
                                .reg_count = registers_bytes > 0,
                                .irq_parent = PHANDLE,
                                .irq_cells = {SOURCE},
                                .irq_cell_count = 1};
}

/* --- An interrupt controller that has one source --- */

static unsigned pending;

static unsigned translate(struct irq_controller *controller, const uint32_t *cells,
                          unsigned count) {
    (void)controller;
    return count == 1 ? cells[0] : 0;
}

static void no_matter(struct irq_controller *controller, unsigned source) {
    (void)controller;
    FUZZ_CHECK(source == SOURCE);
}

static unsigned claim(struct irq_controller *controller) {
    (void)controller;
    unsigned source = pending > 0 ? SOURCE : 0;
    pending -= source > 0;
    return source;
}

static struct irq_controller controller = {.name = "one",
                                           .phandle = PHANDLE,
                                           .translate = translate,
                                           .enable = no_matter,
                                           .claim = claim,
                                           .complete = no_matter};

/* --- virtio-mmio (VIRTIO 1.3, 4.2.2) --- */

static struct {
    uint32_t status;
    uint32_t features_select;
    uint32_t queue_select;
    uint32_t ready[QUEUES];
    uint32_t interrupts;
    uint8_t config[CONFIG_BYTES];
    uint32_t address[6];
    unsigned size;
} device;

static struct io_buffer *device_memory;

static uint32_t *queue_ready(void) {
    static uint32_t none;
    none = 0;
    return device.queue_select < QUEUES ? &device.ready[device.queue_select] : &none;
}

static uint32_t device_read(const struct mmio *mmio, size_t offset, unsigned bytes) {
    uint32_t value = 0;
    (void)mmio;
    check_access(offset, bytes);
    FUZZ_CHECK(bytes == 4 || offset >= REGISTERS_BYTES);
    if (lies(&value)) {
        return value;
    }
    switch (offset) {
    case 0x000:
        return 0x74726976;
    case 0x004:
        return 2;
    case 0x008:
        return VIRTIO_ID_BLOCK;
    case 0x010:
        return device.features_select == 1 ? 1 : UINT32_C(0x30000a0f);
    case 0x034:
        return device.queue_select < QUEUES ? 64 : 0;
    case 0x044:
        return *queue_ready();
    case 0x060:
        return device.interrupts;
    case 0x070:
        return device.status;
    case 0x0fc:
        return 7;
    default:
        FUZZ_CHECK(offset >= REGISTERS_BYTES);
        memcpy(&value, device.config + (offset - REGISTERS_BYTES), bytes);
        return value;
    }
}

static void check_queue(void) {
    uint64_t start = device.address[0] | (uint64_t)device.address[1] << 32;
    const uint8_t *memory = io_buffer_data(device_memory);
    const uint8_t *ring = pointer_of(phys_addr(start));
    FUZZ_CHECK(device.size > 0 && (device.size & (device.size - 1)) == 0);
    FUZZ_CHECK(ring >= memory && ring < memory + io_buffer_size(device_memory));
}

static void device_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value) {
    (void)mmio;
    check_access(offset, bytes);
    if (offset >= REGISTERS_BYTES) {
        memcpy(device.config + (offset - REGISTERS_BYTES), &value, bytes);
        return;
    }
    FUZZ_CHECK(bytes == 4);
    switch (offset) {
    case 0x014:
        device.features_select = value;
        break;
    case 0x020:
    case 0x024:
        break;
    case 0x030:
        device.queue_select = value;
        break;
    case 0x038:
        device.size = value;
        break;
    case 0x044:
        FUZZ_CHECK(value == 1);
        check_queue();
        *queue_ready() = 1;
        break;
    case 0x050:
        FUZZ_CHECK(value < QUEUES);
        break;
    case 0x064:
        device.interrupts &= ~value;
        break;
    case 0x070:
        device.status = value;
        if (value == 0) {
            memset(device.ready, 0, sizeof device.ready);
        }
        break;
    default: /* the three parts of a queue, low and high words */
        FUZZ_CHECK(offset >= 0x080 && offset < 0x0a8 && offset % 16 < 8);
        device.address[(offset - 0x080) / 16 * 2 + offset % 8 / 4] = value;
        break;
    }
}

static struct virtqueue *queue;
static unsigned changes;

static void config_changed(void *arg) {
    (void)arg;
    changes++;
}

static struct virtqueue_config ring_config(unsigned size) {
    return (struct virtqueue_config){
        .name = "ring", .size = size, .indirect_count = 2, .indirect_size = 4};
}

static size_t driver_dma_bytes(struct virtio_transport *transport) {
    struct virtqueue_config config = ring_config(RING_ENTRIES);
    (void)transport->ops->features_read(transport);
    return virtqueue_dma_bytes(&config);
}

/* Does what a driver does, once. */
static int driver_probe(struct virtio_transport *transport) {
    static const struct virtio_feature_name names[] = {{1, "ONE"}, {UINT64_C(1) << 9, "NINE"}, {0}};
    uint8_t config[CONFIG_BYTES];
    device_memory = transport->node->dma_buffer;
    int error = device_memory == NULL ? -1 : virtio_negotiate(transport, UINT32_MAX, names);
    if (error) {
        return error;
    }
    size_t offset = fuzz_u8(&input);
    size_t bytes = fuzz_u8(&input) % sizeof config;
    error = virtio_config_read(transport, offset, config, bytes);
    size_t there = registers_bytes - REGISTERS_BYTES;
    FUZZ_CHECK(error != 0 || (offset <= there && bytes <= there - offset));
    (void)virtio_config_write8(transport, fuzz_u8(&input), 1); /* either way: the check is above */
    unsigned size = virtqueue_usable_size(transport, fuzz_u8(&input) % 3, RING_ENTRIES);
    FUZZ_CHECK(size <= RING_ENTRIES);
    if (size < 2) {
        virtio_fail(transport);
        return -1;
    }
    struct virtqueue_config ring = ring_config(size);
    queue = virtqueue_create(transport, device_memory, &ring);
    transport->config_changed = config_changed;
    virtio_driver_ok(transport);
    if (queue != NULL) {
        struct segment segment = {config, sizeof config};
        FUZZ_CHECK(virtqueue_add(queue, &segment, 1, 0, config) == 0);
        virtqueue_kick(queue);
    }
    transport->ops->barrier(transport);
    virtio_dump(transport, names, 0);
    return queue != NULL ? 0 : -1;
}

static const struct virtio_driver driver = {.name = "any",
                                            .device_id = VIRTIO_ID_BLOCK,
                                            .dma_bytes = driver_dma_bytes,
                                            .probe = driver_probe};
const struct virtio_driver *const platter_virtio_drivers[] = {&driver, NULL};

static void probe_virtio(void) {
    struct device_node node = new_node("virtio", &virtio_mmio_driver, NULL);
    memset(&device, 0, sizeof device);
    queue = NULL;
    changes = 0;
    irq_add_controller(&controller);
    host_set_mmio(device_read, device_write);
    int error = device_bind(&node);
    FUZZ_CHECK((error == 0) == (node.state == DEVICE_BOUND));
    while (error == 0 && input.left > 0) {
        device.interrupts = fuzz_u8(&input) % 4;
        pending = 1;
        unsigned before = changes;
        FUZZ_CHECK(irq_dispatch() == 1 && changes - before <= 1);
    }
    if (error == 0) {
        struct virtio_transport *transport = node.instance;
        (void)virtio_reset(transport); /* what it does not obey is said in the log */
    }
    virtqueue_destroy(queue);
    free(node.dma_buffer); /* none after a failure */
    free(node.instance);
}

/* --- fw_cfg (QEMU, docs/specs/fw_cfg) --- */

static struct {
    uint16_t selector;
    size_t at;
    const uint8_t *directory;
    size_t directory_bytes;
} firmware;

static uint32_t firmware_read(const struct mmio *mmio, size_t offset, unsigned bytes) {
    (void)mmio;
    check_access(offset, bytes);
    FUZZ_CHECK(offset == 0 && bytes == 1);
    size_t at = firmware.at++;
    if (firmware.selector == 0) {
        return at < 4 ? (uint8_t) "QEMU"[at] : 0;
    }
    if (firmware.selector == 0x19) {
        return at < firmware.directory_bytes ? firmware.directory[at] : 0;
    }
    return (uint8_t)(firmware.selector + at);
}

static void firmware_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value) {
    (void)mmio;
    check_access(offset, bytes);
    FUZZ_CHECK(offset == 8 && bytes == 2);
    firmware.selector = (uint16_t)(value >> 8 | value << 8);
    firmware.at = 0;
}

static void probe_firmware(void) {
    struct device_node node = new_node("fw-cfg", &fwcfg_driver, NULL);
    size_t size = fuzz_u16(&input);
    memset(&firmware, 0, sizeof firmware);
    firmware.directory_bytes = input.left;
    firmware.directory = fuzz_bytes(&input, &firmware.directory_bytes);
    host_set_mmio(firmware_read, firmware_write);
    if (device_bind(&node) != 0) {
        return;
    }
    uint8_t *file = malloc(size + 1); /* of exactly that size, so that a byte more is seen */
    FUZZ_CHECK(file != NULL);
    long bytes = fwcfg_read_file("opt/file", file, size);
    FUZZ_CHECK(bytes <= (long)size);
    for (long i = 0; i < bytes; i++) {
        FUZZ_CHECK(firmware.selector == 0 || firmware.selector == 0x19 ||
                   file[i] == (uint8_t)(firmware.selector + i));
    }
    free(file);
}

/* --- The UART (PC16550D) --- */

static struct {
    uint8_t keys[KEYS_MAX];
    unsigned sent;
    unsigned received;
    unsigned in_turn;
    unsigned shift;
} uart;

static void receive_key(void *arg, uint8_t key) {
    (void)arg;
    FUZZ_CHECK(uart.received < uart.sent && uart.keys[uart.received % KEYS_MAX] == key);
    uart.received++;
}

static uint32_t uart_model_read(const struct mmio *mmio, size_t offset, unsigned bytes) {
    uint32_t value = 0;
    (void)mmio;
    check_access(offset, bytes);
    FUZZ_CHECK(bytes == 1 && (offset >> uart.shift) << uart.shift == offset);
    if (offset >> uart.shift == 0) {
        FUZZ_CHECK(++uart.in_turn <= 64); /* a key that is held down keeps nobody from working */
        (void)lies(&value);
        uart.keys[uart.sent++ % KEYS_MAX] = (uint8_t)value;
        return (uint8_t)value;
    }
    FUZZ_CHECK(offset >> uart.shift == 5);
    return lies(&value) ? value & 0xff : input.left > 0 ? 0x61 : 0x60;
}

static void uart_model_write(const struct mmio *mmio, size_t offset, unsigned bytes,
                             uint32_t value) {
    (void)mmio;
    (void)value;
    check_access(offset, bytes);
    FUZZ_CHECK(bytes == 1 && offset >> uart.shift <= 2);
}

static void probe_uart(void) {
    static uint8_t tree[TREE_BYTES];
    uint8_t word = fuzz_u8(&input);
    bool is_made = fdt_create(tree, sizeof tree) == 0 && fdt_finish_reservemap(tree) == 0 &&
                   fdt_begin_node(tree, "") == 0;
    uart.shift = word % 5;
    is_made =
        is_made && ((word & 0x80) == 0 || fdt_property_u32(tree, "reg-shift", uart.shift) == 0);
    is_made = is_made && fdt_end_node(tree) == 0 && fdt_finish(tree) == 0;
    FUZZ_CHECK(is_made);
    memset(&uart, 0, sizeof uart);
    uart.shift = (word & 0x80) != 0 ? word % 5 : 0;
    struct device_node node = new_node("serial", &ns16550_driver, tree);
    irq_add_controller(&controller);
    console_set_receiver(receive_key, NULL);
    host_set_mmio(uart_model_read, uart_model_write);
    if (device_bind(&node) != 0) {
        return;
    }
    FUZZ_CHECK(uart.shift <= 3 && ns16550_enable_input(&node) == 0);
    log_info("one line that goes out as well as it can");
    log_flush();
    while (input.left > 0) {
        pending = 1;
        uart.in_turn = 0;
        FUZZ_CHECK(irq_dispatch() == 1);
    }
    FUZZ_CHECK(uart.received == uart.sent);
    fuzz_log_again();
    free(node.instance);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const probes[])(void) = {probe_virtio, probe_firmware, probe_uart};
    input = (struct fuzz_input){data, size};
    fuzz_begin();
    fuzz_forget();
    fuzz_heap(HEAP_BYTES);
    accesses = 0;
    pending = 0;
    probes[fuzz_u8(&input) % ARRAY_COUNT(probes)]();
    host_set_mmio(NULL, NULL);
    return 0;
}
