/* Requests that change the disk: WRITE with its payload, and FLUSH, TRIM, WRITE_ZEROES.
 *
 * The received packets of a write themselves are what the disk is given. Up to
 * NBD_WRITE_WHOLE_BYTES are received whole before the first byte is written; longer ones go in
 * pieces of that size.
 *
 * A trim or a zeroing of any length goes in steps, one after the other, so that others who wait for
 * the disk get their turn in between. */
#include <errno.h>

#include "apps/nbd/connection.h"
#include "core/panic.h"
#include "net/counters.h"

/* --- WRITE -------------------------------------------------------------------------------------
 */

static void end_of_write(struct nbd_request *request) {
    if (request->payload_left > 0 || request->ios_on_disk > 0) {
        return;
    }
    struct nbd_io *io = request->chunks;
    if (io != NULL && request->error == 0) {
        /* Kept for this: the flush that makes all pieces durable. */
        request->chunks = NULL;
        nbd_submit(io, BLOCK_FLUSH, 0, 0, 0, 0);
        return;
    }
    nbd_reply_queue(request);
}

void nbd_write_done(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    if (io->block.status != 0 && request->error == 0) {
        request->error = io->block.status;
    }
    nbd_io_give(request->connection, io);
    end_of_write(request);
}

/* A write of several pieces is made durable by one flush behind them all; the io for it is taken
 * now, so that the end of a write never waits for memory. */
bool nbd_write_begin(struct nbd_connection *connection, const struct nbd_request_header *header) {
    bool is_fua = (header->flags & NBD_CMD_FLAG_FUA) != 0;
    struct nbd_io *flush_io = NULL;
    if (is_fua && (flush_io = nbd_io_take(connection, 0)) == NULL) {
        return false;
    }
    struct nbd_request *request = nbd_request_take(connection, header);
    request->payload_left = (uint32_t)header->length;
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

/* Copies a piece that came in too many fragments for the disk's request: packets of a few bytes
 * each. The data goes through a buffer of the pool then. */
static void copy_piece(struct stream *stream, struct nbd_io *io, uint32_t bytes) {
    stream->ops->peek(stream, io->buffer, bytes);
    stream->ops->drop(stream, bytes);
    net_counters.header_bytes_copied -= bytes;
    net_counters.bytes_copied += bytes;
    io->whole = (struct segment){io->buffer, bytes};
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
bool nbd_write_receive(struct nbd_connection *connection) {
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
    while ((count = stream->ops->take(stream, bytes, io->pieces, segments_max, &io->loan)) < 0 &&
           bytes > device->limits.block_bytes) {
        bytes = (uint32_t)align_up(bytes / 2, device->limits.block_bytes);
    }
    if (count < 0) {
        nbd_io_put_back(connection, io);
        io = nbd_io_take(connection, bytes);
        if (io == NULL) {
            return false;
        }
        if (io->buffer_bytes < bytes) {
            nbd_io_put_back(connection, io);
            nbd_io_wait(connection);
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
    nbd_submit(io, BLOCK_WRITE, flags, request->offset_next, bytes, (unsigned)count);
    request->offset_next += bytes;
    if (request->payload_left == 0) {
        connection->receiving = NULL;
    }
    return true;
}

/* --- FLUSH, TRIM, WRITE_ZEROES -----------------------------------------------------------------
 */

/* How much goes to the disk at once: a few of the device's requests. */
static uint64_t step_bytes(const struct block_limits *limits, enum block_operation operation) {
    uint64_t of_device =
        operation == BLOCK_DISCARD ? limits->discard_bytes_max : limits->zeroes_bytes_max;
    if (of_device == 0 || of_device > NBD_STEP_BYTES_MAX / NBD_STEP_PARTS) {
        return operation == BLOCK_DISCARD || of_device != 0 ? NBD_STEP_BYTES_MAX
                                                            : NBD_STEP_ZEROES_BYTES;
    }
    return of_device * NBD_STEP_PARTS;
}

/* The next step of a request that is not at its end. */
static void submit_step(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    const struct nbd_request_header *header = &request->header;
    const struct block_limits *limits = &request->connection->export->device->limits;
    bool is_trim = header->command == NBD_CMD_TRIM;
    enum block_operation operation = is_trim ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
    bool may_unmap = !is_trim && (header->flags & NBD_CMD_FLAG_NO_HOLE) == 0;
    bool is_fua = (header->flags & NBD_CMD_FLAG_FUA) != 0;
    uint64_t offset = request->offset_next;
    uint64_t bytes = step_bytes(limits, operation);
    if (bytes >= request->length_left) {
        bytes = request->length_left;
    } else if (is_trim && limits->discard_align_bytes != 0) {
        /* Cut where the device likes it, as the block queue does within. */
        uint64_t over = (offset + bytes) % limits->discard_align_bytes;
        bytes -= over < bytes && over % limits->block_bytes == 0 ? over : 0;
    }
    bool is_whole = bytes == header->length;
    request->flush_at_end = is_fua && !is_whole;
    request->offset_next += bytes;
    request->length_left -= bytes;
    nbd_submit(io, operation,
               (may_unmap ? BLOCK_UNMAP : 0u) | (is_fua && is_whole ? BLOCK_FUA : 0u), offset,
               bytes, 0);
}

bool nbd_effect_begin(struct nbd_connection *connection, const struct nbd_request_header *header) {
    struct nbd_io *io = nbd_io_take(connection, 0);
    if (io == NULL) {
        return false;
    }
    struct nbd_request *request = nbd_request_take(connection, header);
    io->request = request;
    request->offset_next = header->offset;
    request->length_left = header->length;
    if (header->command == NBD_CMD_FLUSH) {
        nbd_submit(io, BLOCK_FLUSH, 0, 0, 0, 0);
    } else {
        submit_step(io);
    }
    return true;
}

void nbd_effect_done(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    /* That the device does not support what it announced is not an answer to the client's question.
     */
    request->error = io->block.status != -ENOTSUP ? io->block.status : -EIO;
    if (request->error == 0 && request->length_left > 0) {
        submit_step(io);
    } else if (request->error == 0 && request->flush_at_end) {
        request->flush_at_end = false;
        nbd_submit(io, BLOCK_FLUSH, 0, 0, 0, 0);
    } else {
        nbd_io_give(request->connection, io);
        nbd_reply_queue(request);
    }
}
