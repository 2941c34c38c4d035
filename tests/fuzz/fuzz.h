/* What the fuzz targets share. Each fuzz_NAME.c is a program of its own: libFuzzer calls it with
 * one input after the other, in one process, so each begins by forgetting what the one before left.
 *
 *     int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
 *
 * A finding is an abort: by a sanitizer, by a panic of the code under test, or by FUZZ_CHECK. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* A promise that the code under test has broken. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fuzz_fail(#condition, __FILE__, __LINE__);                                             \
        }                                                                                          \
    } while (0)

/* Shows what was logged last, and aborts. */
_Noreturn void fuzz_fail(const char *what, const char *file, int line);

/* What is left of the input; reads as zeroes when nothing is. */
struct fuzz_input {
    const uint8_t *at;
    size_t left;
};

uint8_t fuzz_u8(struct fuzz_input *input);
uint16_t fuzz_u16(struct fuzz_input *input);
uint32_t fuzz_u32(struct fuzz_input *input);
uint64_t fuzz_u64(struct fuzz_input *input);
/* The next bytes themselves, `*bytes` or as many as there are. */
const uint8_t *fuzz_bytes(struct fuzz_input *input, size_t *bytes);

/* What a device may write into a used ring that is not so, `kind` of [0, FUZZ_RING_LIES), as the
 * input has it. */
enum { FUZZ_RING_LIES = 4 };
struct device_ring;
void fuzz_ring_lie(struct fuzz_input *input, unsigned kind, struct device_ring *ring);

/* Panics and the log come here from now on. The clock stands at one second. */
void fuzz_begin(void);
/* The log comes here again, after it went elsewhere for a while. */
void fuzz_log_again(void);
/* A heap of `bytes` bytes, with nothing in it. */
void fuzz_heap(size_t bytes);
/* No task, device, export or word of configuration is left of what there was. */
void fuzz_forget(void);

#endif
