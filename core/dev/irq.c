/* Handler table and dispatch. See irq.h. */
#include "core/dev/irq.h"

#include <errno.h>
#include <string.h>

#include "boot/arch.h"
#include "core/log.h"

struct irq_handler {
    struct irq_handler *next_at_place;
    const char *name;
    struct irq_controller *controller;
    unsigned source;
    bool (*handle)(void *arg);
    void *arg;
    uint64_t count;
};

static struct irq_controller *controllers;
static struct irq_handler handlers[IRQ_HANDLERS_MAX];
/* By their sources, so that one interrupt does not ask for everybody's. */
enum { PLACES = 16 };
static struct irq_handler *places[PLACES];
static unsigned handler_count;
static uint64_t spurious;

void irq_add_controller(struct irq_controller *controller) {
    controller->next = controllers;
    controllers = controller;
}

static struct irq_handler **place_of(unsigned source) {
    return &places[source % PLACES];
}

int irq_register(const struct device_node *node, bool (*handler)(void *arg), void *arg) {
    struct irq_controller *controller = controllers;
    while (controller != NULL && controller->phandle != node->irq_parent) {
        controller = controller->next;
    }
    unsigned source = controller != NULL && node->irq_cell_count > 0
                          ? controller->translate(controller, node->irq_cells, node->irq_cell_count)
                          : 0;
    if (source == 0) {
        return log_error(-ENODEV, "%s: no interrupt controller for its interrupt", node->name);
    }
    if (handler_count == IRQ_HANDLERS_MAX) {
        return log_error(-ENOSPC, "%s: %u interrupt handlers are the limit", node->name,
                         IRQ_HANDLERS_MAX);
    }
    struct irq_handler **place = place_of(source);
    struct irq_handler *added = &handlers[handler_count++];
    *added = (struct irq_handler){.next_at_place = *place,
                                  .name = node->name,
                                  .controller = controller,
                                  .source = source,
                                  .handle = handler,
                                  .arg = arg};
    *place = added;
    controller->enable(controller, source);
    return 0;
}

static void handle(const struct irq_controller *controller, unsigned source) {
    bool known = false;
    for (struct irq_handler *handler = *place_of(source); handler != NULL;
         handler = handler->next_at_place) {
        if (handler->controller == controller && handler->source == source &&
            handler->handle(handler->arg)) {
            handler->count++;
            known = true;
        }
    }
    spurious += !known;
}

unsigned irq_dispatch(void) {
    unsigned taken = 0;
    for (struct irq_controller *controller = controllers; controller != NULL;
         controller = controller->next) {
        unsigned source;
        while (taken < IRQ_CLAIMS_PER_TURN && arch_interrupt_is_pending() &&
               (source = controller->claim(controller)) != 0) {
            handle(controller, source);
            controller->complete(controller, source);
            taken++;
        }
    }
    return taken;
}

bool irq_get_info(unsigned index, struct irq_info *info) {
    if (index >= handler_count) {
        return false;
    }
    *info = (struct irq_info){handlers[index].name, handlers[index].source, handlers[index].count};
    return true;
}

uint64_t irq_spurious(void) {
    return spurious;
}

#ifdef PLATTER_HOST
void irq_forget(void) {
    handler_count = 0;
    memset(places, 0, sizeof places);
    controllers = NULL;
    spurious = 0;
}
#endif
