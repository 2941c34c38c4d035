/* Block devices and requests: what a server, a partition or a test needs of a disk.
 *
 * A driver fills in `struct block_device`, registers it, and takes work from its queue (queue.h).
 * Everything is asynchronous: a request is submitted and its callback called once. */
#ifndef BLK_BLOCK_H
#define BLK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "blk/allocation.h"
#include "blk/histogram.h"
#include "config/limits.h"
#include "core/virtio/queue.h" /* struct segment */

struct event;

enum block_operation {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,
    BLOCK_DISCARD,
    BLOCK_WRITE_ZEROES,
    BLOCK_SECURE_ERASE, /* discard that leaves nothing to find, copies included */
    BLOCK_GET_ID,       /* reads the serial: offset 0, one segment of BLOCK_ID_BYTES */
    BLOCK_OPERATIONS,
};

/* What BLOCK_GET_ID reads; a shorter serial ends with a zero byte, one that long does not. */
enum { BLOCK_ID_BYTES = 20 };

enum block_flag {
    BLOCK_FUA = 1,   /* write, write zeroes, discard: durable before completion */
    BLOCK_UNMAP = 2, /* write zeroes: may deallocate, as long as it reads as zero */
};

/* Owned by the device from block_submit until `complete` is called. */
struct block_request {
    enum block_operation operation;
    unsigned flags;
    uint64_t offset; /* bytes, a multiple of the block size; 0 for a flush */
    uint64_t length; /* bytes, likewise; what the segments of a read or write add up to */
    /* Reads and writes; stay valid until completion. Either every segment is whole blocks, or there
     * are no more than block_segments_max of them: so that whatever the device's limits are, each
     * device request can be whole blocks too. */
    const struct segment *segments;
    unsigned segment_count;
    /* Called once, from the device's task or from block_serve, with `status` set. May submit new
     * requests; must not wait. */
    void (*complete)(struct block_request *request);
    void *owner; /* the submitter's own */
    int status;  /* 0 or a negative errno, when complete */

    /* The queue's own. */
    struct block_request *next;
    uint64_t issued;     /* bytes handed to the device so far */
    unsigned segment_at; /* where the next part starts: segment and byte within it */
    uint32_t segment_offset;
    unsigned parts_in_flight;
    bool is_issued;               /* all parts handed out */
    bool stands_alone;            /* failed together with others: is not merged again */
    struct block_request *merged; /* follows it in the same device request */
    uint64_t base_bytes;          /* of the partition it was submitted to; part of `offset` now */
    uint64_t submitted_ns;
    /* The allocation map's own (allocation.h), while a request that changes something is in flight.
     */
    struct block_request *changing_next;
    struct block_request **changing_link;
    bool is_disturbed;
};

/* What the device can do, in bytes. Set before registration; afterwards only by its driver, which
 * then calls block_device_changed. */
struct block_limits {
    uint32_t block_bytes;          /* logical: what offsets and lengths are multiples of */
    uint32_t physical_block_bytes; /* at least the logical one */
    uint32_t optimal_io_bytes;     /* 0 when not told, as the next two */
    uint32_t minimum_io_bytes;     /* suggested, below which a transfer costs more */
    uint32_t alignment_bytes;      /* offset of the first aligned block */
    uint32_t segments_max;         /* of one device request */
    uint32_t segment_bytes_max;
    uint64_t discard_bytes_max;   /* of one device request; 0 when not offered */
    uint32_t discard_align_bytes; /* where a discard is best cut; 0 when not told */
    unsigned discard_leaves;      /* of block_known: what is known of a range after a discard */
    uint64_t zeroes_bytes_max;    /* 0 when not offered: zeroes are written then */
    uint64_t erase_bytes_max;     /* secure erase; 0 when not offered */
    uint32_t erase_align_bytes;
    bool zeroes_may_unmap;
    bool is_read_only;
    bool has_id;
    bool has_cache;        /* writes are durable only after a flush */
    bool is_write_through; /* every write is flushed before it is done, though there is a cache */
    /* Geometry as the device tells it, 0 when it does not; nobody computes with it. */
    uint16_t cylinders;
    uint8_t heads;
    uint8_t sectors;
};

struct block_stats {
    uint64_t operations[BLOCK_OPERATIONS]; /* requests completed */
    uint64_t bytes[BLOCK_OPERATIONS];
    uint64_t errors[BLOCK_OPERATIONS];
    uint64_t parts;          /* device requests issued: more than operations when split */
    uint64_t merges;         /* requests that joined another's device request */
    uint64_t merges_undone;  /* requests that failed together and were tried one by one */
    uint64_t device_flushes; /* fewer than flushes asked for when they share one */
    uint64_t resets;         /* of the device while it was in service */
    uint64_t timeouts;       /* device requests that were not answered in time */
    uint64_t retries;        /* device requests submitted again after a reset */
    uint64_t resizes;
    unsigned in_flight; /* requests submitted and not completed */
    unsigned in_flight_peak;
    struct histogram latency_us[BLOCK_OPERATIONS];
};

