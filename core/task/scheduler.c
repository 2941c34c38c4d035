/* Tasks, events and the turn of the scheduler. See task.h, event.h, scheduler.h.
 *
 *            task_create            picked                 returns
 *   (memory) ───────────▶ READY ───────────▶ RUNNING ───────────────▶ ENDED ──▶ (memory)
 *                           ▲                   │ task_wait
 *                           └── event, deadline ── WAITING ◀┘
 */
#include "core/task/scheduler.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/mem/addr.h"
#include "core/mem/walls.h"
#include "core/panic.h"
#include "core/task/task.h"
#include "core/task/timer.h"

/* Stacks start filled with this, so that the deepest use can be found later. */
#define STACK_FILL 0xa5u

/* Interrupts that no ring tells of (console input, configuration changes) are looked for this often
 * while tasks keep the processor busy. */
#define IRQ_LOOK_NS NS_PER_MS

/* Console bytes written between two looks at the rings: a byte costs as much as 150 instructions.
 * The log is written when nothing else is to do, and a little now and then when there always is. */
enum { LOG_BYTES_PER_TURN = 32 };
#define LOG_BUSY_NS (10 * NS_PER_MS)

struct task {
    const char *name;
    struct arch_context context;
    enum task_state state;
    struct task *next_ready;
    struct task *next_waiter; /* on the event's list */
    struct event *event;      /* waited for; NULL when only for time */
    struct timer timer;
    bool timed_out;
    void (*entry)(void *arg);
    void *arg;
    uint8_t *stack; /* with a guard page below, which belongs to it */
    size_t stack_bytes;
    uint64_t runs;
    struct task *next_alive;
};

static struct task *alive;
static unsigned alive_count;
static struct task *ready_first;
static struct task *ready_last;
static unsigned ready_count;
static struct task *current;
static struct arch_context scheduler_context;
static struct poll_source *sources[POLL_SOURCES_MAX];
/* Copied from the sources, side by side: nearly every look ends with them, and nearly every ring is
 * armed by them. */
static struct {
    const volatile uint16_t *written;
    const uint16_t *taken;
    volatile uint16_t *event_index;
    uint16_t taken_before; /* when there was last nothing to do */
} looks[POLL_SOURCES_MAX];
static unsigned source_count;
static void (*sleep_barrier)(void *arg);
static void *sleep_barrier_arg;
static unsigned (*irq_dispatch)(void);
static uint64_t now_ns;
static uint64_t chores_ns; /* when one of the three below may be due, or the watchdog */
static uint64_t irq_looked_ns;
static uint64_t log_drained_ns;
static uint64_t stall_ns = TASK_STALL_MS * NS_PER_MS;
static uint64_t spin_ns;
static bool spin_is_auto;
static bool has_found;      /* the wait that has ended: whoever it was for is signalled already */
static bool is_quiet;       /* the last look before a sleep found nothing */
static unsigned spin_trust; /* short waits in a row, of few entries each: see should_spin */
static unsigned watchdog_s;
static uint64_t watchdog_fed_ns;
static uint64_t translations_ns;
static bool is_running;
static bool should_stop;
static struct scheduler_stats stats;

static void ready_push(struct task *task) {
    task->state = TASK_READY;
    task->next_ready = NULL;
    if (ready_last != NULL) {
        ready_last->next_ready = task;
    } else {
        ready_first = task;
    }
    ready_last = task;
    ready_count++;
}

static struct task *ready_pop(void) {
    struct task *task = ready_first;
    ASSERT(task != NULL && task->state == TASK_READY);
    ready_first = task->next_ready;
    if (ready_first == NULL) {
        ready_last = NULL;
    }
    ready_count--;
    return task;
}

static void stop_waiting_for_event(struct task *task) {
    struct event *event = task->event;
    if (event == NULL) {
        return;
    }
    struct task **link = &event->first_waiter;
    while (*link != task) {
        ASSERT(*link != NULL);
        link = &(*link)->next_waiter;
    }
    *link = task->next_waiter;
    task->event = NULL;
}

static void wait_timed_out(void *arg) {
    struct task *task = arg;
    ASSERT(task->state == TASK_WAITING);
    stop_waiting_for_event(task);
    task->timed_out = true;
    ready_push(task);
}

