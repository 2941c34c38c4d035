/* From the firmware to the portable start, and the report of a fault that nothing expected. */
#include "boot/arch.h"
#include "boot/riscv64/riscv.h"
#include "core/panic.h"
#include "core/start.h"
#include "core/symbols.h"

/* Privileged specification, table 4.2: exception codes of scause. From 24 on they are free for
 * custom use, and boot/riscv64/start takes the first to say that its watchdog was not fed. */
enum {
    CAUSE_FETCH_ACCESS = 1,
    CAUSE_BREAKPOINT = 3,
    CAUSE_LOAD_ACCESS = 5,
    CAUSE_STORE_ACCESS = 7,
    CAUSE_FETCH_PAGE = 12,
    CAUSE_LOAD_PAGE = 13,
    CAUSE_STORE_PAGE = 15,
    CAUSE_WATCHDOG = 24,
};

enum { REGISTER_PC = 0, REGISTER_RA = 1, REGISTER_SP = 2 };

static const char *const cause_names[] = {
    "instruction address misaligned",
    "instruction access fault",
    "illegal instruction",
    "breakpoint",
    "load address misaligned",
    "load access fault",
    "store address misaligned",
    "store access fault",
    "call from user mode",
    "call from supervisor mode",
    "reserved",
    "reserved",
    "instruction page fault",
    "load page fault",
    "reserved",
    "store page fault",
};

static const char *const register_names[32] = {
    "pc", "ra", "sp", "gp", "tp",  "t0",  "t1", "t2", "s0", "s1", "a0",
    "a1", "a2", "a3", "a4", "a5",  "a6",  "a7", "s2", "s3", "s4", "s5",
    "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
};

_Noreturn void riscv_start(uint64_t hart, uint64_t fdt_address) {
    riscv_set_boot_hart(hart);
    platter_start((const void *)(uintptr_t)fdt_address);
}

/* A fetch from where nothing may be run: the caller is all that tells where it came from. */
static enum fault_kind kind_of(uint64_t cause) {
    switch (cause) {
    case CAUSE_BREAKPOINT:
        return FAULT_STOP;
    case CAUSE_FETCH_ACCESS:
    case CAUSE_FETCH_PAGE:
        return FAULT_EXECUTE;
    case CAUSE_LOAD_ACCESS:
    case CAUSE_LOAD_PAGE:
        return FAULT_READ;
    case CAUSE_STORE_ACCESS:
    case CAUSE_STORE_PAGE:
        return FAULT_WRITE;
    case CAUSE_WATCHDOG:
        return FAULT_WATCHDOG;
    default:
        return FAULT_OTHER;
    }
}

_Noreturn void riscv_trap_report(const uint64_t *registers, uint64_t cause, uint64_t value) {
    const struct fault fault = {
        .kind = kind_of(cause),
        .name = cause < sizeof cause_names / sizeof cause_names[0] ? cause_names[cause]
                                                                   : "unknown trap",
        .address = value,
        .pc = registers[REGISTER_PC],
        .return_address = registers[REGISTER_RA],
        .stack_pointer = registers[REGISTER_SP],
        .frame = registers[REGISTER_SP],
        .register_names = register_names,
        .registers = registers,
        .register_count = sizeof register_names / sizeof register_names[0],
    };
    panic_report(&fault);
}

_Noreturn void arch_stop(void) {
    for (;;) {
        __asm__ volatile("ebreak");
    }
}

/* No register is spared to find frames by: the compiler says how long each function's is, and where
 * in it the return address (symbols.h). That holds for each that has called another. The last one
 * may be in front of it, behind it or on a way that needs none: then the register still says where
 * it returns to. When it says something else, it is from a call that the function has made itself.
 */
bool arch_frame_leave(struct arch_frame *frame, uintptr_t return_address, uintptr_t low,
                      uintptr_t high) {
    struct symbol_frame known = symbols_frame(frame->behind - 1);
    if (frame->at % sizeof(uintptr_t) != 0 || frame->at > high || known.bytes > high - frame->at) {
        return false;
    }
    uintptr_t kept = 0;
    bool is_begun = true;
    if (known.return_at != 0 && frame->at + known.return_at >= low) {
        kept = *(const uintptr_t *)(frame->at + known.return_at);
        is_begun = return_address == 0 || return_address == kept ||
                   symbols_share(return_address - 1, frame->behind - 1);
    }
    if (is_begun && symbols_know(kept - 1)) {
        *frame = (struct arch_frame){.behind = kept, .at = frame->at + known.bytes};
        return true;
    }
    if (return_address == 0) {
        return false;
    }
    /* The stack may have had no more room for it: then its beginning lies below, and it is there.
     */
    *frame = (struct arch_frame){.behind = return_address,
                                 .at = frame->at + (is_begun ? known.bytes : 0)};
    return true;
}
