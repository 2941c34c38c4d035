/* Timers: core/task/timer.c. */
#include "core/task/timer.h"

#include "tests/unit/unit.h"

enum { FIRED_MAX = 16 };

static int fired[FIRED_MAX];
static unsigned fired_count;

static void note(void *arg) {
    assert_true(fired_count < FIRED_MAX);
    fired[fired_count++] = *(int *)arg;
}

static int numbers[] = {0, 1, 2, 3, 4, 5, 6, 7};

static void set(struct timer *timer, uint64_t deadline_ns, int number) {
    timer_set(timer, deadline_ns, note, &numbers[number]);
}

static void expect_fired(const int *expected, unsigned count) {
    assert_int_equal(fired_count, count);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(fired[i], expected[i]);
    }
    fired_count = 0;
}

TEST(without_timers_there_is_no_deadline) {
    assert_int_equal(timers_next_deadline(), DEADLINE_NEVER);
    timers_fire(UINT64_MAX);
}

TEST(timers_fire_in_order_of_deadline_and_not_before) {
    struct timer timers[3] = {0};
    set(&timers[0], 300, 0);
    set(&timers[1], 100, 1);
    set(&timers[2], 200, 2);
    assert_int_equal(timers_next_deadline(), 100);
    timers_fire(99);
    expect_fired(NULL, 0);
    timers_fire(100);
    expect_fired((int[]){1}, 1);
    assert_int_equal(timers_next_deadline(), 200);
    timers_fire(1000);
    expect_fired((int[]){2, 0}, 2);
    assert_int_equal(timers_next_deadline(), DEADLINE_NEVER);
}

TEST(timers_of_one_deadline_fire_in_the_order_they_were_set) {
    struct timer timers[3] = {0};
    for (int i = 0; i < 3; i++) {
        set(&timers[i], 100, i);
    }
    timers_fire(100);
    expect_fired((int[]){0, 1, 2}, 3);
}

TEST(a_timer_set_again_moves) {
    struct timer timers[2] = {0};
    set(&timers[0], 100, 0);
    set(&timers[1], 200, 1);
    set(&timers[0], 300, 2);
    timers_fire(200);
    expect_fired((int[]){1}, 1);
    timers_fire(300);
    expect_fired((int[]){2}, 1);
}

TEST(a_cancelled_timer_stays_silent_wherever_it_stood) {
    for (int cancelled = 0; cancelled < 3; cancelled++) {
        struct timer timers[3] = {0};
        for (int i = 0; i < 3; i++) {
            set(&timers[i], UINT64_C(100) + (uint64_t)i, i);
        }
        timer_cancel(&timers[cancelled]);
        assert_false(timers[cancelled].is_set);
        timer_cancel(&timers[cancelled]);
        timers_fire(1000);
        expect_fired((int[]){cancelled == 0, cancelled == 2 ? 1 : 2}, 2);
    }
}

struct periodic {
    struct timer timer;
    uint64_t period_ns;
    unsigned fired;
};

static void fire_again(void *arg) {
    struct periodic *periodic = arg;
    periodic->fired++;
    assert_false(periodic->timer.is_set);
    timer_set(&periodic->timer, periodic->timer.deadline_ns + periodic->period_ns, fire_again,
              periodic);
}

TEST(a_timer_may_be_set_again_by_what_it_calls) {
    struct periodic periodic = {.period_ns = 100};
    timer_set(&periodic.timer, 100, fire_again, &periodic);
    timers_fire(100);
    timers_fire(199);
    assert_int_equal(periodic.fired, 1);
    timers_fire(200);
    assert_int_equal(periodic.fired, 2);
    timer_cancel(&periodic.timer);
}

/* A timer that is always due must not keep the scheduler from everything else. */
TEST(a_timer_set_again_for_now_fires_in_the_next_turn) {
    struct periodic periodic = {.period_ns = 0};
    timer_set(&periodic.timer, 100, fire_again, &periodic);
    timers_fire(100);
    assert_int_equal(periodic.fired, 1);
    timers_fire(100);
    assert_int_equal(periodic.fired, 2);
    timer_cancel(&periodic.timer);
}

static struct timer victim;

static void cancel_victim(void *unused) {
    (void)unused;
    timer_cancel(&victim);
}

TEST(a_timer_may_cancel_another_that_is_due) {
    struct timer timers[2] = {0};
    timer_set(&timers[0], 100, cancel_victim, NULL);
    set(&victim, 100, 1);
    set(&timers[1], 100, 2);
    timers_fire(100);
    expect_fired((int[]){2}, 1);
}
