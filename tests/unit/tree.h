/* Device trees for tests, written with libfdt's sequential functions:
 *
 *     tree_begin();
 *     tree_cells("#address-cells", 2);
 *     tree_node("memory@80000000");
 *     tree_text("device_type", "memory");
 *     tree_cells("reg", 0, 0x80000000, 0, 0x100000);
 *     tree_end();
 *     const void *fdt = tree_finish();
 */
#ifndef TESTS_UNIT_TREE_H
#define TESTS_UNIT_TREE_H

#include <stddef.h>
#include <stdint.h>

/* Opens the root node. */
void tree_begin(void);
/* The same, after one entry of the memory reservation block. */
void tree_begin_reserving(uint64_t start, uint64_t length);
void tree_node(const char *name);
void tree_end(void);
void tree_text(const char *name, const char *text);
void tree_bytes(const char *name, const void *bytes, size_t length);
void tree_empty(const char *name);
void tree_put_cells(const char *name, const uint32_t *cells, size_t count);
#define tree_cells(name, ...)                                                                      \
    tree_put_cells((name), (const uint32_t[]){__VA_ARGS__},                                        \
                   sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* Closes the root node. The tree stays until the next tree_begin. */
const void *tree_finish(void);
size_t tree_size(void);

#endif
