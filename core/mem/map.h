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

/* The `runs_max` longest runs of whole pages that have `bytes_min` at least (one page if that is
 * less), shortest first. Returns how many. */
unsigned memory_map_runs(const struct memory_map *map, uint64_t bytes_min, struct phys_range *runs,
                         unsigned runs_max);

uint64_t memory_map_bytes(const struct memory_map *map);

#endif
