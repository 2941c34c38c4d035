/* A stream: what an NBD connection needs of its transport. Bytes in, as borrowed buffers, exactly
 * as many as asked for; bytes out, by reference.
 *
 * TCP is one implementation (tcp_stream.c). The server knows none by name. All calls are made in
 * the network task. */
#ifndef NET_STREAM_H
#define NET_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/virtio/queue.h" /* struct segment */

struct stream;

/* Received bytes that somebody holds. An all-zero loan holds nothing. The fields belong to the
 * implementation. */
struct stream_loan {
    struct stream *stream;
    void *chain;
    void *shared;
    size_t bytes;
};

/* A place in what was sent: `released` is called once, in the network task, when the peer has
 * acknowledged everything sent before the mark, or when the stream is gone and no device looks at
 * that memory any more. The memory of the mark is the stream's until then; of its fields only
 * `released` is the caller's to set. */
struct stream_mark {
    struct stream_mark *next;
    uint64_t position;
    void (*released)(struct stream_mark *mark);
};

/* A mark, and room for what the stream notes of the two pieces that it sends with it. */
struct stream_parcel {
    struct stream_mark mark; /* first, so that who gets the mark has the parcel */
    uint64_t notes[2][4];
};

enum stream_state {
    STREAM_OPEN,
    STREAM_PEER_CLOSED, /* the peer sends no more; what it has sent can be read, and answered */
    STREAM_DEAD,        /* nothing goes either way; only close is left */
};

/* What acknowledgements, ours and the peer's, can wait for. */
enum stream_outlook {
    STREAM_MAY_REPLY,   /* at first */
    STREAM_WILL_REPLY,  /* soon: ours wait for it */
    STREAM_HAS_REPLIED, /* to all that was asked: it need not hear of the peer's at once */
};

struct stream_ops {
    /* Received and not yet consumed. */
    size_t (*received)(const struct stream *stream);
    /* The first `bytes` received bytes, if they are there and lie side by side; else NULL. */
    const uint8_t *(*front)(const struct stream *stream, size_t bytes);
    /* Copies `bytes` received bytes, which must be there; for headers. */
    void (*peek)(const struct stream *stream, void *buf, size_t bytes);
    /* Consumes bytes that are there. */
    void (*drop)(struct stream *stream, size_t bytes);
    /* Consumes `bytes` bytes that are there by lending them: fills `segments`, returns their
     * number. -E2BIG when more than `segments_max` are needed; nothing is consumed then. */
    int (*take)(struct stream *stream, size_t bytes, struct segment *segments,
                unsigned segments_max, struct stream_loan *loan);
    /* The reader waits for `bytes` bytes, at most gather_max, to be there at once: lets the peer
     * send on although what has come is not consumed, where its window would end before. */
    void (*gather)(struct stream *stream, size_t bytes);
    /* This stream's share of the memory for receiving, which shrinks as streams become more. */
    size_t (*gather_max)(const struct stream *stream);
    /* Sends by reference: returns how many bytes were accepted, 0 when there is no room now.
     * The memory must stay until a mark placed behind it is released. */
    size_t (*send)(struct stream *stream, const void *data, size_t bytes);
    void (*mark)(struct stream *stream, struct stream_mark *mark);
    /* Sends a header (of 0 bytes: none) and data by reference and places the parcel's mark behind
     * them, which is cheaper than one by one, if there is room for all of it at once; otherwise
     * nothing has happened, and the caller does it step by step. */
    bool (*send_whole)(struct stream *stream, struct segment header, struct segment data,
                       struct stream_parcel *parcel);
    /* Everything accepted so far goes out now. */
    void (*flush)(struct stream *stream);
    /* What the owner will do, until it says something else. */
    void (*expect)(struct stream *stream, enum stream_outlook outlook);
    /* Memory for receiving runs short: readers should consume what they have. */
    bool (*is_under_pressure)(const struct stream *stream);
    /* Ends the stream and frees it, at once (`abort`) or after the peer has taken everything. All
     * marks are released before the memory goes; loans must have been returned. */
    void (*close)(struct stream *stream, bool abort);
};

struct stream {
    const struct stream_ops *ops;
    enum stream_state state;
    char peer[32];         /* for the log */
    uint32_t peer_address; /* IPv4, in the host's byte order; 0 where there is none */
    /* Set by the owner: called when something arrived, the state changed, or `send` had less room
     * than was asked for and may have more now. */
    void (*changed)(void *arg);
    void *arg;
};

/* Returns a loan, after which the peer may send as much again. An empty loan is none. */
void stream_return(struct stream_loan *loan);

#endif
