/* Virtqueues (VIRTIO 1.3, 2.6): add buffers, kick, take what is completed.
 *
 * The caller sees segments and tokens, whatever the ring's format. The private copy of every chain
 * is the truth; what the device writes into the shared ring is checked before it is used, and never
 * followed: an identifier that is not in flight or a length above what was offered breaks the
 * queue, which its driver finds out by `virtqueue_take` and answers by resetting the device. */
#ifndef CORE_VIRTIO_QUEUE_H
#define CORE_VIRTIO_QUEUE_H

#include "core/mem/io_buffer.h"
#include "core/virtio/transport.h"

/* Memory for the device: an address it can use, and bytes. */
struct segment {
    void *data;
    uint32_t length;
};

struct virtqueue;

struct virtqueue_config {
    const char *name;
    unsigned index;          /* of the device */
    unsigned size;           /* entries: a power of two, at most what the device offers */
    unsigned indirect_count; /* indirect tables; 0 for none */
    unsigned indirect_size;  /* descriptors of each */
};

/* DMA memory that a queue of this configuration carves from the node's buffer, at most. */
size_t virtqueue_dma_bytes(const struct virtqueue_config *config);

/* Bytes of ordinary memory for a queue: the caller allocates nothing, virtqueue_create does.
 * The largest power of two that is not above `wanted` nor what the device offers; 0 for no queue.
 */
unsigned virtqueue_usable_size(struct virtio_transport *transport, unsigned index, unsigned wanted);

/* Creates and enables a queue in DMA memory carved from `memory`. NULL, said in the log, when
 * memory is short or the device does not take it. */
struct virtqueue *virtqueue_create(struct virtio_transport *transport, struct io_buffer *memory,
                                   const struct virtqueue_config *config);

/* Empties the ring and enables it again, in the same memory, after the device was reset and the
 * same features negotiated. Nothing is in flight any more (virtqueue_abandon). -EIO, said in the
 * log, when the device does not take it. */
int virtqueue_restart(struct virtqueue *queue);

/* After the device was reset (it may not touch the ring any more): ordinary memory is freed. Tokens
 * in flight are the caller's to account for. */
void virtqueue_destroy(struct virtqueue *queue);

/* Offers a chain: `out_count` segments that the device reads, then `in_count` that it writes.
 * -ENOSPC when the ring has no room now; nothing is added then. `token` comes back from
 * virtqueue_take and must not be NULL. The device sees it after virtqueue_kick. */
int virtqueue_add(struct virtqueue *queue, const struct segment *segments, unsigned out_count,
                  unsigned in_count, void *token);
/* The same for a single segment that the device writes, at a third of the cost. */
int virtqueue_add_writable(struct virtqueue *queue, void *data, uint32_t bytes, void *token);

/* An indirect table of three descriptors in memory of the caller's that the device can read, of
 * which only the middle one is another each time: what the device reads first, and what it writes
 * last, stay. Written once, and again after a reset. */
#define VIRTQUEUE_TABLE_BYTES 48
#define VIRTQUEUE_TABLE_ALIGN 16
void virtqueue_table_write(void *table, struct segment first, struct segment last);
/* The same as virtqueue_add with these three, at a third of the cost. `is_writable`: the device
 * writes the middle one; `writable_bytes` is what it may write of the last two. Only where
 * virtqueue_takes_tables. The table is the device's until the token comes back. */
int virtqueue_add_table(struct virtqueue *queue, void *table, struct segment middle,
                        bool is_writable, uint32_t writable_bytes, void *token);
bool virtqueue_takes_tables(const struct virtqueue *queue);

/* Makes all that was added visible and notifies the device once, if it wants to be. */
void virtqueue_kick(struct virtqueue *queue);
/* The same, but the device is notified twice, whether it wants to be or not: for one that takes the
 * first notify as word that there will be more, and the second as the order to begin. */
void virtqueue_kick_twice(struct virtqueue *queue);

/* The next completed chain's token, and in `*length` how many bytes the device says it wrote. NULL
 * when there is none, or when the queue is broken. */
void *virtqueue_take(struct virtqueue *queue, uint32_t *length);

/* How many completions have been taken, and how many the device says that there are more: both
 * count in 16 bits. */
uint16_t virtqueue_taken(const struct virtqueue *queue);
uint16_t virtqueue_completed(const struct virtqueue *queue);
/* As virtqueue_take of the completion so many behind the next, but it stays there. NULL when there
 * is none, or what the device says about it makes no sense. */
void *virtqueue_look(const struct virtqueue *queue, unsigned behind, uint32_t *length);

/* True when the device left something to take, or broke the queue: memory loads only. */
bool virtqueue_has_completed(const struct virtqueue *queue);
/* The two indices that this compares, and what virtqueue_arm writes where it is an index, for a
 * poll source. Whoever lets the source count as taken what is still to be taken has it armed behind
 * that.
 */
struct poll_source;
void virtqueue_watch(const struct virtqueue *queue, struct poll_source *source);

/* The device wrote nonsense: nothing is taken any more. */
bool virtqueue_is_broken(const struct virtqueue *queue);

/* Interrupt for the next completion from now on, or as late as the device lets us. After arming,
 * the caller orders the store (scheduler.c does) and looks once more. */
void virtqueue_arm(struct virtqueue *queue);
void virtqueue_disarm(struct virtqueue *queue);

/* Chains that fit when each takes `segments` descriptors and no indirect table. */
unsigned virtqueue_room(const struct virtqueue *queue, unsigned segments);
unsigned virtqueue_in_flight(const struct virtqueue *queue);
unsigned virtqueue_size(const struct virtqueue *queue);

/* The token of some chain in flight, which is no longer in flight afterwards; NULL when none is
 * left. Only after the device was reset. */
void *virtqueue_abandon(struct virtqueue *queue);

struct virtqueue_stats {
    uint64_t added;
    uint64_t completed;
    uint64_t kicks;    /* asked for */
    uint64_t notifies; /* register writes */
    uint64_t indirect; /* chains that went through a table */
    uint64_t full;     /* adds refused for lack of room */
    unsigned in_flight_peak;
};
const struct virtqueue_stats *virtqueue_get_stats(const struct virtqueue *queue);

/* State of the queue in a line or two of log text. */
void virtqueue_dump(const struct virtqueue *queue);

#endif
