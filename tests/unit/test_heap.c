/* The heap: core/mem/heap.c. */
#include "core/mem/heap.h"

#include <errno.h>
#include <string.h>

#include "config/limits.h"
#include "tests/unit/unit.h"

static struct heap_stats stats(void) {
    struct heap_stats stats;
    heap_get_stats(&stats);
    return stats;
}

static size_t objects_in_use(void) {
    size_t total = 0;
    size_t bytes;
    size_t objects;
    size_t pages;
    for (unsigned i = 0; heap_get_class(i, &bytes, &objects, &pages); i++) {
        total += objects;
    }
    return total;
}

TEST(a_second_heap_init_is_refused) {
    static char other[8192] __attribute__((aligned(4096)));
    void *kept = heap_alloc(100);
    assert_int_equal(heap_init(other, sizeof other), -EBUSY);
    heap_free(kept);
}

TEST(a_range_that_is_not_pages_is_refused_and_another_may_follow) {
    static char other[16384] __attribute__((aligned(4096)));
    heap_forget();
    assert_int_equal(heap_init(other + 8, 8192), -EINVAL);
    assert_int_equal(heap_init(other, 4096), -EINVAL);
    assert_int_equal(heap_init(other, sizeof other), 0);
    assert_int_equal(stats().bytes_total, 3 * PAGE_BYTES);
}

TEST(objects_of_every_size_are_apart_and_aligned) {
    enum { COUNT = 6000 };
    static unsigned char *objects[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        objects[i] = heap_alloc(i % 1500);
        assert_non_null(objects[i]);
        assert_int_equal((uintptr_t)objects[i] % 16, 0);
        memset(objects[i], (int)(i % 251), i % 1500);
    }
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t at = 0; at < i % 1500; at++) {
            assert_int_equal(objects[i][at], i % 251);
        }
        heap_free(objects[i]);
    }
    assert_int_equal(objects_in_use(), 0);
}

TEST(a_class_counts_its_objects_and_pages) {
    size_t bytes = 0;
    size_t objects = 0;
    size_t pages = 0;
    void *small = heap_alloc(1);
    assert_true(heap_get_class(0, &bytes, &objects, &pages));
    assert_int_equal(bytes, 16);
    assert_int_equal(objects, 1);
    assert_int_equal(pages, 1);
    heap_free(small);
    assert_true(heap_get_class(0, &bytes, &objects, &pages));
    assert_int_equal(objects, 0);
    assert_false(heap_get_class(1000, &bytes, &objects, &pages));
}

TEST(pages_of_empty_slabs_come_back_but_for_one_spare) {
    enum { COUNT = 1000 };
    static void *objects[COUNT];
    size_t before = stats().bytes_used;
    for (size_t i = 0; i < COUNT; i++) {
        objects[i] = heap_alloc(512);
    }
    assert_true(stats().bytes_used >= before + COUNT * (size_t)512);
    for (size_t i = 0; i < COUNT; i++) {
        heap_free(objects[i]);
    }
    assert_int_equal(stats().bytes_used, before + PAGE_BYTES);
}

TEST(every_alignment_is_kept_for_every_size) {
    static const size_t sizes[] = {0, 1, 17, 100, 500, 513, 1312, 4000, 4097, 70000};
    for (size_t align = 1; align <= 65536; align *= 2) {
        for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
            void *pointer = heap_alloc_aligned(align, sizes[i]);
            assert_non_null(pointer);
            assert_int_equal((uintptr_t)pointer % align, 0);
            memset(pointer, 0x77, sizes[i]);
            heap_free(pointer);
        }
    }
    assert_int_equal(objects_in_use(), 0);
}

TEST(an_alignment_that_is_no_power_of_two_is_refused) {
    assert_null(heap_alloc_aligned(0, 100));
    assert_null(heap_alloc_aligned(24, 100));
    assert_null(heap_alloc_aligned(SIZE_MAX, 100));
    assert_int_equal(stats().failures, 3);
}

