/* See nbd_client.h. Numbers are those of the NBD protocol document (doc/proto.md of the NBD
 * project), written down anew: the server's own header could be wrong. */
#include "tests/fuzz/nbd_client.h"

#include <stdlib.h>
#include <string.h>

enum {
    OPTION_EXPORT_NAME = 1,
    OPTION_ABORT = 2,
    OPTION_GO = 7,
    OPTION_STRUCTURED = 8,
    OPTION_EXTENDED = 11,
    READ = 0,
    WRITE = 1,
    DISC = 2,
    FLUSH = 3,
    TRIM = 4,
    CACHE = 5,
    WRITE_ZEROES = 6,
    BLOCK_STATUS = 7,
    PAYLOAD_LEN = 1 << 5,
    DONE = 1,
    CHUNK_DATA = 1,
    CHUNK_HOLE = 2,
    CHUNK_STATUS = 5,
    CHUNK_STATUS_EXT = 6,
    CHUNK_ERROR = 0x8001,
    CHUNK_ERROR_OFFSET = 0x8002,
    REQUEST_BYTES_MAX = 32 * 1024 * 1024,
};

void transcript_add(struct transcript *transcript, const void *data, size_t bytes) {
    if (bytes == 0) {
        return;
    }
    if (bytes > transcript->room - transcript->bytes) {
        transcript->room = 2 * (transcript->bytes + bytes);
        transcript->data = realloc(transcript->data, transcript->room);
        FUZZ_CHECK(transcript->data != NULL);
    }
    memcpy(transcript->data + transcript->bytes, data, bytes);
    transcript->bytes += bytes;
}

void transcript_free(struct transcript *transcript) {
    free(transcript->data);
    *transcript = (struct transcript){0};
}

/* --- Reading --- */

struct reader {
    const uint8_t *at;
    size_t left;
};

/* NULL when there is not as much. */
static const uint8_t *take(struct reader *reader, uint64_t bytes) {
    if (bytes > reader->left) {
        return NULL;
    }
    const uint8_t *at = reader->at;
    reader->at += bytes;
    reader->left -= bytes;
    return at;
}

