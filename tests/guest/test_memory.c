/* IoBuffers and the allocator in the machine's real memory. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "tests/guest/guest.h"

static size_t bytes_used(void) {
    struct heap_stats stats;
    heap_get_stats(&stats);
    return stats.bytes_used;
}

static bool is_empty(const struct io_buffer *buffer) {
    return !io_buffer_is_valid(buffer) && io_buffer_data(buffer) == NULL &&
           io_buffer_size(buffer) == 0;
}

static void an_io_buffer_is_aligned_and_its_device_address_is_its_own(void) {
    for (size_t align = 1; align <= 65536; align *= 2) {
        struct io_buffer buffer;
        EXPECT(io_buffer_init(&buffer, 10000, align) == 0);
        EXPECT(io_buffer_size(&buffer) == 10000);
        EXPECT((uintptr_t)io_buffer_data(&buffer) % align == 0);
        EXPECT(io_buffer_device_address(&buffer).value == (uintptr_t)io_buffer_data(&buffer));
        memset(io_buffer_data(&buffer), 0x5a, 10000);
        io_buffer_release(&buffer);
    }
}

static void an_io_buffer_that_makes_no_sense_is_refused_and_empty(void) {
    struct io_buffer buffer;
    EXPECT(io_buffer_init(&buffer, 0, 4096) == -EINVAL && is_empty(&buffer));
    EXPECT(io_buffer_init(&buffer, 4096, 0) == -EINVAL && is_empty(&buffer));
    EXPECT(io_buffer_init(&buffer, 4096, 3000) == -EINVAL && is_empty(&buffer));
    EXPECT(io_buffer_init(&buffer, SIZE_MAX - 100, 4096) == -EINVAL && is_empty(&buffer));
}

static void an_io_buffer_too_large_for_the_machine_leaves_nothing_behind(void) {
    struct io_buffer buffer;
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    EXPECT(io_buffer_init(&buffer, (size_t)1 << 40, 4096) == -ENOMEM && is_empty(&buffer));
    EXPECT(bytes_used() == before && io_buffer_count() == count);
}

static void an_io_buffer_has_one_owner(void) {
    struct io_buffer first;
    struct io_buffer second = {0};
    size_t before = bytes_used();
    EXPECT(io_buffer_init(&first, 8192, 4096) == 0);
    void *memory = io_buffer_data(&first);
    io_buffer_move(&second, &first);
    EXPECT(is_empty(&first) && io_buffer_data(&second) == memory);
    io_buffer_move(&second, &second);
    EXPECT(io_buffer_data(&second) == memory);
    io_buffer_release(&first);
    io_buffer_release(&second);
    io_buffer_release(&second);
    EXPECT(is_empty(&second) && bytes_used() == before);
}

static void a_second_heap_is_refused(void) {
    struct io_buffer buffer;
    EXPECT(io_buffer_init(&buffer, 65536, 4096) == 0);
    EXPECT(heap_init(io_buffer_data(&buffer), 65536) == -EBUSY);
    io_buffer_release(&buffer);
}

/* Through pointers: the compiler believes that malloc leaves errno alone. */
static void *(*volatile const malloc_called)(size_t) = malloc;
static void *(*volatile const calloc_called)(size_t, size_t) = calloc;

static void malloc_of_more_than_there_is_fails_and_says_so(void) {
    errno = 0;
    EXPECT(malloc_called((size_t)1 << 40) == NULL);
    EXPECT(errno == ENOMEM);
    errno = 0;
    EXPECT(calloc_called((size_t)1 << 40, (size_t)1 << 40) == NULL);
    EXPECT(errno == ENOMEM);
}

/* Takes all memory there is, in pieces of 64 KiB chained through their first word. */
static void exhausted_memory_comes_back_whole(void) {
    size_t before = bytes_used();
    void **pieces = NULL;
    void **piece;
    size_t count = 0;
    while ((piece = malloc(65536)) != NULL) {
        *piece = pieces;
        pieces = piece;
        count++;
    }
    while (pieces != NULL) {
        piece = pieces;
        pieces = *piece;
        free(piece);
    }
    EXPECT(count > 100 && bytes_used() == before);
    guest_say("%zu KiB in pieces of 64", count * 64);
}

struct object {
    unsigned char *start;
    size_t bytes;
    unsigned char fill;
};

static bool check(const struct object *object) {
    return object->bytes == 0 ||
           (object->start[0] == object->fill && object->start[object->bytes / 2] == object->fill &&
            object->start[object->bytes - 1] == object->fill);
}

static bool replace(struct object *object, unsigned step) {
    size_t bytes = 1 + guest_random() % (guest_random() % 16 == 0 ? 60000 : 1500);
    size_t align = (size_t)16 << guest_random() % 9;
    if (object->start != NULL && guest_random() % 2 == 0) {
        size_t kept = object->bytes < bytes ? object->bytes : bytes;
        unsigned char *moved = realloc(object->start, bytes);
        EXPECT_OR_FALSE(moved != NULL);
        object->start = moved;
        EXPECT_OR_FALSE(kept == 0 || (moved[0] == object->fill && moved[kept - 1] == object->fill));
    } else {
        free(object->start);
        object->start = step % 3 == 0 ? aligned_alloc(align, bytes) : malloc(bytes);
        EXPECT_OR_FALSE(object->start != NULL);
        EXPECT_OR_FALSE(step % 3 != 0 || (uintptr_t)object->start % align == 0);
    }
    object->bytes = bytes;
    object->fill = (unsigned char)step;
    memset(object->start, object->fill, bytes);
    return true;
}

static void a_long_random_load_keeps_every_byte(void) {
    static struct object objects[200];
    for (unsigned step = 0; step < 30000; step++) {
        struct object *object = &objects[guest_random() % 200];
        EXPECT(check(object));
        if (!replace(object, step)) {
            return;
        }
    }
    for (unsigned i = 0; i < 200; i++) {
        EXPECT(check(&objects[i]));
        free(objects[i].start);
    }
}

static void the_heap_tells_its_figures(void) {
    struct heap_stats stats;
    size_t bytes = 0;
    size_t objects = 0;
    size_t pages = 0;
    heap_get_stats(&stats);
    EXPECT(stats.bytes_used > 0 && stats.bytes_used <= stats.bytes_used_peak);
    EXPECT(stats.bytes_used_peak <= stats.bytes_total);
    EXPECT(stats.largest_free_run > 0 && stats.failures > 0);
    EXPECT(heap_get_class(0, &bytes, &objects, &pages) && bytes == 16);
}

const struct guest_test guest_memory_tests[] = {
    {"an_io_buffer_is_aligned_and_its_device_address_is_its_own",
     an_io_buffer_is_aligned_and_its_device_address_is_its_own},
    {"an_io_buffer_that_makes_no_sense_is_refused_and_empty",
     an_io_buffer_that_makes_no_sense_is_refused_and_empty},
    {"an_io_buffer_too_large_for_the_machine_leaves_nothing_behind",
     an_io_buffer_too_large_for_the_machine_leaves_nothing_behind},
    {"an_io_buffer_has_one_owner", an_io_buffer_has_one_owner},
    {"a_second_heap_is_refused", a_second_heap_is_refused},
    {"malloc_of_more_than_there_is_fails_and_says_so",
     malloc_of_more_than_there_is_fails_and_says_so},
    {"exhausted_memory_comes_back_whole", exhausted_memory_comes_back_whole},
    {"a_long_random_load_keeps_every_byte", a_long_random_load_keeps_every_byte},
    {"the_heap_tells_its_figures", the_heap_tells_its_figures},
    {NULL, NULL},
};
