/* Rings that are armed by an index, what may wait, and what the scheduler does now and then:
 * core/task/scheduler.c. */
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/task/timer.h"
#include "tests/unit/unit.h"

enum { RINGS = 3, SPIN_US = 50, STEP_US = 100, LOOKS_MAX = 200 };

/* A ring, and the device behind it, which interrupts when it writes the entry that the event index
 * names. */
struct ring {
    struct poll_source source;
    struct event event;
    volatile uint16_t written;
    uint16_t taken;
    volatile uint16_t event_index;
    unsigned may_wait; /* so many times, what is there is put off */
    bool is_no_news;   /* what is there is nobody's concern */
    unsigned asked;
    uint16_t index_asleep; /* the event index during the last sleep */
};

static struct ring rings[RINGS];
static struct ring *const ring = &rings[0];
static bool has_interrupt;
static unsigned barriers;
static unsigned puts_in_barrier; /* so many of the first barriers see the device write an entry */
static struct ring *puts_to;
static struct ring *puts_also_to; /* NULL: no other */
static uint64_t looked_ns[LOOKS_MAX];
static unsigned looked; /* for interrupts */
static uint64_t woken_ns;

static void put(struct ring *to) {
    has_interrupt |= to->event_index == to->written;
    to->written++;
}

static bool pending(void *arg) {
    struct ring *asked = arg;
    asked->asked++;
    if (asked->may_wait > 0) {
        asked->may_wait--;
        asked->taken = asked->written;
        return false;
    }
    return !asked->is_no_news;
}

static void barrier(void *unused) {
    (void)unused;
    assert_true(++barriers < 100);
    if (puts_in_barrier > 0) {
        puts_in_barrier--;
        put(puts_to);
        if (puts_also_to != NULL) {
            put(puts_also_to);
        }
    }
}

static unsigned dispatch(void) {
    bool had_interrupt = has_interrupt;
    assert_true(looked < LOOKS_MAX);
    looked_ns[looked++] = arch_clock_ns();
    has_interrupt = false;
    return had_interrupt;
}

static void note_indices(void) {
    for (unsigned i = 0; i < RINGS; i++) {
        rings[i].index_asleep = rings[i].event_index;
    }
}

static void stop_asleep(void *unused, uint64_t deadline_ns) {
    (void)unused;
    (void)deadline_ns;
    note_indices();
    scheduler_stop();
}

/* The device has one more; nobody else wakes the scheduler before the net does. */
static void put_asleep(void *unused, uint64_t deadline_ns) {
    (void)unused;
    note_indices();
    host_clock_advance(10);
    put(ring);
    if (!has_interrupt) {
        host_clock_set(deadline_ns);
    }
}

static void begin(void) {
    memset(rings, 0, sizeof rings);
    has_interrupt = false;
    barriers = 0;
    puts_in_barrier = 0;
    puts_to = ring;
    puts_also_to = NULL;
    looked = 0;
    scheduler_forget();
    scheduler_set_sleep_barrier(barrier, NULL);
    scheduler_set_irq_dispatch(dispatch);
    host_set_idle(stop_asleep, NULL);
}

static void add(struct ring *added) {
    added->source = (struct poll_source){.name = "ring",
                                         .written = &added->written,
                                         .taken = &added->taken,
                                         .pending = pending,
                                         .event_index = &added->event_index,
                                         .arg = added,
                                         .event = &added->event};
    scheduler_add_source(&added->source);
}

static void wait_for_ring(void *arg) {
    struct ring *awaited = arg;
    assert_int_equal(task_wait(&awaited->event, UNIT_CLOCK_START_NS + 100 * NS_PER_S), 0);
    awaited->taken = awaited->written;
    woken_ns = arch_clock_ns();
}

/* --- Event indices --- */

TEST(a_ring_is_armed_for_its_next_entry_and_disarmed_by_an_entry_that_has_passed) {
    static const uint16_t places[] = {0, 1, 7, 0x8000, UINT16_MAX - 1, UINT16_MAX};
    for (unsigned i = 0; i < ARRAY_COUNT(places); i++) {
        uint16_t at = places[i];
        begin();
        ring->written = at;
        ring->taken = at;
        add(ring);
        assert_int_equal(ring->event_index, (uint16_t)(at - 1)); /* a new one begins unarmed */
        scheduler_run();
        assert_int_equal(ring->index_asleep, at);
        assert_int_equal(ring->event_index, (uint16_t)(at - 1));
    }
}

