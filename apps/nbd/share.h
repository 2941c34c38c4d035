/* Sharing a pool among connections so that none can starve another.
 *
 * Half of the pool is set apart: each connection that there may be is guaranteed its part of that
 * half, whatever the others hold. The other half is shared, in equal parts among those that are
 * there; one that came early may hold more than the part it would get now, until it gives it back.
 */
#ifndef APPS_NBD_SHARE_H
#define APPS_NBD_SHARE_H

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

/* Takes and gives back; `held` is the holder's account. */
void share_take(struct share *share, size_t *held, size_t amount);
void share_give(struct share *share, size_t *held, size_t amount);

#endif
