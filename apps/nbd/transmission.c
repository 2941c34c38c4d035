/* Transmission: requests in, replies out (NBD protocol, "Transmission").
 *
 * A request is decoded as soon as its header is there and goes to the disk at once; replies leave
 * in the order in which the disk is done. What a request needs in memory is taken when it is
 * admitted, so none that was begun ever waits for memory that another one holds.
 *
 * A connection that cannot admit its next request leaves it unread, and TCP's window pushes back.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/connection.h"
#include "apps/nbd/limit.h"
#include "apps/nbd/turn.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"

enum {
    /* What is taken from one connection before the disk begins with it, and the next one gets its
     * turn: a request is a step, and a piece of payload several. While many writes are done at
     * once, what the client says meanwhile comes in long frames, of which only the first payload
     * begins a page (virtio_net_begin_page). */
    STEPS_PER_ROUND = 64,
    PAYLOAD_STEPS = 3,
    /* The payload of a BLOCK_STATUS that names the one context there is. */
    FILTER_BYTES = NBD_STATUS_FILTER_BYTES + NBD_CONTEXT_ID_BYTES,
};

/* --- Requests ----------------------------------------------------------------------------------
 */

unsigned nbd_transmission_requests_in(size_t bytes) {
    size_t each = nbd_reply_bytes_max();
    return bytes > each ? (unsigned)((bytes - each) / (sizeof(struct nbd_request) + each)) : 0;
}

/* In one piece: requests, and behind them the ring of their replies' headers. */
int nbd_transmission_begin(struct nbd_connection *connection) {
    unsigned count = nbd_requests_max();
    size_t reply_bytes = nbd_replies_bytes(connection, count);
    connection->requests = calloc(1, count * sizeof *connection->requests + reply_bytes);
    if (connection->requests == NULL) {
        return -ENOMEM;
    }
    nbd_replies_begin(connection, (uint8_t *)&connection->requests[count], reply_bytes);
    for (unsigned i = 0; i < count; i++) {
        connection->requests[i].next = i + 1 < count ? &connection->requests[i + 1] : NULL;
    }
    connection->free_requests = connection->requests;
    return 0;
}

void nbd_transmission_end(struct nbd_connection *connection) {
    free(connection->requests); /* and the ring behind them */
}

struct nbd_request *nbd_request_take(struct nbd_connection *connection,
                                     const struct nbd_request_header *header) {
    struct nbd_request *request = connection->free_requests;
    connection->free_requests = request->next;
    connection->requests_in_use++;
    connection->requests_total++;
    memset(&request->error, 0,
           offsetof(struct nbd_request, error_offset) - offsetof(struct nbd_request, error));
    request->connection = connection;
    request->header = *header;
    request->received_ns = scheduler_now_ns();
    connection->active_ns = request->received_ns;
    return request;
}

/* Out of line: seldom is there any. */
__attribute__((noinline)) static void give_chunks(struct nbd_request *request) {
    while (request->chunks != NULL) {
        struct nbd_io *io = request->chunks;
        request->chunks = io->next;
        nbd_io_give(request->connection, io);
    }
}

void nbd_request_give(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    if (request->chunks != NULL) {
        give_chunks(request);
    }
    request->next = connection->free_requests;
    connection->free_requests = request;
    ASSERT(connection->requests_in_use > 0);
    connection->requests_in_use--;
    if (connection->awaits_requests) {
        nbd_schedule(connection);
    }
}

void nbd_request_give_if_unused(struct nbd_request *request) {
    ASSERT(request->connection->state == NBD_CLOSED);
    if (request->ios_on_disk == 0 && request->ios_on_wire == 0 && !request->is_marked) {
        nbd_request_give(request);
    }
}

/* --- To the disk and back ----------------------------------------------------------------------
 */

/* In the disk's task: everything else about it happens in the network task. */
static void io_complete(struct block_request *block) {
    struct nbd_io *io = block->owner;
    struct nbd_connection *connection = io->request->connection;
    io->next = NULL;
    if (connection->finished_last != NULL) {
        connection->finished_last->next = io;
    } else {
        connection->finished_first = io;
    }
    connection->finished_last = io;
    nbd_schedule(connection);
}

void nbd_submit(struct nbd_io *io, enum block_operation operation, unsigned flags, uint64_t offset,
                uint64_t length, unsigned segment_count) {
    struct nbd_request *request = io->request;
    io->state = IO_ON_DISK;
    /* What is the queue's own it sets itself. */
    io->block.operation = operation;
    io->block.flags = flags;
    io->block.offset = offset;
    io->block.length = length;
    io->block.segments = io->buffer != NULL ? &io->whole : io->pieces;
    io->block.segment_count = segment_count;
    io->block.complete = io_complete;
    io->block.owner = io;
    request->ios_on_disk++;
    request->connection->ios_on_disk++;
    block_submit(request->connection->export->device, &io->block);
}

