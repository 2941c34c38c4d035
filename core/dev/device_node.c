/* The scan: device tree nodes to device nodes, DMA injection, probing. See device_node.h.
 *
 * QEMU fills virtio-mmio slots from the highest address down in the order of its command line, so
 * descending addresses give the user's order: the first disk given is the first found. */
#include "core/dev/device_node.h"

#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

#include "core/dev/fdt.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/walls.h"
#include "core/panic.h"

/* What a node hands down to its children. */
struct bus_level {
    int node;
    int address_cells;
    int size_cells;
    uint32_t irq_parent;
};

static struct device_node *nodes[DEVICE_NODES_MAX];
static unsigned node_count;

const struct device_node *device_node_at(unsigned index) {
    return index < node_count ? nodes[index] : NULL;
}

/* The node's compatible strings are looked up once: the lookup costs more than all comparisons. */
static const struct driver *find_driver(const void *fdt, int node,
                                        const struct driver *const *drivers) {
    int length = 0;
    const char *list = fdt_getprop(fdt, node, "compatible", &length);
    for (; list != NULL && *drivers != NULL; drivers++) {
        for (const char *const *word = (*drivers)->compatible; *word != NULL; word++) {
            if (fdt_stringlist_contains(list, length, *word)) {
                return *drivers;
            }
        }
    }
    return NULL;
}

/* Through the `ranges` of every bus above: empty means one to one, none means not reachable. */
static bool translate(const void *fdt, const struct bus_level *levels, int depth, uint64_t *address,
                      uint64_t bytes) {
    for (int level = depth - 1; level > 0; level--) {
        int length = 0;
        const char *ranges = fdt_getprop(fdt, levels[level].node, "ranges", &length);
        if (ranges == NULL) {
            return false;
        }
        if (length == 0) {
            continue;
        }
        unsigned child = (unsigned)levels[level].address_cells;
        unsigned parent = (unsigned)levels[level - 1].address_cells;
        unsigned size = (unsigned)levels[level].size_cells;
        if (child < 1 || child > 2 || parent < 1 || parent > 2 || size < 1 || size > 2) {
            return false;
        }
        int entry = (int)(4 * (child + parent + size));
        bool found = false;
        for (int at = 0; at + entry <= length && !found; at += entry) {
            uint64_t from = fdt_cells(ranges + at, child);
            uint64_t to = fdt_cells(ranges + at + 4 * (ptrdiff_t)child, parent);
            uint64_t span = fdt_cells(ranges + at + 4 * (ptrdiff_t)(child + parent), size);
            if (*address >= from && range_fits(*address - from, bytes, span)) {
                found = add_fits(to, *address - from, address);
            }
        }
        if (!found) {
            return false;
        }
    }
    return true;
}

static int read_regs(struct device_node *device, const struct bus_level *levels, int depth) {
    const struct bus_level *bus = &levels[depth - 1];
    int length = 0;
    const char *reg = fdt_getprop(device->fdt, device->offset, "reg", &length);
    if (reg == NULL) {
        return 0;
    }
    if (bus->address_cells < 1 || bus->address_cells > 2 || bus->size_cells < 1 ||
        bus->size_cells > 2) {
        return -EINVAL;
    }
    int entry = 4 * (bus->address_cells + bus->size_cells);
    for (int at = 0; at + entry <= length && device->reg_count < DEVICE_REGS_MAX; at += entry) {
        uint64_t start = fdt_cells(reg + at, (unsigned)bus->address_cells);
        uint64_t bytes =
            fdt_cells(reg + at + 4 * (ptrdiff_t)bus->address_cells, (unsigned)bus->size_cells);
        struct phys_range range = {phys_addr(start), bytes};
        if (!translate(device->fdt, levels, depth, &range.start.value, bytes) ||
            !phys_range_is_valid(range) || range.start.value % 4 != 0) {
            return -EINVAL;
        }
        device->regs[device->reg_count++] = range;
    }
    return 0;
}

