/* memset by 64-bit stores; see mem_copy.c for why this is not left to the C library. */
#include <stddef.h>
#include <stdint.h>

void *memset(void *to, int value, size_t bytes);

typedef uint64_t word64 __attribute__((may_alias));

void *memset(void *to, int value, size_t bytes) {
    uint8_t *at = to;
    uint64_t pattern = UINT64_C(0x0101010101010101) * (uint8_t)value;
    while (bytes > 0 && ((uintptr_t)at & 7) != 0) {
        *at++ = (uint8_t)value;
        bytes--;
    }
    for (word64 *word = (word64 *)(void *)at; bytes >= 64; bytes -= 64) {
        for (int i = 0; i < 8; i++) {
            *word++ = pattern;
        }
        at += 64;
    }
    while (bytes >= 8) {
        *(word64 *)(void *)at = pattern;
        at += 8;
        bytes -= 8;
    }
    while (bytes > 0) {
        *at++ = (uint8_t)value;
        bytes--;
    }
    return to;
}
