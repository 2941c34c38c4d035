/* Names and frames of functions, for reports: a table that the build puts into the image. */
#ifndef CORE_SYMBOLS_H
#define CORE_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "tcp_output+0x1c4"; "" when the table has no function there. */
void symbols_describe(uintptr_t address, char *text, size_t bytes);

/* The same for a return address: the call stands before it, perhaps as the last of its function. */
void symbols_describe_return(uintptr_t address, char *text, size_t bytes);

/* What a function keeps on the stack while it calls another: `bytes` from the stack pointer on, and
 * among them, at `return_at`, where it returns to; that is 0 when it calls none. */
struct symbol_frame {
    uint32_t bytes;
    uint32_t return_at;
};
/* The frame of the function at `address`, as the compiler says; nothing of one that it did not
 * compile, or when there is none. */
struct symbol_frame symbols_frame(uintptr_t address);

/* True when both lie in one function that the table names. */
bool symbols_share(uintptr_t one, uintptr_t other);

/* True when `address` lies in a function that the table names. */
bool symbols_know(uintptr_t address);

#endif
