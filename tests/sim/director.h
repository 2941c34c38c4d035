/* The story of a run: when clients come, when faults end, how it all ends, and what must hold then.
 */
#ifndef TESTS_SIM_DIRECTOR_H
#define TESTS_SIM_DIRECTOR_H

#include <stdbool.h>
#include <stdint.h>

/* Plays the run of this seed in this process, and ends the process. */
_Noreturn void director_play(uint64_t seed, bool shows_trace);

/* The appliance has started to serve. */
bool director_is_serving(void);

/* The appliance has switched its power off. */
_Noreturn void director_power_is_off(bool failed);

/* What a run was like, for the one who started its process. */
#define RUN_REPORT_MAGIC UINT64_C(0x74726f7065726d73)
struct run_report {
    uint64_t magic; /* not that of a text, which is why the run failed */
    uint64_t seed;
    uint64_t hash;
    uint64_t virtual_ns;
    uint64_t requests;
    uint64_t answers;
    uint64_t connections;
    uint64_t bytes;
};

/* Where it is written at the end of a good run; -1: nowhere. */
void director_set_report(int fd);
/* Why a run failed goes there too, in words. */
void director_report_failure(const char *text);

/* Without memory for what it cannot do without, the appliance may give up while it starts. */
bool director_may_panic(const char *report);
_Noreturn void director_gave_up(void);

#endif
