/* The virtio-blk driver (VIRTIO 1.3, 5.2): one cooperative task for each disk.
 *
 * The task moves parts from the block queue to the ring, kicks once, takes what is completed, and
 * waits for more of either, or for the deadline of what is in flight. A request on the ring is a
 * chain of header (we write), data, status byte (the device writes).
 *
 * A device that breaks the rules of its ring, asks for a reset, or keeps a request past its
 * deadline is taken out of service: reset first, so that it can touch no memory any more, and only
 * then are its requests ended with an error. When even the reset fails, the memory stays
 * quarantined: its requests are never completed and the report says so. */
#include "blk/virtio_blk.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk/queue.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/virtio/queue.h"

/* VIRTIO 1.3, 5.2.3. */
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
    {UINT64_C(1) << 16, "SECURE_ERASE"},
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
};

/* VIRTIO 1.3, 5.2.6: device operation. */
enum {
    VIRTIO_BLK_T_IN = 0,
    VIRTIO_BLK_T_OUT = 1,
    VIRTIO_BLK_T_FLUSH = 4,
    VIRTIO_BLK_T_DISCARD = 11,
    VIRTIO_BLK_T_WRITE_ZEROES = 13,
    VIRTIO_BLK_S_OK = 0,
    VIRTIO_BLK_S_IOERR = 1,
    VIRTIO_BLK_S_UNSUPP = 2,
    STATUS_UNWRITTEN = 0xff, /* our sentinel: the device never said anything */
    WRITE_ZEROES_UNMAP = 1,
};

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct blk_range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};

/* What the device reads and writes of a request besides the data; in DMA memory. */
struct slot_memory {
    struct blk_header header;
    struct blk_range range;
    uint8_t status;
    uint8_t unused[31];
};

_Static_assert(offsetof(struct blk_config, write_zeroes_may_unmap) == 56, "VIRTIO 1.3, 5.2.4");
_Static_assert(sizeof(struct blk_header) == 16, "VIRTIO 1.3, 5.2.6");
_Static_assert(sizeof(struct blk_range) == 16, "VIRTIO 1.3, 5.2.6");
_Static_assert(sizeof(struct slot_memory) == 64, "a slot is a cache line");

enum {
    SECTOR_BYTES = 512,
    CONFIG_BYTES = 60, /* of the configuration that we know */
    /* Descriptors of a request besides its data. */
    OVERHEAD_SEGMENTS = 2,
    INDIRECT_TABLES = 64,
    INDIRECT_SEGMENTS = BLOCK_SEGMENTS_MAX + OVERHEAD_SEGMENTS,
    /* Bytes of one segment when the device sets no limit: a whole number of blocks of any size. */
    SEGMENT_BYTES_UNLIMITED = 1u << 30,
};

/* A request on the ring. */
struct slot {
    struct block_request *request; /* NULL for a flush */
    enum block_operation operation;
    uint32_t data_bytes; /* what the device must write of a read */
    uint64_t issued_ns;
    struct slot_memory *memory;
    struct slot *next_free;
    struct slot *older; /* in flight, in order of issue: the oldest has the nearest deadline */
    struct slot *newer;
};

struct disk {
    struct block_device block; /* first: the callbacks cast back */
    struct virtio_transport *transport;
    struct virtqueue *queue;
    struct event wake;
    struct poll_source source;
    struct slot *slots;
    struct slot *free_slots;
    struct slot *oldest;
    struct slot *newest;
    bool config_changed;
    char name[8];
};

static unsigned disk_count;

static struct virtqueue_config queue_config(unsigned size) {
    return (struct virtqueue_config){.name = "requests",
                                     .index = 0,
                                     .size = size,
                                     .indirect_count = INDIRECT_TABLES,
                                     .indirect_size = INDIRECT_SEGMENTS};
}

static size_t disk_dma_bytes(struct virtio_transport *transport) {
    (void)transport; /* every disk gets the same, whatever it offers */
    struct virtqueue_config config = queue_config(BLOCK_RING_ENTRIES);
    return virtqueue_dma_bytes(&config) + sizeof(struct slot_memory) * (BLOCK_RING_ENTRIES + 1);
}

static void in_flight_add(struct disk *disk, struct slot *slot) {
    slot->newer = NULL;
    slot->older = disk->newest;
    if (disk->newest != NULL) {
        disk->newest->newer = slot;
    } else {
        disk->oldest = slot;
    }
    disk->newest = slot;
}

