/* CRC-32, four bytes at a time: table[n][b] is the sum of byte b with n zero bytes behind it. The
 * tables are made when they are first used: an appliance whose disks have no GPT never pays for
 * them.
 */
#include "blk/crc32.h"

#include "core/lib/unaligned.h"

#define POLYNOMIAL 0xedb88320u

static uint32_t table[4][256];

static void make_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? POLYNOMIAL : 0);
        }
        table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (unsigned n = 1; n < 4; n++) {
            uint32_t before = table[n - 1][byte];
            table[n][byte] = before >> 8 ^ table[0][before & 0xff];
        }
    }
}

static inline uint32_t add_word(uint32_t word) {
    return table[3][word & 0xff] ^ table[2][word >> 8 & 0xff] ^ table[1][word >> 16 & 0xff] ^
           table[0][word >> 24];
}

uint32_t crc32_add(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *at = data;
    if (table[0][1] == 0) {
        make_table();
    }
    crc = ~crc;
    while (bytes >= 8) {
        uint64_t words = unaligned_load64(at); /* little-endian, as all our processors are */
        crc = add_word(crc ^ (uint32_t)words);
        crc = add_word(crc ^ (uint32_t)(words >> 32));
        at += 8;
        bytes -= 8;
    }
    while (bytes-- > 0) {
        crc = table[0][(crc ^ *at++) & 0xff] ^ crc >> 8;
    }
    return ~crc;
}
