/* The NBD server as a client sees it, over TCP, with a disk that answers when a test says so: what
 * needs a moment that no search finds at once. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/wire.h"
#include "config/limits.h"
#include "core/task/task.h"
#include "net/stack.h"
#include "tests/unit/nbd_world.h"
#include "tests/unit/unit.h"

enum {
    CHUNK = NBD_READ_CHUNK_BYTES,
    ESHUTDOWN_OF_NBD = 108,
    EIO_OF_NBD = 5,
    EINVAL_OF_NBD = 22,
    SMALL_HEAP = 3 * 1024 * 1024,
    WAITING = 64,
};

/* --- Handshake --- */

static void list_is_off(void) {
    struct talker *talker = connect_talker(0, NBD_FLAG_C_FIXED_NEWSTYLE);
    config.may_list = false;
    say_option(talker, NBD_OPT_LIST, NULL, 0);
    expect_option_reply(talker, NBD_OPT_LIST, NBD_REP_ERR_POLICY);
    go(talker, "disk"); /* who knows a name may come in */
}

TEST(a_list_that_is_switched_off_is_refused_and_nothing_else) {
    with_server(0, list_is_off);
}

static void not_allowed(void) {
    assert_int_equal(access_list_add(&config.allow, "10.0.2.0/28"), 0);
    client_connect(&talkers[0].client, 40000, NULL, 0); /* from 10.0.2.100 */
    assert_true((world_last_heard()->flags & RST) != 0);
    assert_logged("not on the list of those allowed");
    assert_int_equal(access_list_add(&config.allow, "10.0.2.96/28"), 0);
    (void)connect_talker(1, 0);
}

TEST(who_is_not_on_the_list_is_not_served) {
    with_server(0, not_allowed);
}

static void old_newstyle(void) {
    struct talker *talker = connect_talker(0, 0);
    say_option(talker, NBD_OPT_EXPORT_NAME, "disk", 4);
    const uint8_t *reply = hear(talker, 10 + NBD_EXPORT_ZEROES_BYTES);
    assert_int_equal(get(reply, 8), DISK_BYTES);
    for (unsigned i = 0; i < NBD_EXPORT_ZEROES_BYTES; i++) {
        assert_int_equal(reply[10 + i], 0);
    }
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_READ, 0, 1024, 512);
    answer_all();
    expect_simple(talker, cookie, 0);
    assert_memory_equal(hear(talker, 512), nbd_content + 1024, 512);
    talker = connect_talker(1, 0);
    say_option(talker, NBD_OPT_LIST, NULL, 0);
    expect_reset(talker, "sends option 3 without fixed newstyle");
}

TEST(a_client_without_fixed_newstyle_knows_one_option) {
    with_server(0, old_newstyle);
}

static void extended_export_name(void) {
    struct talker *talker = connect_talker(0, NBD_FLAG_C_FIXED_NEWSTYLE);
    agree(talker, NBD_OPT_EXTENDED_HEADERS);
    say_option(talker, NBD_OPT_EXPORT_NAME, "disk", 4);
    expect_reset(talker, "uses EXPORT_NAME with extended headers");
}

TEST(export_name_after_extended_headers_is_refused) {
    with_server(0, extended_export_name);
}

static void contexts_too_long(void) {
    static uint8_t nothing[NBD_OPTION_BYTES_MAX + 1];
    size_t bytes = 0;
    struct talker *talker = connect_talker(0, NBD_FLAG_C_FIXED_NEWSTYLE);
    agree(talker, NBD_OPT_STRUCTURED_REPLY);
    say_contexts(talker, "disk");
    expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    say_option(talker, NBD_OPT_SET_META_CONTEXT, nothing, sizeof nothing);
    expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_TOO_BIG);
    go(talker, "disk");
    uint64_t cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 0, 4096);
    const uint8_t *error = expect_chunk(talker, cookie, 32769, NBD_REPLY_FLAG_DONE, &bytes);
    assert_int_equal(get(error, 4), EINVAL_OF_NBD);
}