static void io_finished(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    struct nbd_connection *connection = request->connection;
    ASSERT(request->ios_on_disk > 0 && io->state == IO_ON_DISK);
    request->ios_on_disk--;
    connection->ios_on_disk--;
    io->state = IO_IDLE;
    stream_return(&io->loan);
    if (connection->state == NBD_CLOSED) {
        nbd_io_give(connection, io);
        nbd_request_give_if_unused(request);
        return;
    }
    switch (request->header.command) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
        nbd_read_done(io);
        break;
    case NBD_CMD_WRITE:
        nbd_write_done(io);
        break;
    default:
        nbd_effect_done(io);
        break;
    }
}

static void take_finished(struct nbd_connection *connection) {
    while (connection->finished_first != NULL) {
        struct nbd_io *io = connection->finished_first;
        connection->finished_first = io->next;
        if (connection->finished_first == NULL) {
            connection->finished_last = NULL;
        }
        io_finished(io);
    }
}

/* --- Taking in ---------------------------------------------------------------------------------
 */

static void log_refusal(const struct nbd_connection *connection,
                        const struct nbd_request_header *header, int error) {
    static struct log_rate rate;
    if (log_rate_allows(&rate)) {
        log_info(
            "nbd: %s export \"%s\": command %u, %llu bytes at %llu, flags 0x%x refused: error %u",
            connection->stream->peer, connection->export->name, header->command,
            (unsigned long long)header->length, (unsigned long long)header->offset, header->flags,
            (unsigned)nbd_error_of(error, header->command));
    }
}

static void refuse(struct nbd_connection *connection, const struct nbd_request_header *header,
                   uint32_t payload_bytes, int error) {
    log_refusal(connection, header, error);
    nbd_limit_leave(connection);
    struct nbd_request *request = nbd_request_take(connection, header);
    request->error = error;
    if (payload_bytes > 0) {
        connection->skip_bytes = payload_bytes;
        connection->skip_request = request;
    } else {
        nbd_reply_queue(request);
    }
}

/* False when the request has to stay unread for now. */
static bool begin_request(struct nbd_connection *connection,
                          const struct nbd_request_header *header) {
    switch (header->command) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
        return nbd_read_begin(connection, header);
    case NBD_CMD_WRITE:
        return nbd_write_begin(connection, header);
    case NBD_CMD_BLOCK_STATUS:
        return nbd_status_begin(connection, header);
    default:
        return nbd_effect_begin(connection, header);
    }
}

/* The payload of a refused request is consumed before the refusal is sent. */
static bool skip_payload(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    size_t have = stream->ops->received(stream);
    size_t bytes = have < connection->skip_bytes ? have : connection->skip_bytes;
    stream->ops->drop(stream, bytes);
    connection->skip_bytes -= (uint32_t)bytes;
    if (connection->skip_bytes > 0) {
        return false;
    }
    struct nbd_request *request = connection->skip_request;
    connection->skip_request = NULL;
    nbd_reply_queue(request);
    return true;
}

/* A BLOCK_STATUS that says which contexts it is about, of which there is one: its payload takes the
 * place of the length. 0, or what to answer. */
static int take_filter(struct nbd_request_header *header, const uint8_t *payload) {
    header->length = nbd_get64(payload);
    return nbd_get32(payload + NBD_STATUS_FILTER_BYTES) == NBD_CONTEXT_ALLOCATION ? 0 : -EINVAL;
}

/* The first `bytes` received bytes, which are there: where they lie, or copied together. */
static const uint8_t *look_at(const struct stream *stream, size_t bytes, uint8_t *copy) {
    const uint8_t *there = stream->ops->front(stream, bytes);
    if (there == NULL) {
        stream->ops->peek(stream, copy, bytes);
    }
    return there != NULL ? there : copy;
}

