/* See device.h. */
#include "tests/sim/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "tests/sim/machine.h"

/* VIRTIO 1.3, 2.7.5 to 2.7.8; written down anew: the driver's own could be wrong. */
enum {
    DESCRIPTOR_BYTES = 16,
    FLAG_NEXT = 1,
    FLAG_WRITE = 2,
    FLAG_INDIRECT = 4,
    AVAILABLE_NO_INTERRUPT = 1,
    USED_NO_NOTIFY = 1,
};

#define FEATURE_INDIRECT  (UINT64_C(1) << 28)
#define FEATURE_EVENT_IDX (UINT64_C(1) << 29)
#define FEATURE_VERSION_1 (UINT64_C(1) << 32)

#define SLOW_RESET_NS_MAX (2000 * UINT64_C(1000000))

uint16_t shared_get16(const void *at) {
    return *(const volatile uint16_t *)at;
}

uint32_t shared_get32(const void *at) {
    return *(const volatile uint32_t *)at;
}

uint64_t shared_get64(const void *at) {
    return *(const volatile uint64_t *)at;
}

void shared_put16(void *at, uint16_t value) {
    *(volatile uint16_t *)at = value;
}

void shared_put32(void *at, uint32_t value) {
    *(volatile uint32_t *)at = value;
}

static struct device *of(struct virtio_transport *transport) {
    return (struct device *)transport;
}

/* --- Interrupts --------------------------------------------------------------------------------
 */

static void raise_late(void *arg, uint64_t isr) {
    struct device *device = arg;
    device->isr |= (uint32_t)isr;
}

/* False when it is lost. */
static bool interrupt(struct device *device, uint32_t isr) {
    device->interrupts++;
    if (fault_strikes(plan.interrupt_lost)) {
        device->interrupts_spoiled++;
        trace("device %llu: interrupt %llu is lost", device->id, isr, 0, 0);
        return false;
    } else if (fault_strikes(plan.interrupt_late)) {
        device->interrupts_spoiled++;
        world_after(luck_spread(1000, 50 * UINT64_C(1000000)), raise_late, device, isr);
    } else {
        device->isr |= isr;
    }
    return true;
}

/* --- Configuration -----------------------------------------------------------------------------
 */

void device_config16(struct device *device, size_t offset, uint16_t value) {
    memcpy(&device->config[offset], &value, sizeof value);
}

void device_config32(struct device *device, size_t offset, uint32_t value) {
    memcpy(&device->config[offset], &value, sizeof value);
}

void device_config64(struct device *device, size_t offset, uint64_t value) {
    memcpy(&device->config[offset], &value, sizeof value);
}

void device_config_changed(struct device *device) {
    device->generation++;
    device->has_untold_change = !interrupt(device, DEVICE_ISR_CONFIG);
}

void device_wants_reset(struct device *device) {
    trace("device %llu: needs a reset", device->id, 0, 0, 0);
    device->status |= VIRTIO_STATUS_NEEDS_RESET;
    (void)interrupt(device, DEVICE_ISR_CONFIG); /* a request that is not answered tells, too */
}

void device_vanish(struct device *device) {
    trace("device %llu: vanishes", device->id, 0, 0, 0);
    device->is_vanished = true;
    device->epoch++;
    device->ops->stopped(device);
    device->isr |= DEVICE_ISR_CONFIG;
}

bool device_is_live(const struct device *device) {
    return !device->is_vanished && !device->is_resetting &&
           (device->status & VIRTIO_STATUS_DRIVER_OK) != 0 &&
           (device->status & VIRTIO_STATUS_NEEDS_RESET) == 0;
}

/* --- What the driver does ----------------------------------------------------------------------
 */

static uint32_t status_read(struct virtio_transport *transport) {
    world_moment();
    return of(transport)->is_vanished ? VIRTIO_NOTHING_THERE : of(transport)->status;
}

static void finish_reset(struct device *device) {
    device->is_resetting = false;
    device->status = 0;
    device->isr = 0;
    device->accepted = 0;
    memset(device->rings, 0, sizeof device->rings);
    device->epoch++;
    trace("device %llu: is reset", device->id, 0, 0, 0);
    device->ops->stopped(device);
}

static void finish_reset_late(void *arg, uint64_t epoch) {
    struct device *device = arg;
    if (device->epoch == epoch && device->is_resetting) {
        finish_reset(device);
    }
}

