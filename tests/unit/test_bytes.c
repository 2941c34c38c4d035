/* Routines over plain bytes, against the simplest that can do the same: core/lib/mem_*.c (which the
 * host build calls platter_memcpy and so on), net/checksum.c, core/random.c. */
#include <string.h>

#include "core/random.h"
#include "net/checksum.h"
#include "tests/unit/unit.h"

void *platter_memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *platter_memmove(void *to, const void *from, size_t bytes);
void *platter_memset(void *to, int value, size_t bytes);

enum { ROOM = 512, LENGTHS = 300 };

static uint8_t source[ROOM];
static uint8_t found[ROOM];
static uint8_t expected[ROOM];

static void fill(void) {
    for (size_t i = 0; i < ROOM; i++) {
        source[i] = (uint8_t)unit_random();
        found[i] = expected[i] = (uint8_t)unit_random();
    }
}

static void expect_equal(size_t length, size_t to, size_t from) {
    if (memcmp(found, expected, ROOM) != 0) {
        fail_msg("%zu bytes from %zu to %zu", length, from, to);
    }
}

TEST(memcpy_copies_any_length_at_any_alignment_and_no_byte_more) {
    fill();
    for (size_t length = 0; length <= LENGTHS; length++) {
        for (size_t shift = 0; shift < 64; shift++) {
            size_t to = 64 + shift % 8;
            size_t from = 64 + shift / 8;
            assert_ptr_equal(platter_memcpy(found + to, source + from, length), found + to);
            memcpy(expected + to, source + from, length);
            expect_equal(length, to, from);
        }
    }
}

TEST(memmove_moves_whatever_overlaps) {
    fill();
    for (size_t length = 0; length <= LENGTHS; length++) {
        for (size_t to = 0; to < 150; to += 1 + to / 20) {
            for (size_t from = 60; from < 92; from += 1 + length % 3) {
                assert_ptr_equal(platter_memmove(found + to, found + from, length), found + to);
                memmove(expected + to, expected + from, length);
                expect_equal(length, to, from);
            }
        }
    }
}

TEST(memset_sets_any_length_at_any_alignment_and_no_byte_more) {
    fill();
    for (size_t length = 0; length <= LENGTHS; length++) {
        for (size_t to = 64; to < 80; to++) {
            int value = (int)unit_random_below(1024) - 512; /* only its low byte counts */
            assert_ptr_equal(platter_memset(found + to, value, length), found + to);
            memset(expected + to, value, length);
            expect_equal(length, to, 0);
        }
    }
}

/* RFC 1071, on a little-endian machine: pairs of bytes, the first one low. */
static uint16_t sum_of_pairs(const uint8_t *bytes, size_t length) {
    uint32_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        sum += (uint32_t)bytes[i] << (8 * (i % 2));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

TEST(the_checksum_is_the_sum_of_pairs_at_any_length_and_alignment) {
    fill();
    for (size_t length = 0; length <= LENGTHS; length++) {
        for (size_t from = 0; from < 8; from++) {
            assert_int_equal(net_checksum(source + from, (int)length),
                             sum_of_pairs(source + from, length));
        }
    }
}

TEST(the_checksum_carries_through_ones) {
    static uint8_t ones[65536];
    memset(ones, 0xff, sizeof ones);
    static const size_t lengths[] = {1, 2, 3, 8, 31, 32, 33, 1460, 65535, 65536};
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        assert_int_equal(net_checksum(ones, (int)lengths[i]), sum_of_pairs(ones, lengths[i]));
    }
}

TEST(the_checksum_of_nothing_is_zero) {
    assert_int_equal(net_checksum(source, 0), 0);
    assert_int_equal(net_checksum(source, -1), 0);
}

TEST(random_numbers_depend_on_every_byte_of_the_seed) {
    uint32_t first = random_u32();
    assert_int_not_equal(random_u32(), first);
    random_seed("a", 1);
    uint32_t seeded = random_u32();
    random_seed("a", 1);
    assert_int_not_equal(random_u32(), seeded); /* it mixes, it does not start again */
    unsigned ones = 0;
    for (int i = 0; i < 1000; i++) {
        ones += (unsigned)__builtin_popcount(random_u32());
    }
    assert_in_range(ones, 15500, 16500);
}
