/* Range arithmetic of the memory map. See map.h. */
#include "core/mem/map.h"

#include <errno.h>
#include <string.h>

static int insert_at(struct memory_map *map, unsigned at, struct phys_range range) {
    if (map->count == MEMORY_RANGES_MAX) {
        return -ENOSPC;
    }
    memmove(&map->ranges[at + 1], &map->ranges[at], (map->count - at) * sizeof map->ranges[0]);
    map->ranges[at] = range;
    map->count++;
    return 0;
}

static void remove_at(struct memory_map *map, unsigned at) {
    map->count--;
    memmove(&map->ranges[at], &map->ranges[at + 1], (map->count - at) * sizeof map->ranges[0]);
}

static struct phys_range range_between(uint64_t start, uint64_t end) {
    return (struct phys_range){phys_addr(start), end - start};
}

int memory_map_add(struct memory_map *map, struct phys_range range) {
    if (!phys_range_is_valid(range)) {
        return -EINVAL;
    }
    uint64_t start = range.start.value;
    uint64_t end = phys_range_end(range);
    unsigned first = 0;
    while (first < map->count && phys_range_end(map->ranges[first]) < start) {
        first++;
    }
    /* All that touch become one. */
    unsigned last = first;
    while (last < map->count && map->ranges[last].start.value <= end) {
        uint64_t their_end = phys_range_end(map->ranges[last]);
        start = map->ranges[last].start.value < start ? map->ranges[last].start.value : start;
        end = their_end > end ? their_end : end;
        last++;
    }
    if (first == last) {
        return insert_at(map, first, range);
    }
    while (last - first > 1) {
        remove_at(map, first);
        last--;
    }
    map->ranges[first] = range_between(start, end);
    return 0;
}

int memory_map_reserve(struct memory_map *map, struct phys_range range) {
    if (range.length == 0) {
        return 0;
    }
    if (!phys_range_is_valid(range)) {
        return -EINVAL;
    }
    uint64_t start = range.start.value;
    uint64_t end = phys_range_end(range);
    for (unsigned i = 0; i < map->count;) {
        struct phys_range here = map->ranges[i];
        uint64_t here_end = phys_range_end(here);
        if (!phys_ranges_overlap(here, range)) {
            i++;
            continue;
        }
        bool has_left = here.start.value < start;
        bool has_right = here_end > end;
        if (has_left && has_right) {
            int error = insert_at(map, i + 1, range_between(end, here_end));
            if (error) {
                return error;
            }
        }
        if (has_left) {
            map->ranges[i] = range_between(here.start.value, start);
            i += has_right ? 2 : 1;
        } else if (has_right) {
            map->ranges[i] = range_between(end, here_end);
            i++;
        } else {
            remove_at(map, i);
        }
    }
    return 0;
}

/* Length 0 when there is no whole page. */
static struct phys_range whole_pages(struct phys_range range) {
    uint64_t start;
    uint64_t end = align_down(phys_range_end(range), PAGE_BYTES);
    if (!align_up_fits(range.start.value, PAGE_BYTES, &start) || end <= start) {
        return range_between(0, 0);
    }
    return range_between(start, end);
}

unsigned memory_map_runs(const struct memory_map *map, uint64_t bytes_min, struct phys_range *runs,
                         unsigned runs_max) {
    unsigned count = 0;
    for (unsigned i = 0; i < map->count; i++) {
        struct phys_range run = whole_pages(map->ranges[i]);
        unsigned shorter = 0;
        while (shorter < count && runs[shorter].length < run.length) {
            shorter++;
        }
        if (run.length == 0 || run.length < bytes_min || (count == runs_max && shorter == 0)) {
            continue;
        }
        if (count == runs_max) {
            /* The shortest makes room. */
            shorter--;
            memmove(&runs[0], &runs[1], shorter * sizeof runs[0]);
        } else {
            memmove(&runs[shorter + 1], &runs[shorter], (count - shorter) * sizeof runs[0]);
            count++;
        }
        runs[shorter] = run;
    }
    return count;
}

uint64_t memory_map_bytes(const struct memory_map *map) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < map->count; i++) {
        bytes += map->ranges[i].length;
    }
    return bytes;
}