TEST(a_choice_of_contexts_that_is_too_long_chooses_none) {
    with_server(0, contexts_too_long);
}

/* --- Transmission --- */

static void status_in_pieces(void) {
    struct talker *talker = connect_talker(0, NBD_FLAG_C_FIXED_NEWSTYLE);
    uint8_t filter[12];
    uint8_t *at = filter;
    agree(talker, NBD_OPT_EXTENDED_HEADERS);
    say_contexts(talker, "disk");
    expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    const uint8_t *context = talker->in + talker->in_at - 4 - strlen("base:allocation");
    uint64_t id = get(context, 4);
    expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    go(talker, "disk");
    put(&at, 8192, 8);
    put(&at, id, 4);
    uint64_t cookie = ask(talker, NBD_EXTENDED, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN,
                          4096, sizeof filter);
    expect_silence(talker);
    say(talker, filter, 5);
    expect_silence(talker);
    say(talker, filter + 5, sizeof filter - 5);
    const uint8_t *head = hear(talker, 32);
    assert_int_equal(get(head, 4), NBD_EXTENDED_REPLY_MAGIC);
    assert_int_equal(get(head + 8, 8), cookie);
    assert_int_equal(get(head + 16, 8), 4096);
    const uint8_t *status = hear(talker, get(head + 24, 8));
    assert_int_equal(get(status, 4), id);
    assert_int_equal(get(status + 4, 4), 1);
    assert_int_equal(get(status + 8, 8), 8192);
}

TEST(a_status_may_come_in_pieces) {
    with_server(0, status_in_pieces);
}

static void extended_writes(void) {
    struct talker *talker = connect_talker(0, NBD_FLAG_C_FIXED_NEWSTYLE);
    agree(talker, NBD_OPT_EXTENDED_HEADERS);
    go(talker, "disk");
    static const struct {
        uint16_t command;
        uint64_t length;
    } bad[] = {{NBD_CMD_WRITE, 512}, /* does not say that a payload follows */
               {NBD_CMD_READ, (uint64_t)NBD_REQUEST_BYTES_MAX + 512}};
    for (unsigned i = 0; i < ARRAY_COUNT(bad); i++) {
        uint64_t cookie = ask(talker, NBD_EXTENDED, bad[i].command, 0, 0, bad[i].length);
        const uint8_t *head = hear(talker, 32);
        assert_int_equal(get(head, 4), NBD_EXTENDED_REPLY_MAGIC);
        assert_int_equal(get(head + 4, 2), NBD_REPLY_FLAG_DONE);
        assert_int_equal(get(head + 8, 8), cookie);
        const uint8_t *error = hear(talker, get(head + 24, 8));
        assert_int_equal(get(error, 4), EINVAL_OF_NBD);
    }
    expect_silence(talker);
    /* A payload that nobody would wait for to its end. */
    (void)ask(talker, NBD_EXTENDED, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 0,
              (uint64_t)NBD_REQUEST_BYTES_MAX + 1);
    expect_reset(talker, "announces 33554433 bytes of payload");
}

TEST(lengths_that_no_extended_request_may_have_are_refused) {
    with_server(0, extended_writes);
}

static void chunks_fail(void) {
    size_t bytes = 0;
    struct talker *talker = begin_structured(0, "disk");
    uint64_t cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_READ, 0, 0, (uint64_t)4 * CHUNK);
    answer_at(0, 0);
    const uint8_t *data = expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_DATA, 0, &bytes);
    assert_int_equal(get(data, 8), 0);
    assert_memory_equal(data + 8, nbd_content, CHUNK);
    /* The error waits for what is on the disk: its memory is the reply's. */
    answer_at(CHUNK, -EIO);
    expect_silence(talker);
    answer_at(2 * CHUNK, 0);
    expect_silence(talker);
    answer_all();
    const uint8_t *error = expect_chunk(talker, cookie, 32770, NBD_REPLY_FLAG_DONE, &bytes);
    assert_int_equal(get(error, 4), EIO_OF_NBD);
    assert_int_equal(get(error + 6 + get(error + 4, 2), 8), CHUNK);
    cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_READ, 0, 512, 512);
    answer_all();
    data = expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_FLAG_DONE, &bytes);
    assert_memory_equal(data + 8, nbd_content + 512, 512);
}

