/* Writing the report of a panic. See report.h; docs/operating.md shows one. */
#include "core/report.h"

#include <stdio.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/place.h"
#include "core/symbols.h"
#include "core/task/task.h"

enum { DUMPS_MAX = 8, LINE_BYTES = 160, CALLS_MAX = 12, LOG_LINES = 5 };

static struct {
    panic_dump *dump;
    void *arg;
} dumps[DUMPS_MAX];
static unsigned dump_count;

void panic_add_dump(panic_dump *dump, void *arg) {
    ASSERT(dump_count < DUMPS_MAX);
    dumps[dump_count].dump = dump;
    dumps[dump_count].arg = arg;
    dump_count++;
}

static void write_headline(const struct fault *fault, const char *message) {
    static const char *const done[] = {
        [FAULT_READ] = "read from", [FAULT_WRITE] = "write to", [FAULT_EXECUTE] = "jump to"};
    char place[LINE_BYTES];
    switch (fault->kind) {
    case FAULT_STOP:
        log_text("PANIC: %s", message);
        break;
    case FAULT_READ:
    case FAULT_WRITE:
    case FAULT_EXECUTE:
        place_describe(fault->address, place, sizeof place);
        log_text("PANIC: %s 0x%llx: %s (%s)", done[fault->kind], (unsigned long long)fault->address,
                 place, fault->name);
        break;
    case FAULT_WATCHDOG:
        log_text("PANIC: watchdog: the scheduler has not turned for too long");
        break;
    case FAULT_OTHER:
        log_text("PANIC: %s, value 0x%llx", fault->name, (unsigned long long)fault->address);
        break;
    }
}

static void write_here(uintptr_t address) {
    char name[LINE_BYTES];
    symbols_describe(address, name, sizeof name);
    log_text("  at    %016llx %s", (unsigned long long)address, name);
}

static void write_return(uintptr_t address, unsigned times) {
    char name[LINE_BYTES];
    symbols_describe_return(address, name, sizeof name);
    if (times > 1) {
        log_text("  from  %016llx %s, %u times", (unsigned long long)address, name, times);
    } else {
        log_text("  from  %016llx %s", (unsigned long long)address, name);
    }
}

/* The next call that is still open, the newest first; 0 behind the last. From frame to frame, as
 * long as each lies in the same stack, above the one before; only the newest may have none. */
struct calls {
    struct place_stack stack;
    struct arch_frame frame;
    uintptr_t low;
};

static uintptr_t next_call(struct calls *calls, uintptr_t return_address) {
    uintptr_t left = calls->frame.at;
    if (!arch_frame_leave(&calls->frame, return_address, calls->low, calls->stack.end)) {
        return 0;
    }
    calls->low = left;
    return calls->frame.behind;
}

static void write_calls(const struct fault *fault) {
    struct calls calls = {.frame = {.behind = fault->pc + 1, .at = fault->frame}};
    if (fault->kind != FAULT_EXECUTE) {
        write_here(fault->pc);
    }
    bool has_frames = place_stack_of(fault->frame, &calls.stack);
    calls.low = calls.stack.start;
    uintptr_t call = has_frames ? next_call(&calls, fault->return_address) : 0;
    /* The function that was called last may have had no time, or no need, to keep its return
     * address on the stack. */
    if (call != fault->return_address && fault->pc != fault->return_address &&
        symbols_know(fault->return_address)) {
        write_return(fault->return_address, 1);
    }
    for (unsigned lines = 0; call != 0 && lines < CALLS_MAX; lines++) {
        uintptr_t next = next_call(&calls, 0);
        unsigned times = 1; /* a function that calls itself takes one line */
        while (next == call) {
            times++;
            next = next_call(&calls, 0);
        }
        write_return(call, times);
        call = next;
    }
    if (call != 0) {
        log_text("  from  ...");
    }
}

static void write_registers(const struct fault *fault) {
    for (unsigned i = 0; i < fault->register_count; i += 4) {
        char line[LINE_BYTES];
        int used = 0;
        for (unsigned j = i; j < i + 4 && j < fault->register_count; j++) {
            used += snprintf(line + used, sizeof line - (size_t)used, " %4s %016llx",
                             fault->register_names[j], (unsigned long long)fault->registers[j]);
        }
        log_text(" %s", line);
    }
}

static void write_tasks(void) {
    static const char *const states[] = {"ready", "running", "waiting", "ended"};
    char line[LOG_LINE_MAX];
    struct task_info task;
    size_t used = 0;
    for (unsigned i = 0; used < sizeof line && task_get_info(i, &task) == 0; i++) {
        used += (size_t)snprintf(line + used, sizeof line - used, "%s%s %s", i > 0 ? ", " : "",
                                 task.name, states[task.state]);
    }
    if (used > 0) {
        log_text("  tasks %s", line);
    }
}

void report_write(const struct fault *fault, const char *message) {
    char place[LINE_BYTES];
    static char history[LOG_LINES * LOG_LINE_MAX];
    log_tail(LOG_LINES, history, sizeof history);
    log_text("---");
    write_headline(fault, message);
    place_describe(fault->stack_pointer, place, sizeof place);
    log_text("  task  %s, up %llu ms, stack pointer in %s", task_current_name(),
             (unsigned long long)(arch_clock_ns() / NS_PER_MS), place);
    write_calls(fault);
    write_registers(fault);
    write_tasks();
    for (unsigned i = 0; i < dump_count; i++) {
        dumps[i].dump(dumps[i].arg);
    }
    for (char *line = history; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        log_text("  log   %.*s", (int)length, line);
        line += length + (line[length] == '\n');
    }
}
