/* Streams over TCP. For net/stack.c and whoever listens; a stream's user needs only stream.h. */
#ifndef NET_TCP_STREAM_H
#define NET_TCP_STREAM_H

#include "net/stream.h"

/* Called in the network task for each client that has connected. False refuses it: the stream is
 * reset and freed, and must not be touched afterwards. */
typedef bool tcp_stream_accept(struct stream *stream, void *arg);

/* Accepts clients on `port` of every address from now on. 0 or a negative errno. One listener. */
int tcp_stream_listen(uint16_t port, tcp_stream_accept *accept, void *arg);
/* Accepts no more. */
void tcp_stream_stop_listening(void);

struct tcp_stream_sizes {
    uint16_t wire_segment_bytes;  /* what the wire's segments carry */
    uint16_t large_segment_bytes; /* what may leave as one */
    bool device_cuts;             /* such into what the peer takes; else they arrive as one */
    size_t receive_bytes;         /* payload that all receive buffers hold */
    uint32_t keep_alive_ms;       /* silence after which a peer is asked whether it is there */
    uint32_t user_timeout_ms;     /* within which bytes are to be acknowledged; 0: at any time */
};
/* Before the first client. */
void tcp_stream_set_sizes(const struct tcp_stream_sizes *sizes);

struct netif_hint;
struct pbuf;
/* How much payload the peer takes in each of the segments that the device cuts a TCP frame into.
 * lwIP's `hints` are those of the connection that sends it; NULL where that is not known. */
uint16_t tcp_stream_cut_bytes(const struct netif_hint *hints);

/* A frame that lwIP has sent for the connection with these hints: later ones may go the same way.
 * `device_sums`: the device completes checksums. */
void tcp_stream_has_sent(const struct netif_hint *hints, const struct pbuf *frame,
                         bool device_sums);
/* Neighbours, the link or our address may have changed. */
void tcp_streams_forget_ways(void);

/* When the device has room again, until it has none: streams that it refused try once more, in
 * turns. One that fills the ring is last the next time, one that found it full is first. */
void tcp_streams_retry(void);
/* The same for connections that have no stream, no more or not yet: the oldest are first. */
void tcp_streams_retry_closed(void);
/* After each round: tells peers of room, sends what was gathered, ends what is closed. */
void tcp_streams_run(void);

struct netif;

/* Takes an IP packet that was received on `netif` if it is no more than the next bytes of a stream,
 * and returns true; false leaves the packet as it was, for lwIP. `is_sum_known`: the device vouches
 * for the TCP checksum. */
bool tcp_input_continue(struct pbuf *packet, const struct netif *netif, bool is_sum_known);

/* Around each IP packet that goes into lwIP. */
void tcp_streams_before_packet(const uint8_t *packet, size_t bytes);
void tcp_streams_after_packet(void);

/* Before the task waits: acknowledges what no reply will acknowledge soon. A peer with a window of
 * one segment would otherwise stall until its retransmission timer (user-mode stacks begin so).
 * True when there was any to send. */
bool tcp_streams_acknowledge(void);

/* Nobody would do anything about an acknowledgement: all that was asked is answered, and all
 * answers are sent. */
bool tcp_streams_await_no_acks(void);

/* Gives up segments that arrived out of order: they hold receive buffers, and the peer sends them
 * again. For when buffers run short and the missing segment could not arrive. */
void tcp_streams_free_out_of_order(void);

unsigned tcp_streams_count(void);

#endif
