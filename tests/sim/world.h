/* The world of one simulated run: virtual time, what happens when, luck, the trace, and the end.
 *
 * One seed decides everything. The appliance under test runs until it sleeps, reads the clock,
 * passes a barrier or touches a device; there time passes, and what is due happens, on a stack of
 * the world's own. So every event of the outside lands at some such place, as the seed has it. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* --- Time and events --- */

uint64_t world_now_ns(void);

typedef void world_event(void *arg, uint64_t word);

/* Calls `event(arg, word)` in `delay_ns`. Events of the same time come in the order of the calls.
 * There is no way to take one back: who may not want it any more looks at `word`. */
void world_after(uint64_t delay_ns, world_event *event, void *arg, uint64_t word);

/* The appliance spends `ns` on something; what is due by then happens. Not from an event. */
void world_pass(uint64_t ns);

/* The same for a moment as long as the seed has it: an access to a device, a look at the clock. */
void world_moment(void);

/* Sleeps until `is_woken` says so or the deadline: the appliance's idle wait. */
void world_sleep(uint64_t deadline_ns, bool (*is_woken)(void));

/* --- Luck --- */

uint64_t luck(void);
/* Of [0, limit); 0 for a limit of 0. */
uint64_t luck_below(uint64_t limit);
/* Of [low, high]. */
uint64_t luck_between(uint64_t low, uint64_t high);
/* True `permille` times in a thousand. */
bool luck_has(unsigned permille);
/* As luck_between, but every order of magnitude is as likely: for latencies. */
uint64_t luck_spread(uint64_t low, uint64_t high);

/* What is drawn between these two leaves what comes after them as it would have been. */
void luck_set_aside(void);
void luck_resume(void);

/* --- The trace --- */

/* One line; `format` has at most four %llu or %llx and must be constant. Always part of the hash;
 * kept in short form, and shown when the run fails or everything is asked for. */
void trace(const char *format, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
/* What the appliance says, and anything else that is shown only. */
void trace_text(const char *text, size_t bytes);
uint64_t trace_hash(void);

/* --- The run --- */

struct world_options {
    uint64_t seed;
    bool shows_trace;
    /* The appliance is slow now and then: so many times in a thousand, for up to so long. */
    unsigned hiccup_permille;
    uint64_t hiccup_ns_max;
};
void world_begin(const struct world_options *options);

/* Sets how slow the appliance is now and then, once the scenario is known. */
void world_set_hiccups(unsigned permille, uint64_t ns_max);

/* A broken promise: says what, shows the end of the trace, ends the process. */
_Noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define SIM_CHECK(condition)                                                                       \
    ((condition) ? (void)0 : sim_fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition))

#endif
