/* Replies, one after the other, by reference (NBD protocol, "Simple reply message", "Structured
 * reply chunk message", "Extended reply chunk message"). A request is queued when it can be
 * answered, which for a long read is when its first chunk is there.
 *
 *   simple      head: the reply's header, then the data of all chunks.
 *   in chunks   A read or a status: each chunk with a header of its own, the last one says "done",
 * or, after an error, a last chunk that tells it. A read that must not be fragmented: a head that
 * announces all of the data, the data, a last chunk. Everything else: a head that is the last
 * chunk.
 *
 * Heads and last chunks lie in the connection's ring, headers of chunks in their ios. Behind the
 * last byte of each chunk and of each reply a mark tells when the client has it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/connection.h"
#include "core/log.h"
#include "core/panic.h"

enum {
    /* What one reply may take of the ring: a head that announces data, and a last chunk. */
    HEAD_BYTES_MAX = NBD_EXTENDED_REPLY_BYTES + NBD_DATA_PREFIX_BYTES,
    LAST_BYTES_MAX = NBD_EXTENDED_REPLY_BYTES + NBD_ERROR_OFFSET_BYTES,
};

_Static_assert(HEAD_BYTES_MAX <= UINT8_MAX && LAST_BYTES_MAX <= UINT8_MAX, "kept in bytes");

size_t nbd_reply_bytes_max(void) {
    return HEAD_BYTES_MAX + LAST_BYTES_MAX;
}

size_t nbd_replies_bytes(const struct nbd_connection *connection, unsigned requests) {
    size_t each = connection->mode == NBD_SIMPLE ? NBD_SIMPLE_REPLY_BYTES : nbd_reply_bytes_max();
    /* And one more, for what is left over where the ring ends. */
    return (requests + 1) * each;
}

void nbd_replies_begin(struct nbd_connection *connection, uint8_t *memory, size_t bytes) {
    connection->reply_ring = memory;
    connection->reply_ring_bytes = bytes;
}

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

static void reply_acknowledged(struct nbd_request *request) {
    if (request->connection->state != NBD_CLOSED) {
        nbd_request_give(request);
    } else {
        request->is_marked = false;
        nbd_request_give_if_unused(request); /* the disk may still have some of it */
    }
}

static void reply_released(struct stream_mark *mark) {
    reply_acknowledged(request_of_mark(mark));
}

static void chunk_released(struct stream_mark *mark) {
    struct nbd_io *io =
        (struct nbd_io *)(void *)((char *)mark - offsetof(struct nbd_io, parcel.mark));
    struct nbd_request *request = io->request;
    bool ends_reply = io->ends_reply; /* the io is another's when it is given back */
    nbd_chunk_acknowledged(io);
    if (ends_reply) {
        reply_acknowledged(request);
    }
}

void nbd_replies_abandon(struct nbd_connection *connection) {
    struct nbd_request *request = connection->reply_first;
    if (request != NULL && request->is_begun) {
        request->is_marked = true;
        request->mark.released = reply_released;
        connection->stream->ops->mark(connection->stream, &request->mark);
    }
}

/* --- What is said ------------------------------------------------------------------------------
 */

/* Places follow each other in the order in which replies are sent, and are free again in that order
 * when their requests are given back; the ring is long enough for as many as there can be. */
static uint8_t *ring_place(struct nbd_connection *connection, size_t bytes) {
    if (connection->reply_ring_next + bytes > connection->reply_ring_bytes) {
        connection->reply_ring_next = 0;
    }
    uint8_t *place = &connection->reply_ring[connection->reply_ring_next];
    connection->reply_ring_next += bytes;
    return place;
}

static void put_head(struct nbd_request *request, size_t bytes) {
    request->head = ring_place(request->connection, bytes);
    request->head_bytes = (uint8_t)bytes;
    request->head_sent = 0;
}

