/* The log: core/log.c. */
#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/panic.h"
#include "tests/unit/unit.h"

TEST(a_line_tells_time_and_level_and_text) {
    host_clock_set(12 * NS_PER_S + 34567 * NS_PER_US);
    log_info("disk %s has %u bytes", "vda", 512u);
    log_warning("careful");
    log_debug("detail");
    assert_int_equal(log_error(-EIO, "broken"), -EIO);
    assert_string_equal(unit_log(), "[   12.034567] disk vda has 512 bytes\n"
                                    "[   12.034567] warning: careful\n"
                                    "[   12.034567] debug: detail\n"
                                    "[   12.034567] error: broken\n");
}

TEST(lines_above_the_level_are_not_kept) {
    log_set_level(LOG_WARNING);
    log_info("quiet");
    log_debug("quiet");
    log_warning("loud");
    assert_not_logged("quiet");
    assert_logged("loud");
    log_set_level(LOG_ERROR);
    log_warning("hushed");
    (void)log_error(-EIO, "cried");
    assert_not_logged("hushed");
    assert_logged("cried");
}

TEST(text_is_kept_bare_and_at_every_level) {
    log_set_level(LOG_ERROR);
    log_text("ok 1 - %s", "test");
    assert_string_equal(unit_log(), "ok 1 - test\n");
}

TEST(the_four_levels_have_names_and_nothing_else_has) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    enum log_level level = LOG_ERROR;
    for (unsigned i = 0; i < ARRAY_COUNT(names); i++) {
        assert_true(log_level_parse(names[i], &level));
        assert_int_equal(level, i);
    }
    assert_false(log_level_parse("", &level));
    assert_false(log_level_parse("debu", &level));
    assert_false(log_level_parse("debugs", &level));
}

TEST(control_characters_cannot_forge_lines_or_drive_a_terminal) {
    log_text("name \"%s\"", "a\nPANIC\r\x1b[2J\x7f\t\x01\x9bz");
    assert_string_equal(unit_log(), "name \"a?PANIC??[2J????z\"\n");
}

