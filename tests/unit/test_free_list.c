/* Page runs: core/mem/free_list.c. */
#include "core/mem/free_list.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

enum { PAGES = 1024 };

static uint8_t memory[(size_t)PAGES * 4096] __attribute__((aligned(4096)));

/* One page of words describes the other 1023. */
enum { PAGES_USABLE = PAGES - 1 };

static struct free_list new_list(void) {
    struct free_list list;
    assert_int_equal(free_list_init(&list, memory, sizeof memory), 0);
    assert_int_equal(list.page_count, PAGES_USABLE);
    return list;
}

static void expect_one_run(const struct free_list *list) {
    assert_int_equal(list->pages_used, 0);
    assert_int_equal(free_list_pages_free(list), list->page_count);
    assert_int_equal(free_list_largest_run(list), list->page_count);
    assert_ptr_equal((void *)list->bump.next, (void *)list->bump.start);
}

TEST(a_range_that_is_not_pages_or_too_small_is_refused) {
    struct free_list list;
    assert_int_equal(free_list_init(&list, memory + 1, 8192), -EINVAL);
    assert_int_equal(free_list_init(&list, memory, 8193), -EINVAL);
    assert_int_equal(free_list_init(&list, memory, 4096), -EINVAL);
    assert_int_equal(free_list_init(&list, memory, 0), -EINVAL);
    assert_int_equal(free_list_init(&list, memory, 8192), 0);
    assert_int_equal(list.page_count, 1);
}

TEST(what_is_bumped_ends_where_its_memory_does) {
    struct bump bump;
    bump_init(&bump, memory, 100);
    assert_ptr_equal(bump_take(&bump, 60), memory);
    assert_null(bump_take(&bump, 41));
    assert_ptr_equal(bump_take(&bump, 40), memory + 60);
    assert_null(bump_take(&bump, 1));
}

TEST(every_page_says_what_it_belongs_to) {
    struct free_list list = new_list();
    struct free_list_place place;
    char *begin = (char *)list.bump.start;
    assert_false(free_list_look(&list, begin, &place)); /* nothing was ever handed out */
    assert_false(free_list_look(&list, begin + 5 * PAGE_BYTES, &place));
    char *run = free_list_take(&list, 3, 1);
    char *other = free_list_take(&list, 2, 1);
    assert_true(free_list_look(&list, run + 2 * PAGE_BYTES, &place));
    assert_true(place.run == run && place.pages == 3 && place.is_used);
    free_list_give(&list, run);
    assert_true(free_list_look(&list, run + PAGE_BYTES, &place));
    assert_true(place.run == run && place.pages == 3 && !place.is_used);
    assert_true(free_list_look(&list, other + PAGE_BYTES, &place));
    assert_true(place.run == other && place.pages == 2 && place.is_used);
}

TEST(a_fresh_list_hands_out_runs_in_order_of_address) {
    struct free_list list = new_list();
    char *first = free_list_take(&list, 3, 1);
    char *second = free_list_take(&list, 1, 1);
    assert_ptr_equal(second, first + 3 * PAGE_BYTES);
    assert_int_equal(free_list_run_pages(&list, first), 3);
    assert_int_equal(free_list_run_pages(&list, first + PAGE_BYTES), 0);
    assert_int_equal(list.pages_used, 4);
}

TEST(giving_back_the_newest_run_retracts_the_bump_pointer) {
    struct free_list list = new_list();
    void *first = free_list_take(&list, 3, 1);
    void *second = free_list_take(&list, 5, 1);
    free_list_give(&list, second);
    assert_ptr_equal((void *)list.bump.next, second);
    free_list_give(&list, first);
    expect_one_run(&list);
}

/* Three neighbours, a fourth behind them so that the bump pointer stays, in all six orders. */
TEST(neighbours_join_in_whatever_order_they_come_back) {
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (int order = 0; order < 6; order++) {
        struct free_list list = new_list();
        void *runs[3];
        for (int i = 0; i < 3; i++) {
            runs[i] = free_list_take(&list, (size_t)i + 1, 1);
        }
        void *fence = free_list_take(&list, 1, 1);
        for (int i = 0; i < 3; i++) {
            free_list_give(&list, runs[orders[order][i]]);
        }
        assert_int_equal(list.pages_used, 1);
        void *whole = free_list_take(&list, 6, 1);
        assert_ptr_equal(whole, runs[0]);
        free_list_give(&list, whole);
        free_list_give(&list, fence);
        expect_one_run(&list);
    }
}

TEST(what_is_left_of_a_split_run_serves_the_next) {
    struct free_list list = new_list();
    char *run = free_list_take(&list, 8, 1);
    void *fence = free_list_take(&list, 1, 1);
    free_list_give(&list, run);
    assert_ptr_equal(free_list_take(&list, 3, 1), run);
    assert_ptr_equal(free_list_take(&list, 5, 1), run + 3 * PAGE_BYTES);
    free_list_give(&list, run + 3 * PAGE_BYTES);
    free_list_give(&list, run);
    free_list_give(&list, fence);
    expect_one_run(&list);
}

