/* The layout of the address space. See walls.h. */
#include "core/mem/walls.h"

#include <errno.h>
#include <stdlib.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/pages.h"
#include "core/panic.h"

/* Devices that are looked at page by page: larger ones have their pages to themselves. */
#define SHARED_DEVICE_BYTES_MAX (64 * PAGE_BYTES)

static struct page_tables tables;
static bool is_built;
static size_t guards;

static void *frame_take(void) {
    return heap_alloc_aligned(PAGE_BYTES, PAGE_BYTES);
}

static const struct page_frames frames = {frame_take, heap_free};

/* Whole pages around [start, end). */
static int map_memory(uint64_t start, uint64_t end, unsigned access) {
    start = align_down(start, PAGE_BYTES);
    if (!align_up_fits(end, PAGE_BYTES, &end)) {
        return -EFAULT;
    }
    return pages_map(&tables, start, phys_addr(start), end - start, access);
}

static int map_section(const char *start, const char *end, unsigned access) {
    return map_memory((uintptr_t)start, (uintptr_t)end, access);
}

static int map_everything(const struct phys_range *heap, unsigned count,
                          struct phys_range device_tree) {
    int error = map_section(text_start, text_end, PAGE_READ | PAGE_EXECUTE);
    if (!error) {
        error = map_section(rodata_start, rodata_end, PAGE_READ);
    }
    if (!error) {
        error = map_section(data_start, image_end, PAGE_READ | PAGE_WRITE);
    }
    for (unsigned i = 0; i < count && !error; i++) {
        error = map_memory(heap[i].start.value, phys_range_end(heap[i]), PAGE_READ | PAGE_WRITE);
    }
    if (!error) {
        error = map_memory(device_tree.start.value, phys_range_end(device_tree), PAGE_READ);
    }
    return error;
}

int walls_build(const struct phys_range *heap, unsigned count, struct phys_range device_tree) {
    ASSERT(!is_built);
    uint64_t end = phys_range_end(device_tree);
    for (unsigned i = 0; i < count; i++) {
        end = phys_range_end(heap[i]) > end ? phys_range_end(heap[i]) : end;
    }
    int error = pages_init(&tables, arch_page_levels(end), &frames);
    if (!error) {
        error = map_everything(heap, count, device_tree);
        if (!error) {
            error = arch_pages_use(phys_of(tables.root), tables.levels);
        }
        if (error) {
            pages_release(&tables);
        }
    }
    if (error) {
        return log_error(error, "memory: no page tables of %u levels (error %d)", tables.levels,
                         error);
    }
    is_built = true;
    if (walls_put_guard(boot_stack_guard) != 0 || walls_put_guard(fault_stack_guard) != 0) {
        panic("memory: no page for the tables of two guards");
    }
    return 0;
}

/* Small devices share a page: one that is a device's already is left as it is. */
static int map_device_pages(uint64_t start, uint64_t end, unsigned access) {
    int error = 0;
    for (uint64_t at = start; at < end && !error; at += PAGE_BYTES) {
        struct page_mapping mapping;
        if (pages_translate(&tables, at, &mapping) != 0) {
            error = pages_map(&tables, at, phys_addr(at), PAGE_BYTES, access);
        } else if (mapping.access != access) {
            error = PAGES_ALREADY_MAPPED;
        }
    }
    return error;
}

int walls_map_device(struct phys_range registers) {
    unsigned access = PAGE_READ | PAGE_WRITE | PAGE_DEVICE;
    if (!is_built) {
        return 0;
    }
    int error = map_memory(registers.start.value, phys_range_end(registers), access);
    if ((error == PAGES_ALREADY_MAPPED || error == PAGES_LARGE_PAGE) &&
        registers.length <= SHARED_DEVICE_BYTES_MAX) {
        error = map_device_pages(align_down(registers.start.value, PAGE_BYTES),
                                 phys_range_end(registers), access);
    }
    return error;
}

int walls_put_guard(void *page) {
    int error = is_built ? pages_protect(&tables, (uintptr_t)page, PAGE_BYTES, PAGE_NONE) : 0;
    guards += error == 0;
    return error;
}

void walls_remove_guard(void *page) {
    if (is_built) {
        /* The page has an entry of its own: nothing is split, so nothing can be wanting. */
        int error = pages_protect(&tables, (uintptr_t)page, PAGE_BYTES, PAGE_READ | PAGE_WRITE);
        ASSERT(error == 0);
    }
    guards--;
}

size_t walls_table_pages(void) {
    return is_built ? tables.frame_count : 0;
}

size_t walls_guards(void) {
    return guards;
}

bool walls_access(uintptr_t address, unsigned *access) {
    struct page_mapping mapping;
    if (!is_built || pages_translate(&tables, address, &mapping) != 0) {
        return false;
    }
    *access = mapping.access;
    return true;
}