TEST(a_ring_keeps_its_indices_when_another_goes) {
    begin();
    add(&rings[0]);
    add(&rings[1]);
    rings[1].taken = 3;
    rings[1].written = 3;
    scheduler_remove_source(&rings[0].source);
    rings[0].written = 1;
    scheduler_run();
    assert_int_equal(rings[0].asked, 0);
    assert_int_equal(rings[1].index_asleep, 3);
    put(&rings[1]);
    unit_run_task(wait_for_ring, &rings[1]);
    assert_int_equal(rings[1].taken, 4);
    assert_int_equal(scheduler_get_stats()->sleeps, 1);
}

/* --- What may wait --- */

TEST(behind_what_may_wait_the_device_is_asked_anew_before_the_sleep) {
    begin();
    add(ring);
    ring->may_wait = 3;
    puts_in_barrier = 3;
    host_set_idle(put_asleep, NULL);
    unit_run_task(wait_for_ring, ring);
    assert_int_equal(ring->index_asleep, 3);
    assert_int_equal(barriers, 4);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + 10); /* and not by the net */
    assert_int_equal(scheduler_get_stats()->put_off, 3);
    assert_int_equal(scheduler_get_stats()->sleeps, 1);
    assert_int_equal(scheduler_get_stats()->rescued, 0);
}

/* In one wait: no turn of the scheduler between, and each time asked for the next entry. */
TEST(a_sleep_that_only_what_may_wait_has_ended_goes_on) {
    begin();
    host_set_idle(put_asleep, NULL);
    add(ring);
    ring->may_wait = 3;
    unit_run_task(wait_for_ring, ring);
    const struct scheduler_stats *stats = scheduler_get_stats();
    assert_int_equal(ring->written, 4);
    assert_int_equal(ring->asked, 4); /* once for each, and not again in the turn that follows */
    assert_int_equal(ring->index_asleep, 3);
    assert_int_equal(stats->sleeps, 4);
    assert_int_equal(stats->put_off, 3);
    assert_int_equal(stats->rescued, 0);
    assert_int_equal(stats->turns, 3); /* the task's beginning, the wait, its end */
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + 40);
}

static void cancel_wait(void *arg) {
    event_signal(arg);
}

/* A timer that is due, or somebody who is ready, ends it all the same. */
TEST(a_sleep_over_what_may_wait_ends_when_a_timer_is_due) {
    static struct timer timer;
    begin();
    host_set_idle(put_asleep, NULL);
    add(ring);
    ring->may_wait = 1000;
    timer_set(&timer, UNIT_CLOCK_START_NS + 25, cancel_wait, &ring->event);
    unit_run_task(wait_for_ring, ring);
    assert_int_equal(scheduler_get_stats()->sleeps, 3);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS + 30);
}

TEST(what_comes_behind_what_may_wait_ends_the_wait_without_a_sleep) {
    begin();
    add(ring);
    ring->may_wait = 1;
    puts_in_barrier = 2;
    unit_run_task(wait_for_ring, ring);
    assert_int_equal(barriers, 2);
    assert_int_equal(woken_ns, UNIT_CLOCK_START_NS);
    assert_int_equal(scheduler_get_stats()->put_off, 1);
    assert_int_equal(scheduler_get_stats()->looks_that_found, 1);
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
}

TEST(what_comes_beside_what_may_wait_needs_no_other_look) {
    begin();
    add(&rings[0]);
    add(&rings[1]);
    rings[0].may_wait = 1;
    puts_also_to = &rings[1];
    puts_in_barrier = 1;
    unit_run_task(wait_for_ring, &rings[1]);
    assert_int_equal(rings[1].taken, 1);
    assert_int_equal(barriers, 1);
    assert_int_equal(scheduler_get_stats()->put_off, 1);
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
}