static void in_flight_remove(struct disk *disk, struct slot *slot) {
    if (slot->older != NULL) {
        slot->older->newer = slot->newer;
    } else {
        disk->oldest = slot->newer;
    }
    if (slot->newer != NULL) {
        slot->newer->older = slot->older;
    } else {
        disk->newest = slot->older;
    }
}

static uint32_t type_of(enum block_operation operation) {
    switch (operation) {
    case BLOCK_READ:
        return VIRTIO_BLK_T_IN;
    case BLOCK_WRITE:
        return VIRTIO_BLK_T_OUT;
    case BLOCK_FLUSH:
        return VIRTIO_BLK_T_FLUSH;
    case BLOCK_DISCARD:
        return VIRTIO_BLK_T_DISCARD;
    case BLOCK_WRITE_ZEROES:
        return VIRTIO_BLK_T_WRITE_ZEROES;
    case BLOCK_OPERATIONS:
        break;
    }
    panic("block operation %u is none", (unsigned)operation);
}

/* Puts one part on the ring. -ENOSPC when it has no room. */
static int issue(struct disk *disk, const struct block_part *part) {
    struct slot *slot = disk->free_slots;
    if (slot == NULL) {
        return -ENOSPC;
    }
    struct segment segments[BLOCK_SEGMENTS_MAX + OVERHEAD_SEGMENTS];
    struct slot_memory *memory = slot->memory;
    bool is_ranged = part->operation == BLOCK_DISCARD || part->operation == BLOCK_WRITE_ZEROES;
    bool is_read = part->operation == BLOCK_READ;
    unsigned count = 0;
    /* For ranged requests the header's sector is 0: the range says where (5.2.6). */
    memory->header = (struct blk_header){.type = type_of(part->operation),
                                         .sector = is_ranged ? 0 : part->offset / SECTOR_BYTES};
    memory->status = STATUS_UNWRITTEN;
    segments[count++] = (struct segment){&memory->header, sizeof memory->header};
    if (is_ranged) {
        bool unmap = part->operation == BLOCK_WRITE_ZEROES && (part->flags & BLOCK_UNMAP) != 0 &&
                     disk->block.limits.zeroes_may_unmap;
        memory->range = (struct blk_range){.sector = part->offset / SECTOR_BYTES,
                                           .sectors = (uint32_t)(part->length / SECTOR_BYTES),
                                           .flags = unmap ? WRITE_ZEROES_UNMAP : 0};
        segments[count++] = (struct segment){&memory->range, sizeof memory->range};
    }
    for (unsigned i = 0; i < part->segment_count; i++) {
        segments[count++] = part->segments[i];
    }
    unsigned out_count = is_read ? 1 : count;
    segments[count++] = (struct segment){&memory->status, 1};
    int error = virtqueue_add(disk->queue, segments, out_count, count - out_count, slot);
    if (error) {
        return error;
    }
    disk->free_slots = slot->next_free;
    slot->request = part->request;
    slot->operation = part->operation;
    slot->data_bytes = is_read ? (uint32_t)part->length : 0;
    slot->issued_ns = scheduler_now_ns();
    in_flight_add(disk, slot);
    return 0;
}

static void release_slot(struct disk *disk, struct slot *slot) {
    in_flight_remove(disk, slot);
    slot->request = NULL;
    slot->next_free = disk->free_slots;
    disk->free_slots = slot;
}

/* The status byte and the length, both written by the device, to an errno. */
static int result_of(const struct disk *disk, const struct slot *slot, uint32_t written) {
    static struct log_rate rate;
    uint8_t status = *(volatile uint8_t *)&slot->memory->status;
    switch (status) {
    case VIRTIO_BLK_S_OK:
        /* A read that says it is complete without having written its data would hand out whatever
         * was in the buffer before. */
        if (slot->operation == BLOCK_READ && written < slot->data_bytes) {
            if (log_rate_allows(&rate)) {
                log_warning("%s: a read of %u bytes came back with %u", disk->block.name,
                            (unsigned)slot->data_bytes, (unsigned)written);
            }
            return -EIO;
        }
        return 0;
    case VIRTIO_BLK_S_UNSUPP:
        return -ENOTSUP;
    case VIRTIO_BLK_S_IOERR:
        return -EIO;
    default:
        if (log_rate_allows(&rate)) {
            log_warning("%s: status 0x%x means nothing", disk->block.name, status);
        }
        return -EIO;
    }
}

