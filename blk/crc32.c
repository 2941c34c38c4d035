/* CRC-32 with a table of 256 words, made when it is first used: an appliance whose disks have no
 * GPT never pays for it. */
#include "blk/crc32.h"

#define POLYNOMIAL 0xedb88320u

static uint32_t table[256];

static void make_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? POLYNOMIAL : 0);
        }
        table[byte] = crc;
    }
}

uint32_t crc32_add(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *at = data;
    if (table[1] == 0) {
        make_table();
    }
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc = table[(crc ^ at[i]) & 0xff] ^ crc >> 8;
    }
    return ~crc;
}
