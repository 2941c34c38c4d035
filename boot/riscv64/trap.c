/* From the firmware to the portable start, and the report of a fault that nothing expected. */
#include "boot/arch.h"
#include "boot/riscv64/riscv.h"
#include "core/panic.h"
#include "core/start.h"

/* Privileged specification, table 4.2: exception codes of scause. */
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

_Noreturn void riscv_trap_report(const uint64_t *registers, uint64_t cause, uint64_t value) {
    const char *name =
        cause < sizeof cause_names / sizeof cause_names[0] ? cause_names[cause] : "unknown trap";
    struct panic_registers report = {register_names, registers, 32};
    panic_with_registers(&report, "%s at pc 0x%llx, address 0x%llx", name,
                         (unsigned long long)registers[0], (unsigned long long)value);
}
