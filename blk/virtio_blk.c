/* The virtio-blk driver (VIRTIO 1.3, 5.2): one cooperative task for each disk.
 *
 * The task moves parts from the block queue to the ring, kicks once, takes what is completed, and
 * waits for more of either, or for the deadline of what is in flight. A request on the ring is a
 * chain of header (we write), data, status byte (the device writes).
 *
 * A device that breaks the rules of its ring, asks for a reset, or keeps a request past its
 * deadline is reset, and what it had is submitted again: virtio_blk_recovery.c. What the device
 * says of itself is read in virtio_blk_config.c. */
#include "blk/virtio_blk.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk/queue.h"
#include "blk/virtio_blk_disk.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/virtio/queue.h"

/* VIRTIO 1.3, 5.2.6: device operation. */
enum {
    VIRTIO_BLK_T_IN = 0,
    VIRTIO_BLK_T_OUT = 1,
    VIRTIO_BLK_T_FLUSH = 4,
    VIRTIO_BLK_T_GET_ID = 8,
    VIRTIO_BLK_T_DISCARD = 11,
    VIRTIO_BLK_T_WRITE_ZEROES = 13,
    VIRTIO_BLK_T_SECURE_ERASE = 14,
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
    uint8_t table[VIRTQUEUE_TABLE_BYTES]; /* header, data, status */
    struct blk_header header;
    struct blk_range range;
    uint8_t status;
    uint8_t unused[15];
};

_Static_assert(sizeof(struct blk_header) == 16, "VIRTIO 1.3, 5.2.6");
_Static_assert(sizeof(struct blk_range) == 16, "VIRTIO 1.3, 5.2.6");
_Static_assert(sizeof(struct slot_memory) == 96, "slots lie at multiples of 32 bytes");

enum {
    SECTOR_BYTES = 512,
    SLOT_ALIGN = 32,
    /* Descriptors of a request besides its data. */
    OVERHEAD_SEGMENTS = 2,
    INDIRECT_TABLES = 64,
    INDIRECT_SEGMENTS = BLOCK_SEGMENTS_MAX + OVERHEAD_SEGMENTS,
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
    case BLOCK_SECURE_ERASE:
        return VIRTIO_BLK_T_SECURE_ERASE;
    case BLOCK_GET_ID:
        return VIRTIO_BLK_T_GET_ID;
    case BLOCK_OPERATIONS:
        break;
    }
    panic("block operation %u is none", (unsigned)operation);
}

/* Any part, by a chain that is put together for it. As virtqueue_add. Out of line: most parts do
 * without. */
__attribute__((noinline)) static int add_chain(struct disk *disk, struct slot *slot,
                                               const struct block_part *part) {
    struct segment segments[BLOCK_SEGMENTS_MAX + OVERHEAD_SEGMENTS];
    struct slot_memory *memory = slot->memory;
    bool is_ranged = part->operation == BLOCK_DISCARD || part->operation == BLOCK_WRITE_ZEROES ||
                     part->operation == BLOCK_SECURE_ERASE;
    bool is_read = part->operation == BLOCK_READ || part->operation == BLOCK_GET_ID;
    unsigned count = 0;
    /* For ranged requests the header's sector is 0: the range says where (5.2.6). */
    memory->header = (struct blk_header){.type = type_of(part->operation),
                                         .sector = is_ranged ? 0 : part->offset / SECTOR_BYTES};
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
    return virtqueue_add(disk->queue, segments, out_count, count - out_count, slot);
}

/* A read or write of one piece of memory, as most are: by the table that the slot has for it. */
static inline __attribute__((always_inline)) int add_prepared(struct disk *disk, struct slot *slot,
                                                              const struct block_part *part) {
    struct blk_header *header = &slot->memory->header;
    bool is_read = part->operation == BLOCK_READ;
    uint32_t bytes = part->segments[0].length;
    header->type = is_read ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
    header->reserved = 0;
    header->sector = part->offset / SECTOR_BYTES;
    return virtqueue_add_table(disk->queue, slot->memory->table, part->segments[0], is_read,
                               is_read ? bytes + 1 : 1, slot);
}

