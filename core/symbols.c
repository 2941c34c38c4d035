/* Looking functions up. See symbols.h; config/build/symbols.sh writes the table. */
#include "core/symbols.h"

#include <stdio.h>

#include "boot/arch.h"

/* Sorted by offset. */
struct symbol {
    uint32_t offset; /* from text_start */
    uint32_t name;   /* from symbol_names */
    uint16_t frame_bytes;
    uint16_t return_at;
};

extern const uint32_t symbol_count;
extern const struct symbol symbol_entries[];
extern const char symbol_names[];

static const struct symbol *find(uintptr_t address) {
    if (symbol_count == 0 || address < (uintptr_t)text_start || address >= (uintptr_t)text_end) {
        return NULL;
    }
    uint64_t offset = address - (uintptr_t)text_start;
    uint32_t low = 0;
    uint32_t high = symbol_count; /* entries from here on begin behind it */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (symbol_entries[middle].offset <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low > 0 ? &symbol_entries[low - 1] : NULL;
}

bool symbols_know(uintptr_t address) {
    return find(address) != NULL;
}

bool symbols_share(uintptr_t one, uintptr_t other) {
    const struct symbol *symbol = find(one);
    return symbol != NULL && symbol == find(other);
}

struct symbol_frame symbols_frame(uintptr_t address) {
    const struct symbol *symbol = find(address);
    return symbol != NULL ? (struct symbol_frame){symbol->frame_bytes, symbol->return_at}
                          : (struct symbol_frame){0};
}

static void describe(const struct symbol *symbol, uintptr_t address, char *text, size_t bytes) {
    if (symbol == NULL) {
        (void)snprintf(text, bytes, "%s", "");
        return;
    }
    (void)snprintf(text, bytes, "%s+0x%zx", &symbol_names[symbol->name],
                   (size_t)(address - (uintptr_t)text_start - symbol->offset));
}

void symbols_describe(uintptr_t address, char *text, size_t bytes) {
    describe(find(address), address, text, bytes);
}

void symbols_describe_return(uintptr_t address, char *text, size_t bytes) {
    describe(find(address - 1), address, text, bytes);
}
