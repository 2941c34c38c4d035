/* From the board's first C function to the running appliance. See start.h. */
#include "core/start.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "boot/arch.h"
#include "core/config.h"
#include "core/dev/device_node.h"
#include "core/dev/fdt.h"
#include "core/dev/fwcfg.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/map.h"
#include "core/mem/walls.h"
#include "core/panic.h"
#include "core/random.h"
#include "core/stack_guard.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"

enum {
    MAIN_STACK_BYTES = 32 * 1024,
    RUN_TEXT_MAX = sizeof ", 0x0123456789abcdef",
};

static struct memory_map memory;
static const void *device_tree;

/* Shortest first: what is small fills up the short ranges. */
static int make_heap(const struct phys_range *runs, unsigned count) {
    int error = count == 0 ? -ENOMEM : heap_init(pointer_of(runs[0].start), runs[0].length);
    for (unsigned i = 1; i < count && !error; i++) {
        error = heap_add(pointer_of(runs[i].start), runs[i].length);
    }
    return error;
}

static void say_memory(uint64_t memory_bytes, uint64_t image_bytes, const struct phys_range *runs,
                       unsigned count) {
    char text[HEAP_RANGES_MAX * RUN_TEXT_MAX] = "";
    uint64_t bytes = 0;
    size_t used = 0;
    for (unsigned i = 0; i < count; i++) {
        bytes += runs[i].length;
        used += (size_t)snprintf(&text[used], sizeof text - used, "%s0x%llx", i == 0 ? "" : ", ",
                                 (unsigned long long)runs[i].start.value);
    }
    log_info("memory: %llu KiB, image %llu KiB, heap %llu KiB at %s",
             (unsigned long long)memory_bytes / 1024, (unsigned long long)image_bytes / 1024,
             (unsigned long long)bytes / 1024, text);
}

static void bring_up_memory(const void *fdt) {
    struct phys_range runs[HEAP_RANGES_MAX];
    int error = fdt_read_memory(fdt, &memory);
    uint64_t total = memory_map_bytes(&memory);
    struct phys_range image = {phys_of(image_start), (uint64_t)(image_end - image_start)};
    struct phys_range firmware = {phys_addr(0), 0};
    arch_firmware_range(&firmware.start.value, &firmware.length);
    if (!error) {
        error = memory_map_reserve(&memory, image);
    }
    if (!error) {
        error = memory_map_reserve(&memory, firmware);
    }
    unsigned count = memory_map_runs(&memory, HEAP_RANGE_BYTES_MIN, runs, HEAP_RANGES_MAX);
    if (!error) {
        error = make_heap(runs, count);
    }
    if (error) {
        panic("no memory to run in (error %d): the longest free run has %llu bytes", error,
              (unsigned long long)(count > 0 ? runs[count - 1].length : 0));
    }
    struct phys_range tree = {phys_of(fdt), fdt_bytes(fdt)};
    if (walls_build(runs, count, tree) != 0) {
        panic("no walls to run between; see the log above");
    }
    say_memory(total, image.length, runs, count);
}

static bool restarts_after_panic(void) {
    const char *word = config_text("panic");
    if (word != NULL && strcmp(word, "off") != 0 && strcmp(word, "restart") != 0) {
        log_warning("config: panic=%s refused: off or restart is wanted", word);
        return false;
    }
    return word != NULL && strcmp(word, "restart") == 0;
}

static void read_spin(void) {
    const uint64_t no_number = UINT64_MAX;
    const char *word = config_text("spin");
    bool is_auto = word != NULL && strcmp(word, "auto") == 0;
    uint64_t us = is_auto ? no_number : config_number("spin", 0, SPIN_US_MAX, no_number);
    if (us == no_number) {
        scheduler_set_spin_auto();
    } else {
        scheduler_set_spin_us((unsigned)us);
    }
}

/* The command line first, then the file: what stands in the file wins. */
static void read_configuration(const void *fdt) {
    static char file[COMMAND_LINE_MAX];
    (void)config_parse(fdt_command_line(fdt)); /* said in the log; defaults serve */
    long length = fwcfg_read_file("opt/platter/config", file, sizeof file - 1);
    if (length > 0) {
        file[length] = '\0';
        (void)config_parse(file); /* as above */
    }
    const char *word = config_text("log");
    enum log_level level = LOG_INFO;
    if (word != NULL && !log_level_parse(word, &level)) {
        log_warning("config: log=%s refused: error, warning, info or debug is wanted", word);
    }
    log_set_level(level);
    panic_set_restart(restarts_after_panic());
    scheduler_set_stall_ms(config_number("stall", 0, STALL_MS_MAX, TASK_STALL_MS));
    read_spin();
    scheduler_set_watchdog((unsigned)config_number("watchdog", 0, WATCHDOG_S_MAX, WATCHDOG_S));
}

const void *platter_device_tree(void) {
    return device_tree;
}

_Noreturn void platter_start(const void *fdt) {
    if (fdt_check(fdt) != 0) {
        panic("the firmware handed over no usable device tree");
    }
    device_tree = fdt;
    uint64_t timebase_hz = fdt_timebase_hz(fdt);
    if (arch_clock_init(timebase_hz) != 0) {
        panic("no timer: this processor has no Sstc and its firmware no SBI TIME extension; boot "
              "with -bios default (timebase %llu Hz)",
              (unsigned long long)timebase_hz);
    }
    uint64_t entropy[4];
    for (unsigned i = 0; i < 4; i++) {
        entropy[i] = arch_entropy();
    }
    random_seed(entropy, sizeof entropy);
    stack_guard_set((uint64_t)random_u32() << 32 | random_u32());
    bring_up_memory(fdt);
    device_tree_read(fdt, platter_drivers);
    device_tree_probe(STAGE_POWER, STAGE_CONSOLE);
    read_configuration(fdt);
    device_tree_probe(STAGE_INTERRUPTS, STAGE_DEVICE);
    if (task_create("main", appliance_main, NULL, MAIN_STACK_BYTES) == NULL) {
        panic("no memory for the first task");
    }
    scheduler_run();
    panic("the scheduler returned");
}
