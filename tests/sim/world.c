/* See world.h. */
#include "tests/sim/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "boot/host/host.h"
#include "tests/sim/director.h"
#include "tests/sim/sim.h"

enum { STACK_BYTES = 1024 * 1024, TRACE_KEPT = 256, TEXT_KEPT = 8192, EVENTS_MAX = 1 << 20 };

struct happening {
    uint64_t at_ns;
    uint64_t order;
    world_event *event;
    void *arg;
    uint64_t word;
};

struct trace_line {
    uint64_t at_ns;
    const char *format;
    uint64_t numbers[4];
};

static struct world_options options;
static uint64_t now_ns;
static uint64_t luck_state;
static uint64_t luck_aside;

/* A heap: the earliest first. */
static struct happening *happenings;
static size_t happening_count;
static size_t happening_room;
static uint64_t order_next;

static struct arch_context appliance_side;
static struct arch_context world_side;
static uint8_t stack[STACK_BYTES] __attribute__((aligned(4096)));
static bool is_world_running;

static struct trace_line kept[TRACE_KEPT];
static uint64_t trace_count;
static uint64_t hash;
static char text_kept[TEXT_KEPT];
static size_t text_used;

/* --- Luck --------------------------------------------------------------------------------------
 */

uint64_t luck(void) {
    luck_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = luck_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t luck_below(uint64_t limit) {
    return limit != 0 ? luck() % limit : 0;
}

uint64_t luck_between(uint64_t low, uint64_t high) {
    return low + luck_below(high - low + 1);
}

bool luck_has(unsigned permille) {
    return permille != 0 && luck_below(1000) < permille;
}

uint64_t luck_spread(uint64_t low, uint64_t high) {
    unsigned steps = 0;
    for (uint64_t at = low > 0 ? low : 1; at < high; at *= 4) {
        steps++;
    }
    uint64_t top = low > 0 ? low : 1;
    for (uint64_t step = luck_below(steps + 1); step > 0; step--) {
        top *= 4;
    }
    return luck_between(low, top < high ? top : high);
}

void luck_set_aside(void) {
    luck_aside = luck_state;
    luck_state ^= UINT64_C(0xd1b54a32d192ed03);
}

void luck_resume(void) {
    luck_state = luck_aside;
}

/* --- The trace ---------------------------------------------------------------------------------
 */

static void show(const struct trace_line *line) {
    (void)fprintf(stderr, "%14.6f ms  ", (double)line->at_ns / 1e6); /* to whom could it be said */
    /* The formats are constants of this program; all take numbers of 64 bits. */
    (void)fprintf(stderr, line->format, // NOLINT(clang-diagnostic-format-nonliteral)
                  (unsigned long long)line->numbers[0], (unsigned long long)line->numbers[1],
                  (unsigned long long)line->numbers[2], (unsigned long long)line->numbers[3]);
    (void)fputc('\n', stderr);
}

static void mix(uint64_t number) {
    hash = (hash ^ number) * UINT64_C(0x9fb21c651e98df25);
    hash ^= hash >> 32;
}

void trace(const char *format, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    struct trace_line *line = &kept[trace_count++ % TRACE_KEPT];
    *line = (struct trace_line){now_ns, format, {a, b, c, d}};
    mix(now_ns);
    mix((uintptr_t)format); /* the program is linked to a fixed address */
    mix(a);
    mix(b);
    mix(c);
    mix(d);
    if (options.shows_trace) {
        show(line);
    }
}

void trace_text(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        mix((uint8_t)text[i]);
    }
    if (options.shows_trace) {
        (void)fwrite(text, 1, bytes, stderr); /* as above */
    }
    bytes = bytes < TEXT_KEPT / 2 ? bytes : TEXT_KEPT / 2;
    if (bytes > TEXT_KEPT - text_used) {
        memmove(text_kept, text_kept + TEXT_KEPT / 2, text_used - TEXT_KEPT / 2);
        text_used -= TEXT_KEPT / 2;
    }
    memcpy(text_kept + text_used, text, bytes);
    text_used += bytes;
}

uint64_t trace_hash(void) {
    return hash;
}

