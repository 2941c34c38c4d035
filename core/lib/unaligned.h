/* 64-bit and 32-bit accesses at any address. Every processor that we support does them at full
 * speed, while a compiler that cannot know this takes them apart into bytes. */
#ifndef CORE_LIB_UNALIGNED_H
#define CORE_LIB_UNALIGNED_H

#include <stdint.h>

/* The type says: may lie at any address, may alias anything. */
typedef uint64_t unaligned64 __attribute__((aligned(1), may_alias));

static inline uint64_t unaligned_load64(const uint8_t *p) {
#if defined(__riscv)
    /* clang 14 has no flag that says so for this target. */
    uint64_t value;
    __asm__("ld %0, %1" : "=r"(value) : "m"(*(const unaligned64 *)p));
    return value;
#else
    return *(const unaligned64 *)p;
#endif
}

typedef uint16_t unaligned16 __attribute__((aligned(1), may_alias));

static inline uint16_t unaligned_load16(const uint8_t *p) {
#if defined(__riscv)
    uint16_t value;
    __asm__("lhu %0, %1" : "=r"(value) : "m"(*(const unaligned16 *)p));
    return value;
#else
    return *(const unaligned16 *)p;
#endif
}

static inline void unaligned_store16(uint8_t *p, uint16_t value) {
#if defined(__riscv)
    __asm__("sh %1, %0" : "=m"(*(unaligned16 *)p) : "r"(value));
#else
    *(unaligned16 *)p = value;
#endif
}

typedef uint32_t unaligned32 __attribute__((aligned(1), may_alias));

static inline uint32_t unaligned_load32(const uint8_t *p) {
#if defined(__riscv)
    uint32_t value;
    __asm__("lwu %0, %1" : "=r"(value) : "m"(*(const unaligned32 *)p));
    return value;
#else
    return *(const unaligned32 *)p;
#endif
}

static inline void unaligned_store32(uint8_t *p, uint32_t value) {
#if defined(__riscv)
    __asm__("sw %1, %0" : "=m"(*(unaligned32 *)p) : "r"(value));
#else
    *(unaligned32 *)p = value;
#endif
}

static inline void unaligned_store64(uint8_t *p, uint64_t value) {
#if defined(__riscv)
    __asm__("sd %1, %0" : "=m"(*(unaligned64 *)p) : "r"(value));
#else
    *(unaligned64 *)p = value;
#endif
}

#endif