/* Puts one part on the ring, with this slot's header and status byte. -ENOSPC when it has no room;
 * nothing has changed then. */
static inline __attribute__((always_inline)) int put_on_ring(struct disk *disk, struct slot *slot,
                                                             const struct block_part *part) {
    bool is_prepared = part->segment_count == 1 && virtqueue_takes_tables(disk->queue) &&
                       (part->operation == BLOCK_READ || part->operation == BLOCK_WRITE);
    slot->memory->status = STATUS_UNWRITTEN;
    int error = is_prepared ? add_prepared(disk, slot, part) : add_chain(disk, slot, part);
    if (error) {
        return error;
    }
    slot->issued_ns = scheduler_now_ns();
    in_flight_add(disk, slot);
    return 0;
}

void disk_write_tables(struct disk *disk) {
    for (unsigned i = 0; i < virtqueue_size(disk->queue); i++) {
        struct slot_memory *memory = disk->slots[i].memory;
        virtqueue_table_write(memory->table,
                              (struct segment){&memory->header, sizeof memory->header},
                              (struct segment){&memory->status, 1});
    }
}

static int issue(struct disk *disk, const struct block_part *part) {
    struct slot *slot = disk->free_slots;
    if (slot == NULL) {
        return -ENOSPC;
    }
    struct slot *next_free = slot->next_free;
    int error = put_on_ring(disk, slot, part);
    if (error) {
        return error;
    }
    disk->free_slots = next_free;
    slot->request = part->request;
    slot->operation = part->operation;
    slot->flags = part->flags;
    slot->offset = part->offset;
    slot->length = part->length;
    slot->attempts = 0;
    slot->is_overtaken = false;
    return 0;
}

void disk_release_slot(struct disk *disk, struct slot *slot) {
    in_flight_remove(disk, slot);
    slot->next_free = disk->free_slots;
    disk->free_slots = slot;
}