static uint64_t number(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

/* --- Handshake --- */

enum phase { OPTIONS, TRANSMISSION, OVER };

/* GO or EXPORT_NAME told this. */
static void check_export(struct conversation *talk, const uint8_t *name, size_t name_bytes,
                         const uint8_t *size_and_flags, const struct disk_history *history) {
    talk->is_read_only = name_bytes == 2 && memcmp(name, "ro", 2) == 0;
    FUZZ_CHECK(number(size_and_flags, 8) == history->capacity_bytes);
    FUZZ_CHECK((number(size_and_flags + 8, 2) & 1) != 0); /* HAS_FLAGS */
    FUZZ_CHECK(!talk->is_read_only || (number(size_and_flags + 8, 2) & 2) != 0);
}

/* The answers to one option; OVER when they are not all there. */
static enum phase read_answers(struct conversation *talk, struct reader *out, uint32_t option,
                               const uint8_t *data, uint32_t bytes,
                               const struct disk_history *history) {
    bool told_export = false;
    for (;;) {
        const uint8_t *head = take(out, 20);
        if (head == NULL) {
            return OVER;
        }
        FUZZ_CHECK(number(head, 8) == 0x3e889045565a9 && number(head + 8, 4) == option);
        uint32_t type = (uint32_t)number(head + 12, 4);
        uint32_t length = (uint32_t)number(head + 16, 4);
        FUZZ_CHECK(length <= 4096);
        const uint8_t *answer = take(out, length);
        if (answer == NULL) {
            return OVER;
        }
        if (type == 3 && length == 12 && number(answer, 2) == 0 && option == OPTION_GO) {
            told_export = true;
            check_export(talk, data + 4, number(data, 4), answer + 2, history);
        }
        if (type >= 0x80000000) {
            return OPTIONS;
        }
        if (type == 1) {
            FUZZ_CHECK(length == 0 && bytes <= 4096);
            talk->mode = option == OPTION_STRUCTURED ? 1
                         : option == OPTION_EXTENDED ? 2
                                                     : talk->mode;
            FUZZ_CHECK(option != OPTION_GO || told_export);
            return option == OPTION_GO ? TRANSMISSION : option == OPTION_ABORT ? OVER : OPTIONS;
        }
    }
}

static enum phase read_options(struct conversation *talk, struct reader *in, struct reader *out,
                               const struct disk_history *history) {
    const uint8_t *greeting = take(out, 18);
    const uint8_t *flags = take(in, 4);
    if (greeting == NULL || flags == NULL) {
        return OVER;
    }
    FUZZ_CHECK(memcmp(greeting, "NBDMAGICIHAVEOPT", 16) == 0);
    bool has_zeroes = (number(flags, 4) & 2) == 0;
    for (;;) {
        const uint8_t *head = take(in, 16);
        if (head == NULL || memcmp(head, "IHAVEOPT", 8) != 0) {
            return OVER;
        }
        uint32_t option = (uint32_t)number(head + 8, 4);
        uint32_t bytes = (uint32_t)number(head + 12, 4);
        const uint8_t *data = take(in, bytes);
        if (data == NULL) {
            return OVER;
        }
        if (option == OPTION_EXPORT_NAME) {
            const uint8_t *answer = take(out, has_zeroes ? 134 : 10);
            if (answer == NULL) {
                return OVER;
            }
            check_export(talk, data, bytes, answer, history);
            return TRANSMISSION;
        }
        enum phase phase = read_answers(talk, out, option, data, bytes, history);
        if (phase != OPTIONS) {
            return phase;
        }
    }
}

/* --- Requests --- */

static bool changes(uint16_t command) {
    return command == WRITE || command == TRIM || command == WRITE_ZEROES;
}

static bool must_fail(const struct conversation *talk, const struct client_request *request,
                      const struct disk_history *history) {
    uint16_t command = request->command;
    if (command > BLOCK_STATUS || (command == BLOCK_STATUS && talk->mode == 0)) {
        return true;
    }
    if (command == FLUSH) {
        return false;
    }
    bool fits = request->length <= history->capacity_bytes &&
                request->offset <= history->capacity_bytes - request->length;
    bool is_aligned =
        request->offset % history->block_bytes == 0 && request->length % history->block_bytes == 0;
    bool lacks_payload = talk->mode == 2 && command == WRITE && (request->flags & PAYLOAD_LEN) == 0;
    bool has_filter = command == BLOCK_STATUS && (request->flags & PAYLOAD_LEN) != 0;
    return lacks_payload || (talk->is_read_only && changes(command)) ||
           (!has_filter && (request->length == 0 || !fits || !is_aligned));
}

static bool is_repeated(const struct conversation *talk, uint64_t cookie) {
    for (unsigned i = 0; i < talk->count; i++) {
        if (talk->requests[i].cookie == cookie) {
            return true;
        }
    }
    return false;
}

static struct client_request *next_request(struct conversation *talk) {
    if (talk->count == talk->room) {
        talk->room = talk->room == 0 ? 64 : 2 * talk->room;
        talk->requests = realloc(talk->requests, talk->room * sizeof talk->requests[0]);
        FUZZ_CHECK(talk->requests != NULL);
    }
    return &talk->requests[talk->count];
}

/* All that are whole, up to where the server must stop reading. */
static void read_requests(struct conversation *talk, struct reader *in,
                          const struct disk_history *history) {
    bool is_extended = talk->mode == 2;
    uint32_t magic = is_extended ? 0x21e41c71 : 0x25609513;
    for (;;) {
        const uint8_t *head = take(in, is_extended ? 32 : 28);
        if (head == NULL || number(head, 4) != magic || number(head + 6, 2) == DISC) {
            return;
        }
        struct client_request *request = next_request(talk);
        *request = (struct client_request){.flags = (uint16_t)number(head + 4, 2),
                                           .command = (uint16_t)number(head + 6, 2),
                                           .cookie = number(head + 8, 8),
                                           .offset = number(head + 16, 8),
                                           .length = number(head + 24, is_extended ? 8 : 4)};
        bool has_payload =
            is_extended ? (request->flags & PAYLOAD_LEN) != 0 : request->command == WRITE;
        request->must_fail = must_fail(talk, request, history);
        if (has_payload) {
            request->payload = in->at;
            request->payload_bytes = request->length < in->left ? request->length : in->left;
            if (take(in, request->length) == NULL || request->length > REQUEST_BYTES_MAX) {
                talk->has_partial = request->length <= REQUEST_BYTES_MAX;
                return;
            }
        }
        talk->has_repeated_cookies |= is_repeated(talk, request->cookie);
        talk->count++;
    }
}

/* --- Replies --- */

static struct client_request *find(struct conversation *talk, uint64_t cookie) {
    for (unsigned i = 0; i < talk->count; i++) {
        if (talk->requests[i].cookie == cookie) {
            return &talk->requests[i];
        }
    }
    return NULL;
}

static bool is_zero(const uint8_t *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != 0) {
            return false;
        }
    }
    return true;
}

