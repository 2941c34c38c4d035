/* Checks of released memory and of what lies behind a buffer: core/mem/poison.c and those who call
 * it; and the naming of addresses, core/place.c. */
#include "core/mem/poison.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "core/place.h"
#include "tests/unit/unit.h"

TEST(released_memory_holds_no_address) {
    heap_checks = true;
    uintptr_t *object = heap_alloc(64);
    memset(object, 0, 64);
    heap_free(object);
    assert_true(poison_is_address(object[3]));
    assert_true(poison_is_address(object[3] + 40));
    assert_false(poison_is_address((uintptr_t)object));
    uintptr_t *run = heap_alloc(3 * PAGE_BYTES);
    memset(run, 0, 3 * PAGE_BYTES);
    heap_free(run);
    assert_true(poison_is_address(run[1000]));
}

TEST(a_write_to_released_memory_is_found_when_it_is_handed_out) {
    heap_checks = true;
    char *object = heap_alloc(64);
    heap_free(object);
    assert_panics("was written there after the release", {
        object[9] = 1;
        (void)heap_alloc(64);
    });
    char *run = heap_alloc(3 * PAGE_BYTES);
    heap_free(run);
    assert_panics("was written there after the release", {
        run[2 * PAGE_BYTES] = 1;
        (void)heap_alloc(3 * PAGE_BYTES);
    });
}

TEST(a_write_to_released_memory_is_found_by_a_look_around) {
    heap_checks = true;
    char *object = heap_alloc(64);
    char *first = heap_alloc(2 * PAGE_BYTES);
    void *between = heap_alloc(2 * PAGE_BYTES);
    char *newest = heap_alloc(2 * PAGE_BYTES);
    heap_free(object);
    heap_free(first);
    heap_free(newest);
    heap_check();
    assert_panics("0x01 at", {
        object[63] = 1;
        heap_check();
    });
    assert_panics("0x02 at", {
        first[2 * PAGE_BYTES - 1] = 2;
        heap_check();
    });
    assert_panics("0x03 at", {
        newest[0] = 3;
        heap_check();
    });
    heap_free(between);
    heap_check();
}

TEST(a_look_around_sees_what_is_free_between_objects) {
    heap_checks = true;
    void *kept = heap_alloc(64);
    char *object = heap_alloc(64);
    heap_free(object);
    heap_check();
    assert_panics("0x04 at", {
        object[40] = 4;
        heap_check();
    });
    heap_free(kept);
}

TEST(mixed_use_with_checks_finds_nothing) {
    enum { SLOTS = 64, ROUNDS = 5000 };
    static char *slots[SLOTS];
    heap_checks = true;
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned slot = (unsigned)unit_random_below(SLOTS);
        if (slots[slot] != NULL) {
            heap_free(slots[slot]);
            slots[slot] = NULL;
        } else {
            size_t bytes = 1 + unit_random_below(unit_random_below(2) ? 200 : 40000);
            bool is_aligned = unit_random_below(4) == 0;
            slots[slot] = is_aligned ? heap_alloc_aligned(8192, bytes) : heap_alloc(bytes);
            assert_non_null(slots[slot]);
            memset(slots[slot], (int)i, bytes);
        }
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        heap_free(slots[i]);
        slots[i] = NULL;
    }
    heap_check();
}

TEST(a_byte_behind_an_io_buffer_is_found) {
    struct io_buffer buffer;
    heap_checks = true;
    assert_int_equal(io_buffer_init(&buffer, 4096, 4096), 0);
    memset(io_buffer_data(&buffer), 0, 4096);
    io_buffer_check(&buffer);
    assert_panics("byte 4096 of the 4096 bytes", {
        ((char *)io_buffer_data(&buffer))[4096] = 0;
        io_buffer_release(&buffer);
    });
    assert_panics("byte 8191 of the 4096 bytes", {
        ((char *)io_buffer_data(&buffer))[8191] = 0;
        io_buffer_check(&buffer);
    });
    io_buffer_release(&buffer);
}

static void expect_place(const void *address, const char *words) {
    char text[160];
    place_describe((uintptr_t)address, text, sizeof text);
    if (strstr(text, words) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", text, words);
    }
}

TEST(addresses_have_names) {
    char *object = heap_alloc(100);
    char *other = heap_alloc(100);
    char *run = heap_alloc(3 * PAGE_BYTES);
    void *after = heap_alloc(2 * PAGE_BYTES);
    expect_place(NULL, "page 0");
    expect_place((void *)8, "page 0");
    expect_place(object + 17, "heap, byte 17 of 112 bytes in use");
    heap_free(other);
    expect_place(other, "heap, byte 0 of 112 bytes that are free");
    expect_place((void *)align_down((uintptr_t)object, PAGE_BYTES), "the heap's own records");
    expect_place(run + PAGE_BYTES + 5, "heap, byte 4101 of 12288 bytes in use");
    heap_free(run);
    expect_place(run + 2 * PAGE_BYTES, "bytes that are free");
    expect_place(text_start, "code");
    expect_place(rodata_start + 1, "constants");
    expect_place(boot_stack_guard + 4095, "the guard page below the boot stack, whose 4096 bytes");
    expect_place(boot_stack_start + 5, "the boot stack, 5 bytes from its end");
    expect_place(fault_stack_guard + 1, "the guard page below the fault stack");
    expect_place((void *)UINT64_C(0xdbdbdbdbdbdbdbe3), "the filling of released memory");
    expect_place((void *)UINT64_C(0x123456789000), "nothing at all");
    heap_free(object);
    heap_free(after);
}