TEST(calloc_refuses_a_product_that_wraps) {
    assert_null(heap_alloc_zeroed((size_t)1 << 32, (size_t)1 << 32));
    assert_null(heap_alloc_zeroed(SIZE_MAX, 2));
    assert_int_equal(stats().failures, 2);
    void *none = heap_alloc_zeroed(0, SIZE_MAX);
    assert_non_null(none);
    heap_free(none);
}

TEST(calloc_zeroes_memory_that_was_used_before) {
    unsigned char *dirty = heap_alloc(1000);
    memset(dirty, 0xff, 1000);
    heap_free(dirty);
    unsigned char *clean = heap_alloc_zeroed(10, 100);
    assert_ptr_equal(clean, dirty);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(clean[i], 0);
    }
    heap_free(clean);
}

TEST(realloc_keeps_what_fits_growing_and_shrinking) {
    static const size_t sizes[] = {10, 200, 1400, 40000, 5000, 1200, 60, 3};
    unsigned char *pointer = heap_resize(NULL, 10);
    memset(pointer, 0x3c, 10);
    size_t kept = 10;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        pointer = heap_resize(pointer, sizes[i]);
        assert_non_null(pointer);
        kept = kept < sizes[i] ? kept : sizes[i];
        for (size_t at = 0; at < kept; at++) {
            assert_int_equal(pointer[at], 0x3c);
        }
        memset(pointer, 0x3c, sizes[i]);
        kept = sizes[i];
    }
    heap_free(pointer);
    assert_int_equal(objects_in_use(), 0);
}

TEST(realloc_that_fails_leaves_the_old_object_alone) {
    unsigned char *pointer = heap_alloc(2000);
    memset(pointer, 0x3c, 2000);
    assert_null(heap_resize(pointer, 2 * UNIT_HEAP_BYTES));
    assert_null(heap_resize(pointer, SIZE_MAX));
    assert_int_equal(pointer[1999], 0x3c);
    heap_free(pointer);
}

TEST(freeing_nothing_does_nothing) {
    heap_free(NULL);
    assert_int_equal(stats().bytes_used, 0);
}

TEST(an_object_freed_twice_panics) {
    void *small = heap_alloc(100);
    void *neighbour = heap_alloc(100);
    void *large = heap_alloc(10000);
    heap_free(small);
    heap_free(large);
    assert_panics("released twice", heap_free(small));
    assert_panics("released twice", heap_free(large));
    heap_free(neighbour);
}

TEST(a_pointer_into_the_middle_panics) {
    char *small = heap_alloc(100);
    char *large = heap_alloc(10000);
    assert_panics("inside an object of 112 bytes", heap_free(small + 16));
    assert_panics("inside an object of 112 bytes", heap_free(small + 1));
    assert_panics("where no run in use starts", heap_free(large + 16));
    assert_panics("where no run in use starts", heap_free(large + PAGE_BYTES));
    heap_free(small);
    heap_free(large);
}

TEST(a_foreign_pointer_panics) {
    int local = 0;
    static char elsewhere[8192] __attribute__((aligned(4096)));
    assert_panics("foreign", heap_free(&local));
    assert_panics("foreign", heap_free(elsewhere));
    assert_panics("foreign", heap_free(elsewhere + 64));
}

/* The heap's own bookkeeping was never handed out. (The very first byte of a slab looks like a run
 * of one page, and is not told from one.) */
TEST(the_header_of_a_slab_is_foreign) {
    char *small = heap_alloc(16);
    char *slab = (char *)align_down((uintptr_t)small, PAGE_BYTES);
    assert_panics("inside an object", heap_free(slab + 16));
    heap_free(small);
}

