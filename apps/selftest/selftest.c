/* The self-test image: runs tests/guest inside the appliance's own environment, prints TAP, and
 * powers off; the emulator's exit status is the result. */
#include <stdarg.h>
#include <stdio.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/dev/device_node.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/panic.h"
#include "core/start.h"
#include "tests/guest/guest.h"

static const struct guest_test *const tables[] = {
    guest_library_tests, guest_memory_tests, guest_device_tests, guest_task_tests, guest_disk_tests,
};

enum { TABLES = sizeof tables / sizeof tables[0] };

bool heap_checks = true;

static bool has_failed;
static uint64_t random_state;

void guest_fail(const char *file, unsigned line, const char *what) {
    log_text("# %s:%u: %s does not hold", file, line, what);
    has_failed = true;
}

void guest_say(const char *format, ...) {
    char line[LOG_LINE_MAX - 8];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line, sizeof line, format, arguments); /* a cut line is still a line */
    va_end(arguments);
    log_text("# %s", line);
}

uint64_t guest_random(void) {
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static unsigned count_tests(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < TABLES; i++) {
        for (const struct guest_test *test = tables[i]; test->name != NULL; test++) {
            count++;
        }
    }
    return count;
}

/* Panics when the test left something behind that it should not have written. */
static void check_memory(void) {
    const struct device_node *node;
    heap_check();
    for (unsigned i = 0; (node = device_node_at(i)) != NULL; i++) {
        io_buffer_check(node->dma_buffer);
    }
}

static bool run_one(const struct guest_test *test, unsigned number) {
    uint64_t started_ns = arch_clock_ns();
    has_failed = false;
    random_state = number;
    test->run();
    check_memory();
    uint64_t took_ms = (arch_clock_ns() - started_ns) / NS_PER_MS;
    log_text("%s %u - %s # %llu ms", has_failed ? "not ok" : "ok", number, test->name,
             (unsigned long long)took_ms);
    log_flush(); /* what hangs or panics next is then easy to name */
    return !has_failed;
}

void appliance_main(void *unused) {
    (void)unused;
    unsigned number = 0;
    unsigned failed = 0;
    log_text("1..%u", count_tests());
    for (unsigned i = 0; i < TABLES; i++) {
        for (const struct guest_test *test = tables[i]; test->name != NULL; test++) {
            failed += !run_one(test, ++number);
        }
    }
    log_text("# %u of %u failed", failed, number);
    power_off(failed != 0 ? POWER_FAILED : POWER_OFF);
}
