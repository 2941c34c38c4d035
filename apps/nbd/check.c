/* The one validator of requests: what it lets through is only asserted behind it. */
#include <errno.h>

#include "apps/nbd/connection.h"

/* Flags that this command may carry (NBD protocol, "Command flags"). */
static unsigned flags_allowed(enum nbd_mode mode, uint16_t command) {
    unsigned allowed = NBD_CMD_FLAG_FUA; /* some clients set it on everything: harmless */
    switch (command) {
    case NBD_CMD_READ:
        return mode != NBD_SIMPLE ? allowed | NBD_CMD_FLAG_DF : allowed;
    case NBD_CMD_WRITE:
        return mode == NBD_EXTENDED ? allowed | NBD_CMD_FLAG_PAYLOAD_LEN : allowed;
    case NBD_CMD_WRITE_ZEROES:
        return allowed | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        allowed |= NBD_CMD_FLAG_REQ_ONE;
        return mode == NBD_EXTENDED ? allowed | NBD_CMD_FLAG_PAYLOAD_LEN : allowed;
    default:
        return allowed;
    }
}

/* What the disk is asked to do; false for a command that there is not. */
static bool operation_of(uint16_t command, enum block_operation *operation) {
    switch (command) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
    case NBD_CMD_BLOCK_STATUS:
        *operation = BLOCK_READ;
        return true;
    case NBD_CMD_WRITE:
        *operation = BLOCK_WRITE;
        return true;
    case NBD_CMD_FLUSH:
        *operation = BLOCK_FLUSH;
        return true;
    case NBD_CMD_TRIM:
        *operation = BLOCK_DISCARD;
        return true;
    case NBD_CMD_WRITE_ZEROES:
        *operation = BLOCK_WRITE_ZEROES;
        return true;
    default:
        return false;
    }
}

/* Zeroes are fast when the device has a command for them and may drop what was there; whether one
 * that must keep the blocks is fast, nobody knows in advance. */
static bool zeroes_are_fast(const struct block_limits *limits, unsigned flags) {
    return limits->zeroes_bytes_max != 0 && limits->zeroes_may_unmap &&
           (flags & NBD_CMD_FLAG_NO_HOLE) == 0;
}

int nbd_request_check(const struct nbd_connection *connection,
                      const struct nbd_request_header *header) {
    const struct nbd_export *export = connection->export;
    uint16_t command = header->command;
    enum block_operation operation = BLOCK_READ;
    if (!operation_of(command, &operation)) {
        return -EINVAL;
    }
    if (nbd_is_shutting_down()) {
        return -ESHUTDOWN;
    }
    if ((header->flags & ~flags_allowed(connection->mode, command)) != 0) {
        return -EINVAL;
    }
    if (operation == BLOCK_FLUSH) {
        return header->offset == 0 && header->length == 0 ? 0 : -EINVAL;
    }
    if (operation != BLOCK_READ && (export->is_read_only || connection->is_read_only)) {
        return -EPERM;
    }
    if (command == NBD_CMD_BLOCK_STATUS && !connection->has_allocation) {
        return -EINVAL;
    }
    bool lacks_payload = connection->mode == NBD_EXTENDED && command == NBD_CMD_WRITE &&
                         (header->flags & NBD_CMD_FLAG_PAYLOAD_LEN) == 0;
    bool has_limit = command == NBD_CMD_READ || command == NBD_CMD_WRITE;
    if (lacks_payload || (has_limit && header->length > NBD_REQUEST_BYTES_MAX)) {
        return -EINVAL;
    }
    int error = block_check(export->device, operation, header->offset, header->length);
    if (error) {
        return error;
    }
    bool must_be_fast = (header->flags & NBD_CMD_FLAG_FAST_ZERO) != 0;
    return must_be_fast && !zeroes_are_fast(&export->device->limits, header->flags) ? -ENOTSUP : 0;
}
