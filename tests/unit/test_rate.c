/* Rates with a debt: apps/nbd/rate.h. */
#include "apps/nbd/rate.h"

#include "tests/unit/unit.h"

#define BURST_NS (NBD_LIMIT_BURST_MS * NS_PER_MS)

TEST(without_a_limit_nothing_waits) {
    struct rate rate = {0};
    for (int i = 0; i < 1000; i++) {
        rate_charge(&rate, 5, NBD_REQUEST_BYTES_MAX);
        assert_int_equal(rate_wait_ns(&rate, 5), 0);
    }
}

TEST(what_goes_beyond_a_burst_waits_as_long_as_it_costs) {
    struct rate rate = {.per_s = 1000};
    uint64_t now = 7 * NS_PER_S;
    assert_int_equal(rate_wait_ns(&rate, now), 0);
    rate_charge(&rate, now, NBD_LIMIT_BURST_MS); /* a thousandth of a second each */
    assert_int_equal(rate_wait_ns(&rate, now), 0);
    rate_charge(&rate, now, 1);
    assert_int_equal(rate_wait_ns(&rate, now), NS_PER_MS);
    assert_int_equal(rate_wait_ns(&rate, now + NS_PER_MS - 1), 1);
    assert_int_equal(rate_wait_ns(&rate, now + NS_PER_MS), 0);
}

TEST(one_request_dearer_than_a_burst_is_admitted_and_paid_for) {
    struct rate rate = {.per_s = 4096};
    assert_int_equal(rate_wait_ns(&rate, 0), 0);
    rate_charge(&rate, 0, NBD_REQUEST_BYTES_MAX);
    uint64_t costs_ns = NBD_REQUEST_BYTES_MAX / 4096 * NS_PER_S;
    assert_int_equal(rate_wait_ns(&rate, 0), costs_ns - BURST_NS);
    assert_int_equal(rate_wait_ns(&rate, costs_ns), 0);
}

TEST(a_pause_saves_no_more_than_one_burst) {
    struct rate rate = {.per_s = 100};
    uint64_t now = 3600 * NS_PER_S;
    unsigned admitted = 0;
    while (rate_wait_ns(&rate, now) == 0) {
        rate_charge(&rate, now, 1);
        admitted++;
    }
    assert_in_range(admitted, 10, 11);
}

TEST(over_time_it_is_the_rate_whatever_the_amounts) {
    struct rate rate = {.per_s = 1000000};
    uint64_t now = 0;
    uint64_t total = 0;
    while (now < 100 * NS_PER_S) {
        uint64_t wait_ns = rate_wait_ns(&rate, now);
        if (wait_ns > 0) {
            now += wait_ns;
            continue;
        }
        uint64_t amount = 1 + unit_random_below(50000);
        rate_charge(&rate, now, amount);
        total += amount;
    }
    assert_in_range(total, 99 * rate.per_s, 101 * rate.per_s);
}
