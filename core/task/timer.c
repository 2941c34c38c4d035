/* The sorted list of timers. See timer.h. */
#include "core/task/timer.h"

#include <stddef.h>

#include "boot/arch.h"
#include "core/panic.h"

static struct timer *first;

void timer_cancel(struct timer *timer) {
    if (!timer->is_set) {
        return;
    }
    if (timer->previous != NULL) {
        timer->previous->next = timer->next;
    } else {
        ASSERT(first == timer);
        first = timer->next;
    }
    if (timer->next != NULL) {
        timer->next->previous = timer->previous;
    }
    timer->is_set = false;
}

void timer_set(struct timer *timer, uint64_t deadline_ns, void (*fire)(void *arg), void *arg) {
    timer_cancel(timer);
    struct timer *before = NULL;
    struct timer *after = first;
    while (after != NULL && after->deadline_ns <= deadline_ns) {
        before = after;
        after = after->next;
    }
    *timer = (struct timer){.deadline_ns = deadline_ns,
                            .fire = fire,
                            .arg = arg,
                            .next = after,
                            .previous = before,
                            .is_set = true};
    if (before != NULL) {
        before->next = timer;
    } else {
        first = timer;
    }
    if (after != NULL) {
        after->previous = timer;
    }
}

/* No more than are due at the beginning: one that its own function sets again for now is behind
 * them, and must not keep the scheduler here. */
void timers_fire(uint64_t now_ns) {
    unsigned due = 0;
    for (const struct timer *timer = first; timer != NULL && timer->deadline_ns <= now_ns;
         timer = timer->next) {
        due++;
    }
    for (; due > 0 && first != NULL && first->deadline_ns <= now_ns; due--) {
        struct timer *timer = first;
        timer_cancel(timer);
        timer->fire(timer->arg);
    }
}

uint64_t timers_next_deadline(void) {
    return first != NULL ? first->deadline_ns : DEADLINE_NEVER;
}
