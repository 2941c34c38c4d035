/* memcpy and memmove for memory of any alignment. Plain C library versions fall back to bytes when
 * source and destination differ in alignment, which is ten times slower under emulation; and TCP
 * payload never starts at a multiple of eight. 64-bit accesses at any address run at full speed on
 * every processor we support, so only the ends are done in smaller pieces. */
#include <stddef.h>
#include <stdint.h>

#include "core/lib/unaligned.h"

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);

static void copy_up(uint8_t *to, const uint8_t *from, size_t bytes) {
    while (bytes >= 64) {
        uint64_t a = unaligned_load64(from);
        uint64_t b = unaligned_load64(from + 8);
        uint64_t c = unaligned_load64(from + 16);
        uint64_t d = unaligned_load64(from + 24);
        uint64_t e = unaligned_load64(from + 32);
        uint64_t f = unaligned_load64(from + 40);
        uint64_t g = unaligned_load64(from + 48);
        uint64_t h = unaligned_load64(from + 56);
        unaligned_store64(to, a);
        unaligned_store64(to + 8, b);
        unaligned_store64(to + 16, c);
        unaligned_store64(to + 24, d);
        unaligned_store64(to + 32, e);
        unaligned_store64(to + 40, f);
        unaligned_store64(to + 48, g);
        unaligned_store64(to + 56, h);
        from += 64;
        to += 64;
        bytes -= 64;
    }
    while (bytes >= 8) {
        unaligned_store64(to, unaligned_load64(from));
        from += 8;
        to += 8;
        bytes -= 8;
    }
    if (bytes >= 4) {
        unaligned_store32(to, unaligned_load32(from));
        from += 4;
        to += 4;
        bytes -= 4;
    }
    while (bytes > 0) {
        *to++ = *from++;
        bytes--;
    }
}

static void copy_down(uint8_t *to, const uint8_t *from, size_t bytes) {
    while (bytes >= 8) {
        bytes -= 8;
        unaligned_store64(to + bytes, unaligned_load64(from + bytes));
    }
    while (bytes > 0) {
        bytes--;
        to[bytes] = from[bytes];
    }
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    copy_up(to, from, bytes);
    return to;
}

/* Going up is safe when the destination lies below the source even where they overlap by less than
 * the 64 bytes of a step, because each step loads all of its bytes before it stores the first. */
void *memmove(void *to, const void *from, size_t bytes) {
    if ((uintptr_t)to - (uintptr_t)from >= bytes) {
        copy_up(to, from, bytes);
    } else {
        copy_down(to, from, bytes);
    }
    return to;
}