TEST(an_error_in_the_middle_is_told_when_nothing_is_on_the_disk) {
    with_server(0, chunks_fail);
}

/* A hole is one chunk, however long, and takes the place of several pieces of memory. */
static void reads_over_a_hole(void) {
    size_t bytes = 0;
    uint64_t hole = (uint64_t)4 * CHUNK;
    struct talker *talker = begin_structured(0, "disk");
    uint64_t cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_TRIM, 0, 0, hole);
    answer_all();
    (void)expect_chunk(talker, cookie, NBD_REPLY_TYPE_NONE, NBD_REPLY_FLAG_DONE, &bytes);
    cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_READ, 0, 0, hole + CHUNK);
    const uint8_t *data = expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_HOLE, 0, &bytes);
    assert_int_equal(get(data, 8), 0);
    assert_int_equal(get(data + 8, 4), hole);
    take_parts();
    assert_int_equal(nbd_part_count, 1);
    answer_all();
    data = expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_FLAG_DONE, &bytes);
    assert_int_equal(get(data, 8), hole);
    assert_int_equal(bytes, 8 + CHUNK);
    assert_memory_equal(data + 8, nbd_content + hole, CHUNK);
    unit_log_clear();
    nbd_server_dump();
    char *at = strstr(unit_log(), "ios ");
    assert_non_null(at);
    unsigned long free_ios = strtoul(at + strlen("ios "), &at, 10);
    unsigned long ios = strtoul(at + strlen(" of "), &at, 10);
    unsigned long spare_ios = strtoul(at + strlen(" free (spare "), NULL, 10);
    assert_int_equal(free_ios + spare_ios, ios);
}

TEST(what_a_hole_leaves_over_of_a_read_s_memory_goes_back) {
    config.keeps_allocation = true;
    with_server(0, reads_over_a_hole);
    config.keeps_allocation = false;
}

/* Four pieces of memory are under way; what comes behind them is known to be zero. The first that
 * the client has taken goes on with it, and no disk is asked. */
static void reads_before_a_hole(void) {
    enum { PIECES = NBD_READ_CHUNKS };
    size_t bytes = 0;
    uint64_t hole_at = (uint64_t)PIECES * CHUNK;
    struct talker *talker = begin_structured(0, "disk");
    uint64_t cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_TRIM, 0, hole_at, CHUNK);
    answer_all();
    (void)expect_chunk(talker, cookie, NBD_REPLY_TYPE_NONE, NBD_REPLY_FLAG_DONE, &bytes);
    cookie = ask(talker, NBD_STRUCTURED, NBD_CMD_READ, 0, 0, hole_at + CHUNK);
    answer_all();
    for (unsigned i = 0; i < PIECES; i++) {
        (void)expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_DATA, 0, &bytes);
        assert_int_equal(bytes, 8 + CHUNK);
    }
    const uint8_t *data =
        expect_chunk(talker, cookie, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REPLY_FLAG_DONE, &bytes);
    assert_int_equal(get(data, 8), hole_at);
    assert_int_equal(get(data + 8, 4), CHUNK);
}

TEST(a_hole_behind_what_fits_into_memory_is_told_when_that_is_taken) {
    config.keeps_allocation = true;
    with_server(0, reads_before_a_hole);
    config.keeps_allocation = false;
}

static void simple_fails(void) {
    struct talker *talker = begin_simple(0, "disk");
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_READ, 0, 0, (uint64_t)4 * CHUNK);
    answer_at(0, 0);
    expect_simple(talker, cookie, 0);
    assert_memory_equal(hear(talker, CHUNK), nbd_content, CHUNK);
    /* What fails is not yet due. */
    answer_at(2 * CHUNK, -EIO);
    expect_silence(talker);
    answer_at(CHUNK, 0);
    expect_reset(talker, "failed half-way through its reply");
    answer_all();
}

