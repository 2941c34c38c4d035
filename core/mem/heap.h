/* The heap: the one source of memory behind malloc, IoBuffers and task stacks.
 *
 * Small objects come from slabs, one page for one size class; anything larger is a run of pages
 * (free_list.h). An empty slab's page goes back to the runs. */
#ifndef CORE_MEM_HEAP_H
#define CORE_MEM_HEAP_H

#include "core/mem/addr.h"

/* Takes over [start, start + bytes). Exactly once: a second call is refused with -EBUSY, a range
 * that is not page aligned or too small with -EINVAL. */
int heap_init(void *start, size_t bytes);

/* One range more. Memory is taken from the range that came first as long as it has what is wanted,
 * so that the last one, the longest, stays in one piece for what wants much at once. -EINVAL as
 * above, -ENOSPC when there are HEAP_RANGES_MAX. */
int heap_add(void *start, size_t bytes);

/* As C says of malloc, free, calloc, realloc and aligned_alloc; NULL on failure, which is counted.
 * Freeing a foreign pointer, or twice, panics. */
void *heap_alloc(size_t bytes);
void *heap_alloc_zeroed(size_t count, size_t bytes);
void *heap_alloc_aligned(size_t align, size_t bytes);
void *heap_resize(void *pointer, size_t bytes);
void heap_free(void *pointer);

struct heap_stats {
    size_t bytes_total;
    size_t bytes_used; /* whole pages, slabs included */
    size_t bytes_used_peak;
    size_t largest_free_run; /* bytes */
    uint64_t failures;
};
void heap_get_stats(struct heap_stats *stats);

/* One size class: object size in bytes, objects in use, pages held. False past the last class. */
bool heap_get_class(unsigned index, size_t *object_bytes, size_t *objects, size_t *pages);

/* With heap_checks (poison.h): panics when a released object or run was written to. */
void heap_check(void);

/* What a byte of the heap belongs to. */
struct heap_place {
    size_t offset;
    size_t bytes; /* of the object or run; 0 for the heap's own records */
    bool is_used;
};
/* False when `address` is not in the heap. */
bool heap_look(uintptr_t address, struct heap_place *place);

#ifdef PLATTER_HOST
/* Unit tests start from an empty heap again. */
void heap_forget(void);
#endif

#endif
