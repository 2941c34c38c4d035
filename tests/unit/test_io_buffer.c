/* DMA memory with one owner: core/mem/io_buffer.c. */
#include "core/mem/io_buffer.h"

#include <string.h>

#include "core/mem/heap.h"
#include "tests/unit/unit.h"

static size_t bytes_used(void) {
    struct heap_stats stats;
    heap_get_stats(&stats);
    return stats.bytes_used;
}

static void expect_empty(const struct io_buffer *buffer) {
    assert_false(io_buffer_is_valid(buffer));
    assert_null(io_buffer_data(buffer));
    assert_int_equal(io_buffer_size(buffer), 0);
}

TEST(a_buffer_has_the_size_and_alignment_asked_for) {
    for (size_t align = 1; align <= 65536; align *= 2) {
        struct io_buffer buffer;
        assert_int_equal(io_buffer_init(&buffer, 5000, align), 0);
        assert_true(io_buffer_is_valid(&buffer));
        assert_int_equal(io_buffer_size(&buffer), 5000);
        assert_int_equal((uintptr_t)io_buffer_data(&buffer) % align, 0);
        assert_int_equal(io_buffer_device_address(&buffer).value,
                         (uintptr_t)io_buffer_data(&buffer));
        memset(io_buffer_data(&buffer), 0xee, 5000);
        io_buffer_release(&buffer);
    }
}

TEST(a_size_of_zero_is_refused_and_said) {
    struct io_buffer buffer;
    assert_int_equal(io_buffer_init(&buffer, 0, 4096), -EINVAL);
    expect_empty(&buffer);
    assert_logged("io_buffer: a size of 0 was asked for");
}

TEST(an_alignment_of_zero_or_no_power_of_two_is_refused_and_said) {
    struct io_buffer buffer;
    assert_int_equal(io_buffer_init(&buffer, 4096, 0), -EINVAL);
    expect_empty(&buffer);
    assert_logged("alignment 0 is not a power of two");
    assert_int_equal(io_buffer_init(&buffer, 4096, 4097), -EINVAL);
    expect_empty(&buffer);
    assert_logged("alignment 4097 is not a power of two");
}

TEST(a_size_that_wraps_is_refused_and_said) {
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 4095, SIZE_MAX - 8191};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct io_buffer buffer;
        unit_log_clear();
        assert_int_equal(io_buffer_init(&buffer, sizes[i], 4096), -EINVAL);
        expect_empty(&buffer);
        assert_logged("wrap");
    }
    struct io_buffer buffer;
    assert_int_equal(io_buffer_init(&buffer, 4096, (size_t)1 << 63), -ENOMEM);
    expect_empty(&buffer);
}

TEST(more_than_there_is_fails_and_leaves_nothing_behind) {
    struct io_buffer buffer;
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    assert_int_equal(io_buffer_init(&buffer, 2 * UNIT_HEAP_BYTES, 4096), -ENOMEM);
    expect_empty(&buffer);
    assert_logged("left");
    assert_int_equal(bytes_used(), before);
    assert_int_equal(io_buffer_count(), count);
}

TEST(release_returns_all_and_twice_is_harmless) {
    struct io_buffer buffer;
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    assert_int_equal(io_buffer_init(&buffer, 100000, 65536), 0);
    assert_int_equal(io_buffer_count(), count + 1);
    io_buffer_release(&buffer);
    expect_empty(&buffer);
    assert_int_equal(bytes_used(), before);
    assert_int_equal(io_buffer_count(), count);
    io_buffer_release(&buffer);
    assert_int_equal(io_buffer_count(), count);
}

TEST(an_all_zero_buffer_is_empty_and_may_be_released) {
    struct io_buffer buffer = {0};
    expect_empty(&buffer);
    assert_false(io_buffer_is_valid(NULL));
    io_buffer_release(&buffer);
}

TEST(a_move_hands_over_and_empties) {
    struct io_buffer from;
    struct io_buffer to = {0};
    assert_int_equal(io_buffer_init(&from, 5000, 4096), 0);
    void *memory = io_buffer_data(&from);
    io_buffer_move(&to, &from);
    expect_empty(&from);
    assert_ptr_equal(io_buffer_data(&to), memory);
    assert_int_equal(io_buffer_size(&to), 5000);
    io_buffer_release(&to);
}