/* The chunk that ends the reply: nothing, or the error, with where it was met or in words. */
static void put_last_chunk(struct nbd_request *request) {
    enum nbd_mode mode = request->connection->mode;
    const struct nbd_request_header *header = &request->header;
    uint32_t error = nbd_error_of(request->error, header->command);
    size_t bytes = nbd_chunk_header_bytes(mode);
    request->needs_last = false;
    if (error == 0) {
        put_head(request, bytes);
        (void)nbd_encode_chunk(request->head, mode, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE,
                               header, 0); /* as long as its place */
        return;
    }
    bool has_offset = request->has_error_offset;
    const char *text = has_offset ? "" : nbd_error_text(error);
    size_t error_bytes = has_offset ? NBD_ERROR_OFFSET_BYTES : NBD_ERROR_BYTES;
    put_head(request, bytes + error_bytes);
    uint8_t *at = request->head;
    at += nbd_encode_chunk(at, mode, NBD_REPLY_FLAG_DONE,
                           has_offset ? NBD_REPLY_TYPE_ERROR_OFFSET : NBD_REPLY_TYPE_ERROR, header,
                           (uint32_t)(error_bytes + strlen(text)));
    nbd_put32(at, error);
    nbd_put16(at + 4, (uint16_t)strlen(text));
    if (has_offset) {
        nbd_put64(at + 6, request->error_offset);
    }
    request->text = text;
    request->text_sent = 0;
}

/* A read that must not be fragmented: one chunk of data, whatever it is sent from. It is the last
 * one if nothing can go wrong any more. */
static void put_data_head(struct nbd_request *request) {
    enum nbd_mode mode = request->connection->mode;
    const struct nbd_request_header *header = &request->header;
    bool is_all_there = request->length_left == 0 && request->ios_on_disk == 0;
    put_head(request, nbd_chunk_header_bytes(mode) + NBD_DATA_PREFIX_BYTES);
    size_t bytes = nbd_encode_chunk(request->head, mode, is_all_there ? NBD_REPLY_FLAG_DONE : 0,
                                    NBD_REPLY_TYPE_OFFSET_DATA, header,
                                    NBD_DATA_PREFIX_BYTES + (uint32_t)header->length);
    nbd_put64(request->head + bytes, header->offset);
    request->needs_last = !is_all_there;
}

static bool is_whole(const struct nbd_request *request) {
    return (request->header.flags & NBD_CMD_FLAG_DF) != 0;
}

static void begin_reply(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    uint16_t command = request->header.command;
    bool has_content = command == NBD_CMD_READ || command == NBD_CMD_BLOCK_STATUS;
    request->is_begun = true;
    if (request->error != 0) {
        request->reply_left = 0;
        request->length_left = 0;
    }
    if (connection->mode == NBD_SIMPLE) {
        put_head(request, NBD_SIMPLE_REPLY_BYTES);
        nbd_encode_simple_reply(request->head, nbd_error_of(request->error, command),
                                request->header.cookie);
    } else if (request->error != 0 || !has_content) {
        put_last_chunk(request);
    } else if (is_whole(request)) {
        put_data_head(request);
    } else {
        request->needs_last = true;
    }
}

/* The header of a chunk that has one of its own. */
static void begin_chunk(struct nbd_request *request, struct nbd_io *io) {
    enum nbd_mode mode = request->connection->mode;
    /* What it holds is there, so nothing can go wrong with it any more. */
    bool is_last = io->covers == request->reply_left;
    uint32_t prefix_bytes = io->type == NBD_REPLY_TYPE_OFFSET_DATA   ? NBD_DATA_PREFIX_BYTES
                            : io->type == NBD_REPLY_TYPE_OFFSET_HOLE ? NBD_HOLE_BYTES
                                                                     : 0;
    size_t bytes = nbd_encode_chunk(io->header, mode, is_last ? NBD_REPLY_FLAG_DONE : 0, io->type,
                                    &request->header, prefix_bytes + io->data_bytes);
    if (prefix_bytes > 0) {
        nbd_put64(io->header + bytes, io->offset);
    }
    if (io->type == NBD_REPLY_TYPE_OFFSET_HOLE) {
        nbd_put32(io->header + bytes + 8, (uint32_t)io->covers);
    }
    io->header_bytes = (uint8_t)(bytes + prefix_bytes);
    io->header_sent = 0;
    if (is_last) {
        request->needs_last = false;
    }
}

/* --- Sending -----------------------------------------------------------------------------------
 */

/* True when all of the head, and of the text behind it, is with the stream. */
static bool send_head(struct nbd_request *request) {
    struct stream *stream = request->connection->stream;
    if (request->head_sent < request->head_bytes) {
        request->head_sent =
            (uint8_t)(request->head_sent +
                      stream->ops->send(stream, request->head + request->head_sent,
                                        request->head_bytes - (size_t)request->head_sent));
        if (request->head_sent < request->head_bytes) {
            return false;
        }
    }
    if (request->text == NULL) {
        return true;
    }
    size_t left = strlen(request->text) - request->text_sent;
    size_t sent =
        left > 0 ? stream->ops->send(stream, request->text + request->text_sent, left) : 0;
    request->text_sent = (uint16_t)(request->text_sent + sent);
    return sent == left;
}