/* Until a reset is complete the device goes on as before (VIRTIO 1.3, 2.4). */
static void begin_reset(struct device *device) {
    bool was_live = (device->status & VIRTIO_STATUS_DRIVER_OK) != 0;
    trace("device %llu: reset begins, status 0x%llx", device->id, device->status, 0, 0);
    if (device->is_stuck || (was_live && fault_strikes(device->never_resets))) {
        device->is_stuck = true;
        trace("device %llu: will never finish it", device->id, 0, 0, 0);
    } else if (was_live && fault_strikes(device->slow_reset)) {
        device->is_resetting = true;
        world_after(luck_spread(10000, SLOW_RESET_NS_MAX), finish_reset_late, device,
                    device->epoch);
    } else {
        finish_reset(device);
    }
}

static void check_features(struct device *device) {
    if ((device->accepted & ~device->offered) != 0 || (device->accepted & FEATURE_VERSION_1) == 0) {
        sim_fail("%s: the driver accepts 0x%llx of 0x%llx", device->name,
                 (unsigned long long)device->accepted, (unsigned long long)device->offered);
    }
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    struct device *device = of(transport);
    world_moment();
    if (device->is_vanished) {
        return;
    }
    if (status == 0) {
        if (!device->is_resetting) {
            begin_reset(device);
        }
        return;
    }
    bool is_new = (status & ~device->status & VIRTIO_STATUS_DRIVER_OK) != 0;
    if ((status & ~device->status & VIRTIO_STATUS_FEATURES_OK) != 0) {
        check_features(device);
    }
    device->status |= status;
    if (is_new && (device->status & VIRTIO_STATUS_FAILED) == 0) {
        SIM_CHECK((device->status & VIRTIO_STATUS_FEATURES_OK) != 0);
        device->ops->started(device);
    }
}

static uint64_t features_read(struct virtio_transport *transport) {
    world_moment();
    return of(transport)->is_vanished ? UINT64_MAX : of(transport)->offered;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    struct device *device = of(transport);
    world_moment();
    SIM_CHECK((device->status & VIRTIO_STATUS_FEATURES_OK) == 0 || device->is_vanished);
    device->accepted = features;
    device->has_untold_change = false; /* the driver reads all of it anew */
}

static unsigned queue_size_max(struct virtio_transport *transport, unsigned index) {
    const struct device *device = of(transport);
    world_moment();
    return index < device->queues ? device->ring_max[index] : 0;
}

static int queue_enable(struct virtio_transport *transport, unsigned index, unsigned size,
                        struct phys_addr descriptors, struct phys_addr driver_area,
                        struct phys_addr device_area) {
    struct device *device = of(transport);
    world_moment();
    if (device->is_vanished) {
        return -EIO;
    }
    struct ring *ring = &device->rings[index];
    SIM_CHECK(index < device->queues && size <= device->ring_max[index] && size >= 1 &&
              (size & (size - 1)) == 0);
    SIM_CHECK((device->status & VIRTIO_STATUS_FEATURES_OK) != 0 &&
              (device->status & VIRTIO_STATUS_DRIVER_OK) == 0 && !ring->is_enabled);
    *ring = (struct ring){.is_enabled = true,
                          .size = size,
                          .descriptors = pointer_of(descriptors),
                          .available = pointer_of(driver_area),
                          .used = pointer_of(device_area)};
    SIM_CHECK(descriptors.value % 16 == 0 && driver_area.value % 2 == 0 &&
              device_area.value % 4 == 0);
    SIM_CHECK(machine_is_memory(ring->descriptors, DESCRIPTOR_BYTES * (size_t)size) &&
              machine_is_memory(ring->available, 6 + 2 * (size_t)size) &&
              machine_is_memory(ring->used, 6 + 8 * (size_t)size));
    return 0;
}

static void notify(struct virtio_transport *transport, unsigned index) {
    struct device *device = of(transport);
    world_moment();
    if (device->is_vanished) {
        return;
    }
    SIM_CHECK((device->status & VIRTIO_STATUS_DRIVER_OK) != 0 && index < device->queues);
    if (device_is_live(device)) {
        device->ops->notified(device, index);
    }
}

/* Word by word: the configuration may change in between. */
static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    const struct device *device = of(transport);
    uint8_t *out = buf;
    SIM_CHECK(offset + bytes <= device->config_bytes);
    for (size_t i = 0; i < bytes; i++) {
        if (i % 4 == 0) {
            world_moment();
        }
        out[i] = device->is_vanished ? 0xff : device->config[offset + i];
    }
}

