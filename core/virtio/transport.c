/* What is the same on every transport: status handshake, negotiation, guarded configuration. */
#include "core/virtio/transport.h"

#include <errno.h>
#include <stdio.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/task/task.h"

#define RESET_TIMEOUT_NS (100 * NS_PER_MS)

enum { CONFIG_TRIES_MAX = 16, RESET_LOOK_MS = 1, FEATURES_TEXT_BYTES = LOG_LINE_MAX - 64 };

static const struct virtio_feature_name common_names[] = {
    {UINT64_C(1) << 24, "NOTIFY_ON_EMPTY"}, /* legacy */
    {UINT64_C(1) << 27, "ANY_LAYOUT"},      /* legacy */
    {VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC"},   {VIRTIO_F_EVENT_IDX, "EVENT_IDX"},
    {VIRTIO_F_VERSION_1, "VERSION_1"},           {VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM"},
    {VIRTIO_F_RING_PACKED, "RING_PACKED"},       {UINT64_C(1) << 35, "IN_ORDER"},
    {VIRTIO_F_ORDER_PLATFORM, "ORDER_PLATFORM"}, {UINT64_C(1) << 37, "SR_IOV"},
    {UINT64_C(1) << 38, "NOTIFICATION_DATA"},    {UINT64_C(1) << 39, "NOTIF_CONFIG_DATA"},
    {VIRTIO_F_RING_RESET, "RING_RESET"},         {0, NULL},
};

const struct virtio_driver *virtio_find_driver(enum virtio_device_id device_id) {
    for (const struct virtio_driver *const *driver = platter_virtio_drivers; *driver != NULL;
         driver++) {
        if ((*driver)->device_id == device_id) {
            return *driver;
        }
    }
    return NULL;
}

int virtio_reset(struct virtio_transport *transport) {
    transport->ops->status_write(transport, 0);
    uint64_t deadline_ns = arch_clock_ns() + RESET_TIMEOUT_NS;
    while (transport->ops->status_read(transport) != 0) {
        if (arch_clock_ns() > deadline_ns) {
            return log_error(-ETIMEDOUT, "%s: does not finish its reset, status 0x%x",
                             transport->node->name,
                             (unsigned)transport->ops->status_read(transport));
        }
    }
    return 0;
}

int virtio_reset_in_task(struct virtio_transport *transport, uint64_t timeout_ms) {
    uint64_t deadline_ns = arch_clock_ns() + timeout_ms * NS_PER_MS;
    transport->ops->status_write(transport, 0);
    for (;;) {
        uint32_t status = transport->ops->status_read(transport);
        if (status == 0) {
            return 0;
        }
        if (status == VIRTIO_NOTHING_THERE) {
            return -ENODEV;
        }
        if (arch_clock_ns() > deadline_ns) {
            return log_error(
                -ETIMEDOUT, "%s: does not finish its reset within %llu ms, status 0x%x",
                transport->node->name, (unsigned long long)timeout_ms, (unsigned)status);
        }
        task_sleep_until(arch_clock_ns() + RESET_LOOK_MS * NS_PER_MS);
    }
}

static void add_status(struct virtio_transport *transport, uint32_t bit) {
    transport->ops->status_write(transport, transport->ops->status_read(transport) | bit);
}

void virtio_fail(struct virtio_transport *transport) {
    add_status(transport, VIRTIO_STATUS_FAILED);
}

static const char *name_of(uint64_t bit, const struct virtio_feature_name *names) {
    for (; names->name != NULL; names++) {
        if (names->bit == bit) {
            return names->name;
        }
    }
    return NULL;
}

/* The names of the set bits; bits without a name by number. */
static const char *name_features(char *line, uint64_t bits,
                                 const struct virtio_feature_name *names) {
    size_t used = 0;
    line[0] = '\0';
    for (unsigned i = 0; i < 64; i++) {
        uint64_t bit = UINT64_C(1) << i;
        if ((bits & bit) == 0 || used >= FEATURES_TEXT_BYTES - 24) {
            continue;
        }
        const char *name = name_of(bit, names);
        name = name != NULL ? name : name_of(bit, common_names);
        int n = name != NULL ? snprintf(line + used, FEATURES_TEXT_BYTES - used, " %s", name)
                             : snprintf(line + used, FEATURES_TEXT_BYTES - used, " bit%u", i);
        used += n > 0 ? (size_t)n : 0;
    }
    return line;
}

static void log_features(const struct virtio_transport *transport, const char *what, uint64_t bits,
                         const struct virtio_feature_name *names) {
    char line[FEATURES_TEXT_BYTES];
    log_debug("%s: %s:%s", transport->node->name, what, name_features(line, bits, names));
}

void virtio_dump(struct virtio_transport *transport, const struct virtio_feature_name *names,
                 unsigned queue) {
    char line[FEATURES_TEXT_BYTES];
    const char *name = transport->node->name;
    log_text("  %s: status 0x%x, interrupts %llu", name,
             (unsigned)transport->ops->status_read(transport),
             (unsigned long long)transport->interrupts);
    log_text("  %s: offers:%s", name, name_features(line, transport->features_offered, names));
    log_text("  %s: accepted:%s", name, name_features(line, transport->features, names));
    if (transport->ops->dump != NULL) {
        transport->ops->dump(transport, queue);
    }
}

int virtio_negotiate(struct virtio_transport *transport, uint64_t wanted,
                     const struct virtio_feature_name *names) {
    int error = virtio_reset(transport);
    if (error) {
        virtio_fail(transport);
        return error;
    }
    add_status(transport, VIRTIO_STATUS_ACKNOWLEDGE);
    add_status(transport, VIRTIO_STATUS_DRIVER);
    uint64_t offered = transport->ops->features_read(transport);
    transport->features_offered = offered;
    transport->features = offered & (wanted | VIRTIO_F_VERSION_1);
    log_features(transport, "offers", offered, names);
    log_features(transport, "accepted", transport->features, names);
    if ((offered & VIRTIO_F_VERSION_1) == 0) {
        virtio_fail(transport);
        return log_error(-ENOTSUP, "%s: offers no VIRTIO_F_VERSION_1: not a modern device",
                         transport->node->name);
    }
    if ((offered & VIRTIO_F_ACCESS_PLATFORM & ~transport->features) != 0) {
        log_debug("%s: could use an IOMMU; memory is given to it by physical address",
                  transport->node->name);
    }
    transport->ops->features_write(transport, transport->features);
    add_status(transport, VIRTIO_STATUS_FEATURES_OK);
    if ((transport->ops->status_read(transport) & VIRTIO_STATUS_FEATURES_OK) == 0) {
        virtio_fail(transport);
        return log_error(-ENOTSUP, "%s: refuses features 0x%llx of its own offer 0x%llx",
                         transport->node->name, (unsigned long long)transport->features,
                         (unsigned long long)offered);
    }
    return 0;
}

void virtio_driver_ok(struct virtio_transport *transport) {
    add_status(transport, VIRTIO_STATUS_DRIVER_OK);
}

int virtio_config_read(struct virtio_transport *transport, size_t offset, void *buf, size_t bytes) {
    if (!range_fits(offset, bytes, transport->ops->config_bytes(transport))) {
        return -ERANGE;
    }
    for (int i = 0; i < CONFIG_TRIES_MAX; i++) {
        uint32_t before = transport->ops->config_generation(transport);
        transport->ops->config_read(transport, offset, buf, bytes);
        if (transport->ops->config_generation(transport) == before) {
            return 0;
        }
    }
    return log_error(-EAGAIN, "%s: its configuration never stands still", transport->node->name);
}

int virtio_config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    if (!range_fits(offset, 1, transport->ops->config_bytes(transport))) {
        return -ERANGE;
    }
    transport->ops->config_write8(transport, offset, value);
    return 0;
}

void virtio_sleep_barrier(void *transport) {
    struct virtio_transport *device = transport;
    device->ops->barrier(device);
}