TEST(exhaustion_is_null_and_everything_works_again_afterwards) {
    static void *objects[UNIT_HEAP_BYTES / 4096];
    for (int round = 0; round < 3; round++) {
        size_t count = 0;
        while ((objects[count] = heap_alloc(4096)) != NULL) {
            count++;
        }
        assert_int_equal(stats().failures, round + 1);
        assert_int_equal(stats().largest_free_run, 0);
        assert_true(count > 4000);
        while (count > 0) {
            heap_free(objects[--count]);
        }
    }
    assert_int_equal(stats().bytes_used, 0);
    assert_int_equal(stats().largest_free_run, stats().bytes_total);
}

TEST(small_objects_run_out_too) {
    static void *objects[UNIT_HEAP_BYTES / 1024];
    static void *pages[UNIT_HEAP_BYTES / 4096];
    size_t count = 0;
    while ((pages[count] = heap_alloc(4096)) != NULL) {
        count++;
    }
    assert_null(heap_alloc(64));
    heap_free(pages[--count]);
    size_t small = 0;
    while ((objects[small] = heap_alloc(64)) != NULL) {
        small++;
    }
    assert_true(small > 40 && small <= 4096 / 64);
    while (small > 0) {
        heap_free(objects[--small]);
    }
    while (count > 0) {
        heap_free(pages[--count]);
    }
    assert_int_equal(objects_in_use(), 0);
}

/* A heap of two short ranges and a long one, of 3, 7 and 31 pages besides their words. */
static char short_range[4 * 4096] __attribute__((aligned(4096)));
static char middle_range[8 * 4096] __attribute__((aligned(4096)));
static char long_range[32 * 4096] __attribute__((aligned(4096)));
enum { SHORT_PAGES = 3, MIDDLE_PAGES = 7, LONG_PAGES = 31 };

static void make_ranges(void) {
    heap_forget();
    assert_int_equal(heap_init(short_range, sizeof short_range), 0);
    assert_int_equal(heap_add(middle_range, sizeof middle_range), 0);
    assert_int_equal(heap_add(long_range, sizeof long_range), 0);
}

static bool is_in(const void *pointer, const char *range, size_t bytes) {
    return (uintptr_t)pointer - (uintptr_t)range < bytes;
}

TEST(a_heap_of_several_ranges_is_as_large_as_all_and_takes_from_the_first_that_has_it) {
    make_ranges();
    assert_int_equal(stats().bytes_total, (SHORT_PAGES + MIDDLE_PAGES + LONG_PAGES) * PAGE_BYTES);
    assert_int_equal(stats().largest_free_run, LONG_PAGES * PAGE_BYTES);
    void *first = heap_alloc(2 * PAGE_BYTES);
    void *second = heap_alloc(2 * PAGE_BYTES);
    void *third = heap_alloc(LONG_PAGES * PAGE_BYTES);
    void *fourth = heap_alloc(PAGE_BYTES);
    assert_true(is_in(first, short_range, sizeof short_range));
    assert_true(is_in(second, middle_range, sizeof middle_range));
    assert_true(is_in(third, long_range, sizeof long_range));
    assert_true(is_in(fourth, short_range, sizeof short_range));
    assert_int_equal(stats().bytes_used, (5 + LONG_PAGES) * PAGE_BYTES);
    assert_int_equal(stats().largest_free_run, (MIDDLE_PAGES - 2) * PAGE_BYTES);
    assert_int_equal(stats().failures, 0);
    assert_null(heap_alloc((MIDDLE_PAGES - 1) * PAGE_BYTES));
    assert_int_equal(stats().failures, 1);
    heap_free(second);
    heap_free(third);
    heap_free(first);
    heap_free(fourth);
    assert_int_equal(stats().bytes_used, 0);
    assert_int_equal(stats().bytes_used_peak, (5 + LONG_PAGES) * PAGE_BYTES);
    assert_int_equal(stats().largest_free_run, LONG_PAGES * PAGE_BYTES);
}

