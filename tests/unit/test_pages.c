/* Page tables: core/mem/pages.c. */
#include "core/mem/pages.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem/heap.h"
#include "tests/unit/unit.h"

#define KIB    UINT64_C(1024)
#define MIB    (1024 * KIB)
#define GIB    (1024 * MIB)
#define RW     (PAGE_READ | PAGE_WRITE)
#define REACH3 (UINT64_C(1) << 38)
#define REACH4 (UINT64_C(1) << 47)

static size_t frames_left;
static size_t frames_out;
static struct page_tables tables;

static void *take(void) {
    if (frames_left == 0) {
        return NULL;
    }
    frames_left--;
    frames_out++;
    return heap_alloc_aligned(PAGE_BYTES, PAGE_BYTES);
}

static void give(void *frame) {
    frames_left++;
    frames_out--;
    heap_free(frame);
}

static const struct page_frames frames = {take, give};

static void begin(unsigned levels, size_t frame_count) {
    frames_left = frame_count;
    frames_out = 0;
    assert_int_equal(pages_init(&tables, levels, &frames), 0);
}

static void end(void) {
    pages_release(&tables);
    assert_int_equal(frames_out, 0);
}

static void expect(uint64_t address, uint64_t physical, uint64_t page_bytes, unsigned access) {
    struct page_mapping mapping = {0};
    assert_int_equal(pages_translate(&tables, address, &mapping), 0);
    assert_int_equal(mapping.physical.value, physical);
    assert_int_equal(mapping.page_bytes, page_bytes);
    assert_int_equal(mapping.access, access);
}

static void expect_nothing(uint64_t address) {
    struct page_mapping mapping;
    assert_int_equal(pages_translate(&tables, address, &mapping), PAGES_BAD_ADDRESS);
}

TEST(an_empty_tree_maps_nothing) {
    begin(3, 1);
    expect_nothing(0);
    expect_nothing(REACH3 - 1);
    assert_int_equal(tables.frame_count, 1);
    end();
}

TEST(without_a_frame_there_is_no_tree) {
    frames_left = 0;
    assert_int_equal(pages_init(&tables, 3, &frames), PAGES_OUT_OF_FRAMES);
}

TEST(pages_are_as_large_as_fits) {
    begin(3, 16);
    assert_int_equal(pages_map(&tables, GIB - 2 * MIB - 4 * KIB,
                               phys_addr(5 * GIB - 2 * MIB - 4 * KIB), GIB + 4 * MIB + 8 * KIB, RW),
                     0);
    expect(GIB - 2 * MIB - 4 * KIB, 5 * GIB - 2 * MIB - 4 * KIB, 4 * KIB, RW);
    expect(GIB - 2 * MIB + 5, 5 * GIB - 2 * MIB + 5, 2 * MIB, RW);
    expect(GIB + 77, 5 * GIB + 77, GIB, RW);
    expect(2 * GIB, 6 * GIB, 2 * MIB, RW);
    expect(2 * GIB + 2 * MIB, 6 * GIB + 2 * MIB, 4 * KIB, RW);
    expect_nothing(2 * GIB + 2 * MIB + 4 * KIB);
    expect_nothing(GIB - 2 * MIB - 4 * KIB - 1);
    assert_int_equal(tables.frame_count, 5);
    end();
}

TEST(memory_that_is_not_aligned_alike_gets_small_pages) {
    begin(3, 16);
    assert_int_equal(pages_map(&tables, 2 * MIB, phys_addr(4 * KIB), 2 * MIB, PAGE_READ), 0);
    expect(2 * MIB, 4 * KIB, 4 * KIB, PAGE_READ);
    expect(4 * MIB - 1, 2 * MIB + 4 * KIB - 1, 4 * KIB, PAGE_READ);
    end();
}

TEST(four_levels_reach_further) {
    begin(4, 8);
    assert_int_equal(pages_map(&tables, REACH3, phys_addr(REACH3), 2 * GIB, RW), 0);
    expect(REACH3 + GIB, REACH3 + GIB, GIB, RW);
    assert_int_equal(pages_map(&tables, REACH4 - GIB, phys_addr(0), GIB, RW), 0);
    expect(REACH4 - 1, GIB - 1, GIB, RW);
    assert_int_equal(pages_map(&tables, REACH4, phys_addr(0), GIB, RW), PAGES_BAD_ADDRESS);
    end();
}