TEST(a_long_line_is_cut_and_still_ends) {
    char text[2 * LOG_LINE_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    log_text("%s", text);
    log_info("%s", text);
    log_text("next");
    const char *log = unit_log();
    assert_int_equal(strcspn(log, "\n"), LOG_LINE_MAX - 2);
    log = strchr(log, '\n') + 1;
    assert_int_equal(strcspn(log, "\n"), LOG_LINE_MAX - 2);
    assert_string_equal(strchr(log, '\n') + 1, "next\n");
}

/* Writes numbered lines of different lengths; returns how many bytes that makes. */
static size_t write_lines(unsigned first, unsigned last) {
    size_t bytes = 0;
    for (unsigned i = first; i <= last; i++) {
        log_text("line %u%.*s", i, (int)(i % 50),
                 "..................................................");
        bytes += (size_t)snprintf(NULL, 0, "line %u", i) + i % 50 + 1;
    }
    return bytes;
}

TEST(a_full_ring_keeps_the_newest_whole_lines) {
    uint64_t dropped = log_dropped();
    assert_true(write_lines(1, 2000) > 2 * LOG_RING_BYTES);
    const char *log = unit_log();
    unsigned first = 0;
    assert_int_equal(sscanf(log, "line %u", &first), 1);
    assert_true(first > 1 && strlen(log) <= LOG_RING_BYTES);
    assert_true(strlen(log) > LOG_RING_BYTES - LOG_LINE_MAX);
    for (unsigned i = first; i <= 2000; i++) {
        unsigned number = 0;
        assert_int_equal(sscanf(log, "line %u", &number), 1);
        assert_int_equal(number, i);
        log = strchr(log, '\n') + 1;
    }
    assert_int_equal(*log, '\0');
    assert_int_equal(log_dropped() - dropped, first - 1);
}

TEST(one_long_line_may_push_out_many_and_all_are_counted) {
    char text[201];
    memset(text, 'x', 200);
    text[200] = '\0';
    for (unsigned i = 0; i < LOG_RING_BYTES / 8; i++) {
        log_text("1234567"); /* eight bytes with its end: the ring is full to the last byte */
    }
    uint64_t dropped = log_dropped();
    log_text("%s", text);
    assert_int_equal(log_dropped() - dropped, (201 + 7) / 8);
}

/* The console is slow: it may have written half of a line when the ring overtakes it. */
TEST(a_line_half_written_out_is_not_glued_to_another) {
    log_text("the first line");
    assert_true(log_drain(5));
    (void)write_lines(1, 2000);
    const char *log = unit_log();
    const char *next = strchr(log, '\n') + 1;
    unsigned number = 0;
    assert_int_equal(strncmp(log, "the f", 5), 0);
    assert_int_equal(next - log, 5 + 1);
    assert_int_equal(sscanf(next, "line %u", &number), 1);
}

TEST(draining_keeps_to_its_budget) {
    log_text("12345678");
    assert_true(log_is_waiting());
    assert_true(log_drain(4));
    assert_true(log_drain(4));
    assert_false(log_drain(4));
    assert_false(log_is_waiting());
    assert_string_equal(unit_log(), "12345678\n");
}

TEST(without_a_console_lines_wait) {
    log_set_sink(NULL, NULL);
    log_text("early");
    assert_false(log_is_waiting());
    assert_false(log_drain(100));
    log_flush();
}

static size_t say_once_more(void *arg, const char *text, size_t length) {
    unsigned *calls = arg;
    (void)text;
    if ((*calls)++ == 0) {
        log_text("said while writing");
    }
    return length;
}

TEST(a_flush_ends_when_nothing_is_left) {
    unsigned calls = 0;
    log_set_sink(say_once_more, &calls);
    log_text("first");
    log_flush();
    assert_int_equal(calls, 2);
    assert_false(log_is_waiting());
}

/* A console of which somebody reads so many bytes at a time. */
struct reader {
    size_t room;
    char text[64];
    size_t used;
};

static size_t write_to_reader(void *arg, const char *text, size_t length) {
    struct reader *reader = arg;
    size_t taken = length < reader->room ? length : reader->room;
    memcpy(reader->text + reader->used, text, taken);
    reader->used += taken;
    reader->room -= taken;
    return taken;
}

TEST(what_a_console_does_not_take_waits_and_is_offered_again) {
    struct reader reader = {.room = 4};
    log_set_sink(write_to_reader, &reader);
    log_text("12345678");
    assert_false(log_drain(6)); /* more now would be of no use */
    assert_true(log_is_waiting());
    assert_false(log_drain(100));
    assert_memory_equal(reader.text, "1234", 4);
    assert_int_equal(reader.used, 4);
    log_flush(); /* ends all the same */
    assert_true(log_is_waiting());
    reader.room = 3;
    assert_true(log_drain(3));
    reader.room = 60;
    assert_false(log_drain(100));
    assert_false(log_is_waiting());
    assert_memory_equal(reader.text, "12345678\n", 9);
    assert_int_equal(reader.used, 9);
}

/* Takes nothing, and each time a millisecond passes. */
static size_t refuse(void *arg, const char *text, size_t length) {
    unsigned *calls = arg;
    (void)text;
    (void)length;
    (*calls)++;
    host_clock_advance(NS_PER_MS);
    return 0;
}

TEST(a_flush_ends_when_nobody_reads_for_long_enough) {
    unsigned calls = 0;
    log_set_sink(refuse, &calls);
    log_text("for nobody");
    log_flush();
    assert_int_equal(calls, LOG_FLUSH_MS + 1);
    assert_true(log_is_waiting());
}

/* Also the end of a line whose rest the ring has lost. */
TEST(a_console_that_takes_nothing_finds_the_newest_lines_later) {
    struct reader reader = {.room = 5};
    log_set_sink(write_to_reader, &reader);
    log_text("the first line");
    assert_false(log_drain(100));
    (void)write_lines(1, 2000);
    assert_false(log_drain(100));
    assert_int_equal(reader.used, 5);
    reader.room = 1;
    assert_false(log_drain(100));
    assert_memory_equal(reader.text, "the f\n", 6);
    reader.room = 5;
    assert_false(log_drain(100));
    assert_memory_equal(reader.text, "the f\nline ", 11);
    reader.room = 0;
    log_set_sink(NULL, NULL);
}

TEST(a_cause_that_repeats_is_limited_and_the_rest_counted) {
    struct log_rate rate = {0};
    for (unsigned i = 0; i < LOG_RATE_PER_S; i++) {
        assert_true(log_rate_allows(&rate));
    }
    assert_false(log_rate_allows(&rate));
    assert_false(log_rate_allows(&rate));
    host_clock_advance(NS_PER_S - 1);
    assert_false(log_rate_allows(&rate));
    host_clock_advance(1);
    assert_true(log_rate_allows(&rate));
    assert_logged("(3 more lines of the next kind were left out)");
    host_clock_advance(NS_PER_S);
    unit_log_clear();
    assert_true(log_rate_allows(&rate));
    assert_string_equal(unit_log(), "");
}

static void dump(void *arg) {
    log_text("  state of %s", (const char *)arg);
}

TEST(a_panic_reports_what_and_who_and_the_dumps) {
    assert_panics("PANIC: 7 is too many", panic("%d is too many", 7));
    assert_panics("task  boot", panic("who"));
    assert_panics("state of the ring", {
        panic_add_dump(dump, (void *)(uintptr_t) "the ring");
        panic("with state");
    });
    assert_panics("assertion failed: 1 == 2", ASSERT(1 == 2));
}

static void panicking_dump(void *unused) {
    (void)unused;
    panic("inside");
}

TEST(a_panic_within_a_panic_ends_all_the_same) {
    assert_panics("PANIC while reporting a panic: inside", {
        panic_add_dump(panicking_dump, NULL);
        panic("outside");
    });
}

TEST(a_panic_names_its_registers) {
    static const char *const names[] = {"pc", "ra", "sp", "gp", "tp"};
    static const uint64_t values[] = {1, 2, 3, 4, 0xdeadbeef};
    static const struct fault fault = {.kind = FAULT_OTHER,
                                       .name = "trap",
                                       .address = 0x77,
                                       .register_names = names,
                                       .registers = values,
                                       .register_count = 5};
    assert_panics("PANIC: trap, value 0x77", panic_report(&fault));
    assert_panics("tp 00000000deadbeef", panic_report(&fault));
}

TEST(a_panic_repeats_the_last_lines_of_the_log) {
    assert_panics("  log   [", {
        log_info("before");
        panic("then");
    });
}

static void switched_off(void *arg, enum power_end end, bool restart) {
    log_text("%s %d%s", (const char *)arg, (int)end, restart ? " restart" : "");
    log_flush();
    arch_halt(true);
}

TEST(power_goes_off_through_the_switch_with_the_log_written) {
    assert_panics("last words\nswitch 0", {
        power_set_switch(switched_off, (void *)(uintptr_t) "switch");
        log_text("last words");
        power_off(POWER_OFF);
    });
}

TEST(a_panic_ends_with_its_own_status) {
    assert_panics("end of report\nswitch 100", {
        power_set_switch(switched_off, (void *)(uintptr_t) "switch");
        panic("the end");
    });
}

TEST(a_panic_starts_anew_when_told_but_not_at_once) {
    host_clock_set(PANIC_RESTART_MIN_MS * NS_PER_MS);
    assert_panics("end of report\nswitch 100", {
        power_set_switch(switched_off, (void *)(uintptr_t) "switch");
        panic_set_restart(true);
        panic("too early");
    });
    host_clock_advance(1);
    assert_panics("starting anew\nswitch 100 restart", {
        power_set_switch(switched_off, (void *)(uintptr_t) "switch");
        panic_set_restart(true);
        panic("late enough");
    });
}

TEST(the_tail_of_the_log_is_whole_lines) {
    char text[64];
    log_text("first");
    log_text("second");
    log_text("third");
    log_tail(2, text, sizeof text);
    assert_string_equal(text, "second\nthird\n");
    log_tail(2, text, 9);
    assert_string_equal(text, "third\n");
    log_tail(2, text, 3);
    assert_string_equal(text, "");
}
