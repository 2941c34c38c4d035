/* The riscv64 board: clock, idle wait, barriers, contexts, and what SBI firmware offers.
 *
 * Supervisor mode, RV64IMAC. Interrupts are never taken: sstatus.SIE stays clear, sie lets the
 * timer and the external interrupt end WFI (privileged specification, 3.3.3: WFI resumes when an
 * enabled interrupt is pending, regardless of the global enable). */
#include "boot/arch.h"

#include <errno.h>

#include "boot/riscv64/riscv.h"
#include "core/log.h"
#include "core/panic.h"

#define SIE_TIMER    (UINT64_C(1) << 5)
#define SIE_EXTERNAL (UINT64_C(1) << 9)

#define SBI_EXT_BASE       UINT64_C(0x10)
#define SBI_BASE_IMPL_ID   UINT64_C(1)
#define SBI_BASE_PROBE     UINT64_C(3)
#define SBI_EXT_TIME       UINT64_C(0x54494d45)
#define SBI_EXT_SRST       UINT64_C(0x53525354)
#define SBI_EXT_START      UINT64_C(0x0a504c41) /* boot/riscv64/start */
#define SBI_IMPL_START     UINT64_C(0x504c41)
#define START_OWN_MEMORY   UINT64_C(0)
#define START_WATCHDOG     UINT64_C(1)
#define SRST_TYPE_SHUTDOWN UINT64_C(0)

struct sbi_result {
    uint64_t error;
    uint64_t value;
};

static uint64_t boot_hart;
static uint64_t tick_hz;
static uint64_t ns_per_tick; /* exact when tick_hz divides a second, else 0 */
static bool has_sstc;
static uint64_t armed_ticks = UINT64_MAX;

void riscv_context_switch(void **save_sp, void *load_sp);
void riscv_context_begin(void);
bool riscv_try(void (*access)(void *), void *arg);

static struct sbi_result sbi_call(uint64_t extension, uint64_t function, uint64_t arg0,
                                  uint64_t arg1) {
    register uint64_t a0 __asm__("a0") = arg0;
    register uint64_t a1 __asm__("a1") = arg1;
    register uint64_t a6 __asm__("a6") = function;
    register uint64_t a7 __asm__("a7") = extension;
    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a6), "r"(a7) : "memory");
    return (struct sbi_result){a0, a1};
}

static uint64_t read_time(void) {
    uint64_t ticks;
    __asm__ volatile("rdtime %0" : "=r"(ticks));
    return ticks;
}

static void write_stimecmp(uint64_t ticks) {
    __asm__ volatile("csrw 0x14d, %0" ::"r"(ticks));
}

static void probe_stimecmp(void *unused) {
    (void)unused; /* the signature is arch_try's */
    write_stimecmp(UINT64_MAX);
}

uint64_t arch_clock_ns(void) {
    uint64_t ticks = read_time();
    if (ns_per_tick != 0) {
        return ticks * ns_per_tick;
    }
    if (tick_hz == 0) {
        return 0;
    }
    return ticks / tick_hz * NS_PER_S + ticks % tick_hz * NS_PER_S / tick_hz;
}

int arch_clock_init(uint64_t frequency_hz) {
    if (frequency_hz == 0 || frequency_hz > NS_PER_S) {
        return -EINVAL;
    }
    tick_hz = frequency_hz;
    ns_per_tick = NS_PER_S % frequency_hz == 0 ? NS_PER_S / frequency_hz : 0;
    has_sstc = arch_try(probe_stimecmp, NULL);
    if (!has_sstc) {
        struct sbi_result probe = sbi_call(SBI_EXT_BASE, SBI_BASE_PROBE, SBI_EXT_TIME, 0);
        if (probe.error != 0 || probe.value == 0) {
            return -ENODEV;
        }
        (void)sbi_call(SBI_EXT_TIME, 0, UINT64_MAX,
                       0); /* a timer never armed cannot fail usefully */
    }
    __asm__ volatile("csrw sie, %0" ::"r"(SIE_TIMER | SIE_EXTERNAL));
    return 0;
}

/* Rewriting the compare register costs more than everything else here (1.4 us under emulation), so
 * one that fires too early is left alone: the extra turn of the scheduler is cheaper. */
