/* From the board's first C function to the appliance. */
#ifndef CORE_START_H
#define CORE_START_H

/* Brings up memory, the clock, the device tree's devices and the scheduler, then runs
 * `appliance_main` as the first task. `fdt` is what the firmware handed over; untrusted. Called
 * once by the board, on the boot stack. Never returns. */
_Noreturn void platter_start(const void *fdt);

/* The device tree that the appliance was started with, checked as a whole. */
const void *platter_device_tree(void);

/* What this image is for, one per image: apps/platter.c serves disks, apps/selftest tests,
 * apps/deaths dies. */
void appliance_main(void *unused);

#endif