TEST(a_simple_reply_that_fails_half_way_ends_the_connection) {
    with_server(0, simple_fails);
}

/* The steps of a long trim end where the device likes them to. */
static void aligned_trim(void) {
    struct talker *talker = begin_simple(0, "disk");
    uint64_t end = 3 * 1024 * 1024;
    uint64_t at = 1024;
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_TRIM, 0, at, end - at);
    unsigned steps = 0;
    while (at < end) {
        uint64_t step_end = at;
        take_parts();
        assert_true(nbd_part_count > 0);
        expect_silence(talker);
        while (nbd_part_count > 0) {
            assert_int_equal(nbd_parts[0].operation, BLOCK_DISCARD);
            assert_int_equal(nbd_parts[0].offset, step_end);
            step_end += nbd_parts[0].length;
            answer_at(step_end - nbd_parts[0].length, 0);
            if (step_end - at <= (uint64_t)64 * 1024 * (NBD_STEP_PARTS - 1)) {
                take_parts();
            }
        }
        assert_true(step_end == end || step_end % nbd_disk.limits.discard_align_bytes == 0);
        at = step_end;
        steps++;
    }
    assert_true(steps > 1);
    expect_simple(talker, cookie, 0);
}

TEST(a_long_trim_is_cut_where_the_device_likes_it) {
    with_server(0, aligned_trim);
}

/* Ten requests a second for all who use the export. */
static void leaving_the_line(void) {
    enum { LEAVES = 2 };
    uint64_t cookies[TALKERS];
    for (unsigned i = 0; i < TALKERS; i++) {
        (void)begin_simple(i, "slow");
    }
    for (unsigned i = 0; i < 3; i++) { /* what it allows at once, and more */
        (void)ask(&talkers[0], NBD_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0);
    }
    for (unsigned i = 0; i < TALKERS; i++) {
        cookies[i] = ask(&talkers[i], NBD_SIMPLE, NBD_CMD_READ, 0, (uint64_t)512 * i, 512);
    }
    /* One goes; who is behind it gets its turn, and those before it keep theirs. */
    client_say(&talkers[LEAVES].client, &(struct spoken){.flags = RST});
    talkers[LEAVES].is_reset = true;
    for (unsigned i = 0; i < 20; i++) {
        answer_all();
        world_pass_ms(100);
        hear_all();
    }
    for (unsigned i = 0; i < TALKERS; i++) {
        struct talker *talker = &talkers[i];
        if (i == LEAVES) {
            continue;
        }
        while (talker->in_bytes - talker->in_at > 16 + 512) {
            (void)hear(talker, 16); /* of the flushes */
        }
        expect_simple(talker, cookies[i], 0);
        assert_memory_equal(hear(talker, 512), nbd_content + (size_t)512 * i, 512);
    }
}

TEST(who_leaves_the_line_of_a_limit_takes_nobody_along) {
    with_server(0, leaving_the_line);
}

/* --- Turns at the disk --- */

/* Blocks with one between each two, so that none merge. */
static uint64_t offset_of(uint64_t number) {
    return number * 1024;
}

static void ask_block(unsigned which, uint64_t number) {
    (void)ask(&talkers[which], NBD_SIMPLE, NBD_CMD_READ, 0, offset_of(number), 512);
}

static void answer_block(uint64_t number) {
    answer_at(offset_of(number), 0);
}

/* The disk has so many blocks in hand, and these are the newest, by age. */
static void expect_on_disk(unsigned count, const uint64_t *newest, unsigned newest_count) {
    take_parts();
    assert_int_equal(nbd_part_count, count);
    for (unsigned i = 0; i < newest_count; i++) {
        assert_int_equal(nbd_parts[count - newest_count + i].offset, offset_of(newest[i]));
    }
}

