/* The tree of page tables. See pages.h.
 *
 *   level 2: 1 GiB an entry    level 1: 2 MiB    level 0: 4 KiB        (level 3: 512 GiB)
 *   ┌──────┐                   ┌──────┐          ┌──────┐
 *   │ leaf │                   │ leaf │          │ leaf │
 *   │  ────┼──────────────────▶│  ────┼─────────▶│ none │  a guard: keeps its place, allows nothing
 *   └──────┘                   └──────┘          └──────┘
 *
 * Every change is checked over its whole range before anything is touched. */
#include "core/mem/pages.h"

#include <errno.h>
#include <string.h>

#include "boot/arch.h"
#include "core/panic.h"

enum { ENTRIES = 512, INDEX_BITS = 9, PAGE_BITS = 12, LEVELS_MIN = 3, LEVELS_MAX = 4 };

_Static_assert(PAGE_BYTES == (size_t)1 << PAGE_BITS, "an entry of the last level is one page");
_Static_assert(ENTRIES * sizeof(uint64_t) == PAGE_BYTES, "a table is one page");

static uint64_t entry_bytes(unsigned level) {
    return UINT64_C(1) << (PAGE_BITS + INDEX_BITS * level);
}

static unsigned index_at(uint64_t address, unsigned level) {
    return (unsigned)(address >> (PAGE_BITS + INDEX_BITS * level)) % ENTRIES;
}

/* Memory is mapped one to one, so a table's physical address is where we find it. */
static uint64_t *table_of(uint64_t entry) {
    return pointer_of(arch_page_physical(entry));
}

static uint64_t *table_take(struct page_tables *tables) {
    uint64_t *table = tables->frames->take();
    if (table != NULL) {
        memset(table, 0, PAGE_BYTES);
        tables->frame_count++;
    }
    return table;
}

static void table_give(struct page_tables *tables, uint64_t *table) {
    tables->frames->give(table);
    tables->frame_count--;
}

/* The half of the addresses that begins at 0: above it processors demand copies of the top bit. */
static bool is_in_reach(const struct page_tables *tables, uintptr_t address, uint64_t bytes) {
    uint64_t reach = entry_bytes(tables->levels) / 2;
    return address % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0 && bytes != 0 &&
           range_fits(address, bytes, reach);
}

int pages_init(struct page_tables *tables, unsigned levels, const struct page_frames *frames) {
    ASSERT(levels >= LEVELS_MIN && levels <= LEVELS_MAX);
    *tables = (struct page_tables){.levels = levels, .frames = frames};
    tables->root = table_take(tables);
    return tables->root != NULL ? 0 : PAGES_OUT_OF_FRAMES;
}

static void release_below(struct page_tables *tables, uint64_t *table, unsigned level) {
    for (unsigned i = 0; level > 0 && i < ENTRIES; i++) {
        if (arch_page_kind(table[i]) == ARCH_PAGE_TABLE) {
            release_below(tables, table_of(table[i]), level - 1);
        }
    }
    table_give(tables, table);
}

void pages_release(struct page_tables *tables) {
    release_below(tables, tables->root, tables->levels - 1);
    tables->root = NULL;
}

/* The entry that decides about `address`, and its level: a leaf, or one that is empty. */
static uint64_t *find(const struct page_tables *tables, uintptr_t address, unsigned *level) {
    uint64_t *table = tables->root;
    *level = tables->levels - 1;
    for (;;) {
        uint64_t *entry = &table[index_at(address, *level)];
        if (*level == 0 || arch_page_kind(*entry) != ARCH_PAGE_TABLE) {
            return entry;
        }
        table = table_of(*entry);
        --*level;
    }
}

