/* The host board: the portable code as an ordinary program, for tests and for simulation.
 *
 * Nothing here is random and nothing reads the real clock, so that a run can be repeated. Memory is
 * the process's own; a physical address is a pointer. Contexts are ucontext's, with the sanitizer
 * told of each change of stack; without that it takes the new stack for an overflow of the old. */
#include "boot/arch.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#include "boot/host/host.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#endif

#ifdef HAS_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

static uint64_t clock_ns;
static host_idle *idle_function;
static void *idle_arg;
static host_halt *halt_function;
static uint64_t entropy_state;

/* What the memory map must not hand out; here it is outside of all that a test calls memory. */
__asm__(".pushsection .bss\n"
        ".globl image_start\n"
        ".balign 4096\n"
        "image_start: .zero 4096\n"
        ".globl image_end\n"
        "image_end:\n"
        ".popsection\n");

void host_clock_set(uint64_t now_ns) {
    clock_ns = now_ns;
}

void host_clock_advance(uint64_t ns) {
    clock_ns += ns;
}

void host_set_idle(host_idle *idle, void *arg) {
    idle_function = idle;
    idle_arg = arg;
}

void host_set_halt(host_halt *halt) {
    halt_function = halt;
}

void host_set_entropy(uint64_t seed) {
    entropy_state = seed;
}

uint64_t arch_clock_ns(void) {
    return clock_ns;
}

int arch_clock_init(uint64_t frequency_hz) {
    return frequency_hz == 0 ? -EINVAL : 0;
}

void arch_idle_until(uint64_t deadline_ns) {
    if (idle_function != NULL) {
        idle_function(idle_arg, deadline_ns);
    } else if (deadline_ns > clock_ns && deadline_ns != DEADLINE_NEVER) {
        clock_ns = deadline_ns;
    }
}

uint64_t arch_boot_cpu(void) {
    return 0;
}

void arch_firmware_range(uint64_t *start, uint64_t *length) {
    *start = 0;
    *length = 0;
}

void arch_barrier_full(void) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void arch_barrier_write(void) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

void arch_barrier_read(void) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

_Noreturn void arch_halt(bool failed) {
    if (halt_function != NULL) {
        halt_function(failed);
    }
    exit(failed ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* A suspended context. Of a new one it stands at the top of its stack, of every other one in the
 * frame of the arch_context_switch that suspended it. */
struct suspended {
    ucontext_t registers;
    const void *stack; /* its bounds, for the sanitizer */
    size_t stack_bytes;
    void *fake_stack;
    void (*entry)(void *arg);
    void *arg;
};

/* Who is being left and who is being entered, while a switch is under way. */
static struct suspended *leaving;
static struct suspended *entering;

static void leave_for(struct suspended *from, struct suspended *to) {
    leaving = from;
    entering = to;
#ifdef HAS_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
}

/* On the new stack: the bounds of the one that was left are known only now. */
static void arrive(struct suspended *self) {
#ifdef HAS_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &leaving->stack, &leaving->stack_bytes);
#else
    (void)self; /* only the sanitizer wants to know */
#endif
}

static void begin(void) {
    struct suspended *self = entering;
    arrive(self);
    self->entry(self->arg);
    abort(); /* entry must not return */
}

void arch_context_init(struct arch_context *context, void *stack, size_t stack_bytes,
                       void (*entry)(void *arg), void *arg) {
    size_t room = (stack_bytes - sizeof(struct suspended)) & ~(size_t)63;
    struct suspended *self = (struct suspended *)(void *)((char *)stack + room);
    *self =
        (struct suspended){.stack = stack, .stack_bytes = stack_bytes, .entry = entry, .arg = arg};
    if (getcontext(&self->registers) != 0) {
        abort(); /* glibc's cannot fail */
    }
    self->registers.uc_stack.ss_sp = stack;
    self->registers.uc_stack.ss_size = room;
    self->registers.uc_link = NULL;
    makecontext(&self->registers, begin, 0);
    context->stack_pointer = self;
}

void arch_context_switch(struct arch_context *from, struct arch_context *to) {
    struct suspended self = {.fake_stack = NULL};
    struct suspended *target = to->stack_pointer;
    from->stack_pointer = &self;
    leave_for(&self, target);
    if (swapcontext(&self.registers, &target->registers) != 0) {
        abort(); /* glibc's cannot fail */
    }
    arrive(&self);
}

static sigjmp_buf fault_return;

static void fault(int signal_number) {
    siglongjmp(fault_return, signal_number);
}

bool arch_try(void (*access)(void *arg), void *arg) {
    struct sigaction catcher = {.sa_handler = fault};
    struct sigaction segv_before;
    struct sigaction bus_before;
    if (sigaction(SIGSEGV, &catcher, &segv_before) != 0 ||
        sigaction(SIGBUS, &catcher, &bus_before) != 0) {
        abort(); /* both signals exist */
    }
    bool is_good = sigsetjmp(fault_return, 1) == 0;
    if (is_good) {
        access(arg);
    }
    (void)sigaction(SIGSEGV, &segv_before, NULL); /* as above */
    (void)sigaction(SIGBUS, &bus_before, NULL);
    return is_good;
}

uint64_t arch_entropy(void) {
    entropy_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = entropy_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}
