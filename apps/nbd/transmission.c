/* Transmission: requests in, replies out (NBD protocol, "Transmission").
 *
 * A request is decoded as soon as its header is there and goes to the disk at once; replies leave
 * in the order in which the disk is done. What a request needs in memory is taken when it is
 * admitted, so none that was begun ever waits for memory that another one holds:
 *
 *   read   One buffer, or a few that a long read streams through: each is sent by reference, and
 * when the client has acknowledged it, read into again. The first leaves before the last is read.
 *   write  The received packets themselves are what the disk is given. Up to NBD_WRITE_WHOLE_BYTES
 * are received whole before the first byte is written; longer ones go in pieces of that size.
 *
 * A connection that cannot admit its next request leaves it unread, and TCP's window pushes back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/connection.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "net/counters.h"
#include "net/stack.h"

enum {
    /* Requests taken from one connection before the next one gets its turn. */
    REQUESTS_PER_ROUND = 64,
};

_Static_assert(NBD_READ_CHUNK_BYTES % 4096 == 0, "chunks are whole pages");

/* --- Requests ----------------------------------------------------------------------------------
 */

int nbd_transmission_begin(struct nbd_connection *connection) {
    connection->requests = calloc(NBD_REQUESTS_PER_CONNECTION, sizeof *connection->requests);
    connection->reply_ring = malloc((size_t)NBD_REQUESTS_PER_CONNECTION * NBD_SIMPLE_REPLY_BYTES);
    if (connection->requests == NULL || connection->reply_ring == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < NBD_REQUESTS_PER_CONNECTION; i++) {
        connection->requests[i].next =
            i + 1 < NBD_REQUESTS_PER_CONNECTION ? &connection->requests[i + 1] : NULL;
    }
    connection->free_requests = connection->requests;
    return 0;
}

void nbd_transmission_end(struct nbd_connection *connection) {
    free(connection->requests);
    free(connection->reply_ring);
}

static struct nbd_request *request_take(struct nbd_connection *connection,
                                        const struct nbd_request_header *header) {
    struct nbd_request *request = connection->free_requests;
    connection->free_requests = request->next;
    connection->requests_in_use++;
    connection->requests_total++;
    *request = (struct nbd_request){
        .connection = connection, .header = *header, .received_ns = scheduler_now_ns()};
    return request;
}

void nbd_request_give(struct nbd_request *request) {
    struct nbd_connection *connection = request->connection;
    while (request->chunks != NULL) {
        struct nbd_io *io = request->chunks;
        request->chunks = io->next;
        nbd_io_give(connection, io);
    }
    request->next = connection->free_requests;
    connection->free_requests = request;
    ASSERT(connection->requests_in_use > 0);
    connection->requests_in_use--;
    nbd_schedule(connection);
}

