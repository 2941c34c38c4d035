/* Page runs with coalescing. See free_list.h.
 *
 * A page word is 0 inside a run, at the first page of a run USED or FREE with the run's length, and
 * at the last page of a free run of more than one page TAIL with the length again, so that both
 * neighbours of a returning run are found in constant time. Words at and behind the bump pointer
 * mean nothing: they are written when it moves over them. */
#include "core/mem/free_list.h"

#include <errno.h>
#include <string.h>

#include "core/mem/poison.h"
#include "core/panic.h"

#define WORD_USED   UINT32_C(0x40000000)
#define WORD_FREE   UINT32_C(0x80000000)
#define WORD_TAIL   UINT32_C(0xc0000000)
#define WORD_KIND   UINT32_C(0xc0000000)
#define WORD_LENGTH UINT32_C(0x3fffffff)

/* How many runs of the best bin are looked at before the next larger bin serves: bounds the time.
 */
enum { BIN_LOOKS_MAX = 16 };

/* Stands at the beginning of a free run. */
struct free_run {
    struct free_run *next;
    struct free_run *previous;
    size_t pages;
};

static size_t page_index(const struct free_list *list, const void *page) {
    return ((uintptr_t)page - list->bump.start) / PAGE_BYTES;
}

static void *page_at(const struct free_list *list, size_t index) {
    return (void *)(list->bump.start + index * PAGE_BYTES);
}

/* Pages that the bump pointer has passed. */
static size_t pages_touched(const struct free_list *list) {
    return (list->bump.next - list->bump.start) / PAGE_BYTES;
}

static unsigned bin_of(size_t pages) {
    unsigned bin = 63 - (unsigned)__builtin_clzll(pages);
    return bin < FREE_LIST_BINS ? bin : FREE_LIST_BINS - 1;
}

static void bin_insert(struct free_list *list, void *start, size_t pages) {
    struct free_run *run = start;
    unsigned bin = bin_of(pages);
    run->pages = pages;
    run->previous = NULL;
    run->next = list->bins[bin];
    if (run->next != NULL) {
        run->next->previous = run;
    }
    list->bins[bin] = run;
    size_t index = page_index(list, start);
    list->page_words[index] = WORD_FREE | (uint32_t)pages;
    if (pages > 1) {
        list->page_words[index + pages - 1] = WORD_TAIL | (uint32_t)pages;
    }
}

/* The words of the run are left 0: the caller says what they are now. */
static void bin_remove(struct free_list *list, struct free_run *run) {
    size_t index = page_index(list, run);
    ASSERT(list->page_words[index] == (WORD_FREE | (uint32_t)run->pages));
    if (run->previous != NULL) {
        run->previous->next = run->next;
    } else {
        list->bins[bin_of(run->pages)] = run->next;
    }
    if (run->next != NULL) {
        run->next->previous = run->previous;
    }
    list->page_words[index] = 0;
    list->page_words[index + run->pages - 1] = 0;
    poison_fill(run, sizeof *run);
}

int free_list_init(struct free_list *list, void *start, size_t bytes) {
    *list = (struct free_list){0};
    if (((uintptr_t)start | bytes) % PAGE_BYTES != 0) {
        return -EINVAL;
    }
    size_t pages = bytes / PAGE_BYTES;
    size_t word_pages = align_up(pages * sizeof(uint32_t), PAGE_BYTES) / PAGE_BYTES;
    if (pages <= word_pages || pages - word_pages > WORD_LENGTH) {
        return -EINVAL;
    }
    list->page_words = start;
    list->page_count = pages - word_pages;
    bump_init(&list->bump, (char *)start + word_pages * PAGE_BYTES, list->page_count * PAGE_BYTES);
    list->poisoned_end = list->bump.start;
    return 0;
}

static void *take_from_bins(struct free_list *list, size_t pages) {
    for (unsigned bin = bin_of(pages); bin < FREE_LIST_BINS; bin++) {
        int looks = 0;
        for (struct free_run *run = list->bins[bin]; run != NULL && looks < BIN_LOOKS_MAX;
             run = run->next, looks++) {
            if (run->pages < pages) {
                continue;
            }
            size_t rest = run->pages - pages;
            bin_remove(list, run);
            if (rest > 0) {
                bin_insert(list, (char *)run + pages * PAGE_BYTES, rest);
            }
            return run;
        }
    }
    return NULL;
}

static void *take_from_bump(struct free_list *list, size_t pages) {
    size_t index = pages_touched(list);
    if (pages > bump_room(&list->bump) / PAGE_BYTES) {
        return NULL;
    }
    memset(&list->page_words[index], 0, pages * sizeof(uint32_t));
    void *run = bump_take(&list->bump, pages * PAGE_BYTES);
    if (list->poisoned_end < list->bump.next) {
        /* Never used before: what is found there means nothing. */
        poison_fill((void *)list->poisoned_end, list->bump.next - list->poisoned_end);
        list->poisoned_end = list->bump.next;
    }
    return run;
}

