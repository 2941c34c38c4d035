/* DMA memory with one owner. See io_buffer.h. */
#include "core/mem/io_buffer.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/panic.h"

enum { RED_ZONE_BYTE = 0x7e };

static size_t alive;

/* What is taken for a buffer; with checks a page more, all of it behind the buffer a red zone. */
static size_t whole_bytes(size_t bytes) {
    return align_up(bytes, PAGE_BYTES) + (heap_checks ? PAGE_BYTES : 0);
}

void io_buffer_check(const struct io_buffer *buffer) {
    if (!heap_checks || !io_buffer_is_valid(buffer)) {
        return;
    }
    const uint8_t *memory = buffer->memory;
    for (size_t i = buffer->bytes; i < whole_bytes(buffer->bytes); i++) {
        if (memory[i] != RED_ZONE_BYTE) {
            panic(
                "io_buffer: byte %zu of the %zu bytes at %p was written, and there is no such byte",
                i, buffer->bytes, buffer->memory);
        }
    }
}

int io_buffer_init(struct io_buffer *buffer, size_t bytes, size_t align) {
    *buffer = (struct io_buffer){0};
    uint64_t sum;
    if (bytes == 0) {
        return log_error(-EINVAL, "io_buffer: a size of 0 was asked for");
    }
    if (!is_power_of_two(align)) {
        return log_error(-EINVAL, "io_buffer: alignment %zu is not a power of two", align);
    }
    if (!add_fits(bytes, align, &sum) || !add_fits(sum, 2 * PAGE_BYTES, &sum)) {
        return log_error(-EINVAL, "io_buffer: %zu bytes at alignment %zu wrap", bytes, align);
    }
    /* Whole pages: a device never shares one with the heap's own objects. */
    size_t pages_align = align > PAGE_BYTES ? align : PAGE_BYTES;
    size_t whole = whole_bytes(bytes);
    void *memory = heap_alloc_aligned(pages_align, whole);
    if (memory == NULL) {
        return log_error(-ENOMEM, "io_buffer: no %zu bytes at alignment %zu left", bytes, align);
    }
    buffer->memory = memory;
    buffer->bytes = bytes;
    if (heap_checks) {
        memset((char *)memory + bytes, RED_ZONE_BYTE, whole - bytes);
    }
    alive++;
    return 0;
}

void io_buffer_release(struct io_buffer *buffer) {
    if (!io_buffer_is_valid(buffer)) {
        return;
    }
    io_buffer_check(buffer);
    heap_free(buffer->memory);
    *buffer = (struct io_buffer){0};
    alive--;
}

void io_buffer_move(struct io_buffer *to, struct io_buffer *from) {
    if (to == from) {
        return;
    }
    io_buffer_release(to);
    *to = *from;
    *from = (struct io_buffer){0};
}

int io_buffer_carve(struct io_buffer *buffer, size_t bytes, size_t align, void **part) {
    uint64_t start;
    if (!io_buffer_is_valid(buffer) || bytes == 0 || !is_power_of_two(align) ||
        !align_up_fits((uintptr_t)buffer->memory + buffer->carved, align, &start) ||
        !range_fits(start - (uintptr_t)buffer->memory, bytes, buffer->bytes)) {
        return log_error(-ENOMEM, "io_buffer: no %zu bytes left of %zu (%zu in use)", bytes,
                         buffer != NULL ? buffer->bytes : 0, buffer != NULL ? buffer->carved : 0);
    }
    *part = (void *)(uintptr_t)start;
    buffer->carved = (size_t)(start - (uintptr_t)buffer->memory) + bytes;
    return 0;
}

void io_buffer_uncarve(struct io_buffer *buffer) {
    buffer->carved = 0;
}

size_t io_buffer_count(void) {
    return alive;
}
