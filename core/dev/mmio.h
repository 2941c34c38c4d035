/* Device registers: volatile, little-endian as all our devices and processors are. */
#ifndef CORE_DEV_MMIO_H
#define CORE_DEV_MMIO_H

#include <stdint.h>

#include "core/mem/addr.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "registers and rings are little-endian");

/* A device's registers, range-checked once when the device tree was read. */
struct mmio {
    volatile uint8_t *base;
    size_t bytes;
};

static inline struct mmio mmio_map(struct phys_range range) {
    return (struct mmio){pointer_of(range.start), range.length};
}

#ifdef PLATTER_HOST
/* Tests have models of devices: boot/host/mmio.c. `bytes` is 1, 2 or 4. */
uint32_t mmio_model_read(const struct mmio *mmio, size_t offset, unsigned bytes);
void mmio_model_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value);

static inline uint8_t mmio_read8(const struct mmio *mmio, size_t offset) {
    return (uint8_t)mmio_model_read(mmio, offset, 1);
}

static inline void mmio_write8(const struct mmio *mmio, size_t offset, uint8_t value) {
    mmio_model_write(mmio, offset, 1, value);
}

static inline uint16_t mmio_read16(const struct mmio *mmio, size_t offset) {
    return (uint16_t)mmio_model_read(mmio, offset, 2);
}

static inline void mmio_write16(const struct mmio *mmio, size_t offset, uint16_t value) {
    mmio_model_write(mmio, offset, 2, value);
}

static inline uint32_t mmio_read32(const struct mmio *mmio, size_t offset) {
    return mmio_model_read(mmio, offset, 4);
}

static inline void mmio_write32(const struct mmio *mmio, size_t offset, uint32_t value) {
    mmio_model_write(mmio, offset, 4, value);
}
#else
static inline uint8_t mmio_read8(const struct mmio *mmio, size_t offset) {
    return mmio->base[offset];
}

static inline void mmio_write8(const struct mmio *mmio, size_t offset, uint8_t value) {
    mmio->base[offset] = value;
}

static inline uint16_t mmio_read16(const struct mmio *mmio, size_t offset) {
    return *(volatile uint16_t *)(mmio->base + offset);
}

static inline void mmio_write16(const struct mmio *mmio, size_t offset, uint16_t value) {
    *(volatile uint16_t *)(mmio->base + offset) = value;
}

static inline uint32_t mmio_read32(const struct mmio *mmio, size_t offset) {
    return *(volatile uint32_t *)(mmio->base + offset);
}

static inline void mmio_write32(const struct mmio *mmio, size_t offset, uint32_t value) {
    *(volatile uint32_t *)(mmio->base + offset) = value;
}

#endif

#endif