int pages_translate(const struct page_tables *tables, uintptr_t address,
                    struct page_mapping *mapping) {
    unsigned level;
    if (!is_in_reach(tables, align_down(address, PAGE_BYTES), PAGE_BYTES)) {
        return PAGES_BAD_ADDRESS;
    }
    uint64_t entry = *find(tables, address, &level);
    if (arch_page_kind(entry) != ARCH_PAGE_LEAF) {
        return PAGES_BAD_ADDRESS;
    }
    uint64_t offset = address % entry_bytes(level);
    *mapping = (struct page_mapping){.physical = {arch_page_physical(entry).value + offset},
                                     .page_bytes = entry_bytes(level),
                                     .access = arch_page_access(entry)};
    return 0;
}

/* --- Mapping -----------------------------------------------------------------------------------
 */

static int check_unmapped(const struct page_tables *tables, uintptr_t address, uint64_t bytes) {
    uint64_t end = address + bytes;
    for (uint64_t at = address; at < end;) {
        unsigned level;
        uint64_t entry = *find(tables, at, &level);
        if (arch_page_kind(entry) != ARCH_PAGE_EMPTY) {
            return level > 0 ? PAGES_LARGE_PAGE : PAGES_ALREADY_MAPPED;
        }
        at = align_down(at, entry_bytes(level)) + entry_bytes(level);
    }
    return 0;
}

/* Maps one page, as large as fits at `address` with `bytes` to go. Returns its size, 0 when a table
 * is wanting. The place is empty. */
static uint64_t map_one(struct page_tables *tables, uint64_t address, struct phys_addr physical,
                        uint64_t bytes, unsigned access) {
    uint64_t *table = tables->root;
    for (unsigned level = tables->levels - 1;; level--) {
        uint64_t size = entry_bytes(level);
        uint64_t *entry = &table[index_at(address, level)];
        bool fits = bytes >= size && (address | physical.value) % size == 0;
        if (fits && level < LEVELS_MIN && arch_page_kind(*entry) == ARCH_PAGE_EMPTY) {
            *entry = arch_page_leaf(physical, access);
            return size;
        }
        ASSERT(level > 0);
        if (arch_page_kind(*entry) == ARCH_PAGE_EMPTY) {
            uint64_t *below = table_take(tables);
            if (below == NULL) {
                return 0;
            }
            *entry = arch_page_table(phys_of(below));
        }
        table = table_of(*entry);
    }
}

/* --- Joining: what was split comes together again, and empty tables go --------------------------
 */

static bool is_empty(const uint64_t *table) {
    for (unsigned i = 0; i < ENTRIES; i++) {
        if (arch_page_kind(table[i]) != ARCH_PAGE_EMPTY) {
            return false;
        }
    }
    return true;
}

/* All leaves, of one run of memory, with the same permissions? */
static bool is_one_page(const uint64_t *table, unsigned level) {
    struct phys_addr first = arch_page_physical(table[0]);
    if (arch_page_kind(table[0]) != ARCH_PAGE_LEAF || first.value % entry_bytes(level + 1) != 0) {
        return false;
    }
    unsigned access = arch_page_access(table[0]);
    for (unsigned i = 0; i < ENTRIES; i++) {
        struct phys_addr physical = {first.value + i * entry_bytes(level)};
        if (table[i] != arch_page_leaf(physical, access)) {
            return false;
        }
    }
    return true;
}

/* Tidies the tables on the way to `address`, from the last one up. */
static void join(struct page_tables *tables, uint64_t address) {
    uint64_t *entries[LEVELS_MAX] = {NULL}; /* by level: the entry that names the table below it */
    unsigned level = tables->levels - 1;
    uint64_t *table = tables->root;
    while (level > 0) {
        entries[level] = &table[index_at(address, level)];
        if (arch_page_kind(*entries[level]) != ARCH_PAGE_TABLE) {
            break;
        }
        table = table_of(*entries[level]);
        level--;
    }
    for (; level + 1 < tables->levels; level++) {
        uint64_t *entry = entries[level + 1];
        table = table_of(*entry);
        if (is_empty(table)) {
            *entry = 0;
        } else if (level + 1 < LEVELS_MIN && is_one_page(table, level)) {
            *entry = arch_page_leaf(arch_page_physical(table[0]), arch_page_access(table[0]));
        } else {
            return;
        }
        table_give(tables, table);
    }
}

