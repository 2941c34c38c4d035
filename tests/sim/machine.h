/* The machine that the appliance is started on: memory, device tree, interrupt controller, keys,
 * power; and what can be asked about the appliance from outside. */
#ifndef TESTS_SIM_MACHINE_H
#define TESTS_SIM_MACHINE_H

#include "tests/sim/device.h"

/* Boots the appliance; comes back never: `machine_has_ended` of the director is called. */
_Noreturn void machine_run(void);

/* A device of the machine raises or clears its line: looked at whenever the appliance sleeps or
 * asks. */
void machine_add_device(struct device *device);

/* A key on the console. */
void machine_press(char key);

/* True when [data, data + bytes) is memory that the appliance may give to a device. */
bool machine_is_memory(const void *data, size_t bytes);

/* All that was logged so far. */
const char *machine_log(void);

/* Allocations of the appliance until now. */
uint64_t machine_allocations(void);
uint64_t machine_allocations_failed(void);

#endif