/* In the order in which the disk was done. */
static void expect_block(unsigned which, uint64_t number) {
    (void)hear(&talkers[which], 16); /* the cookie has its tests */
    assert_memory_equal(hear(&talkers[which], 512), nbd_content + offset_of(number), 512);
}

static void with_depth(unsigned depth, void (*body)(void)) {
    unsigned before = config.depth;
    config.depth = depth;
    with_server(0, body);
    config.depth = before;
}

/* Of a depth of eight a turn is two requests. One client has the disk to itself until there is no
 * room for another turn; then all wait, each time there is room for two the next has its turn, and
 * who has more to ask waits behind all others. */
static void taking_turns(void) {
    for (unsigned i = 0; i < 3; i++) {
        (void)begin_simple(i, "disk");
    }
    for (unsigned i = 0; i < 11; i++) {
        ask_block(0, 100 + i);
    }
    for (unsigned i = 0; i < 3; i++) {
        ask_block(1, 200 + i);
        ask_block(2, 300 + i);
    }
    expect_on_disk(7, (const uint64_t[]){105, 106}, 2);
    answer_block(100);
    expect_on_disk(8, (const uint64_t[]){107, 108}, 2);
    answer_block(101);
    expect_on_disk(7, (const uint64_t[]){107, 108}, 2);
    answer_block(102);
    expect_on_disk(8, (const uint64_t[]){200, 201}, 2);
    answer_block(103);
    answer_block(104);
    expect_on_disk(8, (const uint64_t[]){300, 301}, 2);
    answer_block(105);
    answer_block(106);
    expect_on_disk(8, (const uint64_t[]){109, 110}, 2);
    answer_block(107);
    answer_block(108);
    expect_on_disk(7, (const uint64_t[]){110, 202}, 2);
    answer_block(200);
    expect_on_disk(7, (const uint64_t[]){202, 302}, 2);
    answer_all();
    for (unsigned i = 0; i < 11; i++) {
        expect_block(0, 100 + i);
    }
    for (unsigned i = 0; i < 3; i++) {
        expect_block(1, 200 + i);
        expect_block(2, 300 + i);
    }
    unit_log_clear();
    nbd_server_dump();
    assert_logged("vda: at most 8 pieces of requests at a time, has 0, waits ");
}

TEST(requests_beyond_the_depth_of_a_disk_wait_and_clients_take_turns) {
    with_depth(8, taking_turns);
}

/* The first of those who wait goes, then the last; whoever comes is behind those who stay. */
static void leaving_before_the_turn(void) {
    for (unsigned i = 0; i < TALKERS; i++) {
        (void)begin_simple(i, "disk");
        ask_block(i, 100 + i);
    }
    expect_on_disk(1, (const uint64_t[]){100}, 1);
    client_say(&talkers[1].client, &(struct spoken){.flags = RST});
    client_say(&talkers[3].client, &(struct spoken){.flags = RST});
    talkers[1].is_reset = true;
    talkers[3].is_reset = true;
    ask_block(0, 200);
    answer_block(100);
    expect_on_disk(1, (const uint64_t[]){102}, 1);
    answer_block(102);
    expect_on_disk(1, (const uint64_t[]){200}, 1);
    answer_block(200);
    expect_on_disk(0, NULL, 0);
    expect_block(0, 100);
    expect_block(2, 102);
    expect_block(0, 200);
}

TEST(who_leaves_before_its_turn_takes_nobody_along) {
    with_depth(1, leaving_before_the_turn);
}

/* Whatever its exports are called, a disk is one. */
static void sharing_a_disk(void) {
    (void)begin_simple(0, "disk");
    (void)begin_simple(1, "slow");
    ask_block(0, 100);
    ask_block(1, 200);
    expect_on_disk(1, (const uint64_t[]){100}, 1);
    answer_block(100);
    expect_on_disk(1, (const uint64_t[]){200}, 1);
    answer_block(200);
    expect_block(0, 100);
    expect_block(1, 200);
}

TEST(exports_of_one_disk_share_its_turns) {
    with_depth(1, sharing_a_disk);
}

