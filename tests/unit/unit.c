/* The frame of the unit tests: registration, a clean slate, the log, deaths in a child. */
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "apps/nbd/export.h"
#include "blk/block.h"
#include "boot/host/host.h"
#include "core/config.h"
#include "core/dev/device_node.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/virtio/transport.h"
#include "tests/device_ring.h"

enum { TESTS_MAX = 256, LOG_BYTES = 1024 * 1024, CHILD_PANICKED = 42, CHILD_SURVIVED = 43 };

static struct CMUnitTest tests[TESTS_MAX];
static size_t test_count;
static uint64_t seed;
static uint64_t random_state;

static char log_kept[LOG_BYTES + 1];
static size_t log_used;

static char report[8192];
static int child_pipe[2];
static pid_t child;

static uint8_t heap_memory[UNIT_HEAP_BYTES] __attribute__((aligned(4096)));
static uint64_t allocations_left = UNIT_ALL_SUCCEED;

bool heap_checks = false;

/* Each image has its table of drivers; the unit tests call theirs directly. */
const struct virtio_driver *const platter_virtio_drivers[] = {NULL};

void unit_add(const char *name, CMUnitTestFunction function) {
    if (test_count == TESTS_MAX) {
        abort(); /* before main: nobody could say it better */
    }
    tests[test_count++] = (struct CMUnitTest){.name = name, .test_func = function};
}

static size_t keep_log(void *unused, const char *text, size_t length) {
    (void)unused;
    size_t room = LOG_BYTES - log_used;
    size_t kept = length < room ? length : room;
    memcpy(log_kept + log_used, text, kept);
    log_used += kept;
    log_kept[log_used] = '\0';
    return length;
}

const char *unit_log(void) {
    log_flush();
    return log_kept;
}

void unit_log_clear(void) {
    log_flush();
    log_used = 0;
    log_kept[0] = '\0';
}

void device_ring_broken(const char *rule, const char *file, int line) {
    _assert_true(0, rule, file, line);
    abort(); /* cmocka has left the test by now */
}

static void forget_block_devices(void) {
    unsigned count = 0;
    while (block_device_at(count) != NULL) {
        count++;
    }
    while (count > 0) {
        block_unregister(block_device_at(--count));
    }
}

static int begin_test(void **state) {
    (void)state;
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    scheduler_forget();
    device_tree_forget();
    forget_block_devices();
    nbd_export_forget();
    config_forget();
    heap_forget();
    heap_checks = false;
    if (heap_init(heap_memory, sizeof heap_memory) != 0) {
        return -1;
    }
    host_clock_set(UNIT_CLOCK_START_NS);
    host_set_idle(NULL, NULL);
    host_set_halt(NULL);
    log_set_sink(keep_log, NULL);
    log_set_level(LOG_DEBUG);
    unit_log_clear();
    random_state = seed;
    return 0;
}

uint64_t unit_random(void) {
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t unit_random_below(uint64_t limit) {
    return unit_random() % limit;
}

/* --- Deaths --- */

/* Of the coverage run-time, when there is one. */
void __llvm_profile_set_filename(const char *name) __attribute__((weak));
int __llvm_profile_write_file(void) __attribute__((weak));

static _Noreturn void leave_child(int status) {
    const char *profile = getenv("LLVM_PROFILE_FILE");
    if (profile != NULL && __llvm_profile_write_file != NULL) {
        static char name[512];
        (void)snprintf(name, sizeof name, "%s.%d.profraw", profile, (int)getpid());
        __llvm_profile_set_filename(name);
        (void)__llvm_profile_write_file(); /* coverage is not worth a failure */
    }
    _exit(status);
}

static size_t write_log_to_parent(void *unused, const char *text, size_t length) {
    (void)unused;
    (void)!write(child_pipe[1], text, length); /* a report cut short fails the parent's test */
    return length;
}

static void child_halted(bool failed) {
    leave_child(failed ? CHILD_PANICKED : CHILD_SURVIVED);
}

bool unit_child_begins(void) {
    unit_log_clear();
    (void)fflush(stdout); /* or the child would print it again */
    if (pipe(child_pipe) != 0) {
        abort();
    }
    child = fork();
    if (child < 0) {
        abort();
    }
    if (child == 0) {
        log_set_sink(write_log_to_parent, NULL);
        host_set_halt(child_halted);
    }
    return child == 0;
}

_Noreturn void unit_child_survived(void) {
    leave_child(CHILD_SURVIVED);
}

bool unit_child_panicked(const char *text) {
    (void)close(child_pipe[1]);
    size_t used = 0;
    ssize_t got;
    while (used < sizeof report - 1 &&
           (got = read(child_pipe[0], report + used, sizeof report - 1 - used)) > 0) {
        used += (size_t)got;
    }
    report[used] = '\0';
    (void)close(child_pipe[0]);
    int status = 0;
    (void)waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PANICKED &&
        strstr(report, text) != NULL) {
        return true;
    }
    size_t length = strlen(report);
    (void)snprintf(report + length, sizeof report - length,
                   "\nno panic that says \"%s\": wait status 0x%x", text, (unsigned)status);
    return false;
}

const char *unit_child_report(void) {
    return report;
}

void unit_run_alone(void (*body)(void)) {
    (void)fflush(stdout); /* or the child would print it again */
    child = fork();
    if (child < 0) {
        abort();
    }
    if (child == 0) {
        /* cmocka says what was not so, and does not go on with the next test. */
        if (setenv("CMOCKA_TEST_ABORT", "1", 1) != 0) {
            abort();
        }
        body();
        leave_child(CHILD_SURVIVED);
    }
    int status = 0;
    (void)waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != CHILD_SURVIVED) {
        fail_msg("in a process of its own: see above; wait status 0x%x", (unsigned)status);
    }
}

/* --- Allocations, through the linker's --wrap --- */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);

void unit_allocations_until_failure(uint64_t successes) {
    allocations_left = successes;
}

static bool allocation_succeeds(void) {
    if (allocations_left == UNIT_ALL_SUCCEED) {
        return true;
    }
    if (allocations_left == 0) {
        return false;
    }
    allocations_left--;
    return true;
}

void *__wrap_malloc(size_t bytes) {
    return allocation_succeeds() ? __real_malloc(bytes) : NULL;
}

void *__wrap_calloc(size_t count, size_t bytes) {
    return allocation_succeeds() ? __real_calloc(count, bytes) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t bytes) {
    return allocation_succeeds() ? __real_aligned_alloc(align, bytes) : NULL;
}

/* --- Tasks --- */

struct body {
    void (*run)(void *arg);
    void *arg;
};

static void run_body(void *arg) {
    struct body *body = arg;
    body->run(body->arg);
    scheduler_stop();
}

void unit_run_task(void (*body)(void *arg), void *arg) {
    struct body whole = {body, arg};
    /* Sanitizers make deep frames of printf and of cmocka's messages. */
    assert_non_null(task_create("test", run_body, &whole, (size_t)256 * 1024));
    scheduler_run();
}

int main(int argc, char **argv) {
    const char *chosen = getenv("UNIT_SEED");
    seed = chosen != NULL ? strtoull(chosen, NULL, 0) : (uint64_t)time(NULL);
    printf("# seed: UNIT_SEED=%llu\n", (unsigned long long)seed);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    for (size_t i = 0; i < test_count; i++) {
        tests[i].setup_func = begin_test;
    }
    return _cmocka_run_group_tests(argv[0], tests, test_count, NULL, NULL);
}
