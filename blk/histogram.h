/* A histogram over powers of two: a load, an add and a store for each value. */
#ifndef BLK_HISTOGRAM_H
#define BLK_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BUCKETS = 32 };

/* Bucket 0 counts zeroes, bucket n values of [2^(n-1), 2^n), the last one all that is larger. */
struct histogram {
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* How many bits the value has. */
static inline unsigned histogram_bits(uint64_t value) {
    return value != 0 ? 64u - (unsigned)__builtin_clzll(value) : 0;
}

static inline void histogram_add(struct histogram *histogram, uint64_t value) {
    unsigned bucket = histogram_bits(value);
    histogram->buckets[bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1]++;
}

/* An upper bound of the value that `percent` of all values do not exceed; 0 without values. */
static inline uint64_t histogram_percentile(const struct histogram *histogram, unsigned percent) {
    uint64_t total = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        total += histogram->buckets[i];
    }
    uint64_t wanted = (total * percent + 99) / 100;
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS && total != 0; i++) {
        seen += histogram->buckets[i];
        if (seen >= wanted) {
            return i == HISTOGRAM_BUCKETS - 1 ? UINT64_MAX : (UINT64_C(1) << i) - 1;
        }
    }
    return 0;
}

#endif