void event_signal(struct event *event) {
    if (event->first_waiter == NULL) {
        event->is_set = true;
        return;
    }
    while (event->first_waiter != NULL) {
        struct task *task = event->first_waiter;
        ASSERT(task->state == TASK_WAITING);
        stop_waiting_for_event(task);
        timer_cancel(&task->timer);
        ready_push(task);
    }
}

void event_clear(struct event *event) {
    event->is_set = false;
}

static void switch_to_scheduler(void) {
    arch_context_switch(&current->context, &scheduler_context);
}

int task_wait(struct event *event, uint64_t deadline_ns) {
    ASSERT(current != NULL);
    if (event != NULL && event->is_set) {
        event->is_set = false;
        task_yield(); /* one that wakes itself for ever must not starve others, timers or rings */
        return 0;
    }
    struct task *task = current;
    task->timed_out = false;
    task->event = event;
    if (event != NULL) {
        task->next_waiter = event->first_waiter;
        event->first_waiter = task;
    }
    if (deadline_ns != DEADLINE_NEVER) {
        timer_set(&task->timer, deadline_ns, wait_timed_out, task);
    }
    task->state = TASK_WAITING;
    switch_to_scheduler();
    return task->timed_out ? -ETIMEDOUT : 0;
}

void task_sleep_until(uint64_t deadline_ns) {
    (void)task_wait(NULL, deadline_ns); /* without an event only time can end it */
}

void task_yield(void) {
    ASSERT(current != NULL);
    ready_push(current);
    switch_to_scheduler();
}

static void task_begin(void *arg) {
    struct task *task = arg;
    task->entry(task->arg);
    task->state = TASK_ENDED;
    switch_to_scheduler();
    panic("task %s runs after its end", task->name);
}

/* A guard, then `stack_bytes`. */
static uint8_t *stack_create(size_t stack_bytes) {
    uint8_t *guard = aligned_alloc(PAGE_BYTES, PAGE_BYTES + stack_bytes);
    if (guard == NULL) {
        return NULL;
    }
    if (walls_put_guard(guard) != 0) {
        free(guard);
        return NULL;
    }
    return memset(guard + PAGE_BYTES, STACK_FILL, stack_bytes);
}

static void stack_destroy(uint8_t *stack) {
    walls_remove_guard(stack - PAGE_BYTES);
    free(stack - PAGE_BYTES);
}

struct task *task_create(const char *name, void (*entry)(void *arg), void *arg,
                         size_t stack_bytes) {
    stack_bytes = align_up(stack_bytes != 0 ? stack_bytes : TASK_STACK_BYTES, PAGE_BYTES);
    struct task *task = alive_count < TASKS_MAX ? calloc(1, sizeof *task) : NULL;
    uint8_t *stack = task != NULL ? stack_create(stack_bytes) : NULL;
    if (stack == NULL) {
        free(task);
        (void)log_error(-ENOMEM, "task %s: no memory for a stack of %zu bytes, or %u tasks alive",
                        name, stack_bytes, alive_count); /* NULL tells the caller */
        return NULL;
    }
    task->name = name;
    task->entry = entry;
    task->arg = arg;
    task->stack = stack;
    task->stack_bytes = stack_bytes;
    arch_context_init(&task->context, stack, stack_bytes, task_begin, task);
    struct task **link = &alive;
    while (*link != NULL) {
        link = &(*link)->next_alive;
    }
    *link = task;
    alive_count++;
    ready_push(task);
    return task;
}

static void task_destroy(struct task *task) {
    struct task **link = &alive;
    while (*link != task) {
        ASSERT(*link != NULL);
        link = &(*link)->next_alive;
    }
    *link = task->next_alive;
    alive_count--;
    stack_destroy(task->stack);
    free(task);
}

const char *task_current_name(void) {
    if (current != NULL) {
        return current->name;
    }
    return is_running ? "scheduler" : "boot";
}

static size_t stack_used_peak(const struct task *task) {
    size_t untouched = 0;
    while (untouched < task->stack_bytes && task->stack[untouched] == STACK_FILL) {
        untouched++;
    }
    return task->stack_bytes - untouched;
}