static bool issue_all(struct disk *disk) {
    static struct block_part part; /* large, and one task runs at a time: not on the stack */
    bool any = false;
    while (block_queue_next(&disk->block, &part)) {
        if (issue(disk, &part) != 0) {
            block_queue_return(&disk->block, &part);
            break;
        }
        any = true;
    }
    if (any) {
        virtqueue_kick(disk->queue);
    }
    return any;
}

/* True when something was taken. Bounded: a fast device completes inside our own kick, and would
 * keep this loop going for ever while others wait. */
static bool reap(struct disk *disk) {
    unsigned budget = BLOCK_REAP_BUDGET;
    uint32_t written = 0;
    struct slot *slot;
    while (budget > 0 && (slot = virtqueue_take(disk->queue, &written)) != NULL) {
        struct block_request *request = slot->request;
        int error = result_of(disk, slot, written);
        release_slot(disk, slot);
        block_queue_done(&disk->block, request, error);
        budget--;
    }
    return budget < BLOCK_REAP_BUDGET;
}

static void take_out_of_service(struct disk *disk, const char *reason) {
    (void)log_error(-EIO, "%s: %s: taken out of service, %u requests fail", disk->block.name,
                    reason, disk->block.stats.in_flight); /* each request carries the error */
    virtqueue_dump(disk->queue);
    disk->block.is_gone = true;
    scheduler_remove_source(&disk->source);
    if (virtio_reset(disk->transport) != 0) {
        (void)log_error(-EIO, "%s: %u requests stay unanswered, their memory is quarantined",
                        disk->block.name,
                        virtqueue_in_flight(disk->queue)); /* nothing to pass to */
        return;
    }
    virtio_fail(disk->transport);
    struct slot *slot;
    while ((slot = virtqueue_abandon(disk->queue)) != NULL) {
        struct block_request *request = slot->request;
        release_slot(disk, slot);
        block_queue_done(&disk->block, request, -EIO);
    }
}

static void look_at_config(struct disk *disk) {
    disk->config_changed = false;
    uint32_t status = disk->transport->ops->status_read(disk->transport);
    if ((status & VIRTIO_STATUS_NEEDS_RESET) != 0) {
        take_out_of_service(disk, "the device asks for a reset");
        return;
    }
    uint64_t sectors = 0;
    uint64_t bytes = 0;
    if (virtio_config_read(disk->transport, 0, &sectors, sizeof sectors) == 0 &&
        multiply_fits(sectors, SECTOR_BYTES, &bytes) && bytes != disk->block.capacity_bytes) {
        log_warning("%s: the device changed its size from %llu to %llu bytes; the old size is "
                    "served until restart",
                    disk->block.name, (unsigned long long)disk->block.capacity_bytes,
                    (unsigned long long)bytes);
    }
}

static uint64_t next_deadline(const struct disk *disk) {
    return disk->oldest != NULL ? disk->oldest->issued_ns + BLOCK_REQUEST_TIMEOUT_MS * NS_PER_MS
                                : DEADLINE_NEVER;
}

static void disk_task(void *arg) {
    struct disk *disk = arg;
    for (;;) {
        if (disk->block.is_gone) {
            block_queue_fail_waiting(&disk->block, -EIO);
            (void)task_wait(&disk->wake, DEADLINE_NEVER); /* the next submission is the event */
            continue;
        }
        bool worked = issue_all(disk);
        worked |= reap(disk);
        if (disk->config_changed) {
            look_at_config(disk);
        } else if (virtqueue_is_broken(disk->queue)) {
            take_out_of_service(disk, "the device broke its ring");
        } else if (scheduler_now_ns() >= next_deadline(disk)) {
            take_out_of_service(disk, "a request was not answered in time");
        } else if (worked) {
            task_yield();
        } else {
            (void)task_wait(&disk->wake, next_deadline(disk)); /* either way: look at everything */
        }
    }
}

static void disk_wake(struct block_device *block) {
    event_signal(&((struct disk *)block)->wake);
}

static void disk_dump(const struct block_device *block) {
    const struct disk *disk = (const struct disk *)block;
    const struct virtqueue_stats *stats = virtqueue_get_stats(disk->queue);
    log_text("  %s: added %llu, kicks %llu, notifies %llu, indirect %llu, full %llu, peak %u, "
             "interrupts %llu",
             block->name, (unsigned long long)stats->added, (unsigned long long)stats->kicks,
             (unsigned long long)stats->notifies, (unsigned long long)stats->indirect,
             (unsigned long long)stats->full, stats->in_flight_peak,
             (unsigned long long)disk->transport->interrupts);
    virtqueue_dump(disk->queue);
}

