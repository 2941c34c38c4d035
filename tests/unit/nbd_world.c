/* See nbd_world.h. */
#include "tests/unit/nbd_world.h"

#include <string.h>

#include "apps/nbd/export.h"
#include "tests/unit/unit.h"

struct nbd_server_config config = {.port = WORLD_PORT, .may_list = true, .depth = NBD_DISK_DEPTH};
struct talker talkers[TALKERS];
static uint8_t memory_of_talkers[TALKERS][IN_BYTES_MAX];

/* --- The disk --- */

struct block_device nbd_disk;
uint8_t nbd_content[DISK_BYTES];
struct block_part nbd_parts[PARTS_MAX];
unsigned nbd_part_count;

static void disk_wake(struct block_device *device) {
    (void)device; /* it looks when a test wants it to */
}

void take_parts(void) {
    while (nbd_part_count < PARTS_MAX && block_queue_next(&nbd_disk, &nbd_parts[nbd_part_count])) {
        nbd_part_count++;
    }
}

static void serve(const struct block_part *part) {
    uint64_t at = part->offset;
    for (unsigned i = 0; i < part->segment_count; i++) {
        const struct segment *segment = &part->segments[i];
        assert_true(segment->length <= DISK_BYTES && at <= DISK_BYTES - segment->length);
        if (part->operation == BLOCK_READ) {
            memcpy(segment->data, nbd_content + at, segment->length);
        } else {
            memcpy(nbd_content + at, segment->data, segment->length);
        }
        at += segment->length;
    }
}

/* Answers the part that begins at this place of the disk, or fails it. */
void answer_at(uint64_t offset, int error) {
    take_parts();
    for (unsigned i = 0; i < nbd_part_count; i++) {
        if (nbd_parts[i].offset == offset) {
            struct block_part part = nbd_parts[i];
            nbd_part_count--;
            memmove(&nbd_parts[i], &nbd_parts[i + 1], (nbd_part_count - i) * sizeof nbd_parts[0]);
            if (error == 0) {
                serve(&part);
            }
            block_queue_done(&nbd_disk, part.request, error);
            world_settle();
            return;
        }
    }
    fail_msg("the disk has nothing to do at %llu", (unsigned long long)offset);
}

void answer_all(void) {
    take_parts();
    while (nbd_part_count > 0) {
        answer_at(nbd_parts[0].offset, 0);
        take_parts();
    }
}

/* --- The clients --- */

void put(uint8_t **at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) {
        *(*at)++ = (uint8_t)(value >> 8 * (bytes - 1 - i));
    }
}

