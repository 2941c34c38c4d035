/* The bump pointer: hands out memory that was never used before, in address order. It is the bottom
 * of all memory: free_list.h takes from it and may give its newest part back. */
#ifndef CORE_MEM_BUMP_H
#define CORE_MEM_BUMP_H

#include "core/mem/addr.h"

struct bump {
    uintptr_t start;
    uintptr_t next; /* first byte not handed out */
    uintptr_t end;
};

static inline void bump_init(struct bump *bump, void *start, size_t bytes) {
    bump->start = (uintptr_t)start;
    bump->next = (uintptr_t)start;
    bump->end = (uintptr_t)start + bytes;
}

static inline size_t bump_room(const struct bump *bump) {
    return bump->end - bump->next;
}

/* `bytes` of memory, or NULL when less is left. Alignment is that of all that was taken before. */
static inline void *bump_take(struct bump *bump, size_t bytes) {
    if (bytes > bump_room(bump)) {
        return NULL;
    }
    void *taken = (void *)bump->next;
    bump->next += bytes;
    return taken;
}

/* Gives back everything from `start` on: it must be the newest part and unused. */
static inline void bump_retract(struct bump *bump, void *start) {
    bump->next = (uintptr_t)start;
}

#endif
