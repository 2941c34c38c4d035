/* TCP connections of hosts on the simulated wire: a TCP of its own, written from RFC 9293, which
 * shares nothing with the appliance's. One host for each client. */
#ifndef TESTS_SIM_PEER_H
#define TESTS_SIM_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum peer_state {
    PEER_CONNECTING,
    PEER_OPEN,
    PEER_ENDED, /* the other side has closed: what has come can be read */
    PEER_DEAD,  /* reset, refused or given up */
};

struct peer_options {
    unsigned host; /* 0 and up */
    uint16_t mss;
    uint32_t window_bytes;
    uint8_t window_shift;
    bool has_window_scale;
    bool may_sack;
    uint64_t ack_delay_ns;
    uint32_t congestion_bytes_max; /* so much may be on its way at once */
    bool sends_large;              /* as from the same host, when the appliance takes it */
};

struct peer;

/* Begins to connect. `changed(arg)` is called whenever there may be something new. */
struct peer *peer_open(const struct peer_options *options, void (*changed)(void *arg), void *arg);

enum peer_state peer_state(const struct peer *peer);

/* All of it, sooner or later. */
void peer_send(struct peer *peer, const void *data, size_t bytes);
/* Everything that was sent has been acknowledged. */
bool peer_has_sent_all(const struct peer *peer);
/* No more will be sent; what has been is delivered first. */
void peer_finish(struct peer *peer);

/* What has arrived in order and was not taken. */
size_t peer_received(const struct peer *peer, const uint8_t **data);
void peer_take(struct peer *peer, size_t bytes);

/* Ends it with a reset, or without a word: for all that the appliance can know, the host is dead.
 */
void peer_reset(struct peer *peer);
void peer_vanish(struct peer *peer);
/* Nobody calls back any more; the connection goes on by itself. */
void peer_let_go(struct peer *peer);

/* While it is stalled nothing is taken: the window closes. */
void peer_stall(struct peer *peer, bool is_stalled);
bool peer_is_stalled(const struct peer *peer);

/* From the wire. */
void peers_receive(const uint8_t *frame, size_t bytes);

#endif