/* A disk that is done when it has been told. */
static bool serve_now(struct block_device *device) {
    bool any = false;
    struct block_part part;
    while (block_queue_next(device, &part)) {
        memcpy(part.segments[0].data, nbd_content + part.offset, part.segments[0].length);
        block_queue_done(device, part.request, 0);
        any = true;
    }
    return any;
}

/* As ask_block, but nothing else wakes the network. */
static void whisper_block(unsigned which, uint64_t number) {
    uint8_t frame[FRAME_MAX];
    uint8_t head[28];
    uint8_t *at = head;
    put(&at, NBD_REQUEST_MAGIC, 4);
    put(&at, NBD_CMD_READ, 4);
    put(&at, talkers[which].next_cookie++, 8);
    put(&at, offset_of(number), 8);
    put(&at, 512, 4);
    struct spoken spoken = {.flags = ACK | PSH, .data = head, .bytes = sizeof head};
    fake_card_deliver(frame, client_frame(&talkers[which].client, &spoken, frame), 0);
    talkers[which].client.at += sizeof head;
}

/* Nobody is forgotten who waits for a turn that comes in the round that took the request in. */
static void served_at_once(void) {
    (void)begin_simple(0, "disk");
    (void)begin_simple(1, "disk");
    nbd_disk.serve = serve_now;
    uint64_t first_cookies[2] = {talkers[0].next_cookie, talkers[1].next_cookie};
    for (unsigned i = 0; i < 3; i++) {
        whisper_block(0, 100 + i);
        whisper_block(1, 200 + i);
    }
    for (unsigned i = 0; i < 20; i++) {
        take_parts(); /* those that the disk was woken for, as a disk does that rests */
        while (nbd_part_count > 0) {
            answer_at(nbd_parts[0].offset, 0);
        }
        task_sleep_until(arch_clock_ns() + 10 * NS_PER_US);
        (void)world_listen(UINT_MAX);
    }
    /* Those that the disk was woken for may be answered behind later ones. */
    for (unsigned i = 0; i < 6; i++) {
        struct talker *talker = &talkers[i % 2];
        uint64_t number = get(hear(talker, 16) + 8, 8) - first_cookies[i % 2];
        assert_in_range(number, 0, 2);
        number += i % 2 == 0 ? 100 : 200;
        assert_memory_equal(hear(talker, 512), nbd_content + offset_of(number), 512);
    }
    expect_silence(&talkers[0]);
    expect_silence(&talkers[1]);
}

TEST(who_waits_for_its_turn_at_a_disk_that_is_done_at_once_has_it) {
    with_depth(1, served_at_once);
    with_depth(2, served_at_once);
    with_depth(64, served_at_once);
}

/* All is answered and nothing acknowledged when the client says that it goes: its last
 * acknowledgement is all that is waited for, and no deadline. */
static void leaving_unacknowledged(void) {
    uint8_t disconnect[28];
    uint8_t *at = disconnect;
    put(&at, NBD_REQUEST_MAGIC, 4);
    put(&at, NBD_CMD_DISC, 4);
    put(&at, 0, 8);
    put(&at, 0, 8);
    put(&at, 0, 4);
    struct talker *talker = begin_simple(0, "disk");
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_READ, 0, 512, 512);
    take_parts();
    answer_at(512, 0);
    client_send(&talker->client, disconnect, sizeof disconnect); /* acknowledges no reply */
    assert_false(talker->has_ended);
    expect_simple(talker, cookie, 0);
    assert_memory_equal(hear(talker, 512), nbd_content + 512, 512);
    world_pass_ms(10);
    hear_all();
    assert_true(talker->has_ended);
}

TEST(who_has_said_goodbye_is_let_go_with_its_last_acknowledgement) {
    with_server(0, leaving_unacknowledged);
}

/* --- Memory --- */

/* Requests of each kind on four connections, as many as their windows have room for, and a disk
 * that is silent: what there is no memory for waits, and none is forgotten. */
