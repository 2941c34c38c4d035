/* IoBuffer: the one way to memory that a device reads or writes.
 *
 * Physically contiguous, aligned as asked. One owner at a time: an IoBuffer is never copied, only
 * moved. A driver finds its own at `node->dma_buffer`, put there by the device tree scan, and
 * carves its rings and headers from it. */
#ifndef CORE_MEM_IO_BUFFER_H
#define CORE_MEM_IO_BUFFER_H

#include "core/mem/addr.h"

#define IO_BUFFER_ALIGN_DEFAULT PAGE_BYTES

/* An all-zero struct is an empty buffer. Fields are private; read them through the functions. */
struct io_buffer {
    void *memory;
    size_t bytes;
    size_t carved; /* io_buffer_carve hands out from the beginning */
};

/* Fills `buffer` with `bytes` bytes at a multiple of `align`; what they hold is
 * whatever was there (clearing a large pool would cost more than the rest of the boot). -EINVAL for
 * a size of 0, an alignment that is 0 or no power of two, or a sum that wraps; -ENOMEM when there
 * is none. On failure, said in the log, `buffer` is empty. `buffer` must be empty or never used
 * before. */
int io_buffer_init(struct io_buffer *buffer, size_t bytes, size_t align);

/* Returns the memory; releasing an empty buffer does nothing, so twice is harmless. */
void io_buffer_release(struct io_buffer *buffer);

/* With heap_checks (poison.h): panics when a byte behind the buffer was written. So does releasing
 * one. */
void io_buffer_check(const struct io_buffer *buffer);

/* `to` becomes the owner and releases what it held; `from` is empty afterwards. Moving onto itself
 * changes nothing. */
void io_buffer_move(struct io_buffer *to, struct io_buffer *from);

static inline bool io_buffer_is_valid(const struct io_buffer *buffer) {
    return buffer != NULL && buffer->memory != NULL;
}

static inline void *io_buffer_data(const struct io_buffer *buffer) {
    return buffer->memory;
}

static inline size_t io_buffer_size(const struct io_buffer *buffer) {
    return buffer->bytes;
}

/* What a device is told. */
static inline struct phys_addr io_buffer_device_address(const struct io_buffer *buffer) {
    return phys_of(buffer->memory);
}

/* The next `bytes` bytes at a multiple of `align` (a power of two) in `*part`; -ENOMEM, said in the
 * log, when the buffer has less left. The part lives as long as the buffer. */
int io_buffer_carve(struct io_buffer *buffer, size_t bytes, size_t align, void **part);

/* Forgets what was carved: for a driver that failed half-way and for one that starts anew. */
void io_buffer_uncarve(struct io_buffer *buffer);

/* Buffers alive now: the self-tests look for leaks with it. */
size_t io_buffer_count(void);

#endif
