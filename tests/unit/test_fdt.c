/* The device tree's global facts, and that nothing in it is believed: core/dev/fdt.c. */
#include "core/dev/fdt.h"

#include <libfdt.h>
#include <stdlib.h>
#include <string.h>

#include "core/dev/device_node.h"
#include "tests/unit/tree.h"
#include "tests/unit/unit.h"

static struct memory_map map;

static void begin_root(uint32_t address_cells, uint32_t size_cells) {
    tree_begin();
    tree_cells("#address-cells", address_cells);
    tree_cells("#size-cells", size_cells);
}

static void memory_node(const char *name, uint32_t start, uint32_t length) {
    tree_node(name);
    tree_text("device_type", "memory");
    tree_cells("reg", 0, start, 0, length);
    tree_end();
}

static void expect_range(unsigned index, uint64_t start, uint64_t length) {
    assert_true(index < map.count);
    assert_int_equal(map.ranges[index].start.value, start);
    assert_int_equal(map.ranges[index].length, length);
}

/* --- Memory --- */

TEST(memory_is_what_all_memory_nodes_say) {
    begin_root(2, 2);
    memory_node("memory@80000000", 0x80000000, 0x8000000);
    tree_node("memory@100000000");
    tree_text("device_type", "memory");
    tree_cells("reg", 1, 0, 2, 0, 0, 0x1000, 0, 0x1000);
    tree_end();
    const void *fdt = tree_finish();
    assert_int_equal(fdt_check(fdt), 0);
    assert_int_equal(fdt_read_memory(fdt, &map), 0);
    assert_int_equal(map.count, 3);
    expect_range(0, 0x1000, 0x1000);
    expect_range(1, 0x80000000, 0x8000000);
    expect_range(2, UINT64_C(0x100000000), UINT64_C(0x200000000));
}

TEST(addresses_of_one_cell_are_read_too) {
    begin_root(1, 1);
    tree_node("memory@80000000");
    tree_text("device_type", "memory");
    tree_cells("reg", 0x80000000, 0x8000000);
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), 0);
    expect_range(0, 0x80000000, 0x8000000);
}

TEST(reserved_memory_is_taken_out) {
    tree_begin_reserving(0x80010000, 0x1000);
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    memory_node("memory@80000000", 0x80000000, 0x8000000);
    tree_node("reserved-memory");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_empty("ranges");
    tree_node("firmware@80000000");
    tree_cells("reg", 0, 0x80000000, 0, 0x2000);
    tree_end();
    tree_node("dynamic"); /* a size only: nothing is reserved yet */
    tree_cells("size", 0, 0x1000);
    tree_end();
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), 0);
    assert_int_equal(map.count, 2);
    expect_range(0, 0x80002000, 0xe000);
    expect_range(1, 0x80011000, 0x7fef000);
}

TEST(the_tree_itself_is_taken_out) {
    begin_root(2, 2);
    uint64_t around = (uint64_t)(uintptr_t)tree_finish(); /* where it is going to be again */
    begin_root(2, 2);
    tree_node("memory");
    tree_text("device_type", "memory");
    tree_cells("reg", (uint32_t)(around >> 32), (uint32_t)around, 0, 0x100000);
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), 0);
    assert_int_equal(map.count, 1);
    expect_range(0, around + tree_size(), 0x100000 - tree_size());
}

TEST(a_tree_without_memory_is_refused) {
    begin_root(2, 2);
    tree_node("memory@80000000"); /* no device_type */
    tree_cells("reg", 0, 0x80000000, 0, 0x8000000);
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
    assert_logged("fdt: no memory node has a range");
}

TEST(a_reg_shorter_than_one_entry_is_no_range) {
    begin_root(2, 2);
    tree_node("memory@80000000");
    tree_text("device_type", "memory");
    tree_cells("reg", 0, 0x80000000, 0);
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
}

TEST(a_range_that_wraps_is_refused_by_name) {
    begin_root(2, 2);
    tree_node("memory@f");
    tree_text("device_type", "memory");
    tree_cells("reg", UINT32_MAX, 0, 1, 0);
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
    assert_logged("fdt: memory@f: range 0xffffffff00000000 + 0x100000000 refused");
}

TEST(a_reservation_that_wraps_is_refused_by_number) {
    tree_begin_reserving(UINT64_MAX - 0xfff, 0x2000);
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    memory_node("memory@80000000", 0x80000000, 0x8000000);
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
    assert_logged("fdt: memory reservation 0 refused");
}

