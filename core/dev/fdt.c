/* Reading the device tree's global facts. See fdt.h; devices are in device_node.c. */
#include "core/dev/fdt.h"

#include <errno.h>
#include <libfdt.h>
#include <string.h>

#include "core/log.h"

int fdt_check(const void *blob) {
    if (blob == NULL || ((uintptr_t)blob & 7) != 0) {
        return log_error(-EINVAL, "fdt: no device tree at %p", blob);
    }
    int error = fdt_check_header(blob);
    if (error != 0) {
        return log_error(-EINVAL, "fdt: header refused: %s", fdt_strerror(error));
    }
    /* Devicetree specification 0.4, 5.6; libfdt reads whole cells there without asking. */
    if (fdt_off_dt_struct(blob) % 4 != 0 || fdt_off_mem_rsvmap(blob) % 8 != 0) {
        return log_error(-EINVAL, "fdt: header refused: blocks at 0x%x and 0x%x are not aligned",
                         (unsigned)fdt_off_dt_struct(blob), (unsigned)fdt_off_mem_rsvmap(blob));
    }
    uint32_t bytes = fdt_totalsize(blob);
    if (bytes > FDT_BYTES_MAX) {
        return log_error(-EINVAL, "fdt: %u bytes refused, the limit is %u", (unsigned)bytes,
                         (unsigned)FDT_BYTES_MAX);
    }
    error = fdt_check_full(blob, bytes);
    if (error != 0) {
        return log_error(-EINVAL, "fdt: structure refused: %s", fdt_strerror(error));
    }
    return 0;
}

uint64_t fdt_bytes(const void *fdt) {
    return fdt_totalsize(fdt);
}

uint64_t fdt_cells(const void *property, unsigned cells) {
    const fdt32_t *cell = property;
    uint64_t value = 0;
    for (unsigned i = 0; i < cells; i++) {
        value = value << 32 | fdt32_ld(&cell[i]);
    }
    return value;
}

bool fdt_read_u32(const void *fdt, int node, const char *name, uint32_t *value) {
    int length = 0;
    const void *property = fdt_getprop(fdt, node, name, &length);
    if (property == NULL || length != 4) {
        return false;
    }
    *value = (uint32_t)fdt_cells(property, 1);
    return true;
}

/* Calls `use` for each (address, size) of the node's `reg`, whose parent is `parent`. */
static int for_each_reg(const void *fdt, int node, int parent, struct memory_map *map,
                        int (*use)(struct memory_map *map, struct phys_range range)) {
    int address_cells = fdt_address_cells(fdt, parent);
    int size_cells = fdt_size_cells(fdt, parent);
    int length = 0;
    const char *reg = fdt_getprop(fdt, node, "reg", &length);
    if (reg == NULL) {
        return 0;
    }
    if (address_cells < 1 || address_cells > 2 || size_cells < 1 || size_cells > 2) {
        return log_error(-EINVAL, "fdt: %s: %d address and %d size cells are not supported",
                         fdt_get_name(fdt, node, NULL), address_cells, size_cells);
    }
    int entry = 4 * (address_cells + size_cells);
    for (int at = 0; at + entry <= length; at += entry) {
        struct phys_range range = {
            phys_addr(fdt_cells(reg + at, (unsigned)address_cells)),
            fdt_cells(reg + at + 4 * (ptrdiff_t)address_cells, (unsigned)size_cells)};
        if (range.length == 0) {
            continue;
        }
        int error = use(map, range);
        if (error) {
            return log_error(error, "fdt: %s: range 0x%llx + 0x%llx refused",
                             fdt_get_name(fdt, node, NULL), (unsigned long long)range.start.value,
                             (unsigned long long)range.length);
        }
    }
    return 0;
}

static int add_memory_nodes(const void *fdt, struct memory_map *map) {
    int node;
    fdt_for_each_subnode(node, fdt, 0) {
        int length = 0;
        const char *type = fdt_getprop(fdt, node, "device_type", &length);
        if (type == NULL || length != sizeof "memory" ||
            memcmp(type, "memory", sizeof "memory") != 0) {
            continue;
        }
        int error = for_each_reg(fdt, node, 0, map, memory_map_add);
        if (error) {
            return error;
        }
    }
    return map->count != 0 ? 0 : log_error(-EINVAL, "fdt: no memory node has a range");
}

static int reserve_nodes(const void *fdt, struct memory_map *map) {
    int parent = fdt_path_offset(fdt, "/reserved-memory");
    if (parent < 0) {
        return 0;
    }
    int node;
    fdt_for_each_subnode(node, fdt, parent) {
        int error = for_each_reg(fdt, node, parent, map, memory_map_reserve);
        if (error) {
            return error;
        }
    }
    return 0;
}

static int reserve_block(const void *fdt, struct memory_map *map) {
    int count = fdt_num_mem_rsv(fdt);
    for (int i = 0; i < count; i++) {
        uint64_t start = 0;
        uint64_t length = 0;
        int error = fdt_get_mem_rsv(fdt, i, &start, &length) == 0
                        ? memory_map_reserve(map, (struct phys_range){phys_addr(start), length})
                        : -EINVAL;
        if (error) {
            return log_error(error, "fdt: memory reservation %d refused", i);
        }
    }
    return 0;
}

int fdt_read_memory(const void *fdt, struct memory_map *map) {
    *map = (struct memory_map){0};
    int error = add_memory_nodes(fdt, map);
    if (!error) {
        error = reserve_nodes(fdt, map);
    }
    if (!error) {
        error = reserve_block(fdt, map);
    }
    if (!error) {
        error = memory_map_reserve(map, (struct phys_range){phys_of(fdt), fdt_totalsize(fdt)});
    }
    return error;
}

uint64_t fdt_timebase_hz(const void *fdt) {
    int cpus = fdt_path_offset(fdt, "/cpus");
    uint32_t hz = 0;
    if (cpus < 0 || fdt_read_u32(fdt, cpus, "timebase-frequency", &hz)) {
        return hz;
    }
    int cpu;
    fdt_for_each_subnode(cpu, fdt, cpus) {
        if (fdt_read_u32(fdt, cpu, "timebase-frequency", &hz)) {
            return hz;
        }
    }
    return 0;
}

const char *fdt_command_line(const void *fdt) {
    int chosen = fdt_path_offset(fdt, "/chosen");
    int length = 0;
    const char *text = chosen >= 0 ? fdt_getprop(fdt, chosen, "bootargs", &length) : NULL;
    return text != NULL && length > 0 && text[length - 1] == '\0' ? text : "";
}

int fdt_stdout_node(const void *fdt) {
    int chosen = fdt_path_offset(fdt, "/chosen");
    int length = 0;
    const char *path = chosen >= 0 ? fdt_getprop(fdt, chosen, "stdout-path", &length) : NULL;
    if (path == NULL || length < 2 || path[length - 1] != '\0') {
        return -ENOENT;
    }
    return fdt_path_offset_namelen(fdt, path, (int)strcspn(path, ":"));
}
