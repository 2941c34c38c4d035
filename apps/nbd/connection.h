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
#include "apps/nbd/line.h"
#include "apps/nbd/wire.h"
#include "blk/block.h"
#include "config/limits.h"
#include "core/task/timer.h"
#include "net/stream.h"

struct nbd_connection;
struct nbd_request;
struct nbd_turns;

/* One block request on behalf of an NBD request: a piece of a write with the packets it came in, a
 * step of a trim, or a chunk of a read with the buffer it goes out from. */
struct nbd_io {
    struct block_request block;
    struct nbd_request *request;
    struct nbd_io *next;    /* in the request's list of chunks, or a list of finished ones */
    struct segment whole;   /* what the disk is given: the buffer, where there is one, ... */
    struct segment *pieces; /* ... or those of a loan: BLOCK_SEGMENTS_MAX, beside */
    struct stream_loan loan;
    void *buffer; /* from the payload pool */
    size_t buffer_bytes;
    /* Chunks: the part of the request that this one answers, and what goes out for it. */
    uint64_t offset;
    uint64_t covers;
    uint32_t data_bytes; /* of the buffer */
    uint32_t data_sent;
    uint16_t type;        /* NBD_REPLY_TYPE */
    uint8_t header_bytes; /* 0: not begun, or none of its own */
    uint8_t header_sent;
    uint8_t header[NBD_EXTENDED_REPLY_BYTES + NBD_HOLE_BYTES];
    enum { IO_IDLE, IO_ON_DISK, IO_READY, IO_ON_WIRE } state;
    bool ends_reply; /* its last byte is that of the reply, whose mark it is too */
    struct stream_parcel parcel;
};

struct nbd_request {
    struct nbd_connection *connection;
    struct nbd_request *next; /* free list, or the queue of replies */
    struct nbd_request_header header;
    uint64_t received_ns;
    /* From here up to `error_offset` all is zero when a request is taken (nbd_request_take). */
    int error;             /* the first one */
    uint32_t payload_left; /* of a write, to be given to the disk */
    bool has_error_offset; /* it is the disk's, and was met there */
    bool flush_at_end;     /* FUA on what took several block requests */
    bool may_have_holes;   /* of a read: what is known to be zero is told, not read */
    bool is_queued;        /* in the queue of replies */
    bool is_begun;         /* the reply's first byte is encoded */
    bool needs_last;       /* a chunk that says "done" is still to come */
    bool is_marked;       /* the whole reply is with the stream; perhaps by its last chunk's mark */
    uint8_t head_bytes;   /* in the connection's ring: a simple reply, or a chunk */
    uint64_t length_left; /* not yet asked of the disk */
    uint64_t reply_left;  /* of a read or a status: not yet answered by chunks that are sent */
    const char *text;     /* behind the head; constant */
    unsigned ios_on_disk;
    unsigned ios_on_wire; /* chunks sent and not acknowledged */
    uint8_t head_sent;
    struct nbd_io *chunks; /* in the order of what they cover; of a write: the flush to come */
    uint64_t error_offset;
    uint64_t offset_next; /* where the next piece, step or chunk goes */
    uint16_t text_sent;
    uint8_t *head;
    struct stream_mark mark; /* behind it all */
};

/* Ios that a connection keeps for itself: without a buffer, and with a page. */
enum { NBD_SPARE_KINDS = 2 };

enum nbd_state { NBD_HANDSHAKE, NBD_TRANSMISSION, NBD_DRAINING, NBD_CLOSED };

/* What only the handshake needs; freed when transmission begins. */
struct nbd_handshake {
    enum { AWAIT_FLAGS, AWAIT_OPTION, AWAIT_DATA, SKIP_DATA } step;
    uint32_t client_flags;
    uint32_t option;
    uint32_t option_bytes; /* still to come when skipping */
    uint32_t skip_reply;   /* the error behind what is skipped */
    struct nbd_connection *connection;
    const struct nbd_export *context_export; /* base:allocation was chosen for it */
    struct stream_mark mark;
    bool mark_is_placed;
    size_t out_used; /* replies not yet acknowledged */
    size_t out_sent; /* of them, taken by the stream */
    size_t out_bytes;
    uint8_t out[];
};

