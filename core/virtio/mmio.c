/* VIRTIO over MMIO, version 2 (VIRTIO 1.3, 4.2). See mmio.h.
 *
 * A board's device tree lists all its slots; an empty one reads device 0. A version 1 (legacy)
 * device is refused with the way to make it a modern one. */
#include "core/virtio/mmio.h"

#include <errno.h>
#include <stdlib.h>

#include "core/dev/irq.h"
#include "core/dev/mmio.h"
#include "core/log.h"
#include "core/task/scheduler.h"
#include "core/virtio/transport.h"

/* VIRTIO 1.3, 4.2.2: register layout. */
enum {
    REG_MAGIC = 0x000,
    REG_VERSION = 0x004,
    REG_DEVICE_ID = 0x008,
    REG_DEVICE_FEATURES = 0x010,
    REG_DEVICE_FEATURES_SELECT = 0x014,
    REG_DRIVER_FEATURES = 0x020,
    REG_DRIVER_FEATURES_SELECT = 0x024,
    REG_QUEUE_SELECT = 0x030,
    REG_QUEUE_SIZE_MAX = 0x034,
    REG_QUEUE_SIZE = 0x038,
    REG_QUEUE_READY = 0x044,
    REG_QUEUE_NOTIFY = 0x050,
    REG_INTERRUPT_STATUS = 0x060,
    REG_INTERRUPT_ACK = 0x064,
    REG_STATUS = 0x070,
    REG_QUEUE_DESCRIPTORS = 0x080, /* each a low and a high word */
    REG_QUEUE_DRIVER = 0x090,
    REG_QUEUE_DEVICE = 0x0a0,
    REG_CONFIG_GENERATION = 0x0fc,
    REG_CONFIG = 0x100,

    MAGIC = 0x74726976, /* "virt" */
    VERSION_LEGACY = 1,
    VERSION_MODERN = 2,
    INTERRUPT_QUEUE = 1,
    INTERRUPT_CONFIG = 2,
};

struct virtio_mmio {
    struct virtio_transport transport; /* first: the operations cast back */
    struct mmio mmio;
};

static const struct mmio *registers(const struct virtio_transport *transport) {
    return &((const struct virtio_mmio *)transport)->mmio;
}

static uint32_t status_read(struct virtio_transport *transport) {
    return mmio_read32(registers(transport), REG_STATUS);
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    mmio_write32(registers(transport), REG_STATUS, status);
}

static uint64_t features_read(struct virtio_transport *transport) {
    const struct mmio *mmio = registers(transport);
    mmio_write32(mmio, REG_DEVICE_FEATURES_SELECT, 1);
    uint64_t high = mmio_read32(mmio, REG_DEVICE_FEATURES);
    mmio_write32(mmio, REG_DEVICE_FEATURES_SELECT, 0);
    return high << 32 | mmio_read32(mmio, REG_DEVICE_FEATURES);
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    const struct mmio *mmio = registers(transport);
    mmio_write32(mmio, REG_DRIVER_FEATURES_SELECT, 1);
    mmio_write32(mmio, REG_DRIVER_FEATURES, (uint32_t)(features >> 32));
    mmio_write32(mmio, REG_DRIVER_FEATURES_SELECT, 0);
    mmio_write32(mmio, REG_DRIVER_FEATURES, (uint32_t)features);
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    mmio_write32(registers(transport), REG_QUEUE_SELECT, index);
    return mmio_read32(registers(transport), REG_QUEUE_SIZE_MAX);
}

static void write_address(const struct mmio *mmio, size_t reg, struct phys_addr address) {
    mmio_write32(mmio, reg, (uint32_t)address.value);
    mmio_write32(mmio, reg + 4, (uint32_t)(address.value >> 32));
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    const struct mmio *mmio = registers(transport);
    mmio_write32(mmio, REG_QUEUE_SELECT, index);
    if (mmio_read32(mmio, REG_QUEUE_READY) != 0) {
        return log_error(-EBUSY, "%s: queue %u is in use already", transport->node->name, index);
    }
    mmio_write32(mmio, REG_QUEUE_SIZE, size);
    write_address(mmio, REG_QUEUE_DESCRIPTORS, descriptors);
    write_address(mmio, REG_QUEUE_DRIVER, driver_area);
    write_address(mmio, REG_QUEUE_DEVICE, device_area);
    mmio_write32(mmio, REG_QUEUE_READY, 1);
    if (mmio_read32(mmio, REG_QUEUE_READY) != 1) {
        return log_error(-EIO, "%s: queue %u does not become ready", transport->node->name, index);
    }
    return 0;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    mmio_write32(registers(transport), REG_QUEUE_NOTIFY, index);
}

/* Fields of 16 and 32 bits are read with accesses of their size (4.2.2.2); all our configuration
 * structures are naturally aligned, so the widest access that fits is the right one. */
static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    const struct mmio *mmio = registers(transport);
    uint8_t *out = buf;
    for (size_t i = 0; i < bytes;) {
        size_t at = REG_CONFIG + offset + i;
        uint32_t value;
        size_t width = 1;
        if (at % 4 == 0 && bytes - i >= 4) {
            value = mmio_read32(mmio, at);
            width = 4;
        } else if (at % 2 == 0 && bytes - i >= 2) {
            value = mmio_read16(mmio, at);
            width = 2;
        } else {
            value = mmio_read8(mmio, at);
        }
        for (size_t j = 0; j < width; j++) {
            out[i + j] = (uint8_t)(value >> (8 * j));
        }
        i += width;
    }
}

static void config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    mmio_write8(registers(transport), REG_CONFIG + offset, value);
}

