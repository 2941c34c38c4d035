/* The scan of the device tree, injection of DMA memory, binding: core/dev/device_node.c. */
#include "core/dev/device_node.h"

#include <stdio.h>
#include <string.h>

#include "boot/host/host.h"
#include "core/dev/fwcfg.h"
#include "core/mem/heap.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

/* --- Drivers of the test --- */

static size_t dma_wanted;
static size_t dma_needed;
static int probe_result;
static unsigned probes;
static const char *probed[8];

static size_t dma_bytes(struct device_node *node) {
    (void)node;
    return dma_wanted;
}

static int probe(struct device_node *node) {
    if (probes < ARRAY_COUNT(probed)) {
        probed[probes] = node->name;
    }
    probes++;
    if (dma_needed != 0 && !device_has_dma(node, dma_needed)) {
        return -ENOMEM;
    }
    return strncmp(node->name, "bad", 3) == 0 ? -EIO : probe_result;
}

static const char *const device_words[] = {"test,device", "test,other", NULL};
static const char *const early_words[] = {"test,early", NULL};

static const struct driver device_driver = {.name = "device",
                                            .compatible = device_words,
                                            .stage = STAGE_DEVICE,
                                            .dma_bytes = dma_bytes,
                                            .probe = probe};
static const struct driver early_driver = {
    .name = "early", .compatible = early_words, .stage = STAGE_CONSOLE, .probe = probe};
static const struct driver *const drivers[] = {&device_driver, &early_driver, NULL};

static void set_up(void) {
    dma_wanted = 0;
    dma_needed = 0;
    probe_result = 0;
    probes = 0;
    tree_begin();
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_cells("interrupt-parent", 7);
    tree_node("controller");
    tree_cells("phandle", 7);
    tree_cells("#interrupt-cells", 2);
    tree_end();
}

/* A device below a parent with two cells each. */
static void begin_device(const char *name, uint32_t address) {
    tree_node(name);
    tree_text("compatible", "test,device");
    tree_cells("reg", 0, address, 0, 0x1000);
}

static void device(const char *name, uint32_t address) {
    begin_device(name, address);
    tree_end();
}

static const struct device_node *read_tree(void) {
    device_tree_read(tree_finish(), drivers);
    return device_node_at(0);
}

/* --- What the scan finds --- */

TEST(a_node_with_a_word_of_a_driver_is_found) {
    set_up();
    tree_node("a@1000");
    tree_bytes("compatible", "vendor,none\0test,other", sizeof "vendor,none\0test,other");
    tree_cells("reg", 0, 0x1000, 0, 0x200);
    tree_end();
    tree_node("b@2000");
    tree_text("compatible", "test,devices");
    tree_end();
    const struct device_node *node = read_tree();
    assert_non_null(node);
    assert_string_equal(node->name, "a@1000");
    assert_ptr_equal(node->driver, &device_driver);
    assert_int_equal(node->state, DEVICE_UNBOUND);
    assert_int_equal(node->reg_count, 1);
    assert_int_equal(node->regs[0].start.value, 0x1000);
    assert_int_equal(node->regs[0].length, 0x200);
    assert_null(node->dma_buffer);
    assert_null(device_node_at(1));
}

TEST(probing_goes_by_stage_then_from_the_highest_address_down) {
    set_up();
    device("low@1000", 0x1000);
    device("high@3000", 0x3000);
    device("middle@2000", 0x2000);
    tree_node("early@1");
    tree_text("compatible", "test,early");
    tree_end();
    (void)read_tree();
    assert_int_equal(device_tree_probe(STAGE_POWER, STAGE_CONSOLE), 1);
    assert_int_equal(device_tree_probe(STAGE_INTERRUPTS, STAGE_DEVICE), 3);
    assert_int_equal(probes, 4);
    assert_string_equal(probed[0], "early@1");
    assert_string_equal(probed[1], "high@3000");
    assert_string_equal(probed[2], "middle@2000");
    assert_string_equal(probed[3], "low@1000");
}