uint64_t get(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

/* Takes what was said to all talkers, and acknowledges it, until nothing more is said. */
void hear_all(void) {
    bool has_news = true;
    while (has_news) {
        bool has_heard[TALKERS] = {false};
        for (unsigned i = 0; i < world.heard_count; i++) {
            const struct heard *heard = &world.heard[i];
            struct talker *talker = &talkers[heard->port % TALKERS];
            talker->is_reset |= (heard->flags & RST) != 0;
            if (heard->seq != talker->client.due || (heard->flags & SYN) != 0) {
                continue;
            }
            assert_true(heard->bytes <= IN_BYTES_MAX - talker->in_bytes);
            memcpy(talker->in + talker->in_bytes, heard->data, heard->bytes);
            talker->in_bytes += heard->bytes;
            talker->has_ended |= (heard->flags & FIN) != 0;
            talker->client.due += (uint32_t)heard->bytes + ((heard->flags & FIN) != 0);
            has_heard[talker - talkers] |= heard->bytes > 0 || (heard->flags & FIN) != 0;
        }
        world_forget_heard();
        has_news = false;
        for (unsigned i = 0; i < TALKERS; i++) {
            if (has_heard[i]) {
                client_say(&talkers[i].client, &(struct spoken){0});
                has_news = true;
            }
        }
    }
}

void say(struct talker *talker, const void *data, size_t bytes) {
    const uint8_t *from = data;
    while (bytes > 0) {
        size_t part = bytes < 1400 ? bytes : 1400;
        client_send(&talker->client, from, part);
        from += part;
        bytes -= part;
    }
    hear_all();
}

/* The next bytes that it was told; they must be there. */
const uint8_t *hear(struct talker *talker, size_t bytes) {
    hear_all();
    assert_true(bytes <= talker->in_bytes - talker->in_at);
    talker->in_at += bytes;
    return talker->in + talker->in_at - bytes;
}

void expect_silence(const struct talker *talker) {
    hear_all();
    assert_int_equal(talker->in_bytes, talker->in_at);
    assert_false(talker->is_reset);
}

void expect_reset(const struct talker *talker, const char *why) {
    hear_all();
    assert_true(talker->is_reset);
    assert_logged(why);
}

struct talker *connect_talker(unsigned which, uint32_t flags) {
    static const uint8_t options[4] = {2, 4, 1460 >> 8, 1460 & 0xff};
    struct talker *talker = &talkers[which];
    uint8_t word[4];
    uint8_t *at = word;
    *talker = (struct talker){.in = memory_of_talkers[which], .next_cookie = 7};
    client_connect(&talker->client, (uint16_t)(40000 + which), options, sizeof options);
    const uint8_t *greeting = hear(talker, NBD_GREETING_BYTES);
    assert_memory_equal(greeting, "NBDMAGICIHAVEOPT", 16);
    put(&at, flags, 4);
    say(talker, word, sizeof word);
    return talker;
}

void say_option(struct talker *talker, uint32_t option, const void *data, size_t bytes) {
    uint8_t head[NBD_OPTION_HEADER_BYTES];
    uint8_t *at = head;
    put(&at, NBD_OPTION_MAGIC, 8);
    put(&at, option, 4);
    put(&at, bytes, 4);
    say(talker, head, sizeof head);
    say(talker, data, bytes);
}

/* The reply to an option; its data is left unread, but counted. */
void expect_option_reply(struct talker *talker, uint32_t option, uint32_t type) {
    const uint8_t *head = hear(talker, NBD_OPTION_REPLY_BYTES);
    assert_true(get(head, 8) == NBD_REPLY_MAGIC);
    assert_int_equal(get(head + 8, 4), option);
    assert_int_equal(get(head + 12, 4), type);
    (void)hear(talker, get(head + 16, 4)); /* for people, or looked at elsewhere */
}

static void say_go(struct talker *talker, const char *name) {
    uint8_t data[64];
    uint8_t *at = data;
    put(&at, strlen(name), 4);
    memcpy(at, name, strlen(name));
    at += strlen(name);
    put(&at, 0, 2);
    say_option(talker, NBD_OPT_GO, data, (size_t)(at - data));
}

void go(struct talker *talker, const char *name) {
    say_go(talker, name);
    expect_option_reply(talker, NBD_OPT_GO, NBD_REP_INFO);
    while (talker->in_bytes - talker->in_at > NBD_OPTION_REPLY_BYTES) {
        expect_option_reply(talker, NBD_OPT_GO, NBD_REP_INFO);
    }
    expect_option_reply(talker, NBD_OPT_GO, NBD_REP_ACK);
}

void say_contexts(struct talker *talker, const char *name) {
    static const char context[] = "base:allocation";
    uint8_t data[64];
    uint8_t *at = data;
    put(&at, strlen(name), 4);
    memcpy(at, name, strlen(name));
    at += strlen(name);
    put(&at, 1, 4);
    put(&at, sizeof context - 1, 4);
    memcpy(at, context, sizeof context - 1);
    say_option(talker, NBD_OPT_SET_META_CONTEXT, data, (size_t)(at - data) + sizeof context - 1);
}

void agree(struct talker *talker, uint32_t option) {
    say_option(talker, option, NULL, 0);
    expect_option_reply(talker, option, NBD_REP_ACK);
}

/* A request of a mode; what is written follows by say. Returns its cookie. */
uint64_t ask(struct talker *talker, enum nbd_mode mode, uint16_t command, uint16_t flags,
             uint64_t offset, uint64_t length) {
    uint8_t head[32];
    uint8_t *at = head;
    put(&at, mode == NBD_EXTENDED ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC, 4);
    put(&at, flags, 2);
    put(&at, command, 2);
    put(&at, talker->next_cookie, 8);
    put(&at, offset, 8);
    put(&at, length, mode == NBD_EXTENDED ? 8 : 4);
    say(talker, head, (size_t)(at - head));
    return talker->next_cookie++;
}

void expect_simple(struct talker *talker, uint64_t cookie, uint32_t error) {
    const uint8_t *head = hear(talker, 16);
    assert_int_equal(get(head, 4), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(get(head + 4, 4), error);
    assert_int_equal(get(head + 8, 8), cookie);
}

const uint8_t *expect_chunk(struct talker *talker, uint64_t cookie, uint16_t type, uint16_t flags,
                            size_t *bytes) {
    const uint8_t *head = hear(talker, 20);
    assert_int_equal(get(head, 4), NBD_STRUCTURED_REPLY_MAGIC);
    assert_int_equal(get(head + 4, 2), flags);
    assert_int_equal(get(head + 6, 2), type);
    assert_int_equal(get(head + 8, 8), cookie);
    *bytes = get(head + 16, 4);
    return hear(talker, *bytes);
}

struct talker *begin_simple(unsigned which, const char *name) {
    struct talker *talker = connect_talker(which, NBD_FLAG_C_FIXED_NEWSTYLE);
    go(talker, name);
    return talker;
}

struct talker *begin_structured(unsigned which, const char *name) {
    struct talker *talker = connect_talker(which, NBD_FLAG_C_FIXED_NEWSTYLE);
    agree(talker, NBD_OPT_STRUCTURED_REPLY);
    go(talker, name);
    return talker;
}

/* --- A server --- */

static void (*script)(void);
static size_t heap_bytes;

static void in_network(void) {
    assert_int_equal(nbd_server_start(&config), 0);
    script();
    /* Whoever is there goes; the server lets its streams go with them. */
    for (unsigned i = 0; i < TALKERS; i++) {
        if (talkers[i].in != NULL && !talkers[i].is_reset) {
            client_say(&talkers[i].client, &(struct spoken){.flags = RST});
        }
    }
    answer_all();
    world_pass_ms(100);
    unit_log_clear();
    nbd_server_dump();
    assert_logged("nbd: 0 connections");
}

static void in_process(void) {
    nbd_disk =
        (struct block_device){.name = "vda",
                              .model = "unit",
                              .capacity_bytes = DISK_BYTES,
                              .limits = {.block_bytes = 512,
                                         .physical_block_bytes = 512,
                                         .segments_max = BLOCK_SEGMENTS_MAX,
                                         .segment_bytes_max = 1u << 30,
                                         .discard_bytes_max = 64 * 1024,
                                         .discard_align_bytes = 24 * 1024,
                                         .discard_leaves = BLOCK_KNOWN_ZERO | BLOCK_KNOWN_HOLE},
                              .wake = disk_wake};
    for (size_t i = 0; i < sizeof nbd_content; i++) {
        nbd_content[i] = (uint8_t)(i * 3 + i / 509);
    }
    assert_int_equal(block_register(&nbd_disk), 0);
    assert_int_equal(nbd_export_add(&nbd_disk, "disk", false, false), 0);
    assert_int_equal(nbd_export_add(&nbd_disk, "slow", false, false), 0);
    assert_int_equal(nbd_export_set_limit("slow", 0, 10), 0);
    world_run(&(struct world_options){.is_mute = true, .heap_bytes = heap_bytes}, in_network);
}

void with_server(size_t heap, void (*body)(void)) {
    script = body;
    heap_bytes = heap;
    unit_run_alone(in_process);
}
