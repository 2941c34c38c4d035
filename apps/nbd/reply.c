/* Replies: one after the other, each header followed by its data, by reference (NBD protocol,
 * "Simple reply message"). A request is queued when it can be answered, which for a long read is
 * when its first chunk is there; behind the last byte of each chunk and of each reply a mark tells
 * when the client has it. */
#include "apps/nbd/connection.h"
#include "core/log.h"
#include "core/panic.h"

void nbd_reply_queue(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    ASSERT(!request->is_queued);
    request->is_queued = true;
    request->next = NULL;
    if (connection->reply_last != NULL) {
        connection->reply_last->next = request;
    } else {
        connection->reply_first = request;
    }
    connection->reply_last = request;
}

static struct nbd_request *request_of_mark(struct stream_mark *mark) {
    return (struct nbd_request *)(void *)((char *)mark - offsetof(struct nbd_request, mark));
}

static void chunk_released(struct stream_mark *mark) {
    nbd_chunk_acknowledged((struct nbd_io *)(void *)((char *)mark - offsetof(struct nbd_io, mark)));
}

static void reply_released(struct stream_mark *mark) {
    nbd_request_give(request_of_mark(mark));
}

/* Headers lie in a ring of as many places as there are requests; a place is reused in order, after
 * the request that held it was acknowledged. */
static uint8_t *reply_header_place(struct nbd_connection *connection) {
    unsigned at = connection->reply_ring_next;
    connection->reply_ring_next = (at + 1) % NBD_REQUESTS_PER_CONNECTION;
    return &connection->reply_ring[(size_t)at * NBD_SIMPLE_REPLY_BYTES];
}

/* Sends what is ready of a read's data, in order. True when all of it is with the stream. */
static bool send_data(struct nbd_connection *connection, struct nbd_request *request) {
    struct stream *stream = connection->stream;
    while (request->reply_left > 0) {
        struct nbd_io *io = request->chunks;
        uint64_t position = request->header.offset + request->header.length - request->reply_left;
        if (io == NULL || io->state != IO_READY || io->block.offset + io->data_sent != position) {
            return false; /* still on the disk */
        }
        if (request->error != 0) {
            /* The header said that data follows: the protocol leaves only this. */
            nbd_abort(connection, "read of %u bytes failed half-way through its reply",
                      (unsigned)request->header.length);
            return false;
        }
        size_t sent = stream->ops->send(stream, (uint8_t *)io->buffer + io->data_sent,
                                        io->data_bytes - io->data_sent);
        io->data_sent += (uint32_t)sent;
        request->reply_left -= (uint32_t)sent;
        if (io->data_sent < io->data_bytes) {
            return false; /* acknowledgements make room */
        }
        request->chunks = io->next;
        io->state = IO_ON_WIRE;
        request->ios_on_wire++;
        io->mark.released = chunk_released;
        stream->ops->mark(stream, &io->mark);
    }
    return true;
}

static bool send_reply(struct nbd_connection *connection, struct nbd_request *request) {
    struct stream *stream = connection->stream;
    if (request->reply == NULL) {
        bool is_read = request->header.command == NBD_CMD_READ;
        request->reply = reply_header_place(connection);
        nbd_encode_simple_reply(request->reply,
                                nbd_error_of(request->error, request->header.command),
                                request->header.cookie);
        if (is_read && request->error != 0) {
            request->reply_left = 0;
            request->length_left = 0;
        }
    }
    if (request->reply_header_sent < NBD_SIMPLE_REPLY_BYTES) {
        request->reply_header_sent +=
            (uint32_t)stream->ops->send(stream, request->reply + request->reply_header_sent,
                                        NBD_SIMPLE_REPLY_BYTES - request->reply_header_sent);
        if (request->reply_header_sent < NBD_SIMPLE_REPLY_BYTES) {
            return false;
        }
    }
    return send_data(connection, request);
}

/* A failed read answers only when none of its chunks is on the disk any more. */
static bool may_reply(const struct nbd_request *request) {
    return request->error == 0 || request->reply != NULL || request->ios_on_disk == 0;
}

void nbd_replies_send(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    while (connection->state != NBD_CLOSED && connection->reply_first != NULL) {
        struct nbd_request *request = connection->reply_first;
        if (!may_reply(request) || !send_reply(connection, request)) {
            return;
        }
        connection->reply_first = request->next;
        if (connection->reply_first == NULL) {
            connection->reply_last = NULL;
        }
        request->is_marked = true;
        request->mark.released = reply_released;
        stream->ops->mark(stream, &request->mark);
    }
}
