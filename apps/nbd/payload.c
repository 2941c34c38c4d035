/* The payload pool. See payload.h.
 *
 * A piece that comes back is kept for the next request of the same size, for joining it with its
 * neighbours and cutting it off again costs ten times as much. When a larger piece is wanted and
 * not there, all that is kept goes back first, so keeping loses nothing. */
#include "apps/nbd/payload.h"

#include "config/limits.h"
#include "core/mem/free_list.h"
#include "core/mem/io_buffer.h"
#include "core/mem/poison.h"
#include "core/panic.h"

/* Sizes of 1, 2, 4, ... pages are kept. */
enum { SIZES = 6 };

_Static_assert(NBD_READ_CHUNK_BYTES == PAGE_BYTES << (SIZES - 1),
               "the largest piece that reads take");

static struct io_buffer memory;
static struct free_list pages_free;
static struct {
    void *pieces[NBD_PAYLOAD_KEPT];
    unsigned count;
} kept[SIZES];
static size_t kept_pages;

int nbd_payload_init(size_t bytes) {
    for (unsigned size = 0; size < SIZES; size++) {
        kept[size].count = 0;
    }
    kept_pages = 0;
    int error = io_buffer_init(&memory, bytes, IO_BUFFER_ALIGN_DEFAULT);
    return error ? error : free_list_init(&pages_free, io_buffer_data(&memory), bytes);
}

/* SIZES when pieces of `pages` pages are not kept. */
static unsigned size_of(size_t pages) {
    if (pages == 1) {
        return 0; /* most of them */
    }
    unsigned size = 1;
    while (size < SIZES && (size_t)1 << size != pages) {
        size++;
    }
    return size;
}

static bool give_kept_back(void) {
    bool found = kept_pages > 0;
    for (unsigned size = 0; size < SIZES; size++) {
        while (kept[size].count > 0) {
            free_list_give(&pages_free, kept[size].pieces[--kept[size].count]);
        }
    }
    kept_pages = 0;
    return found;
}

/* Out of line, and so is giving: what is kept is taken and given back without their registers. */
__attribute__((noinline)) static void *take_from_list(size_t pages) {
    void *piece = free_list_take(&pages_free, pages, 1);
    if (piece == NULL && give_kept_back()) {
        piece = free_list_take(&pages_free, pages, 1);
    }
    return piece;
}

void *nbd_payload_take(size_t pages) {
    unsigned size = size_of(pages);
    if (size == SIZES || kept[size].count == 0) {
        return take_from_list(pages);
    }
    void *piece = kept[size].pieces[--kept[size].count];
    kept_pages -= pages;
    poison_expect(piece, pages * PAGE_BYTES);
    return piece;
}

__attribute__((noinline)) static void give_to_list(void *piece) {
    free_list_give(&pages_free, piece);
}

void nbd_payload_give(void *piece, size_t pages) {
    unsigned size = size_of(pages);
    ASSERT(free_list_run_pages(&pages_free, piece) == pages);
    if (size == SIZES || kept[size].count == NBD_PAYLOAD_KEPT) {
        give_to_list(piece);
        return;
    }
    for (unsigned i = 0; heap_checks && i < kept[size].count; i++) {
        ASSERT(kept[size].pieces[i] != piece); /* given twice */
    }
    poison_fill(piece, pages * PAGE_BYTES);
    kept[size].pieces[kept[size].count++] = piece;
    kept_pages += pages;
}

size_t nbd_payload_free(void) {
    return (free_list_pages_free(&pages_free) + kept_pages) * PAGE_BYTES;
}

size_t nbd_payload_total(void) {
    return pages_free.page_count * PAGE_BYTES;
}
