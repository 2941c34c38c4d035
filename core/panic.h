/* The end of a broken invariant: a readable report, then power-off with a status that says so.
 *
 * Assertions stay on in the shipped image. They are for what our own code guarantees; data from
 * outside is checked and refused instead. */
#ifndef CORE_PANIC_H
#define CORE_PANIC_H

#include <stdbool.h>
#include <stdint.h>

/* Registers at the fault, as the board names them. */
struct panic_registers {
    const char *const *names;
    const uint64_t *values;
    unsigned count;
};

_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void panic_with_registers(const struct panic_registers *registers, const char *format,
                                    ...) __attribute__((format(printf, 2, 3)));

_Noreturn void panic_assertion(const char *condition, const char *file, unsigned line);

#define ASSERT(condition)                                                                          \
    (__builtin_expect(!!(condition), 1) ? (void)0 : panic_assertion(#condition, __FILE__, __LINE__))

/* Adds a piece of state to every report: a line or two through `log_text`. At most eight. */
typedef void panic_dump(void *arg);
void panic_add_dump(panic_dump *dump, void *arg);

/* The machine's power switch, told by the driver that found one. `failed` becomes the emulator's
 * exit status. */
typedef void power_off_fn(void *arg, bool failed);
void power_set_switch(power_off_fn *power_off, void *arg);
_Noreturn void power_off(bool failed);

#endif
