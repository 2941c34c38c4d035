/* The handshake: greeting, options, until transmission begins (NBD protocol, "Newstyle
 * negotiation"). One option is handled at a time and only when its longest reply has room, so a
 * client that sends options and reads nothing is held up by its own replies. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/connection.h"
#include "apps/nbd/turn.h"
#include "core/log.h"
#include "core/panic.h"
#include "net/stack.h"

static const char context_allocation[] = "base:allocation";

enum {
    DESCRIPTION_BYTES = sizeof((struct nbd_export *)0)->description,
    LIST_ENTRY_BYTES_MAX = NBD_OPTION_REPLY_BYTES + 4 + NBD_EXPORT_NAME_MAX + DESCRIPTION_BYTES,
    EXPORT_INFO_BYTES = 12,
    BLOCK_SIZE_INFO_BYTES = 14,
    EXPORT_NAME_REPLY_BYTES = 10,
    /* Of everything but a list: INFO's four pieces and its end, EXPORT_NAME's zeroes, an error with
     * its words. */
    ANSWER_BYTES_MIN = 1024,
};

_Static_assert(NET_RX_PAGE_BEHIND_MAX == 14 + 20 + 20 + NBD_EXTENDED_REQUEST_BYTES &&
                   NBD_EXTENDED_REQUEST_BYTES - NBD_REQUEST_BYTES == 4,
               "the payload of a write begins where a page does");
_Static_assert(5 * NBD_OPTION_REPLY_BYTES + EXPORT_INFO_BYTES + BLOCK_SIZE_INFO_BYTES + 2 +
                           NBD_EXPORT_NAME_MAX + 2 + DESCRIPTION_BYTES <=
                       ANSWER_BYTES_MIN &&
                   EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_ZEROES_BYTES <= ANSWER_BYTES_MIN,
               "every answer must fit into an empty buffer");

/* The longest answer to one option: a list of all exports. */
static size_t answer_bytes_max(void) {
    size_t list = nbd_export_count() * LIST_ENTRY_BYTES_MAX + NBD_OPTION_REPLY_BYTES;
    return list > ANSWER_BYTES_MIN ? list : ANSWER_BYTES_MIN;
}

/* In whole pages, as the heap gives them: what an answer leaves is room for the next. */
size_t nbd_handshake_bytes(void) {
    return align_up(sizeof(struct nbd_handshake) + answer_bytes_max(), PAGE_BYTES);
}

/* --- Output ------------------------------------------------------------------------------------
 */

static uint8_t *out_reserve(struct nbd_handshake *handshake, size_t bytes) {
    ASSERT(bytes <= handshake->out_bytes - handshake->out_used);
    uint8_t *at = &handshake->out[handshake->out_used];
    handshake->out_used += bytes;
    return at;
}

static uint8_t *put_reply(struct nbd_handshake *handshake, uint32_t type, uint32_t bytes) {
    uint8_t *at = out_reserve(handshake, NBD_OPTION_REPLY_BYTES + bytes);
    nbd_put64(at, NBD_REPLY_MAGIC);
    nbd_put32(at + 8, handshake->option);
    nbd_put32(at + 12, type);
    nbd_put32(at + 16, bytes);
    return at + NBD_OPTION_REPLY_BYTES;
}

/* An error with a word of explanation for the person at the other end. */
static void put_error(struct nbd_handshake *handshake, uint32_t error, const char *text) {
    size_t bytes = strlen(text);
    memcpy(put_reply(handshake, error, (uint32_t)bytes), text, bytes);
}

static void out_released(struct stream_mark *mark) {
    struct nbd_handshake *handshake =
        (struct nbd_handshake *)(void *)((char *)mark - offsetof(struct nbd_handshake, mark));
    handshake->mark_is_placed = false;
    if (handshake->out_sent == handshake->out_used) {
        handshake->out_sent = 0;
        handshake->out_used = 0;
    }
    nbd_schedule(handshake->connection);
}

static void out_send(struct nbd_connection *connection) {
    struct nbd_handshake *handshake = connection->handshake;
    struct stream *stream = connection->stream;
    if (handshake->out_sent == handshake->out_used || handshake->mark_is_placed) {
        return; /* the mark's release runs the connection again */
    }
    handshake->out_sent += stream->ops->send(stream, &handshake->out[handshake->out_sent],
                                             handshake->out_used - handshake->out_sent);
    handshake->mark.released = out_released;
    handshake->mark_is_placed = true;
    stream->ops->mark(stream, &handshake->mark);
}