int task_get_info(unsigned index, struct task_info *info) {
    struct task *task = alive;
    for (unsigned i = 0; i < index && task != NULL; i++) {
        task = task->next_alive;
    }
    if (task == NULL) {
        return -ENOENT;
    }
    *info = (struct task_info){.name = task->name,
                               .state = task->state,
                               .runs = task->runs,
                               .event = task->state == TASK_WAITING ? task->event : NULL,
                               .stack = task->stack,
                               .stack_bytes = task->stack_bytes,
                               .stack_used_peak = stack_used_peak(task)};
    return 0;
}

/* A device interrupts when it writes the entry that the event index names, so the next one; one
 * that lies behind it has passed already (VIRTIO 1.3, 2.7.10). */
static inline void arm(unsigned index) {
    if (looks[index].event_index == NULL) {
        sources[index]->arm(sources[index]->arg);
    } else {
        *looks[index].event_index = *looks[index].taken;
    }
}

static inline void disarm(unsigned index) {
    if (looks[index].event_index == NULL) {
        sources[index]->disarm(sources[index]->arg);
    } else {
        *looks[index].event_index = (uint16_t)(*looks[index].taken - 1);
    }
}

void scheduler_add_source(struct poll_source *source) {
    /* A source that is always asked has indices that always differ. */
    static const uint16_t differ[2] = {0, 1};
    ASSERT(source_count < POLL_SOURCES_MAX);
    looks[source_count].written = source->written != NULL ? source->written : &differ[0];
    looks[source_count].taken = source->written != NULL ? source->taken : &differ[1];
    looks[source_count].event_index = source->event_index;
    looks[source_count].taken_before = *looks[source_count].taken;
    sources[source_count++] = source;
    source->event->is_external = true;
    disarm(source_count - 1);
}

void scheduler_remove_source(struct poll_source *source) {
    for (unsigned i = 0; i < source_count; i++) {
        if (sources[i] == source) {
            source_count--;
            sources[i] = sources[source_count];
            looks[i] = looks[source_count];
            return;
        }
    }
    panic("poll source %s was never added", source->name);
}

void scheduler_set_sleep_barrier(void (*barrier)(void *arg), void *arg) {
    sleep_barrier = barrier;
    sleep_barrier_arg = arg;
}

void scheduler_set_irq_dispatch(unsigned (*dispatch)(void)) {
    irq_dispatch = dispatch;
}

uint64_t scheduler_now_ns(void) {
    return now_ns;
}

void scheduler_read_clock(void) {
    now_ns = arch_clock_ns();
}

const struct scheduler_stats *scheduler_get_stats(void) {
    return &stats;
}

/* Out of line: nearly every look finds nothing, and saves no registers for this. */
__attribute__((noinline)) static bool ask(unsigned index) {
    const struct poll_source *source = sources[index];
    uint16_t taken = *looks[index].taken;
    if (source->pending(source->arg)) {
        event_signal(source->event);
        return true;
    }
    stats.put_off += *looks[index].taken != taken;
    return false;
}

static bool poll_sources(void) {
    bool found = false;
    for (unsigned i = 0; i < source_count; i++) {
        if (*looks[i].written != *looks[i].taken) {
            found |= ask(i);
        }
    }
    return found;
}

static unsigned look_for_interrupts(void) {
    irq_looked_ns = now_ns;
    return irq_dispatch != NULL ? irq_dispatch() : 0;
}

/* After a sleep that no interrupt ended, and while interrupts are still asked for: has a device
 * left something without telling? The barrier waits until the emulator has finished what it was
 * doing, so an interrupt on its way has come; if there is still none, an event was lost and only
 * the clock has saved us. Must stay at zero. */
static void count_rescue(void) {
    if (!poll_sources() || sleep_barrier == NULL) {
        return;
    }
    sleep_barrier(sleep_barrier_arg);
    if (look_for_interrupts() == 0) {
        stats.rescued++;
    }
}

/* No timer is set: then somebody outside must be able to wake a task, or nothing will ever happen
 * again. */
static void panic_if_deadlocked(void) {
    if (alive == NULL) {
        return;
    }
    for (const struct task *task = alive; task != NULL; task = task->next_alive) {
        if (task->event != NULL && task->event->is_external) {
            return;
        }
    }
    panic("deadlock: no task is ready, none waits for a time, and no device can wake any");
}

