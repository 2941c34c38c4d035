/* Tasks, events and the turn of the scheduler: core/task/scheduler.c. */
#include "core/task/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/task/task.h"
#include "tests/unit/unit.h"

/* What happened, in order, one letter each. */
static char happened[64];

static void note(char letter) {
    size_t used = strlen(happened);
    assert_true(used < sizeof happened - 1);
    happened[used] = letter;
    happened[used + 1] = '\0';
}

static void begin(void) {
    happened[0] = '\0';
}

static struct event event; /* the test itself is who may signal it */
static int wait_result;
static uint64_t woken_ns;

static void spawn(void (*entry)(void *arg), void *arg) {
    assert_non_null(task_create("spawned", entry, arg, (size_t)64 * 1024));
}

/* Runs the scheduler until nothing is ready any more, and one sleep has ended. */
static void stop_idle(void *unused, uint64_t deadline_ns) {
    (void)unused;
    (void)deadline_ns;
    scheduler_stop();
}

static void run_until_idle(void) {
    host_set_idle(stop_idle, NULL);
    scheduler_run();
}

static unsigned tasks_alive(void) {
    struct task_info info;
    unsigned count = 0;
    while (task_get_info(count, &info) == 0) {
        count++;
    }
    return count;
}

static void note_letter(void *arg) {
    note(*(const char *)arg);
}

TEST(tasks_run_in_the_order_they_were_created) {
    begin();
    spawn(note_letter, "a");
    spawn(note_letter, "b");
    spawn(note_letter, "c");
    run_until_idle();
    assert_string_equal(happened, "abc");
    assert_int_equal(tasks_alive(), 0);
}

static void wait_for_event(void *arg) {
    wait_result = task_wait(&event, *(const uint64_t *)arg);
    woken_ns = arch_clock_ns();
    note('w');
}

static const uint64_t never = DEADLINE_NEVER;

static void signal_event(void *unused) {
    (void)unused;
    note('s');
    event_signal(&event);
    note('t');
}

TEST(a_signal_wakes_the_task_that_waits_in_the_next_turn) {
    begin();
    event = (struct event){.is_external = true};
    spawn(wait_for_event, (void *)(uintptr_t)&never);
    spawn(signal_event, NULL);
    run_until_idle();
    assert_string_equal(happened, "stw");
    assert_int_equal(wait_result, 0);
}

TEST(a_signal_before_the_wait_is_kept_once) {
    static const uint64_t soon = UNIT_CLOCK_START_NS + 5;
    event = (struct event){.is_external = true};
    begin();
    event_signal(&event);
    event_signal(&event);
    spawn(wait_for_event, (void *)(uintptr_t)&never);
    run_until_idle();
    assert_string_equal(happened, "w");
    assert_int_equal(wait_result, 0);
    host_set_idle(NULL, NULL);
    unit_run_task(wait_for_event, (void *)(uintptr_t)&soon);
    assert_int_equal(wait_result, -ETIMEDOUT);
}

static uint64_t idle_until_ns;

static void note_idle(void *unused, uint64_t deadline_ns) {
    idle_until_ns = deadline_ns;
    stop_idle(unused, deadline_ns);
}

static size_t take_up_to(void *room, const char *text, size_t length) {
    (void)text;
    return length < *(size_t *)room ? length : *(size_t *)room;
}

TEST(a_console_that_takes_nothing_keeps_nobody_awake_and_is_offered_again_soon) {
    size_t room = 0;
    begin();
    host_set_idle(note_idle, NULL);
    log_set_sink(take_up_to, &room);
    log_text("for nobody");
    scheduler_run();
    assert_int_equal(idle_until_ns, UNIT_CLOCK_START_NS + LOG_RETRY_MS * NS_PER_MS);
    room = LOG_LINE_MAX;
    scheduler_run();
    assert_false(log_is_waiting());
    assert_int_equal(idle_until_ns, UNIT_CLOCK_START_NS + IDLE_NET_MS * NS_PER_MS);
}

static bool others_had_their_turn;

static void take_a_turn(void *unused) {
    (void)unused;
    others_had_their_turn = true;
}

static void wake_itself(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < 1000 && !others_had_their_turn; i++) {
        event_signal(&event);
        (void)task_wait(&event, DEADLINE_NEVER);
    }
    note(others_had_their_turn ? 'y' : 'n');
}

TEST(a_task_that_wakes_itself_starves_nobody) {
    begin();
    event = (struct event){0};
    others_had_their_turn = false;
    spawn(wake_itself, NULL);
    spawn(take_a_turn, NULL);
    run_until_idle();
    assert_string_equal(happened, "y");
}

