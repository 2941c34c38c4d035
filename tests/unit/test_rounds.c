/* When the network task has its rounds: net/stack.c. */
#include <lwip/timeouts.h>

#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/task/timer.h"
#include "net/stack.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

static const struct world_options mute = {.is_mute = true};
static unsigned rounds;

static bool count_round(void *unused) {
    (void)unused;
    rounds++;
    return false;
}

static void call_back(void *called_at) {
    *(uint64_t *)called_at = scheduler_now_ns();
}

/* lwIP calls that function in so many milliseconds; the network learns of it in its next round. */
static void expect_call_in(u32_t ms, uint64_t *called_at) {
    sys_timeout(ms, call_back, called_at);
    net_wake();
}

static void sleep_until_ms(uint64_t ms) {
    task_sleep_until(ms * NS_PER_MS);
}

/* In whole milliseconds, as lwIP counts: each of its deadlines brings one round, and none comes
 * where there is nothing to do. */
static void rounds_at_deadlines(void) {
    net_set_worker(count_round, NULL);
    for (unsigned i = 0; i < 5; i++) {
        uint64_t due_ms = scheduler_now_ns() / NS_PER_MS + sys_timeouts_sleeptime();
        rounds = 0;
        sleep_until_ms(due_ms - 1);
        assert_int_equal(rounds, 0);
        sleep_until_ms(due_ms);
        task_yield(); /* this task may have been woken first */
        assert_int_equal(rounds, 1);
        assert_true(sys_timeouts_sleeptime() > 0);
    }
}

TEST(a_round_comes_when_lwip_has_something_to_do_and_none_before) {
    world_run(&mute, rounds_at_deadlines);
}

static void earlier_deadlines(void) {
    static const u32_t waits_ms[] = {100, 1, 30, 7};
    for (unsigned i = 0; i < ARRAY_COUNT(waits_ms); i++) {
        uint64_t called_at = 0;
        uint64_t now_ms = scheduler_now_ns() / NS_PER_MS;
        assert_true(sys_timeouts_sleeptime() > waits_ms[i]);
        expect_call_in(waits_ms[i], &called_at);
        sleep_until_ms(now_ms + waits_ms[i] + 1);
        assert_int_equal(called_at / NS_PER_MS, now_ms + waits_ms[i]);
    }
}

TEST(a_deadline_that_comes_before_the_one_that_was_next_is_met) {
    world_run(&mute, earlier_deadlines);
}

/* Woken for something else, the network still meets the deadline that it has waited for. */
static void rounds_before_a_deadline(void) {
    uint64_t called_at = 0;
    net_set_worker(count_round, NULL);
    uint64_t now_ms = scheduler_now_ns() / NS_PER_MS;
    expect_call_in(100, &called_at);
    task_yield();
    rounds = 0;
    for (unsigned i = 1; i < 10; i++) {
        sleep_until_ms(now_ms + (uint64_t)10 * i);
        net_wake();
        task_yield();
        assert_int_equal(rounds, i);
    }
    assert_int_equal(called_at, 0);
    sleep_until_ms(now_ms + 101);
    assert_int_equal(called_at / NS_PER_MS, now_ms + 100);
}

TEST(rounds_before_a_deadline_leave_it_where_it_is) {
    world_run(&mute, rounds_before_a_deadline);
}

static void note_whether_woken(void *is_woken) {
    *(bool *)is_woken = net_round()->first_waiter == NULL;
}

/* Timers for the same time fire in the order in which they were set. */
static void timer_stays(void) {
    static struct timer later;
    uint64_t called_at = 0;
    bool is_woken = false;
    uint64_t due_ms = scheduler_now_ns() / NS_PER_MS + 100;
    expect_call_in(100, &called_at);
    task_yield();
    timer_set(&later, due_ms * NS_PER_MS, note_whether_woken, &is_woken);
    for (unsigned i = 0; i < 3; i++) {
        task_sleep_until(arch_clock_ns() + 10 * NS_PER_MS);
        net_wake();
        task_yield();
    }
    sleep_until_ms(due_ms + 1);
    assert_int_equal(called_at / NS_PER_MS, due_ms);
    assert_true(is_woken);
}

TEST(rounds_before_a_deadline_leave_its_timer_set) {
    world_run(&mute, timer_stays);
}

/* The first and the second call that are to come. */
static uint64_t calls[2];
static bool is_second_expected;

static bool expect_second_call(void *unused) {
    (void)unused;
    if (calls[0] != 0 && !is_second_expected) {
        is_second_expected = true;
        sys_timeout(0, call_back, &calls[1]);
    }
    return false;
}

static void same_deadline_again(void) {
    uint64_t now_ms = scheduler_now_ns() / NS_PER_MS;
    net_set_worker(expect_second_call, NULL);
    expect_call_in(50, &calls[0]);
    sleep_until_ms(now_ms + 51);
    assert_int_equal(calls[0] / NS_PER_MS, now_ms + 50);
    assert_int_equal(calls[1] / NS_PER_MS, now_ms + 50);
}

TEST(a_deadline_for_the_time_that_it_is_brings_another_round) {
    world_run(&mute, same_deadline_again);
}
