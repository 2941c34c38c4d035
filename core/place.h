/* What lies at an address, in words: for reports. */
#ifndef CORE_PLACE_H
#define CORE_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "the guard page below the stack of task net", "constants", "page 0, which is never mapped", ...
 */
void place_describe(uintptr_t address, char *text, size_t bytes);

struct place_stack {
    const char *owner;
    uintptr_t guard; /* first byte of the page below it */
    uintptr_t start;
    uintptr_t end;
};

/* The stack whose bytes or guard `address` is one of. An address just behind its end counts too:
 * that is where an empty stack's pointer stands. */
bool place_stack_of(uintptr_t address, struct place_stack *stack);

#endif
