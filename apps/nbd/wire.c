/* Decoding and encoding. See wire.h. */
#include "apps/nbd/wire.h"

#include <errno.h>

void nbd_decode_request(const uint8_t *bytes, enum nbd_mode mode,
                        struct nbd_request_header *header) {
    *header = (struct nbd_request_header){
        .magic = nbd_get32(bytes),
        .flags = nbd_get16(bytes + 4),
        .command = nbd_get16(bytes + 6),
        .cookie = unaligned_load64(bytes + 8),
        .offset = nbd_get64(bytes + 16),
        .length = mode == NBD_EXTENDED ? nbd_get64(bytes + 24) : nbd_get32(bytes + 24),
    };
}

void nbd_encode_simple_reply(uint8_t bytes[NBD_SIMPLE_REPLY_BYTES], uint32_t error,
                             uint64_t cookie) {
    nbd_put32(bytes, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(bytes + 4, error);
    unaligned_store64(bytes + 8, cookie);
}

size_t nbd_encode_chunk(uint8_t *bytes, enum nbd_mode mode, uint16_t flags, uint16_t type,
                        const struct nbd_request_header *request, uint32_t payload_bytes) {
    nbd_put32(bytes, mode == NBD_EXTENDED ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    nbd_put16(bytes + 4, flags);
    nbd_put16(bytes + 6, type);
    unaligned_store64(bytes + 8, request->cookie);
    if (mode == NBD_EXTENDED) {
        nbd_put64(bytes + 16, request->offset);
        nbd_put64(bytes + 24, payload_bytes);
        return NBD_EXTENDED_REPLY_BYTES;
    }
    nbd_put32(bytes + 16, payload_bytes);
    return NBD_STRUCTURED_REPLY_BYTES;
}

const char *nbd_error_text(uint32_t error) {
    switch (error) {
    case NBD_EPERM:
        return "read-only";
    case NBD_EINVAL:
        return "not a valid request for this export";
    case NBD_ENOSPC:
        return "past the end of the export";
    case NBD_ENOTSUP:
        return "not faster than writing";
    case NBD_ESHUTDOWN:
        return "shutting down";
    default:
        return "the disk reports an error";
    }
}

uint32_t nbd_error_of(int error, uint16_t command) {
    bool writes = command == NBD_CMD_WRITE || command == NBD_CMD_WRITE_ZEROES;
    switch (error) {
    case 0:
        return 0;
    case -EROFS:
    case -EPERM:
        return NBD_EPERM;
    case -ENOMEM:
        return NBD_ENOMEM;
    case -EINVAL:
        return NBD_EINVAL;
    case -ERANGE:
        return writes ? NBD_ENOSPC : NBD_EINVAL;
    case -ENOSPC:
        return NBD_ENOSPC;
    case -ENOTSUP:
        /* Only a zeroing that must be fast may be answered so. */
        return command == NBD_CMD_WRITE_ZEROES ? NBD_ENOTSUP : NBD_EINVAL;
    case -ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