void sim_fail(const char *format, ...) {
    if (!options.shows_trace) {
        uint64_t first = trace_count > TRACE_KEPT ? trace_count - TRACE_KEPT : 0;
        for (uint64_t i = first; i < trace_count; i++) {
            show(&kept[i % TRACE_KEPT]);
        }
        (void)fprintf(stderr, "--- what the appliance said last\n");
        (void)fwrite(text_kept, 1, text_used, stderr);
    }
    char why[400];
    va_list arguments;
    va_start(arguments, format);
    /* For people: may be cut. The analyzer loses sight of va_start when it has seen other files. */
    // NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized)
    (void)vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    (void)fprintf(stderr, "seed %llu, %.6f ms: FAILED: %s\n", (unsigned long long)options.seed,
                  (double)now_ns / 1e6, why);
    director_report_failure(why);
    sim_end_process(SIM_FAILED);
}

/* --- Time --------------------------------------------------------------------------------------
 */

uint64_t world_now_ns(void) {
    return now_ns;
}

static bool is_before(const struct happening *a, const struct happening *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void swap(struct happening *a, struct happening *b) {
    struct happening kept_a = *a;
    *a = *b;
    *b = kept_a;
}

void world_after(uint64_t delay_ns, world_event *event, void *arg, uint64_t word) {
    if (happening_count == happening_room) {
        happening_room = happening_room != 0 ? 2 * happening_room : 256;
        struct happening *more = realloc(happenings, happening_room * sizeof *happenings);
        SIM_CHECK(more != NULL && happening_room <= EVENTS_MAX);
        happenings = more;
    }
    size_t at = happening_count++;
    happenings[at] = (struct happening){now_ns + delay_ns, order_next++, event, arg, word};
    while (at > 0 && is_before(&happenings[at], &happenings[(at - 1) / 2])) {
        swap(&happenings[at], &happenings[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
}

static struct happening take_first(void) {
    struct happening first = happenings[0];
    happenings[0] = happenings[--happening_count];
    for (size_t at = 0;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < happening_count; child++) {
            least = is_before(&happenings[child], &happenings[least]) ? child : least;
        }
        if (least == at) {
            return first;
        }
        swap(&happenings[at], &happenings[least]);
        at = least;
    }
}

static bool is_due(void) {
    return happening_count > 0 && happenings[0].at_ns <= now_ns;
}

static void world_main(void *unused) {
    (void)unused;
    for (;;) {
        while (is_due()) {
            struct happening happening = take_first();
            happening.event(happening.arg, happening.word);
        }
        arch_context_switch(&world_side, &appliance_side);
    }
}

static void let_happen(void) {
    host_clock_set(now_ns);
    if (!is_due() || is_world_running) {
        return;
    }
    is_world_running = true;
    arch_context_switch(&appliance_side, &world_side);
    is_world_running = false;
}

void world_pass(uint64_t ns) {
    if (is_world_running) {
        return; /* an event looks at the clock: it takes no time */
    }
    now_ns += ns;
    let_happen();
}

void world_moment(void) {
    uint64_t word = luck();
    uint64_t ns = 20 + (word & 127);
    if (options.hiccup_permille != 0 && (word >> 32) % 1000 < options.hiccup_permille) {
        ns = luck_spread(1000, options.hiccup_ns_max);
    }
    world_pass(ns);
}

void world_sleep(uint64_t deadline_ns, bool (*is_woken)(void)) {
    while (!is_woken()) {
        uint64_t next_ns = happening_count > 0 ? happenings[0].at_ns : DEADLINE_NEVER;
        if (next_ns > deadline_ns) {
            now_ns = deadline_ns > now_ns ? deadline_ns : now_ns;
            let_happen();
            return;
        }
        now_ns = next_ns > now_ns ? next_ns : now_ns;
        let_happen();
    }
}

static void moment(void *unused) {
    (void)unused;
    world_moment();
}

void world_set_hiccups(unsigned permille, uint64_t ns_max) {
    options.hiccup_permille = permille;
    options.hiccup_ns_max = ns_max;
}

void world_begin(const struct world_options *wanted) {
    options = *wanted;
    luck_state = options.seed * UINT64_C(0xd1342543de82ef95) + 1;
    host_set_entropy(luck());
    host_clock_set(0);
    host_set_moment(moment, NULL);
    arch_context_init(&world_side, stack, sizeof stack, world_main, NULL);
}