/* The order matters. (1) Each ring is told that we want an interrupt: a store to memory. (2) That
 * store must be visible before (3) the last look, a load; otherwise the device may have decided not
 * to interrupt while we do not see its entry yet, and both sides wait (VIRTIO 1.3, 2.7.7.1).
 *
 * On hardware and on current emulators the fence does (2). QEMU before 8.1 with one virtual CPU
 * compiles a guest's fence to nothing, and the host processor may move the load before the store.
 * There a read of any device register is the barrier: it takes the emulator's big lock. It costs
 * 150 ns once per sleep, everywhere, which is a fiftieth of what the sleep itself costs. */
static bool look_before_sleep(void) {
    uint64_t put_off;
    bool found = false;
    do {
        put_off = stats.put_off;
        for (unsigned i = 0; i < source_count; i++) {
            arm(i);
        }
        arch_barrier_full();
        if (sleep_barrier != NULL) {
            sleep_barrier(sleep_barrier_arg);
        }
        found = poll_sources();
        /* Behind what the look has put off, a device has to be asked for an interrupt anew. */
    } while (!found && stats.put_off != put_off);
    return found;
}

/* With every ring armed. */
static void sleep_once(void) {
    uint64_t most_ms = log_is_waiting() ? LOG_RETRY_MS : IDLE_NET_MS;
    uint64_t net_ns = arch_clock_ns() + most_ms * NS_PER_MS;
    uint64_t deadline_ns = timers_next_deadline();
    stats.sleeps++;
    if (deadline_ns == DEADLINE_NEVER) {
        panic_if_deadlocked();
    }
    arch_idle_until(deadline_ns < net_ns ? deadline_ns : net_ns);
    now_ns = arch_clock_ns();
    if (look_for_interrupts() == 0) {
        count_rescue();
    }
}

/* The time from which on it has waited for what has ended it. */
static uint64_t sleep_until_something_happens(void) {
    uint64_t put_off;
    uint64_t began_ns;
    do {
        began_ns = now_ns;
        has_found = look_before_sleep();
        is_quiet = !has_found;
        if (has_found) {
            stats.looks_that_found++;
            break;
        }
        put_off = stats.put_off;
        sleep_once();
        has_found = poll_sources();
        /* Woken for what may wait, and for nothing else: it goes on. */
    } while (!has_found && stats.put_off != put_off && ready_count == 0 &&
             now_ns < timers_next_deadline());
    for (unsigned i = 0; i < source_count; i++) {
        disarm(i);
    }
    return began_ns;
}

/* Looks at the rings for a while before it is worth telling the devices, sleeping and being woken.
 * False when the while is over, or a timer is due. Whether it pays depends on what a wake-up costs
 * and on who else wants the processor: see docs/performance.md. */
static bool spin_until_something_happens(void) {
    uint64_t end_ns = now_ns + spin_ns;
    uint64_t deadline_ns = timers_next_deadline();
    while (now_ns < end_ns && now_ns < deadline_ns) {
        uint64_t put_off = stats.put_off;
        if (poll_sources()) {
            stats.spins_that_found++;
            return true;
        }
        now_ns = arch_clock_ns();
        if (stats.put_off != put_off) {
            end_ns = now_ns + spin_ns; /* something has come: more may follow it */
        }
    }
    return false;
}

/* Entries that the tasks have taken from the rings since this was last asked. */
static unsigned entries_taken(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < source_count; i++) {
        uint16_t taken = *looks[i].taken;
        count += (uint16_t)(taken - looks[i].taken_before);
        looks[i].taken_before = taken;
    }
    return count;
}

/* A spin keeps a processor from those whom it waits for: the emulator's own threads, and a client
 * on the same machine. It pays where these have next to nothing to do between two answers, one
 * request at a time, and costs where they have much. So by itself it is done only while the rings
 * bring little at a time and every wait is short. */
static bool should_spin(void) {
    if (!spin_is_auto) {
        return spin_ns != 0;
    }
    if (entries_taken() > SPIN_AUTO_ENTRIES_MAX) {
        spin_trust = 0;
    }
    return spin_trust == SPIN_AUTO_WAITS;
}

static void wait_until_something_happens(void) {
    if (should_spin()) {
        has_found = spin_until_something_happens();
        if (has_found) {
            return;
        }
        spin_trust /= 2;
    }
    uint64_t began_ns = sleep_until_something_happens();
    bool was_short = now_ns - began_ns <= SPIN_AUTO_WAIT_US * NS_PER_US;
    spin_trust = !was_short ? 0 : spin_trust < SPIN_AUTO_WAITS ? spin_trust + 1 : spin_trust;
}

