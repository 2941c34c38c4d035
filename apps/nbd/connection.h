/* One NBD connection, between the files of this folder.
 *
 *   handshake ──GO, EXPORT_NAME──▶ transmission ──DISC, end of stream──▶ draining ──▶ closed
 *       └───────────── protocol error, deadline, lost connection ───────────────────────▲
 *
 * Closed means that the stream has been let go; the connection's memory stays until its last
 * request has come back from the disk and its last byte out of the stream. Everything here runs in
 * the network task, except where it says otherwise. */
#ifndef APPS_NBD_CONNECTION_H
#define APPS_NBD_CONNECTION_H

#include "apps/nbd/export.h"
#include "apps/nbd/wire.h"
#include "blk/block.h"
#include "config/limits.h"
#include "core/task/timer.h"
#include "net/stream.h"

struct nbd_connection;
struct nbd_request;

/* One block request on behalf of an NBD request: a piece of a write with the packets it came in, or
 * a chunk of a read with the buffer it goes out from. */
struct nbd_io {
    struct block_request block;
    struct nbd_request *request;
    struct nbd_io *next; /* in the request's list of chunks, or a list of finished ones */
    struct segment segments[BLOCK_SEGMENTS_MAX];
    struct stream_loan loan;
    void *buffer; /* from the payload pool */
    size_t buffer_bytes;
    /* Reads: this chunk's part of the reply. */
    uint32_t data_bytes;
    uint32_t data_sent;
    enum { IO_IDLE, IO_ON_DISK, IO_READY, IO_ON_WIRE } state;
    struct stream_mark mark;
};

struct nbd_request {
    struct nbd_connection *connection;
    struct nbd_request *next; /* free list, or the queue of replies */
    struct nbd_request_header header;
    uint64_t received_ns;
    int error; /* the first one */
    /* Writes: bytes of payload still to come, and to be given to the disk. */
    uint32_t payload_left;
    uint64_t offset_next; /* where the next piece or chunk goes */
    uint32_t length_left; /* of a read, not yet asked of the disk */
    uint32_t reply_left;  /* of a read, not yet sent */
    unsigned ios_on_disk;
    unsigned ios_on_wire;  /* chunks sent and not acknowledged */
    struct nbd_io *chunks; /* of a read, in the order of their data */
    bool flush_at_end;     /* FUA on a write of several pieces */
    bool is_queued;        /* in the queue of replies */
    uint8_t *reply;        /* header, in the connection's ring; NULL until its turn comes */
    uint32_t reply_header_sent;
    bool is_marked;          /* the whole reply is with the stream */
    struct stream_mark mark; /* behind it */
};

enum nbd_state { NBD_HANDSHAKE, NBD_TRANSMISSION, NBD_DRAINING, NBD_CLOSED };

/* What only the handshake needs; freed when transmission begins. */
struct nbd_handshake {
    enum { AWAIT_FLAGS, AWAIT_OPTION, AWAIT_DATA, SKIP_DATA } step;
    uint32_t client_flags;
    uint32_t option;
    uint32_t option_bytes; /* still to come when skipping */
    uint32_t skip_reply;   /* the error behind what is skipped */
    struct nbd_connection *connection;
    struct stream_mark mark;
    bool mark_is_placed;
    size_t out_used; /* replies not yet acknowledged */
    size_t out_sent; /* of them, taken by the stream */
    uint8_t out[8192];
};

struct nbd_connection {
    struct nbd_connection *next;
    struct stream *stream;
    enum nbd_state state;
    const struct nbd_export *export;
    struct nbd_handshake *handshake;
    bool has_work; /* on the server's list of connections to run */
    struct nbd_connection *next_to_run;
    bool wants_memory;     /* waits for buffers */
    struct timer deadline; /* of the handshake, or of draining */
    bool is_late;
    /* Set from the disks' tasks: ios that came back, in order. */
    struct nbd_io *finished_first;
    struct nbd_io *finished_last;
    /* Requests. */
    struct nbd_request *requests;
    struct nbd_request *free_requests;
    unsigned requests_in_use;
    struct nbd_request *receiving; /* a write whose payload is being received */
    uint32_t skip_bytes;           /* payload of a refused write */
    struct nbd_request *skip_request;
    struct nbd_request *reply_first;
    struct nbd_request *reply_last;
    size_t buffer_bytes; /* of the payload pool, held by this connection, in whole pages */
    size_t ios_held;
    /* Reply headers lie side by side, so that neighbours leave as one piece. */
    uint8_t *reply_ring;
    unsigned reply_ring_next;
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t requests_total;
};

/* --- server.c ----------------------------------------------------------------------------------
 */

/* Runs the connection in this round or the next; from any task. */
void nbd_schedule(struct nbd_connection *connection);

/* Ends the connection if it is still in the state it is in now after `timeout_ms`. */
void nbd_set_deadline(struct nbd_connection *connection, uint64_t timeout_ms);

/* No more requests are taken; what is begun is finished and answered, by a deadline. */
void nbd_begin_draining(struct nbd_connection *connection);

/* Ends a connection at once, saying why in the log. */
void nbd_abort(struct nbd_connection *connection, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

bool nbd_is_shutting_down(void);
bool nbd_may_list(void);

/* An io, with a contiguous buffer of up to `buffer_bytes` (0 for none; less when memory is in
 * pieces) that is charged to the connection. NULL when the connection has to wait: it is run again
 * when memory comes back. */
struct nbd_io *nbd_io_take(struct nbd_connection *connection, size_t buffer_bytes);
void nbd_io_give(struct nbd_connection *connection, struct nbd_io *io);

/* --- handshake.c -------------------------------------------------------------------------------
 */

/* Sends the greeting. -ENOMEM. */
int nbd_handshake_begin(struct nbd_connection *connection);
/* Goes on as far as what has arrived allows. */
void nbd_handshake_run(struct nbd_connection *connection);
/* Goes on sending what the handshake has left to say; true when the stream has taken it all, so
 * that something else may follow. Frees the handshake's memory when it is not needed any more. */
bool nbd_handshake_flush(struct nbd_connection *connection);
void nbd_handshake_end(struct nbd_connection *connection);

/* --- transmission.c ----------------------------------------------------------------------------
 */

/* Allocates what transmission needs. -ENOMEM. */
int nbd_transmission_begin(struct nbd_connection *connection);
/* Takes requests and sends replies, bounded; true when there is more to do at once. */
bool nbd_transmission_run(struct nbd_connection *connection);
/* No request is in flight and no reply unacknowledged. */
bool nbd_transmission_is_idle(const struct nbd_connection *connection);
/* The connection is closed: forgets what waits for its stream. What the disk or the stream still
 * has comes back later, through nbd_transmission_run. */
void nbd_transmission_drop(struct nbd_connection *connection);
void nbd_transmission_end(struct nbd_connection *connection);

/* Takes a request back whose last byte the client has, with what it still holds. */
void nbd_request_give(struct nbd_request *request);

/* The client has the bytes of this chunk: on to the next part of its read, or back to the pool. */
void nbd_chunk_acknowledged(struct nbd_io *io);

/* --- reply.c -----------------------------------------------------------------------------------
 */

/* A request can be answered: its turn comes when those queued before it are sent. */
void nbd_reply_queue(struct nbd_request *request);

/* Sends as much as is ready and the stream takes. May end the connection. */
void nbd_replies_send(struct nbd_connection *connection);

#endif
