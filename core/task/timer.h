/* Timers: a function called from the scheduler once a point in time has passed.
 *
 * Kept in order of deadline in a list; setting one costs a walk over those that are due earlier.
 * There are a few per task, so that is less than a heap would cost. */
#ifndef CORE_TASK_TIMER_H
#define CORE_TASK_TIMER_H

#include <stdbool.h>
#include <stdint.h>

/* All-zero is a timer that is not set. Owned by whoever embeds it, who cancels it before the memory
 * goes away. */
struct timer {
    uint64_t deadline_ns;
    void (*fire)(void *arg);
    void *arg;
    struct timer *next;
    struct timer *previous;
    bool is_set;
};

/* Calls `fire(arg)` from the scheduler at the first turn after `deadline_ns`. A timer that is set
 * moves to the new deadline. */
void timer_set(struct timer *timer, uint64_t deadline_ns, void (*fire)(void *arg), void *arg);

/* Not set any more afterwards; harmless when it was not. */
void timer_cancel(struct timer *timer);

/* For the scheduler: fires all that are due, in order of deadline. */
void timers_fire(uint64_t now_ns);

/* The nearest deadline, DEADLINE_NEVER when no timer is set. */
uint64_t timers_next_deadline(void);

#endif
