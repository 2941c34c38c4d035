/* The host board: the portable code as an ordinary program, for tests and for simulation.
 *
 * Nothing here is random and nothing reads the real clock, so that a run can be repeated. Memory is
 * the process's own; a physical address is a pointer. The sanitizer is told of each change of
 * stack, or it would take the new one for an overflow of the old. (ucontext's functions would do,
 * but the sanitizer replaces them with its own, which forget what is poisoned; and each costs two
 * system calls.) */
#include "boot/arch.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "boot/host/host.h"
#include "core/panic.h"

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
static host_moment *moment_function;
static void *moment_arg;
static uint64_t entropy_state;

/* What the memory map must not hand out; here it is outside of all that a test calls memory. */
__asm__(".pushsection .bss\n"
        ".globl image_start, image_end, text_start, text_end, rodata_start, rodata_end\n"
        ".globl data_start, boot_stack_guard, boot_stack_start, boot_stack_end\n"
        ".globl fault_stack_guard, fault_stack_start, fault_stack_end\n"
        ".balign 4096\n"
        "image_start:\n"
        "text_start: .zero 4096\n"
        "text_end:\n"
        "rodata_start: .zero 4096\n"
        "rodata_end:\n"
        "data_start:\n"
        "boot_stack_guard: .zero 4096\n"
        "boot_stack_start: .zero 4096\n"
        "boot_stack_end:\n"
        "fault_stack_guard: .zero 4096\n"
        "fault_stack_start: .zero 4096\n"
        "fault_stack_end:\n"
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

void host_set_moment(host_moment *moment, void *arg) {
    moment_function = moment;
    moment_arg = arg;
}

static void moment(void) {
    if (moment_function != NULL) {
        moment_function(moment_arg);
    }
}

void host_set_entropy(uint64_t seed) {
    entropy_state = seed;
}

uint64_t arch_clock_ns(void) {
    moment();
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

bool arch_interrupt_is_pending(void) {
    return true; /* the controller says more */
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
    moment();
}

void arch_barrier_write(void) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
    moment();
}

void arch_barrier_read(void) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    moment();
}

_Noreturn void arch_halt(bool failed) {
    if (halt_function != NULL) {
        halt_function(failed);
    }
    exit(failed ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* No table of functions: a debugger knows more. */
extern const uint32_t symbol_count;
extern const uint32_t symbol_entries[];
extern const char symbol_names[];
const uint32_t symbol_count = 0;
const uint32_t symbol_entries[1] = {0};
const char symbol_names[1] = "";

/* --- Page tables of a machine that is not there: the tree is built, nobody looks into it --- */

enum { ENTRY_LEAF = 1, ENTRY_TABLE = 2, ENTRY_ACCESS_SHIFT = 4, ENTRY_FLAGS = 0xfff };

uint64_t arch_page_leaf(struct phys_addr page, unsigned access) {
    return page.value | ENTRY_LEAF | access << ENTRY_ACCESS_SHIFT;
}

uint64_t arch_page_table(struct phys_addr table) {
    return table.value | ENTRY_TABLE;
}

enum arch_page_kind arch_page_kind(uint64_t entry) {
    if ((entry & ENTRY_LEAF) != 0) {
        return ARCH_PAGE_LEAF;
    }
    return (entry & ENTRY_TABLE) != 0 ? ARCH_PAGE_TABLE : ARCH_PAGE_EMPTY;
}

struct phys_addr arch_page_physical(uint64_t entry) {
    return phys_addr(entry & ~(uint64_t)ENTRY_FLAGS);
}

unsigned arch_page_access(uint64_t entry) {
    return (unsigned)(entry & ENTRY_FLAGS) >> ENTRY_ACCESS_SHIFT;
}

unsigned arch_page_levels(uint64_t end) {
    return end <= UINT64_C(1) << 38 ? 3 : 4;
}

int arch_pages_use(struct phys_addr root, unsigned levels) {
    (void)root; /* the process has tables of its own */
    (void)levels;
    return 0;
}

void arch_pages_changed(void) {
    /* as above */
}

_Noreturn void arch_stop(void) {
    panic_report(&(const struct fault){.kind = FAULT_STOP, .name = "stop"});
}

/* x86-64 and aarch64 alike: the frame pointer points at the caller's, the return address follows.
 * `at` is the address behind the two. */
bool arch_frame_leave(struct arch_frame *frame, uintptr_t return_address, uintptr_t low,
                      uintptr_t high) {
    (void)return_address; /* every function keeps it */
    if (frame->at > high || frame->at < low || frame->at - low < 2 * sizeof(uintptr_t) ||
        frame->at % sizeof(uintptr_t) != 0) {
        return false;
    }
    const uintptr_t *end = (const uintptr_t *)frame->at;
    *frame = (struct arch_frame){.behind = end[-1], .at = end[-2]};
    return true;
}

bool arch_watchdog(unsigned seconds) {
    (void)seconds;
    return false; /* time is virtual: it stands still while a task runs */
}

/* void host_switch(void **save_sp, void *load_sp)
 * Keeps the registers that a callee must preserve on the stack, stores the stack pointer, and goes
 * on where `load_sp` was stored. A new context's stack looks as if it had been left so. */
#if defined(__x86_64__)
enum { SWITCH_WORDS = 8, SWITCH_RETURN = 6 }; /* then a zero: the end for backtraces */
__asm__(".pushsection .text\n"
        "host_switch:\n"
        "    push %rbp\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    pop %rbp\n"
        "    ret\n"
        ".popsection\n");
#elif defined(__aarch64__)
enum { SWITCH_WORDS = 20, SWITCH_RETURN = 11 };
__asm__(".pushsection .text\n"
        "host_switch:\n"
        "    stp x19, x20, [sp, #-160]!\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x2, sp\n"
        "    str x2, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    ldp x19, x20, [sp], #160\n"
        "    ret\n"
        ".popsection\n");
#else
#error "boot/host: no context switch for this processor"
#endif
void host_switch(void **save_sp, void *load_sp);

/* What is kept of a suspended context. Of a new one it stands at the top of its stack, of every
 * other one in the frame of the arch_context_switch that suspended it. */
struct suspended {
    void *stack_pointer;
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
    uintptr_t top = (uintptr_t)stack + stack_bytes - sizeof(struct suspended);
    struct suspended *self = (struct suspended *)(top & ~(uintptr_t)15);
    uintptr_t *frame = (uintptr_t *)(void *)self - SWITCH_WORDS;
    for (int i = 0; i < SWITCH_WORDS; i++) {
        frame[i] = 0;
    }
    frame[SWITCH_RETURN] = (uintptr_t)begin;
    *self = (struct suspended){.stack_pointer = frame,
                               .stack = stack,
                               .stack_bytes = stack_bytes,
                               .entry = entry,
                               .arg = arg};
    context->stack_pointer = self;
}

void arch_context_switch(struct arch_context *from, struct arch_context *to) {
    struct suspended self = {.fake_stack = NULL};
    struct suspended *target = to->stack_pointer;
    /* It lives exactly as long as this suspended stack frame. */
    // cppcheck-suppress autoVariables
    from->stack_pointer = &self;
    leave_for(&self, target);
    host_switch(&self.stack_pointer, target->stack_pointer);
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
