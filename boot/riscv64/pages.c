/* Sv39 and Sv48 (privileged specification, 4.4 and 4.5): entries of page tables, and satp.
 *
 *   63  54 53                      10 9 8 7 6 5 4 3 2 1 0
 *   ┌─────┬──────────────────────────┬───┬─┬─┬─┬─┬─┬─┬─┬─┐
 *   │  0  │ physical page number     │RSW│D│A│G│U│X│W│R│V│
 *   └─────┴──────────────────────────┴───┴─┴─┴─┴─┴─┴─┴─┴─┘
 *
 * Accessed and dirty are set from the start: nobody here asks, and a processor that does not set
 * them itself would trap. A guard is an entry without V whose first RSW bit says that it is one;
 * both RSW bits say which leaf is a device, for without the Svpbmt extension the address alone
 * decides how it is reached. */
#include <errno.h>

#include "boot/arch.h"
#include "core/mem/pages.h"

enum {
    ENTRY_VALID = 1 << 0,
    ENTRY_READ = 1 << 1,
    ENTRY_WRITE = 1 << 2,
    ENTRY_EXECUTE = 1 << 3,
    ENTRY_GLOBAL = 1 << 5,
    ENTRY_ACCESSED = 1 << 6,
    ENTRY_DIRTY = 1 << 7,
    ENTRY_OURS = 1 << 8,
    ENTRY_DEVICE = 1 << 9,
    NUMBER_SHIFT = 10,
    PAGE_SHIFT = 12,
};

#define NUMBER_MASK ((UINT64_C(1) << 44) - 1)

/* satp.MODE, which counts from Sv39 with three levels. */
enum { MODE_SHIFT = 60, MODE_SV39 = 8, LEVELS_SV39 = 3 };

/* Where three levels end: the upper half of Sv39's addresses repeats bit 38. */
#define REACH_SV39 (UINT64_C(1) << 38)

static uint64_t number_of(struct phys_addr page) {
    return page.value >> PAGE_SHIFT << NUMBER_SHIFT;
}

uint64_t arch_page_leaf(struct phys_addr page, unsigned access) {
    uint64_t entry = number_of(page) | ENTRY_OURS;
    if (access != PAGE_NONE) {
        entry |= ENTRY_VALID | ENTRY_GLOBAL | ENTRY_ACCESSED | ENTRY_DIRTY;
    }
    entry |= (access & PAGE_READ) != 0 ? ENTRY_READ : 0;
    entry |= (access & PAGE_WRITE) != 0 ? ENTRY_WRITE : 0;
    entry |= (access & PAGE_EXECUTE) != 0 ? ENTRY_EXECUTE : 0;
    entry |= (access & PAGE_DEVICE) != 0 ? ENTRY_DEVICE : 0;
    return entry;
}

uint64_t arch_page_table(struct phys_addr table) {
    return number_of(table) | ENTRY_VALID;
}

enum arch_page_kind arch_page_kind(uint64_t entry) {
    if ((entry & ENTRY_OURS) != 0) {
        return ARCH_PAGE_LEAF;
    }
    return (entry & ENTRY_VALID) != 0 ? ARCH_PAGE_TABLE : ARCH_PAGE_EMPTY;
}

struct phys_addr arch_page_physical(uint64_t entry) {
    return phys_addr((entry >> NUMBER_SHIFT & NUMBER_MASK) << PAGE_SHIFT);
}

unsigned arch_page_access(uint64_t entry) {
    unsigned access = PAGE_NONE;
    access |= (entry & ENTRY_READ) != 0 ? PAGE_READ : 0;
    access |= (entry & ENTRY_WRITE) != 0 ? PAGE_WRITE : 0;
    access |= (entry & ENTRY_EXECUTE) != 0 ? PAGE_EXECUTE : 0;
    access |= (entry & ENTRY_DEVICE) != 0 ? PAGE_DEVICE : 0;
    return access;
}

unsigned arch_page_levels(uint64_t end) {
    return end <= REACH_SV39 ? LEVELS_SV39 : LEVELS_SV39 + 1;
}

void arch_pages_changed(void) {
    __asm__ volatile("sfence.vma" ::: "memory");
}

/* A mode that the processor has not got leaves satp as it was (4.1.11). */
int arch_pages_use(struct phys_addr root, unsigned levels) {
    uint64_t mode = MODE_SV39 + levels - LEVELS_SV39;
    uint64_t satp = mode << MODE_SHIFT | root.value >> PAGE_SHIFT;
    uint64_t read_back;
    arch_pages_changed();
    __asm__ volatile("csrw satp, %1\n\tsfence.vma\n\tcsrr %0, satp"
                     : "=r"(read_back)
                     : "r"(satp)
                     : "memory");
    return read_back == satp ? 0 : -ENOTSUP;
}
