/* One TCP connection, between tcp_stream.c, tcp_send.c and tcp_input.c. */
#ifndef NET_TCP_CONNECTION_H
#define NET_TCP_CONNECTION_H

#include <lwip/pbuf.h>

#include "net/stream.h"

struct tcp_pcb;
struct tcp_seg;

/* The way of a connection's frames, as the last one that lwIP has sent went. */
#define TCP_WAY_BYTES (14 + 20)
struct tcp_way {
    uint64_t until_ns;              /* known so long */
    uint8_t headers[TCP_WAY_BYTES]; /* Ethernet's and IPv4's, without lengths and checksums */
    uint32_t ip_sum;                /* of their words */
    uint32_t pseudo_sum;            /* of TCP's pseudo header, without the length */
    bool device_sums;               /* the device completes checksums */
};

struct tcp_stream {
    struct stream stream; /* first: the operations cast back */
    struct tcp_pcb *pcb;  /* NULL when the connection is gone */
    uint32_t ports;       /* as the peer's segments begin: its own, then ours, in network order */
    uint32_t address;     /* the peer's, in network order */
    struct tcp_stream *next_at_place; /* for the same of tcp_input.c */
    struct pbuf *first;               /* received; each entry holds one reference */
    struct pbuf *last;
    size_t tail_room;    /* behind what `last` holds, in its buffer */
    size_t first_offset; /* consumed bytes of the first */
    size_t received;
    size_t consumed;       /* not yet told to lwIP */
    size_t credited;       /* received and told as consumed already, though it is not: see gather */
    uint64_t sent;         /* accepted for sending, free-running */
    uint64_t acknowledged; /* of that, in whole segments */
    uint64_t releasing;    /* marks up to here go as soon as ... */
    uint64_t releasing_after; /* ... so many frames have been read by the device */
    struct stream_mark *marks_first;
    struct stream_mark *marks_last;
    unsigned loans;
    uint16_t cut_bytes; /* what the peer takes in a segment */
    bool needs_output;
    bool was_refused;  /* some of what the owner had to send: it hears when there is room */
    bool lacks_memory; /* lwIP refused to send */
    bool owes_ack;     /* for more than one segment of this round */
    bool is_closing;   /* the owner has let go */
    enum stream_outlook outlook;
    uint32_t unacknowledged; /* where what was received and not acknowledged begins, or before */
    uint64_t close_deadline_ns;
    uint64_t due;       /* of `sent`, what is to be acknowledged within the user timeout, ... */
    uint32_t due_since; /* ... which began then, in lwIP's ticks */
    uint64_t stale_answer_ns; /* stale acknowledgements are answered again from here on */
    uint64_t frames_at_death; /* sent by the device's count when the connection ended */
    struct tcp_way way;
    struct tcp_stream *next;
};

/* Takes over packets whose payload is next in the stream, and tells the stream's owner. */
void tcp_stream_received(struct tcp_stream *tcp, struct pbuf *chain);
/* The peer has `bytes` more of what was sent. */
void tcp_stream_acknowledged(struct tcp_stream *tcp, size_t bytes);

/* Sends what waits, as far as window and ring have room. */
void tcp_stream_output(struct tcp_stream *tcp);

/* --- tcp_send.c --- */

/* Operations of a stream (stream.h). */
size_t tcp_stream_send(struct stream *stream, const void *data, size_t bytes);
bool tcp_stream_send_whole(struct stream *stream, struct segment header, struct segment data,
                           struct stream_parcel *parcel);
void tcp_stream_mark(struct stream *stream, struct stream_mark *mark);

/* Something else than sending may have changed what is to be sent. */
void tcp_stream_forget_newest(void);

/* Releases what is acknowledged, as far as no frame in the ring can refer to it. What is
 * acknowledged later waits for its own turn: a ring that is never empty must not put it off for
 * ever. */
void tcp_stream_release_acknowledged(struct tcp_stream *tcp);
/* All marks up to a place in what was sent. */
void tcp_stream_release_marks(struct tcp_stream *tcp, uint64_t up_to);

/* lwIP's persist timer, and fill_window, cut the segment that a small window has no room for, and
 * reckon with every length in its chain, which tcp_send.c does not keep up to date. */
void tcp_stream_mend_lengths(const struct tcp_pcb *pcb);

/* --- tcp_output.c --- */

/* A segment that follows all that is queued, with headers and no payload yet, in nobody's list.
 * NULL when memory is short. */
struct tcp_seg *tcp_segment_begin(const struct tcp_stream *tcp);
/* A stream is gone: memory that is kept for segments goes with it. */
void tcp_segments_are_fewer(void);
/* Sends what waits, as far as it is no more than the next bytes and its way is known. The rest
 * stays as it was, for lwIP. */
void tcp_output_plain(struct tcp_stream *tcp);
/* Acknowledges all that has come, by a frame of its own; false leaves that to lwIP. */
bool tcp_output_ack(struct tcp_stream *tcp);
/* A frame of the stream's that lwIP has made and the device has got. `device_sums`: it completes
 * the checksums. */
void tcp_way_learn(struct tcp_stream *tcp, const struct pbuf *frame, bool device_sums);

/* --- tcp_input.c --- */

/* An open connection's segments may take the short way from here on; until tcp_input_remove, which
 * comes before the memory goes. */
void tcp_input_add(struct tcp_stream *tcp);
void tcp_input_remove(const struct tcp_stream *tcp);

#endif
