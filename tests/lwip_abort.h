/* The end of a network in a test. What streams have let go is lwIP's alone, and may stay for
 * minutes: TIME-WAIT, handshakes, whoever does not answer. */
#ifndef TESTS_LWIP_ABORT_H
#define TESTS_LWIP_ABORT_H

#include <lwip/priv/tcp_priv.h>

/* Ends every connection that lwIP knows, at once. */
static inline void lwip_abort_all(void) {
    while (tcp_active_pcbs != NULL) {
        tcp_abort(tcp_active_pcbs);
    }
    while (tcp_tw_pcbs != NULL) {
        tcp_abort(tcp_tw_pcbs);
    }
    while (tcp_bound_pcbs != NULL) {
        tcp_abort(tcp_bound_pcbs);
    }
}

#endif