static void config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    struct device *device = of(transport);
    world_moment();
    SIM_CHECK(offset < device->config_bytes);
    if (!device->is_vanished && device->ops->config_written != NULL) {
        device->ops->config_written(device, offset, value);
    }
}

static uint32_t config_generation(struct virtio_transport *transport) {
    struct device *device = of(transport);
    world_moment();
    device->generation += device->is_changing;
    return device->is_vanished ? VIRTIO_NOTHING_THERE : device->generation;
}

static size_t config_bytes(struct virtio_transport *transport) {
    return of(transport)->config_bytes;
}

static void barrier(struct virtio_transport *transport) {
    (void)transport; /* any access is one */
    world_moment();
}

static void dump(struct virtio_transport *transport, unsigned index) {
    log_text("  %s: simulated, queue %u", of(transport)->name, index);
}

static const struct virtio_transport_ops transport_ops = {
    .status_read = status_read,
    .status_write = status_write,
    .features_read = features_read,
    .features_write = features_write,
    .queue_size_max = queue_size_max,
    .queue_enable = queue_enable,
    .notify = notify,
    .config_read = config_read,
    .config_write8 = config_write8,
    .config_generation = config_generation,
    .config_bytes = config_bytes,
    .barrier = barrier,
    .dump = dump,
};

void device_set_up(struct device *device) {
    device->transport.ops = &transport_ops;
    device->transport.device_id = device->id;
    machine_add_device(device);
}

/* --- Rings -------------------------------------------------------------------------------------
 */

bool ring_has_more(const struct device *device, unsigned index) {
    const struct ring *ring = &device->rings[index];
    return ring->is_enabled && shared_get16(ring->available + 2) != ring->seen;
}

static void add_piece(const struct device *device, struct chain *chain, const uint8_t *descriptor,
                      unsigned flags) {
    struct piece piece = {(uint8_t *)(uintptr_t)shared_get64(descriptor),
                          shared_get32(descriptor + 8)};
    if (chain->out_count + chain->in_count == CHAIN_PIECES_MAX || piece.length == 0 ||
        !machine_is_memory(piece.data, piece.length)) {
        sim_fail("%s: descriptor of %u bytes at %p is not the driver's to give", device->name,
                 (unsigned)piece.length, (void *)piece.data);
    }
    chain->pieces[chain->out_count + chain->in_count] = piece;
    if ((flags & FLAG_WRITE) != 0) {
        chain->in_count++;
        chain->in_bytes += piece.length;
    } else {
        SIM_CHECK(chain->in_count == 0); /* 2.7.4.2: readable ones first */
        chain->out_count++;
        chain->out_bytes += piece.length;
    }
}

static void read_chain(const struct device *device, const uint8_t *table, unsigned entries,
                       unsigned first, bool is_indirect, struct chain *chain) {
    unsigned at = first;
    for (unsigned steps = 0;; steps++) {
        SIM_CHECK(at < entries && steps < entries);
        const uint8_t *descriptor = table + (size_t)at * DESCRIPTOR_BYTES;
        unsigned flags = shared_get16(descriptor + 12);
        if ((flags & FLAG_INDIRECT) != 0) {
            uint32_t bytes = shared_get32(descriptor + 8);
            const uint8_t *inner = (const uint8_t *)(uintptr_t)shared_get64(descriptor);
            SIM_CHECK(!is_indirect && (device->accepted & FEATURE_INDIRECT) != 0 &&
                      (flags & FLAG_NEXT) == 0 && bytes % DESCRIPTOR_BYTES == 0 &&
                      machine_is_memory(inner, bytes));
            read_chain(device, inner, bytes / DESCRIPTOR_BYTES, 0, true, chain);
            return;
        }
        add_piece(device, chain, descriptor, flags);
        if ((flags & FLAG_NEXT) == 0) {
            return;
        }
        at = shared_get16(descriptor + 14);
    }
}

static void put_avail_event(struct ring *ring, uint16_t value) {
    shared_put16(ring->used + 4 + 8 * (size_t)ring->size, value);
}

void ring_want_no_notification(struct device *device, unsigned index) {
    struct ring *ring = &device->rings[index];
    if ((device->accepted & FEATURE_EVENT_IDX) == 0) {
        shared_put16(ring->used, USED_NO_NOTIFY);
    } /* else: the event stays where it is, behind */
}