/* #interrupt-cells of a controller; 0 when there is none such. Nearly all nodes name the same one,
 * and finding a phandle is a walk over the whole tree: the last answer is kept. */
static uint32_t irq_cells_of(const void *fdt, uint32_t phandle) {
    static uint32_t known_phandle;
    static uint32_t known_cells;
    if (phandle != 0 && phandle != known_phandle) {
        int controller = fdt_node_offset_by_phandle(fdt, phandle);
        known_phandle = phandle;
        if (controller < 0 || !fdt_read_u32(fdt, controller, "#interrupt-cells", &known_cells)) {
            known_cells = 0;
        }
    }
    return phandle != 0 ? known_cells : 0;
}

static void read_interrupt(struct device_node *device, uint32_t irq_parent) {
    int length = 0;
    const char *cells = fdt_getprop(device->fdt, device->offset, "interrupts", &length);
    uint32_t count = irq_cells_of(device->fdt, irq_parent);
    if (cells == NULL || count == 0 || count > IRQ_CELLS_MAX || length < (int)(4 * count)) {
        return; /* a device without an interrupt: its driver decides whether it can do without */
    }
    device->irq_parent = irq_parent;
    device->irq_cell_count = count;
    for (unsigned i = 0; i < count; i++) {
        device->irq_cells[i] = (uint32_t)fdt_cells(cells + 4 * (size_t)i, 1);
    }
}

static bool is_disabled(const void *fdt, int node) {
    int length = 0;
    const char *status = fdt_getprop(fdt, node, "status", &length);
    return status != NULL && length > 0 && strncmp(status, "ok", 2) != 0;
}

/* A disabled bus takes all that lies below it out of use. */
static bool is_out_of_use(const void *fdt, const struct bus_level *levels, int depth) {
    for (int level = 1; level <= depth; level++) {
        if (is_disabled(fdt, levels[level].node)) {
            return true;
        }
    }
    return false;
}

static void add_node(const void *fdt, int offset, const struct driver *driver,
                     const struct bus_level *levels, int depth) {
    const char *name = fdt_get_name(fdt, offset, NULL);
    if (node_count == DEVICE_NODES_MAX) {
        log_warning("fdt: %s left alone: %u devices are the limit", name, DEVICE_NODES_MAX);
        return;
    }
    struct device_node *device = calloc(1, sizeof *device);
    if (device == NULL) {
        log_warning("fdt: %s left alone: no memory", name);
        return;
    }
    device->name = name;
    device->fdt = fdt;
    device->offset = offset;
    device->driver = driver;
    if (read_regs(device, levels, depth) != 0) {
        log_warning("fdt: %s left alone: its reg makes no sense", name);
        free(device);
        return;
    }
    read_interrupt(device, levels[depth].irq_parent);
    nodes[node_count++] = device;
}

static void collect_nodes(const void *fdt, const struct driver *const *drivers) {
    struct bus_level levels[FDT_DEPTH_MAX] = {0};
    int depth = 0;
    int offset = 0;
    for (; offset >= 0 && depth >= 0; offset = fdt_next_node(fdt, offset, &depth)) {
        if (depth >= FDT_DEPTH_MAX) {
            log_warning("fdt: nodes deeper than %u levels are left alone", FDT_DEPTH_MAX);
            continue;
        }
        struct bus_level *level = &levels[depth];
        *level = (struct bus_level){.node = offset,
                                    .address_cells = fdt_address_cells(fdt, offset),
                                    .size_cells = fdt_size_cells(fdt, offset),
                                    .irq_parent = depth > 0 ? levels[depth - 1].irq_parent : 0};
        (void)fdt_read_u32(fdt, offset, "interrupt-parent",
                           &level->irq_parent); /* else inherited */
        const struct driver *driver = depth > 0 ? find_driver(fdt, offset, drivers) : NULL;
        if (driver != NULL && !is_out_of_use(fdt, levels, depth)) {
            add_node(fdt, offset, driver, levels, depth);
        }
    }
}