static void ask_much(const uint16_t *commands, unsigned count, unsigned each) {
    static const uint8_t zeroes[512];
    uint64_t asked[TALKERS] = {0};
    uint64_t answered[TALKERS] = {0};
    for (unsigned i = 0; i < TALKERS; i++) {
        struct talker *talker = connect_talker(i, NBD_FLAG_C_FIXED_NEWSTYLE);
        agree(talker, NBD_OPT_STRUCTURED_REPLY);
        say_contexts(talker, "disk");
        expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
        expect_option_reply(talker, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
        go(talker, "disk");
    }
    for (unsigned n = 0; n < each; n++) {
        for (unsigned i = 0; i < TALKERS; i++) {
            uint16_t command = commands[unit_random_below(count)];
            uint64_t length = command == NBD_CMD_FLUSH ? 0 : 512 * (1 + unit_random_below(300));
            bool is_write = command == NBD_CMD_WRITE;
            length = is_write ? sizeof zeroes : length;
            (void)ask(&talkers[i], NBD_STRUCTURED, command, is_write ? NBD_CMD_FLAG_FUA : 0, 0,
                      length);
            say(&talkers[i], zeroes, is_write ? length : 0);
            asked[i]++;
        }
    }
    unit_log_clear();
    nbd_server_dump();
    assert_not_logged("KiB free, waits 0\n");
    for (unsigned rounds = 0; rounds < 5000; rounds++) {
        answer_all();
        world_pass_ms(1);
        hear_all();
    }
    for (unsigned i = 0; i < TALKERS; i++) {
        struct talker *talker = &talkers[i];
        while (talker->in_at < talker->in_bytes) {
            const uint8_t *head = hear(talker, 20);
            assert_int_equal(get(head, 4), NBD_STRUCTURED_REPLY_MAGIC);
            assert_true(get(head + 6, 2) < 32768); /* no error */
            answered[i] += get(head + 4, 2) & NBD_REPLY_FLAG_DONE;
            (void)hear(talker, get(head + 16, 4)); /* the content has its tests */
        }
        assert_int_equal(answered[i], asked[i]);
    }
}

static void more_than_memory(void) {
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_FLUSH,        NBD_CMD_CACHE,
                                        NBD_CMD_TRIM, NBD_CMD_BLOCK_STATUS, NBD_CMD_WRITE};
    ask_much(commands, ARRAY_COUNT(commands), WAITING);
}

/* These need no memory for payload, but what stands for them at the disk. */
static void more_than_ios(void) {
    static const uint16_t commands[] = {NBD_CMD_FLUSH, NBD_CMD_TRIM};
    ask_much(commands, ARRAY_COUNT(commands), NBD_REQUESTS_PER_CONNECTION);
}

TEST(requests_that_the_disk_has_no_place_for_wait) {
    with_server(SMALL_HEAP, more_than_ios);
}

TEST(requests_without_memory_wait_and_none_is_forgotten) {
    with_server(SMALL_HEAP, more_than_memory);
}

/* A write is received whole before it goes to the disk, unless others have nearly all buffers: here
 * with requests on an export whose limit lets none pass. */
