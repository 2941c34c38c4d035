/* Panics and the end of the machine. See panic.h; the report is in report.c. */
#include "core/panic.h"

#include <stdarg.h>
#include <stdio.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/report.h"

static char message[192];
static bool is_reporting;
static bool restarts;
static power_switch_fn *switch_function;
static void *switch_arg;

void power_set_switch(power_switch_fn *power_switch, void *arg) {
    switch_function = power_switch;
    switch_arg = arg;
}

static _Noreturn void end_machine(enum power_end end, bool restart) {
    log_flush();
    if (switch_function != NULL) {
        switch_function(switch_arg, end, restart);
    }
    arch_halt(end != POWER_OFF);
}

_Noreturn void power_off(enum power_end end) {
    end_machine(end, false);
}

void panic_set_restart(bool restart) {
    restarts = restart;
}

bool panic_is_reporting(void) {
    return is_reporting;
}

_Noreturn void panic(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message, sizeof message, format, arguments); /* cut, it is still a message */
    va_end(arguments);
    arch_stop();
}

_Noreturn void panic_assertion(const char *condition, const char *file, unsigned line) {
    panic("assertion failed: %s (%s:%u)", condition, file, line);
}

_Noreturn void panic_report(const struct fault *fault) {
    if (is_reporting) {
        /* The report itself broke: say so with nothing that could break again, and stop. */
        bool is_watchdog = fault->kind == FAULT_WATCHDOG;
        const char *what = fault->kind == FAULT_STOP ? message : fault->name;
        log_text("PANIC while reporting a panic: %s", is_watchdog ? "watchdog" : what);
        end_machine(is_watchdog ? POWER_WATCHDOG : POWER_PANIC, false);
    }
    is_reporting = true;
    report_write(fault, message);
    bool restart = restarts && arch_clock_ns() > PANIC_RESTART_MIN_MS * NS_PER_MS;
    log_text(restart ? "--- end of report; starting anew" : "--- end of report");
    end_machine(fault->kind == FAULT_WATCHDOG ? POWER_WATCHDOG : POWER_PANIC, restart);
}
