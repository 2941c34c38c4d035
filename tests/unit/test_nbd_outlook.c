/* What the server says to a client's stream of replies to come: apps/nbd/transmission.c. */
#include <string.h>

#include "apps/nbd/connection.h"
#include "apps/nbd/wire.h"
#include "config/limits.h"
#include "net/tcp_connection.h"
#include "tests/unit/nbd_world.h"
#include "tests/unit/unit.h"

enum {
    CHUNK = NBD_READ_CHUNK_BYTES,
    REQUEST_BYTES = 28,
    WRITE_BYTES = 1024,
    EINVAL_OF_NBD = 22,
    ENOSPC_OF_NBD = 28,
    SMALL_HEAP = 3 * 1024 * 1024,
    PAGE = 4096,
};

static const uint8_t zeroes[WRITE_BYTES];

/* Of the client that came last. */
static const struct nbd_connection *newest(void) {
    assert_non_null(nbd_connections());
    return nbd_connections();
}

static void expect_outlook(enum stream_outlook outlook) {
    assert_int_equal(((const struct tcp_stream *)newest()->stream)->outlook, outlook);
}

/* As ask, but nothing that the client has been told is acknowledged. */
static void ask_silently(struct talker *talker, uint16_t command, uint64_t offset,
                         uint64_t length) {
    uint8_t head[REQUEST_BYTES];
    uint8_t *at = head;
    put(&at, NBD_REQUEST_MAGIC, 4);
    put(&at, command, 4);
    put(&at, talker->next_cookie++, 8);
    put(&at, offset, 8);
    put(&at, length, 4);
    client_send(&talker->client, head, sizeof head);
}

static void reading(void) {
    (void)connect_talker(1, NBD_FLAG_C_FIXED_NEWSTYLE);
    expect_outlook(STREAM_MAY_REPLY); /* in its handshake */
    struct talker *talker = begin_simple(0, "disk");
    expect_outlook(STREAM_HAS_REPLIED); /* to nothing */
    ask_silently(talker, NBD_CMD_READ, 0, 512);
    ask_silently(talker, NBD_CMD_READ, 4096, 512);
    expect_outlook(STREAM_WILL_REPLY);
    answer_at(4096, 0);
    expect_outlook(STREAM_WILL_REPLY);
    answer_at(0, 0);
    expect_outlook(STREAM_HAS_REPLIED); /* though it is not acknowledged */
    hear_all();
    expect_outlook(STREAM_HAS_REPLIED);
    client_send(&talker->client, zeroes, REQUEST_BYTES - 1);
    expect_outlook(STREAM_HAS_REPLIED); /* nothing is asked before it is there */
}

TEST(a_reply_is_to_come_while_a_request_is_on_the_disk) {
    with_server(0, reading);
}

static void reply_without_room(void) {
    struct talker *talker = begin_simple(0, "disk");
    for (unsigned i = 0; i < 3; i++) {
        ask_silently(talker, NBD_CMD_READ, 0, (uint64_t)NBD_READ_CHUNKS * CHUNK);
    }
    answer_all();
    /* More than can wait to be sent: the rest of a reply is ready, and the disk has nothing. */
    assert_int_equal(newest()->ios_on_disk, 0);
    assert_non_null(newest()->reply_first);
    expect_outlook(STREAM_WILL_REPLY);
}

TEST(a_reply_is_to_come_while_there_is_no_room_for_it) {
    with_server(0, reply_without_room);
}

/* The memory of its first pieces is needed for the rest, and the client has not taken them. */
static void long_read(void) {
    struct talker *talker = begin_simple(0, "disk");
    ask_silently(talker, NBD_CMD_READ, 0, (uint64_t)(NBD_READ_CHUNKS + 1) * CHUNK);
    answer_all();
    assert_int_equal(newest()->ios_on_disk, 0);
    expect_outlook(STREAM_WILL_REPLY);
    hear_all();
    answer_all();
    hear_all();
    expect_outlook(STREAM_HAS_REPLIED);
}

TEST(a_reply_is_to_come_while_its_beginning_is_not_acknowledged) {
    with_server(0, long_read);
}

