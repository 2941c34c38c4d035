/* What a driver tells of itself, and the tables of an image.
 *
 * The scan matches each device tree node with a driver, asks how much DMA memory this instance
 * wants, creates it, and calls probe: injection instead of allocation (see device_node.h). */
#ifndef CORE_DEV_DRIVER_H
#define CORE_DEV_DRIVER_H

#include <stddef.h>

struct device_node;

/* Probing goes stage by stage: what others need comes first. */
enum driver_stage { STAGE_POWER, STAGE_CONSOLE, STAGE_INTERRUPTS, STAGE_DEVICE, STAGE_COUNT };

struct driver {
    const char *name;
    const char *const *compatible; /* ends with NULL */
    enum driver_stage stage;
    /* Bytes of DMA memory that this instance wants; NULL or 0 for none. May read registers that
     * identify the device; nothing else has happened to it yet. */
    size_t (*dma_bytes)(struct device_node *node);
    /* Takes the device into service. 0, -ENODEV when there is nothing behind the node (no word in
     * the log, the node is left), or another error, said in the log by the driver: the scan
     * releases the DMA memory and unbinds the node. */
    int (*probe)(struct device_node *node);
};

/* Each image provides its table, which ends with NULL. */
extern const struct driver *const platter_drivers[];

#endif
