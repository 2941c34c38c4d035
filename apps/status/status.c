/* The status dump. See status.h. */
#include "apps/status/status.h"

#include "apps/nbd/export.h"
#include "apps/nbd/server.h"
#include "blk/block.h"
#include "boot/arch.h"
#include "core/dev/irq.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "core/mem/walls.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/stack.h"

unsigned status_export_count(void) {
    unsigned count = 0;
    while (nbd_export_at(count) != NULL) {
        count++;
    }
    return count;
}

static void dump_memory(void) {
    struct heap_stats heap;
    heap_get_stats(&heap);
    log_text("memory: %zu of %zu KiB in use (peak %zu), largest free run %zu KiB, failures %llu, "
             "IoBuffers %zu",
             heap.bytes_used / 1024, heap.bytes_total / 1024, heap.bytes_used_peak / 1024,
             heap.largest_free_run / 1024, (unsigned long long)heap.failures, io_buffer_count());
    log_text("walls: %zu pages of tables, %zu guards", walls_table_pages(), walls_guards());
    size_t bytes;
    size_t objects;
    size_t pages;
    for (unsigned i = 0; heap_get_class(i, &bytes, &objects, &pages); i++) {
        if (pages != 0) {
            log_text("  objects of %zu bytes: %zu in %zu pages", bytes, objects, pages);
        }
    }
}

static void dump_tasks(void) {
    static const char *const states[] = {"ready", "running", "waiting", "ended"};
    struct task_info task;
    for (unsigned i = 0; task_get_info(i, &task) == 0; i++) {
        log_text("task %s: %s, %llu runs, stack %zu of %zu", task.name, states[task.state],
                 (unsigned long long)task.runs, task.stack_used_peak, task.stack_bytes);
    }
    const struct scheduler_stats *stats = scheduler_get_stats();
    log_text("scheduler: %llu turns, %llu switches, %llu sleeps, last look found %llu, spins found "
             "%llu, put off %llu, rescued %llu, "
             "stalls %llu",
             (unsigned long long)stats->turns, (unsigned long long)stats->switches,
             (unsigned long long)stats->sleeps, (unsigned long long)stats->looks_that_found,
             (unsigned long long)stats->spins_that_found, (unsigned long long)stats->put_off,
             (unsigned long long)stats->rescued, (unsigned long long)stats->stalls);
}

static void dump_interrupts(void) {
    struct irq_info irq;
    for (unsigned i = 0; irq_get_info(i, &irq); i++) {
        log_text("interrupt %u, %s: %llu", irq.source, irq.name, (unsigned long long)irq.count);
    }
    log_text("interrupts nobody knew: %llu, log lines dropped: %llu",
             (unsigned long long)irq_spurious(), (unsigned long long)log_dropped());
}

void status_dump(void) {
    log_text("--- status, up %llu ms", (unsigned long long)(arch_clock_ns() / NS_PER_MS));
    dump_memory();
    dump_tasks();
    dump_interrupts();
    struct block_device *device;
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        block_dump(device);
    }
    net_dump();
    nbd_server_dump();
    log_text("--- end of status");
}

void status_dump_devices(void) {
    struct block_device *device;
    log_text("--- devices");
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        block_dump_device(device);
    }
    log_text("--- end of devices");
}
