/* SplitMix64 with a seeded increment (Steele, Lea,
 * Flood: "Fast splittable pseudorandom number generators", 2014). Not for keys: those come from the
 * host or from virtio-rng. */
#include "core/random.h"

static uint64_t state = UINT64_C(0x853c49e6748fea9b);
static uint64_t increment = UINT64_C(0x9e3779b97f4a7c15);

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void random_seed(const void *bytes, size_t length) {
    const uint8_t *byte = bytes;
    for (size_t i = 0; i < length; i++) {
        state = mix(state ^ byte[i]) + increment;
        increment = (increment << 9 | increment >> 55) | 1; /* odd: the sequence keeps its period */
    }
}

uint32_t random_u32(void) {
    state += increment;
    return (uint32_t)(mix(state) >> 32);
}