/* True when all of the chunk is with the stream, and its mark behind it. */
static bool send_chunk(struct stream *stream, struct nbd_io *io) {
    struct segment header = {io->header, io->header_bytes};
    struct segment data = {io->buffer, io->data_bytes};
    if (io->header_sent < io->header_bytes) {
        if (io->header_sent == 0 && io->data_bytes > 0 &&
            stream->ops->send_whole(stream, header, data, &io->parcel)) {
            return true;
        }
        io->header_sent = (uint8_t)(io->header_sent +
                                    stream->ops->send(stream, io->header + io->header_sent,
                                                      io->header_bytes - (size_t)io->header_sent));
        if (io->header_sent < io->header_bytes) {
            return false;
        }
    }
    if (io->data_bytes > 0 && io->data_sent == 0 &&
        stream->ops->send_whole(stream, (struct segment){0}, data, &io->parcel)) {
        return true;
    }
    if (io->data_sent < io->data_bytes) {
        io->data_sent += (uint32_t)stream->ops->send(stream, (uint8_t *)io->buffer + io->data_sent,
                                                     io->data_bytes - io->data_sent);
    }
    if (io->data_sent < io->data_bytes) {
        return false;
    }
    stream->ops->mark(stream, &io->parcel.mark);
    return true;
}

/* An error in the middle. With simple replies the header has said that data follows, and the
 * protocol leaves only one thing to do; chunks end here, with one that tells the error, when none
 * is on the disk any more. True when the content is at its end. */
static bool content_ends_by_error(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    if (connection->mode == NBD_SIMPLE) {
        nbd_abort(connection, "read of %llu bytes failed half-way through its reply",
                  (unsigned long long)request->header.length);
        return false;
    }
    if (request->ios_on_disk > 0) {
        return false;
    }
    request->reply_left = 0;
    request->needs_last = true;
    return true;
}

/* After an error: what must not be fragmented goes on with zeroes in place of what failed (read.c),
 * and a chunk that is under way is finished. Of a simple reply, what failed comes in its turn. */
static bool may_go_on(const struct nbd_request *request, const struct nbd_io *ready) {
    if (request->connection->mode == NBD_SIMPLE) {
        return false;
    }
    return is_whole(request) || (ready != NULL && (ready->header_sent > 0 || ready->data_sent > 0));
}

/* Sends what is ready of the chunks, in order. True when all of it is with the stream. */
static bool send_content(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    while (request->reply_left > 0) {
        struct nbd_io *io = request->chunks;
        uint64_t position = request->header.offset + request->header.length - request->reply_left;
        bool is_ready = io != NULL && io->state == IO_READY && io->offset == position;
        if (request->error != 0 && !may_go_on(request, is_ready ? io : NULL)) {
            return (is_ready || connection->mode != NBD_SIMPLE) && content_ends_by_error(request);
        }
        if (!is_ready) {
            return false; /* still on the disk */
        }
        if (io->header_bytes == 0 && connection->mode != NBD_SIMPLE && !is_whole(request)) {
            begin_chunk(request, io);
        }
        io->ends_reply = io->covers == request->reply_left && !request->needs_last;
        io->parcel.mark.released = chunk_released;
        if (!send_chunk(connection->stream, io)) {
            return false; /* acknowledgements make room */
        }
        request->reply_left -= io->covers;
        request->chunks = io->next;
        request->is_marked = io->ends_reply;
        io->state = IO_ON_WIRE;
        request->ios_on_wire++;
    }
    return true;
}

static bool send_reply(struct nbd_request *request) {
    if (!request->is_begun) {
        begin_reply(request);
    }
    if (!send_head(request) || !send_content(request)) {
        return false;
    }
    if (request->needs_last) {
        put_last_chunk(request);
        return send_head(request);
    }
    return true;
}

/* A failed request answers only when nothing of it is on the disk any more. */
static bool may_reply(const struct nbd_request *request) {
    return request->error == 0 || request->is_begun || request->ios_on_disk == 0;
}

void nbd_replies_send(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    while (connection->state != NBD_CLOSED && connection->reply_first != NULL) {
        struct nbd_request *request = connection->reply_first;
        if (!may_reply(request) || !send_reply(request)) {
            return;
        }
        connection->reply_first = request->next;
        if (connection->reply_first == NULL) {
            connection->reply_last = NULL;
        }
        if (!request->is_marked) {
            request->is_marked = true;
            request->mark.released = reply_released;
            stream->ops->mark(stream, &request->mark);
        }
    }
}