struct block_device {
    const char *name;        /* vda, vdb, ..., ram0; of a partition vda1, ... */
    const char *model;       /* for descriptions: "virtio-blk", "RAM disk", "partition 1 of vda" */
    uint64_t capacity_bytes; /* may change while requests are under way */
    struct block_limits limits;
    bool is_gone;                        /* taken out of service: every request fails with -EIO */
    struct block_allocation *allocation; /* NULL: nothing is known of the content */

    /* The driver's side: called when there is work in the queue. */
    void (*wake)(struct block_device *device);
    /* For block_serve: does now, in whose task ever, what its own task would be woken for, as far
     * as that needs no waiting; the rest it wakes its task for. True when requests were completed.
     * May be NULL: then `wake` is called. */
    bool (*serve)(struct block_device *device);
    /* For block_set_server; may be NULL. */
    void (*set_server)(struct block_device *device, struct event *event);
    /* State of its rings in a line or two, and all that there is: registers, features, queues. May
     * be NULL. */
    void (*dump)(const struct block_device *device);
    void (*dump_device)(const struct block_device *device);

    /* A partition: requests go to `parent`, that much further behind. Not in the list of devices.
     */
    struct block_device *parent;
    uint64_t start_bytes;
    uint64_t length_bytes; /* as the table says; the capacity is less when the disk has shrunk */
    /* A disk's partitions. */
    struct block_device *first_partition;
    struct block_device *next_partition;

    /* The queue's own, see queue.h. */
    unsigned parts_in_flight;
    struct block_request *waiting_first;
    struct block_request *waiting_last;
    struct block_request *flush_waiting;
    struct block_request *flush_waiting_last;
    struct block_request *flush_active; /* all served by the device flush now in flight */
    bool is_flushing;

    struct block_stats stats; /* last: it is large, and what lies behind costs more to reach */
};

/* Puts a device into the list; -ENOSPC past BLOCK_DEVICES_MAX, said in the log. */
int block_register(struct block_device *device);

/* Takes the device that was registered last out again: its driver could not go on. */
void block_unregister(struct block_device *device);

/* In order of registration; NULL past the last. */
struct block_device *block_device_at(unsigned index);
struct block_device *block_device_find(const char *name);

/* Adds a partition of `length` bytes at `start`, whole blocks within the disk, which takes requests
 * like a disk of its own. `name` and `model` must outlive it. NULL without memory. */
struct block_device *block_partition_create(struct block_device *disk, const char *name,
                                            const char *model, uint64_t start, uint64_t length);

/* For drivers: capacity, limits or is_gone have changed; partitions follow. */
void block_device_changed(struct block_device *disk);

/* 0 when the request makes sense for the device as it is now, else -EINVAL (alignment, nothing to
 * do), -ERANGE (past the end), -EROFS (read only), -ENOTSUP (not offered). The one validator: what
 * it lets through is only asserted behind it. */
int block_check(const struct block_device *device, enum block_operation operation, uint64_t offset,
                uint64_t length);

/* Segments of any shape that a request may have for this device. */
static inline unsigned block_segments_max(const struct block_device *device) {
    return device->limits.segments_max < BLOCK_SEGMENTS_MAX ? device->limits.segments_max
                                                            : BLOCK_SEGMENTS_MAX;
}

/* Hands over a request that block_check accepts, or accepted before the device shrank: it then ends
 * with -ERANGE. Never blocks, never fails for lack of room: it waits in order. Overlapping requests
 * in flight are unordered; a flush covers what was completed before it was submitted. */
void block_submit(struct block_device *device, struct block_request *request);

/* From here on requests that are submitted only wait in line. Until block_serve, which the same
 * task calls, without waiting for anything in between. */
void block_gather(void);
/* Begins with all that has been gathered and completes all that has been answered, in the caller's
 * task, which saves a change to each disk's own and back. True when something was completed. */
bool block_serve(void);
/* From here on `event`, whose task then calls block_serve, is signalled when a device has answered,
 * in place of the device's own. */
void block_set_server(struct event *event);

const char *block_operation_name(enum block_operation operation);

/* A line or two of statistics through log_text, and the driver's dump. */
void block_dump(const struct block_device *device);

/* All that there is to know of it: block_dump, latencies bucket by bucket, limits, registers. */
void block_dump_device(const struct block_device *device);

#endif
