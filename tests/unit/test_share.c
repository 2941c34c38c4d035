/* Sharing a pool: what each is guaranteed, and that no order of takers can break it. */
#include "apps/nbd/share.h"
#include "tests/unit/unit.h"

enum { UNIT = 4096, HOLDERS = 64, TOTAL = 1000 * UNIT };

TEST(one_holder_alone_may_take_all_that_is_shared_and_its_own) {
    struct share share;
    share_init(&share, TOTAL, UNIT, HOLDERS);
    assert_int_equal(share_allowance(&share, 0, 1), share.shared_max + share.guaranteed);
}

TEST(a_small_pool_guarantees_one_unit_each) {
    struct share share;
    share_init(&share, HOLDERS * UNIT, UNIT, HOLDERS);
    assert_int_equal(share.guaranteed, UNIT);
    assert_int_equal(share.shared_max, 0);
    assert_int_equal(share_allowance(&share, 0, HOLDERS), UNIT);
    assert_int_equal(share_allowance(&share, UNIT, HOLDERS), 0);
}

TEST(whoever_comes_last_still_gets_what_is_guaranteed) {
    struct share share;
    size_t held[HOLDERS] = {0};
    size_t total = 0;
    share_init(&share, TOTAL, UNIT, HOLDERS);
    for (unsigned i = 0; i < HOLDERS; i++) {
        size_t allowance = share_allowance(&share, held[i], i + 1);
        assert_true(allowance >= share.guaranteed);
        share_take(&share, &held[i], allowance);
        total += allowance;
    }
    assert_true(total <= TOTAL);
}

TEST(the_shared_half_is_split_among_those_that_are_there) {
    struct share share;
    size_t first = 0;
    size_t second = 0;
    share_init(&share, TOTAL, UNIT, HOLDERS);
    share_take(&share, &first, share_allowance(&share, first, 2));
    share_take(&share, &second, share_allowance(&share, second, 2));
    assert_int_equal(first, second);
    assert_int_equal(share_allowance(&share, first, 2), 0);
}

TEST(what_is_given_back_can_be_taken_again) {
    struct share share;
    size_t held[8] = {0};
    share_init(&share, TOTAL, UNIT, HOLDERS);
    for (int round = 0; round < 10000; round++) {
        size_t *account = &held[unit_random() % 8];
        size_t allowance = share_allowance(&share, *account, 8);
        if (unit_random() % 2 == 0 && allowance > 0) {
            share_take(&share, account, 1 + unit_random() % allowance);
        } else if (*account > 0) {
            share_give(&share, account, 1 + unit_random() % *account);
        }
        size_t total = 0;
        for (int i = 0; i < 8; i++) {
            total += held[i];
        }
        assert_true(total <= TOTAL);
    }
    for (int i = 0; i < 8; i++) {
        share_give(&share, &held[i], held[i]);
    }
    assert_int_equal(share.shared_used, 0);
}
