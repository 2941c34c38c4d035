/* The device tree: the whole way from the firmware's blob to devices with their registers, as
 * core/start.c goes it. The input is the blob. */
#include <stdlib.h>
#include <string.h>

#include "config/limits.h"
#include "core/config.h"
#include "core/dev/device_node.h"
#include "core/dev/fdt.h"
#include "tests/fuzz/fuzz.h"

enum { HEADER_BYTES = 40, AT_TOTAL = 4, HEAP_BYTES = 4 * 1024 * 1024 };

static size_t dma_bytes(struct device_node *node) {
    return node->reg_count > 0 ? (size_t)(node->regs[0].length % 65536) : 0;
}

static int probe(struct device_node *node) {
    FUZZ_CHECK(node->reg_count <= DEVICE_REGS_MAX && node->irq_cell_count <= IRQ_CELLS_MAX);
    FUZZ_CHECK(strnlen(node->name, FDT_BYTES_MAX) < FDT_BYTES_MAX);
    for (unsigned i = 0; i < node->reg_count; i++) {
        FUZZ_CHECK(node->regs[i].length <= UINT64_MAX - node->regs[i].start.value);
    }
    uint32_t value = 0;
    (void)fdt_read_u32(node->fdt, node->offset, "clock-frequency", &value); /* any answer will do */
    size_t wanted = dma_bytes(node);
    if (wanted > 0 && node->dma_buffer != NULL) {
        FUZZ_CHECK(io_buffer_size(node->dma_buffer) == wanted);
        memset(io_buffer_data(node->dma_buffer), 0x55, wanted);
    }
    return node->reg_count % 2 == 0 ? 0 : -1; /* both ways of going on */
}

static const char *const power_words[] = {"sifive,test0", "syscon", NULL};
static const char *const device_words[] = {"virtio,mmio", "ns16550a", "riscv,plic0", "test", NULL};
static const struct driver power_driver = {
    .name = "power", .compatible = power_words, .stage = STAGE_POWER, .probe = probe};
static const struct driver device_driver = {.name = "device",
                                            .compatible = device_words,
                                            .stage = STAGE_DEVICE,
                                            .dma_bytes = dma_bytes,
                                            .probe = probe};
static const struct driver *const drivers[] = {&power_driver, &device_driver, NULL};

static void check_memory(const void *fdt) {
    struct memory_map map = {.count = 0};
    if (fdt_read_memory(fdt, &map) != 0) {
        return;
    }
    struct phys_range tree = {phys_of(fdt), fdt_bytes(fdt)};
    uint64_t end = 0;
    FUZZ_CHECK(map.count <= MEMORY_RANGES_MAX);
    for (unsigned i = 0; i < map.count; i++) {
        const struct phys_range *range = &map.ranges[i];
        FUZZ_CHECK(range->length > 0 && range->start.value >= end);
        FUZZ_CHECK(range->length <= UINT64_MAX - range->start.value);
        end = range->start.value + range->length;
        FUZZ_CHECK(end <= tree.start.value || range->start.value >= tree.start.value + tree.length);
    }
}

static void read_tree(const void *fdt) {
    FUZZ_CHECK(fdt_bytes(fdt) <= FDT_BYTES_MAX);
    check_memory(fdt);
    (void)fdt_timebase_hz(fdt);
    (void)fdt_stdout_node(fdt);
    const char *words = fdt_command_line(fdt);
    FUZZ_CHECK(strnlen(words, FDT_BYTES_MAX) < FDT_BYTES_MAX);
    (void)config_parse(words); /* too long is refused */
    device_tree_read(fdt, drivers);
    unsigned count = 0;
    while (device_node_at(count) != NULL) {
        count++;
    }
    FUZZ_CHECK(count <= DEVICE_NODES_MAX);
    FUZZ_CHECK(device_tree_probe(STAGE_POWER, STAGE_DEVICE) <= count);
}

/* As much memory as the tree says that it has, and not a byte more: what lies behind it is not the
 * tree's. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t total = size > HEADER_BYTES ? size : HEADER_BYTES;
    if (size >= AT_TOTAL + 4) {
        uint32_t said =
            (uint32_t)data[4] << 24 | (uint32_t)data[5] << 16 | (uint32_t)data[6] << 8 | data[7];
        total = said >= HEADER_BYTES && said <= FDT_BYTES_MAX ? said : total;
    }
    uint8_t *blob = calloc(1, total);
    FUZZ_CHECK(blob != NULL);
    memcpy(blob, data, size < total ? size : total);
    fuzz_begin();
    fuzz_forget();
    fuzz_heap(HEAP_BYTES);
    if (fdt_check(blob) == 0) {
        read_tree(blob);
    }
    fuzz_forget(); /* the nodes point into the blob */
    free(blob);
    return 0;
}
