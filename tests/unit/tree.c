/* Device trees for tests. See tree.h. */
#include "tests/unit/tree.h"

#include <libfdt.h>
#include <string.h>

#include "tests/unit/unit.h"

enum { CELLS_MAX = 64 };

static uint8_t blob[256 * 1024] __attribute__((aligned(8)));

void tree_begin_reserving(uint64_t start, uint64_t length) {
    assert_int_equal(fdt_create(blob, sizeof blob), 0);
    if (length != 0) {
        assert_int_equal(fdt_add_reservemap_entry(blob, start, length), 0);
    }
    assert_int_equal(fdt_finish_reservemap(blob), 0);
    assert_int_equal(fdt_begin_node(blob, ""), 0);
}

void tree_begin(void) {
    tree_begin_reserving(0, 0);
}

void tree_node(const char *name) {
    assert_int_equal(fdt_begin_node(blob, name), 0);
}

void tree_end(void) {
    assert_int_equal(fdt_end_node(blob), 0);
}

void tree_bytes(const char *name, const void *bytes, size_t length) {
    assert_int_equal(fdt_property(blob, name, bytes, (int)length), 0);
}

void tree_put_cells(const char *name, const uint32_t *cells, size_t count) {
    fdt32_t wire[CELLS_MAX];
    assert_true(count <= CELLS_MAX);
    for (size_t i = 0; i < count; i++) {
        wire[i] = cpu_to_fdt32(cells[i]);
    }
    tree_bytes(name, wire, count * sizeof wire[0]);
}

void tree_text(const char *name, const char *text) {
    tree_bytes(name, text, strlen(text) + 1);
}

void tree_empty(const char *name) {
    tree_bytes(name, "", 0);
}

const void *tree_finish(void) {
    tree_end();
    assert_int_equal(fdt_finish(blob), 0);
    return blob;
}

size_t tree_size(void) {
    return fdt_totalsize(blob);
}
