/* The scheduler: runs ready tasks in turn, and sleeps when there are none.
 *
 * Before sleeping it asks every poll source for a notification, makes those requests visible, and
 * looks once more; so an event that happens in between is seen either by that look or by the
 * interrupt that ends the sleep. */
#ifndef CORE_TASK_SCHEDULER_H
#define CORE_TASK_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/task/event.h"

/* A ring that a device writes: looked at by memory loads alone, once a turn, or before the sleep
 * that the turn ends in. */
struct poll_source {
    const char *name;
    /* Where the device counts what it has left, and how far that has been taken: only when they
     * differ is `pending` asked. NULL for a source that is always asked. Set before it is added. */
    const volatile uint16_t *written;
    const uint16_t *taken;
    /* True when the device has left something. If all of that may wait for what comes next, it may
     * count it as taken and say false. */
    bool (*pending)(void *arg);
    /* Where the device reads behind which of its entries it is to interrupt: then it is asked for
     * one by this and not by the functions below. */
    volatile uint16_t *event_index;
    /* Ask the device for an interrupt from now on, or no longer. Memory stores only. */
    void (*arm)(void *arg);
    void (*disarm)(void *arg);
    void *arg;
    struct event *event; /* signalled when pending */
};

/* `source` must stay as it is until removed. Panics past POLL_SOURCES_MAX: their number follows
 * from the devices, which are bounded before: one of each disk, two of the network interface, of
 * which one comes and goes. */
void scheduler_add_source(struct poll_source *source);
void scheduler_remove_source(struct poll_source *source);

/* The access that orders our stores before our last look where fences do not: see scheduler.c. */
void scheduler_set_sleep_barrier(void (*barrier)(void *arg), void *arg);

/* What to ask after a sleep and now and then: the interrupt controllers' dispatch, which returns
 * how many interrupts it handled. */
void scheduler_set_irq_dispatch(unsigned (*dispatch)(void));

/* A task that keeps the processor for longer is named in the log; 0 for never. */
void scheduler_set_stall_ms(uint64_t ms);

/* Before each sleep the rings are looked at for so long; 0 for not at all. */
void scheduler_set_spin_us(unsigned us);
/* They are looked at for SPIN_AUTO_US, but only while that has a good chance to end the wait and
 * little to cost: when the last SPIN_AUTO_WAITS waits were short, and what came of each was little.
 */
void scheduler_set_spin_auto(void);

/* From the beginning of `scheduler_run` the machine is ended with a report when the scheduler has
 * not turned for `seconds`; 0 for never. Where the board has no watchdog, the log says so. */
void scheduler_set_watchdog(unsigned seconds);

/* Runs until `scheduler_stop`; on boards for ever. Called once, on the boot stack. */
void scheduler_run(void);

/* Makes `scheduler_run` return when the current task waits next: host tests and the simulator. */
void scheduler_stop(void);

/* The time at the beginning of this turn: saves reading the clock, is late by one turn at most. */
uint64_t scheduler_now_ns(void);
/* Reads it after all: for who has waited for a device within a turn. */
void scheduler_read_clock(void);

struct scheduler_stats {
    uint64_t turns;
    uint64_t switches;
    uint64_t sleeps;
    uint64_t looks_that_found; /* the last look before a sleep found something: no sleep */
    uint64_t spins_that_found; /* something came while the rings were looked at, before that */
    uint64_t put_off;          /* looks that found something which may wait */
    uint64_t rescued;          /* woken by the clock, found an event that had no interrupt */
    uint64_t stalls;           /* a task kept the processor longer than TASK_STALL_MS */
    uint64_t refreshes;        /* of the processor's translations: TRANSLATIONS_MS */
};
const struct scheduler_stats *scheduler_get_stats(void);

#ifdef PLATTER_HOST
/* Unit tests and the simulator start anew: no task, no source, no statistics. Not from a task. */
void scheduler_forget(void);
#endif

#endif
