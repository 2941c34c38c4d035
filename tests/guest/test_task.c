/* Tasks, events and timers by the machine's own clock. */
#include <errno.h>

#include "boot/arch.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/task/timer.h"
#include "tests/guest/guest.h"

/* Under emulation on a busy machine a sleep may be late, by much; it is never early. */
#define LATE_NS_MAX (2 * NS_PER_S)

enum { TASKS = 40, ROUNDS = 200 };

static unsigned tasks_alive(void) {
    struct task_info info;
    unsigned count = 0;
    while (task_get_info(count, &info) == 0) {
        count++;
    }
    return count;
}

static unsigned running;
static unsigned rounds;
static struct event all_done;

static void yield_many_times(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        rounds++;
        task_yield();
    }
    if (--running == 0) {
        event_signal(&all_done);
    }
}

static void many_tasks_take_turns_and_leave_nothing(void) {
    unsigned before = tasks_alive();
    running = TASKS;
    rounds = 0;
    for (int i = 0; i < TASKS; i++) {
        EXPECT(task_create("yielder", yield_many_times, NULL, 8192) != NULL);
    }
    EXPECT(task_wait(&all_done, arch_clock_ns() + 20 * NS_PER_S) == 0);
    task_yield();
    EXPECT(rounds == TASKS * ROUNDS && tasks_alive() == before);
}

static void a_wait_ends_after_its_deadline_and_soon(void) {
    struct event never = {0};
    for (uint64_t ms = 1; ms <= 64; ms *= 4) {
        uint64_t deadline_ns = arch_clock_ns() + ms * NS_PER_MS;
        EXPECT(task_wait(&never, deadline_ns) == -ETIMEDOUT);
        uint64_t late_ns = arch_clock_ns() - deadline_ns;
        EXPECT(late_ns < LATE_NS_MAX);
        guest_say("a wait of %llu ms ended %llu us late", (unsigned long long)ms,
                  (unsigned long long)(late_ns / NS_PER_US));
    }
}

static void a_deadline_that_has_passed_ends_the_wait(void) {
    struct event never = {0};
    EXPECT(task_wait(&never, arch_clock_ns() - 1) == -ETIMEDOUT);
    EXPECT(task_wait(&never, 0) == -ETIMEDOUT);
}

static unsigned fired;
static uint64_t fired_ns[3];
static struct event last_fired;

static void fire(void *arg) {
    fired_ns[*(const unsigned *)arg] = arch_clock_ns();
    if (++fired == 3) {
        event_signal(&last_fired);
    }
}

static void timers_fire_in_order_and_not_early(void) {
    static const unsigned numbers[] = {0, 1, 2};
    static const uint64_t delays_ms[] = {30, 10, 20};
    struct timer timers[3] = {0};
    uint64_t start_ns = arch_clock_ns();
    fired = 0;
    for (unsigned i = 0; i < 3; i++) {
        timer_set(&timers[i], start_ns + delays_ms[i] * NS_PER_MS, fire,
                  (void *)(uintptr_t)&numbers[i]);
    }
    EXPECT(task_wait(&last_fired, start_ns + 10 * NS_PER_S) == 0);
    for (unsigned i = 0; i < 3; i++) {
        EXPECT(fired_ns[i] >= start_ns + delays_ms[i] * NS_PER_MS);
    }
    EXPECT(fired_ns[1] <= fired_ns[2] && fired_ns[2] <= fired_ns[0]);
}

static void a_cancelled_timer_stays_silent(void) {
    static const unsigned number = 0;
    struct timer timer = {0};
    fired = 0;
    timer_set(&timer, arch_clock_ns() + 5 * NS_PER_MS, fire, (void *)(uintptr_t)&number);
    timer_cancel(&timer);
    task_sleep_until(arch_clock_ns() + 20 * NS_PER_MS);
    EXPECT(fired == 0);
}

static struct event ping;
static struct event pong;

static void answer(void *unused) {
    (void)unused;
    for (int i = 0; i < 2000; i++) {
        (void)task_wait(&ping, DEADLINE_NEVER); /* only the signal ends it */
        event_signal(&pong);
    }
}

static void two_tasks_wake_each_other_without_losing_a_signal(void) {
    EXPECT(task_create("answer", answer, NULL, 8192) != NULL);
    for (int i = 0; i < 2000; i++) {
        event_signal(&ping);
        EXPECT(task_wait(&pong, arch_clock_ns() + 10 * NS_PER_S) == 0);
    }
}

static struct event stay;
static struct event stayed;

enum { DEEP_FRAMES = 12, DEEP_FRAME_BYTES = 1000 };

static unsigned go_deep(unsigned frames) {
    volatile char deep[DEEP_FRAME_BYTES] = {0};
    for (unsigned i = 0; i < sizeof deep; i++) {
        deep[i] = 1;
    }
    return frames > 1 ? go_deep(frames - 1) + (unsigned)deep[frames % DEEP_FRAME_BYTES]
                      : 1; /* the sum keeps it a call */
}

static void use_stack(void *unused) {
    (void)unused;
    EXPECT(go_deep(DEEP_FRAMES) == DEEP_FRAMES);
    event_signal(&stayed);
    (void)task_wait(&stay, DEADLINE_NEVER); /* only the signal ends it */
}

static void the_deepest_use_of_a_stack_is_told(void) {
    struct task_info info = {0};
    EXPECT(task_create("deep", use_stack, NULL, 32768) != NULL);
    EXPECT(task_wait(&stayed, arch_clock_ns() + 10 * NS_PER_S) == 0);
    unsigned last = tasks_alive() - 1;
    EXPECT(task_get_info(last, &info) == 0);
    EXPECT(info.stack_used_peak >= DEEP_FRAMES * DEEP_FRAME_BYTES && info.stack_used_peak < 16000);
    event_signal(&stay);
    task_yield();
}

static void no_task_came_near_the_end_of_its_stack(void) {
    struct task_info info;
    for (unsigned i = 0; task_get_info(i, &info) == 0; i++) {
        guest_say("task %s used %zu of %zu bytes of stack", info.name, info.stack_used_peak,
                  info.stack_bytes);
        EXPECT(info.stack_used_peak < info.stack_bytes / 4 * 3);
    }
}

const struct guest_test guest_task_tests[] = {
    {"many_tasks_take_turns_and_leave_nothing", many_tasks_take_turns_and_leave_nothing},
    {"a_wait_ends_after_its_deadline_and_soon", a_wait_ends_after_its_deadline_and_soon},
    {"a_deadline_that_has_passed_ends_the_wait", a_deadline_that_has_passed_ends_the_wait},
    {"timers_fire_in_order_and_not_early", timers_fire_in_order_and_not_early},
    {"a_cancelled_timer_stays_silent", a_cancelled_timer_stays_silent},
    {"two_tasks_wake_each_other_without_losing_a_signal",
     two_tasks_wake_each_other_without_losing_a_signal},
    {"the_deepest_use_of_a_stack_is_told", the_deepest_use_of_a_stack_is_told},
    {"no_task_came_near_the_end_of_its_stack", no_task_came_near_the_end_of_its_stack},
    {NULL, NULL},
};
