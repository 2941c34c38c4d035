/* A disk of the virtio-blk driver, between its files: virtio_blk.c (requests, the task, probing),
 * virtio_blk_config.c (what the device says of itself) and virtio_blk_recovery.c (reset).
 *
 *   free ──issue──▶ in flight (oldest … newest) ──answered──▶ free
 *                     │                 ▲
 *                     └──reset──▶ to be submitted again, in the order of before */
#ifndef BLK_VIRTIO_BLK_DISK_H
#define BLK_VIRTIO_BLK_DISK_H

#include <stddef.h>

#include "blk/queue.h"
#include "core/task/event.h"
#include "core/task/scheduler.h"
#include "core/virtio/queue.h"
#include "core/virtio/transport.h"

struct slot_memory; /* what the device reads and writes of a request besides the data */

/* A device request. */
struct slot {
    struct block_request *request; /* NULL for a flush */
    enum block_operation operation;
    unsigned flags;
    uint64_t offset;
    uint64_t length;
    uint64_t issued_ns;
    unsigned attempts; /* that were not answered in time, or not at all */
    /* A later write to the same place was answered first: repeating this one could undo it. */
    bool is_overtaken;
    struct slot_memory *memory;
    struct slot *next_free;
    struct slot *older; /* in flight, in order of issue: the oldest has the nearest deadline */
    struct slot *newer; /* also: the next to be submitted again */
};

struct disk {
    struct virtio_transport *transport;
    struct virtqueue *queue;
    struct event wake;
    struct poll_source source;
    struct slot *slots;
    struct slot *free_slots;
    struct slot *oldest;
    struct slot *newest;
    struct slot *retry_first; /* by `newer` */
    uint64_t timeout_ns;
    unsigned resets; /* since window_start_ns */
    uint64_t window_start_ns;
    bool config_changed;
    bool is_at_rest; /* its task only waits for something to do */
    bool has_lied;   /* completed what it had not done */
    char name[8];
    struct block_device block; /* last, for its statistics are large */
};

static inline struct disk *disk_of(const struct block_device *block) {
    return (struct disk *)(uintptr_t)((const char *)block - offsetof(struct disk, block));
}

static inline bool slot_writes(const struct slot *slot) {
    return slot->operation != BLOCK_READ && slot->operation != BLOCK_FLUSH &&
           slot->operation != BLOCK_GET_ID;
}

/* --- virtio_blk.c --- */

/* Takes a slot out of those in flight and puts it back to the free ones. */
void disk_release_slot(struct disk *disk, struct slot *slot);

/* Writes the descriptors that the slots keep. A device may have written over them. */
void disk_write_tables(struct disk *disk);

/* --- virtio_blk_config.c --- */

/* Resets the device and negotiates. As virtio_negotiate. */
int disk_negotiate(struct disk *disk);
/* Capacity and limits as the device tells them, with the cache mode of the configuration put into
 * force. -EINVAL, said in the log, when they make no sense. */
int disk_read_limits(struct disk *disk, struct block_limits *limits, uint64_t *capacity_bytes);
/* The device may have changed its size: says so in the log, and tells the block layer. */
void disk_resize(struct disk *disk, uint64_t capacity_bytes);
/* As the device tells it now; 0 or -ERANGE, -EAGAIN, -EINVAL. */
int disk_read_capacity(struct disk *disk, uint64_t *capacity_bytes);
/* disk.NAME.KEY, or else disk.KEY; NULL when neither is given. */
const char *disk_option(const struct disk *disk, const char *key);
uint64_t disk_timeout_ns(const struct disk *disk);
void disk_announce(const struct disk *disk);
/* Registers, features and queue. */
void disk_dump_device(const struct block_device *block);

/* --- virtio_blk_recovery.c --- */

/* Resets the device, brings it up again and arranges for what was in flight to be submitted again.
 * Waits, in the disk's task. When that fails the disk is out of service afterwards. `only_overdue`:
 * only what is past its deadline is to blame. */
void disk_recover(struct disk *disk, const char *reason, bool only_overdue);

#endif
