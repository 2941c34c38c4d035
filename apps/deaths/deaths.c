/* The image that dies: once for each way in which a program can break the walls, chosen by the word
 * `die=` on its command line. Each death must be told by a report that names it;
 * tests/e2e/test_deaths.py reads them. An image that survives its death powers off as one that
 * failed at nothing, which is the failure. */
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/riscv64/plic.h"
#include "config/limits.h"
#include "core/config.h"
#include "core/dev/driver.h"
#include "core/dev/fwcfg.h"
#include "core/dev/ns16550.h"
#include "core/dev/sifive_test.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "core/mem/poison.h"
#include "core/panic.h"
#include "core/start.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/virtio/transport.h"

/* No disks, no network: nobody could wake a deadlocked task. */
const struct driver *const platter_drivers[] = {
    &sifive_test_driver, &fwcfg_driver, &ns16550_driver, &plic_driver, NULL,
};
const struct virtio_driver *const platter_virtio_drivers[] = {NULL};

bool heap_checks = true;

enum {
    OBJECT_BYTES = 64,
    BUFFER_BYTES = 4096,
    FRAME_BYTES = 512,
    SMASH_BYTES = 64,
    FRESH_BYTES = 4 * 1024 * 1024,
};

static const uint32_t constant = 1;
static uint32_t variable = 0x00008067; /* the instruction `ret`: only permissions stop it */
static struct event never;

/* Where the compiler cannot look through. */
static volatile uint32_t *hide(volatile uint32_t *pointer) {
    __asm__ volatile("" : "+r"(pointer));
    return pointer;
}

static void run_at(volatile void *code) {
    void (*function)(void) = (void (*)(void))(uintptr_t)code;
    __asm__ volatile("" : "+r"(function));
    function();
}

static void write_code(void) {
    *hide((volatile uint32_t *)(uintptr_t)appliance_main) = 0;
}

static void write_constant(void) {
    *hide((volatile uint32_t *)(uintptr_t)&constant) = 2;
}

static void write_device_tree(void) {
    *hide((volatile uint32_t *)(uintptr_t)platter_device_tree()) = 0;
}

static void run_data(void) {
    run_at(&variable);
}

static void run_stack(void) {
    volatile uint32_t code = variable;
    run_at(&code);
}

static void run_heap(void) {
    uint32_t *code = malloc(sizeof *code);
    ASSERT(code != NULL);
    *code = variable;
    run_at(code);
    free(code);
}

static unsigned overflow(unsigned depth) {
    volatile char frame[FRAME_BYTES];
    memset((char *)frame, (int)depth, sizeof frame);
    return depth > 0 ? overflow(depth - 1) + (unsigned)frame[depth % sizeof frame] : 0;
}

static void overflow_stack(void) {
    log_info("%u", overflow(UINT32_MAX));
}

static void overflow_in_task(void *unused) {
    (void)unused;
    overflow_stack();
}

static void overflow_second_stack(void) {
    /* The first task's stack goes; its guard must stand again when the second takes the memory. */
    (void)task_create("first", (void (*)(void *))event_clear, &never, 0);
    task_yield();
    (void)task_create("second", overflow_in_task, NULL, 0);
    task_yield();
}

static void smash_stack(void) {
    volatile char array[SMASH_BYTES];
    volatile char *end = array;
    __asm__ volatile("" : "+r"(end));
    memset((char *)end, 1, sizeof array + 2 * sizeof(uintptr_t));
}

static void read_null(void) {
    volatile uint32_t *null = hide(NULL);
    log_info("%u", (unsigned)null[3]);
}

static void read_nothing(void) {
    volatile uint32_t *nothing = hide((volatile uint32_t *)UINT64_C(0x40000000));
    log_info("%u", (unsigned)*nothing);
}

static void read_firmware(void) {
    volatile uint32_t *firmware = hide((volatile uint32_t *)UINT64_C(0x80000000));
    log_info("%u", (unsigned)*firmware);
}

struct node {
    struct node *next;
    char rest[OBJECT_BYTES];
};

static void read_released(void) {
    struct node *node = malloc(sizeof *node);
    struct node *follower = malloc(sizeof *follower);
    ASSERT(node != NULL && follower != NULL);
    *(struct node **)(void *)node->rest = follower;
    struct node *kept = node;
    __asm__ volatile("" : "+r"(kept));
    free(node);
    struct node *next = *(struct node **)(void *)kept->rest;
    log_info("%p", (void *)next->next);
}