TEST(a_reserved_node_that_wraps_is_refused_by_name) {
    begin_root(2, 2);
    memory_node("memory@80000000", 0x80000000, 0x8000000);
    tree_node("reserved-memory");
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_empty("ranges");
    tree_node("firmware@f");
    tree_cells("reg", UINT32_MAX, 0, 1, 0);
    tree_end();
    tree_end();
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
    assert_logged("fdt: firmware@f: range 0xffffffff00000000 + 0x100000000 refused");
}

TEST(cells_that_are_not_supported_are_refused_by_name) {
    static const uint32_t cells[][2] = {{3, 2}, {0, 2}, {2, 3}, {2, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(cells); i++) {
        begin_root(cells[i][0], cells[i][1]);
        memory_node("memory@80000000", 0x80000000, 0x8000000);
        unit_log_clear();
        assert_int_equal(fdt_read_memory(tree_finish(), &map), -EINVAL);
        assert_logged("fdt: memory@80000000: ");
        assert_logged("size cells are not supported");
    }
}

TEST(more_ranges_than_the_map_holds_are_refused) {
    begin_root(2, 2);
    for (unsigned i = 0; i <= MEMORY_RANGES_MAX; i++) {
        char name[] = "memory@xx";
        name[7] = (char)('a' + i / 16);
        name[8] = (char)('a' + i % 16);
        memory_node(name, 0x10000 * (i + 1), 0x1000);
    }
    assert_int_equal(fdt_read_memory(tree_finish(), &map), -ENOSPC);
    assert_logged("refused");
}

/* --- Words and numbers --- */

TEST(the_timebase_stands_at_the_cpus_or_at_the_first_cpu) {
    begin_root(2, 2);
    assert_int_equal(fdt_timebase_hz(tree_finish()), 0);
    begin_root(2, 2);
    tree_node("cpus");
    tree_cells("timebase-frequency", 10000000);
    tree_end();
    assert_int_equal(fdt_timebase_hz(tree_finish()), 10000000);
    begin_root(2, 2);
    tree_node("cpus");
    tree_node("cpu@0");
    tree_cells("timebase-frequency", 1000000);
    tree_end();
    tree_end();
    assert_int_equal(fdt_timebase_hz(tree_finish()), 1000000);
    begin_root(2, 2);
    tree_node("cpus");
    tree_cells("timebase-frequency", 0, 10000000);
    tree_end();
    assert_int_equal(fdt_timebase_hz(tree_finish()), 0);
}

static const void *chosen(const char *property, const void *bytes, size_t length) {
    tree_begin();
    tree_node("aliases");
    tree_text("serial0", "/uart");
    tree_end();
    tree_node("chosen");
    tree_bytes(property, bytes, length);
    tree_end();
    tree_node("uart");
    tree_end();
    return tree_finish();
}

TEST(the_command_line_is_a_whole_string_or_empty) {
    assert_string_equal(fdt_command_line(chosen("bootargs", "log=debug", 10)), "log=debug");
    assert_string_equal(fdt_command_line(chosen("bootargs", "log=debug", 9)), "");
    assert_string_equal(fdt_command_line(chosen("bootargs", "", 0)), "");
    assert_string_equal(fdt_command_line(chosen("other", "x", 2)), "");
    tree_begin();
    assert_string_equal(fdt_command_line(tree_finish()), "");
}

TEST(the_console_is_a_path_or_an_alias_with_options) {
    static const char *const paths[] = {"/uart", "/uart:115200", "serial0", "serial0:115200n8"};
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        const void *fdt = chosen("stdout-path", paths[i], strlen(paths[i]) + 1);
        assert_int_equal(fdt_stdout_node(fdt), fdt_path_offset(fdt, "/uart"));
        assert_true(fdt_stdout_node(fdt) > 0);
    }
    assert_true(fdt_stdout_node(chosen("stdout-path", "/uart", 5)) < 0);
    assert_true(fdt_stdout_node(chosen("stdout-path", "", 1)) < 0);
    assert_true(fdt_stdout_node(chosen("stdout-path", "/none", 6)) < 0);
    assert_true(fdt_stdout_node(chosen("other", "", 0)) < 0);
}

/* --- Trees that are none --- */