static void join_range(struct page_tables *tables, uintptr_t address, uint64_t bytes) {
    uint64_t step = entry_bytes(1);
    for (uint64_t at = align_down(address, step); at < address + bytes; at += step) {
        join(tables, at);
    }
}

int pages_map(struct page_tables *tables, uintptr_t address, struct phys_addr physical,
              uint64_t bytes, unsigned access) {
    uint64_t end;
    if (!is_in_reach(tables, address, bytes) || physical.value % PAGE_BYTES != 0 ||
        !add_fits(physical.value, bytes, &end)) {
        return PAGES_BAD_ADDRESS;
    }
    int error = check_unmapped(tables, address, bytes);
    if (error) {
        return error;
    }
    for (uint64_t done = 0; done < bytes;) {
        struct phys_addr to = {physical.value + done};
        uint64_t size = map_one(tables, address + done, to, bytes - done, access);
        if (size == 0) {
            if (done > 0) {
                int undone = pages_unmap(tables, address, done);
                ASSERT(undone == 0); /* whole pages that were just mapped: nothing to split */
            }
            join(tables, address + done); /* tables made on the way to where it failed */
            return PAGES_OUT_OF_FRAMES;
        }
        done += size;
    }
    arch_pages_changed();
    return 0;
}

/* --- Changing what is mapped --------------------------------------------------------------------
 */

/* Makes a page boundary at `address`, by splitting each larger page that it lies inside of. */
static int split_at(struct page_tables *tables, uint64_t address) {
    unsigned level;
    uint64_t *entry = find(tables, address, &level);
    while (address % entry_bytes(level) != 0 && arch_page_kind(*entry) == ARCH_PAGE_LEAF) {
        uint64_t *table = table_take(tables);
        if (table == NULL) {
            return PAGES_OUT_OF_FRAMES;
        }
        uint64_t physical = arch_page_physical(*entry).value;
        for (unsigned i = 0; i < ENTRIES; i++) {
            table[i] = arch_page_leaf(phys_addr(physical + i * entry_bytes(level - 1)),
                                      arch_page_access(*entry));
        }
        *entry = arch_page_table(phys_of(table));
        entry = find(tables, address, &level);
    }
    return 0;
}

/* Calls for each leaf of the range: `access` is the new one, or is ignored to unmap. */
static void change(struct page_tables *tables, uintptr_t address, uint64_t bytes, bool keeps,
                   unsigned access) {
    for (uint64_t at = address; at < address + bytes;) {
        unsigned level;
        uint64_t *entry = find(tables, at, &level);
        *entry = keeps ? arch_page_leaf(arch_page_physical(*entry), access) : 0;
        at += entry_bytes(level);
    }
}

static int check_and_change(struct page_tables *tables, uintptr_t address, uint64_t bytes,
                            bool keeps, unsigned access) {
    if (!is_in_reach(tables, address, bytes)) {
        return PAGES_BAD_ADDRESS;
    }
    struct page_mapping mapping;
    for (uint64_t at = address; at < address + bytes;) {
        if (pages_translate(tables, at, &mapping) != 0) {
            return PAGES_BAD_ADDRESS;
        }
        at = align_down(at, mapping.page_bytes) + mapping.page_bytes;
    }
    int error = split_at(tables, address);
    if (!error) {
        error = split_at(tables, address + bytes);
    }
    if (!error) {
        change(tables, address, bytes, keeps, access);
    }
    join_range(tables, address, bytes);
    arch_pages_changed();
    return error;
}

int pages_unmap(struct page_tables *tables, uintptr_t address, uint64_t bytes) {
    return check_and_change(tables, address, bytes, false, PAGE_NONE);
}

int pages_protect(struct page_tables *tables, uintptr_t address, uint64_t bytes, unsigned access) {
    return check_and_change(tables, address, bytes, true, access);
}
