/* The split virtqueue (VIRTIO 1.3, 2.7). See queue.h.
 *
 *        descriptors            available ring            used ring
 *   ┌──────────────────┐   ┌───────────────────┐   ┌────────────────────────┐
 *   │ address, length, │◀──│ flags, index,     │   │ flags, index,          │
 *   │ flags, next      │   │ heads…, used_event│   │ (head, length)…,       │
 *   └──────────────────┘   └───────────────────┘   │ avail_event            │
 *        we write               we write           └───── device writes ────┘
 *
 * Indices run freely over 16 bits and are masked only to address an entry. */
#include "core/virtio/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"

/* VIRTIO 1.3, 2.7.5 to 2.7.8. */
enum {
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    AVAIL_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
    QUEUE_SIZE_MAX = 1024,
    DESCRIPTOR_ALIGN = 16,
    AVAILABLE_ALIGN = 2,
    USED_ALIGN = 4,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

struct available_ring {
    uint16_t flags;
    uint16_t index;
    uint16_t heads[]; /* then used_event */
};

struct used_entry {
    uint32_t id;
    uint32_t length;
};

struct used_ring {
    uint16_t flags;
    uint16_t index;
    struct used_entry entries[]; /* then avail_event */
};

_Static_assert(sizeof(struct descriptor) == 16, "VIRTIO 1.3, 2.7.5");
_Static_assert(sizeof(struct used_entry) == 8, "VIRTIO 1.3, 2.7.8");

/* Our own record of a descriptor: the ring's copy may be scribbled on and is never read back. */
struct chain {
    void *token;       /* NULL when no chain starts here */
    uint32_t writable; /* bytes offered to the device for writing */
    uint16_t next;     /* of the chain, or of the free list */
    uint16_t count;    /* descriptors of the chain */
    uint16_t last;     /* of the chain */
    int16_t table;     /* indirect table in use, -1 for none */
};

enum { NO_TABLE = -1 };

struct virtqueue {
    struct virtqueue *next_alive;
    struct virtio_transport *transport;
    const char *name;
    unsigned index;
    unsigned size;
    bool has_event_idx;
    bool takes_tables; /* indirect ones */
    bool is_broken;
    volatile struct descriptor *descriptors;
    volatile struct available_ring *available;
    volatile uint16_t *used_event;
    const volatile struct used_ring *used;
    const volatile uint16_t *avail_event;
    struct chain *chains;
    uint16_t free_head;
    unsigned free_count;
    uint16_t available_index; /* ours; published by the kick */
    uint16_t published_index;
    uint16_t used_seen;
    unsigned in_flight;
    volatile struct descriptor *tables;
    unsigned table_size;
    int16_t *free_tables;
    unsigned free_table_count;
    unsigned table_count;
    struct virtqueue_stats stats;
};

static size_t available_bytes(unsigned size) {
    return sizeof(struct available_ring) + 2 * (size_t)size + 2;
}

static size_t used_bytes(unsigned size) {
    return sizeof(struct used_ring) + sizeof(struct used_entry) * size + 2;
}

size_t virtqueue_dma_bytes(const struct virtqueue_config *config) {
    return sizeof(struct descriptor) * config->size + available_bytes(config->size) +
           used_bytes(config->size) +
           sizeof(struct descriptor) * config->indirect_count * config->indirect_size +
           4 * (size_t)DESCRIPTOR_ALIGN;
}

unsigned virtqueue_usable_size(struct virtio_transport *transport, unsigned index,
                               unsigned wanted) {
    unsigned size = transport->ops->queue_size_max(transport, index);
    size = size < wanted ? size : wanted;
    size = size < QUEUE_SIZE_MAX ? size : QUEUE_SIZE_MAX;
    while (size != 0 && !is_power_of_two(size)) {
        size &= size - 1;
    }
    return size;
}

static int carve_rings(struct virtqueue *queue, struct io_buffer *memory) {
    void *descriptors = NULL;
    void *available = NULL;
    void *used = NULL;
    void *tables = NULL;
    size_t table_bytes = sizeof(struct descriptor) * queue->table_count * queue->table_size;
    int error = io_buffer_carve(memory, sizeof(struct descriptor) * queue->size, DESCRIPTOR_ALIGN,
                                &descriptors);
    if (!error) {
        error = io_buffer_carve(memory, available_bytes(queue->size), AVAILABLE_ALIGN, &available);
    }
    if (!error) {
        error = io_buffer_carve(memory, used_bytes(queue->size), USED_ALIGN, &used);
    }
    if (!error && table_bytes != 0) {
        error = io_buffer_carve(memory, table_bytes, DESCRIPTOR_ALIGN, &tables);
    }
    if (error) {
        return error;
    }
    queue->descriptors = descriptors;
    queue->available = available;
    queue->used_event = &queue->available->heads[queue->size];
    queue->used = used;
    queue->avail_event =
        (const volatile uint16_t *)(const volatile void *)&queue->used->entries[queue->size];
    queue->tables = tables;
    return 0;
}

static void free_memory(struct virtqueue *queue) {
    free(queue->chains);
    free(queue->free_tables);
    free(queue);
}

/* Nothing in the rings, nothing in flight. The device does not know the queue yet, or no more. */
static void empty_rings(struct virtqueue *queue) {
    memset((void *)(uintptr_t)queue->descriptors, 0, sizeof(struct descriptor) * queue->size);
    memset((void *)(uintptr_t)queue->available, 0, available_bytes(queue->size));
    memset((void *)(uintptr_t)queue->used, 0, used_bytes(queue->size));
    queue->available_index = 0;
    queue->published_index = 0;
    queue->used_seen = 0;
    queue->is_broken = false;
    for (unsigned i = 0; i < queue->size; i++) {
        queue->chains[i] = (struct chain){.next = (uint16_t)(i + 1), .table = NO_TABLE};
    }
    queue->free_head = 0;
    queue->free_count = queue->size;
    for (unsigned i = 0; i < queue->table_count; i++) {
        queue->free_tables[i] = (int16_t)i;
    }
    queue->free_table_count = queue->table_count;
}

/* --- In every report of a panic: the state of all queues --- */

static struct virtqueue *alive;

static void dump_alive(void *unused) {
    (void)unused; /* there is one list */
    for (const struct virtqueue *queue = alive; queue != NULL; queue = queue->next_alive) {
        virtqueue_dump(queue);
    }
}

static void join_alive(struct virtqueue *queue) {
    static bool is_dump_added;
    if (!is_dump_added) {
        is_dump_added = true;
        panic_add_dump(dump_alive, NULL);
    }
    queue->next_alive = alive;
    alive = queue;
}

static void leave_alive(const struct virtqueue *queue) {
    struct virtqueue **link = &alive;
    while (*link != queue) {
        ASSERT(*link != NULL);
        link = &(*link)->next_alive;
    }
    *link = queue->next_alive;
}

static int enable(const struct virtqueue *queue) {
    return queue->transport->ops->queue_enable(queue->transport, queue->index, queue->size,
                                               phys_of(queue->descriptors),
                                               phys_of(queue->available), phys_of(queue->used));
}

struct virtqueue *virtqueue_create(struct virtio_transport *transport, struct io_buffer *memory,
                                   const struct virtqueue_config *config) {
    const char *device = transport->node->name;
    if (!is_power_of_two(config->size) || config->size > QUEUE_SIZE_MAX) {
        (void)log_error(-EINVAL, "%s: %u is no size for queue %s", device, config->size,
                        config->name); /* NULL tells */
        return NULL;
    }
    bool has_tables = virtio_has(transport, VIRTIO_F_INDIRECT_DESC);
    struct virtqueue *queue = calloc(1, sizeof *queue);
    if (queue != NULL) {
        queue->chains = calloc(config->size, sizeof *queue->chains);
        queue->free_tables = calloc(config->indirect_count + 1, sizeof *queue->free_tables);
    }
    if (queue == NULL || queue->chains == NULL || queue->free_tables == NULL) {
        (void)log_error(-ENOMEM, "%s: no memory for queue %s", device,
                        config->name); /* NULL tells */
        goto free_queue;
    }
    queue->transport = transport;
    queue->name = config->name;
    queue->index = config->index;
    queue->size = config->size;
    queue->has_event_idx = virtio_has(transport, VIRTIO_F_EVENT_IDX);
    queue->takes_tables = has_tables;
    queue->table_count = has_tables ? config->indirect_count : 0;
    queue->table_size = config->indirect_size;
    if (carve_rings(queue, memory) != 0) {
        goto free_queue;
    }
    empty_rings(queue);
    virtqueue_disarm(queue);
    if (enable(queue) != 0) {
        goto free_queue;
    }
    join_alive(queue);
    return queue;

free_queue:
    if (queue != NULL) {
        free_memory(queue);
    }
    return NULL;
}

int virtqueue_restart(struct virtqueue *queue) {
    struct virtio_transport *transport = queue->transport;
    ASSERT(queue->in_flight == 0 && queue->free_count == queue->size);
    unsigned size_max = transport->ops->queue_size_max(transport, queue->index);
    if (size_max < queue->size) {
        return log_error(-EIO, "%s: queue %s had %u entries and may have %u now",
                         transport->node->name, queue->name, queue->size, size_max);
    }
    empty_rings(queue);
    virtqueue_disarm(queue);
    return enable(queue) != 0 ? -EIO : 0;
}

void virtqueue_destroy(struct virtqueue *queue) {
    if (queue != NULL) {
        leave_alive(queue);
        free_memory(queue);
    }
}

static inline void write_descriptor(volatile struct descriptor *descriptor, const void *data,
                                    uint32_t bytes, unsigned flags, uint16_t next) {
    descriptor->address = phys_of(data).value;
    descriptor->length = bytes;
    descriptor->flags = (uint16_t)flags;
    descriptor->next = next;
}

/* A table pays when the chain is long or the ring is filling up: it makes any chain one entry. For
 * a short chain on an empty ring it would only be one more thing for the device to fetch. */
static bool should_use_table(const struct virtqueue *queue, unsigned count) {
    bool pays = count > 8 || queue->free_count < queue->size / 2 || count > queue->free_count;
    return pays && queue->free_table_count > 0 && count > 1 && count <= queue->table_size;
}

static uint16_t add_through_table(struct virtqueue *queue, const struct segment *segments,
                                  unsigned out_count, unsigned count) {
    int16_t table = queue->free_tables[--queue->free_table_count];
    volatile struct descriptor *entries = &queue->tables[(size_t)table * queue->table_size];
    unsigned last = count - 1;
    unsigned i = 0;
    for (; i < out_count && i < last; i++) {
        write_descriptor(&entries[i], segments[i].data, segments[i].length, DESC_NEXT,
                         (uint16_t)(i + 1));
    }
    for (; i < last; i++) {
        write_descriptor(&entries[i], segments[i].data, segments[i].length, DESC_WRITE | DESC_NEXT,
                         (uint16_t)(i + 1));
    }
    write_descriptor(&entries[last], segments[last].data, segments[last].length,
                     count > out_count ? DESC_WRITE : 0u, 0);
    uint16_t head = queue->free_head;
    struct chain *chain = &queue->chains[head];
    queue->free_head = chain->next;
    write_descriptor(&queue->descriptors[head], (void *)(uintptr_t)entries,
                     (uint32_t)(count * sizeof(struct descriptor)), DESC_INDIRECT, 0);
    chain->count = 1;
    chain->last = head;
    chain->table = table;
    queue->stats.indirect++;
    return head;
}

static uint16_t add_directly(struct virtqueue *queue, const struct segment *segments,
                             unsigned out_count, unsigned count) {
    uint16_t head = queue->free_head;
    uint16_t at = head;
    for (unsigned i = 0; i + 1 < count; i++) {
        uint16_t next = queue->chains[at].next;
        write_descriptor(&queue->descriptors[at], segments[i].data, segments[i].length,
                         (i >= out_count ? DESC_WRITE : 0u) | DESC_NEXT, next);
        at = next;
    }
    write_descriptor(&queue->descriptors[at], segments[count - 1].data, segments[count - 1].length,
                     count > out_count ? DESC_WRITE : 0u, 0);
    queue->free_head = queue->chains[at].next;
    queue->chains[head].count = (uint16_t)count;
    queue->chains[head].last = at;
    queue->chains[head].table = NO_TABLE;
    return head;
}

/* Puts a chain that is written into the available ring, where the next kick publishes it. */
static inline void make_available(struct virtqueue *queue, uint16_t head, uint32_t writable,
                                  void *token) {
    struct chain *chain = &queue->chains[head];
    queue->free_count -= chain->count;
    chain->token = token;
    chain->writable = writable;
    queue->available->heads[queue->available_index & (queue->size - 1)] = head;
    queue->available_index++;
    queue->in_flight++;
}

int virtqueue_add(struct virtqueue *queue, const struct segment *segments, unsigned out_count,
                  unsigned in_count, void *token) {
    unsigned count = out_count + in_count;
    ASSERT(token != NULL && count > 0);
    if (queue->is_broken) {
        return -EIO;
    }
    bool through_table = should_use_table(queue, count);
    if ((through_table ? 1 : count) > queue->free_count) {
        queue->stats.full++;
        return -ENOSPC;
    }
    uint32_t writable = 0;
    for (unsigned i = out_count; i < count; i++) {
        ASSERT(segments[i].length <= UINT32_MAX - writable);
        writable += segments[i].length;
    }
    uint16_t head = through_table ? add_through_table(queue, segments, out_count, count)
                                  : add_directly(queue, segments, out_count, count);
    make_available(queue, head, writable, token);
    return 0;
}

/* A chain of one entry; there must be one. */
static inline void take_entry(struct virtqueue *queue, const void *data, uint32_t bytes,
                              unsigned flags, uint32_t writable, void *token) {
    uint16_t head = queue->free_head;
    struct chain *chain = &queue->chains[head];
    queue->free_head = chain->next;
    write_descriptor(&queue->descriptors[head], data, bytes, flags, 0);
    chain->count = 1;
    chain->last = head;
    chain->table = NO_TABLE;
    make_available(queue, head, writable, token);
}

int virtqueue_add_writable(struct virtqueue *queue, void *data, uint32_t bytes, void *token) {
    ASSERT(token != NULL);
    if (queue->is_broken) {
        return -EIO;
    }
    if (queue->free_count == 0) {
        queue->stats.full++;
        return -ENOSPC;
    }
    take_entry(queue, data, bytes, DESC_WRITE, bytes, token);
    return 0;
}

_Static_assert(VIRTQUEUE_TABLE_BYTES == 3 * sizeof(struct descriptor), "three descriptors");

bool virtqueue_takes_tables(const struct virtqueue *queue) {
    return queue->takes_tables;
}

void virtqueue_table_write(void *table, struct segment first, struct segment last) {
    volatile struct descriptor *entries = table;
    write_descriptor(&entries[0], first.data, first.length, DESC_NEXT, 1);
    write_descriptor(&entries[1], NULL, 0, DESC_NEXT, 2);
    write_descriptor(&entries[2], last.data, last.length, DESC_WRITE, 0);
}

int virtqueue_add_table(struct virtqueue *queue, void *table, struct segment middle,
                        bool is_writable, uint32_t writable_bytes, void *token) {
    ASSERT(token != NULL);
    if (queue->is_broken) {
        return -EIO;
    }
    if (queue->free_count == 0) {
        queue->stats.full++;
        return -ENOSPC;
    }
    volatile struct descriptor *entry = (volatile struct descriptor *)table + 1;
    write_descriptor(entry, middle.data, middle.length,
                     is_writable ? DESC_NEXT | DESC_WRITE : DESC_NEXT, 2);
    take_entry(queue, table, VIRTQUEUE_TABLE_BYTES, DESC_INDIRECT, writable_bytes, token);
    queue->stats.indirect++;
    return 0;
}

/* Does the device want to be told of the entries from `before` to `now`? (VIRTIO 1.3, 2.7.10) */
static bool device_wants_notify(const struct virtqueue *queue, uint16_t before, uint16_t now) {
    if (!queue->has_event_idx) {
        return (queue->used->flags & USED_NO_NOTIFY) == 0;
    }
    uint16_t event = *queue->avail_event;
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

/* Makes visible what was added since the last time; false when that is nothing. */
static inline bool publish(struct virtqueue *queue) {
    uint16_t count = (uint16_t)(queue->available_index - queue->published_index);
    if (count == 0) {
        return false;
    }
    queue->stats.added += count;
    if (queue->in_flight > queue->stats.in_flight_peak) {
        queue->stats.in_flight_peak = queue->in_flight;
    }
    /* Descriptors and heads must be seen before the index that publishes them (2.7.13.3). */
    arch_barrier_write();
    queue->available->index = queue->available_index;
    queue->published_index = queue->available_index;
    queue->stats.kicks++;
    /* The index must be seen before we look whether the device wants to be told (2.7.13.4.1); else
     * it goes to sleep over an entry that we think it knows. */
    arch_barrier_full();
    return true;
}

static inline void notify(struct virtqueue *queue) {
    queue->stats.notifies++;
    queue->transport->ops->notify(queue->transport, queue->index);
}

void virtqueue_kick(struct virtqueue *queue) {
    uint16_t before = queue->published_index;
    if (!publish(queue)) {
        return;
    }
    uint16_t now = queue->published_index;
    bool wants = device_wants_notify(queue, before, now);
    if (!wants) {
        /* Where a fence is nothing (see scheduler.c) the look may have been too early: look again
         * behind a barrier that holds. Costs a register read, less than the notify it may save. */
        queue->transport->ops->barrier(queue->transport);
        wants = device_wants_notify(queue, before, now);
    }
    if (wants) {
        notify(queue);
    }
}

void virtqueue_kick_twice(struct virtqueue *queue) {
    if (publish(queue)) {
        notify(queue);
        notify(queue);
    }
}

bool virtqueue_has_completed(const struct virtqueue *queue) {
    return queue->used->index != queue->used_seen && !queue->is_broken;
}

uint16_t virtqueue_taken(const struct virtqueue *queue) {
    return queue->used_seen;
}

uint16_t virtqueue_completed(const struct virtqueue *queue) {
    return (uint16_t)(queue->used->index - queue->used_seen);
}

void *virtqueue_look(const struct virtqueue *queue, unsigned behind, uint32_t *length) {
    if (behind >= virtqueue_completed(queue)) {
        return NULL;
    }
    arch_barrier_read(); /* as in virtqueue_take */
    const volatile struct used_entry *entry =
        &queue->used->entries[(queue->used_seen + behind) & (queue->size - 1)];
    uint32_t id = entry->id;
    *length = entry->length;
    bool is_sound = id < queue->size && *length <= queue->chains[id].writable;
    return is_sound ? queue->chains[id].token : NULL;
}

void virtqueue_watch(const struct virtqueue *queue, struct poll_source *source) {
    source->written = &queue->used->index;
    source->taken = &queue->used_seen;
    source->event_index = queue->has_event_idx ? queue->used_event : NULL;
}

static void *break_queue(struct virtqueue *queue, const char *what, uint32_t id, uint32_t length) {
    queue->is_broken = true;
    (void)log_error(-EPROTO, "%s: queue %s: %s (id %u, length %u, used index %u)",
                    queue->transport->node->name, queue->name, what, (unsigned)id, (unsigned)length,
                    queue->used_seen); /* NULL and is_broken tell */
    return NULL;
}

static inline void *release_chain(struct virtqueue *queue, uint16_t head) {
    struct chain *chain = &queue->chains[head];
    void *token = chain->token;
    chain->token = NULL;
    if (chain->table != NO_TABLE) {
        queue->free_tables[queue->free_table_count++] = chain->table;
        chain->table = NO_TABLE;
    }
    queue->chains[chain->last].next = queue->free_head;
    queue->free_head = head;
    queue->free_count += chain->count;
    ASSERT(queue->free_count <= queue->size && queue->in_flight > 0);
    queue->in_flight--;
    return token;
}

void *virtqueue_take(struct virtqueue *queue, uint32_t *length) {
    uint16_t used_index = queue->used->index; /* read once: the device may go on */
    if (queue->is_broken || used_index == queue->used_seen) {
        return NULL;
    }
    if ((uint16_t)(used_index - queue->used_seen) > queue->in_flight) {
        return break_queue(queue, "more completions than requests", used_index, 0);
    }
    /* The index must be read before the entry it covers (2.7.14). */
    arch_barrier_read();
    const volatile struct used_entry *entry =
        &queue->used->entries[queue->used_seen & (queue->size - 1)];
    uint32_t id = entry->id;
    uint32_t written = entry->length;
    if (id >= queue->size || queue->chains[id].token == NULL) {
        return break_queue(queue, "completion of what is not in flight", id, written);
    }
    if (written > queue->chains[id].writable) {
        return break_queue(queue, "more bytes written than offered", id, written);
    }
    queue->used_seen++;
    queue->stats.completed++;
    *length = written;
    return release_chain(queue, (uint16_t)id);
}

bool virtqueue_is_broken(const struct virtqueue *queue) {
    return queue->is_broken;
}

void virtqueue_arm(struct virtqueue *queue) {
    if (queue->has_event_idx) {
        *queue->used_event = queue->used_seen;
    } else {
        queue->available->flags = 0;
    }
}

/* With event indices "no interrupt" is said by an event that lies behind: the device interrupts
 * when its index passes the event, and it has passed this one already. */
void virtqueue_disarm(struct virtqueue *queue) {
    if (queue->has_event_idx) {
        *queue->used_event = (uint16_t)(queue->used_seen - 1);
    } else {
        queue->available->flags = AVAIL_NO_INTERRUPT;
    }
}

unsigned virtqueue_room(const struct virtqueue *queue, unsigned segments) {
    return queue->free_count / segments;
}

unsigned virtqueue_in_flight(const struct virtqueue *queue) {
    return queue->in_flight;
}

unsigned virtqueue_size(const struct virtqueue *queue) {
    return queue->size;
}

void *virtqueue_abandon(struct virtqueue *queue) {
    for (unsigned i = 0; i < queue->size; i++) {
        if (queue->chains[i].token != NULL) {
            return release_chain(queue, (uint16_t)i);
        }
    }
    return NULL;
}

const struct virtqueue_stats *virtqueue_get_stats(const struct virtqueue *queue) {
    return &queue->stats;
}

void virtqueue_dump(const struct virtqueue *queue) {
    log_text("  %s status 0x%02x, queue %s: size %u, in flight %u, free %u, available %u "
             "(published %u), used %u "
             "(seen %u)%s",
             queue->transport->node->name,
             (unsigned)queue->transport->ops->status_read(queue->transport), queue->name,
             queue->size, queue->in_flight, queue->free_count, queue->available_index,
             queue->published_index, queue->used->index, queue->used_seen,
             queue->is_broken ? ", broken" : "");
}