static void timer_arm(uint64_t deadline_ns) {
    uint64_t ticks = UINT64_MAX;
    if (deadline_ns != DEADLINE_NEVER) {
        ticks = ns_per_tick != 0 ? deadline_ns / ns_per_tick + 1
                                 : deadline_ns / NS_PER_S * tick_hz +
                                       deadline_ns % NS_PER_S * tick_hz / NS_PER_S + 1;
    }
    if (armed_ticks <= ticks && armed_ticks > read_time()) {
        return;
    }
    armed_ticks = ticks;
    if (has_sstc) {
        write_stimecmp(ticks);
    } else {
        (void)sbi_call(SBI_EXT_TIME, 0, ticks, 0); /* probed at start; it has no failure */
    }
}

void arch_idle_until(uint64_t deadline_ns) {
    timer_arm(deadline_ns);
    __asm__ volatile("wfi" ::: "memory");
}

bool arch_interrupt_is_pending(void) {
    uint64_t pending;
    __asm__ volatile("csrr %0, sip" : "=r"(pending));
    return (pending & SIE_EXTERNAL) != 0;
}

uint64_t arch_boot_cpu(void) {
    return boot_hart;
}

void riscv_set_boot_hart(uint64_t hart) {
    boot_hart = hart;
}

static bool has_own_start(void) {
    struct sbi_result impl = sbi_call(SBI_EXT_BASE, SBI_BASE_IMPL_ID, 0, 0);
    return impl.error == 0 && impl.value == SBI_IMPL_START;
}

void arch_firmware_range(uint64_t *start, uint64_t *length) {
    *start = 0;
    *length = 0;
    if (has_own_start()) {
        struct sbi_result own = sbi_call(SBI_EXT_START, START_OWN_MEMORY, 0, 0);
        *start = own.error; /* this one call returns a plain pair: first byte and bytes */
        *length = own.value;
    }
}

/* Our own start strikes twice in `seconds`: the first time it only takes note, for the whole
 * machine may have been stopped for a while. */
bool arch_watchdog(unsigned seconds) {
    static bool is_known;
    static bool is_there;
    if (!is_known) {
        is_known = true;
        is_there = has_own_start();
    }
    if (is_there) {
        (void)sbi_call(SBI_EXT_START, START_WATCHDOG, seconds * tick_hz / 2, 0); /* cannot fail */
    }
    return is_there;
}

/* I and O as well as R and W: the ring's memory must be ordered against the notify register. */
void arch_barrier_full(void) {
    __asm__ volatile("fence iorw, iorw" ::: "memory");
}

void arch_barrier_write(void) {
    __asm__ volatile("fence ow, ow" ::: "memory");
}

void arch_barrier_read(void) {
    __asm__ volatile("fence ir, ir" ::: "memory");
}

_Noreturn void arch_halt(bool failed) {
    (void)sbi_call(SBI_EXT_SRST, 0, SRST_TYPE_SHUTDOWN,
                   failed ? 1 : 0); /* returns only on failure */
    __asm__ volatile("csrw sie, zero");
    for (;;) {
        __asm__ volatile("wfi");
    }
}

/* The order in which entry.S keeps registers: ra, s0, s1, s2, ... */
enum { CONTEXT_WORDS = 14, CONTEXT_RA = 0, CONTEXT_S1 = 2, CONTEXT_S2 = 3 };

void arch_context_init(struct arch_context *context, void *stack, size_t stack_bytes,
                       void (*entry)(void *arg), void *arg) {
    uintptr_t top = ((uintptr_t)stack + stack_bytes) & ~(uintptr_t)15;
    uint64_t *frame = (uint64_t *)top - CONTEXT_WORDS;
    for (int i = 0; i < CONTEXT_WORDS; i++) {
        frame[i] = 0;
    }
    frame[CONTEXT_RA] = (uint64_t)(uintptr_t)riscv_context_begin;
    frame[CONTEXT_S1] = (uint64_t)(uintptr_t)entry;
    frame[CONTEXT_S2] = (uint64_t)(uintptr_t)arg;
    context->stack_pointer = frame;
}

void arch_context_switch(struct arch_context *from, struct arch_context *to) {
    riscv_context_switch(&from->stack_pointer, to->stack_pointer);
}

bool arch_try(void (*access)(void *arg), void *arg) {
    return riscv_try(access, arg);
}

uint64_t arch_entropy(void) {
    uint64_t cycles;
    __asm__ volatile("rdcycle %0" : "=r"(cycles));
    return cycles * UINT64_C(0x9e3779b97f4a7c15) ^ read_time();
}
