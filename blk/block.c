/* The list of block devices, the validator, and statistics. See block.h; requests are in queue.c.
 */
#include "blk/block.h"

#include <errno.h>
#include <stdlib.h>
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
        (limits->zeroes_bytes_max == 0 || limits->zeroes_bytes_max >= limits->block_bytes) &&
        (limits->erase_bytes_max == 0 || limits->erase_bytes_max >= limits->block_bytes);
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

/* What the disk can do, as far as the disk reaches. */
static void follow_disk(struct block_device *partition) {
    const struct block_device *disk = partition->parent;
    uint64_t rest = disk->capacity_bytes > partition->start_bytes
                        ? disk->capacity_bytes - partition->start_bytes
                        : 0;
    partition->limits = disk->limits;
    partition->is_gone = disk->is_gone;
    partition->capacity_bytes = partition->length_bytes < rest ? partition->length_bytes : rest;
}

void block_device_changed(struct block_device *disk) {
    if (disk->allocation != NULL) {
        /* What comes back after a disk has shrunk is not what was there before. */
        block_allocation_forget(disk->allocation, disk->capacity_bytes,
                                UINT64_MAX - disk->capacity_bytes);
    }
    for (struct block_device *partition = disk->first_partition; partition != NULL;
         partition = partition->next_partition) {
        follow_disk(partition);
    }
}

struct block_device *block_partition_create(struct block_device *disk, const char *name,
                                            const char *model, uint64_t start, uint64_t length) {
    uint32_t block_bytes = disk->limits.block_bytes;
    ASSERT(disk->parent == NULL && length != 0 && (start | length) % block_bytes == 0);
    ASSERT(range_fits(start, length, disk->capacity_bytes));
    struct block_device *partition = calloc(1, sizeof *partition);
    if (partition == NULL) {
        (void)log_error(-ENOMEM, "%s: no memory", name); /* NULL tells */
        return NULL;
    }
    partition->name = name;
    partition->model = model;
    partition->parent = disk;
    partition->start_bytes = start;
    partition->length_bytes = length;
    follow_disk(partition);
    struct block_device **link = &disk->first_partition;
    while (*link != NULL) {
        link = &(*link)->next_partition;
    }
    *link = partition;
    return partition;
}

int block_check(const struct block_device *device, enum block_operation operation, uint64_t offset,
                uint64_t length) {
    const struct block_limits *limits = &device->limits;
    if (operation == BLOCK_FLUSH) {
        return 0;
    }
    if (operation == BLOCK_GET_ID) {
        return !limits->has_id ? -ENOTSUP : offset == 0 && length == BLOCK_ID_BYTES ? 0 : -EINVAL;
    }
    if (operation != BLOCK_READ && limits->is_read_only) {
        return -EROFS;
    }
    if ((operation == BLOCK_DISCARD && limits->discard_bytes_max == 0) ||
        (operation == BLOCK_SECURE_ERASE && limits->erase_bytes_max == 0)) {
        return -ENOTSUP;
    }
    if (length == 0 || ((offset | length) & (limits->block_bytes - 1)) != 0) {
        return -EINVAL;
    }
    return range_fits(offset, length, device->capacity_bytes) ? 0 : -ERANGE;
}

void block_dump(const struct block_device *device) {
    const struct block_stats *stats = &device->stats;
    const struct block_limits *limits = &device->limits;
    log_text("%s: %llu bytes%s%s, in flight %u (peak %u), parts %llu, merges %llu (undone %llu), "
             "device flushes %llu",
             device->name, (unsigned long long)device->capacity_bytes,
             device->is_gone ? ", out of service" : "",
             !limits->has_cache         ? ", no cache"
             : limits->is_write_through ? ", cache flushed by every write"
                                        : ", write cache",
             stats->in_flight, stats->in_flight_peak, (unsigned long long)stats->parts,
             (unsigned long long)stats->merges, (unsigned long long)stats->merges_undone,
             (unsigned long long)stats->device_flushes);
    if (stats->resets != 0 || stats->resizes != 0) {
        log_text("  %s: resets %llu, timeouts %llu, retries %llu, resizes %llu", device->name,
                 (unsigned long long)stats->resets, (unsigned long long)stats->timeouts,
                 (unsigned long long)stats->retries, (unsigned long long)stats->resizes);
    }
    for (unsigned i = 0; i < BLOCK_OPERATIONS; i++) {
        const struct histogram *latency_us = &stats->latency_us[i];
        if (stats->operations[i] != 0) {
            log_text(
                "  %s %s: %llu requests, %llu bytes, %llu errors, latency p50 %llu us p99 %llu "
                "us",
                device->name, block_operation_name((enum block_operation)i),
                (unsigned long long)stats->operations[i], (unsigned long long)stats->bytes[i],
                (unsigned long long)stats->errors[i],
                (unsigned long long)histogram_percentile(latency_us, 50),
                (unsigned long long)histogram_percentile(latency_us, 99));
        }
    }
    if (device->dump != NULL) {
        device->dump(device);
    }
}

static void dump_latencies(const struct block_device *device) {
    for (unsigned i = 0; i < BLOCK_OPERATIONS; i++) {
        const struct histogram *latency_us = &device->stats.latency_us[i];
        for (unsigned j = 0; j < HISTOGRAM_BUCKETS; j++) {
            if (latency_us->buckets[j] != 0) {
                log_text("  %s %s: %llu below %llu us", device->name,
                         block_operation_name((enum block_operation)i),
                         (unsigned long long)latency_us->buckets[j], 1ull << j);
            }
        }
    }
}

void block_dump_device(const struct block_device *device) {
    const struct block_limits *limits = &device->limits;
    block_dump(device);
    dump_latencies(device);
    log_text("  %s: block %u, physical %u, first aligned at %u, suggested %u, optimal %u, geometry "
             "%u/%u/%u",
             device->name, (unsigned)limits->block_bytes, (unsigned)limits->physical_block_bytes,
             (unsigned)limits->alignment_bytes, (unsigned)limits->minimum_io_bytes,
             (unsigned)limits->optimal_io_bytes, limits->cylinders, limits->heads, limits->sectors);
    log_text(
        "  %s: segments %u of %u bytes, discard %llu (aligned %u), zeroes %llu%s, secure erase "
        "%llu",
        device->name, (unsigned)limits->segments_max, (unsigned)limits->segment_bytes_max,
        (unsigned long long)limits->discard_bytes_max, (unsigned)limits->discard_align_bytes,
        (unsigned long long)limits->zeroes_bytes_max,
        limits->zeroes_may_unmap ? " (may unmap)" : "",
        (unsigned long long)limits->erase_bytes_max);
    if (device->dump_device != NULL) {
        device->dump_device(device);
    }
}
