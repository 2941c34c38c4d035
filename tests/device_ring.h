/* The device's side of a split virtqueue (VIRTIO 1.3, 2.7), for the devices of unit tests and
 * fuzzers: it works on the ring's memory as the specification says, and knows nothing of our
 * driver's structures. What the driver shows must make sense, whatever the device does: a rule that
 * it breaks ends the test. */
#ifndef TESTS_DEVICE_RING_H
#define TESTS_DEVICE_RING_H

#include <stdint.h>

#include "core/mem/addr.h"

/* Flags of a descriptor (2.7.5). */
enum { RING_NEXT = 1, RING_WRITE = 2, RING_INDIRECT = 4 };

struct ring_descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

/* All zeroes: the driver has not enabled it. */
struct device_ring {
    uint8_t *descriptors;
    uint8_t *available;
    uint8_t *used;
    unsigned size;
    uint16_t seen;       /* entries of the available ring that were taken */
    uint16_t used_index; /* as it was told last */
};

/* A ring that nobody has used yet, where the driver says that it is. */
struct device_ring device_ring_at(unsigned size, struct phys_addr descriptors,
                                  struct phys_addr available, struct phys_addr used);

/* Chains that are available and not taken; 0 for a ring that is not enabled. */
unsigned device_ring_waiting(const struct device_ring *ring);
/* The head of the chain that comes after `ahead` others, which stays where it is; it must be there.
 */
uint16_t device_ring_peek(const struct device_ring *ring, unsigned ahead);
/* The head of the next chain, which must be there. */
uint16_t device_ring_take(struct device_ring *ring);

/* A descriptor of the ring, or of an indirect table, and the memory that it is about. */
struct ring_descriptor device_ring_descriptor(const uint8_t *table, uint16_t index);
uint8_t *device_ring_memory(const struct ring_descriptor *descriptor);
/* Copies a chain, or that of the indirect table that it is, to `chain`; returns its length, which
 * may be `chain_max`. */
unsigned device_ring_walk(const struct device_ring *ring, uint16_t head,
                          struct ring_descriptor *chain, unsigned chain_max);

/* Gives the chain `id` back, with so many bytes written. Both may be lies. */
void device_ring_complete(struct device_ring *ring, uint32_t id, uint32_t length);
/* Says that so many more entries of the used ring are filled in, whatever is there. */
void device_ring_publish(struct device_ring *ring, uint16_t entries);

/* The driver has broken a rule: each harness ends the test in its way (tests/unit/unit.c,
 * tests/fuzz/fuzz.c). */
_Noreturn void device_ring_broken(const char *rule, const char *file, int line);

#endif