static bool has_room_for_answer(const struct nbd_handshake *handshake) {
    return handshake->out_bytes - handshake->out_used >= answer_bytes_max();
}

/* --- Options -----------------------------------------------------------------------------------
 */

/* What the export can do, and what this client may do with it. */
static uint16_t transmission_flags(const struct nbd_connection *connection,
                                   const struct nbd_export *export) {
    unsigned flags = nbd_export_flags(export, connection->is_read_only);
    if (connection->mode != NBD_SIMPLE) {
        flags |= NBD_FLAG_SEND_DF;
    }
    if (connection->mode == NBD_EXTENDED && connection->handshake->context_export == export) {
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    }
    return (uint16_t)flags;
}

static void put_export_info(const struct nbd_connection *connection,
                            const struct nbd_export *export) {
    uint8_t *at = put_reply(connection->handshake, NBD_REP_INFO, EXPORT_INFO_BYTES);
    nbd_put16(at, NBD_INFO_EXPORT);
    nbd_put64(at + 2, export->device->capacity_bytes);
    nbd_put16(at + 10, transmission_flags(connection, export));
}

static void put_block_size_info(struct nbd_handshake *handshake, const struct nbd_export *export) {
    struct nbd_block_sizes sizes = nbd_export_block_sizes(export);
    uint8_t *at = put_reply(handshake, NBD_REP_INFO, BLOCK_SIZE_INFO_BYTES);
    nbd_put16(at, NBD_INFO_BLOCK_SIZE);
    nbd_put32(at + 2, sizes.minimum);
    nbd_put32(at + 6, sizes.preferred);
    nbd_put32(at + 10, sizes.maximum);
}

static void put_text_info(struct nbd_handshake *handshake, uint16_t type, const char *text) {
    size_t bytes = strlen(text);
    uint8_t *at = put_reply(handshake, NBD_REP_INFO, (uint32_t)(2 + bytes));
    nbd_put16(at, type);
    /* The wire's strings have a length and no zero. */
    memcpy(at + 2, text, bytes); // NOLINT(bugprone-not-null-terminated-result)
}

static void begin_transmission(struct nbd_connection *connection, const struct nbd_export *export) {
    connection->export = export;
    connection->turns = nbd_turns_at(export->device);
    connection->has_allocation = connection->handshake->context_export == export;
    timer_cancel(&connection->deadline);
    if (nbd_transmission_begin(connection) != 0) {
        nbd_abort(connection, "no memory for its requests");
        return;
    }
    connection->state = NBD_TRANSMISSION;
    net_expect_headers(nbd_request_bytes(connection->mode));
    nbd_watch_idle(connection);
    log_info("nbd: %s opens export \"%s\"%s", connection->stream->peer, export->name,
             connection->is_read_only && !export->is_read_only ? " read-only" : "");
}

/* INFO and GO: name, then a list of information types that the client would like. */
static void answer_info(struct nbd_connection *connection, const uint8_t *data, uint32_t bytes) {
    struct nbd_handshake *handshake = connection->handshake;
    uint32_t name_bytes = bytes >= 6 ? nbd_get32(data) : UINT32_MAX;
    bool is_sound = bytes >= 6 && name_bytes <= bytes - 6;
    uint32_t count = is_sound ? nbd_get16(data + 4 + name_bytes) : 0;
    if (!is_sound || bytes != 6 + name_bytes + 2 * count) {
        put_error(handshake, NBD_REP_ERR_INVALID, "lengths in the option do not agree");
        return;
    }
    const struct nbd_export *export = nbd_export_find((const char *)data + 4, name_bytes);
    if (export == NULL) {
        put_error(handshake, NBD_REP_ERR_UNKNOWN, "no such export");
        return;
    }
    bool wants_name = false;
    bool wants_description = false;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t type = nbd_get16(data + 6 + name_bytes + 2 * (size_t)i);
        wants_name |= type == NBD_INFO_NAME;
        wants_description |= type == NBD_INFO_DESCRIPTION;
    }
    put_export_info(connection, export);
    /* Whether asked for or not: a client that does not know them would send what is refused. */
    put_block_size_info(handshake, export);
    if (wants_name) {
        put_text_info(handshake, NBD_INFO_NAME, export->name);
    }
    if (wants_description) {
        put_text_info(handshake, NBD_INFO_DESCRIPTION, export->description);
    }
    (void)put_reply(handshake, NBD_REP_ACK, 0); /* nothing behind it */
    if (handshake->option == NBD_OPT_GO) {
        begin_transmission(connection, export);
    }
}

