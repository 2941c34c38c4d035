/* What is known of a disk's content without reading it: ranges that were discarded or written as
 * zeroes, as long as nothing else was written there.
 *
 * The map is told of every request that changes something, when it is submitted and when it is
 * complete. A range becomes unknown the moment a request that changes it is submitted; it becomes
 * known when a discard or a write of zeroes is complete that no other change overlapped while it
 * was in flight, on either side: the order of such two is the device's. What is not in the map is
 * unknown, so forgetting is always right: after a restart everything is, and when the map is full,
 * the smallest of the ranges at hand is.
 *
 * It holds for a disk that only this appliance writes to. */
#ifndef BLK_ALLOCATION_H
#define BLK_ALLOCATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block_device;
struct block_request;

enum block_known {
    BLOCK_KNOWN_HOLE = 1, /* may not be allocated on the device: content undefined by itself */
    BLOCK_KNOWN_ZERO = 2, /* reads as zeroes */
};

/* [start, end), in bytes. */
struct block_extent {
    uint64_t start;
    uint64_t end;
    unsigned known; /* of block_known, never 0 */
};

struct block_allocation {
    /* Sorted, apart from each other or of different kinds where they touch. */
    struct block_extent *extents;
    unsigned count;
    unsigned extents_max;
    unsigned peak;
    uint64_t forgotten; /* pieces for which there was no room */
    /* In flight, newest first. */
    struct block_request *writes;
    struct block_request *zeroings; /* and discards */
};

/* Keeps a map of up to `extents_max` ranges for `device` from now on, which must be a whole disk
 * and have no request in flight that changes it. -ENOMEM. */
int block_allocation_enable(struct block_device *device, unsigned extents_max);
void block_allocation_disable(struct block_device *device);

/* For blk/queue.c: a request that writes, discards or zeroes was submitted, or is complete. */
void block_allocation_submitted(struct block_allocation *map, struct block_request *request);
void block_allocation_completed(struct block_allocation *map, const struct block_device *device,
                                struct block_request *request);

/* The range is unknown from now on. */
void block_allocation_forget(struct block_allocation *map, uint64_t offset, uint64_t length);

/* How far from `offset` on, `length` bytes at most, the same is known: 0 for nothing, or a set of
 * block_known, in `*known`. `length` is not 0; neither is the result. */
uint64_t block_known_at(const struct block_device *device, uint64_t offset, uint64_t length,
                        unsigned *known);

/* True when there is anything known to be zero: what a reader may ask before it looks closer. */
bool block_knows_any(const struct block_device *device);

#endif
