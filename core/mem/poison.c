/* See poison.h. */
#include "core/mem/poison.h"

#include <string.h>

#include "core/panic.h"

#define POISON_WORD (UINT64_C(0x0101010101010101) * POISON_BYTE)

enum { MEMBER_OFFSET_MAX = 65536 };

void poison_fill(void *memory, size_t bytes) {
    if (heap_checks) {
        memset(memory, POISON_BYTE, bytes);
    }
}

void poison_expect(const void *memory, size_t bytes) {
    const uint8_t *byte = memory;
    for (size_t i = 0; heap_checks && i < bytes; i++) {
        if (byte[i] != POISON_BYTE) {
            panic("memory: 0x%02x at %p was written there after the release of that memory",
                  byte[i], (const void *)&byte[i]);
        }
    }
}

bool poison_is_address(uintptr_t address) {
    return address - POISON_WORD < MEMBER_OFFSET_MAX;
}