/* EXPORT_NAME has no way to say no but to close. */
static void answer_export_name(struct nbd_connection *connection, const uint8_t *data,
                               uint32_t bytes) {
    struct nbd_handshake *handshake = connection->handshake;
    const struct nbd_export *export = nbd_export_find((const char *)data, bytes);
    if (export == NULL) {
        nbd_abort(connection, "asks for an export that there is not");
        return;
    }
    if (connection->mode == NBD_EXTENDED) {
        nbd_abort(connection, "uses EXPORT_NAME with extended headers, which it must not");
        return;
    }
    bool no_zeroes = (handshake->client_flags & NBD_FLAG_C_NO_ZEROES) != 0;
    size_t zeroes = no_zeroes ? 0 : NBD_EXPORT_ZEROES_BYTES;
    uint8_t *at = out_reserve(handshake, EXPORT_NAME_REPLY_BYTES + zeroes);
    nbd_put64(at, export->device->capacity_bytes);
    nbd_put16(at + 8, transmission_flags(connection, export));
    memset(at + EXPORT_NAME_REPLY_BYTES, 0, zeroes);
    begin_transmission(connection, export);
}

static void answer_list(struct nbd_handshake *handshake, uint32_t bytes) {
    if (bytes != 0) {
        put_error(handshake, NBD_REP_ERR_INVALID, "LIST carries no data");
        return;
    }
    if (!nbd_may_list()) {
        put_error(handshake, NBD_REP_ERR_POLICY, "listing is switched off");
        return;
    }
    const struct nbd_export *export;
    for (unsigned i = 0; (export = nbd_export_at(i)) != NULL; i++) {
        uint32_t name_bytes = (uint32_t)strlen(export->name);
        uint32_t description_bytes = (uint32_t)strlen(export->description);
        uint8_t *at = put_reply(handshake, NBD_REP_SERVER, 4 + name_bytes + description_bytes);
        nbd_put32(at, name_bytes);
        /* The wire's strings have a length and no zero. */
        memcpy(at + 4, export->name, name_bytes); // NOLINT(bugprone-not-null-terminated-result)
        memcpy(at + 4 + name_bytes,
               export->description, // NOLINT(bugprone-not-null-terminated-result)
               description_bytes);
    }
    (void)put_reply(handshake, NBD_REP_ACK, 0); /* nothing behind it */
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS: how the transmission is to speak. */
static void answer_mode(struct nbd_connection *connection, enum nbd_mode mode, uint32_t bytes) {
    struct nbd_handshake *handshake = connection->handshake;
    if (bytes != 0) {
        put_error(handshake, NBD_REP_ERR_INVALID, "this option carries no data");
        return;
    }
    if (mode < connection->mode) {
        put_error(handshake, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are agreed on");
        return;
    }
    connection->mode = mode;
    (void)put_reply(handshake, NBD_REP_ACK, 0); /* nothing behind it */
}

/* The queries of a LIST_META_CONTEXT or SET_META_CONTEXT. */
struct context_queries {
    uint32_t count;
    bool has_wildcard;   /* "base:" */
    bool has_allocation; /* "base:allocation" */
    bool has_other;      /* without a namespace */
};

static bool is_text(const uint8_t *data, uint32_t bytes, const char *text) {
    return bytes == strlen(text) && memcmp(data, text, bytes) == 0;
}

/* False when the lengths do not agree with each other. */
static bool read_queries(const uint8_t *data, uint32_t bytes, struct context_queries *queries) {
    *queries = (struct context_queries){.count = nbd_get32(data)};
    uint32_t at = 4;
    for (uint32_t i = 0; i < queries->count; i++) {
        if (bytes - at < 4 || nbd_get32(data + at) > bytes - at - 4) {
            return false;
        }
        uint32_t length = nbd_get32(data + at);
        const uint8_t *query = data + at + 4;
        queries->has_wildcard |= is_text(query, length, "base:");
        queries->has_allocation |= is_text(query, length, context_allocation);
        queries->has_other |= memchr(query, ':', length) == NULL;
        at += 4 + length;
    }
    return at == bytes;
}

static void put_context(struct nbd_handshake *handshake, uint32_t id) {
    uint32_t name_bytes = sizeof context_allocation - 1;
    uint8_t *at = put_reply(handshake, NBD_REP_META_CONTEXT, NBD_CONTEXT_ID_BYTES + name_bytes);
    nbd_put32(at, id);
    memcpy(at + NBD_CONTEXT_ID_BYTES, context_allocation, name_bytes);
}

/* LIST tells the contexts that match, SET chooses them. There is one, for every export. */
static void answer_contexts(struct nbd_connection *connection, const uint8_t *data,
                            uint32_t bytes) {
    struct nbd_handshake *handshake = connection->handshake;
    bool is_set = handshake->option == NBD_OPT_SET_META_CONTEXT;
    struct context_queries queries;
    if (is_set) {
        handshake->context_export = NULL; /* whatever becomes of it */
    }
    if (connection->mode == NBD_SIMPLE) {
        put_error(handshake, NBD_REP_ERR_INVALID, "structured replies first");
        return;
    }
    uint32_t name_bytes = bytes >= 8 ? nbd_get32(data) : UINT32_MAX;
    if (bytes < 8 || name_bytes > bytes - 8 ||
        !read_queries(data + 4 + name_bytes, bytes - 4 - name_bytes, &queries)) {
        put_error(handshake, NBD_REP_ERR_INVALID, "lengths in the option do not agree");
        return;
    }
    const struct nbd_export *export = nbd_export_find((const char *)data + 4, name_bytes);
    if (export == NULL) {
        put_error(handshake, NBD_REP_ERR_UNKNOWN, "no such export");
        return;
    }
    if (queries.has_other) {
        put_error(handshake, NBD_REP_ERR_INVALID, "a query without a namespace");
        return;
    }
    bool matches =
        queries.has_allocation || (!is_set && (queries.has_wildcard || queries.count == 0));
    if (matches) {
        /* In a list the identifier is reserved. */
        put_context(handshake, is_set ? NBD_CONTEXT_ALLOCATION : 0);
    }
    if (matches && is_set) {
        handshake->context_export = export;
    }
    (void)put_reply(handshake, NBD_REP_ACK, 0); /* nothing behind it */
}

static void answer_option(struct nbd_connection *connection, const uint8_t *data, uint32_t bytes) {
    struct nbd_handshake *handshake = connection->handshake;
    switch (handshake->option) {
    case NBD_OPT_EXPORT_NAME:
        answer_export_name(connection, data, bytes);
        break;
    case NBD_OPT_ABORT:
        (void)put_reply(handshake, NBD_REP_ACK, 0); /* nothing behind it */
        nbd_begin_draining(connection);
        break;
    case NBD_OPT_LIST:
        answer_list(handshake, bytes);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        answer_info(connection, data, bytes);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        answer_mode(connection, NBD_STRUCTURED, bytes);
        break;
    case NBD_OPT_EXTENDED_HEADERS:
        answer_mode(connection, NBD_EXTENDED, bytes);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        answer_contexts(connection, data, bytes);
        break;
    default:
        put_error(handshake, NBD_REP_ERR_UNSUP, "option not supported");
        break;
    }
}

/* --- Steps -------------------------------------------------------------------------------------
 */

static bool take_flags(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    struct nbd_handshake *handshake = connection->handshake;
    uint8_t bytes[NBD_CLIENT_FLAGS_BYTES];
    if (stream->ops->received(stream) < sizeof bytes) {
        return false;
    }
    stream->ops->peek(stream, bytes, sizeof bytes);
    stream->ops->drop(stream, sizeof bytes);
    handshake->client_flags = nbd_get32(bytes);
    uint32_t known = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES;
    if ((handshake->client_flags & ~known) != 0) {
        nbd_abort(connection, "sets unknown handshake flags 0x%x",
                  (unsigned)handshake->client_flags);
        return false;
    }
    handshake->step = AWAIT_OPTION;
    return true;
}

static bool take_option_header(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    struct nbd_handshake *handshake = connection->handshake;
    uint8_t bytes[NBD_OPTION_HEADER_BYTES];
    if (stream->ops->received(stream) < sizeof bytes || !has_room_for_answer(handshake)) {
        return false;
    }
    stream->ops->peek(stream, bytes, sizeof bytes);
    stream->ops->drop(stream, sizeof bytes);
    if (nbd_get64(bytes) != NBD_OPTION_MAGIC) {
        nbd_abort(connection, "sends no option where one was due");
        return false;
    }
    handshake->option = nbd_get32(bytes + 8);
    handshake->option_bytes = nbd_get32(bytes + 12);
    handshake->step = AWAIT_DATA;
    if (handshake->option_bytes > NBD_OPTION_BYTES_MAX) {
        if (handshake->option == NBD_OPT_EXPORT_NAME ||
            handshake->option_bytes > 16 * NBD_OPTION_BYTES_MAX) {
            nbd_abort(connection, "sends an option %u of %u bytes", (unsigned)handshake->option,
                      (unsigned)handshake->option_bytes);
            return false;
        }
        if (handshake->option == NBD_OPT_SET_META_CONTEXT) {
            handshake->context_export = NULL; /* a failure chooses none */
        }
        handshake->skip_reply = NBD_REP_ERR_TOO_BIG;
        handshake->step = SKIP_DATA;
    }
    /* Without fixed newstyle a client knows only EXPORT_NAME and no replies to anything else. */
    if ((handshake->client_flags & NBD_FLAG_C_FIXED_NEWSTYLE) == 0 &&
        handshake->option != NBD_OPT_EXPORT_NAME) {
        nbd_abort(connection, "sends option %u without fixed newstyle",
                  (unsigned)handshake->option);
        return false;
    }
    return true;
}

static bool take_option_data(struct nbd_connection *connection) {
    static uint8_t data[NBD_OPTION_BYTES_MAX]; /* one at a time: nothing here waits */
    struct stream *stream = connection->stream;
    struct nbd_handshake *handshake = connection->handshake;
    uint32_t bytes = handshake->option_bytes;
    if (stream->ops->received(stream) < bytes) {
        return false;
    }
    stream->ops->peek(stream, data, bytes);
    stream->ops->drop(stream, bytes);
    handshake->step = AWAIT_OPTION;
    answer_option(connection, data, bytes);
    return connection->state == NBD_HANDSHAKE;
}

static bool skip_option_data(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    struct nbd_handshake *handshake = connection->handshake;
    size_t have = stream->ops->received(stream);
    size_t bytes = have < handshake->option_bytes ? have : handshake->option_bytes;
    stream->ops->drop(stream, bytes);
    handshake->option_bytes -= (uint32_t)bytes;
    if (handshake->option_bytes > 0) {
        return false;
    }
    put_error(handshake, handshake->skip_reply, "option too long");
    handshake->step = AWAIT_OPTION;
    return true;
}

static bool take_step(struct nbd_connection *connection) {
    switch (connection->handshake->step) {
    case AWAIT_FLAGS:
        return take_flags(connection);
    case AWAIT_OPTION:
        return take_option_header(connection);
    case AWAIT_DATA:
        return take_option_data(connection);
    case SKIP_DATA:
        return skip_option_data(connection);
    }
    panic("nbd: handshake step %u is none", (unsigned)connection->handshake->step);
}

void nbd_handshake_run(struct nbd_connection *connection) {
    while (connection->state == NBD_HANDSHAKE && take_step(connection)) {
    }
    if (connection->state != NBD_CLOSED) {
        out_send(connection);
    }
}

bool nbd_handshake_flush(struct nbd_connection *connection) {
    struct nbd_handshake *handshake = connection->handshake;
    if (handshake == NULL) {
        return true;
    }
    out_send(connection);
    bool is_taken = handshake->out_sent == handshake->out_used;
    if (is_taken && !handshake->mark_is_placed) {
        nbd_handshake_end(connection);
    }
    return is_taken;
}

int nbd_handshake_begin(struct nbd_connection *connection) {
    size_t bytes = nbd_handshake_bytes();
    struct nbd_handshake *handshake = calloc(1, bytes);
    if (handshake == NULL) {
        return -ENOMEM;
    }
    handshake->out_bytes = bytes - sizeof *handshake;
    connection->handshake = handshake;
    handshake->connection = connection;
    uint8_t *greeting = out_reserve(handshake, NBD_GREETING_BYTES);
    nbd_put64(greeting, NBD_MAGIC);
    nbd_put64(greeting + 8, NBD_OPTION_MAGIC);
    nbd_put16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_set_deadline(connection, NBD_HANDSHAKE_TIMEOUT_MS);
    out_send(connection);
    return 0;
}

void nbd_handshake_end(struct nbd_connection *connection) {
    free(connection->handshake);
    connection->handshake = NULL;
}
