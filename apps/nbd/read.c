/* READ, CACHE and BLOCK_STATUS: what the client asks of the disk without changing it.
 *
 * A read has one buffer, or a few that a long one streams through: each is sent by reference, and
 * when the client has acknowledged it, read into again. The first leaves before the last is read.
 * With replies in chunks, what is known to be zero is told as a hole, and the disk not asked. */
#include <string.h>

#include "apps/nbd/connection.h"
#include "core/panic.h"

enum {
    /* A hole shorter than this, within what is read, costs more than it saves. */
    HOLE_BYTES_MIN = 4096,
    DESCRIPTOR_BYTES = 8,
    DESCRIPTOR_EXT_BYTES = 16,
    STATUS_BYTES = 4096,
};

_Static_assert(NBD_READ_CHUNK_BYTES % 4096 == 0, "chunks are whole pages");
_Static_assert((int)BLOCK_KNOWN_HOLE == (int)NBD_STATE_HOLE &&
                   (int)BLOCK_KNOWN_ZERO == (int)NBD_STATE_ZERO,
               "what is known is told as it is");
_Static_assert(2 * NBD_CONTEXT_ID_BYTES + NBD_STATUS_EXTENTS_MAX * DESCRIPTOR_EXT_BYTES <=
                   STATUS_BYTES,
               "a status fits into its buffer");

/* --- Chunks ------------------------------------------------------------------------------------
 */

/* How much at `offset` is worth telling as a hole: 0 when it is to be read. */
static uint64_t hole_at(const struct block_device *device, uint64_t offset, uint64_t length) {
    unsigned known = 0;
    uint64_t run = block_known_at(device, offset, length, &known);
    bool is_worth_it = run >= HOLE_BYTES_MIN || run == length;
    return (known & BLOCK_KNOWN_ZERO) != 0 && is_worth_it ? run : 0;
}

/* How much from `offset` on is to be read before there is a hole. */
static uint64_t data_at(const struct block_device *device, uint64_t offset, uint64_t length) {
    uint64_t data = 0;
    while (data < length && hole_at(device, offset + data, length - data) == 0) {
        unsigned known = 0;
        data += block_known_at(device, offset + data, length - data, &known);
    }
    return data;
}

/* Puts it among the chunks in the order of what they cover, whatever the order of completion; there
 * are few. */
static void chunk_ready(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    struct nbd_io **link = &request->chunks;
    io->state = IO_READY;
    while (*link != NULL && (*link)->offset < io->offset) {
        link = &(*link)->next;
    }
    io->next = *link;
    *link = io;
    if (!request->is_queued) {
        nbd_reply_queue(request);
    }
}

/* On to the next part of a read, into this chunk's buffer if it has to come from the disk. */
static void start_chunk(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    const struct block_device *device = request->connection->export->device;
    bool may_have_holes = request->may_have_holes && block_knows_any(device);
    uint64_t bytes = request->length_left;
    uint64_t hole = 0;
    if (may_have_holes) {
        hole = hole_at(device, request->offset_next, bytes);
    }
    if (hole == 0) {
        ASSERT(io->buffer_bytes > 0);
        bytes = bytes < io->buffer_bytes ? bytes : io->buffer_bytes;
        if (may_have_holes) {
            bytes = data_at(device, request->offset_next, bytes);
        }
    }
    io->offset = request->offset_next;
    io->covers = hole != 0 ? hole : bytes;
    io->type = hole != 0 ? NBD_REPLY_TYPE_OFFSET_HOLE : NBD_REPLY_TYPE_OFFSET_DATA;
    io->data_bytes = hole != 0 ? 0 : (uint32_t)bytes;
    io->data_sent = 0;
    io->header_bytes = 0;
    io->header_sent = 0;
    request->offset_next += io->covers;
    request->length_left -= io->covers;
    if (hole != 0) {
        chunk_ready(io);
    } else {
        io->whole = (struct segment){io->buffer, bytes};
        nbd_submit(io, BLOCK_READ, 0, io->offset, bytes, 1);
    }
}

/* What has been announced as one piece goes on after an error, with zeroes in the place of what
 * could not be read. */
static bool goes_on(const struct nbd_request *request) {
    return request->error == 0 || (request->header.flags & NBD_CMD_FLAG_DF) != 0;
}

static void recycle_chunk(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    if (request->length_left > 0 && goes_on(request)) {
        start_chunk(io);
        if (io->state == IO_READY) {
            nbd_schedule(request->connection); /* a hole: no disk will tell that it is there */
        }
    } else {
        nbd_io_give(request->connection, io);
    }
}