TEST(a_cleared_signal_is_forgotten) {
    static const uint64_t soon = UNIT_CLOCK_START_NS + 5;
    event = (struct event){.is_external = true};
    event_signal(&event);
    event_clear(&event);
    unit_run_task(wait_for_event, (void *)(uintptr_t)&soon);
    assert_int_equal(wait_result, -ETIMEDOUT);
}

TEST(a_wait_ends_at_its_deadline) {
    static const uint64_t deadline_ns = UNIT_CLOCK_START_NS + 123456;
    event = (struct event){.is_external = true};
    unit_run_task(wait_for_event, (void *)(uintptr_t)&deadline_ns);
    assert_int_equal(wait_result, -ETIMEDOUT);
    assert_int_equal(woken_ns, deadline_ns);
    assert_null(event.first_waiter);
}

TEST(a_deadline_that_has_passed_ends_the_wait_at_once) {
    static const uint64_t past_ns = 1;
    event = (struct event){.is_external = true};
    unit_run_task(wait_for_event, (void *)(uintptr_t)&past_ns);
    assert_int_equal(wait_result, -ETIMEDOUT);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS);
}

TEST(a_signal_in_time_cancels_the_deadline) {
    static const uint64_t deadline_ns = UNIT_CLOCK_START_NS + 100;
    begin();
    event = (struct event){.is_external = true};
    spawn(wait_for_event, (void *)(uintptr_t)&deadline_ns);
    spawn(signal_event, NULL);
    run_until_idle();
    assert_int_equal(wait_result, 0);
    host_clock_advance(1000);
    run_until_idle();
    assert_string_equal(happened, "stw");
}

TEST(one_signal_wakes_all_that_wait) {
    begin();
    event = (struct event){.is_external = true};
    for (int i = 0; i < 5; i++) {
        spawn(wait_for_event, (void *)(uintptr_t)&never);
    }
    spawn(signal_event, NULL);
    run_until_idle();
    assert_string_equal(happened, "stwwwww");
    assert_false(event.is_set);
    assert_int_equal(tasks_alive(), 0);
}

TEST(a_waiter_in_the_middle_may_time_out_alone) {
    static const uint64_t soon = UNIT_CLOCK_START_NS + 10;
    begin();
    event = (struct event){.is_external = true};
    spawn(wait_for_event, (void *)(uintptr_t)&never);
    spawn(wait_for_event, (void *)(uintptr_t)&soon);
    spawn(wait_for_event, (void *)(uintptr_t)&never);
    run_until_idle();
    host_clock_advance(10);
    run_until_idle();
    assert_string_equal(happened, "w");
    assert_int_equal(wait_result, -ETIMEDOUT);
    event_signal(&event);
    run_until_idle();
    assert_string_equal(happened, "www");
    assert_int_equal(wait_result, 0);
}

static void sleep_long(void *unused) {
    (void)unused;
    task_sleep_until(UNIT_CLOCK_START_NS + 10 * NS_PER_S);
    woken_ns = arch_clock_ns();
}

TEST(a_task_sleeps_until_its_time_in_pieces) {
    unit_run_task(sleep_long, NULL);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + 10 * NS_PER_S);
    assert_true(scheduler_get_stats()->sleeps >= 10 * 1000 / IDLE_NET_MS);
}

static void yield_three_times(void *arg) {
    for (int i = 0; i < 3; i++) {
        note(*(const char *)arg);
        task_yield();
    }
}

TEST(tasks_that_yield_take_turns) {
    begin();
    spawn(yield_three_times, "a");
    spawn(yield_three_times, "b");
    spawn(yield_three_times, "c");
    run_until_idle();
    assert_string_equal(happened, "abcabcabc");
}

static void create_and_yield(void *arg) {
    (void)arg;
    spawn(note_letter, "n");
    for (int i = 0; i < 3; i++) {
        note('y');
        task_yield();
    }
}

TEST(a_task_created_by_another_gets_its_turn) {
    begin();
    spawn(create_and_yield, NULL);
    run_until_idle();
    assert_string_equal(happened, "ynyy");
}

/* More tasks than may be alive at once: each must leave its place and its stack. */
static void count_run(void *arg) {
    (*(unsigned *)arg)++;
}