static void refuse(struct nbd_request *request, int error) {
    request->error = error;
    nbd_reply_queue(request);
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

static void submit(struct nbd_io *io, enum block_operation operation, unsigned flags,
                   uint64_t offset, uint64_t length, unsigned segment_count) {
    struct nbd_request *request = io->request;
    io->state = IO_ON_DISK;
    io->block = (struct block_request){.operation = operation,
                                       .flags = flags,
                                       .offset = offset,
                                       .length = length,
                                       .segments = io->segments,
                                       .segment_count = segment_count,
                                       .complete = io_complete,
                                       .owner = io};
    request->ios_on_disk++;
    block_submit(request->connection->export->device, &io->block);
}

/* Asks the disk for the next part of a read, into this chunk's buffer. */
static void submit_chunk(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    uint32_t bytes =
        request->length_left < io->buffer_bytes ? request->length_left : (uint32_t)io->buffer_bytes;
    io->data_bytes = bytes;
    io->data_sent = 0;
    io->segments[0] = (struct segment){io->buffer, bytes};
    submit(io, BLOCK_READ, 0, request->offset_next, bytes, 1);
    request->offset_next += bytes;
    request->length_left -= bytes;
}

/* A chunk whose bytes the client has, or that was only to be cached: on to the next part. */
static void chunk_recycle(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    if (request->length_left > 0 && request->error == 0) {
        submit_chunk(io);
    } else {
        nbd_io_give(request->connection, io);
    }
}

/* On a closed connection: the request goes when neither disk nor stream has anything of it. */
static void give_if_unused(struct nbd_request *request) {
    ASSERT(request->connection->state == NBD_CLOSED);
    if (request->ios_on_disk == 0 && request->ios_on_wire == 0 && !request->is_marked) {
        nbd_request_give(request);
    }
}

void nbd_chunk_acknowledged(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    ASSERT(io->state == IO_ON_WIRE && request->ios_on_wire > 0);
    request->ios_on_wire--;
    if (request->connection->state != NBD_CLOSED) {
        chunk_recycle(io);
    } else {
        nbd_io_give(request->connection, io);
        give_if_unused(request);
    }
}

static void read_done(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    bool is_cache = request->header.command == NBD_CMD_CACHE;
    if (io->block.status != 0 && request->error == 0) {
        request->error = io->block.status;
    }
    io->state = IO_READY;
    if (is_cache) {
        chunk_recycle(io);
        if (request->ios_on_disk == 0) {
            nbd_reply_queue(request);
        }
        return;
    }
    /* In the order of their data, whatever the order of completion; there are few. */
    struct nbd_io **link = &request->chunks;
    while (*link != NULL && (*link)->block.offset < io->block.offset) {
        link = &(*link)->next;
    }
    io->next = *link;
    *link = io;
    if (!request->is_queued) {
        nbd_reply_queue(request);
    }
}

static void end_of_write(struct nbd_request *request) {
    if (request->payload_left > 0 || request->ios_on_disk > 0) {
        return;
    }
    struct nbd_io *io = request->chunks;
    if (io != NULL && request->error == 0) {
        /* Kept for this: the flush that makes all pieces durable. */
        request->chunks = NULL;
        submit(io, BLOCK_FLUSH, 0, 0, 0, 0);
        return;
    }
    nbd_reply_queue(request);
}

static void io_finished(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    struct nbd_connection *connection = request->connection;
    ASSERT(request->ios_on_disk > 0 && io->state == IO_ON_DISK);
    request->ios_on_disk--;
    io->state = IO_IDLE;
    stream_return(&io->loan);
    if (connection->state == NBD_CLOSED) {
        nbd_io_give(connection, io);
        give_if_unused(request);
        return;
    }
    if (io->block.operation == BLOCK_READ) {
        read_done(io);
        return;
    }
    if (io->block.status != 0 && request->error == 0) {
        request->error = io->block.status;
    }
    nbd_io_give(connection, io);
    end_of_write(request);
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

/* --- Commands ----------------------------------------------------------------------------------
 */

/* False when there is no memory for it now: nothing has happened. */
static bool begin_read(struct nbd_connection *connection, const struct nbd_request_header *header) {
    struct nbd_io *ios[NBD_READ_CHUNKS];
    unsigned count = 0;
    uint64_t covered = 0;
    while (count < NBD_READ_CHUNKS && covered < header->length) {
        uint64_t rest = header->length - covered;
        size_t want = rest < NBD_READ_CHUNK_BYTES ? rest : NBD_READ_CHUNK_BYTES;
        ios[count] = nbd_io_take(connection, want);
        if (ios[count] == NULL) {
            break; /* one is enough to go through all of it, only slower */
        }
        covered += ios[count]->buffer_bytes;
        count++;
    }
    if (count == 0) {
        return false;
    }
    struct nbd_request *request = request_take(connection, header);
    request->offset_next = header->offset;
    request->length_left = header->length;
    request->reply_left = header->command == NBD_CMD_CACHE ? 0 : header->length;
    for (unsigned i = 0; i < count; i++) {
        ios[i]->request = request;
        if (request->length_left > 0) {
            submit_chunk(ios[i]);
        } else {
            nbd_io_give(connection, ios[i]);
        }
    }
    connection->bytes_read += header->length;
    return true;
}

static bool begin_simple(struct nbd_connection *connection,
                         const struct nbd_request_header *header) {
    struct nbd_io *io = nbd_io_take(connection, 0);
    if (io == NULL) {
        return false;
    }
    struct nbd_request *request = request_take(connection, header);
    io->request = request;
    unsigned flags = (header->flags & NBD_CMD_FLAG_FUA) != 0 ? BLOCK_FUA : 0;
    if (header->command == NBD_CMD_FLUSH) {
        submit(io, BLOCK_FLUSH, 0, 0, 0, 0);
    } else if (header->command == NBD_CMD_TRIM) {
        submit(io, BLOCK_DISCARD, flags, header->offset, header->length, 0);
    } else {
        flags |= (header->flags & NBD_CMD_FLAG_NO_HOLE) != 0 ? 0 : BLOCK_UNMAP;
        submit(io, BLOCK_WRITE_ZEROES, flags, header->offset, header->length, 0);
    }
    return true;
}

/* A write of several pieces is made durable by one flush behind them all; the io for it is taken
 * now, so that the end of a write never waits for memory. */
static bool begin_write(struct nbd_connection *connection,
                        const struct nbd_request_header *header) {
    bool is_fua = (header->flags & NBD_CMD_FLAG_FUA) != 0;
    struct nbd_io *flush_io = NULL;
    if (is_fua && (flush_io = nbd_io_take(connection, 0)) == NULL) {
        return false;
    }
    struct nbd_request *request = request_take(connection, header);
    request->payload_left = header->length;
    request->offset_next = header->offset;
    request->chunks = flush_io;
    if (flush_io != NULL) {
        flush_io->request = request;
        flush_io->next = NULL;
    }
    connection->receiving = request;
    connection->bytes_written += header->length;
    return true;
}

/* The one validator: 0, or what to answer. */
static int check_request(const struct nbd_connection *connection,
                         const struct nbd_request_header *header) {
    const struct nbd_export *export = connection->export;
    unsigned allowed = NBD_CMD_FLAG_FUA; /* some clients set it on everything: harmless */
    enum block_operation operation;
    switch (header->command) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
        operation = BLOCK_READ;
        break;
    case NBD_CMD_WRITE:
        operation = BLOCK_WRITE;
        break;
    case NBD_CMD_FLUSH:
        operation = BLOCK_FLUSH;
        break;
    case NBD_CMD_TRIM:
        operation = BLOCK_DISCARD;
        break;
    case NBD_CMD_WRITE_ZEROES:
        operation = BLOCK_WRITE_ZEROES;
        allowed |= NBD_CMD_FLAG_NO_HOLE;
        break;
    default:
        return -EINVAL;
    }
    if (nbd_is_shutting_down()) {
        return -ESHUTDOWN;
    }
    if ((header->flags & ~allowed) != 0) {
        return -EINVAL;
    }
    if (operation == BLOCK_FLUSH) {
        return header->offset == 0 && header->length == 0 ? 0 : -EINVAL;
    }
    if (operation != BLOCK_READ && export->is_read_only) {
        return -EPERM;
    }
    bool has_limit = header->command == NBD_CMD_READ || header->command == NBD_CMD_WRITE;
    if (has_limit && header->length > NBD_REQUEST_BYTES_MAX) {
        return -EINVAL;
    }
    return block_check(export->device, operation, header->offset, header->length);
}

static void log_refusal(const struct nbd_connection *connection,
                        const struct nbd_request_header *header, int error) {
    static struct log_rate rate;
    if (log_rate_allows(&rate)) {
        log_info(
            "nbd: %s export \"%s\": command %u, %u bytes at %llu, flags 0x%x refused: error %u",
            connection->stream->peer, connection->export->name, header->command,
            (unsigned)header->length, (unsigned long long)header->offset, header->flags,
            (unsigned)nbd_error_of(error, header->command));
    }
}

/* False when the request has to stay unread for now. */
static bool begin_request(struct nbd_connection *connection,
                          const struct nbd_request_header *header) {
    int error = check_request(connection, header);
    if (error) {
        log_refusal(connection, header, error);
        struct nbd_request *request = request_take(connection, header);
        if (nbd_command_has_payload(header->command) && header->length > 0) {
            connection->skip_bytes = header->length;
            connection->skip_request = request;
            request->error = error;
        } else {
            refuse(request, error);
        }
        return true;
    }
    switch (header->command) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
        return begin_read(connection, header);
    case NBD_CMD_WRITE:
        return begin_write(connection, header);
    default:
        return begin_simple(connection, header);
    }
}