TEST(devices_at_one_address_are_probed_as_they_stand_in_the_tree) {
    static const char *const names[] = {"first", "second", "third"};
    set_up();
    for (unsigned i = 0; i < ARRAY_COUNT(names); i++) {
        tree_node(names[i]);
        tree_text("compatible", "test,device"); /* without registers */
        tree_end();
    }
    (void)read_tree();
    assert_int_equal(device_tree_probe(STAGE_POWER, STAGE_DEVICE), 3);
    for (unsigned i = 0; i < ARRAY_COUNT(names); i++) {
        assert_string_equal(probed[i], names[i]);
    }
}

TEST(registers_are_translated_through_every_bus) {
    set_up();
    tree_node("outer");
    tree_cells("#address-cells", 1);
    tree_cells("#size-cells", 1);
    tree_cells("ranges", 0, 0, 0x80000000, 0x1000, 0x100000, 1, 0x40000000, 0x100000);
    tree_node("inner");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 1);
    tree_cells("ranges", 0, 0x500, 0x100000, 0x2000);
    tree_node("deep@500");
    tree_text("compatible", "test,device");
    tree_cells("reg", 0, 0x600, 0x100);
    tree_end();
    tree_end();
    tree_end();
    const struct device_node *node = read_tree();
    assert_non_null(node);
    /* 0x600 is 0x100100 of the outer bus, which is 0x1_4000_0100 to the processor. */
    assert_int_equal(node->regs[0].start.value, UINT64_C(0x140000100));
    assert_int_equal(node->regs[0].length, 0x100);
}

TEST(an_empty_ranges_is_one_to_one_and_none_hides_the_device) {
    set_up();
    tree_node("open");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_empty("ranges");
    device("seen@1000", 0x1000);
    tree_end();
    tree_node("closed");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    device("hidden@2000", 0x2000);
    tree_end();
    assert_string_equal(read_tree()->name, "seen@1000");
    assert_null(device_node_at(1));
    assert_logged("fdt: hidden@2000 left alone: its reg makes no sense");
}

TEST(a_register_that_reaches_out_of_its_bus_is_refused) {
    static const uint32_t regs[][2] = {{0xf00, 0x100}, {0xf00, 0x101}, {0x1000, 1}, {0, 0x1001}};
    for (size_t i = 0; i < ARRAY_COUNT(regs); i++) {
        set_up();
        tree_node("bus");
        tree_cells("#address-cells", 1);
        tree_cells("#size-cells", 1);
        tree_cells("ranges", 0, 0, 0x80000000, 0x1000);
        tree_node("device");
        tree_text("compatible", "test,device");
        tree_cells("reg", regs[i][0], regs[i][1]);
        tree_end();
        tree_end();
        const struct device_node *node = read_tree();
        assert_int_equal(node != NULL, i == 0);
        device_tree_forget();
    }
}

TEST(a_reg_that_makes_no_sense_leaves_the_node_alone) {
    static const uint32_t regs[][4] = {
        {0, 0x1000, 0, 0},                 /* empty */
        {UINT32_MAX, 0x1000, 1, 0},        /* wraps */
        {0, 0x1002, 0, 0x1000},            /* not aligned */
        {0, 0, UINT32_MAX, UINT32_MAX - 1} /* good, if large: the last one */
    };
    for (size_t i = 0; i < ARRAY_COUNT(regs); i++) {
        set_up();
        tree_node("device");
        tree_text("compatible", "test,device");
        tree_cells("reg", regs[i][0], regs[i][1], regs[i][2], regs[i][3]);
        tree_end();
        assert_int_equal(read_tree() != NULL, i + 1 == ARRAY_COUNT(regs));
        device_tree_forget();
    }
    assert_logged("fdt: device left alone: its reg makes no sense");
}

