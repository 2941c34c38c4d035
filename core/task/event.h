/* Events: what tasks wait for. A signal wakes every task that waits; when none does it is kept,
 * once, for the next one that comes. So a signal is never lost, and many before a wait count as
 * one. */
#ifndef CORE_TASK_EVENT_H
#define CORE_TASK_EVENT_H

#include <stdbool.h>

struct task;

/* All-zero is an event that nobody signalled. */
struct event {
    bool is_set;
    bool is_external; /* a device or an interrupt may signal it: waiting for it is no deadlock */
    struct task *first_waiter;
};

void event_signal(struct event *event);

/* Forgets a kept signal. */
void event_clear(struct event *event);

#endif
