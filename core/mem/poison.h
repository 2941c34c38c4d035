/* The pattern of released memory, in images whose `heap_checks` is set. */
#ifndef CORE_MEM_POISON_H
#define CORE_MEM_POISON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One per image: released memory is filled with a pattern, so that who still uses it finds no
 * address in it; and when it is handed out again the pattern must still be there, or the report
 * says who wrote. IoBuffers get a zone behind them that must stay as it was (io_buffer.h). */
extern bool heap_checks;

#define POISON_BYTE 0xdb

void poison_fill(void *memory, size_t bytes);

/* Panics when a byte of `memory` is not the pattern: something wrote there after the release. */
void poison_expect(const void *memory, size_t bytes);

/* True for a number that a pointer would be if it was read from released memory: small offsets into
 * what it points to are allowed for. */
bool poison_is_address(uintptr_t address);

#endif