TEST(cells_that_are_not_supported_leave_the_node_alone) {
    static const uint32_t cells[][2] = {{3, 1}, {0, 1}, {1, 3}, {1, 0}, {77, 1}};
    for (size_t i = 0; i < ARRAY_COUNT(cells); i++) {
        set_up();
        tree_node("bus");
        tree_cells("#address-cells", cells[i][0]);
        tree_cells("#size-cells", cells[i][1]);
        tree_empty("ranges");
        device("device", 0x1000);
        tree_end();
        assert_null(read_tree());
        device_tree_forget();
    }
}

TEST(of_a_reg_only_whole_entries_count_and_not_too_many) {
    set_up();
    tree_node("short");
    tree_text("compatible", "test,device");
    tree_cells("reg", 0, 0x9000, 0, 0x100, 0, 0x8000, 0);
    tree_end();
    tree_node("long");
    tree_text("compatible", "test,device");
    tree_cells("reg", 0, 0x1000, 0, 16, 0, 0x2000, 0, 16, 0, 0x3000, 0, 16, 0, 0x4000, 0, 16, 0,
               0x5000, 0, 16);
    tree_end();
    assert_string_equal(read_tree()->name, "short");
    assert_int_equal(device_node_at(0)->reg_count, 1);
    assert_int_equal(device_node_at(1)->reg_count, DEVICE_REGS_MAX);
    assert_int_equal(device_node_at(1)->regs[3].start.value, 0x4000);
}

TEST(a_disabled_node_is_left_alone) {
    static const char *const states[] = {"okay", "ok", "disabled", "reserved", "fail-sss"};
    for (size_t i = 0; i < ARRAY_COUNT(states); i++) {
        set_up();
        begin_device("device@1000", 0x1000);
        tree_text("status", states[i]);
        tree_end();
        assert_int_equal(read_tree() != NULL, i < 2);
        device_tree_forget();
    }
}

TEST(what_lies_below_a_disabled_node_is_left_alone) {
    set_up();
    tree_node("bus");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_empty("ranges");
    tree_text("status", "disabled");
    tree_node("inner");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_empty("ranges");
    device("hidden@1000", 0x1000);
    tree_end();
    tree_end();
    device("seen@2000", 0x2000);
    assert_string_equal(read_tree()->name, "seen@2000");
    assert_null(device_node_at(1));
}

TEST(more_devices_than_the_limit_are_named_and_left) {
    set_up();
    for (unsigned i = 0; i <= DEVICE_NODES_MAX; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "device@%x", (i + 1) * 0x1000);
        device(name, (i + 1) * 0x1000);
    }
    (void)read_tree();
    assert_non_null(device_node_at(DEVICE_NODES_MAX - 1));
    assert_null(device_node_at(DEVICE_NODES_MAX));
    assert_logged("fdt: device@81000 left alone: 128 devices are the limit");
}

TEST(a_tree_deeper_than_the_limit_harms_nobody) {
    set_up();
    for (unsigned i = 0; i < 3 * FDT_DEPTH_MAX; i++) {
        tree_node("level");
    }
    device("deep@1000", 0x1000);
    for (unsigned i = 0; i < 3 * FDT_DEPTH_MAX; i++) {
        tree_end();
    }
    device("flat@1000", 0x1000);
    assert_string_equal(read_tree()->name, "flat@1000");
    assert_null(device_node_at(1));
    assert_logged("fdt: nodes deeper than 16 levels are left alone");
}

TEST(a_node_without_memory_for_it_is_named_and_left) {
    set_up();
    device("first@2000", 0x2000);
    device("second@1000", 0x1000);
    const void *fdt = tree_finish();
    unit_allocations_until_failure(1);
    device_tree_read(fdt, drivers);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_non_null(device_node_at(0));
    assert_null(device_node_at(1));
    assert_logged("fdt: second@1000 left alone: no memory");
}

/* --- Interrupts --- */

