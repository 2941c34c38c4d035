/* See device_ring.h. */
#include "tests/device_ring.h"

#include <string.h>

#define RING_CHECK(rule)                                                                           \
    do {                                                                                           \
        if (!(rule)) {                                                                             \
            device_ring_broken(#rule, __FILE__, __LINE__);                                         \
        }                                                                                          \
    } while (0)

/* 2.7.5 to 2.7.8: both rings begin with flags and an index. */
enum { AT_INDEX = 2, AT_ENTRIES = 4, DESCRIPTOR_BYTES = 16, AVAILABLE_BYTES = 2, USED_BYTES = 8 };

_Static_assert(sizeof(struct ring_descriptor) == DESCRIPTOR_BYTES, "VIRTIO 1.3, 2.7.5");

struct device_ring device_ring_at(unsigned size, struct phys_addr descriptors,
                                  struct phys_addr available, struct phys_addr used) {
    return (struct device_ring){.descriptors = pointer_of(descriptors),
                                .available = pointer_of(available),
                                .used = pointer_of(used),
                                .size = size};
}

unsigned device_ring_waiting(const struct device_ring *ring) {
    uint16_t published = 0;
    if (ring->size == 0) {
        return 0;
    }
    memcpy(&published, ring->available + AT_INDEX, sizeof published);
    return (uint16_t)(published - ring->seen);
}

uint16_t device_ring_peek(const struct device_ring *ring, unsigned ahead) {
    uint16_t head = 0;
    RING_CHECK(ahead < device_ring_waiting(ring));
    size_t entry = (ring->seen + ahead) % ring->size;
    memcpy(&head, ring->available + AT_ENTRIES + AVAILABLE_BYTES * entry, sizeof head);
    RING_CHECK(head < ring->size);
    return head;
}

uint16_t device_ring_take(struct device_ring *ring) {
    uint16_t head = device_ring_peek(ring, 0);
    ring->seen++;
    return head;
}

struct ring_descriptor device_ring_descriptor(const uint8_t *table, uint16_t index) {
    struct ring_descriptor found;
    memcpy(&found, table + DESCRIPTOR_BYTES * (size_t)index, sizeof found);
    return found;
}

uint8_t *device_ring_memory(const struct ring_descriptor *descriptor) {
    return pointer_of(phys_addr(descriptor->address));
}

unsigned device_ring_walk(const struct device_ring *ring, uint16_t head,
                          struct ring_descriptor *chain, unsigned chain_max) {
    const uint8_t *table = ring->descriptors;
    struct ring_descriptor at = device_ring_descriptor(table, head);
    if ((at.flags & RING_INDIRECT) != 0) {
        RING_CHECK(at.flags == RING_INDIRECT && at.length % DESCRIPTOR_BYTES == 0);
        table = device_ring_memory(&at);
        at = device_ring_descriptor(table, 0);
    }
    for (unsigned count = 0;;) {
        RING_CHECK(count < chain_max);
        chain[count++] = at;
        if ((at.flags & RING_NEXT) == 0) {
            return count;
        }
        at = device_ring_descriptor(table, at.next);
    }
}

void device_ring_complete(struct device_ring *ring, uint32_t id, uint32_t length) {
    uint8_t *entry = ring->used + AT_ENTRIES + USED_BYTES * (size_t)(ring->used_index % ring->size);
    memcpy(entry, &id, sizeof id);
    memcpy(entry + 4, &length, sizeof length);
    device_ring_publish(ring, 1);
}

void device_ring_publish(struct device_ring *ring, uint16_t entries) {
    ring->used_index = (uint16_t)(ring->used_index + entries);
    memcpy(ring->used + AT_INDEX, &ring->used_index, sizeof ring->used_index);
}
