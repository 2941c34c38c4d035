/* The network: brings the interface and lwIP up, and runs them in one task. */
#ifndef NET_STACK_H
#define NET_STACK_H

#include <stdbool.h>
#include <stddef.h>

struct event;

/* Configures the interface as `ip=`, `gw=` and `segment=` say (DHCP without), and starts the
 * network task. -ENODEV without an interface, -EINVAL for an address that is none; said in the log.
 */
int net_start(void);

/* Everything that uses streams runs in the network task: `work(arg)` is called once a round, after
 * packets were taken in and before what it has gathered is sent. It returns true when it has more
 * to do at once. */
void net_set_worker(bool (*work)(void *arg), void *arg);

/* Makes the network task run a round: from other tasks, for instance when a disk has answered. */
void net_wake(void);
/* What net_wake signals, for those that signal by themselves. */
struct event *net_round(void);

/* What users send from now on, each in a packet of its own, has a header of so many bytes (32, or 4
 * less): what is behind it begins a page, where receive buffers are large enough for that. */
void net_expect_headers(size_t bytes);

/* Memory for receiving runs short: readers should consume what they have. */
bool net_is_under_pressure(void);

/* An address is configured. */
bool net_is_up(void);

void net_dump(void);

#ifdef PLATTER_HOST
/* Fuzzers start anew, after the tasks are gone and lwIP has let go of all it held. */
void net_forget(void);
#endif

#endif
