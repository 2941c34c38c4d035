/* The transport interface of VIRTIO devices (VIRTIO 1.3, chapter 4): what a driver asks of a device
 * whatever bus it sits on. Drivers see neither registers nor their addresses. */
#ifndef CORE_VIRTIO_TRANSPORT_H
#define CORE_VIRTIO_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dev/device_node.h"
#include "core/mem/addr.h"

/* VIRTIO 1.3, 5: device types. */
enum virtio_device_id { VIRTIO_ID_NET = 1, VIRTIO_ID_BLOCK = 2 };

/* VIRTIO 1.3, 2.1: device status. */
enum virtio_status {
    VIRTIO_STATUS_ACKNOWLEDGE = 1,
    VIRTIO_STATUS_DRIVER = 2,
    VIRTIO_STATUS_DRIVER_OK = 4,
    VIRTIO_STATUS_FEATURES_OK = 8,
    VIRTIO_STATUS_NEEDS_RESET = 64,
    VIRTIO_STATUS_FAILED = 128,
};

/* VIRTIO 1.3, 6: feature bits that belong to no device type. */
#define VIRTIO_F_INDIRECT_DESC   (UINT64_C(1) << 28)
#define VIRTIO_F_EVENT_IDX       (UINT64_C(1) << 29)
#define VIRTIO_F_VERSION_1       (UINT64_C(1) << 32)
#define VIRTIO_F_ACCESS_PLATFORM (UINT64_C(1) << 33)
#define VIRTIO_F_RING_PACKED     (UINT64_C(1) << 34)
#define VIRTIO_F_ORDER_PLATFORM  (UINT64_C(1) << 36)
#define VIRTIO_F_RING_RESET      (UINT64_C(1) << 40)

/* A feature bit and its name in the log. */
struct virtio_feature_name {
    uint64_t bit;
    const char *name;
};

struct virtio_transport;

struct virtio_transport_ops {
    uint32_t (*status_read)(struct virtio_transport *transport);
    void (*status_write)(struct virtio_transport *transport, uint32_t status);
    uint64_t (*features_read)(struct virtio_transport *transport);
    void (*features_write)(struct virtio_transport *transport, uint64_t features);
    /* Entries that queue `index` can have; 0 when there is no such queue. */
    unsigned (*queue_size_max)(struct virtio_transport *transport, unsigned index);
    /* Tells the device where the three parts of a queue are, and enables it. */
    int (*queue_enable)(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area);
    void (*notify)(struct virtio_transport *transport, unsigned index);
    /* Reads the device's configuration, not guarded against change: use virtio_config_read. */
    void (*config_read)(struct virtio_transport *transport, size_t offset, void *buf, size_t bytes);
    void (*config_write8)(struct virtio_transport *transport, size_t offset, uint8_t value);
    uint32_t (*config_generation)(struct virtio_transport *transport);
    size_t (*config_bytes)(struct virtio_transport *transport);
    /* Any register read: waits until the device's side has seen our stores where fences do not. */
    void (*barrier)(struct virtio_transport *transport);
    /* Registers in a line or two of log text, that of queue `index` included. */
    void (*dump)(struct virtio_transport *transport, unsigned index);
};

/* What every register reads when nothing answers at its address any more. */
#define VIRTIO_NOTHING_THERE UINT32_MAX

struct virtio_transport {
    const struct virtio_transport_ops *ops;
    struct device_node *node;
    enum virtio_device_id device_id;
    uint64_t features_offered;
    uint64_t features; /* negotiated */
    /* Set by the driver; called in the scheduler's context when the device says that its
     * configuration has changed or that it needs a reset. */
    void (*config_changed)(void *arg);
    void *config_changed_arg;
    uint64_t interrupts;
};

/* A driver for one type of device, on any transport. */
struct virtio_driver {
    const char *name;
    enum virtio_device_id device_id;
    /* As in struct driver. */
    size_t (*dma_bytes)(struct virtio_transport *transport);
    int (*probe)(struct virtio_transport *transport);
};

/* Each image provides its table, which ends with NULL. */
extern const struct virtio_driver *const platter_virtio_drivers[];

const struct virtio_driver *virtio_find_driver(enum virtio_device_id device_id);

/* Resets the device and waits until its status reads back 0, for at most a tenth of a second:
 * -ETIMEDOUT, said in the log, when it does not; it may then still write to memory it was given. */
int virtio_reset(struct virtio_transport *transport);

/* The same for a device in service, from its task, which sleeps between two looks: for
 * `timeout_ms`. -ENODEV when nothing answers any more: the device was unplugged, and touches no
 * memory either. */
int virtio_reset_in_task(struct virtio_transport *transport, uint64_t timeout_ms);

/* Steps 1 to 6 of VIRTIO 1.3, 3.1.1: reset, acknowledge, negotiate, FEATURES_OK. `wanted` are the
 * bits that the driver honours, VERSION_1 among them always. Every offered bit is logged by name.
 * -ENOTSUP when the device is not a modern one or refuses our choice, -ETIMEDOUT from the reset;
 * the device is then marked FAILED. */
int virtio_negotiate(struct virtio_transport *transport, uint64_t wanted,
                     const struct virtio_feature_name *names);

/* Step 8: queues are set up, the device may go live. */
void virtio_driver_ok(struct virtio_transport *transport);

/* The driver gives up. */
void virtio_fail(struct virtio_transport *transport);

static inline bool virtio_has(const struct virtio_transport *transport, uint64_t feature) {
    return (transport->features & feature) != 0;
}

/* Copies `bytes` of the configuration at `offset`, all of one generation (VIRTIO 1.3, 2.5.4).
 * -ERANGE when the device's configuration is shorter; -EAGAIN when it never stands still. */
int virtio_config_read(struct virtio_transport *transport, size_t offset, void *buf, size_t bytes);

/* Writes one byte of the configuration. -ERANGE as above. */
int virtio_config_write8(struct virtio_transport *transport, size_t offset, uint8_t value);

/* Status, registers, features offered and accepted by name: through log_text. */
void virtio_dump(struct virtio_transport *transport, const struct virtio_feature_name *names,
                 unsigned queue);

/* The scheduler's sleep barrier; see scheduler.c. */
void virtio_sleep_barrier(void *transport);

#endif
