/* The memory map: what the device tree says is memory, less everything that somebody keeps. */
#ifndef CORE_MEM_MAP_H
#define CORE_MEM_MAP_H

#include "config/limits.h"
#include "core/mem/addr.h"

/* Disjoint ranges, ascending. */
struct memory_map {
    struct phys_range ranges[MEMORY_RANGES_MAX];
    unsigned count;
};

/* Adds memory; a part already there is not added twice. 0, -EINVAL for an empty or wrapping range,
 * -ENOSPC when the map is full (the map is then unchanged). */
int memory_map_add(struct memory_map *map, struct phys_range range);

/* Takes a range out, wherever it overlaps. Same errors; an empty range is no error: nothing is
 * taken out. */
int memory_map_reserve(struct memory_map *map, struct phys_range range);

/* The longest page-aligned run; length 0 when there is no whole page. */
struct phys_range memory_map_largest(const struct memory_map *map);

uint64_t memory_map_bytes(const struct memory_map *map);

#endif
