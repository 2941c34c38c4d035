/* The board interface: everything the portable code may ask of the machine it runs on.
 *
 * Each board (boot/riscv64, boot/host, ...) implements exactly these functions. They are the only
 * place with assembly or architecture words; nothing above knows an instruction set. */
#ifndef BOOT_ARCH_H
#define BOOT_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/mem/addr.h"

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

/* A point in time that never comes. */
#define DEADLINE_NEVER UINT64_MAX

/* Nanoseconds since the machine was started; monotonic, never goes back. */
uint64_t arch_clock_ns(void);

/* Makes `arch_clock_ns` tell time at `frequency_hz` ticks per second, and chooses the timer that
 * ends idle waits. Called once, after the device tree has told the frequency. Returns 0, or
 * -ENODEV when this machine has no timer that the board code can use. */
int arch_clock_init(uint64_t frequency_hz);

/* Sleeps until an interrupt that the controller lets through is pending or `deadline_ns` has
 * passed, whichever is first; may return early without either. Interrupts stay masked: nothing
 * runs but the caller, who asks the controller afterwards what is pending. */
void arch_idle_until(uint64_t deadline_ns);

/* False when no interrupt controller has anything for this processor. Costs less than asking one.
 */
bool arch_interrupt_is_pending(void);

/* The processor that runs us, as the firmware numbers it. */
uint64_t arch_boot_cpu(void);

/* Memory below or beside the image that the firmware which started us keeps for itself, when it
 * can tell and the device tree does not; zero length when there is none. Physical addresses. */
void arch_firmware_range(uint64_t *start, uint64_t *length);

/* First byte and first byte after the loaded image, uninitialised data and stacks included; and of
 * its parts, each beginning at a page: code, constants, data. The two stacks of the board's own,
 * which lie in the data, have a page below them that is never used. */
extern char image_start[];
extern char image_end[];
extern char text_start[];
extern char text_end[];
extern char rodata_start[];
extern char rodata_end[];
extern char data_start[];
extern char boot_stack_guard[];
extern char boot_stack_start[];
extern char boot_stack_end[];
extern char fault_stack_guard[];
extern char fault_stack_start[];
extern char fault_stack_end[];

/* Order memory accesses against the device, which is another processor. `arch_barrier_full` orders
 * all earlier accesses, device registers included, before all later ones; `_write` orders stores
 * among themselves, `_read` loads among themselves. */
void arch_barrier_full(void);
void arch_barrier_write(void);
void arch_barrier_read(void);

/* Stops the machine when no power-off device is known: asks the firmware, then waits for ever. */
_Noreturn void arch_halt(bool failed);

/* --- Page tables: the format of an entry. core/mem/pages.c builds the tree. --- */

enum arch_page_kind { ARCH_PAGE_EMPTY, ARCH_PAGE_TABLE, ARCH_PAGE_LEAF };

/* An entry that names a page of any size, or the table below. `access` is what core/mem/pages.h
 * says; zero gives an entry that is a leaf and lets nothing pass. Never 0, which is empty. */
uint64_t arch_page_leaf(struct phys_addr page, unsigned access);
uint64_t arch_page_table(struct phys_addr table);
/* And back. */
enum arch_page_kind arch_page_kind(uint64_t entry);
struct phys_addr arch_page_physical(uint64_t entry);
unsigned arch_page_access(uint64_t entry);

/* Levels of tables that reach one to one up to `end`, the first address not needed: 3 or 4. */
unsigned arch_page_levels(uint64_t end);

/* Translates through the tree from now on. 0, or -ENOTSUP when the processor refuses this many
 * levels; nothing has changed then. */
int arch_pages_use(struct phys_addr root, unsigned levels);

/* After every change of an entry: what the processor remembers of the tree is forgotten. Also for
 * its own sake: TRANSLATIONS_MS. */
void arch_pages_changed(void);

/* --- The end --- */

/* Registers are kept, then `panic_report` (core/panic.h) runs on a stack of its own. */
_Noreturn void arch_stop(void);

/* A call that is still open. */
struct arch_frame {
    uintptr_t behind; /* the instruction that it is at: where what it has called returns to */
    uintptr_t at;     /* its frame, by the register that the board finds it by */
};
/* One step of a backtrace, to the caller's. `return_address` is where the function returns to if it
 * has not kept that, 0 where nobody knows. Reads memory from `low` to `high` only; false, and
 * nothing has changed, when the frame is not all there or nothing is known of it. */
bool arch_frame_leave(struct arch_frame *frame, uintptr_t return_address, uintptr_t low,
                      uintptr_t high);

/* The watchdog: unless called again within `seconds`, the board stops the machine with a report.
 * 0 switches it off. False when the machine has none. */
bool arch_watchdog(unsigned seconds);

/* A suspended flow of control. Its content belongs to the board. */
struct arch_context {
    void *stack_pointer;
};

/* Prepares `context` so that the first switch to it calls `entry(arg)` on the stack whose first
 * byte is `stack` and whose size is `stack_bytes`. `entry` must never return. */
void arch_context_init(struct arch_context *context, void *stack, size_t stack_bytes,
                       void (*entry)(void *arg), void *arg);

/* Suspends the caller in `from` and continues `to`; returns when somebody switches back. */
void arch_context_switch(struct arch_context *from, struct arch_context *to);

/* Calls `access(arg)` and returns true, or returns false when that access faulted. Only for
 * finding out at start what the machine has. */
bool arch_try(void (*access)(void *arg), void *arg);

/* A few words of entropy gathered from what the machine has (clock jitter at least); not secret by
 * itself: it seeds the one random source until a better one feeds it. */
uint64_t arch_entropy(void);

#endif
