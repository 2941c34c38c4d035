/* The NBD server over the network of net_world.h, clients that say what a test wants, and a disk
 * that answers when a test says so. */
#ifndef TESTS_UNIT_NBD_WORLD_H
#define TESTS_UNIT_NBD_WORLD_H

#include "apps/nbd/server.h"
#include "apps/nbd/wire.h"
#include "blk/queue.h"
#include "tests/unit/net_world.h"

enum {
    TALKERS = 4,
    DISK_BYTES = 4 * 1024 * 1024,
    PARTS_MAX = 256,
    IN_BYTES_MAX = 4 * 1024 * 1024,
};

/* A client, and what it was told. */
struct talker {
    struct client client;
    uint8_t *in;
    size_t in_bytes;
    size_t in_at;
    uint64_t next_cookie;
    bool is_reset;
    bool has_ended; /* it will be told no more */
};

extern struct talker talkers[TALKERS];
/* A test may change it while the server runs, which then has a copy of its own; or before. */
extern struct nbd_server_config config;

/* Runs `body` beside a server of its own, in a process of its own, that exports a disk twice, as
 * "disk" and as "slow", whose limit is ten requests a second. `heap`: bytes of the appliance's
 * memory, 0 for plenty. In the end the server has to be without a client. */
void with_server(size_t heap, void (*body)(void));

/* --- The disk --- */

extern struct block_device nbd_disk;
extern uint8_t nbd_content[DISK_BYTES];
/* What the disk has taken and not answered, by age. */
extern struct block_part nbd_parts[PARTS_MAX];
extern unsigned nbd_part_count;

void take_parts(void);
/* Answers the part that begins at this place of the disk, or fails it; it must be there. */
void answer_at(uint64_t offset, int error);
void answer_all(void);

/* --- The clients --- */

/* Big-endian numbers of so many bytes, up to eight. */
void put(uint8_t **at, uint64_t value, unsigned bytes);
uint64_t get(const uint8_t *at, unsigned bytes);

/* Connects, takes the greeting and says its flags. */
struct talker *connect_talker(unsigned which, uint32_t flags);
void say(struct talker *talker, const void *data, size_t bytes);
/* Takes what was said to all talkers, and acknowledges it, until nothing more is said. */
void hear_all(void);
/* The next bytes that it was told; they must be there. */
const uint8_t *hear(struct talker *talker, size_t bytes);
/* It was told nothing more, and is not cut off. */
void expect_silence(const struct talker *talker);
void expect_reset(const struct talker *talker, const char *why);

void say_option(struct talker *talker, uint32_t option, const void *data, size_t bytes);
/* The reply to an option; its data is the last that was heard. */
void expect_option_reply(struct talker *talker, uint32_t option, uint32_t type);
/* An option without data, which is granted. */
void agree(struct talker *talker, uint32_t option);
void say_contexts(struct talker *talker, const char *name);
void go(struct talker *talker, const char *name);
/* All of that: a client in transmission. */
struct talker *begin_simple(unsigned which, const char *name);
struct talker *begin_structured(unsigned which, const char *name);

/* A request; what is to be written follows by say. Returns its cookie. */
uint64_t ask(struct talker *talker, enum nbd_mode mode, uint16_t command, uint16_t flags,
             uint64_t offset, uint64_t length);
void expect_simple(struct talker *talker, uint64_t cookie, uint32_t error);
/* A chunk of a structured reply: its content. */
const uint8_t *expect_chunk(struct talker *talker, uint64_t cookie, uint16_t type, uint16_t flags,
                            size_t *bytes);

#endif
