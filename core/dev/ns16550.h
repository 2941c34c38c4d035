/* The 16550 UART driver. */
#ifndef CORE_DEV_NS16550_H
#define CORE_DEV_NS16550_H

#include "core/dev/device_node.h"

extern const struct driver ns16550_driver;

/* Lets a bound UART receive; called once the interrupt controllers are there. 0, or irq_register's
 * error. */
int ns16550_enable_input(const struct device_node *node);

#endif