TEST(a_task_that_ends_leaves_its_place_to_another) {
    unsigned runs = 0;
    for (unsigned i = 0; i < 5 * TASKS_MAX; i++) {
        spawn(count_run, &runs);
        run_until_idle();
    }
    assert_int_equal(runs, 5 * TASKS_MAX);
    assert_int_equal(tasks_alive(), 0);
}

TEST(one_task_too_many_is_refused_and_said) {
    unsigned runs = 0;
    for (unsigned i = 0; i < TASKS_MAX; i++) {
        assert_non_null(task_create("many", count_run, &runs, 8192));
    }
    assert_null(task_create("last", count_run, &runs, 8192));
    assert_logged("task last: no memory for a stack of 8192 bytes, or 64 tasks alive");
}

TEST(a_task_without_memory_is_refused_and_leaves_nothing) {
    for (uint64_t successes = 0; successes < 2; successes++) {
        unit_allocations_until_failure(successes);
        assert_null(task_create("poor", count_run, NULL, 8192));
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    }
    assert_int_equal(tasks_alive(), 0);
    assert_logged("task poor: no memory");
}

static void use_stack(void *unused) {
    (void)unused;
    volatile uint8_t deep[20000];
    for (size_t i = 0; i < sizeof deep; i++) {
        deep[i] = 1;
    }
    (void)task_wait(&event, DEADLINE_NEVER); /* never signalled: the test looks at it asleep */
}

TEST(the_deepest_use_of_a_stack_is_told) {
    struct task_info info = {0};
    event = (struct event){.is_external = true};
    assert_non_null(task_create("deep", use_stack, NULL, (size_t)64 * 1024));
    assert_int_equal(task_get_info(0, &info), 0);
    assert_true(info.stack_used_peak < 4096);
    run_until_idle();
    assert_int_equal(task_get_info(0, &info), 0);
    assert_string_equal(info.name, "deep");
    assert_int_equal(info.state, TASK_WAITING);
    assert_int_equal(info.runs, 1);
    assert_int_equal(info.stack_bytes, 64 * 1024);
    assert_in_range(info.stack_used_peak, 20000, 40000);
    assert_int_equal(task_get_info(1, &info), -ENOENT);
}

static void be_slow(void *unused) {
    (void)unused;
    host_clock_advance((TASK_STALL_MS + 1) * NS_PER_MS);
}

TEST(a_task_that_keeps_the_processor_is_named) {
    assert_non_null(task_create("hog", be_slow, NULL, (size_t)64 * 1024));
    run_until_idle();
    assert_logged("task hog kept the processor for 201 ms");
    assert_int_equal(scheduler_get_stats()->stalls, 1);
}

static void say_name(void *unused) {
    (void)unused;
    assert_string_equal(task_current_name(), "named");
}

TEST(the_current_task_has_a_name) {
    assert_string_equal(task_current_name(), "boot");
    assert_non_null(task_create("named", say_name, NULL, (size_t)64 * 1024));
    run_until_idle();
    assert_string_equal(task_current_name(), "boot");
}

TEST(waiting_outside_of_a_task_panics) {
    assert_panics("current != NULL", (void)task_wait(&event, 1));
    assert_panics("current != NULL", task_yield());
}

static void drain_log_slowly(void *unused) {
    (void)unused;
    log_text("a line longer than the thirty-two bytes that the console gets in one turn");
    assert_true(log_is_waiting());
    task_yield();
    assert_true(log_is_waiting());
    (void)task_wait(NULL, UNIT_CLOCK_START_NS + 1);
    assert_false(log_is_waiting());
}

TEST(the_log_is_written_when_nothing_else_wants_to_run) {
    unit_run_task(drain_log_slowly, NULL);
}

/* --- Poll sources ---
 *
 * A device that completes exactly in the gap that is named: between two steps of going to sleep. */

enum gap {
    BEFORE_ARM,
    AFTER_ARM,
    IN_BARRIER,
    WHILE_ASLEEP_WITH_INTERRUPT,
    WHILE_ASLEEP_WITHOUT_INTERRUPT,
    GAPS
};

struct fake_device {
    struct poll_source source;
    struct event done;
    enum gap gap;
    bool has_completed;
    bool is_armed;
    bool interrupt_is_pending;
    unsigned interrupts_handled;
};

static struct fake_device device;

/* The device interrupts only when it was asked to before it completed. */
static void complete(void) {
    device.has_completed = true;
    device.interrupt_is_pending = device.is_armed;
}

static bool device_pending(void *unused) {
    (void)unused;
    return device.has_completed;
}

