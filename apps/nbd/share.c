/* Guaranteed and shared parts. See share.h. */
#include "apps/nbd/share.h"

#include "core/panic.h"

void share_init(struct share *share, size_t total, size_t unit, size_t holders_max) {
    size_t guaranteed = total / 2 / holders_max / unit * unit;
    *share = (struct share){.guaranteed = guaranteed > unit ? guaranteed : unit};
    ASSERT(share->guaranteed * holders_max <= total);
    share->shared_max = total - share->guaranteed * holders_max;
}

static size_t above_guarantee(const struct share *share, size_t held) {
    return held > share->guaranteed ? held - share->guaranteed : 0;
}

size_t share_allowance(const struct share *share, size_t held, size_t holders) {
    size_t own = held < share->guaranteed ? share->guaranteed - held : 0;
    size_t part = share->shared_max / (holders > 0 ? holders : 1);
    size_t above = above_guarantee(share, held);
    size_t of_part = part > above ? part - above : 0;
    size_t left = share->shared_max - share->shared_used;
    return own + (of_part < left ? of_part : left);
}

void share_take_shared(struct share *share, size_t *held, size_t amount) {
    size_t before = above_guarantee(share, *held);
    *held += amount;
    share->shared_used += above_guarantee(share, *held) - before;
    ASSERT(share->shared_used <= share->shared_max);
}

void share_give_shared(struct share *share, size_t *held, size_t amount) {
    ASSERT(*held >= amount);
    size_t before = above_guarantee(share, *held);
    *held -= amount;
    size_t freed = before - above_guarantee(share, *held);
    ASSERT(share->shared_used >= freed);
    share->shared_used -= freed;
}
