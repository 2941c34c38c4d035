/* The request queue of a block device: order, splitting, flush and FUA.
 *
 * The driver's task takes parts, each small enough for one device request, and reports them done;
 * the queue puts them together again. Reads and writes go in the order they came; nothing
 * overtakes. A flush does not stand in that line: it covers what is completed, so it goes at once,
 * and all flushes that wait while one is in flight share the next.
 *
 * While the device is busy, requests next in line that continue the one before on the disk join it:
 * whole ones, of the same operation, within the device's limits and BLOCK_MERGE_BYTES_MAX. An idle
 * device gets each at once. When such a device request fails, its requests are tried one by one, so
 * that each gets the answer that is its own. */
#ifndef BLK_QUEUE_H
#define BLK_QUEUE_H

#include "blk/block.h"

/* One device request's worth: a piece of a request, or several requests that follow each other. */
struct block_part {
    struct block_request *request; /* the first; NULL for a flush: it serves many */
    enum block_operation operation;
    unsigned flags;
    uint64_t offset;
    uint64_t length;
    unsigned segment_count;
    struct segment segments[BLOCK_SEGMENTS_MAX];
};

/* The next part, within the device's limits; false when there is none now. A flush that waits comes
 * first: its clients wait for durability and it costs one slot. */
bool block_queue_next(struct block_device *device, struct block_part *part);

/* Puts back the part just taken, for which the device had no room. */
void block_queue_return(struct block_device *device, const struct block_part *part);

/* The segments of a part again, of which everything else is known: after a reset. */
void block_queue_rebuild(const struct block_device *device, struct block_part *part);

/* A part of `request` (NULL: the flush) is done, with 0 or a negative errno. */
void block_queue_done(struct block_device *device, struct block_request *request, int error);

/* The same for an error that is final: what was merged is not tried one by one. */
void block_queue_fail(struct block_device *device, struct block_request *request, int error);

/* True when block_queue_next would find something. */
bool block_queue_has_work(const struct block_device *device);

/* Ends every request that is not in the device's hands with `error`. For a device that is gone. */
void block_queue_fail_waiting(struct block_device *device, int error);

#endif