static void writing(void) {
    struct talker *talker = begin_simple(0, "disk");
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_WRITE, 0, 0, WRITE_BYTES);
    expect_outlook(STREAM_MAY_REPLY);
    say(talker, zeroes, 100);
    expect_outlook(STREAM_MAY_REPLY);
    say(talker, zeroes, WRITE_BYTES - 100);
    expect_outlook(STREAM_WILL_REPLY);
    answer_all();
    expect_outlook(STREAM_HAS_REPLIED);
    expect_simple(talker, cookie, 0);
    /* Also while something else is to be answered: who sends much is to hear of it. */
    (void)ask(talker, NBD_SIMPLE, NBD_CMD_READ, 0, 4096, 512);
    expect_outlook(STREAM_WILL_REPLY);
    (void)ask(talker, NBD_SIMPLE, NBD_CMD_WRITE, 0, 0, WRITE_BYTES);
    expect_outlook(STREAM_MAY_REPLY);
    say(talker, zeroes, WRITE_BYTES);
    expect_outlook(STREAM_WILL_REPLY);
    answer_all();
    expect_outlook(STREAM_HAS_REPLIED);
}

TEST(a_write_that_is_being_received_may_be_answered) {
    with_server(0, writing);
}

static void refused_write(void) {
    struct talker *talker = begin_simple(0, "disk");
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_WRITE, 0, DISK_BYTES, WRITE_BYTES);
    expect_outlook(STREAM_MAY_REPLY);
    say(talker, zeroes, WRITE_BYTES - 1);
    expect_silence(talker);
    expect_outlook(STREAM_MAY_REPLY);
    say(talker, zeroes, 1);
    expect_simple(talker, cookie, ENOSPC_OF_NBD);
    expect_outlook(STREAM_HAS_REPLIED);
}

TEST(a_write_that_is_refused_may_be_answered_until_it_is) {
    with_server(0, refused_write);
}

/* Refusals, each of which is a request until it is acknowledged. */
static void all_requests_used(void) {
    struct talker *talker = begin_simple(0, "disk");
    for (unsigned i = 0; i < nbd_requests_max(); i++) {
        ask_silently(talker, NBD_CMD_READ, DISK_BYTES, 512);
        expect_outlook(STREAM_HAS_REPLIED);
    }
    assert_null(newest()->free_requests);
    ask_silently(talker, NBD_CMD_READ, DISK_BYTES, 512);
    assert_true(newest()->awaits_requests);
    expect_outlook(STREAM_MAY_REPLY);
    hear_all();
    for (unsigned i = 0; i <= nbd_requests_max(); i++) {
        expect_simple(talker, 7 + i, EINVAL_OF_NBD);
    }
    expect_outlook(STREAM_HAS_REPLIED);
}

TEST(who_waits_for_a_request_may_be_answered) {
    with_server(0, all_requests_used);
}

/* Reads what is held until it is acknowledged, as often as there is memory; how often. */
static unsigned read_until_memory_is_short(struct talker *talker, uint64_t length) {
    unsigned asked = 0;
    while (!newest()->wants_memory) {
        assert_true(asked < NBD_REQUESTS_PER_CONNECTION);
        ask_silently(talker, NBD_CMD_READ, 0, length);
        answer_all();
        asked++;
    }
    assert_int_equal(newest()->ios_on_disk, 0);
    return asked;
}

/* One client takes all that is shared before another comes, and acknowledges nothing. */
static void all_memory_used(void) {
    (void)read_until_memory_is_short(begin_simple(0, "disk"), CHUNK);
    world_forget_heard();
    struct talker *talker = begin_simple(1, "disk");
    expect_outlook(STREAM_HAS_REPLIED);
    unsigned asked = read_until_memory_is_short(talker, PAGE);
    assert_null(newest()->reply_first);
    assert_non_null(newest()->free_requests);
    expect_outlook(STREAM_MAY_REPLY);
    client_say(&talkers[0].client, &(struct spoken){.flags = RST});
    talkers[0].is_reset = true;
    expect_outlook(STREAM_WILL_REPLY); /* now there is some */
    answer_all();
    for (unsigned i = 0; i < asked; i++) {
        expect_simple(talker, 7 + i, 0);
        assert_memory_equal(hear(talker, PAGE), nbd_content, PAGE);
    }
    expect_outlook(STREAM_HAS_REPLIED);
}

TEST(who_waits_for_memory_may_be_answered) {
    with_server(SMALL_HEAP, all_memory_used);
}
