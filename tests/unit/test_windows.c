/* Windows that are shorter than a segment, that close and that shrink: net/tcp_stream.c. */
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "net/counters.h"
#include "net/tcp_connection.h"
#include "tests/network_words.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    OPTION_MSS = 2,
    MSS = 1460,
    SMALL_MSS = 536,
    TEXT = 50000,
    WINDOW_MAX = 65535, /* lwIP takes no more than half of it into a segment */
    SEGMENT = WINDOW_MAX / 2,
    STEP_MS = 50,
    PATIENCE_MS = 5000, /* more than any of lwIP's timers needs here */
};

static const struct world_options cuts = {.hears_beginnings = true,
                                          .features = CARD_CSUM | CARD_HOST_TSO4};
static const struct world_options cuts_not = {.hears_beginnings = true, .config = "segment=64240"};
static struct client client;

/* A smaller window is believed only when it comes with bytes behind those that told of the last. */
static void tell_window(uint16_t window) {
    client.window = window;
    client_send(&client, world_text, 10);
    client_send(&client, world_text, 10);
    client_drop(&client);
    world_forget_heard();
}

static void begin_with(uint16_t mss, uint16_t window) {
    uint8_t option[4] = {OPTION_MSS, sizeof option};
    put16(option + 2, mss);
    client_connect(&client, 40000, option, sizeof option);
    assert_non_null(client.stream);
    tell_window(window);
}

static void begin(uint16_t window) {
    begin_with(MSS, window);
}

static void end(void) {
    client_close(&client, true);
    world_settle();
}

static void pass_until(bool (*is_so)(void)) {
    for (unsigned ms = 0; ms < PATIENCE_MS && !is_so(); ms += STEP_MS) {
        world_pass_ms(STEP_MS);
    }
    assert_true(is_so());
}

static bool hears(void) {
    return world.heard_count > 0;
}

static bool is_persisting(void) {
    return pcb_of(&client)->persist_backoff != 0;
}

/* The client reads so many bytes from `at` on as they come, telling of its window. No time passes,
 * and what comes at a time fills the window, but for the last of what was one segment. */
static void expect_windows_full(size_t at, size_t bytes) {
    size_t times = 0;
    size_t times_most = bytes / client.window + bytes / SEGMENT + 2;
    while (bytes > 0) {
        size_t came = client_take_in(&client, at);
        assert_in_range(came, 1, client.window);
        at += came;
        bytes -= came;
        times++;
    }
    assert_in_range(times, 1, times_most);
    assert_int_equal(world.heard_count, 0);
    assert_null(pcb_of(&client)->unacked);
    assert_null(pcb_of(&client)->unsent);
}

/* --- Shorter than a segment --- */

static void short_windows(void) {
    static const uint16_t windows[] = {MSS,         MSS + 1,         5000,
                                       SEGMENT / 2, SEGMENT / 2 + 1, SEGMENT - 1};
    for (unsigned i = 0; i < ARRAY_COUNT(windows); i++) {
        begin(windows[i]);
        net_counters.bytes_copied = 0;
        client_reply(&client, 500, TEXT);
        expect_windows_full(500, TEXT);
        /* Not all that is left at each of many windows. */
        assert_in_range(net_counters.bytes_copied, 1, 3 * TEXT);
        end();
    }
}

TEST(what_fills_a_window_shorter_than_a_segment_goes_at_once) {
    world_run(&cuts, short_windows);
}

TEST(the_same_without_a_device_that_cuts) {
    world_run(&cuts_not, short_windows);
}

static void small_segments(void) {
    begin_with(SMALL_MSS, SMALL_MSS);
    client_reply(&client, 0, 5000);
    expect_windows_full(0, 5000);
    end();
}

TEST(what_fills_a_window_is_reckoned_in_the_peers_own_segments) {
    world_run(&cuts, small_segments);
}