struct nbd_connection {
    struct nbd_connection *next;
    struct stream *stream;
    enum nbd_state state;
    enum nbd_mode mode;
    bool has_allocation; /* base:allocation was chosen */
    bool is_read_only;   /* by the client's address, whatever the export says */
    bool is_short;       /* what has arrived is less than a request */
    const struct nbd_export *export;
    struct nbd_handshake *handshake;
    bool has_work; /* on the server's list of connections to run */
    struct nbd_connection *next_to_run;
    bool wants_memory; /* waits for buffers */
    /* It is run when one of its requests has ended: it lacks one, or waits for the last. */
    bool awaits_requests;
    struct timer deadline; /* of the handshake, of draining, or of being idle */
    bool is_late;
    uint64_t active_ns;           /* when its last request came */
    struct nbd_place limit_place; /* waiting for its turn under the export's limits */
    struct nbd_place turn_place;  /* waiting for its turn at the disk (turn.h) */
    struct nbd_turns *turns;
    unsigned turn_left; /* requests of the turn that it has */
    /* Set from the disks' tasks: ios that came back, in order. */
    struct nbd_io *finished_first;
    struct nbd_io *finished_last;
    /* Requests. */
    struct nbd_request *requests;
    struct nbd_request *free_requests;
    unsigned requests_in_use;
    unsigned ios_on_disk;
    struct nbd_request *receiving; /* a write whose payload is being received */
    uint32_t skip_bytes;           /* payload of a refused write */
    struct nbd_request *skip_request;
    struct nbd_request *reply_first;
    struct nbd_request *reply_last;
    size_t buffer_bytes; /* of the payload pool, held by this connection, in whole pages */
    size_t ios_held;
    struct nbd_io *spare[NBD_SPARE_KINDS]; /* for its next small requests */
    /* Reply headers lie side by side, so that neighbours leave as one piece. */
    uint8_t *reply_ring;
    size_t reply_ring_bytes;
    size_t reply_ring_next;
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

/* From now on the connection is ended when it has had no request for as long as is configured. */
void nbd_watch_idle(struct nbd_connection *connection);

/* No more requests are taken; what is begun is finished and answered, by a deadline. */
void nbd_begin_draining(struct nbd_connection *connection);

/* Ends a connection at once, saying why in the log. */
void nbd_abort(struct nbd_connection *connection, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

bool nbd_is_shutting_down(void);
bool nbd_may_list(void);

/* All of them, by `next`. */
struct nbd_connection *nbd_connections(void);
unsigned nbd_connection_count(void);

/* --- memory.c ----------------------------------------------------------------------------------
 */

/* Takes what all clients share from the heap. 0 or a negative errno, said in the log. */
int nbd_memory_take(void);
/* How much of it is free, in words. */
void nbd_memory_tell(char *text, size_t bytes);

/* How many requests a connection may have in flight: NBD_REQUESTS_PER_CONNECTION, or fewer where
 * memory is short. */
unsigned nbd_requests_max(void);

/* An io, with a contiguous buffer of up to `buffer_bytes` (0 for none; less when memory is in
 * pieces) that is charged to the connection. NULL when the connection has to wait: it is run again
 * when memory comes back. */
struct nbd_io *nbd_io_take(struct nbd_connection *connection, size_t buffer_bytes);
void nbd_io_give(struct nbd_connection *connection, struct nbd_io *io);
/* The same for one that was taken a moment ago and not used: nobody is run again, for whoever waits
 * could do no more than before. Two who wake each other so would leave the disk no turn. */
void nbd_io_put_back(struct nbd_connection *connection, struct nbd_io *io);
/* The connection is run again when memory comes back. */
void nbd_io_wait(struct nbd_connection *connection);
/* Those that the connection keeps for its next small requests. */
void nbd_io_give_spares(struct nbd_connection *connection);

/* --- handshake.c -------------------------------------------------------------------------------
 */

/* What a handshake takes of the heap. */
size_t nbd_handshake_bytes(void);
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

/* How many requests in flight a connection can have in so many bytes of the heap. */
unsigned nbd_transmission_requests_in(size_t bytes);
/* Allocates what transmission needs. -ENOMEM. */
int nbd_transmission_begin(struct nbd_connection *connection);
/* Takes requests, bounded, if it is to, and sends replies; true when there is more to do at once.
 */
bool nbd_transmission_run(struct nbd_connection *connection, bool takes_requests);
/* No request is in flight and no reply unacknowledged. */
bool nbd_transmission_is_idle(const struct nbd_connection *connection);
/* The connection is closed: forgets what waits for its stream. What the disk or the stream still
 * has comes back later, through nbd_transmission_run. */
void nbd_transmission_drop(struct nbd_connection *connection);
void nbd_transmission_end(struct nbd_connection *connection);

/* For the other files of the transmission. */
struct nbd_request *nbd_request_take(struct nbd_connection *connection,
                                     const struct nbd_request_header *header);
/* Takes a request back whose last byte the client has, with what it still holds. */
void nbd_request_give(struct nbd_request *request);
/* On a closed connection: the request goes when neither disk nor stream has anything of it. */
void nbd_request_give_if_unused(struct nbd_request *request);
/* Submits the io's segments; it comes back through nbd_transmission_run. */
void nbd_submit(struct nbd_io *io, enum block_operation operation, unsigned flags, uint64_t offset,
                uint64_t length, unsigned segment_count);

/* --- check.c -----------------------------------------------------------------------------------
 */

/* The one validator: 0, or what to answer as a negative errno. */
int nbd_request_check(const struct nbd_connection *connection,
                      const struct nbd_request_header *header);

/* --- read.c ------------------------------------------------------------------------------------
 */

/* READ, CACHE. False when there is no memory for it now: nothing has happened. */
bool nbd_read_begin(struct nbd_connection *connection, const struct nbd_request_header *header);
/* BLOCK_STATUS; likewise. */
bool nbd_status_begin(struct nbd_connection *connection, const struct nbd_request_header *header);
void nbd_read_done(struct nbd_io *io);
/* The client has the bytes of this chunk: on to the next part of its read, or back to the pool. */
void nbd_chunk_acknowledged(struct nbd_io *io);

/* --- write.c -----------------------------------------------------------------------------------
 */

/* WRITE; its payload is what comes next. False when there is no memory for it now. */
bool nbd_write_begin(struct nbd_connection *connection, const struct nbd_request_header *header);
/* Hands the next piece of the payload to the disk. False when nothing could be done now. */
bool nbd_write_receive(struct nbd_connection *connection);
void nbd_write_done(struct nbd_io *io);
/* FLUSH, TRIM, WRITE_ZEROES. False when there is no memory for it now. */
bool nbd_effect_begin(struct nbd_connection *connection, const struct nbd_request_header *header);
void nbd_effect_done(struct nbd_io *io);

/* --- reply.c -----------------------------------------------------------------------------------
 */

/* What the replies of a connection need of memory for so many requests; of one in any mode, for
 * each. */
size_t nbd_replies_bytes(const struct nbd_connection *connection, unsigned requests);
size_t nbd_reply_bytes_max(void);
/* The memory for them; it stays the caller's. */
void nbd_replies_begin(struct nbd_connection *connection, uint8_t *memory, size_t bytes);

/* A request can be answered: its turn comes when those queued before it are sent. */
void nbd_reply_queue(struct nbd_request *request);

/* Sends as much as is ready and the stream takes. May end the connection. */
void nbd_replies_send(struct nbd_connection *connection);
/* Before the stream is closed: a reply that is sent in part keeps its memory until no device looks
 * at it any more. */
void nbd_replies_abandon(struct nbd_connection *connection);

#endif
