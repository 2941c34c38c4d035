/* What every unit test includes: cmocka, a way to write tests that need no list, and the few things
 * that most of them ask for.
 *
 *     TEST(a_freed_run_is_handed_out_again) { ... }
 *
 * Tests run in the order of the file. Before each, the modules forget everything: the heap is empty
 * and ready, the clock stands at UNIT_CLOCK_START_NS, the log is kept in memory, no task, device,
 * export or configuration word exists. */
#ifndef TESTS_UNIT_UNIT_H
#define TESTS_UNIT_UNIT_H

/* cmocka.h needs these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>

#include "boot/arch.h"

#define UNIT_CLOCK_START_NS NS_PER_S
#define UNIT_HEAP_BYTES     ((size_t)16 * 1024 * 1024)

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define TEST(name)                                                                                 \
    static void name(void **state);                                                                \
    __attribute__((constructor)) static void add_##name(void) {                                    \
        unit_add(#name, name);                                                                     \
    }                                                                                              \
    static void name(__attribute__((unused)) void **state)

void unit_add(const char *name, CMUnitTestFunction function);

/* Everything logged since the test began, or since the last unit_log_clear. */
const char *unit_log(void);
void unit_log_clear(void);
#define assert_logged(text)     assert_non_null(strstr(unit_log(), (text)))
#define assert_not_logged(text) assert_null(strstr(unit_log(), (text)))

/* Runs `statement` in a process of its own, which must panic with a report that contains `text`. */
#define assert_panics(text, statement)                                                             \
    do {                                                                                           \
        if (unit_child_begins()) {                                                                 \
            statement;                                                                             \
            unit_child_survived();                                                                 \
        }                                                                                          \
        if (!unit_child_panicked(text)) {                                                          \
            fail_msg("%s", unit_child_report());                                                   \
        }                                                                                          \
    } while (0)

bool unit_child_begins(void);
_Noreturn void unit_child_survived(void);
bool unit_child_panicked(const char *text);
const char *unit_child_report(void);

/* Runs `body` in a process of its own, for what can be started only once; a failed assertion there
 * fails this test. */
void unit_run_alone(void (*body)(void));

/* The C library's allocations of the code under test: the next `successes` succeed, all others fail
 * until UNIT_ALL_SUCCEED is set. */
#define UNIT_ALL_SUCCEED UINT64_MAX
void unit_allocations_until_failure(uint64_t successes);

/* Runs `body(arg)` as a task, and the scheduler until it has ended. */
void unit_run_task(void (*body)(void *arg), void *arg);

/* Random numbers of this run; the seed is printed by a failing run and taken from UNIT_SEED. */
uint64_t unit_random(void);
/* Of [0, limit). */
uint64_t unit_random_below(uint64_t limit);

#endif