TEST(small_objects_of_every_range_are_found_again) {
    enum { COUNT = (SHORT_PAGES + MIDDLE_PAGES + LONG_PAGES) * 3 };
    static unsigned char *objects[COUNT];
    make_ranges();
    for (unsigned i = 0; i < COUNT; i++) { /* three make a page */
        objects[i] = heap_alloc(1300);
        assert_non_null(objects[i]);
        memset(objects[i], (int)i, 1300);
    }
    assert_null(heap_alloc(1300));
    for (unsigned i = 0; i < COUNT; i++) {
        struct heap_place place;
        assert_true(heap_look((uintptr_t)objects[i] + 17, &place));
        assert_true(place.is_used && place.offset == 17 && place.bytes == 1312);
        assert_int_equal(objects[i][1299], (unsigned char)i);
        heap_free(objects[i]);
        assert_panics("released twice", heap_free(objects[i]));
    }
    assert_int_equal(objects_in_use(), 0);
    assert_int_equal(stats().bytes_used, PAGE_BYTES); /* the spare slab */
}

TEST(what_lies_between_the_ranges_is_foreign) {
    struct heap_place place;
    make_ranges();
    char *kept = heap_alloc(PAGE_BYTES);
    assert_panics("foreign", heap_free(short_range)); /* its words */
    assert_panics("foreign", heap_free(middle_range + PAGE_BYTES));
    assert_panics("foreign", heap_free(long_range + sizeof long_range));
    assert_false(heap_look((uintptr_t)long_range + sizeof long_range, &place));
    assert_false(heap_look((uintptr_t)middle_range, &place));
    heap_free(kept);
}

TEST(a_range_too_many_or_of_no_use_is_refused_and_the_heap_stays_as_it_was) {
    static char others[HEAP_RANGES_MAX][8192] __attribute__((aligned(4096)));
    make_ranges();
    size_t bytes = stats().bytes_total;
    assert_int_equal(heap_add(others[0] + 8, 4096), -EINVAL);
    assert_int_equal(heap_add(others[0], 4096), -EINVAL);
    assert_int_equal(stats().bytes_total, bytes);
    for (unsigned i = 3; i < HEAP_RANGES_MAX; i++) {
        assert_int_equal(heap_add(others[i], sizeof others[i]), 0);
        bytes += PAGE_BYTES;
    }
    assert_int_equal(heap_add(others[0], sizeof others[0]), -ENOSPC);
    assert_int_equal(stats().bytes_total, bytes);
}

struct object {
    unsigned char *start;
    size_t bytes;
    unsigned char fill;
};

static void check_and_free(struct object *object) {
    for (size_t at = 0; at < object->bytes; at += 1 + object->bytes / 16) {
        assert_int_equal(object->start[at], object->fill);
    }
    heap_free(object->start);
    object->start = NULL;
}

static void work_at_random(unsigned steps) {
    static struct object objects[500];
    memset(objects, 0, sizeof objects);
    for (unsigned step = 0; step < steps; step++) {
        struct object *object = &objects[unit_random_below(ARRAY_COUNT(objects))];
        if (object->start != NULL) {
            check_and_free(object);
            continue;
        }
        size_t bytes = unit_random_below(unit_random_below(20) == 0 ? 100000 : 1500);
        *object = (struct object){.bytes = bytes, .fill = (unsigned char)step};
        object->start = unit_random_below(4) == 0
                            ? heap_alloc_aligned((size_t)1 << unit_random_below(14), bytes)
                            : heap_alloc(bytes);
        if (object->start != NULL) {
            memset(object->start, object->fill, bytes);
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(objects); i++) {
        if (objects[i].start != NULL) {
            check_and_free(&objects[i]);
        }
    }
    assert_int_equal(objects_in_use(), 0);
    assert_true(stats().bytes_used <= 20 * PAGE_BYTES); /* a spare slab of each class */
}

TEST(a_long_random_load_keeps_every_byte_and_loses_none) {
    work_at_random(200000);
}

TEST(so_does_one_in_a_heap_of_several_ranges_that_are_too_small_for_it) {
    make_ranges();
    work_at_random(50000);
    assert_true(stats().failures > 0);
}