static const void *whole_tree(void) {
    tree_begin_reserving(0x80010000, 0x1000);
    tree_cells("#address-cells", 2);
    tree_cells("#size-cells", 2);
    tree_cells("interrupt-parent", 1);
    memory_node("memory@80000000", 0x80000000, 0x8000000);
    tree_node("chosen");
    tree_text("bootargs", "log=debug");
    tree_text("stdout-path", "/soc/device@1000");
    tree_end();
    tree_node("reserved-memory");
    tree_node("firmware@80000000");
    tree_cells("reg", 0, 0x80000000, 0, 0x2000);
    tree_end();
    tree_end();
    tree_node("cpus");
    tree_cells("timebase-frequency", 10000000);
    tree_end();
    tree_node("soc");
    tree_cells("#address-cells", 1);
    tree_cells("#size-cells", 1);
    tree_cells("ranges", 0, 0, 0x10000000, 0x10000);
    tree_node("device@1000");
    tree_text("compatible", "test,device");
    tree_cells("reg", 0x1000, 0x100);
    tree_cells("interrupts", 5);
    tree_end();
    tree_node("interrupts@2000");
    tree_cells("phandle", 1);
    tree_cells("#interrupt-cells", 1);
    tree_end();
    tree_end();
    return tree_finish();
}

TEST(nothing_and_what_is_not_aligned_is_no_tree) {
    const char *fdt = whole_tree();
    assert_int_equal(fdt_check(NULL), -EINVAL);
    assert_int_equal(fdt_check(fdt + 4), -EINVAL);
    assert_logged("fdt: no device tree at");
    assert_int_equal(fdt_check(fdt), 0);
}

TEST(a_tree_whose_blocks_are_not_aligned_is_refused) {
    uint8_t *fdt = (uint8_t *)(uintptr_t)whole_tree();
    uint32_t structure = fdt_off_dt_struct(fdt);
    fdt_set_off_dt_struct(fdt, structure + 1);
    assert_int_equal(fdt_check(fdt), -EINVAL);
    fdt_set_off_dt_struct(fdt, structure);
    assert_int_equal(fdt_check(fdt), 0);
    fdt_set_off_mem_rsvmap(fdt, fdt_off_mem_rsvmap(fdt) + 4);
    assert_int_equal(fdt_check(fdt), -EINVAL);
    assert_logged("are not aligned");
}

TEST(a_tree_larger_than_the_limit_is_refused) {
    uint8_t *fdt = (uint8_t *)(uintptr_t)whole_tree();
    fdt_set_totalsize(fdt, FDT_BYTES_MAX + 1);
    assert_int_equal(fdt_check(fdt), -EINVAL);
    assert_logged("fdt: 1048577 bytes refused, the limit is 1048576");
}

static const char *const test_compatible[] = {"test,device", NULL};

static int no_probe(struct device_node *node) {
    (void)node;
    return 0;
}

static const struct driver test_driver = {
    .name = "test", .compatible = test_compatible, .stage = STAGE_DEVICE, .probe = no_probe};
static const struct driver *const test_drivers[] = {&test_driver, NULL};

/* Everything that start-up asks of a tree. Must come back, whatever the answers. */
static void read_everything(const void *fdt) {
    (void)fdt_timebase_hz(fdt);
    (void)strlen(fdt_command_line(fdt));
    (void)fdt_stdout_node(fdt);
    (void)fdt_read_memory(fdt, &map);
    device_tree_read(fdt, test_drivers);
    (void)device_tree_probe(STAGE_POWER, STAGE_DEVICE);
    device_tree_forget();
    unit_log_clear();
}

/* In memory that ends where the tree does: the sanitizer sees any step beyond. */
static void check_copy(const void *tree, size_t bytes) {
    void *copy = aligned_alloc(8, (bytes + 7) & ~(size_t)7);
    memcpy(copy, tree, bytes);
    if (fdt_check(copy) == 0) {
        read_everything(copy);
    }
    free(copy);
}

TEST(a_tree_cut_short_anywhere_is_refused) {
    static uint8_t cut[65536] __attribute__((aligned(8)));
    const void *fdt = whole_tree();
    size_t bytes = tree_size();
    for (size_t length = sizeof(struct fdt_header); length < bytes; length += 8) {
        memcpy(cut, fdt, length);
        fdt_set_totalsize(cut, (uint32_t)length);
        assert_int_equal(fdt_check(cut), -EINVAL);
        check_copy(cut, length);
    }
}

TEST(a_tree_corrupted_anywhere_harms_nobody) {
    static uint8_t corrupted[65536];
    const void *fdt = whole_tree();
    size_t bytes = tree_size();
    for (int round = 0; round < 20000; round++) {
        memcpy(corrupted, fdt, bytes);
        for (uint64_t changes = 1 + unit_random_below(3); changes > 0; changes--) {
            size_t at = unit_random_below(bytes);
            /* The total size is believed as far as the limit: the firmware's copy ends nowhere. */
            if (at < 4 || at >= 8) {
                static const uint8_t values[] = {0, 1, 2, 3, 4, 9, 0x7f, 0x80, 0xff};
                corrupted[at] = values[unit_random_below(ARRAY_COUNT(values))];
            }
        }
        check_copy(corrupted, bytes);
    }
}
