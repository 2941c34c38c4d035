/* A virtio device as the appliance sees it, and the other side of its rings (VIRTIO 1.3, 2.7): what
 * the simulated disk and interface have in common. The appliance reaches it through the operations
 * of core/virtio/transport.h. */
#ifndef TESTS_SIM_DEVICE_H
#define TESTS_SIM_DEVICE_H

#include "core/virtio/transport.h"
#include "tests/sim/sim.h"

enum { DEVICE_QUEUES = 2, DEVICE_CONFIG_BYTES = 72, RING_MAX = 1024, CHAIN_PIECES_MAX = 320 };

enum { DEVICE_ISR_QUEUE = 1, DEVICE_ISR_CONFIG = 2 };

struct piece {
    uint8_t *data;
    uint32_t length;
};

/* What the driver offered: pieces that the device reads, then those that it writes. Whoever takes
 * one has put up an array of CHAIN_PIECES_MAX before. */
struct chain {
    uint16_t head;
    unsigned out_count;
    unsigned in_count;
    uint32_t out_bytes;
    uint32_t in_bytes;
    struct piece *pieces;
};

struct ring {
    bool is_enabled;
    unsigned size;
    uint8_t *descriptors;
    uint8_t *available;
    uint8_t *used;
    uint16_t seen;
    uint16_t used_index;
    uint16_t signalled; /* used index at the last decision about an interrupt */
    bool in_flight[RING_MAX];
};

struct device;

struct device_ops {
    /* The driver has notified queue `index`. */
    void (*notified)(struct device *device, unsigned index);
    /* DRIVER_OK. */
    void (*started)(struct device *device);
    /* A reset is complete: nothing of before is done any more. */
    void (*stopped)(struct device *device);
    void (*config_written)(struct device *device, size_t offset, uint8_t value);
};

struct device {
    struct virtio_transport transport; /* first: the operations cast back */
    const struct device_ops *ops;
    const char *name;
    enum virtio_device_id id;
    uint64_t offered;
    uint64_t accepted;
    uint32_t status;
    uint32_t isr;
    uint8_t config[DEVICE_CONFIG_BYTES];
    size_t config_bytes;
    uint32_t generation;
    bool is_changing; /* its configuration, and has not finished */
    bool has_untold_change;
    unsigned ring_max[DEVICE_QUEUES];
    struct ring rings[DEVICE_QUEUES];
    unsigned queues;
    uint64_t epoch; /* counts resets: events of an earlier one are void */
    bool is_vanished;
    bool is_resetting;
    bool is_stuck;       /* never finishes its reset, and goes on as before */
    unsigned slow_reset; /* permille, while faults are on */
    unsigned never_resets;
    uint64_t interrupts;
    uint64_t interrupts_spoiled; /* late or lost */
};

/* Fills in what is the same for all; registers it with the machine's interrupt controller. */
void device_set_up(struct device *device);
void device_config16(struct device *device, size_t offset, uint16_t value);
void device_config32(struct device *device, size_t offset, uint32_t value);
void device_config64(struct device *device, size_t offset, uint64_t value);
/* A change behind the driver's back: a new generation, and an interrupt. */
void device_config_changed(struct device *device);
/* Sets NEEDS_RESET, and tells. */
void device_wants_reset(struct device *device);
/* Nothing answers at its address any more. */
void device_vanish(struct device *device);
bool device_is_live(const struct device *device);

/* The next chain that the driver has made available; false when there is none. A driver that
 * breaks the rules fails the run. */
bool ring_take(struct device *device, unsigned index, struct chain *chain);
bool ring_has_more(const struct device *device, unsigned index);
/* While the device is busy it needs no notification; before it stops looking it asks for one, and
 * looks again. */
void ring_want_no_notification(struct device *device, unsigned index);
void ring_want_notification(struct device *device, unsigned index);
/* Gives a chain back, and decides about the interrupt. */
void ring_give(struct device *device, unsigned index, uint32_t id, uint32_t bytes);
/* The same in two steps, for chains that must come together: what is filled in is seen when it is
 * published. */
void ring_fill(struct device *device, unsigned index, uint32_t id, uint32_t bytes);
void ring_publish(struct device *device, unsigned index);
/* The pieces of a chain that is kept: to be freed. */
struct piece *chain_keep(const struct chain *chain);

/* Numbers in memory that the other side may change meanwhile: read and written once. */
uint16_t shared_get16(const void *at);
uint32_t shared_get32(const void *at);
uint64_t shared_get64(const void *at);
void shared_put16(void *at, uint16_t value);
void shared_put32(void *at, uint32_t value);

/* Copies between the pieces of one direction and a buffer; returns what there was. */
uint32_t chain_copy_out(const struct chain *chain, uint32_t offset, void *to, uint32_t bytes);
uint32_t chain_copy_in(const struct chain *chain, uint32_t offset, const void *from,
                       uint32_t bytes);

#endif
