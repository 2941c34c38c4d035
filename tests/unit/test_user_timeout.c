/* Who does not take what was sent to it: net/tcp_stream.c; RFC 9293, 3.9.1.1. */
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "config/limits.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum { TIMEOUT_MS = 2000, LONG_MS = 10 * TIMEOUT_MS, STEP_MS = 50, STEPS = LONG_MS / STEP_MS };

static struct client client;
static unsigned step;

static void begin(uint16_t window) {
    client_connect(&client, 40000, NULL, 0);
    assert_non_null(client.stream);
    client.window = window;
    client_send(&client, world_text, 10); /* which is what its window is believed for */
    client_drop(&client);
    world_forget_heard();
}

/* Does this at every step, until the client is given up or so much time is over: how much it was.
 */
static uint64_t live(void (*act)(void), uint64_t most_ms) {
    uint64_t ms = 0;
    for (step = 0; client.stream->state == STREAM_OPEN && ms < most_ms; step++) {
        act();
        world_pass_ms(STEP_MS);
        world_forget_heard();
        ms += STEP_MS;
    }
    return ms;
}

static void expect_given_up(void (*act)(void), uint64_t timeout_ms) {
    uint64_t ms = live(act, 3 * timeout_ms);
    assert_int_equal(client.stream->state, STREAM_DEAD);
    /* It begins with the next tick; and what is said takes its time, too, which is not counted. */
    assert_in_range(ms, timeout_ms - timeout_ms / 100, timeout_ms + 2 * TCP_SLOW_INTERVAL);
}

static void expect_to_stay(void (*act)(void), uint64_t ms) {
    assert_int_equal(live(act, ms), ms);
    assert_int_equal(client.stream->state, STREAM_OPEN);
}

static void answer(void) {
    client_say(&client, &(struct spoken){0});
}

static void closed_window(void) {
    begin(0);
    client_reply(&client, 0, 1000);
    expect_given_up(answer, TIMEOUT_MS);
    assert_non_null(strstr(unit_log(), "has not taken in 2000 ms what was sent to it: given up"));
}

TEST(whoever_keeps_its_window_closed_is_given_up_though_it_answers) {
    world_run(&(struct world_options){.config = "user-timeout=2"}, closed_window);
}

static void take_ten_bytes(void) {
    client.due += 10;
    answer();
}

static void little_at_a_time(void) {
    begin(1000);
    client_reply(&client, 0, 2000);
    expect_given_up(take_ten_bytes, TIMEOUT_MS);
}

TEST(whoever_takes_a_few_bytes_now_and_then_is_given_up) {
    world_run(&(struct world_options){.config = "user-timeout=2"}, little_at_a_time);
}

static void nothing_to_take(void) {
    begin(0);
    expect_to_stay(answer, LONG_MS);
}

TEST(whoever_is_sent_nothing_stays) {
    world_run(&(struct world_options){.config = "user-timeout=2"}, nothing_to_take);
}

/* Something is on its way all the time, each of it for nearly as long as it may be. */
static void take_late(void) {
    enum { BYTES = 100, BEHIND = (TIMEOUT_MS - 2 * TCP_SLOW_INTERVAL) / STEP_MS };
    static uint32_t sent_until[STEPS + 1];
    bool sends = step % 5 == 0;
    if (sends) {
        client_reply(&client, 0, BYTES);
    }
    sent_until[step + 1] = (step > 0 ? sent_until[step] : client.due) + (sends ? BYTES : 0);
    if (step >= BEHIND) {
        client.due = sent_until[step - BEHIND];
    }
    answer();
}

static void all_in_time(void) {
    begin(10000);
    expect_to_stay(take_late, LONG_MS);
}

TEST(whoever_takes_everything_in_time_stays_though_there_is_always_more) {
    world_run(&(struct world_options){.config = "user-timeout=2"}, all_in_time);
}

static void for_ever(void) {
    begin(0);
    client_reply(&client, 0, 1000);
    expect_to_stay(answer, 2 * NET_USER_TIMEOUT_S * UINT64_C(1000));
}

TEST(without_a_user_timeout_whoever_answers_stays) {
    world_run(&(struct world_options){.config = "user-timeout=0"}, for_ever);
}

static void minutes(void) {
    begin(0);
    client_reply(&client, 0, 1000);
    expect_given_up(answer, NET_USER_TIMEOUT_S * UINT64_C(1000));
}

TEST(unless_it_is_said_the_user_timeout_is_some_minutes) {
    world_run(&(struct world_options){0}, minutes);
}