TEST(what_is_nobody_s_concern_keeps_nobody_from_sleeping) {
    begin();
    add(ring);
    ring->is_no_news = true;
    ring->written = 1;
    scheduler_run();
    assert_true(ring->asked > 0);
    assert_false(ring->event.is_set);
    assert_int_equal(barriers, 1);
    assert_int_equal(scheduler_get_stats()->put_off, 0);
    assert_int_equal(scheduler_get_stats()->sleeps, 1);
}

/* --- One look --- */

static void nothing(void *unused) {
    (void)unused;
}

TEST(one_look_asks_every_ring_that_has_something) {
    begin();
    for (unsigned i = 0; i < RINGS; i++) {
        add(&rings[i]);
    }
    put(&rings[0]);
    put(&rings[2]);
    unit_run_task(nothing, NULL); /* one turn */
    assert_int_equal(rings[0].asked, 1);
    assert_int_equal(rings[1].asked, 0);
    assert_int_equal(rings[2].asked, 1);
    assert_true(rings[0].event.is_set);
    assert_false(rings[1].event.is_set);
    assert_true(rings[2].event.is_set);
}

TEST(what_one_ring_has_is_found_whatever_the_others_say) {
    for (unsigned i = 0; i < RINGS; i++) {
        begin();
        for (unsigned other = 0; other < RINGS; other++) {
            add(&rings[other]);
            rings[other].is_no_news = other != i;
            rings[other].written = other != i;
        }
        puts_to = &rings[i];
        puts_in_barrier = 1;
        unit_run_task(wait_for_ring, &rings[i]);
        assert_int_equal(scheduler_get_stats()->looks_that_found, 1);
        assert_int_equal(scheduler_get_stats()->sleeps, 0);
    }
}

/* --- How often rings are looked at --- */

static struct poll_source always_asked;
static unsigned asked_always;
static unsigned asked_asleep[3]; /* before each sleep */
static unsigned asked_before_piece[8];
static unsigned pieces;

static bool count_asks(void *unused) {
    (void)unused;
    asked_always++;
    return false;
}

static void change_nothing(void *unused) {
    (void)unused;
}

static void stop_at_third_sleep(void *unused, uint64_t deadline_ns) {
    (void)unused;
    (void)deadline_ns;
    uint64_t sleeps = scheduler_get_stats()->sleeps;
    asked_asleep[sleeps - 1] = asked_always;
    has_interrupt = true;
    if (sleeps == ARRAY_COUNT(asked_asleep)) {
        scheduler_stop();
    }
}

static void begin_counting(struct event *woken) {
    begin();
    asked_always = 0;
    pieces = 0;
    always_asked = (struct poll_source){.name = "always",
                                        .pending = count_asks,
                                        .arm = change_nothing,
                                        .disarm = change_nothing,
                                        .event = woken};
    scheduler_add_source(&always_asked);
}

TEST(where_looks_find_nothing_there_is_one_before_a_sleep_and_one_after) {
    begin_counting(&ring->event);
    host_set_idle(stop_at_third_sleep, NULL);
    scheduler_run();
    assert_int_equal(asked_asleep[0], 2); /* at first it is not known */
    assert_int_equal(asked_asleep[1], 4);
    assert_int_equal(asked_asleep[2], 6);
}

static void put_twice_and_wait(void *arg) {
    struct ring *awaited = arg;
    wait_for_ring(awaited); /* for what comes in the barrier */
    assert_int_equal(barriers, 1);
    put(awaited);
    wait_for_ring(awaited);
    assert_int_equal(barriers, 1); /* found before any ring was armed */
    scheduler_stop();
}

TEST(where_a_look_before_a_sleep_has_found_something_the_next_is_earlier) {
    begin();
    add(ring);
    puts_in_barrier = 1;
    unit_run_task(put_twice_and_wait, ring);
    assert_int_equal(ring->taken, 2);
    assert_int_equal(scheduler_get_stats()->looks_that_found, 1);
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
}

static size_t note_asks(void *unused, const char *text, size_t length) {
    (void)unused;
    (void)text;
    assert_true(pieces < ARRAY_COUNT(asked_before_piece));
    asked_before_piece[pieces++] = asked_always;
    return length;
}

