/* What a virtio-blk device says of itself: features, limits, size, cache (VIRTIO 1.3, 5.2.3 to
 * 5.2.5). Fields are valid only when their feature is negotiated; without it the specification's
 * defaults hold. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "blk/virtio_blk_disk.h"
#include "boot/arch.h"
#include "core/config.h"
#include "core/log.h"

#define VIRTIO_BLK_F_SIZE_MAX     (UINT64_C(1) << 1)
#define VIRTIO_BLK_F_SEG_MAX      (UINT64_C(1) << 2)
#define VIRTIO_BLK_F_GEOMETRY     (UINT64_C(1) << 4)
#define VIRTIO_BLK_F_RO           (UINT64_C(1) << 5)
#define VIRTIO_BLK_F_BLK_SIZE     (UINT64_C(1) << 6)
#define VIRTIO_BLK_F_FLUSH        (UINT64_C(1) << 9)
#define VIRTIO_BLK_F_TOPOLOGY     (UINT64_C(1) << 10)
#define VIRTIO_BLK_F_CONFIG_WCE   (UINT64_C(1) << 11)
#define VIRTIO_BLK_F_DISCARD      (UINT64_C(1) << 13)
#define VIRTIO_BLK_F_WRITE_ZEROES (UINT64_C(1) << 14)
#define VIRTIO_BLK_F_SECURE_ERASE (UINT64_C(1) << 16)

static const struct virtio_feature_name feature_names[] = {
    {UINT64_C(1) << 0, "BARRIER"}, /* legacy */
    {VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"},
    {VIRTIO_BLK_F_SEG_MAX, "SEG_MAX"},
    {VIRTIO_BLK_F_GEOMETRY, "GEOMETRY"},
    {VIRTIO_BLK_F_RO, "RO"},
    {VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"},
    {UINT64_C(1) << 7, "SCSI"}, /* legacy */
    {VIRTIO_BLK_F_FLUSH, "FLUSH"},
    {VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"},
    {VIRTIO_BLK_F_CONFIG_WCE, "CONFIG_WCE"},
    {UINT64_C(1) << 12, "MQ"},
    {VIRTIO_BLK_F_DISCARD, "DISCARD"},
    {VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"},
    {UINT64_C(1) << 15, "LIFETIME"},
    {VIRTIO_BLK_F_SECURE_ERASE, "SECURE_ERASE"},
    {UINT64_C(1) << 17, "ZONED"},
    {0, NULL},
};

/* VIRTIO 1.3, 5.2.4: device configuration; little-endian, naturally aligned. */
struct blk_config {
    uint64_t capacity_sectors;
    uint32_t size_max;
    uint32_t seg_max;
    uint16_t cylinders;
    uint8_t heads;
    uint8_t sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp;
    uint8_t alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback;
    uint8_t unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
    uint32_t max_secure_erase_sectors;
    uint32_t max_secure_erase_seg;
    uint32_t secure_erase_sector_alignment;
};

_Static_assert(offsetof(struct blk_config, writeback) == 32, "VIRTIO 1.3, 5.2.4");
_Static_assert(offsetof(struct blk_config, write_zeroes_may_unmap) == 56, "VIRTIO 1.3, 5.2.4");
_Static_assert(offsetof(struct blk_config, max_secure_erase_sectors) == 60, "VIRTIO 1.3, 5.2.4");
_Static_assert(sizeof(struct blk_config) == 72, "VIRTIO 1.3, 5.2.4");

enum {
    SECTOR_BYTES = 512,
    BLOCK_BYTES_MAX = 65536,
    PHYSICAL_EXPONENT_MAX = 7,
    /* Bytes of one segment when the device sets no limit: a whole number of blocks of any size. */
    SEGMENT_BYTES_UNLIMITED = 1u << 30,
    OPTION_BYTES = 40,
};

const char *disk_option(const struct disk *disk, const char *key) {
    char name[OPTION_BYTES];
    (void)snprintf(name, sizeof name, "disk.%s.%s", disk->name, key); /* both are ours: it fits */
    const char *own = config_text(name);
    (void)snprintf(name, sizeof name, "disk.%s", key);
    const char *all = config_text(name); /* asked for in any case: it is a key that is known */
    return own != NULL ? own : all;
}

uint64_t disk_timeout_ns(const struct disk *disk) {
    const char *text = disk_option(disk, "timeout");
    uint64_t seconds = 0;
    const char *at = text;
    while (at != NULL && *at >= '0' && *at <= '9' && seconds <= BLOCK_REQUEST_TIMEOUT_S_MAX) {
        seconds = 10 * seconds + (uint64_t)(*at++ - '0');
    }
    if (text == NULL) {
        return BLOCK_REQUEST_TIMEOUT_MS * NS_PER_MS;
    }
    if (*at != '\0' || seconds < 1 || seconds > BLOCK_REQUEST_TIMEOUT_S_MAX) {
        (void)log_error(-EINVAL, "%s: timeout %s refused: 1 to %u seconds are wanted", disk->name,
                        text, BLOCK_REQUEST_TIMEOUT_S_MAX); /* the default serves */
        return BLOCK_REQUEST_TIMEOUT_MS * NS_PER_MS;
    }
    return seconds * NS_PER_S;
}

int disk_negotiate(struct disk *disk) {
    uint64_t wanted = VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_GEOMETRY |
                      VIRTIO_BLK_F_RO | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH |
                      VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_DISCARD |
                      VIRTIO_BLK_F_WRITE_ZEROES | VIRTIO_BLK_F_SECURE_ERASE |
                      VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    return virtio_negotiate(disk->transport, wanted, feature_names);
}

/* Tells the device which mode is wanted, and asks which it has. Without CONFIG_WCE, FLUSH means a
 * cache (5.2.5.1); then write-through is made by flushing behind every write. */
static int set_cache_mode(struct disk *disk, struct block_limits *limits, bool is_on) {
    struct virtio_transport *transport = disk->transport;
    const char *mode = disk_option(disk, "cache");
    bool may_set = virtio_has(transport, VIRTIO_BLK_F_CONFIG_WCE);
    bool wants_on = mode != NULL && strcmp(mode, "writeback") == 0;
    bool wants_off = mode != NULL && strcmp(mode, "writethrough") == 0;
    if (mode != NULL && !wants_on && !wants_off) {
        return log_error(-EINVAL, "%s: cache mode %s refused: writeback or writethrough is wanted",
                         disk->name, mode);
    }
    if (may_set && ((wants_on && !is_on) || (wants_off && is_on))) {
        uint8_t now = 0;
        size_t at = offsetof(struct blk_config, writeback);
        int error = virtio_config_write8(transport, at, wants_on ? 1 : 0);
        error = error ? error : virtio_config_read(transport, at, &now, 1);
        if (error) {
            return log_error(error, "%s: its cache mode cannot be set", disk->name);
        }
        is_on = now != 0;
    }
    limits->has_cache = virtio_has(transport, VIRTIO_BLK_F_FLUSH) && (!may_set || is_on);
    limits->is_write_through = wants_off && limits->has_cache;
    if (wants_on && !limits->has_cache) {
        log_warning("%s: has no cache that could be switched on", disk->name);
    }
    return 0;
}

/* Ranged operations: discard, write zeroes, secure erase. */
static void read_range_limits(const struct virtio_transport *transport,
                              const struct blk_config *config, struct block_limits *limits) {
    uint64_t block = limits->block_bytes;
    if (virtio_has(transport, VIRTIO_BLK_F_DISCARD)) {
        limits->discard_bytes_max =
            align_down((uint64_t)config->max_discard_sectors * SECTOR_BYTES, block);
        limits->discard_align_bytes = config->discard_sector_alignment * SECTOR_BYTES;
        /* What a discarded range reads as, the device does not say (5.2.6.2). */
        limits->discard_leaves = BLOCK_KNOWN_HOLE;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_WRITE_ZEROES)) {
        limits->zeroes_bytes_max =
            align_down((uint64_t)config->max_write_zeroes_sectors * SECTOR_BYTES, block);
        limits->zeroes_may_unmap = config->write_zeroes_may_unmap != 0;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_SECURE_ERASE)) {
        limits->erase_bytes_max =
            align_down((uint64_t)config->max_secure_erase_sectors * SECTOR_BYTES, block);
        limits->erase_align_bytes = config->secure_erase_sector_alignment * SECTOR_BYTES;
    }
    /* A device request ends between blocks, so an alignment that blocks do not have is none. */
    if (limits->discard_align_bytes % block != 0) {
        limits->discard_align_bytes = 0;
    }
    if (limits->erase_align_bytes % block != 0) {
        limits->erase_align_bytes = 0;
    }
}

static void read_topology(const struct blk_config *config, struct block_limits *limits) {
    uint32_t block = limits->block_bytes;
    if (config->physical_block_exp > PHYSICAL_EXPONENT_MAX) {
        return;
    }
    uint64_t optimal = (uint64_t)config->opt_io_size * block;
    limits->physical_block_bytes = block << config->physical_block_exp;
    limits->alignment_bytes = config->alignment_offset * block;
    limits->minimum_io_bytes = config->min_io_size * block;
    limits->optimal_io_bytes = optimal <= NBD_REQUEST_BYTES_MAX ? (uint32_t)optimal : 0;
}

int disk_read_limits(struct disk *disk, struct block_limits *limits, uint64_t *capacity_bytes) {
    struct virtio_transport *transport = disk->transport;
    struct blk_config config = {0};
    /* A device without the newer features may have a shorter configuration. */
    size_t have = transport->ops->config_bytes(transport);
    int error = virtio_config_read(transport, 0, &config,
                                   have < sizeof config ? have & ~(size_t)3 : sizeof config);
    if (error || !multiply_fits(config.capacity_sectors, SECTOR_BYTES, capacity_bytes)) {
        return log_error(-EINVAL, "%s: capacity %llu sectors makes no sense", transport->node->name,
                         (unsigned long long)config.capacity_sectors);
    }
    uint32_t block = virtio_has(transport, VIRTIO_BLK_F_BLK_SIZE) ? config.blk_size : SECTOR_BYTES;
    if (!is_power_of_two(block) || block < SECTOR_BYTES || block > BLOCK_BYTES_MAX) {
        return log_error(-EINVAL, "%s: block size %u makes no sense", transport->node->name,
                         (unsigned)block);
    }
    *limits = (struct block_limits){
        .block_bytes = block,
        .physical_block_bytes = block,
        .segments_max = 1,
        .segment_bytes_max = SEGMENT_BYTES_UNLIMITED,
        .is_read_only = virtio_has(transport, VIRTIO_BLK_F_RO),
        .has_id = true,
    };
    if (virtio_has(transport, VIRTIO_BLK_F_SEG_MAX)) {
        limits->segments_max = config.seg_max;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_SIZE_MAX)) {
        limits->segment_bytes_max = config.size_max;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_TOPOLOGY)) {
        read_topology(&config, limits);
    }
    if (virtio_has(transport, VIRTIO_BLK_F_GEOMETRY)) {
        limits->cylinders = config.cylinders;
        limits->heads = config.heads;
        limits->sectors = config.sectors;
    }
    read_range_limits(transport, &config, limits);
    *capacity_bytes = align_down(*capacity_bytes, block);
    return set_cache_mode(disk, limits, config.writeback != 0);
}