/* A block of the disk as it was at some time. */
static void check_block(const struct disk_history *history, uint64_t offset, const uint8_t *data) {
    uint8_t original[CLIENT_BLOCK];
    history->original(offset, original);
    if (memcmp(data, original, CLIENT_BLOCK) == 0) {
        return;
    }
    for (const struct disk_change *change = history->changes; change != NULL;
         change = change->next) {
        if (offset < change->offset || offset - change->offset >= change->length) {
            continue;
        }
        if (change->data == NULL
                ? is_zero(data, CLIENT_BLOCK)
                : memcmp(data, change->data + (offset - change->offset), CLIENT_BLOCK) == 0) {
            return;
        }
    }
    fuzz_fail("what was read was never there", __FILE__, __LINE__);
}

static void check_content(const struct disk_history *history, uint64_t offset, const uint8_t *data,
                          uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; at += CLIENT_BLOCK) {
        check_block(history, offset + at, data + at);
    }
}

static void end_reply(struct client_request *request, uint32_t error) {
    FUZZ_CHECK(!request->is_answered);
    request->is_answered = true;
    request->error = request->error != 0 ? request->error : error;
    FUZZ_CHECK(!request->must_fail || request->error != 0);
}

/* False when it is not all there. */
static bool read_simple(struct conversation *talk, struct reader *out,
                        const struct disk_history *history) {
    const uint8_t *head = take(out, 16);
    if (head == NULL) {
        return false;
    }
    FUZZ_CHECK(number(head, 4) == 0x67446698);
    uint32_t error = (uint32_t)number(head + 4, 4);
    struct client_request *request = find(talk, number(head + 8, 8));
    FUZZ_CHECK(request != NULL);
    end_reply(request, error);
    if (request->command == READ && error == 0) {
        const uint8_t *data = take(out, request->length);
        if (data == NULL) {
            return false;
        }
        check_content(history, request->offset, data, request->length);
    }
    return true;
}

static void check_status(const struct conversation *talk, const struct client_request *request,
                         const uint8_t *data, uint64_t bytes) {
    bool is_extended = talk->mode == 2;
    unsigned each = is_extended ? 16 : 8;
    unsigned head = is_extended ? 8 : 4;
    FUZZ_CHECK(bytes >= head + each && (bytes - head) % each == 0);
    FUZZ_CHECK(!is_extended || number(data + 4, 4) == (bytes - head) / each);
    uint64_t told = 0;
    for (uint64_t at = head; at < bytes; at += each) {
        uint64_t run = number(data + at, each / 2);
        FUZZ_CHECK(run > 0 && run <= UINT64_MAX - told);
        told += run;
        FUZZ_CHECK(number(data + at + each / 2, each / 2) <= 3);
    }
    FUZZ_CHECK((request->flags & PAYLOAD_LEN) != 0 || told <= request->length);
}

/* What a chunk with content holds belongs to its request, and follows what came before. */
static void check_chunk(const struct conversation *talk, struct client_request *request,
                        unsigned type, const uint8_t *data, uint64_t bytes,
                        const struct disk_history *history) {
    static const uint8_t zeroes[CLIENT_BLOCK];
    if (type == CHUNK_STATUS || type == CHUNK_STATUS_EXT) {
        FUZZ_CHECK(request->command == BLOCK_STATUS &&
                   (type == CHUNK_STATUS_EXT) == (talk->mode == 2));
        check_status(talk, request, data, bytes);
        return;
    }
    FUZZ_CHECK(request->command == READ && bytes >= 8);
    uint64_t offset = number(data, 8);
    uint64_t length = type == CHUNK_HOLE ? number(data + 8, 4) : bytes - 8;
    FUZZ_CHECK(type == CHUNK_DATA || bytes == 12);
    FUZZ_CHECK(length > 0 && offset == request->offset + request->covered);
    request->covered += length;
    FUZZ_CHECK(request->covered <= request->length);
    if ((request->flags & 4) != 0) {
        FUZZ_CHECK(type == CHUNK_DATA && length == request->length); /* DF */
        return; /* an error may still follow, and what failed be zeroes */
    }
    for (uint64_t at = 0; at < length; at += CLIENT_BLOCK) {
        check_block(history, offset + at, type == CHUNK_HOLE ? zeroes : data + 8 + at);
    }
}

