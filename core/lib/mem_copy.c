/* memcpy and memmove for memory of any alignment. Plain C library versions fall back to bytes when
 * source and destination differ in alignment, which is ten times slower under emulation; and TCP
 * payload never starts at a multiple of eight. 64-bit accesses at any address run at full speed on
 * every processor we support, so only the ends are done in smaller pieces. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);

/* The type says: may lie at any address, may alias anything. */
typedef uint64_t word64 __attribute__((aligned(1), may_alias));
typedef uint32_t word32 __attribute__((aligned(1), may_alias));
typedef uint16_t word16 __attribute__((aligned(1), may_alias));

static inline uint64_t load64(const uint8_t *p) {
#if defined(__riscv)
    /* clang 14 would split an unaligned load into bytes on this target. */
    uint64_t value;
    __asm__("ld %0, %1" : "=r"(value) : "m"(*(const word64 *)p));
    return value;
#else
    return *(const word64 *)p;
#endif
}

static inline void store64(uint8_t *p, uint64_t value) {
#if defined(__riscv)
    __asm__("sd %1, %0" : "=m"(*(word64 *)p) : "r"(value));
#else
    *(word64 *)p = value;
#endif
}

static void copy_up(uint8_t *to, const uint8_t *from, size_t bytes) {
    while (bytes >= 64) {
        uint64_t a = load64(from);
        uint64_t b = load64(from + 8);
        uint64_t c = load64(from + 16);
        uint64_t d = load64(from + 24);
        uint64_t e = load64(from + 32);
        uint64_t f = load64(from + 40);
        uint64_t g = load64(from + 48);
        uint64_t h = load64(from + 56);
        store64(to, a);
        store64(to + 8, b);
        store64(to + 16, c);
        store64(to + 24, d);
        store64(to + 32, e);
        store64(to + 40, f);
        store64(to + 48, g);
        store64(to + 56, h);
        from += 64;
        to += 64;
        bytes -= 64;
    }
    while (bytes >= 8) {
        store64(to, load64(from));
        from += 8;
        to += 8;
        bytes -= 8;
    }
    while (bytes > 0) {
        *to++ = *from++;
        bytes--;
    }
}

static void copy_down(uint8_t *to, const uint8_t *from, size_t bytes) {
    while (bytes >= 8) {
        bytes -= 8;
        store64(to + bytes, load64(from + bytes));
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
