/* Addresses, ranges and sums: core/mem/addr.h. */
#include "core/mem/addr.h"
#include "tests/unit/unit.h"

static struct phys_range range(uint64_t start, uint64_t length) {
    return (struct phys_range){phys_addr(start), length};
}

TEST(only_one_bit_makes_a_power_of_two) {
    assert_false(is_power_of_two(0));
    assert_true(is_power_of_two(1));
    assert_false(is_power_of_two(3));
    assert_true(is_power_of_two(UINT64_C(1) << 63));
    assert_false(is_power_of_two(UINT64_MAX));
}

TEST(a_sum_that_wraps_does_not_fit) {
    uint64_t sum = 0;
    assert_true(add_fits(UINT64_MAX - 1, 1, &sum));
    assert_int_equal(sum, UINT64_MAX);
    assert_false(add_fits(UINT64_MAX, 1, &sum));
    assert_false(add_fits(UINT64_C(1) << 63, UINT64_C(1) << 63, &sum));
}

TEST(a_product_that_wraps_does_not_fit) {
    uint64_t product = 1;
    assert_true(multiply_fits(UINT64_MAX, 1, &product));
    assert_int_equal(product, UINT64_MAX);
    assert_true(multiply_fits(UINT64_MAX, 0, &product));
    assert_int_equal(product, 0);
    assert_false(multiply_fits(UINT64_C(1) << 32, UINT64_C(1) << 32, &product));
}

TEST(rounding_goes_to_the_nearest_multiple) {
    uint64_t aligned = 0;
    assert_int_equal(align_down(4095, 4096), 0);
    assert_int_equal(align_down(4096, 4096), 4096);
    assert_true(align_up_fits(4097, 4096, &aligned));
    assert_int_equal(aligned, 8192);
    assert_true(align_up_fits(4096, 4096, &aligned));
    assert_int_equal(aligned, 4096);
    assert_int_equal(align_up(1, 16), 16);
    assert_int_equal(align_up(0, 16), 0);
}

TEST(rounding_up_past_the_end_of_all_addresses_is_refused) {
    uint64_t aligned = 0;
    assert_true(align_up_fits(UINT64_MAX - 4095, 4096, &aligned));
    assert_int_equal(aligned, UINT64_MAX - 4095);
    assert_false(align_up_fits(UINT64_MAX - 4094, 4096, &aligned));
    assert_true(align_up_fits(UINT64_MAX, 1, &aligned));
    assert_int_equal(aligned, UINT64_MAX);
}

TEST(a_range_fits_at_the_limit_and_not_above) {
    assert_true(range_fits(0, 10, 10));
    assert_true(range_fits(9, 1, 10));
    assert_true(range_fits(10, 0, 10));
    assert_false(range_fits(10, 1, 10));
    assert_false(range_fits(0, 11, 10));
    assert_false(range_fits(11, 0, 10));
}

TEST(a_range_whose_end_wraps_does_not_fit) {
    assert_false(range_fits(UINT64_MAX, 2, UINT64_MAX));
    assert_false(range_fits(2, UINT64_MAX, UINT64_MAX));
    assert_true(range_fits(1, UINT64_MAX - 1, UINT64_MAX));
}

TEST(a_physical_range_is_neither_empty_nor_wrapping) {
    assert_false(phys_range_is_valid(range(5, 0)));
    assert_true(phys_range_is_valid(range(0, 1)));
    assert_true(phys_range_is_valid(range(UINT64_MAX - 1, 1)));
    assert_false(phys_range_is_valid(range(UINT64_MAX, 1)));
    assert_false(phys_range_is_valid(range(1, UINT64_MAX)));
}

TEST(ranges_that_only_touch_do_not_overlap) {
    assert_false(phys_ranges_overlap(range(0, 10), range(10, 10)));
    assert_false(phys_ranges_overlap(range(10, 10), range(0, 10)));
    assert_true(phys_ranges_overlap(range(0, 11), range(10, 10)));
    assert_true(phys_ranges_overlap(range(0, 100), range(40, 1)));
    assert_true(phys_ranges_overlap(range(40, 1), range(0, 100)));
}
