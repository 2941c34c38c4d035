/* Cooperative tasks: each with a stack of its own, each running until it waits or yields.
 *
 * Between two waits of a task the world stands still: no other task runs, no interrupt is taken.
 * Nothing here is called from anywhere but a task or, where it says so, the scheduler's context
 * (timer functions, interrupt handlers), which must not wait. */
#ifndef CORE_TASK_TASK_H
#define CORE_TASK_TASK_H

#include <stddef.h>
#include <stdint.h>

#include "core/task/event.h"

enum task_state {
    TASK_READY,   /* in the run queue */
    TASK_RUNNING, /* the one */
    TASK_WAITING, /* for an event, a deadline or both */
    TASK_ENDED,   /* its stack is about to go */
};

struct task;

/* A new task, ready to run, that calls `entry(arg)` and ends when that returns. `name` must outlive
 * it. `stack_bytes` 0 means TASK_STACK_BYTES. NULL, said in the log, when memory or TASKS_MAX is
 * exhausted. */
struct task *task_create(const char *name, void (*entry)(void *arg), void *arg, size_t stack_bytes);

/* Waits until `event` is signalled or `deadline_ns` has passed: 0 or -ETIMEDOUT. A signal that came
 * before the call ends the wait in the next turn: whoever wakes itself for ever starves nobody. */
int task_wait(struct event *event, uint64_t deadline_ns);

/* Waits for nothing but time. */
void task_sleep_until(uint64_t deadline_ns);

/* Lets every other ready task run once. */
void task_yield(void);

/* "boot" before the scheduler runs, "scheduler" in its context. */
const char *task_current_name(void);

/* For status and reports: tasks alive in order of creation, NULL past the last. */
struct task_info {
    const char *name;
    enum task_state state;
    uint64_t runs;
    const struct event *event; /* waited for; NULL when only for time */
    const void *stack;         /* its first byte, with a guard page below */
    size_t stack_bytes;
    size_t stack_used_peak; /* found by the fill pattern */
};
int task_get_info(unsigned index, struct task_info *info);

#endif
