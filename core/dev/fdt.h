/* The flattened device tree: checked once as a whole, then read through libfdt.
 *
 * It comes from outside (firmware, emulator, its user): every property's length is checked before
 * its value is used; what makes no sense is refused with the node's name. */
#ifndef CORE_DEV_FDT_H
#define CORE_DEV_FDT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/mem/map.h"

/* 0 when `blob` is a whole, consistent tree of at most FDT_BYTES_MAX; -EINVAL, said in the log. */
int fdt_check(const void *blob);

/* Length of a checked tree, in bytes. */
uint64_t fdt_bytes(const void *fdt);

/* All memory less reservations, reserved nodes and the tree itself. The map starts empty. */
int fdt_read_memory(const void *fdt, struct memory_map *map);

/* /cpus/timebase-frequency (or of the first cpu), in Hz; 0 when the tree does not say. */
uint64_t fdt_timebase_hz(const void *fdt);

/* /chosen/bootargs; "" when there are none. */
const char *fdt_command_line(const void *fdt);

/* Node of /chosen/stdout-path, a path or an alias with options behind a colon; negative if none. */
int fdt_stdout_node(const void *fdt);

/* One cell of 32 bits; false when the property is missing or has another length. */
bool fdt_read_u32(const void *fdt, int node, const char *name, uint32_t *value);

/* `cells` (1 or 2) cells as one number. */
uint64_t fdt_cells(const void *property, unsigned cells);

#endif
