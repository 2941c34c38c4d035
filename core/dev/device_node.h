/* Device nodes: what the scan of the device tree found a driver for. */
#ifndef CORE_DEV_DEVICE_NODE_H
#define CORE_DEV_DEVICE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "config/limits.h"
#include "core/dev/driver.h"
#include "core/mem/addr.h"
#include "core/mem/io_buffer.h"

enum device_state { DEVICE_UNBOUND, DEVICE_BOUND };

enum { IRQ_CELLS_MAX = 4 };

struct device_node {
    const char *name; /* points into the device tree, which stays */
    const void *fdt;
    int offset; /* in the tree */
    const struct driver *driver;
    enum device_state state;
    struct phys_range regs[DEVICE_REGS_MAX]; /* as the processor sees them */
    unsigned reg_count;
    uint32_t irq_parent; /* phandle of the interrupt controller; 0 when it has no interrupt */
    uint32_t irq_cells[IRQ_CELLS_MAX];
    unsigned irq_cell_count;
    /* DMA memory injected by the scan, which owns it: NULL when the driver asked for none or none
     * was left. */
    struct io_buffer *dma_buffer;
    void *instance; /* the driver's own */
};

/* Finds the nodes of `drivers` (a table that ends with NULL), in the order of probing: stage by
 * stage, within a stage by descending address of the first register range (see the source). Once.
 */
void device_tree_read(const void *fdt, const struct driver *const *drivers);

/* Binds the nodes of the stages from `first` to `last`. Failing devices are left unbound, the rest
 * goes on. Returns the number bound. */
unsigned device_tree_probe(enum driver_stage first, enum driver_stage last);

/* Binds one node: injection, then probe. Returns 0 or the probe's error with the node unbound and
 * its DMA memory released. For the scan and for tests. */
int device_bind(struct device_node *node);

/* True when probe of a device that needs DMA memory may go on: says in the log what is wrong
 * otherwise. `bytes` is what the driver is going to carve. */
bool device_has_dma(const struct device_node *node, size_t bytes);

/* Nodes that matched, in order of probing; NULL past the last. */
const struct device_node *device_node_at(unsigned index);

#ifdef PLATTER_HOST
/* Unit tests and the simulator read another tree. Before the heap forgets. */
void device_tree_forget(void);
#endif

#endif