static void silly_window(void) {
    begin(MSS - 1);
    client_reply(&client, 0, TEXT);
    assert_int_equal(world.heard_count, 0);
    pass_until(hears);
    assert_int_equal(world_last_heard()->bytes, MSS - 1);
    end();
}

TEST(what_would_fill_less_than_a_frame_waits_for_a_timer) {
    world_run(&cuts, silly_window);
}

static void no_memory(void) {
    begin(0);
    client_reply(&client, 0, TEXT);
    unit_allocations_until_failure(0);
    tell_window(5000);
    assert_true(is_persisting());
    assert_non_null(pcb_of(&client)->unsent);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    world_pass_ms(STEP_MS);
    assert_int_equal(client_take_in(&client, 0), 5000);
    end();
}

TEST(without_memory_to_cut_it_waits_for_memory) {
    world_run(&cuts, no_memory);
}

/* --- Closed ones --- */

static bool has_been_asked(void) {
    return hears() && world_last_heard()->bytes == 1;
}

/* The byte that asks whether the window is still closed is the last that there is, and is taken. */
static void last_byte(void) {
    begin(5000);
    client_reply(&client, 0, 5001);
    client.window = 0;
    assert_int_equal(client_take_in(&client, 0), 5000);
    pass_until(has_been_asked);
    assert_int_equal(client_take_in(&client, 5000), 1);
    assert_false(is_persisting());
    world_pass_ms(PATIENCE_MS); /* nobody asks again */
    assert_int_equal(world.heard_count, 0);
    client.window = WINDOW_MAX;
    client_say(&client, &(struct spoken){0});
    client_reply(&client, 0, 100);
    assert_int_equal(client_take_in(&client, 0), 100);
    end();
}

TEST(the_byte_that_asks_may_be_the_last_one) {
    world_run(&cuts, last_byte);
}

/* The client has got all of it, and says so only when it was to be sent again. */
static void late_word(void) {
    begin(WINDOW_MAX);
    client_reply(&client, 0, 20000);
    tell_window(0);
    pass_until(is_persisting);
    assert_non_null(pcb_of(&client)->unsent);
    client_acknowledge(&client, 20000);
    assert_false(is_persisting());
    world_forget_heard();
    world_pass_ms(PATIENCE_MS);
    assert_int_equal(world.heard_count, 0);
    end();
}

TEST(what_waits_before_a_closed_window_may_turn_out_to_have_been_received) {
    world_run(&cuts, late_word);
}

/* The same, but of a part of it; then the window opens, a little or wide. */
static void part_of_a_segment(uint16_t window) {
    enum { BYTES = 30000, HAS = 14600 };
    begin(WINDOW_MAX);
    client_reply(&client, 0, BYTES);
    client.due += HAS;
    tell_window(0);
    pass_until(is_persisting);
    client.window = window;
    client_say(&client, &(struct spoken){0});
    size_t at = HAS;
    for (unsigned ms = 0; ms < 20 * PATIENCE_MS && at < BYTES; ms += STEP_MS) {
        world_pass_ms(STEP_MS);
        at += hears() ? client_take_in(&client, at) : 0;
    }
    assert_int_equal(at, BYTES);
    assert_null(pcb_of(&client)->unsent);
    assert_null(pcb_of(&client)->unacked);
    const struct tcp_stream *tcp = (const struct tcp_stream *)client.stream;
    assert_int_equal(tcp->acknowledged, tcp->sent);
    assert_int_equal(pcb_of(&client)->snd_buf, TCP_SND_BUF);
    assert_int_equal(pcb_of(&client)->snd_queuelen, 0);
    end();
}

static void parts_of_segments(void) {
    static const uint16_t windows[] = {1000, 5000, 20000, WINDOW_MAX};
    for (unsigned i = 0; i < ARRAY_COUNT(windows); i++) {
        part_of_a_segment(windows[i]);
    }
}

TEST(of_what_waits_before_a_closed_window_a_part_may_have_been_received) {
    world_run(&cuts, parts_of_segments);
}
