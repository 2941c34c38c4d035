/* The end of a broken invariant: a readable report, then power-off with a status that says so.
 *
 * Assertions stay on in the shipped image. They are for what our own code guarantees; data from
 * outside is checked and refused instead. */
#ifndef CORE_PANIC_H
#define CORE_PANIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

_Noreturn void panic_assertion(const char *condition, const char *file, unsigned line);

#define ASSERT(condition)                                                                          \
    (__builtin_expect(!!(condition), 1) ? (void)0 : panic_assertion(#condition, __FILE__, __LINE__))

enum fault_kind {
    FAULT_STOP, /* arch_stop: the code itself found out, and `panic` kept the message */
    FAULT_READ,
    FAULT_WRITE,
    FAULT_EXECUTE,
    FAULT_WATCHDOG,
    FAULT_OTHER,
};

/* What the board knows of the instruction that was the last. */
struct fault {
    enum fault_kind kind;
    const char *name; /* the processor's word for it */
    uintptr_t address;
    uintptr_t pc;
    uintptr_t return_address;
    uintptr_t stack_pointer;
    uintptr_t frame; /* where a backtrace begins */
    const char *const *register_names;
    const uint64_t *registers;
    unsigned register_count;
};

/* For the board, on a stack of its own: writes the report and ends the machine. docs/operating.md
 * shows one and how to read it. A fault or panic meanwhile ends it with what was written. */
_Noreturn void panic_report(const struct fault *fault);

/* True once a report is being written: locks, queues and tasks are as they were left. */
bool panic_is_reporting(void);

/* Adds a piece of state to every report: a line or two through `log_text`. At most eight. */
typedef void panic_dump(void *arg);
void panic_add_dump(panic_dump *dump, void *arg);

/* How the machine ends; the emulator's exit status where there is one. */
enum power_end {
    POWER_OFF = 0,
    POWER_FAILED = 1,  /* in order, but something asked for could not be done */
    POWER_PANIC = 100, /* after a report */
    POWER_WATCHDOG =
        101, /* after the report of a scheduler that no longer turned, or without one */
};

/* The machine's power switch, told by the driver that found one; `restart` begins anew instead. */
typedef void power_switch_fn(void *arg, enum power_end end, bool restart);
void power_set_switch(power_switch_fn *power_switch, void *arg);
_Noreturn void power_off(enum power_end end);

/* After a report the machine begins anew instead of ending, unless it has been up for less than
 * PANIC_RESTART_MIN_MS: what breaks at once would break again for ever. */
void panic_set_restart(bool restart);

#endif
