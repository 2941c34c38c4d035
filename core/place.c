/* Naming what lies at an address. See place.h. */
#include "core/place.h"

#include <stdio.h>

#include "boot/arch.h"
#include "core/dev/device_node.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/mem/walls.h"
#include "core/symbols.h"
#include "core/task/task.h"

static bool is_between(uintptr_t address, const char *start, const char *end) {
    return address >= (uintptr_t)start && address < (uintptr_t)end;
}

static bool is_in(uintptr_t address, struct phys_range range) {
    return address >= range.start.value && address - range.start.value < range.length;
}

static bool is_on(uintptr_t address, const struct place_stack *stack) {
    return address >= stack->guard && address <= stack->end;
}

bool place_stack_of(uintptr_t address, struct place_stack *stack) {
    const struct place_stack boot = {"the boot stack", (uintptr_t)boot_stack_guard,
                                     (uintptr_t)boot_stack_start, (uintptr_t)boot_stack_end};
    const struct place_stack fault = {"the fault stack", (uintptr_t)fault_stack_guard,
                                      (uintptr_t)fault_stack_start, (uintptr_t)fault_stack_end};
    struct task_info task;
    for (unsigned i = 0; task_get_info(i, &task) == 0; i++) {
        uintptr_t start = (uintptr_t)task.stack;
        *stack =
            (struct place_stack){task.name, start - PAGE_BYTES, start, start + task.stack_bytes};
        if (is_on(address, stack)) {
            return true;
        }
    }
    *stack = is_on(address, &boot) ? boot : fault;
    return is_on(address, stack);
}

static bool describe_stack(uintptr_t address, char *text, size_t bytes) {
    struct place_stack stack;
    if (!place_stack_of(address, &stack)) {
        return false;
    }
    bool is_task =
        stack.guard != (uintptr_t)boot_stack_guard && stack.guard != (uintptr_t)fault_stack_guard;
    const char *before = is_task ? "the stack of task " : "";
    if (address < stack.start) {
        (void)snprintf(text, bytes, "the guard page below %s%s, whose %zu bytes are used up",
                       before, stack.owner, (size_t)(stack.end - stack.start));
    } else {
        (void)snprintf(text, bytes, "%s%s, %zu bytes from its end", before, stack.owner,
                       (size_t)(address - stack.start));
    }
    return true;
}

static bool describe_image(uintptr_t address, char *text, size_t bytes) {
    char name[96];
    symbols_describe(address, name, sizeof name);
    if (is_between(address, text_start, text_end)) {
        (void)snprintf(text, bytes, "code, %s", name);
    } else if (is_between(address, rodata_start, rodata_end)) {
        (void)snprintf(text, bytes, "constants");
    } else if (is_between(address, data_start, image_end)) {
        (void)snprintf(text, bytes, "data, %zu bytes behind its beginning",
                       (size_t)(address - (uintptr_t)data_start));
    } else {
        return false;
    }
    return true;
}

static bool describe_device(uintptr_t address, char *text, size_t bytes) {
    const struct device_node *node;
    for (unsigned i = 0; (node = device_node_at(i)) != NULL; i++) {
        for (unsigned j = 0; j < node->reg_count; j++) {
            if (is_in(address, node->regs[j])) {
                (void)snprintf(text, bytes, "registers of %s", node->name);
                return true;
            }
        }
        if (io_buffer_is_valid(node->dma_buffer) &&
            address - (uintptr_t)io_buffer_data(node->dma_buffer) <
                align_up(io_buffer_size(node->dma_buffer), PAGE_BYTES)) {
            (void)snprintf(text, bytes, "the IoBuffer of %s, byte %zu of %zu", node->name,
                           (size_t)(address - (uintptr_t)io_buffer_data(node->dma_buffer)),
                           io_buffer_size(node->dma_buffer));
            return true;
        }
    }
    return false;
}

static bool describe_heap(uintptr_t address, char *text, size_t bytes) {
    struct heap_place place;
    if (!heap_look(address, &place)) {
        return false;
    }
    if (place.bytes == 0) {
        (void)snprintf(text, bytes, "the heap's own records");
    } else {
        (void)snprintf(text, bytes, "heap, byte %zu of %zu bytes %s", place.offset, place.bytes,
                       place.is_used ? "in use" : "that are free");
    }
    return true;
}

void place_describe(uintptr_t address, char *text, size_t bytes) {
    unsigned access;
    if (address < PAGE_BYTES) {
        (void)snprintf(text, bytes, "page 0, which is never mapped: a null pointer");
    } else if (poison_is_address(address)) {
        (void)snprintf(text, bytes, "no address but the filling of released memory");
    } else if (!describe_stack(address, text, bytes) && !describe_image(address, text, bytes) &&
               !describe_device(address, text, bytes) && !describe_heap(address, text, bytes)) {
        bool is_mapped = walls_access(address, &access);
        (void)snprintf(text, bytes, "%s",
                       is_mapped ? "memory that is nobody's (the device tree?)" : "nothing at all");
    }
}
