/* Names of functions, for reports: a table that the build puts into the image. */
#ifndef CORE_SYMBOLS_H
#define CORE_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "tcp_output+0x1c4"; "" when the table has no function there. */
void symbols_describe(uintptr_t address, char *text, size_t bytes);

/* The same for a return address: the call stands before it, perhaps as the last of its function. */
void symbols_describe_return(uintptr_t address, char *text, size_t bytes);

/* True when `address` lies in a function that the table names. */
bool symbols_know(uintptr_t address);

#endif
