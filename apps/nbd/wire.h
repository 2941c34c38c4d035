/* The NBD protocol's formats and constants (NBD protocol, doc/proto.md of the NBD project). All
 * numbers are big-endian on the wire. */
#ifndef APPS_NBD_WIRE_H
#define APPS_NBD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/lib/unaligned.h"

/* Handshake. */
#define NBD_MAGIC        UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REPLY_MAGIC  UINT64_C(0x0003e889045565a9)

enum {
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
    NBD_FLAG_NO_ZEROES = 1 << 1,

    NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0,
    NBD_FLAG_C_NO_ZEROES = 1 << 1,

    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,

    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,

    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,

    NBD_GREETING_BYTES = 18,
    NBD_CLIENT_FLAGS_BYTES = 4,
    NBD_OPTION_HEADER_BYTES = 16,
    NBD_OPTION_REPLY_BYTES = 20,
    NBD_EXPORT_ZEROES_BYTES = 124,
    /* Longest string of the protocol. */
    NBD_STRING_MAX = 4096,
};

#define NBD_REP_ERR_UNSUP   UINT32_C(0x80000001)
#define NBD_REP_ERR_POLICY  UINT32_C(0x80000002)
#define NBD_REP_ERR_INVALID UINT32_C(0x80000003)
#define NBD_REP_ERR_UNKNOWN UINT32_C(0x80000006)
#define NBD_REP_ERR_TOO_BIG UINT32_C(0x80000009)
/* Extended headers are agreed on: structured replies would be a step back. */
#define NBD_REP_ERR_EXT_HEADER_REQD UINT32_C(0x8000000a)

/* Transmission. */
#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_EXTENDED_REPLY_MAGIC   UINT32_C(0x6e8a278c)

/* What the handshake agreed on for all messages of the transmission. */
enum nbd_mode {
    NBD_SIMPLE,     /* compact requests, simple replies */
    NBD_STRUCTURED, /* compact requests, structured replies */
    NBD_EXTENDED,   /* 64-bit lengths in both directions, replies in chunks */
};

enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,

    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,

    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,

    NBD_REPLY_FLAG_DONE = 1 << 0,

    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_OFFSET_HOLE = 2,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6,
    NBD_REPLY_TYPE_ERROR = 0x8001,
    NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002,

    /* Flags of base:allocation. */
    NBD_STATE_HOLE = 1 << 0,
    NBD_STATE_ZERO = 1 << 1,

    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,

    NBD_REQUEST_BYTES = 28,
    NBD_EXTENDED_REQUEST_BYTES = 32,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_STRUCTURED_REPLY_BYTES = 20,
    NBD_EXTENDED_REPLY_BYTES = 32,
    /* What stands before the data of a chunk. */
    NBD_DATA_PREFIX_BYTES = 8,
    NBD_HOLE_BYTES = 12,
    NBD_ERROR_BYTES = 6,
    NBD_ERROR_OFFSET_BYTES = 14,
    /* Payload of a BLOCK_STATUS that names contexts: a length, and so many identifiers. */
    NBD_STATUS_FILTER_BYTES = 8,
    NBD_CONTEXT_ID_BYTES = 4,
    /* The identifier of base:allocation, ours to choose. */
    NBD_CONTEXT_ALLOCATION = 1,
};

/* A request's header, decoded. */
struct nbd_request_header {
    uint32_t magic;
    uint16_t flags;
    uint16_t command;
    uint64_t cookie; /* as it lies on the wire: only to be given back */
    uint64_t offset;
    uint64_t length; /* of the effect, or of the payload */
};

static inline size_t nbd_request_bytes(enum nbd_mode mode) {
    return mode == NBD_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/* From nbd_request_bytes(mode) bytes. The magic is for the caller to look at. */
void nbd_decode_request(const uint8_t *bytes, enum nbd_mode mode,
                        struct nbd_request_header *header);
void nbd_encode_simple_reply(uint8_t bytes[NBD_SIMPLE_REPLY_BYTES], uint32_t error,
                             uint64_t cookie);

static inline size_t nbd_chunk_header_bytes(enum nbd_mode mode) {
    return mode == NBD_EXTENDED ? NBD_EXTENDED_REPLY_BYTES : NBD_STRUCTURED_REPLY_BYTES;
}

/* The header of a chunk with so many bytes of payload behind it; not for NBD_SIMPLE. Returns its
 * length. */
size_t nbd_encode_chunk(uint8_t *bytes, enum nbd_mode mode, uint16_t flags, uint16_t type,
                        const struct nbd_request_header *request, uint32_t payload_bytes);

/* Bytes that follow the header. With compact headers only WRITE has any; with extended ones the
 * request says so. */
static inline uint64_t nbd_payload_bytes(enum nbd_mode mode,
                                         const struct nbd_request_header *header) {
    bool has_payload = mode == NBD_EXTENDED ? (header->flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0
                                            : header->command == NBD_CMD_WRITE;
    return has_payload ? header->length : 0;
}

/* A few words for the person at the other end of an error. */
const char *nbd_error_text(uint32_t error);

/* A negative errno of the block layer, or 0, to the protocol's number. `command` matters for a
 * request past the end: "no space" for what writes, "invalid" for what reads. */
uint32_t nbd_error_of(int error, uint16_t command);

/* Big-endian numbers at any address. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "every number is turned round");

static inline uint16_t nbd_get16(const uint8_t *p) {
    return __builtin_bswap16(unaligned_load16(p));
}

static inline uint32_t nbd_get32(const uint8_t *p) {
    return __builtin_bswap32(unaligned_load32(p));
}

static inline uint64_t nbd_get64(const uint8_t *p) {
    return __builtin_bswap64(unaligned_load64(p));
}

static inline void nbd_put16(uint8_t *p, uint16_t value) {
    unaligned_store16(p, __builtin_bswap16(value));
}

static inline void nbd_put32(uint8_t *p, uint32_t value) {
    unaligned_store32(p, __builtin_bswap32(value));
}

static inline void nbd_put64(uint8_t *p, uint64_t value) {
    unaligned_store64(p, __builtin_bswap64(value));
}

#endif