TEST(between_two_pieces_of_the_log_rings_are_looked_at) {
    begin_counting(&ring->event);
    scheduler_run(); /* from here on, nothing is found */
    log_set_sink(note_asks, NULL);
    log_text("so many letters that they go to the console in four pieces, none of which may keep "
             "the rings waiting");
    scheduler_run();
    log_set_sink(NULL, NULL);
    assert_int_equal(pieces, 4);
    for (unsigned i = 1; i < pieces; i++) {
        assert_int_equal(asked_before_piece[i], asked_before_piece[i - 1] + 1);
    }
}

/* --- Spinning --- */

static uint64_t due_ns[2];

/* Time passes while the clock is read, and the device writes what is due. */
static void moment(void *unused) {
    static bool is_within;
    (void)unused;
    if (is_within) {
        return;
    }
    is_within = true;
    host_clock_advance(NS_PER_US);
    for (unsigned i = 0; i < ARRAY_COUNT(due_ns); i++) {
        if (arch_clock_ns() >= due_ns[i]) {
            put(ring);
            due_ns[i] = UINT64_MAX;
        }
    }
    is_within = false;
}

static void sleep_until_due(void *unused, uint64_t deadline_ns) {
    (void)unused;
    host_clock_set(due_ns[1] < deadline_ns ? due_ns[1] : deadline_ns);
}

/* Something that may wait comes after `first_us`, and what does not after `second_us`. */
static void spin_through(unsigned first_us, unsigned second_us) {
    begin();
    host_clock_set(UNIT_CLOCK_START_NS);
    add(ring);
    ring->may_wait = 1;
    due_ns[0] = UNIT_CLOCK_START_NS + first_us * NS_PER_US;
    due_ns[1] = UNIT_CLOCK_START_NS + second_us * NS_PER_US;
    scheduler_set_spin_us(SPIN_US);
    host_set_idle(sleep_until_due, NULL);
    host_set_moment(moment, NULL);
    unit_run_task(wait_for_ring, ring);
    host_set_moment(NULL, NULL);
    assert_int_equal(scheduler_get_stats()->put_off, 1);
}

TEST(after_what_may_wait_a_spin_begins_anew) {
    spin_through(SPIN_US - 10, 2 * SPIN_US - 15);
    assert_int_equal(scheduler_get_stats()->spins_that_found, 1);
    assert_int_equal(scheduler_get_stats()->sleeps, 0);
    spin_through(SPIN_US - 10, 2 * SPIN_US - 3);
    assert_int_equal(scheduler_get_stats()->spins_that_found, 0);
    assert_int_equal(scheduler_get_stats()->sleeps, 1);
}

/* --- Interrupts --- */

static void be_busy(unsigned us) {
    for (unsigned i = 0; i < us / STEP_US; i++) {
        host_clock_advance(STEP_US * NS_PER_US);
        task_yield();
    }
}

static void busy_for_long(void *unused) {
    (void)unused;
    be_busy(20000);
}

TEST(while_tasks_are_busy_interrupts_are_looked_for_each_millisecond) {
    begin();
    unit_run_task(busy_for_long, NULL);
    assert_in_range(looked, 18, 21);
    for (unsigned i = 1; i < looked; i++) {
        assert_in_range(looked_ns[i] - looked_ns[i - 1], NS_PER_MS, NS_PER_MS + NS_PER_MS / 5);
    }
}

static void busy_around_a_sleep(void *unused) {
    (void)unused;
    be_busy(500);
    task_sleep_until(UNIT_CLOCK_START_NS + 700 * NS_PER_US);
    be_busy(2000);
}

TEST(after_a_sleep_has_looked_for_interrupts_the_next_look_is_a_millisecond_later) {
    begin();
    host_set_idle(NULL, NULL);
    unit_run_task(busy_around_a_sleep, NULL);
    assert_int_equal(looked, 3);
    assert_int_equal(looked_ns[1], UNIT_CLOCK_START_NS + 700 * NS_PER_US); /* the sleep's */
    assert_in_range(looked_ns[2] - looked_ns[1], NS_PER_MS, NS_PER_MS + STEP_US * NS_PER_US);
}
