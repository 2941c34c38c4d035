/* The map of what is known of a disk's content. See allocation.h. */
#include "blk/allocation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk/block.h"
#include "core/panic.h"

/* What one change can leave of the extents it meets: a rest on either side, and itself. */
enum { PIECES_MAX = 3 };

int block_allocation_enable(struct block_device *device, unsigned extents_max) {
    ASSERT(device->allocation == NULL && extents_max > 0);
    struct block_allocation *map = calloc(1, sizeof *map);
    struct block_extent *extents = calloc(extents_max, sizeof *extents);
    if (map == NULL || extents == NULL) {
        free(map);
        free(extents);
        return -ENOMEM;
    }
    map->extents = extents;
    map->extents_max = extents_max;
    device->allocation = map;
    return 0;
}

void block_allocation_disable(struct block_device *device) {
    if (device->allocation != NULL) {
        free(device->allocation->extents);
        free(device->allocation);
        device->allocation = NULL;
    }
}

/* The first extent that ends behind `offset`; `count` when there is none. */
static unsigned first_behind(const struct block_allocation *map, uint64_t offset) {
    unsigned low = 0;
    unsigned high = map->count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (map->extents[middle].end > offset) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* Makes one of neighbours that touch and say the same; returns how many are left. */
static unsigned join_pieces(struct block_extent *pieces, unsigned count) {
    unsigned kept = 0;
    for (unsigned i = 0; i < count; i++) {
        struct block_extent *last = kept > 0 ? &pieces[kept - 1] : NULL;
        if (last != NULL && last->end == pieces[i].start && last->known == pieces[i].known) {
            last->end = pieces[i].end;
        } else {
            pieces[kept++] = pieces[i];
        }
    }
    return kept;
}

static unsigned drop_smallest(struct block_extent *pieces, unsigned count) {
    unsigned smallest = 0;
    for (unsigned i = 1; i < count; i++) {
        if (pieces[i].end - pieces[i].start < pieces[smallest].end - pieces[smallest].start) {
            smallest = i;
        }
    }
    memmove(&pieces[smallest], &pieces[smallest + 1], (count - smallest - 1) * sizeof *pieces);
    return count - 1;
}

/* Puts `pieces` in the place of the extents from `first` to before `last`. */
static void replace(struct block_allocation *map, unsigned first, unsigned last,
                    struct block_extent *pieces, unsigned count) {
    while (map->count - (last - first) + count > map->extents_max) {
        count = drop_smallest(pieces, count);
        map->forgotten++;
    }
    memmove(&map->extents[first + count], &map->extents[last],
            (map->count - last) * sizeof *map->extents);
    memcpy(&map->extents[first], pieces, count * sizeof *pieces);
    map->count = map->count - (last - first) + count;
    map->peak = map->count > map->peak ? map->count : map->peak;
}

/* From now on this, or with 0 nothing, is known of [start, end). */
static void set_known(struct block_allocation *map, uint64_t start, uint64_t end, unsigned known) {
    struct block_extent *extents = map->extents;
    struct block_extent pieces[PIECES_MAX];
    unsigned count = 0;
    unsigned first = first_behind(map, start);
    unsigned last = first;
    while (last < map->count && extents[last].start < end) {
        last++;
    }
    if (known == 0 && first == last) {
        return;
    }
    const struct block_extent old_first = first < last ? extents[first] : (struct block_extent){0};
    const struct block_extent old_last =
        first < last ? extents[last - 1] : (struct block_extent){0};
    /* On each side either a rest of what is met, or a neighbour that touches. */
    if (first < last && old_first.start < start) {
        pieces[count++] = (struct block_extent){old_first.start, start, old_first.known};
    } else if (first > 0 && extents[first - 1].end == start) {
        pieces[count++] = extents[--first];
    }
    if (known != 0) {
        pieces[count++] = (struct block_extent){start, end, known};
    }
    if (old_last.end > end) {
        pieces[count++] = (struct block_extent){end, old_last.end, old_last.known};
    } else if (last < map->count && extents[last].start == end) {
        pieces[count++] = extents[last++];
    }
    replace(map, first, last, pieces, join_pieces(pieces, count));
}

static bool is_zeroing(const struct block_request *request) {
    return request->operation == BLOCK_DISCARD || request->operation == BLOCK_WRITE_ZEROES;
}

/* Marks the zeroings of `list` that meet `request`; true when there is one. */
static bool disturb(struct block_request *list, const struct block_request *request) {
    bool any = false;
    for (struct block_request *other = list; other != NULL; other = other->changing_next) {
        if (other->offset < request->offset + request->length &&
            request->offset < other->offset + other->length) {
            other->is_disturbed = true;
            any = true;
        }
    }
    return any;
}

static void link_in(struct block_request **list, struct block_request *request) {
    request->changing_next = *list;
    request->changing_link = list;
    if (*list != NULL) {
        (*list)->changing_link = &request->changing_next;
    }
    *list = request;
}

void block_allocation_submitted(struct block_allocation *map, struct block_request *request) {
    bool zeroes = is_zeroing(request);
    if (map->count > 0) {
        set_known(map, request->offset, request->offset + request->length, 0);
    }
    request->is_disturbed = disturb(map->zeroings, request);
    if (zeroes) {
        request->is_disturbed |= disturb(map->writes, request);
    }
    link_in(zeroes ? &map->zeroings : &map->writes, request);
}

void block_allocation_completed(struct block_allocation *map, const struct block_device *device,
                                struct block_request *request) {
    *request->changing_link = request->changing_next;
    if (request->changing_next != NULL) {
        request->changing_next->changing_link = request->changing_link;
    }
    if (!is_zeroing(request) || request->status != 0 || request->is_disturbed) {
        return;
    }
    const struct block_limits *limits = &device->limits;
    unsigned known = BLOCK_KNOWN_ZERO;
    if (request->operation == BLOCK_DISCARD) {
        known = limits->discard_leaves;
    } else if ((request->flags & BLOCK_UNMAP) != 0 && limits->zeroes_may_unmap) {
        known |= BLOCK_KNOWN_HOLE;
    }
    if (known != 0) {
        set_known(map, request->offset, request->offset + request->length, known);
    }
}

void block_allocation_forget(struct block_allocation *map, uint64_t offset, uint64_t length) {
    set_known(map, offset, offset + length, 0);
}

/* The map is the disk's, also for what asks about a partition of it. */
static const struct block_device *disk_of(const struct block_device *device) {
    return device->parent != NULL ? device->parent : device;
}

bool block_knows_any(const struct block_device *device) {
    device = disk_of(device);
    return device->allocation != NULL && device->allocation->count > 0 && !device->is_gone;
}

uint64_t block_known_at(const struct block_device *device, uint64_t offset, uint64_t length,
                        unsigned *known) {
    *known = 0;
    if (!block_knows_any(device)) {
        return length;
    }
    offset += device->parent != NULL ? device->start_bytes : 0;
    const struct block_allocation *map = disk_of(device)->allocation;
    unsigned at = first_behind(map, offset);
    if (at == map->count || map->extents[at].start >= offset + length) {
        return length;
    }
    const struct block_extent *extent = &map->extents[at];
    if (extent->start > offset) {
        return extent->start - offset;
    }
    *known = extent->known;
    return extent->end - offset < length ? extent->end - offset : length;
}