TEST(the_interrupt_parent_is_inherited_or_its_own) {
    set_up();
    tree_node("other-controller");
    tree_cells("phandle", 8);
    tree_cells("#interrupt-cells", 1);
    tree_end();
    begin_device("heir@2000", 0x2000);
    tree_cells("interrupts", 33, 4);
    tree_end();
    begin_device("owner@1000", 0x1000);
    tree_cells("interrupt-parent", 8);
    tree_cells("interrupts", 5, 6);
    tree_end();
    (void)read_tree();
    const struct device_node *heir = device_node_at(0);
    const struct device_node *owner = device_node_at(1);
    assert_int_equal(heir->irq_parent, 7);
    assert_int_equal(heir->irq_cell_count, 2);
    assert_int_equal(heir->irq_cells[0], 33);
    assert_int_equal(heir->irq_cells[1], 4);
    assert_int_equal(owner->irq_parent, 8);
    assert_int_equal(owner->irq_cell_count, 1);
    assert_int_equal(owner->irq_cells[0], 5);
}

TEST(an_interrupt_that_makes_no_sense_is_none) {
    for (int kind = 0; kind < 6; kind++) {
        static const uint32_t counts[] = {0, IRQ_CELLS_MAX + 1, UINT32_MAX};
        set_up();
        tree_node("odd-controller");
        tree_cells("phandle", 9);
        if (kind < 3) {
            tree_cells("#interrupt-cells", counts[kind]);
        }
        tree_end();
        begin_device("device@1000", 0x1000);
        if (kind != 5) {
            tree_cells("interrupt-parent", kind == 4 ? 99 : 9);
        }
        tree_cells("interrupts", 33); /* to the inherited parent that is half an interrupt */
        tree_end();
        const struct device_node *node = read_tree();
        assert_non_null(node);
        assert_int_equal(node->irq_parent, 0);
        assert_int_equal(node->irq_cell_count, 0);
        device_tree_forget();
    }
}

/* --- Injection --- */

static size_t bytes_used(void) {
    struct heap_stats stats;
    heap_get_stats(&stats);
    return stats.bytes_used;
}

static struct device_node *one_device(size_t wanted, size_t needed) {
    set_up();
    device("device@1000", 0x1000);
    dma_wanted = wanted;
    dma_needed = needed;
    return (struct device_node *)(uintptr_t)read_tree();
}

TEST(a_driver_gets_the_io_buffer_it_asked_for) {
    struct device_node *node = one_device(10000, 10000);
    assert_int_equal(device_bind(node), 0);
    assert_int_equal(node->state, DEVICE_BOUND);
    assert_true(io_buffer_is_valid(node->dma_buffer));
    assert_int_equal(io_buffer_size(node->dma_buffer), 10000);
    assert_int_equal((uintptr_t)io_buffer_data(node->dma_buffer) % IO_BUFFER_ALIGN_DEFAULT, 0);
}

TEST(a_driver_that_asks_for_none_gets_none) {
    struct device_node *node = one_device(0, 0);
    assert_int_equal(device_bind(node), 0);
    assert_null(node->dma_buffer);
}

TEST(a_driver_without_its_buffer_stays_unbound) {
    struct device_node *node = one_device(0, 10000);
    assert_int_equal(device_bind(node), -ENOMEM);
    assert_int_equal(node->state, DEVICE_UNBOUND);
    assert_logged("device@1000: has no DMA memory, needs 10000 bytes");
    assert_logged("device@1000: not bound to device, error -12");
}

TEST(an_invalid_buffer_is_as_good_as_none) {
    static struct io_buffer empty;
    struct device_node *node = one_device(0, 10000);
    node->dma_buffer = &empty;
    assert_false(device_has_dma(node, 1));
    assert_logged("device@1000: has no DMA memory");
    node->dma_buffer = NULL;
}