const struct virtqueue_stats *virtio_blk_ring_stats(const struct block_device *device) {
    ASSERT(device->wake == disk_wake);
    return virtqueue_get_stats(((const struct disk *)device)->queue);
}

static void config_changed(void *arg) {
    struct disk *disk = arg;
    disk->config_changed = true;
    event_signal(&disk->wake);
}

static bool source_pending(void *arg) {
    return virtqueue_has_completed(((struct disk *)arg)->queue);
}

static void source_arm(void *arg) {
    virtqueue_arm(((struct disk *)arg)->queue);
}

static void source_disarm(void *arg) {
    virtqueue_disarm(((struct disk *)arg)->queue);
}

/* Fields are valid only when the feature is negotiated; without it the specification's defaults. */
static int read_limits(struct disk *disk) {
    struct virtio_transport *transport = disk->transport;
    struct blk_config config = {0};
    /* A device without the newer features may have a shorter configuration. */
    size_t have = transport->ops->config_bytes(transport);
    int error = virtio_config_read(transport, 0, &config,
                                   have < CONFIG_BYTES ? have & ~(size_t)7 : CONFIG_BYTES);
    uint64_t capacity_bytes = 0;
    if (error || !multiply_fits(config.capacity_sectors, SECTOR_BYTES, &capacity_bytes)) {
        return log_error(-EINVAL, "%s: capacity %llu sectors makes no sense", transport->node->name,
                         (unsigned long long)config.capacity_sectors);
    }
    uint32_t block = virtio_has(transport, VIRTIO_BLK_F_BLK_SIZE) ? config.blk_size : SECTOR_BYTES;
    if (!is_power_of_two(block) || block < SECTOR_BYTES || block > 65536) {
        return log_error(-EINVAL, "%s: block size %u makes no sense", transport->node->name,
                         (unsigned)block);
    }
    struct block_limits *limits = &disk->block.limits;
    *limits = (struct block_limits){
        .block_bytes = block,
        .physical_block_bytes = block,
        .segments_max = 1,
        .segment_bytes_max = SEGMENT_BYTES_UNLIMITED,
        .is_read_only = virtio_has(transport, VIRTIO_BLK_F_RO),
        .has_cache = virtio_has(transport, VIRTIO_BLK_F_FLUSH),
    };
    if (virtio_has(transport, VIRTIO_BLK_F_SEG_MAX)) {
        limits->segments_max = config.seg_max;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_SIZE_MAX)) {
        limits->segment_bytes_max = config.size_max;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_TOPOLOGY) && config.physical_block_exp < 8) {
        limits->physical_block_bytes = block << config.physical_block_exp;
        uint64_t optimal = (uint64_t)config.opt_io_size * block;
        limits->optimal_io_bytes = optimal <= NBD_REQUEST_BYTES_MAX ? (uint32_t)optimal : 0;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_GEOMETRY)) {
        limits->cylinders = config.cylinders;
        limits->heads = config.heads;
        limits->sectors = config.sectors;
    }
    /* With CONFIG_WCE the device says whether its cache is on now; without it, FLUSH means a cache.
     */
    if (virtio_has(transport, VIRTIO_BLK_F_CONFIG_WCE) && config.writeback == 0) {
        limits->has_cache = false;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_DISCARD)) {
        limits->discard_bytes_max =
            align_down((uint64_t)config.max_discard_sectors * SECTOR_BYTES, block);
        uint64_t align = (uint64_t)config.discard_sector_alignment * SECTOR_BYTES;
        limits->discard_align_bytes = align <= limits->discard_bytes_max ? (uint32_t)align : 0;
        /* What a discarded range reads as, the device does not say (5.2.6.2). */
        limits->discard_leaves = BLOCK_KNOWN_HOLE;
    }
    if (virtio_has(transport, VIRTIO_BLK_F_WRITE_ZEROES)) {
        limits->zeroes_bytes_max =
            align_down((uint64_t)config.max_write_zeroes_sectors * SECTOR_BYTES, block);
        limits->zeroes_may_unmap = config.write_zeroes_may_unmap != 0;
    }
    disk->block.capacity_bytes = align_down(capacity_bytes, block);
    return 0;
}

