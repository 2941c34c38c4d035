/* The interrupt controller of RISC-V boards. */
#ifndef BOOT_RISCV64_PLIC_H
#define BOOT_RISCV64_PLIC_H

#include "core/dev/driver.h"

extern const struct driver plic_driver;

#endif