static void device_arm(void *unused) {
    (void)unused;
    note('a');
    if (device.gap == BEFORE_ARM) {
        complete();
    }
    device.is_armed = true;
    if (device.gap == AFTER_ARM) {
        complete();
    }
}

static void device_disarm(void *unused) {
    (void)unused;
    note('d');
    device.is_armed = false;
}

static void device_barrier(void *unused) {
    (void)unused;
    note('b');
    if (device.gap == IN_BARRIER && !device.has_completed) {
        complete();
    }
}

static void device_idle(void *unused, uint64_t deadline_ns) {
    (void)unused;
    note('i');
    if (device.interrupt_is_pending) {
        return;
    }
    if (device.gap == WHILE_ASLEEP_WITH_INTERRUPT) {
        host_clock_advance(10);
        complete();
    } else {
        host_clock_set(deadline_ns);
        device.has_completed = true; /* and no interrupt comes of it */
    }
}

static unsigned device_dispatch(void) {
    if (!device.interrupt_is_pending) {
        return 0;
    }
    device.interrupt_is_pending = false;
    device.interrupts_handled++;
    return 1;
}

static void wait_for_device(void *unused) {
    (void)unused;
    wait_result = task_wait(&device.done, UNIT_CLOCK_START_NS + 100 * NS_PER_S);
    device.has_completed = false; /* taken */
    woken_ns = arch_clock_ns();
}

static void run_with_device(enum gap gap, bool (*pending)(void *unused), unsigned spin_us) {
    device = (struct fake_device){.gap = gap};
    device.source = (struct poll_source){.name = "fake",
                                         .pending = pending,
                                         .arm = device_arm,
                                         .disarm = device_disarm,
                                         .event = &device.done};
    begin();
    scheduler_set_spin_us(spin_us);
    scheduler_add_source(&device.source);
    scheduler_set_sleep_barrier(device_barrier, NULL);
    scheduler_set_irq_dispatch(device_dispatch);
    host_set_idle(device_idle, NULL);
    unit_run_task(wait_for_device, NULL);
    assert_int_equal(wait_result, 0);
}

static void wait_without_a_spin(enum gap gap) {
    run_with_device(gap, device_pending, 0);
}

static unsigned looks_left;

static bool pending_after_some_looks(void *unused) {
    host_clock_advance(NS_PER_US);
    looks_left -= looks_left > 0;
    device.has_completed |= looks_left == 0;
    return device_pending(unused);
}

static void wait_with_a_spin_of(unsigned us, unsigned looks) {
    looks_left = looks;
    run_with_device(WHILE_ASLEEP_WITH_INTERRUPT, pending_after_some_looks, us);
}

TEST(what_comes_while_it_spins_is_found_without_a_sleep) {
    wait_with_a_spin_of(50, 20);
    assert_string_equal(happened, "d");
    assert_int_equal(scheduler_get_stats()->spins_that_found, 1);
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
}

TEST(a_spin_ends_in_a_sleep) {
    wait_with_a_spin_of(50, 1000);
    assert_string_equal(happened, "dabid");
    assert_int_equal(scheduler_get_stats()->spins_that_found, 0);
    assert_true(woken_ns >= UNIT_CLOCK_START_NS + 50 * NS_PER_US);
}

TEST(going_to_sleep_arms_then_orders_then_looks_then_sleeps) {
    wait_without_a_spin(WHILE_ASLEEP_WITH_INTERRUPT);
    assert_string_equal(happened, "dabid"); /* the first d: a new source begins unarmed */
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + 10);
    assert_int_equal(device.interrupts_handled, 1);
    assert_int_equal(scheduler_get_stats()->rescued, 0);
}

TEST(a_completion_in_any_gap_before_the_sleep_ends_it) {
    for (enum gap gap = BEFORE_ARM; gap <= IN_BARRIER; gap++) {
        scheduler_forget();
        host_clock_set(UNIT_CLOCK_START_NS);
        wait_without_a_spin(gap);
        assert_string_equal(happened, "dabd");
        assert_int_equal(woken_ns, UNIT_CLOCK_START_NS);
        assert_int_equal(scheduler_get_stats()->looks_that_found, 1);
        assert_int_equal(scheduler_get_stats()->sleeps, 0);
        assert_int_equal(scheduler_get_stats()->rescued, 0);
    }
}

TEST(a_completion_without_its_interrupt_is_found_by_the_net_and_counted) {
    wait_without_a_spin(WHILE_ASLEEP_WITHOUT_INTERRUPT);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + IDLE_NET_MS * NS_PER_MS);
    assert_int_equal(scheduler_get_stats()->rescued, 1);
}