static uint64_t first_address(const struct device_node *device) {
    return device->reg_count > 0 ? device->regs[0].start.value : 0;
}

static int compare_nodes(const struct device_node *a, const struct device_node *b) {
    if (a->driver->stage != b->driver->stage) {
        return a->driver->stage < b->driver->stage ? -1 : 1;
    }
    if (first_address(a) != first_address(b)) {
        return first_address(a) > first_address(b) ? -1 : 1;
    }
    return a->offset < b->offset ? -1 : 1;
}

static int inject_dma(struct device_node *node) {
    size_t bytes = node->driver->dma_bytes != NULL ? node->driver->dma_bytes(node) : 0;
    if (bytes == 0) {
        return 0;
    }
    struct io_buffer *buffer = calloc(1, sizeof *buffer);
    if (buffer == NULL) {
        return log_error(-ENOMEM, "%s: no memory for its IoBuffer", node->name);
    }
    int error = io_buffer_init(buffer, bytes, IO_BUFFER_ALIGN_DEFAULT);
    if (error) {
        free(buffer);
        return error;
    }
    node->dma_buffer = buffer;
    return 0;
}

static void release_dma(struct device_node *node) {
    if (node->dma_buffer != NULL) {
        io_buffer_release(node->dma_buffer);
        free(node->dma_buffer);
        node->dma_buffer = NULL;
    }
}

static int map_registers(const struct device_node *node) {
    for (unsigned i = 0; i < node->reg_count; i++) {
        int error = walls_map_device(node->regs[i]);
        if (error) {
            return log_error(error, "%s: its registers, %llu bytes at 0x%llx, cannot be mapped",
                             node->name, (unsigned long long)node->regs[i].length,
                             (unsigned long long)node->regs[i].start.value);
        }
    }
    return 0;
}

int device_bind(struct device_node *node) {
    int error = map_registers(node);
    if (!error) {
        (void)inject_dma(node); /* said in the log; a driver that needs it fails its probe */
        error = node->driver->probe(node);
    }
    if (error == 0) {
        node->state = DEVICE_BOUND;
        return 0;
    }
    release_dma(node);
    node->state = DEVICE_UNBOUND;
    if (error != -ENODEV) {
        log_warning("%s: not bound to %s, error %d", node->name, node->driver->name, error);
    }
    return error;
}

bool device_has_dma(const struct device_node *node, size_t bytes) {
    if (!io_buffer_is_valid(node->dma_buffer)) {
        return log_error(false, "%s: has no DMA memory, needs %zu bytes", node->name, bytes) != 0;
    }
    if (io_buffer_size(node->dma_buffer) < bytes) {
        return log_error(false, "%s: has %zu bytes of DMA memory, needs %zu", node->name,
                         io_buffer_size(node->dma_buffer), bytes) != 0;
    }
    return true;
}

void device_tree_read(const void *fdt, const struct driver *const *drivers) {
    ASSERT(node_count == 0);
    collect_nodes(fdt, drivers);
    /* Insertion sort: there are a dozen, and qsort would bring its own stack of surprises. */
    for (unsigned i = 1; i < node_count; i++) {
        struct device_node *device = nodes[i];
        unsigned at = i;
        for (; at > 0 && compare_nodes(device, nodes[at - 1]) < 0; at--) {
            nodes[at] = nodes[at - 1];
        }
        nodes[at] = device;
    }
}

unsigned device_tree_probe(enum driver_stage first, enum driver_stage last) {
    unsigned bound = 0;
    for (unsigned i = 0; i < node_count; i++) {
        enum driver_stage stage = nodes[i]->driver->stage;
        if (stage >= first && stage <= last) {
            bound += device_bind(nodes[i]) == 0;
        }
    }
    return bound;
}

#ifdef PLATTER_HOST
void device_tree_forget(void) {
    while (node_count > 0) {
        struct device_node *node = nodes[--node_count];
        release_dma(node);
        free(node);
    }
}
#endif