static void write_released(void) {
    char *object = malloc(OBJECT_BYTES);
    ASSERT(object != NULL);
    char *kept = object;
    __asm__ volatile("" : "+r"(kept));
    free(object);
    kept[OBJECT_BYTES / 2] = 'x';
    heap_check();
}

static void write_released_run(void) {
    struct io_buffer buffer;
    int error = io_buffer_init(&buffer, (size_t)4 * BUFFER_BYTES, BUFFER_BYTES);
    ASSERT(error == 0);
    char *kept = io_buffer_data(&buffer);
    io_buffer_release(&buffer);
    kept[2 * BUFFER_BYTES] = 'x';
    error = io_buffer_init(&buffer, (size_t)4 * BUFFER_BYTES, BUFFER_BYTES);
    ASSERT(error == 0);
}

static void release_twice(void) {
    void *object = malloc(OBJECT_BYTES);
    void *kept = object;
    __asm__ volatile("" : "+r"(kept));
    free(object);
    free(kept);
}

static void overflow_buffer(void) {
    struct io_buffer buffer;
    int error = io_buffer_init(&buffer, BUFFER_BYTES, BUFFER_BYTES);
    ASSERT(error == 0);
    char *data = io_buffer_data(&buffer);
    __asm__ volatile("" : "+r"(data));
    data[BUFFER_BYTES] = 0;
    io_buffer_release(&buffer);
}

static void wait_for_ever(void *unused) {
    (void)unused;
    (void)task_wait(&never, DEADLINE_NEVER);
}

static void deadlock(void) {
    (void)task_create("other", wait_for_ever, NULL, 0);
    wait_for_ever(NULL);
}

static void never_yield(void) {
    for (;;) {
        __asm__ volatile("");
    }
}

static void stall(void) {
    uint64_t end_ns = arch_clock_ns() + 500 * NS_PER_MS;
    while (arch_clock_ns() < end_ns) {
    }
    task_yield();
    panic("survived a stall, as it should");
}

static void hang(void *unused) {
    (void)unused;
    never_yield();
}

static void hang_in_report(void) {
    panic_add_dump(hang, NULL);
    panic("a report that never ends");
}

static void hang_switch(void *arg, enum power_end end, bool restart) {
    (void)end;
    (void)restart;
    hang(arg);
}

static void hang_at_the_end(void) {
    power_set_switch(hang_switch, NULL);
    panic("a machine that does not switch off");
}

/* The image that starts anew finds the mark: the same allocation gets the same memory, which nobody
 * clears or fills. It is too long to lie behind the device tree: starting anew, QEMU writes a MiB
 * there, the tree and zeroes. */
static void fail_late_once(void) {
    static const char mark[] = "it has died before";
    heap_checks = false;
    char *kept = malloc(FRESH_BYTES);
    ASSERT(kept != NULL);
    if (memcmp(kept, mark, sizeof mark) == 0) {
        free(kept);
        return;
    }
    task_sleep_until(arch_clock_ns() + PANIC_RESTART_MIN_MS * NS_PER_MS);
    memcpy(kept, mark, sizeof mark);
    __asm__ volatile("" ::"r"(kept) : "memory"); /* somebody will read it, after the end */
    panic("late");
}

static void fail_assertion(void) {
    ASSERT(constant == variable);
}

static const struct {
    const char *name;
    void (*die)(void);
} deaths[] = {
    {"write-code", write_code},
    {"write-constant", write_constant},
    {"write-device-tree", write_device_tree},
    {"run-data", run_data},
    {"run-stack", run_stack},
    {"run-heap", run_heap},
    {"overflow-stack", overflow_stack},
    {"overflow-second-stack", overflow_second_stack},
    {"smash-stack", smash_stack},
    {"read-null", read_null},
    {"read-nothing", read_nothing},
    {"read-firmware", read_firmware},
    {"read-released", read_released},
    {"write-released", write_released},
    {"write-released-run", write_released_run},
    {"release-twice", release_twice},
    {"overflow-buffer", overflow_buffer},
    {"deadlock", deadlock},
    {"never-yield", never_yield},
    {"stall", stall},
    {"fail-assertion", fail_assertion},
    {"hang-in-report", hang_in_report},
    {"hang-at-the-end", hang_at_the_end},
    {"fail-late-once", fail_late_once},
};

void appliance_main(void *unused) {
    (void)unused;
    const char *chosen = config_text("die");
    for (size_t i = 0; chosen != NULL && i < sizeof deaths / sizeof deaths[0]; i++) {
        if (strcmp(chosen, deaths[i].name) == 0) {
            log_info("death: %s", chosen);
            deaths[i].die();
        }
    }
    log_info("death: survived");
    power_off(POWER_OFF);
}
