/* Decoding and encoding. See wire.h. */
#include "apps/nbd/wire.h"

#include <errno.h>

void nbd_decode_request(const uint8_t bytes[NBD_REQUEST_BYTES], struct nbd_request_header *header) {
    *header = (struct nbd_request_header){
        .magic = nbd_get32(bytes),
        .flags = nbd_get16(bytes + 4),
        .command = nbd_get16(bytes + 6),
        .cookie = nbd_get64(bytes + 8),
        .offset = nbd_get64(bytes + 16),
        .length = nbd_get32(bytes + 24),
    };
}

void nbd_encode_simple_reply(uint8_t bytes[NBD_SIMPLE_REPLY_BYTES], uint32_t error,
                             uint64_t cookie) {
    nbd_put32(bytes, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(bytes + 4, error);
    nbd_put64(bytes + 8, cookie);
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
        return NBD_ENOTSUP;
    case -ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
