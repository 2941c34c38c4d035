/* Counters of the network side. Names are those of the status dump. */
#ifndef NET_COUNTERS_H
#define NET_COUNTERS_H

#include <stdint.h>

struct net_counters {
    uint64_t frames_received;
    uint64_t frames_sent;
    uint64_t receive_dropped; /* frames that made no sense */
    uint64_t receive_shed;    /* frames with payload dropped because buffers were nearly gone */
    uint64_t send_ring_full;  /* sends refused for lack of room, tried again later */
    uint64_t device_errors;
    /* Payload that the processor copied on its way between client and disk: 0 is the aim. Headers,
     * which are copied to be understood, count apart. */
    uint64_t bytes_copied;
    uint64_t header_bytes_copied;
    uint64_t connections_accepted;
    uint64_t connections_refused;
    uint64_t acks_at_idle;
};

extern struct net_counters net_counters;

#endif