static void look_at_device(void *unused) {
    (void)unused;
    complete();
    device.interrupt_is_pending = false;
    task_yield();
    assert_true(device.done.is_set);
}

TEST(while_tasks_are_busy_rings_are_seen_without_interrupts) {
    device = (struct fake_device){.source = {.name = "fake",
                                             .pending = device_pending,
                                             .arm = device_arm,
                                             .disarm = device_disarm,
                                             .event = &device.done}};
    begin();
    scheduler_add_source(&device.source);
    unit_run_task(look_at_device, NULL);
    assert_string_equal(happened, "d");
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
}

static void spin(void *unused) {
    (void)unused;
    for (int i = 0; i < 5; i++) {
        host_clock_advance(NS_PER_MS);
        device.interrupt_is_pending = true;
        task_yield();
    }
}

TEST(while_tasks_are_busy_interrupts_are_asked_for_now_and_then) {
    device = (struct fake_device){0};
    scheduler_set_irq_dispatch(device_dispatch);
    unit_run_task(spin, NULL);
    assert_in_range(device.interrupts_handled, 2, 5);
}

TEST(a_removed_source_is_not_asked_and_removing_it_again_panics) {
    device = (struct fake_device){.source = {.name = "fake",
                                             .pending = device_pending,
                                             .arm = device_arm,
                                             .disarm = device_disarm,
                                             .event = &device.done}};
    scheduler_add_source(&device.source);
    scheduler_remove_source(&device.source);
    begin();
    run_until_idle();
    assert_string_equal(happened, "");
    assert_panics("poll source fake was never added", scheduler_remove_source(&device.source));
}

TEST(more_sources_than_the_limit_panic) {
    static struct poll_source sources[POLL_SOURCES_MAX + 1];
    for (unsigned i = 0; i < ARRAY_COUNT(sources); i++) {
        sources[i] = (struct poll_source){.name = "fake", .disarm = device_disarm, .event = &event};
    }
    begin();
    for (unsigned i = 0; i < POLL_SOURCES_MAX; i++) {
        scheduler_add_source(&sources[i]);
    }
    assert_panics("source_count < POLL_SOURCES_MAX",
                  scheduler_add_source(&sources[POLL_SOURCES_MAX]));
}

static void wait_in_vain(void *unused) {
    static struct event nobodys;
    (void)unused;
    (void)task_wait(&nobodys, DEADLINE_NEVER);
}

TEST(tasks_that_nobody_can_wake_are_a_deadlock) {
    spawn(wait_in_vain, NULL);
    spawn(wait_in_vain, NULL);
    assert_panics("deadlock: no task is ready", run_until_idle());
    spawn(wait_for_event, (void *)(uintptr_t)&never);
    event = (struct event){.is_external = true};
    run_until_idle(); /* one of the three a device may wake */
    assert_int_equal(tasks_alive(), 3);
}

TEST(a_stall_is_named_from_where_the_configuration_says) {
    scheduler_set_stall_ms(TASK_STALL_MS + 1);
    spawn(be_slow, NULL);
    run_until_idle();
    assert_int_equal(scheduler_get_stats()->stalls, 0);
    scheduler_set_stall_ms(TASK_STALL_MS);
    spawn(be_slow, NULL);
    run_until_idle();
    assert_int_equal(scheduler_get_stats()->stalls, 1);
    scheduler_set_stall_ms(0);
    spawn(be_slow, NULL);
    run_until_idle();
    assert_int_equal(scheduler_get_stats()->stalls, 1);
    scheduler_set_stall_ms(TASK_STALL_MS);
}

TEST(a_board_without_a_watchdog_is_told_once) {
    scheduler_set_watchdog(10);
    spawn(count_run, &(unsigned){0});
    run_until_idle();
    assert_logged("watchdog: this firmware has none");
    unit_log_clear();
    spawn(count_run, &(unsigned){0});
    run_until_idle();
    assert_not_logged("watchdog");
}

static void be_busy(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < 20 * TRANSLATIONS_MS; i++) {
        host_clock_advance(NS_PER_MS);
        task_yield();
    }
}

TEST(translations_are_forgotten_now_and_then_however_busy_it_is) {
    spawn(be_busy, NULL);
    run_until_idle();
    uint64_t refreshes = scheduler_get_stats()->refreshes;
    assert_true(refreshes >= 19 && refreshes <= 21);
}
