/* The list of block devices, the validator, and statistics. See block.h; requests are in queue.c.
 */
#include "blk/block.h"

#include <errno.h>
#include <string.h>

#include "core/log.h"
#include "core/panic.h"

static struct block_device *devices[BLOCK_DEVICES_MAX];
static unsigned device_count;

int block_register(struct block_device *device) {
    const struct block_limits *limits = &device->limits;
    if (device_count == BLOCK_DEVICES_MAX) {
        return log_error(-ENOSPC, "%s: %u block devices are the limit", device->name,
                         BLOCK_DEVICES_MAX);
    }
    /* Any part must be able to hold a block, whatever the shape of the segments (queue.c). */
    bool is_sound =
        is_power_of_two(limits->block_bytes) && limits->block_bytes >= 512 &&
        limits->block_bytes <= BLOCK_LOGICAL_BYTES_MAX &&
        limits->physical_block_bytes >= limits->block_bytes && limits->segments_max >= 1 &&
        limits->segment_bytes_max >= limits->block_bytes &&
        device->capacity_bytes % limits->block_bytes == 0 &&
        (limits->discard_bytes_max == 0 || limits->discard_bytes_max >= limits->block_bytes) &&
        (limits->zeroes_bytes_max == 0 || limits->zeroes_bytes_max >= limits->block_bytes);
    if (!is_sound) {
        return log_error(-EINVAL, "%s: its limits make no sense", device->name);
    }
    devices[device_count++] = device;
    return 0;
}

void block_unregister(struct block_device *device) {
    ASSERT(device_count > 0 && devices[device_count - 1] == device);
    device_count--;
}

struct block_device *block_device_at(unsigned index) {
    return index < device_count ? devices[index] : NULL;
}

struct block_device *block_device_find(const char *name) {
    for (unsigned i = 0; i < device_count; i++) {
        if (strcmp(devices[i]->name, name) == 0) {
            return devices[i];
        }
    }
    return NULL;
}

int block_check(const struct block_device *device, enum block_operation operation, uint64_t offset,
                uint64_t length) {
    const struct block_limits *limits = &device->limits;
    if (operation == BLOCK_FLUSH) {
        return 0;
    }
    if (operation != BLOCK_READ && limits->is_read_only) {
        return -EROFS;
    }
    if (operation == BLOCK_DISCARD && limits->discard_bytes_max == 0) {
        return -ENOTSUP;
    }
    if (length == 0 || ((offset | length) & (limits->block_bytes - 1)) != 0) {
        return -EINVAL;
    }
    return range_fits(offset, length, device->capacity_bytes) ? 0 : -ERANGE;
}

void block_dump(const struct block_device *device) {
    const struct block_stats *stats = &device->stats;
    log_text("%s: %llu bytes%s, in flight %u (peak %u), parts %llu, merges %llu, device flushes "
             "%llu, latency p50 %llu us p99 %llu us",
             device->name, (unsigned long long)device->capacity_bytes,
             device->is_gone ? ", out of service" : "", stats->in_flight, stats->in_flight_peak,
             (unsigned long long)stats->parts, (unsigned long long)stats->merges,
             (unsigned long long)stats->device_flushes,
             (unsigned long long)histogram_percentile(&stats->latency_us, 50),
             (unsigned long long)histogram_percentile(&stats->latency_us, 99));
    for (unsigned i = 0; i < BLOCK_OPERATIONS; i++) {
        if (stats->operations[i] != 0) {
            log_text("  %s %s: %llu requests, %llu bytes, %llu errors", device->name,
                     block_operation_name((enum block_operation)i),
                     (unsigned long long)stats->operations[i], (unsigned long long)stats->bytes[i],
                     (unsigned long long)stats->errors[i]);
        }
    }
    if (device->dump != NULL) {
        device->dump(device);
    }
}
