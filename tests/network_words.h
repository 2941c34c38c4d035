/* Words in network order, for those ends of a network that tests bring themselves: not the
 * appliance's own, which could be wrong. */
#ifndef TESTS_NETWORK_WORDS_H
#define TESTS_NETWORK_WORDS_H

#include <stdint.h>

static inline uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

/* The lower half of `value`, such as that of a sum. */
static inline void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value);
}

#endif