TEST(a_move_onto_a_full_buffer_releases_what_it_held) {
    struct io_buffer from;
    struct io_buffer to;
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    assert_int_equal(io_buffer_init(&from, 5000, 4096), 0);
    assert_int_equal(io_buffer_init(&to, 50000, 4096), 0);
    io_buffer_move(&to, &from);
    assert_int_equal(io_buffer_count(), count + 1);
    assert_int_equal(io_buffer_size(&to), 5000);
    io_buffer_release(&to);
    assert_int_equal(bytes_used(), before);
}

TEST(a_move_onto_itself_changes_nothing) {
    struct io_buffer buffer;
    assert_int_equal(io_buffer_init(&buffer, 5000, 4096), 0);
    void *memory = io_buffer_data(&buffer);
    io_buffer_move(&buffer, &buffer);
    assert_ptr_equal(io_buffer_data(&buffer), memory);
    assert_int_equal(io_buffer_size(&buffer), 5000);
    io_buffer_release(&buffer);
}

TEST(a_move_of_an_empty_buffer_empties_the_other) {
    struct io_buffer from = {0};
    struct io_buffer to;
    assert_int_equal(io_buffer_init(&to, 5000, 4096), 0);
    io_buffer_move(&to, &from);
    expect_empty(&to);
}

TEST(carving_goes_up_to_the_last_byte_and_no_further) {
    struct io_buffer buffer;
    void *part = NULL;
    assert_int_equal(io_buffer_init(&buffer, 8192, 4096), 0);
    char *memory = io_buffer_data(&buffer);
    assert_int_equal(io_buffer_carve(&buffer, 10, 1, &part), 0);
    assert_ptr_equal(part, memory);
    assert_int_equal(io_buffer_carve(&buffer, 100, 64, &part), 0);
    assert_ptr_equal(part, memory + 64);
    assert_int_equal(io_buffer_carve(&buffer, 8192 - 164 + 1, 1, &part), -ENOMEM);
    assert_logged("no 8029 bytes left of 8192 (164 in use)");
    assert_int_equal(io_buffer_carve(&buffer, 8192 - 164, 1, &part), 0);
    assert_ptr_equal(part, memory + 164);
    assert_int_equal(io_buffer_carve(&buffer, 1, 1, &part), -ENOMEM);
    io_buffer_release(&buffer);
}

TEST(carving_nothing_or_from_nothing_is_refused) {
    struct io_buffer empty = {0};
    struct io_buffer buffer;
    void *part = NULL;
    assert_int_equal(io_buffer_carve(&empty, 1, 1, &part), -ENOMEM);
    assert_int_equal(io_buffer_carve(NULL, 1, 1, &part), -ENOMEM);
    assert_int_equal(io_buffer_init(&buffer, 8192, 4096), 0);
    assert_int_equal(io_buffer_carve(&buffer, 0, 1, &part), -ENOMEM);
    assert_int_equal(io_buffer_carve(&buffer, 1, 3, &part), -ENOMEM);
    assert_int_equal(io_buffer_carve(&buffer, SIZE_MAX, 1, &part), -ENOMEM);
    assert_int_equal(io_buffer_carve(&buffer, 1, (size_t)1 << 63, &part), -ENOMEM);
    assert_null(part);
    io_buffer_release(&buffer);
}

TEST(after_uncarving_the_whole_buffer_is_there_again) {
    struct io_buffer buffer;
    void *part = NULL;
    assert_int_equal(io_buffer_init(&buffer, 8192, 4096), 0);
    assert_int_equal(io_buffer_carve(&buffer, 8192, 1, &part), 0);
    io_buffer_uncarve(&buffer);
    assert_int_equal(io_buffer_carve(&buffer, 8192, 1, &part), 0);
    assert_ptr_equal(part, io_buffer_data(&buffer));
    io_buffer_release(&buffer);
}