static uint32_t config_generation(struct virtio_transport *transport) {
    return mmio_read32(registers(transport), REG_CONFIG_GENERATION);
}

static size_t config_bytes(struct virtio_transport *transport) {
    return registers(transport)->bytes - REG_CONFIG;
}

static void barrier(struct virtio_transport *transport) {
    (void)mmio_read32(registers(transport), REG_INTERRUPT_STATUS); /* the access is the point */
}

static void dump(struct virtio_transport *transport, unsigned index) {
    const struct mmio *mmio = registers(transport);
    mmio_write32(mmio, REG_QUEUE_SELECT, index);
    log_text("  %s: magic 0x%x, version %u, device %u, interrupt status 0x%x, configuration %u, "
             "queue %u: ready %u, at most %u entries",
             transport->node->name, (unsigned)mmio_read32(mmio, REG_MAGIC),
             (unsigned)mmio_read32(mmio, REG_VERSION), (unsigned)mmio_read32(mmio, REG_DEVICE_ID),
             (unsigned)mmio_read32(mmio, REG_INTERRUPT_STATUS),
             (unsigned)mmio_read32(mmio, REG_CONFIG_GENERATION), index,
             (unsigned)mmio_read32(mmio, REG_QUEUE_READY),
             (unsigned)mmio_read32(mmio, REG_QUEUE_SIZE_MAX));
}

static const struct virtio_transport_ops mmio_ops = {
    .status_read = status_read,
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
    .barrier = barrier,
    .dump = dump,
};

/* Status, then acknowledge, and only then do the drivers' tasks drain the rings: acknowledging
 * after draining would swallow the notification of an entry that came in between. What the rings
 * hold is found by the scheduler's look at them, so a queue interrupt needs no more than this. */
static bool interrupt(void *arg) {
    struct virtio_mmio *device = arg;
    uint32_t status = mmio_read32(&device->mmio, REG_INTERRUPT_STATUS);
    if (status == 0) {
        return false;
    }
    mmio_write32(&device->mmio, REG_INTERRUPT_ACK, status);
    device->transport.interrupts++;
    if ((status & INTERRUPT_CONFIG) != 0 && device->transport.config_changed != NULL) {
        device->transport.config_changed(device->transport.config_changed_arg);
    }
    return true;
}

/* The transport of a node is made when the scan first asks about it, and kept for the probe. */
static struct virtio_mmio *transport_of(struct device_node *node) {
    if (node->instance != NULL) {
        return node->instance;
    }
    if (node->reg_count == 0 || node->regs[0].length < REG_CONFIG) {
        (void)log_error(-EINVAL, "%s: registers make no sense", node->name); /* NULL tells */
        return NULL;
    }
    struct mmio mmio = mmio_map(node->regs[0]);
    if (mmio_read32(&mmio, REG_MAGIC) != MAGIC || mmio_read32(&mmio, REG_DEVICE_ID) == 0) {
        return NULL;
    }
    struct virtio_mmio *device = calloc(1, sizeof *device);
    if (device == NULL) {
        (void)log_error(-ENOMEM, "%s: no memory", node->name); /* NULL tells */
        return NULL;
    }
    device->mmio = mmio;
    device->transport.ops = &mmio_ops;
    device->transport.node = node;
    device->transport.device_id = (enum virtio_device_id)mmio_read32(&mmio, REG_DEVICE_ID);
    node->instance = device;
    return device;
}

static size_t mmio_dma_bytes(struct device_node *node) {
    struct virtio_mmio *device = transport_of(node);
    const struct virtio_driver *driver =
        device != NULL ? virtio_find_driver(device->transport.device_id) : NULL;
    if (driver == NULL || mmio_read32(&device->mmio, REG_VERSION) != VERSION_MODERN) {
        return 0;
    }
    return driver->dma_bytes(&device->transport);
}

static int check_identity(const struct device_node *node, const struct virtio_mmio *device,
                          const struct virtio_driver *driver) {
    uint32_t version = mmio_read32(&device->mmio, REG_VERSION);
    if (version == VERSION_LEGACY) {
        return log_error(-ENOTSUP,
                         "%s: a legacy virtio device (version 1) is not supported; start QEMU with "
                         "-global virtio-mmio.force-legacy=false",
                         node->name);
    }
    if (version != VERSION_MODERN) {
        return log_error(-ENOTSUP, "%s: virtio-mmio version %u is not known", node->name,
                         (unsigned)version);
    }
    if (driver == NULL) {
        log_info("%s: no driver for virtio device type %u", node->name,
                 (unsigned)device->transport.device_id);
        return -ENODEV;
    }
    return 0;
}

static int mmio_probe(struct device_node *node) {
    struct virtio_mmio *device = transport_of(node);
    if (device == NULL) {
        return -ENODEV;
    }
    const struct virtio_driver *driver = virtio_find_driver(device->transport.device_id);
    int error = check_identity(node, device, driver);
    if (!error) {
        error = irq_register(node, interrupt, device);
    }
    if (!error) {
        scheduler_set_sleep_barrier(virtio_sleep_barrier, &device->transport);
        error = driver->probe(&device->transport);
    }
    /* After a failed probe the instance stays: the interrupt handler has its address. The device is
     * reset or marked failed by the driver and does not interrupt any more. */
    return error;
}

static const char *const mmio_compatible[] = {"virtio,mmio", NULL};

const struct driver virtio_mmio_driver = {.name = "virtio-mmio",
                                          .compatible = mmio_compatible,
                                          .stage = STAGE_DEVICE,
                                          .dma_bytes = mmio_dma_bytes,
                                          .probe = mmio_probe};
