/* What the riscv64 board's own files share; nothing outside boot/riscv64 includes this. */
#ifndef BOOT_RISCV64_RISCV_H
#define BOOT_RISCV64_RISCV_H

#include <stdint.h>

/* From entry.S: the hart that runs us and the device tree's physical address. Never returns. */
_Noreturn void riscv_start(uint64_t hart, uint64_t fdt_address);

void riscv_set_boot_hart(uint64_t hart);

/* From entry.S, on a stack of its own: `registers` holds the program counter, then x1 to x31. */
_Noreturn void riscv_trap_report(const uint64_t *registers, uint64_t cause, uint64_t value);

#endif
