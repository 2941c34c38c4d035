/* Panic report and power-off. See panic.h. */
#include "core/panic.h"

#include <stdarg.h>
#include <stdio.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/task/task.h"

enum { DUMPS_MAX = 8 };

static struct {
    panic_dump *dump;
    void *arg;
} dumps[DUMPS_MAX];
static unsigned dump_count;
static bool is_panicking;
static power_off_fn *switch_off;
static void *switch_arg;

void panic_add_dump(panic_dump *dump, void *arg) {
    ASSERT(dump_count < DUMPS_MAX);
    dumps[dump_count].dump = dump;
    dumps[dump_count].arg = arg;
    dump_count++;
}

void power_set_switch(power_off_fn *power_off_function, void *arg) {
    switch_off = power_off_function;
    switch_arg = arg;
}

_Noreturn void power_off(bool failed) {
    log_flush();
    if (switch_off != NULL) {
        switch_off(switch_arg, failed);
    }
    arch_halt(failed);
}

static _Noreturn void report(const struct panic_registers *registers, const char *what) {
    if (is_panicking) {
        /* The report itself broke: say so with nothing that could break again, and stop. */
        log_text("PANIC while reporting a panic: %s", what);
        power_off(true);
    }
    is_panicking = true;
    log_text("PANIC: %s", what);
    log_text("  task: %s, up %llu ms", task_current_name(),
             (unsigned long long)(arch_clock_ns() / NS_PER_MS));
    if (registers != NULL) {
        for (unsigned i = 0; i < registers->count; i += 4) {
            char line[128];
            int used = 0;
            for (unsigned j = i; j < i + 4 && j < registers->count; j++) {
                used += snprintf(line + used, sizeof line - (size_t)used, " %4s %016llx",
                                 registers->names[j], (unsigned long long)registers->values[j]);
            }
            log_text(" %s", line);
        }
    }
    for (unsigned i = 0; i < dump_count; i++) {
        dumps[i].dump(dumps[i].arg);
    }
    power_off(true);
}

_Noreturn void panic(const char *format, ...) {
    char what[192];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(what, sizeof what, format, arguments); /* a cut message is still a message */
    va_end(arguments);
    report(NULL, what);
}

_Noreturn void panic_with_registers(const struct panic_registers *registers, const char *format,
                                    ...) {
    char what[192];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(what, sizeof what, format, arguments); /* a cut message is still a message */
    va_end(arguments);
    report(registers, what);
}

_Noreturn void panic_assertion(const char *condition, const char *file, unsigned line) {
    panic("assertion failed: %s (%s:%u)", condition, file, line);
}
