/* Interrupt sources: who handles which, and asking the controllers what is pending.
 *
 * Handlers run in the scheduler's context between tasks: never in the middle of one, never nested.
 * They note what happened and signal events; they do not wait. */
#ifndef CORE_DEV_IRQ_H
#define CORE_DEV_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/dev/device_node.h"

/* An interrupt controller's side. Source numbers are the controller's own; 0 is none. */
struct irq_controller {
    const char *name;
    uint32_t phandle;
    /* Device tree cells to a source number; 0 when they make no sense. */
    unsigned (*translate)(struct irq_controller *controller, const uint32_t *cells, unsigned count);
    void (*enable)(struct irq_controller *controller, unsigned source);
    /* The next pending source, 0 when there is none; it stays silent until completed. */
    unsigned (*claim)(struct irq_controller *controller);
    void (*complete)(struct irq_controller *controller, unsigned source);
    struct irq_controller *next;
};

void irq_add_controller(struct irq_controller *controller);

/* Calls `handler(arg)` for each interrupt of the node's source, which may be shared: the handler
 * returns whether it was its device's. Enables the source. -ENODEV when the node has no interrupt
 * or its controller is unknown, -ENOSPC past IRQ_HANDLERS_MAX; both said in the log. */
int irq_register(const struct device_node *node, bool (*handler)(void *arg), void *arg);

/* Takes what is pending, at most IRQ_CLAIMS_PER_TURN; returns how many there were. */
unsigned irq_dispatch(void);

struct irq_info {
    const char *name; /* of the device */
    unsigned source;
    uint64_t count;
};
/* False past the last handler. */
bool irq_get_info(unsigned index, struct irq_info *info);
/* Interrupts that no handler knew. */
uint64_t irq_spurious(void);

#ifdef PLATTER_HOST
/* Fuzzers start anew: no controller, no handler. */
void irq_forget(void);
#endif

#endif