int disk_read_capacity(struct disk *disk, uint64_t *capacity_bytes) {
    uint64_t sectors = 0;
    int error = virtio_config_read(disk->transport, 0, &sectors, sizeof sectors);
    if (!error && !multiply_fits(sectors, SECTOR_BYTES, capacity_bytes)) {
        error = log_error(-EINVAL, "%s: capacity %llu sectors makes no sense", disk->block.name,
                          (unsigned long long)sectors);
    }
    *capacity_bytes = align_down(*capacity_bytes, disk->block.limits.block_bytes);
    return error;
}

void disk_resize(struct disk *disk, uint64_t capacity_bytes) {
    log_info("%s: changes its size from %llu to %llu bytes", disk->block.name,
             (unsigned long long)disk->block.capacity_bytes, (unsigned long long)capacity_bytes);
    disk->block.capacity_bytes = capacity_bytes;
    disk->block.stats.resizes++;
    block_device_changed(&disk->block);
}

void disk_announce(const struct disk *disk) {
    const struct block_limits *limits = &disk->block.limits;
    log_info("%s: %s, %llu bytes, block %u/%u, optimal %u%s%s%s%s, %u segments, ring %u",
             disk->block.name, disk->transport->node->name,
             (unsigned long long)disk->block.capacity_bytes, (unsigned)limits->block_bytes,
             (unsigned)limits->physical_block_bytes, (unsigned)limits->optimal_io_bytes,
             limits->is_read_only ? ", read-only" : "",
             limits->is_write_through ? ", every write flushed"
             : limits->has_cache      ? ", write cache"
                                      : ", no cache",
             limits->discard_bytes_max != 0 ? ", discard" : "",
             limits->zeroes_bytes_max != 0 ? ", write zeroes" : "", (unsigned)limits->segments_max,
             virtqueue_size(disk->queue));
}

void disk_dump_device(const struct block_device *block) {
    const struct disk *disk = disk_of(block);
    virtio_dump(disk->transport, feature_names, 0);
    virtqueue_dump(disk->queue);
    const struct slot *oldest = disk->oldest;
    if (oldest != NULL) {
        log_text("  %s: oldest in flight: %s of %llu at %llu, for %llu ms", block->name,
                 block_operation_name(oldest->operation), (unsigned long long)oldest->length,
                 (unsigned long long)oldest->offset,
                 (unsigned long long)((arch_clock_ns() - oldest->issued_ns) / NS_PER_MS));
    }
}