/* --- Payload -----------------------------------------------------------------------------------
 */

/* The payload of a refused write is consumed before the refusal is sent. */
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

/* Copies a piece that came in too many fragments for the disk's request: packets of a few bytes
 * each. The data goes through a buffer of the pool then. */
static void copy_piece(struct stream *stream, struct nbd_io *io, uint32_t bytes) {
    stream->ops->peek(stream, io->buffer, bytes);
    stream->ops->drop(stream, bytes);
    net_counters.header_bytes_copied -= bytes;
    net_counters.bytes_copied += bytes;
    io->segments[0] = (struct segment){io->buffer, bytes};
}

/* How much of the write being received goes to the disk now: 0 to wait for more. */
static uint32_t piece_bytes(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    struct nbd_request *request = connection->receiving;
    size_t have = stream->ops->received(stream);
    uint32_t block = connection->export->device->limits.block_bytes;
    size_t share = align_down(stream->ops->gather_max(stream), block);
    uint32_t most = share > NBD_WRITE_WHOLE_BYTES ? NBD_WRITE_WHOLE_BYTES : (uint32_t)share;
    most = most > block ? most : block;
    uint32_t piece = request->payload_left < most ? request->payload_left : most;
    if (have >= piece) {
        return piece;
    }
    if (stream->ops->is_under_pressure(stream)) {
        /* Gathering more would need buffers that there are not: what is there goes on. */
        return (uint32_t)align_down(have, block);
    }
    stream->ops->gather(stream, piece);
    return 0;
}

