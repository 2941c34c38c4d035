/* The tests that run inside the appliance's own environment: real memory, real clock, real devices.
 *
 * Each file offers a table; apps/selftest/selftest.c runs them all as one task and prints TAP. A
 * check that fails notes why and ends the test by returning: EXPECT is the one macro with a return
 * in it, so that a test reads as a list of promises. */
#ifndef TESTS_GUEST_GUEST_H
#define TESTS_GUEST_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct guest_test {
    const char *name;
    void (*run)(void);
};

/* Each ends with a NULL name. */
extern const struct guest_test guest_memory_tests[];
extern const struct guest_test guest_device_tests[];
extern const struct guest_test guest_task_tests[];
extern const struct guest_test guest_disk_tests[];
extern const struct guest_test guest_library_tests[];

/* Notes that the running test failed, and says why as a diagnostic line. */
void guest_fail(const char *file, unsigned line, const char *what);
/* A diagnostic line: figures worth seeing. */
void guest_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            guest_fail(__FILE__, __LINE__, #condition);                                            \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* For functions that tell their caller whether to go on. */
#define EXPECT_OR_FALSE(condition)                                                                 \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            guest_fail(__FILE__, __LINE__, #condition);                                            \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

/* The same sequence in every run: what fails once fails again. */
uint64_t guest_random(void);

#endif