TEST(addresses_that_make_no_sense_are_refused) {
    begin(3, 8);
    static const struct {
        uint64_t address;
        uint64_t physical;
        uint64_t bytes;
    } bad[] = {
        {1, 0, 4 * KIB},
        {0, 1, 4 * KIB},
        {0, 0, 4 * KIB - 1},
        {0, 0, 0},
        {REACH3, 0, 4 * KIB},
        {REACH3 - 4 * KIB, 0, 8 * KIB},
        {UINT64_MAX - 4 * KIB + 1, 0, 4 * KIB},
        {4 * KIB, 0, UINT64_MAX - 4 * KIB + 1},
        {0, UINT64_MAX - 4 * KIB + 1, 4 * KIB},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        assert_int_equal(
            pages_map(&tables, bad[i].address, phys_addr(bad[i].physical), bad[i].bytes, RW),
            PAGES_BAD_ADDRESS);
    }
    expect_nothing(REACH3);
    expect_nothing(UINT64_MAX);
    assert_int_equal(pages_unmap(&tables, REACH3, 4 * KIB), PAGES_BAD_ADDRESS);
    assert_int_equal(pages_protect(&tables, 1, 4 * KIB, RW), PAGES_BAD_ADDRESS);
    assert_int_equal(pages_unmap(&tables, 0, 4 * KIB), PAGES_BAD_ADDRESS);
    assert_int_equal(pages_protect(&tables, 4 * KIB, 4 * KIB, RW), PAGES_BAD_ADDRESS);
    assert_int_equal(tables.frame_count, 1);
    end();
}

TEST(what_is_mapped_is_not_mapped_again) {
    begin(3, 8);
    assert_int_equal(pages_map(&tables, 8 * KIB, phys_addr(8 * KIB), 4 * KIB, RW), 0);
    assert_int_equal(pages_map(&tables, 0, phys_addr(0), 16 * KIB, RW), PAGES_ALREADY_MAPPED);
    expect_nothing(0);
    assert_int_equal(pages_map(&tables, 2 * MIB, phys_addr(2 * MIB), 2 * MIB, RW), 0);
    assert_int_equal(pages_map(&tables, 2 * MIB + 4 * KIB, phys_addr(0), 4 * KIB, RW),
                     PAGES_LARGE_PAGE);
    assert_int_equal(pages_map(&tables, MIB, phys_addr(0), 2 * MIB, RW), PAGES_LARGE_PAGE);
    expect_nothing(MIB);
    end();
}

TEST(a_part_of_a_large_page_gets_other_permissions_and_is_joined_again) {
    begin(3, 8);
    assert_int_equal(pages_map(&tables, 0, phys_addr(GIB), 2 * GIB, RW), 0);
    size_t before = tables.frame_count;
    assert_int_equal(pages_protect(&tables, 10 * MIB + 4 * KIB, 4 * KIB, PAGE_NONE), 0);
    expect(10 * MIB, GIB + 10 * MIB, 4 * KIB, RW);
    expect(10 * MIB + 4 * KIB, GIB + 10 * MIB + 4 * KIB, 4 * KIB, PAGE_NONE);
    expect(10 * MIB + 8 * KIB, GIB + 10 * MIB + 8 * KIB, 4 * KIB, RW);
    expect(8 * MIB, GIB + 8 * MIB, 2 * MIB, RW);
    expect(GIB, 2 * GIB, GIB, RW);
    assert_int_equal(tables.frame_count, before + 2);
    assert_int_equal(pages_protect(&tables, 10 * MIB + 4 * KIB, 4 * KIB, RW), 0);
    expect(10 * MIB + 4 * KIB, GIB + 10 * MIB + 4 * KIB, GIB, RW);
    assert_int_equal(tables.frame_count, before);
    end();
}

TEST(a_change_over_several_pages_reaches_each_and_no_more) {
    begin(3, 8);
    assert_int_equal(pages_map(&tables, 0, phys_addr(0), 8 * MIB, RW), 0);
    assert_int_equal(pages_protect(&tables, 2 * MIB - 4 * KIB, 2 * MIB + 8 * KIB, PAGE_READ), 0);
    expect(2 * MIB - 8 * KIB, 2 * MIB - 8 * KIB, 4 * KIB, RW);
    expect(2 * MIB - 4 * KIB, 2 * MIB - 4 * KIB, 4 * KIB, PAGE_READ);
    expect(2 * MIB, 2 * MIB, 2 * MIB, PAGE_READ);
    expect(4 * MIB, 4 * MIB, 4 * KIB, PAGE_READ);
    expect(4 * MIB + 4 * KIB, 4 * MIB + 4 * KIB, 4 * KIB, RW);
    expect(6 * MIB, 6 * MIB, 2 * MIB, RW);
    /* A hole in the middle of the range: nothing changes. */
    assert_int_equal(pages_unmap(&tables, 4 * MIB + 8 * KIB, 4 * KIB), 0);
    expect_nothing(4 * MIB + 8 * KIB);
    assert_int_equal(pages_protect(&tables, 4 * MIB, 16 * KIB, PAGE_NONE), PAGES_BAD_ADDRESS);
    expect(4 * MIB, 4 * MIB, 4 * KIB, PAGE_READ);
    end();
}