/* The status byte and the length, both written by the device, to an errno. */
static int result_of(const struct disk *disk, const struct slot *slot, uint8_t status,
                     uint32_t written) {
    static struct log_rate rate;
    switch (status) {
    case VIRTIO_BLK_S_OK:
        /* A read that says it is complete without having written its data would hand out whatever
         * was in the buffer before. */
        if (slot->operation == BLOCK_READ && written < slot->length) {
            if (log_rate_allows(&rate)) {
                log_warning("%s: a read of %u bytes came back with %u", disk->block.name,
                            (unsigned)slot->length, (unsigned)written);
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

/* What was in flight when the device was reset, before anything else. False when the ring is full.
 */
static bool issue_again(struct disk *disk, struct block_part *part, bool *any) {
    struct slot *slot;
    while ((slot = disk->retry_first) != NULL) {
        struct slot *next = slot->newer;
        part->request = slot->request;
        part->operation = slot->operation;
        part->flags = slot->flags;
        part->offset = slot->offset;
        part->length = slot->length;
        block_queue_rebuild(&disk->block, part);
        if (put_on_ring(disk, slot, part) != 0) {
            return false;
        }
        disk->retry_first = next;
        disk->block.stats.retries++;
        *any = true;
    }
    return true;
}

static bool may_issue(const struct disk *disk) {
    return disk->retry_first != NULL || block_queue_has_work(&disk->block);
}

static bool issue_all(struct disk *disk) {
    static struct block_part part; /* large, and one task runs at a time: not on the stack */
    bool any = false;
    bool has_room = disk->retry_first == NULL || issue_again(disk, &part, &any);
    while (has_room && block_queue_has_work(&disk->block) &&
           block_queue_next(&disk->block, &part)) {
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

static bool overlap(const struct slot *a, const struct slot *b) {
    return a->offset < b->offset + b->length && b->offset < a->offset + a->length;
}

/* A write is on the disk and its client is told: older writes to the same place that are still in
 * flight must not be repeated after a reset. Costs nothing when requests complete in order. */
static void mark_overtaken(struct slot *done) {
    for (struct slot *slot = done->older; slot != NULL; slot = slot->older) {
        if (slot_writes(slot) && overlap(slot, done)) {
            slot->is_overtaken = true;
        }
    }
}

/* A write that failed and is tried again goes behind those in flight: it must not undo one. */
static bool is_followed(const struct slot *failed) {
    for (const struct slot *slot = failed->newer; slot != NULL; slot = slot->newer) {
        if (slot_writes(slot) && overlap(slot, failed)) {
            return true;
        }
    }
    return false;
}

/* True when something was taken. Bounded: a fast device completes inside our own kick, and would
 * keep this loop going for ever while others wait. */
static bool reap(struct disk *disk) {
    unsigned budget = BLOCK_REAP_BUDGET;
    uint32_t written = 0;
    struct slot *slot;
    while (budget > 0 && (slot = virtqueue_take(disk->queue, &written)) != NULL) {
        struct block_request *request = slot->request;
        uint8_t status = *(volatile uint8_t *)&slot->memory->status;
        if (status == STATUS_UNWRITTEN) {
            /* It speaks of one request and means another: that may still be written to. Stays in
             * the list of those in flight, which the reset submits again. */
            disk->has_lied = true;
            break;
        }
        int error = result_of(disk, slot, status, written);
        if (slot->older != NULL && error == 0 && slot_writes(slot)) {
            mark_overtaken(slot);
        }
        bool is_final =
            slot->is_overtaken || (error != 0 && slot_writes(slot) && is_followed(slot));
        disk_release_slot(disk, slot);
        if (is_final) {
            block_queue_fail(&disk->block, request, error);
        } else {
            block_queue_done(&disk->block, request, error);
        }
        budget--;
    }
    return budget < BLOCK_REAP_BUDGET;
}

/* The device says that something about it has changed. */
static void look_at_config(struct disk *disk) {
    uint64_t capacity_bytes = 0;
    disk->config_changed = false;
    uint32_t status = disk->transport->ops->status_read(disk->transport);
    if (status == VIRTIO_NOTHING_THERE) {
        disk_recover(disk, "nothing answers at its address", false);
    } else if ((status & VIRTIO_STATUS_NEEDS_RESET) != 0) {
        disk_recover(disk, "the device asks for a reset", false);
    } else if (disk_read_capacity(disk, &capacity_bytes) == 0 &&
               capacity_bytes != disk->block.capacity_bytes) {
        disk_resize(disk, capacity_bytes);
    }
}

static uint64_t next_deadline(const struct disk *disk) {
    return disk->oldest != NULL ? disk->oldest->issued_ns + disk->timeout_ns : DEADLINE_NEVER;
}

/* What disk_serve issues meanwhile has its deadline later than that. */
static uint64_t next_look(const struct disk *disk) {
    return disk->oldest != NULL ? next_deadline(disk) : scheduler_now_ns() + disk->timeout_ns;
}

/* Whatever is put on its ring now, and be it in place of what it has answered, it may mistake. */
static bool makes_no_sense(const struct disk *disk) {
    return disk->has_lied || virtqueue_is_broken(disk->queue);
}

/* After a round that did something: would another one at once do more? What is in flight is told of
 * by the ring, which the scheduler looks at before it sleeps. */
static bool has_more(const struct disk *disk) {
    return may_issue(disk) || virtqueue_has_completed(disk->queue);
}

static void disk_task(void *arg) {
    struct disk *disk = arg;
    for (;;) {
        if (disk->block.is_gone) {
            block_queue_fail_waiting(&disk->block, -EIO);
            (void)task_wait(&disk->wake, DEADLINE_NEVER); /* the next submission is the event */
            continue;
        }
        bool worked = false;
        if (!makes_no_sense(disk)) {
            worked = issue_all(disk);
            worked |= reap(disk);
        }
        if (disk->config_changed) {
            look_at_config(disk);
        } else if (makes_no_sense(disk)) {
            disk_recover(disk, "the device broke its ring", false);
        } else if (scheduler_now_ns() >= next_deadline(disk) &&
                   !virtqueue_has_completed(disk->queue)) {
            /* Not when an answer has come since the look: it may be the one that was due. */
            disk_recover(disk, "a request was not answered in time", true);
        } else if (worked && has_more(disk)) {
            task_yield();
        } else {
            disk->is_at_rest = true;
            (void)task_wait(&disk->wake, next_look(disk)); /* either way: look at everything */
            disk->is_at_rest = false;
        }
    }
}

static void disk_wake(struct block_device *block) {
    event_signal(&disk_of(block)->wake);
}

/* What needs a reset, or another round, is the task's; and while that does anything, all is. */
static bool disk_serve(struct block_device *block) {
    struct disk *disk = disk_of(block);
    if (!disk->is_at_rest) {
        if (block_queue_has_work(block)) {
            event_signal(&disk->wake);
        }
        return false;
    }
    if (makes_no_sense(disk)) {
        return false; /* its task has been told */
    }
    /* Either saves many registers, and has nothing to do in most rounds of a single request. */
    if (may_issue(disk) && issue_all(disk)) {
        scheduler_read_clock(); /* what took its time is done already */
    }
    bool any = virtqueue_has_completed(disk->queue) && reap(disk);
    if (makes_no_sense(disk) || has_more(disk)) {
        event_signal(&disk->wake);
    }
    return any;
}

static void disk_set_server(struct block_device *block, struct event *event) {
    disk_of(block)->source.event = event;
}

static void disk_dump(const struct block_device *block) {
    const struct disk *disk = disk_of(block);
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
    return virtqueue_get_stats(disk_of(device)->queue);
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
                                SLOT_ALIGN, &memory);
    disk->slots = error ? NULL : calloc(size, sizeof *disk->slots);
    if (disk->slots == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < size; i++) {
        disk->slots[i].memory = (struct slot_memory *)memory + i;
        disk->slots[i].next_free = i + 1 < size ? &disk->slots[i + 1] : NULL;
    }
    disk->free_slots = disk->slots;
    disk_write_tables(disk);
    return 0;
}

static int disk_probe(struct virtio_transport *transport) {
    if (!device_has_dma(transport->node, disk_dma_bytes(transport))) {
        virtio_fail(transport);
        return -ENOMEM;
    }
    struct disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL) {
        return log_error(-ENOMEM, "%s: no memory", transport->node->name);
    }
    disk->transport = transport;
    (void)snprintf(disk->name, sizeof disk->name, "vd%c", (char)('a' + disk_count)); /* it fits */
    int error = disk_negotiate(disk);
    if (!error) {
        error = disk_read_limits(disk, &disk->block.limits, &disk->block.capacity_bytes);
    }
    if (!error) {
        error = bring_up_queue(disk);
    }
    if (error) {
        goto fail;
    }
    disk->timeout_ns = disk_timeout_ns(disk);
    disk->block.name = disk->name;
    disk->block.model = "virtio-blk";
    disk->block.wake = disk_wake;
    disk->block.serve = disk_serve;
    disk->block.set_server = disk_set_server;
    disk->block.dump = disk_dump;
    disk->block.dump_device = disk_dump_device;
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
    virtqueue_watch(disk->queue, &disk->source);
    scheduler_add_source(&disk->source);
    virtio_driver_ok(transport);
    disk_announce(disk);
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

#ifdef PLATTER_HOST
void virtio_blk_forget(void) {
    disk_count = 0;
}
#endif
