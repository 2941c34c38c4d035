/* CRC-32: blk/crc32.c, against its published check value and the definition, bit by bit. */
#include "blk/crc32.h"

#include "tests/unit/unit.h"

static uint32_t by_definition(const uint8_t *data, size_t bytes) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

TEST(the_check_value_is_the_published_one) {
    assert_int_equal(crc32_add(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(crc32_add(0, "", 0), 0);
}

TEST(any_length_at_any_place_gives_the_sum_of_the_definition) {
    uint8_t data[96];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)unit_random();
    }
    for (size_t at = 0; at < 16; at++) {
        for (size_t bytes = 0; bytes + at <= sizeof data; bytes++) {
            assert_int_equal(crc32_add(0, data + at, bytes), by_definition(data + at, bytes));
        }
    }
}

TEST(a_sum_can_be_continued_anywhere) {
    static const uint8_t data[] = "a sum that is made in two pieces";
    uint32_t whole = crc32_add(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++) {
        assert_int_equal(crc32_add(crc32_add(0, data, cut), data + cut, sizeof data - cut), whole);
    }
}