TEST(a_buffer_is_enough_at_the_size_needed_and_not_below) {
    struct device_node *node = one_device(9999, 10000);
    size_t before = bytes_used();
    size_t count = io_buffer_count();
    assert_int_equal(device_bind(node), -ENOMEM);
    assert_int_equal(node->state, DEVICE_UNBOUND);
    assert_null(node->dma_buffer);
    assert_logged("device@1000: has 9999 bytes of DMA memory, needs 10000");
    assert_int_equal(bytes_used(), before);
    assert_int_equal(io_buffer_count(), count);
    dma_wanted = 10000;
    assert_int_equal(device_bind(node), 0);
}

TEST(a_driver_for_which_no_memory_is_left_stays_unbound) {
    struct device_node *node = one_device(2 * UNIT_HEAP_BYTES, 1000);
    assert_int_equal(device_bind(node), -ENOMEM);
    assert_int_equal(node->state, DEVICE_UNBOUND);
    assert_null(node->dma_buffer);
    dma_wanted = 1000;
    unit_allocations_until_failure(0);
    assert_int_equal(device_bind(node), -ENOMEM);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_logged("device@1000: no memory for its IoBuffer");
}

TEST(a_probe_that_fails_gives_its_memory_back) {
    struct device_node *node = one_device(10000, 10000);
    size_t before = bytes_used();
    probe_result = -EIO;
    assert_int_equal(device_bind(node), -EIO);
    assert_int_equal(node->state, DEVICE_UNBOUND);
    assert_null(node->dma_buffer);
    assert_int_equal(bytes_used(), before);
    assert_logged("device@1000: not bound to device, error -5");
}

TEST(nothing_behind_a_node_is_no_word_in_the_log) {
    struct device_node *node = one_device(10000, 10000);
    size_t before = bytes_used();
    probe_result = -ENODEV;
    assert_int_equal(device_bind(node), -ENODEV);
    assert_int_equal(bytes_used(), before);
    assert_string_equal(unit_log(), "");
}

TEST(one_that_fails_does_not_keep_the_rest_from_service) {
    set_up();
    device("good@3000", 0x3000);
    device("bad@2000", 0x2000);
    device("good@1000", 0x1000);
    dma_wanted = 5000;
    dma_needed = 5000;
    (void)read_tree();
    assert_int_equal(device_tree_probe(STAGE_POWER, STAGE_DEVICE), 2);
    assert_int_equal(device_node_at(0)->state, DEVICE_BOUND);
    assert_int_equal(device_node_at(1)->state, DEVICE_UNBOUND);
    assert_int_equal(device_node_at(2)->state, DEVICE_BOUND);
    assert_int_equal(io_buffer_count(), 2);
}

TEST(a_tree_is_read_once) {
    const void *fdt = one_device(0, 0)->fdt;
    assert_panics("node_count == 0", device_tree_read(fdt, drivers));
}

/* --- What a driver finds at its address --- */

static uint32_t silent_read(const struct mmio *mmio, size_t offset, unsigned bytes) {
    (void)mmio;
    (void)offset;
    (void)bytes;
    return 0;
}

static void silent_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value) {
    (void)mmio;
    (void)offset;
    (void)bytes;
    (void)value;
}

TEST(a_firmware_interface_without_its_signature_is_not_used) {
    char file[16];
    struct device_node node = {.name = "fw-cfg", .driver = &fwcfg_driver, .reg_count = 1};
    node.regs[0] = (struct phys_range){phys_addr(0x10100000), 24};
    host_set_mmio(silent_read, silent_write);
    assert_int_equal(fwcfg_driver.probe(&node), -ENXIO);
    node.regs[0].length = 9; /* no room for all its registers */
    assert_int_equal(fwcfg_driver.probe(&node), -EINVAL);
    node.reg_count = 0;
    assert_int_equal(fwcfg_driver.probe(&node), -EINVAL);
    assert_int_equal(fwcfg_read_file("opt/file", file, sizeof file), -ENOENT);
    host_set_mmio(NULL, NULL);
    assert_logged("fw-cfg: no QEMU signature");
}