/* The ring carries at most size - 2 segments of a request that finds no indirect table. */
static int bring_up_queue(struct disk *disk) {
    struct virtio_transport *transport = disk->transport;
    unsigned size = virtqueue_usable_size(transport, 0, BLOCK_RING_ENTRIES);
    if (size <= OVERHEAD_SEGMENTS + 1) {
        return log_error(-EINVAL, "%s: a ring of %u entries is too small", transport->node->name,
                         size);
    }
    struct virtqueue_config config = queue_config(size);
    disk->queue = virtqueue_create(transport, transport->node->dma_buffer, &config);
    if (disk->queue == NULL) {
        return -ENOMEM;
    }
    if (disk->block.limits.segments_max > size - OVERHEAD_SEGMENTS) {
        disk->block.limits.segments_max = size - OVERHEAD_SEGMENTS;
    }
    void *memory = NULL;
    int error = io_buffer_carve(transport->node->dma_buffer, sizeof(struct slot_memory) * size,
                                sizeof(struct slot_memory), &memory);
    disk->slots = error ? NULL : calloc(size, sizeof *disk->slots);
    if (disk->slots == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < size; i++) {
        disk->slots[i].memory = (struct slot_memory *)memory + i;
        disk->slots[i].next_free = i + 1 < size ? &disk->slots[i + 1] : NULL;
    }
    disk->free_slots = disk->slots;
    return 0;
}

static void announce(const struct disk *disk) {
    const struct block_limits *limits = &disk->block.limits;
    log_info("%s: %s, %llu bytes, block %u/%u%s%s%s%s, %u segments, ring %u", disk->block.name,
             disk->transport->node->name, (unsigned long long)disk->block.capacity_bytes,
             (unsigned)limits->block_bytes, (unsigned)limits->physical_block_bytes,
             limits->is_read_only ? ", read-only" : "",
             limits->has_cache ? ", write cache" : ", no cache",
             limits->discard_bytes_max != 0 ? ", discard" : "",
             limits->zeroes_bytes_max != 0 ? ", write zeroes" : "", (unsigned)limits->segments_max,
             virtqueue_size(disk->queue));
}

static int disk_probe(struct virtio_transport *transport) {
    uint64_t wanted = VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_GEOMETRY |
                      VIRTIO_BLK_F_RO | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH |
                      VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_CONFIG_WCE | VIRTIO_BLK_F_DISCARD |
                      VIRTIO_BLK_F_WRITE_ZEROES | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    if (!device_has_dma(transport->node, disk_dma_bytes(transport))) {
        virtio_fail(transport);
        return -ENOMEM;
    }
    struct disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL) {
        return log_error(-ENOMEM, "%s: no memory", transport->node->name);
    }
    disk->transport = transport;
    int error = virtio_negotiate(transport, wanted, feature_names);
    if (!error) {
        error = read_limits(disk);
    }
    if (!error) {
        error = bring_up_queue(disk);
    }
    if (error) {
        goto fail;
    }
    (void)snprintf(disk->name, sizeof disk->name, "vd%c", (char)('a' + disk_count)); /* it fits */
    disk->block.name = disk->name;
    disk->block.model = "virtio-blk";
    disk->block.wake = disk_wake;
    disk->block.dump = disk_dump;
    error = block_register(&disk->block);
    if (error) {
        goto fail;
    }
    if (task_create(disk->name, disk_task, disk, 0) == NULL) {
        block_unregister(&disk->block);
        error = -ENOMEM;
        goto fail;
    }
    disk_count++;
    transport->config_changed = config_changed;
    transport->config_changed_arg = disk;
    disk->source = (struct poll_source){.name = disk->name,
                                        .pending = source_pending,
                                        .arm = source_arm,
                                        .disarm = source_disarm,
                                        .arg = disk,
                                        .event = &disk->wake};
    scheduler_add_source(&disk->source);
    virtio_driver_ok(transport);
    announce(disk);
    return 0;

fail:
    /* Reset, so that the device forgets the rings before their memory goes; a device that does not
     * obey keeps it for good. */
    if (virtio_reset(transport) != 0) {
        transport->node->dma_buffer = NULL;
    }
    virtio_fail(transport);
    virtqueue_destroy(disk->queue);
    free(disk->slots);
    free(disk);
    return error;
}

const struct virtio_driver virtio_blk_driver = {.name = "virtio-blk",
                                                .device_id = VIRTIO_ID_BLOCK,
                                                .dma_bytes = disk_dma_bytes,
                                                .probe = disk_probe};