static void write_under_pressure(void) {
    enum { WRITE_BYTES = 32768, HALF = 16384, AT_ONCE = 5 };
    static uint8_t data[WRITE_BYTES];
    struct talker *talker = begin_simple(0, "disk");
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(i * 11 + i / 100);
    }
    for (unsigned i = 1; i < TALKERS; i++) {
        (void)begin_simple(i, "slow");
    }
    uint64_t cookie = ask(talker, NBD_SIMPLE, NBD_CMD_WRITE, 0, 65536, WRITE_BYTES);
    say(talker, data, HALF + 100);
    take_parts();
    assert_int_equal(nbd_part_count, 0);
    for (unsigned n = 0; !net_is_under_pressure(); n++) {
        uint8_t requests[AT_ONCE * 28];
        uint8_t *at = requests;
        for (unsigned i = 0; i < AT_ONCE; i++) {
            put(&at, NBD_REQUEST_MAGIC, 4);
            put(&at, NBD_CMD_FLUSH, 4);
            put(&at, i, 8);
            put(&at, 0, 8);
            put(&at, 0, 4);
        }
        assert_true(n < 1000);
        say(&talkers[1 + n % (TALKERS - 1)], requests, sizeof requests);
    }
    world_settle();
    take_parts();
    unsigned writes = 0;
    for (unsigned i = 0; i < nbd_part_count; i++) {
        if (nbd_parts[i].operation == BLOCK_WRITE) {
            assert_int_equal(nbd_parts[i].offset, 65536);
            assert_int_equal(nbd_parts[i].length, HALF); /* whole blocks */
            writes++;
        }
    }
    assert_int_equal(writes, 1);
    answer_all();
    say(talker, data + HALF + 100, WRITE_BYTES - HALF - 100);
    answer_all();
    expect_simple(talker, cookie, 0);
    assert_memory_equal(nbd_content + 65536, data, WRITE_BYTES);
}

TEST(a_write_goes_on_in_parts_when_buffers_run_short) {
    with_server(SMALL_HEAP, write_under_pressure);
}

/* --- The end --- */

static void shutting_down(void) {
    struct talker *busy = begin_simple(0, "disk");
    struct talker *shaking = connect_talker(1, NBD_FLAG_C_FIXED_NEWSTYLE);
    uint64_t read = ask(busy, NBD_SIMPLE, NBD_CMD_READ, 0, 0, 512);
    nbd_server_shut_down();
    unit_log_clear();
    nbd_server_shut_down(); /* as when the key is pressed twice */
    assert_not_logged("shutting down");
    uint64_t late = ask(busy, NBD_SIMPLE, NBD_CMD_READ, 0, 512, 512);
    expect_simple(busy, late, ESHUTDOWN_OF_NBD);
    assert_false(nbd_server_is_down());
    answer_all();
    expect_simple(busy, read, 0);
    assert_memory_equal(hear(busy, 512), nbd_content, 512);
    world_settle();
    hear_all();
    world_pass_ms(100);
    assert_true(nbd_server_is_down());
    client_connect(&talkers[2].client, 40002, NULL, 0);
    assert_true((world_last_heard()->flags & RST) != 0);
    busy->is_reset = true; /* closed, both of them */
    shaking->is_reset = true;
}

TEST(what_was_begun_is_finished_before_the_end) {
    with_server(0, shutting_down);
}

/* Whoever has not said yet what it wants is not told, even if it says so in the same round. */
static void shut_down_in_the_handshake(void) {
    static const uint32_t options[] = {NBD_OPT_LIST, NBD_OPT_EXPORT_NAME, NBD_OPT_ABORT};
    for (unsigned i = 0; i < ARRAY_COUNT(options); i++) {
        (void)connect_talker(i, NBD_FLAG_C_FIXED_NEWSTYLE);
    }
    for (unsigned i = 0; i < ARRAY_COUNT(options); i++) {
        struct talker *talker = &talkers[i];
        uint8_t frame[FRAME_MAX];
        uint8_t head[NBD_OPTION_HEADER_BYTES];
        uint8_t *at = head;
        put(&at, NBD_OPTION_MAGIC, 8);
        put(&at, options[i], 4);
        put(&at, 0, 4);
        struct spoken spoken = {.data = head, .bytes = sizeof head};
        fake_card_deliver(frame, client_frame(&talker->client, &spoken, frame), 0);
        talker->client.at += sizeof head;
    }
    nbd_server_shut_down();
    world_settle();
    hear_all();
    world_pass_ms(100);
    hear_all();
    for (unsigned i = 0; i < ARRAY_COUNT(options); i++) {
        assert_true(talkers[i].has_ended);
        expect_silence(&talkers[i]);
        talkers[i].is_reset = true;
    }
    assert_true(nbd_server_is_down());
}

TEST(who_is_in_its_handshake_at_the_end_is_let_go) {
    with_server(0, shut_down_in_the_handshake);
}
