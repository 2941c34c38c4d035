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

void timers_fire(uint64_t now_ns) {
    while (first != NULL && first->deadline_ns <= now_ns) {
        struct timer *timer = first;
        timer_cancel(timer);
        timer->fire(timer->arg);
    }
}

uint64_t timers_next_deadline(void) {
    return first != NULL ? first->deadline_ns : DEADLINE_NEVER;
}