/* Hands the next piece to the disk. False when nothing could be done now. */
static bool receive_piece(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    struct nbd_request *request = connection->receiving;
    const struct block_device *device = connection->export->device;
    uint32_t bytes = piece_bytes(connection);
    if (bytes == 0) {
        return false;
    }
    struct nbd_io *io = nbd_io_take(connection, 0);
    if (io == NULL) {
        return false;
    }
    int count = -E2BIG;
    unsigned segments_max = block_segments_max(device);
    /* Half as much, until the fragments fit; a single block may still have too many. */
    while ((count = stream->ops->take(stream, bytes, io->segments, segments_max, &io->loan)) < 0 &&
           bytes > device->limits.block_bytes) {
        bytes = (uint32_t)align_up(bytes / 2, device->limits.block_bytes);
    }
    if (count < 0) {
        nbd_io_give(connection, io);
        io = nbd_io_take(connection, bytes);
        if (io == NULL || io->buffer_bytes < bytes) {
            if (io != NULL) {
                nbd_io_give(connection, io);
            }
            return false;
        }
        copy_piece(stream, io, bytes);
        count = 1;
    }
    bool is_whole = bytes == request->header.length;
    unsigned flags = 0;
    if (is_whole && request->chunks != NULL) {
        /* One piece: the block layer makes it durable by itself. */
        flags = BLOCK_FUA;
        nbd_io_give(connection, request->chunks);
        request->chunks = NULL;
    }
    io->request = request;
    request->payload_left -= bytes;
    submit(io, BLOCK_WRITE, flags, request->offset_next, bytes, (unsigned)count);
    request->offset_next += bytes;
    if (request->payload_left == 0) {
        connection->receiving = NULL;
    }
    return true;
}

/* --- The round ---------------------------------------------------------------------------------
 */

/* One step of taking in; false when there is nothing to take in now. */
static bool take_step(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    if (connection->skip_bytes > 0) {
        return skip_payload(connection);
    }
    if (connection->receiving != NULL) {
        return receive_piece(connection);
    }
    if (connection->free_requests == NULL || stream->ops->received(stream) < NBD_REQUEST_BYTES) {
        return false;
    }
    uint8_t bytes[NBD_REQUEST_BYTES];
    struct nbd_request_header header;
    stream->ops->peek(stream, bytes, sizeof bytes);
    nbd_decode_request(bytes, &header);
    if (header.magic != NBD_REQUEST_MAGIC) {
        nbd_abort(connection, "sends 0x%08x where a request was due", (unsigned)header.magic);
        return false;
    }
    if (header.command == NBD_CMD_DISC) {
        log_info("nbd: %s disconnects", stream->peer);
        nbd_begin_draining(connection);
        return false;
    }
    if (!begin_request(connection, &header)) {
        return false;
    }
    stream->ops->drop(stream, sizeof bytes);
    return true;
}

bool nbd_transmission_run(struct nbd_connection *connection) {
    unsigned budget = REQUESTS_PER_ROUND;
    take_finished(connection);
    while (budget > 0 && connection->state == NBD_TRANSMISSION && take_step(connection)) {
        budget--;
    }
    if (connection->state != NBD_CLOSED) {
        nbd_replies_send(connection);
    }
    if (connection->state != NBD_CLOSED) {
        connection->stream->ops->expect_reply(
            connection->stream, connection->requests_in_use > 0 && connection->receiving == NULL);
    }
    return budget == 0 && connection->state == NBD_TRANSMISSION;
}

bool nbd_transmission_is_idle(const struct nbd_connection *connection) {
    return connection->requests_in_use == 0;
}

void nbd_transmission_drop(struct nbd_connection *connection) {
    ASSERT(connection->state == NBD_CLOSED);
    if (connection->receiving != NULL) {
        give_if_unused(connection->receiving);
        connection->receiving = NULL;
    }
    if (connection->skip_request != NULL) {
        give_if_unused(connection->skip_request);
        connection->skip_request = NULL;
        connection->skip_bytes = 0;
    }
    struct nbd_request *request = connection->reply_first;
    connection->reply_first = NULL;
    connection->reply_last = NULL;
    while (request != NULL) {
        struct nbd_request *next = request->next;
        give_if_unused(request);
        request = next;
    }
    /* Last: this gives requests back, which must not stand in a list any more. */
    take_finished(connection);
}
