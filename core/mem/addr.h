/* Addresses, ranges and sums that cannot wrap unnoticed.
 *
 * A physical address is what a device or the device tree speaks of; a pointer is what code uses.
 * The appliance maps memory one to one, yet the two are different types, so that a value from
 * outside cannot become a pointer by accident: only the two functions at the end convert. */
#ifndef CORE_MEM_ADDR_H
#define CORE_MEM_ADDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES ((size_t)4096)

struct phys_addr {
    uint64_t value;
};

/* Half open: [start, start + length). */
struct phys_range {
    struct phys_addr start;
    uint64_t length;
};

static inline struct phys_addr phys_addr(uint64_t value) {
    return (struct phys_addr){value};
}

static inline bool is_power_of_two(uint64_t value) {
    return value != 0 && (value & (value - 1)) == 0;
}

/* True, and the sum in `sum`, when a + b does not wrap. */
static inline bool add_fits(uint64_t a, uint64_t b, uint64_t *sum) {
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool multiply_fits(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}

/* `align` is a power of two. */
static inline uint64_t align_down(uint64_t value, uint64_t align) {
    return value & ~(align - 1);
}

/* True, and the result in `aligned`, when rounding up does not wrap. */
static inline bool align_up_fits(uint64_t value, uint64_t align, uint64_t *aligned) {
    uint64_t sum;
    if (!add_fits(value, align - 1, &sum)) {
        return false;
    }
    *aligned = align_down(sum, align);
    return true;
}

/* For sizes that are ours and small: the caller knows that it cannot wrap. */
static inline size_t align_up(size_t value, size_t align) {
    return (value + align - 1) & ~(align - 1);
}

/* True when [offset, offset + length) lies within `size`. No sum that could wrap. */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t size) {
    return length <= size && offset <= size - length;
}

/* The end of a range that phys_range_is_valid. */
static inline uint64_t phys_range_end(struct phys_range range) {
    return range.start.value + range.length;
}

/* Not empty, and its end is an address. */
static inline bool phys_range_is_valid(struct phys_range range) {
    uint64_t end;
    return range.length != 0 && add_fits(range.start.value, range.length, &end);
}

static inline bool phys_ranges_overlap(struct phys_range a, struct phys_range b) {
    return a.start.value < phys_range_end(b) && b.start.value < phys_range_end(a);
}

static inline struct phys_addr phys_of(const volatile void *pointer) {
    return phys_addr((uint64_t)(uintptr_t)pointer);
}

static inline void *pointer_of(struct phys_addr address) {
    return (void *)(uintptr_t)address.value;
}

#endif
