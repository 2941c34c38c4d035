/* NBD clients: each connects, agrees on something, asks for what luck has it, checks every answer,
 * and leaves, well or badly. Written from the protocol document; shares nothing with the server. */
#ifndef TESTS_SIM_CLIENT_H
#define TESTS_SIM_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

/* All that the plan wants; they begin when the appliance is up. */
void clients_begin(void);

/* No more requests, and no new connections: what is open is brought to its end. */
void clients_finish(void);

/* Every client has done what it wanted, and its last connection is over. */
bool clients_are_done(void);

/* Fails the run when somebody waits for something that does not come: for `bound_ns` longer than
 * since `calm_ns`. */
void clients_check_progress(uint64_t calm_ns, uint64_t bound_ns);

/* The key for the end is pressed: from now on errors and closed connections are in order. */
void clients_expect_shutdown(void);

struct client_totals {
    uint64_t requests;
    uint64_t answers;
    uint64_t errors;
    uint64_t connections;
    uint64_t lost; /* connections that ended otherwise than the client wanted */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t longest_ns; /* that a request waited for its answer */
};
extern struct client_totals client_totals;

#endif