static bool read_chunk(struct conversation *talk, struct reader *out,
                       const struct disk_history *history) {
    bool is_extended = talk->mode == 2;
    const uint8_t *head = take(out, is_extended ? 32 : 20);
    if (head == NULL) {
        return false;
    }
    FUZZ_CHECK(number(head, 4) == (is_extended ? 0x6e8a278c : 0x668e33ef));
    unsigned type = (unsigned)number(head + 6, 2);
    struct client_request *request = find(talk, number(head + 8, 8));
    FUZZ_CHECK(request != NULL && !request->is_answered);
    FUZZ_CHECK(!is_extended || number(head + 16, 8) == request->offset);
    uint64_t bytes = is_extended ? number(head + 24, 8) : number(head + 16, 4);
    FUZZ_CHECK(bytes <= REQUEST_BYTES_MAX + 8);
    const uint8_t *data = take(out, bytes);
    if (data == NULL) {
        return false;
    }
    if (type == CHUNK_ERROR || type == CHUNK_ERROR_OFFSET) {
        unsigned fixed = type == CHUNK_ERROR ? 6 : 14;
        FUZZ_CHECK(bytes >= fixed && number(data, 4) != 0 && number(data + 4, 2) + fixed == bytes);
        request->error = (uint32_t)number(data, 4);
        uint64_t offset = type == CHUNK_ERROR ? request->offset : number(data + 6, 8);
        FUZZ_CHECK(offset - request->offset <= request->length);
    } else if (type != 0) {
        check_chunk(talk, request, type, data, bytes, history);
    } else {
        FUZZ_CHECK(bytes == 0 && (number(head + 4, 2) & DONE) != 0);
    }
    if ((number(head + 4, 2) & DONE) != 0) {
        end_reply(request, 0);
        FUZZ_CHECK(request->error != 0 || request->command != READ ||
                   request->covered == request->length);
    }
    return true;
}

static void read_replies(struct conversation *talk, struct reader *out,
                         const struct disk_history *history) {
    while (out->left > 0) {
        if (!(talk->mode == 0 ? read_simple(talk, out, history) : read_chunk(talk, out, history))) {
            FUZZ_CHECK(talk->is_cut);
            return;
        }
    }
    for (unsigned i = 0; i < talk->count && !talk->is_cut; i++) {
        FUZZ_CHECK(talk->requests[i].is_answered);
    }
}

void conversation_check(struct conversation *talk, const struct disk_history *history) {
    struct reader in = {talk->in->data, talk->in->bytes};
    struct reader out = {talk->out->data, talk->out->bytes};
    talk->count = 0;
    talk->has_partial = false;
    enum phase phase = read_options(talk, &in, &out, history);
    if (phase == OVER) {
        FUZZ_CHECK(talk->is_cut || talk->is_closed_early || out.left == 0);
        return;
    }
    read_requests(talk, &in, history);
    if (!talk->has_repeated_cookies) {
        read_replies(talk, &out, history);
    }
}

void conversation_free(struct conversation *talk) {
    free(talk->requests);
    *talk = (struct conversation){0};
}

/* --- The disk --- */

static bool is_payload(const struct client_request *request, uint64_t offset, const uint8_t *data) {
    uint64_t at = offset - request->offset;
    return data != NULL && at + CLIENT_BLOCK <= request->payload_bytes &&
           memcmp(data, request->payload + at, CLIENT_BLOCK) == 0;
}

static bool explains(const struct conversation *talk, uint64_t offset, const uint8_t *data) {
    for (unsigned i = 0; i < talk->count + talk->has_partial; i++) {
        const struct client_request *request = &talk->requests[i];
        if (!changes(request->command) || request->must_fail || offset < request->offset ||
            offset - request->offset >= request->length) {
            continue;
        }
        if (request->command == WRITE ? is_payload(request, offset, data)
                                      : data == NULL || is_zero(data, CLIENT_BLOCK)) {
            return true;
        }
    }
    return false;
}

void conversations_explain(struct conversation *const *conversations, unsigned count,
                           const struct disk_history *history) {
    for (const struct disk_change *change = history->changes; change != NULL;
         change = change->next) {
        for (uint64_t at = 0; at < change->length; at += CLIENT_BLOCK) {
            const uint8_t *data = change->data != NULL ? change->data + at : NULL;
            bool is_explained = false;
            for (unsigned i = 0; i < count && !is_explained; i++) {
                is_explained = explains(conversations[i], change->offset + at, data);
            }
            FUZZ_CHECK(is_explained);
        }
    }
}
