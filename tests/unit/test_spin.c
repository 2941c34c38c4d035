/* When the scheduler looks at the rings for a while before it sleeps: core/task/scheduler.c. */
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "tests/unit/unit.h"

enum { FEW = SPIN_AUTO_ENTRIES_MAX, SOON_US = SPIN_AUTO_US / 2, LATER_US = SPIN_AUTO_WAIT_US };

/* A ring into which the device puts `batch` entries when it is time. */
static struct {
    struct poll_source source;
    struct event event;
    volatile uint16_t written;
    uint16_t taken;
    uint16_t batch;
    unsigned sleeps;
    unsigned moments;
    uint64_t due_ns;
    uint64_t before_us; /* so long before it, an entry comes that may wait; 0: none does */
    bool may_wait;      /* what is there */
} ring;

static bool pending(void *unused) {
    (void)unused;
    if (ring.may_wait) {
        ring.may_wait = false;
        ring.taken = ring.written;
        return false;
    }
    return ring.written != ring.taken;
}

static void nothing(void *unused) {
    (void)unused;
}

static void put_when_due(void) {
    if (arch_clock_ns() >= ring.due_ns) {
        ring.written = (uint16_t)(ring.written + ring.batch);
        ring.due_ns = UINT64_MAX;
    }
}

/* Time passes while the clock is read, and the device with it. */
static void moment(void *unused) {
    static bool is_within;
    (void)unused;
    if (!is_within) {
        is_within = true;
        ring.moments++;
        host_clock_advance(NS_PER_US);
        put_when_due();
        is_within = false;
    }
}

static void idle(void *unused, uint64_t deadline_ns) {
    (void)unused;
    ring.sleeps++;
    uint64_t before_ns = ring.due_ns - ring.before_us * NS_PER_US;
    if (ring.before_us > 0 && ring.due_ns != UINT64_MAX && arch_clock_ns() < before_ns) {
        host_clock_set(before_ns);
        ring.written++;
        ring.may_wait = true;
        return;
    }
    host_clock_set(ring.due_ns < deadline_ns ? ring.due_ns : deadline_ns);
    put_when_due();
}

/* Takes what `rounds` batches bring, each of which comes `us` after the one before was taken. */
struct waits {
    unsigned rounds;
    uint16_t batch;
    unsigned us;
};

static void take_batches(void *arg) {
    const struct waits *waits = arg;
    for (unsigned i = 0; i < waits->rounds; i++) {
        ring.batch = waits->batch;
        ring.due_ns = arch_clock_ns() + waits->us * NS_PER_US;
        uint64_t deadline_ns = ring.due_ns + NS_PER_S;
        do {
            assert_int_equal(task_wait(&ring.event, deadline_ns), 0);
        } while (ring.written == ring.taken); /* an event may be signalled once more than needed */
        assert_int_equal((uint16_t)(ring.written - ring.taken), waits->batch);
        ring.taken = ring.written;
    }
}

/* How many of the waits ended in a sleep. */
static unsigned sleeps_of(unsigned rounds, uint16_t batch, unsigned us) {
    struct waits waits = {rounds, batch, us};
    unsigned before = ring.sleeps;
    unit_run_task(take_batches, &waits);
    return ring.sleeps - before;
}

static void begin(void) {
    memset(&ring, 0, sizeof ring);
    ring.due_ns = UINT64_MAX;
    ring.source = (struct poll_source){.name = "ring",
                                       .written = &ring.written,
                                       .taken = &ring.taken,
                                       .pending = pending,
                                       .arm = nothing,
                                       .disarm = nothing,
                                       .event = &ring.event};
    scheduler_add_source(&ring.source);
    host_set_idle(idle, NULL);
    host_set_moment(moment, NULL);
    scheduler_set_spin_auto();
}

static void begin_with_trust(void) {
    begin();
    assert_int_equal(sleeps_of(SPIN_AUTO_WAITS, FEW, SOON_US), SPIN_AUTO_WAITS);
    assert_int_equal(sleeps_of(5, FEW, SOON_US), 0);
}

TEST(after_some_short_waits_for_little_the_next_are_spun) {
    begin_with_trust();
    assert_int_equal(scheduler_get_stats()->spins_that_found, 5);
}

TEST(no_wait_for_much_is_spun) {
    begin();
    assert_int_equal(sleeps_of(50, FEW + 1, SOON_US), 50);
}

TEST(one_wait_for_much_ends_the_spinning) {
    begin_with_trust();
    assert_int_equal(sleeps_of(1, FEW + 1, SOON_US), 0); /* what it brings is not known before */
    assert_int_equal(sleeps_of(SPIN_AUTO_WAITS, FEW, SOON_US), SPIN_AUTO_WAITS);
    assert_int_equal(sleeps_of(5, FEW, SOON_US), 0);
}

TEST(no_wait_is_spun_where_they_are_long) {
    begin();
    assert_int_equal(sleeps_of(50, 1, LATER_US + 10), 50);
    assert_true(ring.moments < 50 * 10); /* nor in vain: a spin alone has SPIN_AUTO_US of them */
}

/* Each of its two parts is short. */
TEST(a_wait_begins_anew_with_what_may_wait) {
    enum { PART_US = LATER_US * 3 / 4 };
    begin();
    ring.before_us = PART_US;
    assert_int_equal(sleeps_of(SPIN_AUTO_WAITS, 1, 2 * PART_US), 2 * SPIN_AUTO_WAITS);
    ring.before_us = 0;
    assert_int_equal(sleeps_of(5, 1, SOON_US), 0);
}

TEST(a_spin_that_finds_nothing_is_not_repeated_at_once) {
    begin_with_trust();
    unsigned before = ring.moments;
    assert_int_equal(sleeps_of(1, FEW, SPIN_AUTO_US + 20), 1);
    assert_true(ring.moments - before >= SPIN_AUTO_US); /* it spun, in vain */
    /* Half of the trust is gone; each short sleep gives one back. */
    unsigned waits = SPIN_AUTO_WAITS / 2 - 1;
    before = ring.moments;
    assert_int_equal(sleeps_of(waits, FEW, SPIN_AUTO_US + 20), waits);
    assert_true(ring.moments - before < SPIN_AUTO_US);
    assert_int_equal(sleeps_of(5, FEW, SOON_US), 0);
}

TEST(a_fixed_spin_asks_for_no_trust) {
    begin();
    scheduler_set_spin_us(SPIN_AUTO_US);
    assert_int_equal(sleeps_of(5, FEW + 1, SOON_US), 0);
    scheduler_set_spin_us(0);
    assert_int_equal(sleeps_of(50, FEW, SOON_US), 50);
}