/* Admits the request at the front of what has arrived; false when it has to wait. */
static bool take_request(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    size_t bytes = nbd_request_bytes(connection->mode);
    /* Of this task alone; on its stack it would have to be guarded. */
    static uint8_t copy[NBD_EXTENDED_REQUEST_BYTES + FILTER_BYTES];
    struct nbd_request_header header;
    if (connection->free_requests == NULL) {
        connection->awaits_requests = true;
        return false;
    }
    if (connection->turn_left == 0 && !nbd_turn_begins(connection)) {
        return false;
    }
    nbd_decode_request(look_at(stream, bytes, copy), connection->mode, &header);
    uint32_t magic =
        connection->mode == NBD_EXTENDED ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;
    if (header.magic != magic) {
        nbd_abort(connection, "sends 0x%08x where a request was due", (unsigned)header.magic);
        return false;
    }
    if (header.command == NBD_CMD_DISC) {
        log_info("nbd: %s disconnects", stream->peer);
        nbd_begin_draining(connection);
        return false;
    }
    uint64_t payload = nbd_payload_bytes(connection->mode, &header);
    if (connection->mode == NBD_EXTENDED && payload > NBD_REQUEST_BYTES_MAX) {
        nbd_abort(connection, "announces %llu bytes of payload", (unsigned long long)payload);
        return false;
    }
    int error = 0;
    if (header.command == NBD_CMD_BLOCK_STATUS && payload > 0) {
        if (payload == FILTER_BYTES) {
            bytes += FILTER_BYTES;
            connection->is_short = stream->ops->received(stream) < bytes;
            if (connection->is_short) {
                return false;
            }
            error = take_filter(&header, look_at(stream, bytes, copy) + NBD_EXTENDED_REQUEST_BYTES);
            payload = 0;
        } else {
            error = -EINVAL; /* none, the same twice, or one that there is not */
        }
    }
    error = error ? error : nbd_request_check(connection, &header);
    if (error) {
        refuse(connection, &header, (uint32_t)payload, error);
    } else if (!nbd_limit_allows(connection) || !begin_request(connection, &header)) {
        return false;
    } else {
        nbd_limit_charge(connection, &header);
    }
    connection->turn_left--;
    stream->ops->drop(stream, bytes);
    return true;
}

/* --- The round ---------------------------------------------------------------------------------
 */

/* Nothing is under way, and the next request is not all there. */
static bool is_short(struct nbd_connection *connection) {
    connection->is_short =
        connection->stream->ops->received(connection->stream) < nbd_request_bytes(connection->mode);
    return connection->is_short;
}

/* One step of taking in; false when there is nothing to take in now. */
static bool take_step(struct nbd_connection *connection) {
    if (connection->skip_bytes > 0) {
        return skip_payload(connection);
    }
    if (connection->receiving != NULL) {
        return nbd_write_receive(connection);
    }
    return !is_short(connection) && take_request(connection);
}

static enum stream_outlook outlook(const struct nbd_connection *connection) {
    bool owes_reply = connection->ios_on_disk > 0 || connection->reply_first != NULL;
    if (owes_reply && connection->receiving == NULL) {
        return STREAM_WILL_REPLY;
    }
    /* Who waits for requests or memory waits for acknowledgements, perhaps those of others; and who
     * waits for a turn keeps receive buffers. */
    bool waits = connection->awaits_requests || connection->wants_memory ||
                 nbd_place_is_taken(&connection->limit_place) ||
                 nbd_place_is_taken(&connection->turn_place);
    return connection->receiving != NULL || connection->skip_bytes > 0 || waits
               ? STREAM_MAY_REPLY
               : STREAM_HAS_REPLIED;
}

/* False when there is nothing to take in, or nothing that can be now. Where clients wait for turns,
 * those of who writes are as long as those of who reads. */
static bool take_in(struct nbd_connection *connection) {
    unsigned payload_steps = nbd_turns_are_awaited() ? 1 : PAYLOAD_STEPS;
    unsigned budget = STEPS_PER_ROUND;
    while (budget >= payload_steps && connection->state == NBD_TRANSMISSION) {
        unsigned steps = connection->receiving != NULL ? payload_steps : 1;
        if (!take_step(connection)) {
            return false;
        }
        budget -= steps;
    }
    return connection->state == NBD_TRANSMISSION &&
           (connection->skip_bytes > 0 || connection->receiving != NULL || !is_short(connection));
}

bool nbd_transmission_run(struct nbd_connection *connection, bool takes_requests) {
    connection->awaits_requests = connection->state != NBD_TRANSMISSION;
    if (connection->finished_first != NULL) {
        take_finished(connection);
    }
    bool has_more = takes_requests ? take_in(connection) : !connection->is_short;
    connection->turn_left = 0; /* what is left of a turn is not kept */
    if (connection->state != NBD_CLOSED) {
        nbd_replies_send(connection);
    }
    if (connection->state != NBD_CLOSED) {
        connection->stream->ops->expect(connection->stream, outlook(connection));
    }
    return has_more && connection->state == NBD_TRANSMISSION;
}

bool nbd_transmission_is_idle(const struct nbd_connection *connection) {
    return connection->requests_in_use == 0;
}

void nbd_transmission_drop(struct nbd_connection *connection) {
    ASSERT(connection->state == NBD_CLOSED);
    if (connection->receiving != NULL) {
        nbd_request_give_if_unused(connection->receiving);
        connection->receiving = NULL;
    }
    if (connection->skip_request != NULL) {
        nbd_request_give_if_unused(connection->skip_request);
        connection->skip_request = NULL;
        connection->skip_bytes = 0;
    }
    struct nbd_request *request = connection->reply_first;
    connection->reply_first = NULL;
    connection->reply_last = NULL;
    while (request != NULL) {
        struct nbd_request *next = request->next;
        nbd_request_give_if_unused(request);
        request = next;
    }
    /* Last: this gives requests back, which must not stand in a list any more. */
    take_finished(connection);
}