void ring_want_notification(struct device *device, unsigned index) {
    struct ring *ring = &device->rings[index];
    if ((device->accepted & FEATURE_EVENT_IDX) != 0) {
        put_avail_event(ring, ring->seen);
    } else {
        shared_put16(ring->used, 0);
    }
}

bool ring_take(struct device *device, unsigned index, struct chain *chain) {
    struct ring *ring = &device->rings[index];
    if (!ring_has_more(device, index)) {
        return false;
    }
    uint16_t available = shared_get16(ring->available + 2);
    if ((uint16_t)(available - ring->seen) > ring->size) {
        sim_fail("%s: %u entries made available in a ring of %u", device->name,
                 (uint16_t)(available - ring->seen), ring->size);
    }
    uint16_t head = shared_get16(ring->available + 4 + 2 * (size_t)(ring->seen % ring->size));
    if (head >= ring->size || ring->in_flight[head]) {
        sim_fail("%s: chain %u is not there or in flight already", device->name, head);
    }
    ring->seen++;
    ring->in_flight[head] = true;
    chain->head = head;
    chain->out_count = 0;
    chain->in_count = 0;
    chain->out_bytes = 0;
    chain->in_bytes = 0;
    read_chain(device, ring->descriptors, ring->size, head, false, chain);
    return true;
}

/* VIRTIO 1.3, 2.7.10: has the index passed the event? */
static bool has_passed(uint16_t event, uint16_t now, uint16_t before) {
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static void decide_interrupt(struct device *device, struct ring *ring) {
    bool wanted = (shared_get16(ring->available) & AVAILABLE_NO_INTERRUPT) == 0;
    if ((device->accepted & FEATURE_EVENT_IDX) != 0) {
        uint16_t event = shared_get16(ring->available + 4 + 2 * (size_t)ring->size);
        wanted = has_passed(event, ring->used_index, ring->signalled);
    }
    ring->signalled = ring->used_index;
    if (wanted) {
        (void)interrupt(device, DEVICE_ISR_QUEUE); /* the ring tells what it would have told */
    }
}

void ring_fill(struct device *device, unsigned index, uint32_t id, uint32_t bytes) {
    struct ring *ring = &device->rings[index];
    uint8_t *entry = ring->used + 4 + 8 * (size_t)(ring->used_index % ring->size);
    shared_put32(entry, id);
    shared_put32(entry + 4, bytes);
    ring->used_index++;
    if (id < ring->size) {
        ring->in_flight[id] = false;
    }
}

void ring_publish(struct device *device, unsigned index) {
    struct ring *ring = &device->rings[index];
    shared_put16(ring->used + 2, ring->used_index);
    decide_interrupt(device, ring);
}

void ring_give(struct device *device, unsigned index, uint32_t id, uint32_t bytes) {
    ring_fill(device, index, id, bytes);
    ring_publish(device, index);
}

/* --- Chains ------------------------------------------------------------------------------------
 */

struct piece *chain_keep(const struct chain *chain) {
    size_t bytes = (chain->out_count + chain->in_count) * sizeof *chain->pieces;
    struct piece *pieces = malloc(bytes);
    SIM_CHECK(pieces != NULL);
    memcpy(pieces, chain->pieces, bytes);
    return pieces;
}

static uint32_t copy(const struct piece *pieces, unsigned count, uint32_t offset, uint8_t *out,
                     const uint8_t *in, uint32_t bytes) {
    uint32_t done = 0;
    for (unsigned i = 0; i < count && done < bytes; i++) {
        if (offset >= pieces[i].length) {
            offset -= pieces[i].length;
            continue;
        }
        uint32_t run = pieces[i].length - offset;
        run = run < bytes - done ? run : bytes - done;
        if (out != NULL) {
            memcpy(out + done, pieces[i].data + offset, run);
        } else {
            memcpy(pieces[i].data + offset, in + done, run);
        }
        done += run;
        offset = 0;
    }
    return done;
}

uint32_t chain_copy_out(const struct chain *chain, uint32_t offset, void *to, uint32_t bytes) {
    return copy(chain->pieces, chain->out_count, offset, to, NULL, bytes);
}

uint32_t chain_copy_in(const struct chain *chain, uint32_t offset, const void *from,
                       uint32_t bytes) {
    return copy(chain->pieces + chain->out_count, chain->in_count, offset, NULL, from, bytes);
}