TEST(runs_are_aligned_as_asked_and_the_cuttings_are_not_lost) {
    for (size_t align = 1; align <= 128; align *= 2) {
        struct free_list list = new_list();
        void *odd = free_list_take(&list, 1, 1);
        void *aligned = free_list_take(&list, 3, align);
        assert_non_null(aligned);
        assert_int_equal((uintptr_t)aligned % (align * PAGE_BYTES), 0);
        assert_int_equal(free_list_run_pages(&list, aligned), 3);
        assert_int_equal(list.pages_used, 4);
        free_list_give(&list, odd);
        free_list_give(&list, aligned);
        expect_one_run(&list);
    }
}

TEST(exhaustion_is_null_and_counted_and_heals) {
    struct free_list list = new_list();
    void *all = free_list_take(&list, PAGES_USABLE, 1);
    assert_non_null(all);
    assert_int_equal(free_list_largest_run(&list), 0);
    assert_null(free_list_take(&list, 1, 1));
    assert_null(free_list_take(&list, 1, 1));
    assert_int_equal(list.failures, 2);
    assert_int_equal(list.pages_used_peak, PAGES_USABLE);
    free_list_give(&list, all);
    assert_non_null(free_list_take(&list, 1, 1));
}

TEST(a_run_of_no_pages_or_of_more_than_there_are_is_refused) {
    struct free_list list = new_list();
    assert_null(free_list_take(&list, 0, 1));
    assert_null(free_list_take(&list, PAGES_USABLE + 1, 1));
    assert_null(free_list_take(&list, SIZE_MAX, 1));
    assert_null(free_list_take(&list, 1, (size_t)1 << 62));
    assert_int_equal(list.failures, 4);
    expect_one_run(&list);
}

TEST(a_run_given_twice_panics) {
    struct free_list list = new_list();
    void *run = free_list_take(&list, 2, 1);
    void *fence = free_list_take(&list, 1, 1);
    free_list_give(&list, run);
    assert_panics("released twice", free_list_give(&list, run));
    free_list_give(&list, fence);
    assert_panics("released twice", free_list_give(&list, fence));
}

TEST(a_pointer_that_starts_no_run_panics) {
    struct free_list list = new_list();
    char *run = free_list_take(&list, 4, 1);
    int elsewhere = 0;
    assert_panics("where no run in use starts", free_list_give(&list, run + PAGE_BYTES));
    assert_panics("where no run in use starts", free_list_give(&list, run + 16));
    assert_panics("where no run in use starts", free_list_give(&list, run + 4 * PAGE_BYTES));
    assert_panics("where no run in use starts", free_list_give(&list, &elsewhere));
    assert_panics("where no run in use starts", free_list_give(&list, memory));
}

/* The model: which run owns each page; every page of a run carries its number. */
struct model {
    struct free_list list;
    struct {
        uint8_t *start;
        size_t pages;
    } runs[200];
    size_t count;
};

static void take_one(struct model *model) {
    size_t pages = 1 + unit_random_below(unit_random_below(8) == 0 ? 64 : 6);
    size_t align = (size_t)1 << unit_random_below(unit_random_below(4) == 0 ? 5 : 1);
    size_t used = model->list.pages_used;
    uint8_t *run = free_list_take(&model->list, pages, align);
    if (run == NULL) {
        assert_int_equal(model->list.pages_used, used);
        return;
    }
    assert_int_equal((uintptr_t)run % (align * PAGE_BYTES), 0);
    for (size_t i = 0; i < model->count; i++) {
        assert_true(run + pages * PAGE_BYTES <= model->runs[i].start ||
                    run >= model->runs[i].start + model->runs[i].pages * PAGE_BYTES);
    }
    memset(run, 0x5a, pages * PAGE_BYTES);
    model->runs[model->count].start = run;
    model->runs[model->count].pages = pages;
    model->count++;
}

static void give_one(struct model *model) {
    size_t victim = unit_random_below(model->count);
    assert_int_equal(free_list_run_pages(&model->list, model->runs[victim].start),
                     model->runs[victim].pages);
    /* The list writes only into runs that are free. */
    for (size_t i = 0; i < model->runs[victim].pages; i++) {
        assert_int_equal(model->runs[victim].start[i * PAGE_BYTES], 0x5a);
    }
    free_list_give(&model->list, model->runs[victim].start);
    model->runs[victim] = model->runs[--model->count];
}

TEST(a_long_random_load_ends_as_one_run) {
    struct model model = {.list = new_list()};
    for (int step = 0; step < 100000; step++) {
        bool takes = model.count == 0 ||
                     (model.count < ARRAY_COUNT(model.runs) && unit_random_below(2) == 0);
        if (takes) {
            take_one(&model);
        } else {
            give_one(&model);
        }
        size_t used = 0;
        for (size_t i = 0; i < model.count && step % 64 == 0; i++) {
            used += model.runs[i].pages;
        }
        assert_true(step % 64 != 0 || used == model.list.pages_used);
    }
    while (model.count > 0) {
        give_one(&model);
    }
    expect_one_run(&model.list);
}
