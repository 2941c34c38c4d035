/* The other side's view of an NBD conversation: reads what a client has sent and what it was
 * answered, by the protocol document alone, and says what is wrong with it. */
#ifndef TESTS_FUZZ_NBD_CLIENT_H
#define TESTS_FUZZ_NBD_CLIENT_H

#include "tests/fuzz/fuzz.h"

enum { CLIENT_BLOCK = 512 };

/* All that went one way. */
struct transcript {
    uint8_t *data;
    size_t bytes;
    size_t room;
};

void transcript_add(struct transcript *transcript, const void *data, size_t bytes);
void transcript_free(struct transcript *transcript);

/* What was done to the disk, in order. */
struct disk_change {
    uint64_t offset;
    uint64_t length;
    uint8_t *data; /* NULL: zeroes */
    struct disk_change *next;
};

struct disk_history {
    uint64_t capacity_bytes;
    uint32_t block_bytes;
    /* Of content that nobody has changed. */
    void (*original)(uint64_t offset, uint8_t block[CLIENT_BLOCK]);
    struct disk_change *changes;
};

struct client_request {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint16_t command;
    uint16_t flags;
    const uint8_t *payload; /* of a WRITE, as much as was sent */
    uint64_t payload_bytes;
    bool must_fail; /* there is no way to do it */
    bool is_answered;
    uint32_t error;
    uint64_t covered; /* of a READ in chunks */
};

struct conversation {
    const struct transcript *in;  /* from the client */
    const struct transcript *out; /* to the client */
    bool is_cut;                  /* reset, or lost: the end of what was said may be missing */
    bool is_closed_early;         /* the client has closed: options may be unanswered */
    /* What it was about: */
    unsigned mode; /* 0 simple, 1 structured, 2 extended */
    bool is_read_only;
    bool has_repeated_cookies; /* its answers cannot be told apart */
    unsigned count;
    bool
        has_partial; /* behind the last: a write that was not sent to its end, but may have begun */
    struct client_request *requests; /* of conversation_check, for conversation_free */
    unsigned room;
};

/* Reads the conversation, and checks everything that it says by itself. */
void conversation_check(struct conversation *conversation, const struct disk_history *history);

/* What conversation_check has kept of it. */
void conversation_free(struct conversation *conversation);

/* Every change of the disk was asked for, in the same words, by a request that could be done. */
void conversations_explain(struct conversation *const *conversations, unsigned count,
                           const struct disk_history *history);

#endif
