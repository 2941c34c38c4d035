/* Runs of whole pages: a bump pointer, and binned free lists of runs that coalesce with their
 * neighbours when they come back, so that mixed load over days does not grind memory into pieces.
 *
 * One instance holds the appliance's memory (under the heap), others manage a buffer of their own,
 * as the payload pool does. Pages are described by one word each, kept apart from the pages, so a
 * double release, a pointer into the middle or from elsewhere is found and stops the appliance. */
#ifndef CORE_MEM_FREE_LIST_H
#define CORE_MEM_FREE_LIST_H

#include <stdint.h>

#include "core/mem/bump.h"

enum { FREE_LIST_BINS = 28 };

struct free_run;

struct free_list {
    struct bump bump;
    uint32_t *page_words; /* one per page: what starts or ends there */
    size_t page_count;
    struct free_run *bins[FREE_LIST_BINS]; /* runs of [2^n, 2^(n+1)) pages */
    size_t pages_used;
    size_t pages_used_peak;
    uintptr_t poisoned_end; /* the bump pointer has been here: what lies below was released */
    uint64_t failures;
};

/* Manages [start, start + bytes), both page aligned. The page words are taken from its beginning,
 * so a little less can be handed out. -EINVAL when the range is not aligned or too small. */
int free_list_init(struct free_list *list, void *start, size_t bytes);

/* A run of `pages` pages whose address is a multiple of `align_pages` pages (a power of two), or
 * NULL, counted as a failure. The content is whatever was there. */
void *free_list_take(struct free_list *list, size_t pages, size_t align_pages);

/* Gives a run back, as it was taken. Anything else panics. */
void free_list_give(struct free_list *list, void *run);

/* Pages of the run that starts at `run`, or 0 when no used run starts there. */
size_t free_list_run_pages(const struct free_list *list, const void *run);

/* True when `pointer` lies in a page that this list could have handed out. */
bool free_list_covers(const struct free_list *list, const void *pointer);

/* The run that `page`, which this list covers, lies in: its first byte, its length in pages and
 * whether it is in use. Walks back to where the run begins: for reports. */
struct free_list_place {
    void *run;
    size_t pages;
    bool is_used;
};
bool free_list_look(const struct free_list *list, const void *page, struct free_list_place *place);

/* With heap_checks (poison.h): panics when a free run was written to. */
void free_list_check(const struct free_list *list);

size_t free_list_pages_free(const struct free_list *list);
size_t free_list_largest_run(const struct free_list *list);

#endif
