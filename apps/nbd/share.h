/* Sharing a pool among connections so that none can starve another.
 *
 * Half of the pool is set apart: each connection that there may be is guaranteed its part of that
 * half, whatever the others hold. The other half is shared, in equal parts among those that are
 * there; one that came early may hold more than the part it would get now, until it gives it back.
 */
#ifndef APPS_NBD_SHARE_H
#define APPS_NBD_SHARE_H

#include <stdbool.h>
#include <stddef.h>

struct share {
    size_t guaranteed; /* for each holder, in whole units */
    size_t shared_max;
    size_t shared_used;
};

/* For `total` of something that is handed out in multiples of `unit`, among at most `holders_max`.
 * Every holder is guaranteed one unit at least; `total` must be enough for that. */
void share_init(struct share *share, size_t total, size_t unit, size_t holders_max);

/* How much a holder that has `held` may take now, when there are `holders`. */
size_t share_allowance(const struct share *share, size_t held, size_t holders);

/* May one that has `held` take `amount` more? Of its guaranteed part without a further question. */
static inline bool share_allows(const struct share *share, size_t held, size_t holders,
                                size_t amount) {
    return held + amount <= share->guaranteed || share_allowance(share, held, holders) >= amount;
}

/* Takes and gives back; `held` is the holder's account. */
void share_take_shared(struct share *share, size_t *held, size_t amount);
void share_give_shared(struct share *share, size_t *held, size_t amount);

static inline void share_take(struct share *share, size_t *held, size_t amount) {
    if (*held + amount <= share->guaranteed) {
        *held += amount;
    } else {
        share_take_shared(share, held, amount);
    }
}

static inline void share_give(struct share *share, size_t *held, size_t amount) {
    if (amount <= *held && *held <= share->guaranteed) {
        *held -= amount;
    } else {
        share_give_shared(share, held, amount);
    }
}

#endif
