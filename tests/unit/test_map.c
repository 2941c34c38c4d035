/* The memory map: core/mem/map.c. */
#include "core/mem/map.h"
#include "tests/unit/unit.h"

static struct phys_range range(uint64_t start, uint64_t length) {
    return (struct phys_range){phys_addr(start), length};
}

static void expect_range(const struct memory_map *map, unsigned index, uint64_t start,
                         uint64_t length) {
    assert_true(index < map->count);
    assert_int_equal(map->ranges[index].start.value, start);
    assert_int_equal(map->ranges[index].length, length);
}

TEST(ranges_are_kept_in_order_of_address) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x3000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x5000, 0x1000)), 0);
    assert_int_equal(map.count, 3);
    expect_range(&map, 0, 0x1000, 0x1000);
    expect_range(&map, 1, 0x3000, 0x1000);
    expect_range(&map, 2, 0x5000, 0x1000);
    assert_int_equal(memory_map_bytes(&map), 0x3000);
}

TEST(ranges_that_touch_or_overlap_become_one) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x3000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x5000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x2000, 0x3800)), 0);
    assert_int_equal(map.count, 1);
    expect_range(&map, 0, 0x1000, 0x5000);
}

TEST(adding_what_is_there_changes_nothing) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x4000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x2000, 0x1000)), 0);
    assert_int_equal(map.count, 1);
    expect_range(&map, 0, 0x1000, 0x4000);
}

TEST(an_empty_or_wrapping_range_is_refused) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0)), -EINVAL);
    assert_int_equal(memory_map_add(&map, range(UINT64_MAX - 10, 100)), -EINVAL);
    assert_int_equal(memory_map_reserve(&map, range(UINT64_MAX - 10, 100)), -EINVAL);
    assert_int_equal(memory_map_reserve(&map, range(0x1000, 0)), 0);
    assert_int_equal(map.count, 0);
}

TEST(a_full_map_refuses_and_stays_as_it_is) {
    struct memory_map map = {0};
    for (uint64_t i = 0; i < MEMORY_RANGES_MAX; i++) {
        assert_int_equal(memory_map_add(&map, range(i * 0x10000, 0x3000)), 0);
    }
    struct memory_map before = map;
    assert_int_equal(memory_map_add(&map, range(0x10000000, 0x1000)), -ENOSPC);
    assert_int_equal(memory_map_reserve(&map, range(0x1000, 0x1000)), -ENOSPC);
    assert_memory_equal(&map, &before, sizeof map);
    /* What needs no further entry still goes. */
    assert_int_equal(memory_map_add(&map, range(0x3000, 0x1000)), 0);
    assert_int_equal(memory_map_reserve(&map, range(0x0000, 0x1000)), 0);
    expect_range(&map, 0, 0x1000, 0x3000);
}

TEST(a_reservation_in_the_middle_splits_a_range) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x9000)), 0);
    assert_int_equal(memory_map_reserve(&map, range(0x4000, 0x1000)), 0);
    assert_int_equal(map.count, 2);
    expect_range(&map, 0, 0x1000, 0x3000);
    expect_range(&map, 1, 0x5000, 0x5000);
}

TEST(a_reservation_cuts_the_ends_and_swallows_what_lies_within) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x3000, 0x1000)), 0);
    assert_int_equal(memory_map_add(&map, range(0x5000, 0x1000)), 0);
    assert_int_equal(memory_map_reserve(&map, range(0x1800, 0x4000)), 0);
    assert_int_equal(map.count, 2);
    expect_range(&map, 0, 0x1000, 0x800);
    expect_range(&map, 1, 0x5800, 0x800);
}

TEST(a_reservation_outside_of_all_memory_takes_nothing) {
    struct memory_map map = {0};
    assert_int_equal(memory_map_add(&map, range(0x1000, 0x1000)), 0);
    assert_int_equal(memory_map_reserve(&map, range(0, 0x1000)), 0);
    assert_int_equal(memory_map_reserve(&map, range(0x2000, 0x1000)), 0);
    expect_range(&map, 0, 0x1000, 0x1000);
}

TEST(a_run_is_whole_pages) {
    struct memory_map map = {0};
    struct phys_range runs[2];
    assert_int_equal(memory_map_runs(&map, 0, runs, 2), 0);
    assert_int_equal(memory_map_add(&map, range(0x1001, 0xffe)), 0);
    /* Behind the last page there is none. */
    assert_int_equal(memory_map_add(&map, range(UINT64_MAX - 0xffe, 0xffe)), 0);
    assert_int_equal(memory_map_runs(&map, 0, runs, 2), 0);
    assert_int_equal(memory_map_add(&map, range(0x10001, 0x3000)), 0);
    assert_int_equal(memory_map_runs(&map, 0, runs, 2), 1);
    assert_int_equal(runs[0].start.value, 0x11000);
    assert_int_equal(runs[0].length, 0x2000);
}

TEST(runs_come_shortest_first_and_short_ones_not_at_all) {
    struct memory_map map = {0};
    struct phys_range runs[8];
    static const uint64_t pages[] = {5, 1, 9, 3, 7};
    for (unsigned i = 0; i < ARRAY_COUNT(pages); i++) {
        assert_int_equal(memory_map_add(&map, range(0x10000 * (i + 1), pages[i] * 0x1000)), 0);
    }
    assert_int_equal(memory_map_runs(&map, 0x3000, runs, 8), 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(runs[i].length, (3 + 2 * i) * 0x1000);
    }
    assert_int_equal(runs[0].start.value, 0x40000);
    assert_int_equal(runs[3].start.value, 0x30000);
    assert_int_equal(memory_map_runs(&map, 0x3001, runs, 8), 3);
}

TEST(when_there_are_too_many_runs_the_longest_are_kept) {
    for (unsigned runs_max = 1; runs_max <= 6; runs_max++) {
        struct memory_map map = {0};
        struct phys_range runs[6];
        for (unsigned i = 0; i < 6; i++) {
            uint64_t pages = (i * 5 + runs_max) % 6 + 1; /* each of 1 to 6 once */
            assert_int_equal(memory_map_add(&map, range(0x10000 * (i + 1), pages * 0x1000)), 0);
        }
        assert_int_equal(memory_map_runs(&map, 0, runs, runs_max), runs_max);
        for (unsigned i = 0; i < runs_max; i++) {
            assert_int_equal(runs[i].length, (7 - runs_max + i) * 0x1000);
        }
    }
}

TEST(random_adds_and_reservations_agree_with_a_bitmap) {
    for (int round = 0; round < 200; round++) {
        struct memory_map map = {0};
        bool model[256] = {false};
        for (int step = 0; step < 20; step++) {
            uint64_t start = unit_random_below(240);
            uint64_t length = 1 + unit_random_below(256 - start);
            bool adds = unit_random_below(2) == 0;
            int error = adds ? memory_map_add(&map, range(start, length))
                             : memory_map_reserve(&map, range(start, length));
            assert_int_equal(error, 0);
            for (uint64_t i = start; i < start + length; i++) {
                model[i] = adds;
            }
        }
        bool found[256] = {false};
        for (unsigned i = 0; i < map.count; i++) {
            for (uint64_t at = 0; at < map.ranges[i].length; at++) {
                found[map.ranges[i].start.value + at] = true;
            }
            assert_true(i == 0 || phys_range_end(map.ranges[i - 1]) <= map.ranges[i].start.value);
        }
        assert_memory_equal(found, model, sizeof model);
    }
}