void nbd_chunk_acknowledged(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    ASSERT(io->state == IO_ON_WIRE && request->ios_on_wire > 0);
    request->ios_on_wire--;
    io->state = IO_IDLE;
    if (request->connection->state != NBD_CLOSED) {
        recycle_chunk(io);
    } else {
        nbd_io_give(request->connection, io);
        nbd_request_give_if_unused(request);
    }
}

void nbd_read_done(struct nbd_io *io) {
    struct nbd_request *request = io->request;
    if (io->block.status != 0 && request->error == 0) {
        request->error = io->block.status;
        request->has_error_offset = true;
        request->error_offset = io->offset;
    }
    if (io->block.status != 0) {
        memset(io->buffer, 0, io->data_bytes);
    }
    if (request->header.command != NBD_CMD_CACHE) {
        chunk_ready(io);
        return;
    }
    recycle_chunk(io);
    if (request->ios_on_disk == 0) {
        nbd_reply_queue(request);
    }
}

/* --- READ, CACHE -------------------------------------------------------------------------------
 */

bool nbd_read_begin(struct nbd_connection *connection, const struct nbd_request_header *header) {
    struct nbd_io *ios[NBD_READ_CHUNKS];
    unsigned count = 0;
    bool is_read = header->command == NBD_CMD_READ;
    bool may_have_holes =
        is_read && connection->mode != NBD_SIMPLE && (header->flags & NBD_CMD_FLAG_DF) == 0;
    bool is_hole =
        may_have_holes && block_knows_any(connection->export->device) &&
        hole_at(connection->export->device, header->offset, header->length) == header->length;
    if (is_hole) {
        ios[0] = nbd_io_take(connection, 0);
        count = ios[0] != NULL;
    }
    uint64_t covered = 0;
    while (!is_hole && count < NBD_READ_CHUNKS && covered < header->length) {
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
    struct nbd_request *request = nbd_request_take(connection, header);
    request->may_have_holes = may_have_holes;
    request->offset_next = header->offset;
    request->length_left = header->length;
    request->reply_left = is_read ? header->length : 0;
    for (unsigned i = 0; i < count; i++) {
        ios[i]->request = request;
        if (request->length_left > 0) {
            start_chunk(ios[i]);
        } else {
            nbd_io_give(connection, ios[i]);
        }
    }
    connection->bytes_read += header->length;
    return true;
}

/* --- BLOCK_STATUS ------------------------------------------------------------------------------
 */

/* Descriptors from the request's offset on, as many as there is room for; returns their bytes. */
static uint32_t put_status(uint8_t *at, const struct nbd_connection *connection,
                           const struct nbd_request_header *header) {
    const struct block_device *device = connection->export->device;
    bool is_extended = connection->mode == NBD_EXTENDED;
    unsigned most = (header->flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : NBD_STATUS_EXTENTS_MAX;
    uint8_t *start = at;
    uint64_t told = 0;
    unsigned count = 0;
    nbd_put32(at, NBD_CONTEXT_ALLOCATION);
    at += is_extended ? 2 * NBD_CONTEXT_ID_BYTES : NBD_CONTEXT_ID_BYTES;
    while (told < header->length && count < most) {
        unsigned known = 0;
        uint64_t run = block_known_at(device, header->offset + told, header->length - told, &known);
        if (is_extended) {
            nbd_put64(at, run);
            nbd_put64(at + 8, known);
            at += DESCRIPTOR_EXT_BYTES;
        } else {
            nbd_put32(at, (uint32_t)run);
            nbd_put32(at + 4, known);
            at += DESCRIPTOR_BYTES;
        }
        told += run;
        count++;
    }
    if (is_extended) {
        nbd_put32(start + NBD_CONTEXT_ID_BYTES, count);
    }
    return (uint32_t)(at - start);
}

bool nbd_status_begin(struct nbd_connection *connection, const struct nbd_request_header *header) {
    struct nbd_io *io = nbd_io_take(connection, STATUS_BYTES);
    if (io == NULL) {
        return false;
    }
    ASSERT(io->buffer_bytes == STATUS_BYTES); /* one page, which is never in pieces */
    struct nbd_request *request = nbd_request_take(connection, header);
    request->reply_left = header->length;
    io->request = request;
    io->offset = header->offset;
    io->covers = header->length;
    io->type = connection->mode == NBD_EXTENDED ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
                                                : NBD_REPLY_TYPE_BLOCK_STATUS;
    io->data_bytes = put_status(io->buffer, connection, header);
    io->data_sent = 0;
    io->header_bytes = 0;
    io->header_sent = 0;
    chunk_ready(io);
    return true;
}