TEST(unmapping_everything_gives_every_table_back) {
    begin(4, 16);
    assert_int_equal(pages_map(&tables, 4 * KIB, phys_addr(4 * KIB), GIB + 3 * MIB, RW), 0);
    assert_true(tables.frame_count > 3);
    assert_int_equal(pages_unmap(&tables, 4 * KIB, GIB + 3 * MIB), 0);
    assert_int_equal(tables.frame_count, 1);
    expect_nothing(GIB);
    end();
}

TEST(running_out_of_frames_leaves_the_tree_as_it_was) {
    for (size_t count = 1; count < 8; count++) {
        begin(3, count);
        bool is_mapped = pages_map(&tables, GIB - 4 * KIB, phys_addr(0), 8 * KIB, RW) == 0;
        assert_int_equal(is_mapped, count >= 5);
        assert_int_equal(tables.frame_count, is_mapped ? 5 : 1);
        end();
    }
    for (size_t count = 1; count < 5; count++) {
        begin(3, count);
        assert_int_equal(pages_map(&tables, 0, phys_addr(0), GIB, RW), 0);
        int error = pages_protect(&tables, 12 * KIB, 4 * KIB, PAGE_NONE);
        assert_int_equal(error, count >= 3 ? 0 : PAGES_OUT_OF_FRAMES);
        expect(12 * KIB, 12 * KIB, error ? GIB : 4 * KIB, error ? RW : PAGE_NONE);
        assert_int_equal(tables.frame_count, error ? 1 : 3);
        end();
    }
}

/* Against a plain array of what each page should be. */
TEST(many_random_changes_agree_with_a_model) {
    enum { PAGES = 2048, ROUNDS = 4000, UNMAPPED = 99 };
    static unsigned model[PAGES];
    static const unsigned choices[] = {PAGE_NONE, PAGE_READ, RW, PAGE_READ | PAGE_EXECUTE};
    begin(3, 1000);
    for (unsigned i = 0; i < PAGES; i++) {
        model[i] = UNMAPPED;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned first = (unsigned)unit_random_below(PAGES);
        unsigned count = 1 + (unsigned)unit_random_below(unit_random_below(2) ? 8 : PAGES - first);
        count = count > PAGES - first ? PAGES - first : count;
        unsigned access = choices[unit_random_below(ARRAY_COUNT(choices))];
        uint64_t address = first * 4 * KIB;
        bool all_mapped = true;
        bool none_mapped = true;
        for (unsigned i = first; i < first + count; i++) {
            all_mapped &= model[i] != UNMAPPED;
            none_mapped &= model[i] == UNMAPPED;
        }
        unsigned operation = (unsigned)unit_random_below(3);
        int error;
        if (operation == 0) {
            error = pages_map(&tables, address, phys_addr(address + GIB), count * 4 * KIB, access);
            assert_int_equal(error == 0, none_mapped);
        } else if (operation == 1) {
            error = pages_unmap(&tables, address, count * 4 * KIB);
            assert_int_equal(error == 0, all_mapped);
        } else {
            error = pages_protect(&tables, address, count * 4 * KIB, access);
            assert_int_equal(error == 0, all_mapped);
        }
        for (unsigned i = first; !error && i < first + count; i++) {
            model[i] = operation == 1 ? UNMAPPED : access;
        }
        unsigned probe = (unsigned)unit_random_below(PAGES);
        struct page_mapping mapping;
        error = pages_translate(&tables, probe * 4 * KIB, &mapping);
        assert_int_equal(error == 0, model[probe] != UNMAPPED);
        if (!error) {
            assert_int_equal(mapping.access, model[probe]);
            assert_int_equal(mapping.physical.value, probe * 4 * KIB + GIB);
        }
    }
    end();
}
