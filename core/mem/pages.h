/* Page tables: which addresses exist, and what may be done at each.
 *
 * A tree of tables of 512 entries, as all our processors have them; how an entry looks is the
 * board's affair (boot/arch.h). Large pages are used wherever address and length allow, split when
 * a part of one gets other permissions, and joined again when all parts agree. */
#ifndef CORE_MEM_PAGES_H
#define CORE_MEM_PAGES_H

#include "core/mem/addr.h"

/* What may be done in a page. Without any, every access faults, though the page keeps its place:
 * that is a guard page. */
enum page_access {
    PAGE_READ = 1,
    PAGE_WRITE = 2,
    PAGE_EXECUTE = 4,
    PAGE_DEVICE = 8, /* registers: neither cached nor reordered where the board tells them apart */
};
enum { PAGE_NONE = 0 };

/* What each function here may return beside 0. */
#define PAGES_BAD_ADDRESS    (-EFAULT) /* not page aligned, out of reach, wraps, or not mapped */
#define PAGES_ALREADY_MAPPED (-EEXIST)
#define PAGES_LARGE_PAGE     (-EBUSY) /* the address is part of a larger page already */
#define PAGES_OUT_OF_FRAMES  (-ENOMEM)

/* Where tables live: one page each, aligned to its size. `take` may return NULL. */
struct page_frames {
    void *(*take)(void);
    void (*give)(void *frame);
};

/* Fields are private. */
struct page_tables {
    uint64_t *root;
    unsigned levels;
    size_t frame_count; /* in use, the root included */
    const struct page_frames *frames;
};

/* An empty tree of `levels` levels, 3 or 4: nothing is mapped. PAGES_OUT_OF_FRAMES. */
int pages_init(struct page_tables *tables, unsigned levels, const struct page_frames *frames);

/* Gives every table back. The tree must not be in use by the processor. */
void pages_release(struct page_tables *tables);

/* Maps [address, address + bytes) to the memory that begins at `physical`. All or nothing. */
int pages_map(struct page_tables *tables, uintptr_t address, struct phys_addr physical,
              uint64_t bytes, unsigned access);

/* The range, mapped whole before, is not mapped any more. All or nothing; PAGES_OUT_OF_FRAMES only
 * when a large page had to be split. */
int pages_unmap(struct page_tables *tables, uintptr_t address, uint64_t bytes);

/* Changes what may be done in the range, mapped whole before. Errors as pages_unmap. */
int pages_protect(struct page_tables *tables, uintptr_t address, uint64_t bytes, unsigned access);

struct page_mapping {
    struct phys_addr physical; /* of the address asked for, offset in the page included */
    uint64_t page_bytes;
    unsigned access;
};

/* What `address` is mapped to. Guards are found too: their access is PAGE_NONE. */
int pages_translate(const struct page_tables *tables, uintptr_t address,
                    struct page_mapping *mapping);

#endif