/* Marks a run free, joins it with its neighbours, and hands it back to the bump pointer when it is
 * the newest memory. */
static void put_free(struct free_list *list, void *start, size_t pages) {
    size_t index = page_index(list, start);
    size_t next = index + pages;
    if (next < pages_touched(list) && (list->page_words[next] & WORD_KIND) == WORD_FREE) {
        struct free_run *after = page_at(list, next);
        size_t after_pages = after->pages;
        bin_remove(list, after);
        pages += after_pages;
    }
    if (index > 0) {
        uint32_t before = list->page_words[index - 1];
        uint32_t kind = before & WORD_KIND;
        if (kind == WORD_TAIL || kind == WORD_FREE) {
            size_t before_pages = before & WORD_LENGTH;
            struct free_run *run = page_at(list, index - before_pages);
            bin_remove(list, run);
            start = run;
            pages += before_pages;
        }
    }
    if ((uintptr_t)start + pages * PAGE_BYTES == list->bump.next) {
        bump_retract(&list->bump, start);
        return;
    }
    bin_insert(list, start, pages);
}

void *free_list_take(struct free_list *list, size_t pages, size_t align_pages) {
    ASSERT(is_power_of_two(align_pages));
    size_t extra = align_pages - 1;
    void *run = NULL;
    if (pages != 0 && pages <= list->page_count && extra <= list->page_count) {
        run = take_from_bins(list, pages + extra);
        if (run == NULL) {
            run = take_from_bump(list, pages + extra);
        }
    }
    if (run == NULL) {
        list->failures++;
        return NULL;
    }
    poison_expect(run, (pages + extra) * PAGE_BYTES);
    if (extra != 0) {
        uintptr_t aligned = align_up((uintptr_t)run, align_pages * PAGE_BYTES);
        size_t before = (aligned - (uintptr_t)run) / PAGE_BYTES;
        /* Mark the middle used first, so that the ends do not join across it. */
        list->page_words[page_index(list, (void *)aligned)] = WORD_USED | (uint32_t)pages;
        if (extra > before) {
            put_free(list, (void *)(aligned + pages * PAGE_BYTES), extra - before);
        }
        if (before > 0) {
            put_free(list, run, before);
        }
        run = (void *)aligned;
    } else {
        list->page_words[page_index(list, run)] = WORD_USED | (uint32_t)pages;
    }
    list->pages_used += pages;
    if (list->pages_used > list->pages_used_peak) {
        list->pages_used_peak = list->pages_used;
    }
    return run;
}

bool free_list_covers(const struct free_list *list, const void *pointer) {
    return (uintptr_t)pointer >= list->bump.start && (uintptr_t)pointer < list->bump.next;
}

size_t free_list_run_pages(const struct free_list *list, const void *run) {
    if (!free_list_covers(list, run) || (uintptr_t)run % PAGE_BYTES != 0) {
        return 0;
    }
    uint32_t word = list->page_words[page_index(list, run)];
    return (word & WORD_KIND) == WORD_USED ? word & WORD_LENGTH : 0;
}

void free_list_give(struct free_list *list, void *run) {
    size_t pages = free_list_run_pages(list, run);
    if (pages == 0) {
        panic("memory: release of %p, where no run in use starts (released twice, or foreign)",
              run);
    }
    ASSERT(list->pages_used >= pages);
    list->pages_used -= pages;
    list->page_words[page_index(list, run)] = 0;
    poison_fill(run, pages * PAGE_BYTES);
    put_free(list, run, pages);
}

bool free_list_look(const struct free_list *list, const void *page, struct free_list_place *place) {
    size_t index = page_index(list, page);
    while (list->page_words[index] == 0 || (list->page_words[index] & WORD_KIND) == WORD_TAIL) {
        if (index == 0) {
            return false;
        }
        index--;
    }
    *place =
        (struct free_list_place){.run = page_at(list, index),
                                 .pages = list->page_words[index] & WORD_LENGTH,
                                 .is_used = (list->page_words[index] & WORD_KIND) == WORD_USED};
    return true;
}

void free_list_check(const struct free_list *list) {
    for (unsigned bin = 0; bin < FREE_LIST_BINS; bin++) {
        for (const struct free_run *run = list->bins[bin]; run != NULL; run = run->next) {
            poison_expect(run + 1, run->pages * PAGE_BYTES - sizeof *run);
        }
    }
    poison_expect((const void *)list->bump.next, list->poisoned_end - list->bump.next);
}

size_t free_list_pages_free(const struct free_list *list) {
    return list->page_count - list->pages_used;
}

size_t free_list_largest_run(const struct free_list *list) {
    size_t largest = bump_room(&list->bump) / PAGE_BYTES;
    for (unsigned bin = FREE_LIST_BINS; bin-- > 0;) {
        bool found = false;
        for (const struct free_run *run = list->bins[bin]; run != NULL; run = run->next) {
            largest = run->pages > largest ? run->pages : largest;
            found = true;
        }
        if (found) {
            break; /* lower bins hold only shorter runs */
        }
    }
    return largest;
}