static void run_task(struct task *task) {
    uint64_t started_ns = now_ns;
    task->state = TASK_RUNNING;
    task->runs++;
    current = task;
    stats.switches++;
    arch_context_switch(&scheduler_context, &task->context);
    current = NULL;
    now_ns = arch_clock_ns();
    if (now_ns - started_ns > stall_ns) {
        stats.stalls++;
        log_warning("task %s kept the processor for %llu ms", task->name,
                    (unsigned long long)((now_ns - started_ns) / NS_PER_MS));
    }
    if (task->state == TASK_ENDED) {
        task_destroy(task);
    }
}

void scheduler_set_stall_ms(uint64_t ms) {
    stall_ns = ms != 0 ? ms * NS_PER_MS : UINT64_MAX;
}

void scheduler_set_spin_us(unsigned us) {
    spin_ns = us * NS_PER_US;
    spin_is_auto = false;
}

void scheduler_set_spin_auto(void) {
    spin_ns = SPIN_AUTO_US * NS_PER_US;
    spin_is_auto = true;
    spin_trust = 0;
}

void scheduler_set_watchdog(unsigned seconds) {
    watchdog_s = seconds;
}

static void feed_watchdog(void) {
    watchdog_fed_ns = now_ns;
    if (watchdog_s != 0 && !arch_watchdog(watchdog_s)) {
        watchdog_s = 0;
        log_info("watchdog: this firmware has none; a task that never yields goes unnoticed");
    }
}

/* What is done now and then: the interrupts most often, and a sleep asks for those, too. */
__attribute__((noinline)) static void do_chores(void) {
    if (now_ns - irq_looked_ns > IRQ_LOOK_NS) {
        (void)look_for_interrupts(); /* handlers signal what there is to do */
    }
    chores_ns = irq_looked_ns + IRQ_LOOK_NS;
    if (now_ns - watchdog_fed_ns > WATCHDOG_FEED_MS * NS_PER_MS) {
        feed_watchdog();
    }
    if (now_ns - translations_ns > TRANSLATIONS_MS * NS_PER_MS) {
        translations_ns = now_ns;
        stats.refreshes++;
        arch_pages_changed();
    }
    if (now_ns - log_drained_ns > LOG_BUSY_NS) {
        log_drained_ns = now_ns;
        (void)log_drain(LOG_BYTES_PER_TURN); /* the rest waits for the next time */
    }
}

/* One turn: what is due, what the rings hold, then every task that was ready at its beginning. */
static void turn(void) {
    stats.turns++;
    timers_fire(now_ns);
    /* Not before the look that comes before the sleep, where that finds nothing; where it does, it
     * has cost more than this one. */
    if (!has_found && (ready_count > 0 || !is_quiet)) {
        (void)poll_sources(); /* its signals are its result */
    }
    has_found = false;
    if (now_ns > chores_ns) {
        do_chores();
    }
    if (ready_count == 0) {
        if (log_drain(LOG_BYTES_PER_TURN)) {
            now_ns = arch_clock_ns();
            is_quiet = false; /* that took its time */
            return;
        }
        wait_until_something_happens();
        return;
    }
    for (unsigned budget = ready_count; budget > 0 && ready_count > 0; budget--) {
        run_task(ready_pop());
    }
}

void scheduler_run(void) {
    is_running = true;
    should_stop = false;
    now_ns = arch_clock_ns();
    feed_watchdog();
    while (!should_stop) {
        turn();
    }
    is_running = false;
}

void scheduler_stop(void) {
    should_stop = true;
}

#ifdef PLATTER_HOST
void scheduler_forget(void) {
    current = NULL; /* a failed test may have left in the middle of one */
    is_running = false;
    while (alive != NULL) {
        timer_cancel(&alive->timer);
        task_destroy(alive);
    }
    ready_first = NULL;
    ready_last = NULL;
    ready_count = 0;
    source_count = 0;
    sleep_barrier = NULL;
    irq_dispatch = NULL;
    has_found = false;
    is_quiet = false;
    chores_ns = 0;
    irq_looked_ns = 0;
    translations_ns = 0;
    scheduler_set_spin_us(0);
    stats = (struct scheduler_stats){0};
}
#endif
