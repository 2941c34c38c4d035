/* The C library's memory functions, served by the heap. Not part of the host build, where the
 * host's own library keeps them. */
#include <errno.h>
#include <stdlib.h>

#include "core/mem/heap.h"

static void *or_enomem(void *pointer) {
    if (pointer == NULL) {
        errno = ENOMEM;
    }
    return pointer;
}

void *malloc(size_t bytes) {
    return or_enomem(heap_alloc(bytes));
}

void *calloc(size_t count, size_t bytes) {
    return or_enomem(heap_alloc_zeroed(count, bytes));
}

void *realloc(void *pointer, size_t bytes) {
    return or_enomem(heap_resize(pointer, bytes));
}

void *aligned_alloc(size_t align, size_t bytes) {
    return or_enomem(heap_alloc_aligned(align, bytes));
}

void free(void *pointer) {
    heap_free(pointer);
}
